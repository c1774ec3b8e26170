"""A model on the test dataset of a config, by the config's own data loader and evaluator."""
import io
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, redirect_stdout
from typing import Any

from mmengine.config import Config, ConfigDict
from mmengine.evaluator import Evaluator
from mmengine.registry import DefaultScope
from mmengine.runner import Runner
from mmengine.structures import BaseDataElement

from apt_dense.mm.cli.dataset_files import check_dataset_files
from apt_dense.mm.errors import DataError
from apt_dense.mm.inference.model import Model
from apt_dense.mm.inference.results import Tokens
from apt_dense.mm.preflight.options import merge_options

Seen = Callable[[BaseDataElement, Tokens], object]


class Evaluation:
    """The test dataset of a config, on which models are tested as ``tools/test.py`` does, image by image.

    Args:
        cfg: has test_dataloader and test_evaluator; it is not changed.

    Attributes:
        dataset: the test dataset.
        evaluator: the config's, of mmengine.
        results: of the last evaluation, for each of the evaluator's metrics what it has noted of each image.

    Raises:
        DataError: if it has no such dataset or evaluator, or files of it are missing.
    """

    def __init__(self, cfg: Config):
        absent = [key for key in ('test_dataloader', 'test_evaluator') if not cfg.get(key)]
        if absent:
            raise DataError(f'{cfg.filename or "the config of the checkpoint"} has no {", ".join(absent)}: give a '
                            'config that has a test dataset and its evaluator')
        check_dataset_files(cfg, 'test')
        self._scope = cfg.default_scope
        loader = ConfigDict(cfg.test_dataloader, batch_size=1)
        with self._in_scope():
            self.loader = Runner.build_dataloader(loader, seed=0)
            self.evaluator = Evaluator(cfg.test_evaluator)
        self.dataset = self.loader.dataset
        self.evaluator.dataset_meta = self.dataset.metainfo
        self.results: list[list] = []

    def __len__(self) -> int:
        return len(self.dataset)

    @contextmanager
    def _in_scope(self) -> Iterator[None]:
        with DefaultScope.overwrite_default_scope(self._scope):
            yield

    def evaluate(self, model: Model, seen: Seen | None = None,
                 progress: Callable[[Iterable], Iterable] = lambda batches: batches) -> dict[str, Any]:
        """The metrics of a model, and its kept tokens under 'kept_tokens_content', of all images together.

        Args:
            seen: called with each image's sample, truth and prediction in it, and its tokens.
            progress: of the batches, as ``tqdm``.

        Raises:
            DataError: if the model has other classes than the dataset.
        """
        check_classes(model.classes, self.dataset.metainfo['classes'], 'the test dataset')
        num_tokens = num_cells = 0
        with self._in_scope():
            for batch in progress(self.loader):
                samples, tokens = model.test_step(batch)
                self.evaluator.process(data_samples=samples, data_batch=batch)
                num_tokens, num_cells = num_tokens + tokens[0].num_tokens, num_cells + tokens[0].num_cells
                if seen is not None:
                    seen(samples[0], tokens[0])
            self.results = [list(metric.results) for metric in self.evaluator.metrics]
            with redirect_stdout(io.StringIO()):  # pycocotools prints its tables
                metrics = self.evaluator.evaluate(len(self))
        return {**{name: float(value) for name, value in metrics.items()},
                'kept_tokens_content': num_tokens / num_cells}

    def batch(self, index: int) -> dict[str, list]:
        """The data loader's batch of one image."""
        with self._in_scope():
            return self.loader.collate_fn([self.dataset[index]])


def check_classes(found: Iterable[str], wanted: Iterable[str], whose: str) -> None:
    """Raise DataError where labels would not mean the same."""
    found, wanted = tuple(found), tuple(wanted)
    if found == wanted:
        return
    place = next((index for index, names in enumerate(zip(found, wanted, strict=False)) if names[0] != names[1]),
                 min(len(found), len(wanted)))
    names = [f'{classes[place]!r}' if place < len(classes) else 'none' for classes in (found, wanted)]
    raise DataError(f'the model has {len(found)} classes and {whose} {len(wanted)}, class {place} is {names[0]} and '
                    f'{names[1]}: give models and a dataset with the same classes in the same order')


def set_options(cfg: Config, options: dict[str, Any]) -> None:
    """Change what a loaded model is tested on.

    Raises:
        DataError: for an option of the model, which is built by then.
    """
    others = [key for key in options if not key.startswith('test_')]
    if others:
        raise DataError(f'--cfg-options {others[0]}: the model is what the checkpoint says; wanted test_dataloader... '
                        'or test_evaluator...')
    merge_options(cfg, options)

