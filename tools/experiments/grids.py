"""The grids of the experiments, as data: which cells there are, in the order in which they run."""
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace

from cells import EXPANSIONS, SCRATCH, TASKS, UNTRAINED, Cell, Patches, Training


@dataclass(frozen=True)
class Dataset:
    """A dataset of tools/demo/make_demo_dataset.py; the models work at 384 px.

    Attributes:
        recipe, num_train, num_val, seed: its arguments.
        enlarged: the factor by which the pipelines enlarge a side of its pictures.
    """
    recipe: str
    num_train: int = 1000
    num_val: int = 200
    seed: int = 0
    enlarged: float = 1.0


DATASETS = {'native': Dataset('scenes_384'), 'enlarged': Dataset('scenes_192', enlarged=2.0)}
SEEDS = (0, 1, 2)
# Of grids with one seed for each task.  The rest of some was run when the first dense models' weights were gone.
FIRST_SEED = {'det': 0, 'seg': 0}
LATER_SEED = {'det': 0, 'seg': 1}
KEPT = (0.9, 0.7, 0.5, 0.35)
GOALS = (0.7, 0.5)  # the shares for which there are goals: more is asked of them
SHORT = 0.05  # of the dense model's iterations: the paper's
LONG = 0.2
ADDED, ADDED_TENTH = Training('dense', SHORT, 1.0, 'added'), Training('dense', SHORT, 0.1, 'added')
ENTIRE_FULL, ENTIRE_TENTH = Training('dense', SHORT, 1.0), Training('dense', SHORT, 0.1)
ENTIRE_LONG = Training('dense', LONG, 0.1)
RATES = (1.0, 0.4, 0.1, 0.03)
WARM_KEPT = (0.9, 0.35)  # the ends of the thresholds that are drawn
BETTER = ENTIRE_TENTH  # the recipe with which scorers and other settings are compared
BEST = {'det': ENTIRE_TENTH, 'seg': ADDED}  # the paper's recipe that loses least, by the first seed

# Patches of 16 to 128 px in detection and of 16 to 64 px in segmentation, as in the paper.
NUM_SCALES = {'det': 4, 'seg': 3}
# The proportions of the paper's thresholds: (2, 2, 0.3) and (5.75, 4.0).
PUBLISHED_RATIOS = {'det': (1.0, 0.15), 'seg': (4.0 / 5.75,)}


def entropy(task: str, kept: float) -> Patches:
    """The paper's choice of patches."""
    return Patches('entropy', kept, PUBLISHED_RATIOS[task], NUM_SCALES[task])


def upsampling(task: str, kept: float) -> Patches:
    """The other scorer, the one that lost least in the first scores of detection: one threshold for all sizes."""
    return Patches('upsampling_error_max', kept, (1.0,), NUM_SCALES[task])


def resizing(patches: Patches) -> Patches:
    """The same without added parameters."""
    return replace(patches, detail_branch='none')


def dense(seeds: tuple[int, ...] = SEEDS) -> list[Cell]:
    """The dense models, and each with the iterations of the short fine-tunings."""
    trainings = (SCRATCH, ENTIRE_TENTH, ENTIRE_FULL, ENTIRE_LONG)
    return [Cell(task, dataset, None, training, seed) for seed in seeds for task in TASKS for dataset in DATASETS
            for training in trainings]


def methods(seeds: tuple[int, ...] = SEEDS) -> list[Cell]:
    """Entropy and the other scorer at several shares, by every recipe."""
    cells = []
    for seed in seeds:
        for dataset in DATASETS:
            for task in TASKS:
                for kept in KEPT if dataset == 'native' else GOALS:
                    trainings = [ADDED, ADDED_TENTH, ENTIRE_TENTH]
                    # 20 % of the iterations: three seeds on one dataset, one on the other.
                    trainings += [ENTIRE_LONG] if kept in GOALS and (dataset == 'native' or not seed) else []
                    for patches in (entropy(task, kept), upsampling(task, kept)):
                        cells.append(Cell(task, dataset, resizing(patches), UNTRAINED, seed))
                        cells += [Cell(task, dataset, patches, training, seed) for training in trainings]
    return cells


def from_start() -> list[Cell]:
    """APT with the whole schedule from random weights; one seed, one dataset."""
    return [Cell(task, 'native', make(task, kept), SCRATCH) for kept in GOALS for task in TASKS
            for make in (upsampling, entropy)]


def scorers() -> list[Cell]:
    """Every scorer, with one threshold for all sizes and with one for each; kept 0.5, untrained and fine-tuned."""
    choices = {'variance': (1.0, 0.5), 'variance_max': (1.0, 0.5), 'variance_price': (1.0,),
               'upsampling_error': (1.0, 0.5), 'upsampling_error_max': (1.0, 0.5), 'resizing_error': (1.0, 0.5),
               'resizing_error_max': (1.0, 0.5), 'rate_distortion': (1.0,), 'rate_distortion_squared': (1.0,),
               'entropy': (1.0, 0.7), 'random': (1.0,), 'laplacian_max': (1.0, 0.7), 'laplacian_mean': (1.0, 0.7),
               'laplacian_std': (1.0, 0.7)}
    return _pairs(lambda task: [entropy(task, 0.5)] + [Patches(scorer, 0.5, (ratio,), NUM_SCALES[task])
                                for scorer, ratios in choices.items() for ratio in ratios])


def budgets() -> list[Cell]:
    """Every image the same number of tokens, against one threshold for the dataset."""
    return _pairs(lambda task: [replace(upsampling(task, 0.5), per=per) for per in ('dataset', 'image')])


def details() -> list[Cell]:
    """Starts of the detail branch; none is Resizing with a fine-tuning."""
    return _pairs(lambda task: [replace(upsampling(task, 0.5), detail_branch=branch)
                                for branch in ('zero', 'nonzero', 'residual', 'none')])


def anchors() -> list[Cell]:
    """Where a merged patch stands for the rotary position."""
    return _pairs(lambda task: [replace(make(task, 0.5), rope_anchor=anchor)
                                for make in (upsampling, entropy) for anchor in ('corner', 'center')], LATER_SEED)


def scales() -> list[Cell]:
    """Patches of 2, 3 and 4 sizes."""
    return _pairs(lambda task: [replace(upsampling(task, 0.5), num_scales=number) for number in (2, 3, 4)], LATER_SEED)


def rates() -> list[Cell]:
    """Learning rates of the short fine-tuning, with the dense model's own; the second seed."""
    trainings = [Training('dense', SHORT, rate) for rate in RATES]
    return [Cell(task, 'native', patches, training, SEEDS[1]) for task in TASKS for training in trainings
            for patches in (None, upsampling(task, 0.5), entropy(task, 0.5))]


def beyond(seeds: tuple[int, ...] = (0, 2)) -> list[Cell]:
    """What is not in the paper: thresholds drawn in training, one model for every share; distillation; and both.

    By the task's best recipe; with the first seed by the entire model too.
    """
    cells = []
    for seed in seeds:
        for task, best in BEST.items():
            for recipe in dict.fromkeys((best,) if seed else (ENTIRE_TENTH, best)):
                cells += [Cell(task, 'native', upsampling(task, kept), replace(recipe, extra=extra), seed)
                          for kept in (0.5, 0.7, 0.9, 0.35) for extra in ('', 'warm', 'distilled', 'warm-distilled')
                          if kept in GOALS or extra in ('', 'warm')]
    return cells


def proportional(seeds: tuple[int, ...] = SEEDS[:2]) -> list[Cell]:
    """Merged patches that count in attention by their cells: not in the paper.

    Untrained at every share, and by the task's best recipe, also with a teacher; the rest, also enlarged pictures, with
    the first seed.
    """
    def counted(make: Callable[[str, float], Patches], task: str, kept: float) -> Patches:
        return replace(make(task, kept), proportional=True)

    cells = []
    for seed in seeds:
        for task, best in BEST.items():
            for kept in KEPT:
                patches = counted(upsampling, task, kept)
                cells.append(Cell(task, 'native', resizing(patches), UNTRAINED, seed))
                if kept in GOALS:
                    cells += [Cell(task, 'native', patches, replace(best, extra=extra), seed)
                              for extra in ('', 'distilled')]
    for task, best in BEST.items() if 0 in seeds else ():
        cells += [Cell(task, 'enlarged', resizing(counted(upsampling, task, kept)), UNTRAINED) for kept in GOALS]
        half = counted(upsampling, task, 0.5)
        cells += [Cell(task, 'native', resizing(counted(entropy, task, kept)), UNTRAINED) for kept in GOALS]
        cells += [Cell(task, 'enlarged', half, best), Cell(task, 'native', half, SCRATCH)]
        cells += [Cell(task, 'native', counted(upsampling, task, kept), replace(best, extra='warm-distilled'))
                  for kept in KEPT]
    return cells


def expansions() -> list[Cell]:
    """A term after the expansion, by the task's best recipe."""
    return [Cell(task, 'native', upsampling(task, kept), replace(recipe, extra=extra))
            for task, recipe in BEST.items() for kept in GOALS for extra in ('', *EXPANSIONS)]


def lengths() -> list[Cell]:
    """The dense model with half of the iterations and with twice as many: does it still improve?"""
    return [Cell(task, 'native', None, Training('random', share)) for task in TASKS for share in (0.5, 2.0)]


def _pairs(make: Callable[[str], list[Patches]], seeds: Mapping[str, int] = FIRST_SEED) -> list[Cell]:
    """Untrained and by the better recipe, on one dataset with the task's seed, what ``make(task)`` gives."""
    cells = []
    for task in TASKS:
        for patches in make(task):
            # Untrained, the zero branch adds nothing: that is Resizing.  The others would add random numbers.
            if patches.detail_branch in ('zero', 'none'):
                cells.append(Cell(task, 'native', resizing(patches), UNTRAINED, seeds[task]))
            cells.append(Cell(task, 'native', patches, BETTER, seeds[task]))
    return cells


def everything() -> list[Cell]:
    """All grids but ``lengths``, what decides about others first: a seed of each, then the others' inner shares."""
    first, others = dense(SEEDS[:1]), methods(SEEDS[1:])
    native = [cell for cell in first if cell.dataset == 'native']
    inner = [cell for cell in others if cell.patches.kept in GOALS]
    return [*native, *scorers(), *first, *methods(SEEDS[:1]), *proportional(SEEDS[:1]), *expansions(),
            *beyond(SEEDS[:1]), *budgets(), *details(), *from_start(), *dense(SEEDS[1:]), *inner, *anchors(), *scales(),
            *rates(), *proportional(SEEDS[1:2]), *beyond(SEEDS[2:]), *others]


GRIDS = {'dense': dense, 'methods': methods, 'from_start': from_start, 'scorers': scorers, 'budgets': budgets,
         'beyond': beyond, 'details': details, 'anchors': anchors, 'scales': scales, 'rates': rates, 'lengths': lengths,
         'proportional': proportional, 'expansions': expansions, 'all': everything}
