"""One run of the experiments: what is trained on what, and with which patches.  Plain data."""
from dataclasses import asdict, dataclass
from typing import Any

TASKS = ('det', 'seg')
TRAINED = ('entire', 'added')
EXPANSIONS = ('smoothed', 'cells')
EXTRAS = ('', 'warm', 'distilled', 'warm-distilled', *EXPANSIONS)


@dataclass(frozen=True)
class Patches:
    """How the images are cut.

    Attributes:
        scorer: see ``apt_dense.core.chooser.PatchChooser``.
        kept: tokens over cells, of the content of the training images: thresholds are searched for it.
        ratios: of each threshold over that of the next finer size: one for all, or one for each.
        num_scales: sizes of patches, from 16 px on.
        detail_branch: see ``apt_dense.core.embed.AdaptivePatchEmbed``.
        rope_anchor: see ``apt_dense.core.rope.rope_table``.
        proportional: attention counts merged patches by their cells, ``proportional_attention`` of the backbone.
        per: 'dataset', thresholds for all images; or 'image', each image keeps the same number of tokens.
    """
    scorer: str
    kept: float
    ratios: tuple[float, ...] = (1.0,)
    num_scales: int = 4
    detail_branch: str = 'zero'
    rope_anchor: str = 'corner'
    per: str = 'dataset'
    proportional: bool = False

    def __post_init__(self):
        if self.per not in ('dataset', 'image'):
            raise ValueError(f"{self}: per is 'dataset' or 'image'")
        if self.per == 'image' and set(self.ratios) != {1.0}:
            raise ValueError(f'{self}: with a number of tokens for each image, all sizes have one threshold')

    @property
    def choice(self) -> str:
        """Scorer and ratios, for people: 'entropy-r1-0.15'."""
        return f'{self.scorer}-r{"-".join(f"{ratio:g}" for ratio in self.ratios)}'

    @property
    def name(self) -> str:
        """All settings: 'entropy-r1-0.15-4x-k0.5', and what differs from the defaults."""
        parts = [self.choice, f'{self.num_scales}x', f'k{self.kept:g}']
        parts += [self.detail_branch] if self.detail_branch != 'zero' else []
        parts += [self.rope_anchor] if self.rope_anchor != 'corner' else []
        parts += [f'per-{self.per}'] if self.per != 'dataset' else []
        parts += ['proportional'] if self.proportional else []
        return '-'.join(parts)


@dataclass(frozen=True)
class Training:
    """What is trained, and from which weights.

    Attributes:
        start: 'random', or 'dense': the trained dense model of the same task, dataset and seed.
        share: iterations over those of the dense model; 0 trains nothing.
        rate: learning rate over the dense model's.
        trains: 'entire', or 'added': only the parameters that APT adds.
        extra: '', or 'warm': thresholds are drawn for each iteration (``WarmThresholdsHook``); or 'distilled': towards
            the features of the dense model that it starts from (``DistillMixin``); or both; or one of ``EXPANSIONS``:
            with a term after the expansion, which is trained too (``ExpandedEVA02``).
    """
    start: str
    share: float
    rate: float = 1.0
    trains: str = 'entire'
    extra: str = ''

    def __post_init__(self):
        if self.extra not in EXTRAS or self.extra and not (self.share and self.start == 'dense'):
            raise ValueError(f"{self}: extra is one of {EXTRAS}, for trainings that start from the dense model")
        if self.start not in ('random', 'dense') or self.trains not in TRAINED:
            raise ValueError(f"{self}: start is 'random' or 'dense', trains is one of {TRAINED}")
        if self.start == 'random' and not self.share:
            raise ValueError(f'{self}: random weights that are not trained')

    @property
    def is_warm(self) -> bool:
        """True if thresholds are drawn."""
        return 'warm' in self.extra

    @property
    def name(self) -> str:
        """'scratch', 'untrained', or such as 'entire-0.05-rate0.1'."""
        if not self.share:
            return 'untrained'
        if self.start == 'random':
            return 'scratch' if self.share == 1 else f'scratch-{self.share:g}'
        return '-'.join([self.trains, f'{self.share:g}', f'rate{self.rate:g}', *filter(None, [self.extra])])


SCRATCH = Training('random', 1.0)
UNTRAINED = Training('dense', 0.0)


@dataclass(frozen=True)
class Cell:
    """One run: a model is trained, or loaded, and tested.

    Attributes:
        task: 'det' or 'seg'.
        dataset: a key of ``grids.DATASETS``.
        patches: None for the dense model.
        training: what is trained.
        seed: of the weights and of the order of the data.
    """
    task: str
    dataset: str
    patches: Patches | None
    training: Training
    seed: int = 0

    def __post_init__(self):
        if self.task not in TASKS:
            raise ValueError(f'task={self.task!r} is not one of {TASKS}')
        training = self.training
        if self.patches is None and (training.trains == 'added' or training.extra or not training.share):
            raise ValueError(f'{self.training} of a dense model: it has nothing of its own to test')

    @property
    def name(self) -> str:
        """Tells all cells apart, and names files."""
        patches = self.patches.name if self.patches else 'dense'
        return f'{self.task}_{self.dataset}_{patches}_{self.training.name}_s{self.seed}'

    @property
    def parent(self) -> 'Cell | None':
        """The cell whose weights this one starts from."""
        return Cell(self.task, self.dataset, None, SCRATCH, self.seed) if self.training.start == 'dense' else None

    @property
    def control(self) -> 'Cell':
        """The dense model that this one is compared with: it has had the same iterations at the same rate.

        Where only the parameters train that APT adds, nothing of the dense model does: it is compared as it was.
        """
        training = self.training
        if training.trains == 'added':
            training = UNTRAINED
        if not training.share or training.start == 'random':
            return Cell(self.task, self.dataset, None, SCRATCH if not training.share else training, self.seed)
        return Cell(self.task, self.dataset, None, Training('dense', training.share, training.rate), self.seed)

    @property
    def resizing(self) -> 'Cell | None':
        """The paper's Resizing with the same patches: merged, and nothing trained.  None for the dense model."""
        if self.patches is None:
            return None
        patches = Patches(**{**asdict(self.patches), 'detail_branch': 'none', 'proportional': False})
        return Cell(self.task, self.dataset, patches, UNTRAINED, self.seed)

    def to_json(self) -> dict[str, Any]:
        """Plain values; ``from_json`` turns them back."""
        return asdict(self)

    @classmethod
    def from_json(cls, content: dict[str, Any]) -> 'Cell':
        """The inverse of ``to_json``, also after JSON has made lists of tuples."""
        patches = content['patches']
        if patches is not None:
            patches = Patches(**{**patches, 'ratios': tuple(patches['ratios'])})
        return cls(content['task'], content['dataset'], patches, Training(**content['training']), content['seed'])


def with_needed(cells: list[Cell]) -> list[Cell]:
    """The cells in their order without repeats, each after the one that it starts from."""
    result: dict[Cell, None] = {}
    for cell in cells:
        if cell.parent is not None:
            result.setdefault(cell.parent)
        result.setdefault(cell)
    return list(result)
