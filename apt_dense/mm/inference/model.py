"""A trained model that predicts pictures."""
import itertools
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import replace
from numbers import Integral
from typing import Any

import cv2
import numpy as np
import torch
from mmengine.config import Config
from mmengine.dataset import pseudo_collate
from mmengine.registry import VISUALIZERS, DefaultScope
from mmengine.structures import BaseDataElement
from torch import nn

from apt_dense.core.layout import TokenLayout
from apt_dense.mm.data.inputs import slide_windows, test_transforms
from apt_dense.mm.data.load_picture import load_as
from apt_dense.mm.errors import DataError
from apt_dense.mm.inference.results import Grid, Result, Tokens
from apt_dense.mm.inference.sources import NO_PICTURE, Picture, check_readable, pictures_of

_numbers = itertools.count()


class Model:
    """A detector or segmentor with its config; ``apt_dense.load`` makes one.

    The config's test pipeline, the data preprocessor and the ``test_step`` of mmdetection or mmsegmentation do the
    work: predictions are those of ``tools/test.py``.

    Attributes:
        module: the model, in eval mode.
        cfg: its config.
        task: 'det' or 'seg'.
        classes: names; label i is ``classes[i]``.
        device: where it is.
    """

    def __init__(self, module: nn.Module, cfg: Config):
        self.module, self.cfg = module, cfg
        self.task = 'det' if 'roi_head' in cfg.model else 'seg'
        self.classes = tuple(module.dataset_meta['classes'])
        with DefaultScope.overwrite_default_scope(cfg.default_scope):
            self._transforms = test_transforms(cfg)
        self._visualizer = None

    def __repr__(self) -> str:
        parameters = sum(parameter.numel() for parameter in self.module.parameters())
        return (f'Model({self.task}, {len(self.classes)} classes, {parameters / 1e6:.1f} M parameters, {self.device}, '
                f'thresholds={self.thresholds})')

    @property
    def device(self) -> torch.device:
        """Where the parameters are."""
        return next(self.module.parameters()).device

    @property
    def thresholds(self) -> tuple[float, ...]:
        """Of the patches, fine to coarse; may be set."""
        return self.module.backbone.thresholds

    @thresholds.setter
    def thresholds(self, values: Sequence[float]) -> None:
        self.module.backbone.thresholds = values

    def predict(self, source: Any, batch_size: int = 1) -> list[Result]:
        """Predict pictures; a video's results take much memory, for which ``stream`` is there.

        Args:
            source: a path of a picture, a folder (with those below it) or a video; an array (H, W, 3) in RGB or (H, W),
                of 8 or 16 bits; a PIL image; or a list or generator of them.
            batch_size: pictures that a detector gets at once.  A segmentor gets one after the other.

        Returns:
            One ``Result`` for each picture, in their order.

        Raises:
            DataError: for what is no picture, naming it: all files are looked at before the first is predicted.
        """
        check_readable(source)
        return list(self.stream(source, batch_size))

    def stream(self, source: Any, batch_size: int = 1,
               on_bad: Callable[[DataError], object] | None = None) -> Iterator[Result]:
        """``predict``, one result after the other.

        Args:
            on_bad: called with the error of what cannot be read, which is then left out; by default it is raised.
        """
        if not isinstance(batch_size, Integral) or isinstance(batch_size, bool) or batch_size < 1:
            raise DataError(f'batch_size={batch_size!r} must be a whole number from 1 on')
        read, numbers = self._read_all(pictures_of(source, on_bad), on_bad), itertools.count(1)
        while batch := list(itertools.islice(read, batch_size if self.task == 'det' else 1)):
            for result in self._predict(*zip(*batch, strict=True)):
                yield replace(result, number=next(numbers))

    @torch.no_grad()
    def test_step(self, batch: dict[str, list]) -> tuple[list[BaseDataElement], list[Tokens]]:
        """What the model gives for a batch of the test data loader, and the tokens of each picture.

        Args:
            batch: 'inputs', pictures (3, H, W) as the pipeline gives them, and 'data_samples'.  A segmentor with
                windows takes one picture.
        """
        layouts: list[TokenLayout] = []
        handle = self.module.backbone.register_forward_hook(lambda backbone, *_: layouts.append(backbone.last_layout))
        try:
            with DefaultScope.overwrite_default_scope(self.cfg.default_scope):
                sizes_px = [tuple(image.shape[-2:]) for image in batch['inputs']]
                samples = self.module.test_step(batch)
        finally:
            handle.remove()
        return samples, self._tokens(layouts, sizes_px)

    def _predict(self, pictures: Sequence[Picture], data: Sequence[dict]) -> list[Result]:
        samples, tokens = self.test_step(pseudo_collate(list(data)))
        return [self._result(*parts) for parts in zip(pictures, samples, tokens, strict=True)]

    def _read_all(self, pictures: Iterable[Picture],
                  on_bad: Callable[[DataError], object] | None) -> Iterator[tuple[Picture, dict]]:
        """Pictures with what the pipeline makes of them."""
        for picture in pictures:
            try:
                yield picture, self._read(picture)
            except DataError as error:
                if on_bad is None:
                    raise
                on_bad(error)

    def _read(self, picture: Picture) -> dict:
        """What the pipeline makes of a picture."""
        given = dict(img_path=picture.name) if picture.array is None else dict(img=picture.array[..., ::-1])
        try:
            return self._transforms(dict(given, img_id=0, seg_fields=[], reduce_zero_label=False))
        except (AssertionError, cv2.error) as error:  # mmcv asserts that an image was decoded
            raise DataError(f'{picture.name} cannot be read as a picture: {NO_PICTURE}') from error
        except (OSError, ValueError) as error:
            raise DataError(f'{picture.name} cannot be read as a picture: {error}') from error

    def _tokens(self, layouts: list[TokenLayout], sizes_px: list[tuple[int, int]]) -> list[Tokens]:
        """Of each picture of a batch, from the layouts of its forward passes."""
        patch_size = self.module.backbone.patch_size
        if self.task == 'det':
            content = [tuple(-(-side // patch_size) for side in size) for size in sizes_px]
            grids = Grid.all_of(layouts[0], patch_size, content, [(0, 0)] * len(content))
            return [Tokens([grid]) for grid in grids]
        size_px, test_cfg = sizes_px[0], self.module.test_cfg
        windows = [(slice(0, size_px[0]), slice(0, size_px[1]))]
        if test_cfg.mode == 'slide':
            windows = slide_windows(size_px, test_cfg.crop_size, test_cfg.stride)
        grids, left = [], iter(windows)
        for layout in layouts:  # in slide inference of one picture, each has one window or more
            parts = list(itertools.islice(left, layout.batch_size))
            content = [tuple(-(-(min(part.stop, side) - part.start) // patch_size)
                             for part, side in zip(window, size_px, strict=True)) for window in parts]
            grids += Grid.all_of(layout, patch_size, content, [(rows.start, cols.start) for rows, cols in parts])
        return [Tokens(grids)]

    def _result(self, picture: Picture, sample: BaseDataElement, tokens: Tokens) -> Result:
        picture = replace(picture, load=self._pixels)
        common = dict(name=picture.name, size=tuple(sample.ori_shape), classes=self.classes, tokens=tokens,
                      _picture=picture, _sample=sample.cpu(), _visualizer=self._drawer())
        if self.task == 'seg':
            return Result(label_map=sample.pred_sem_seg.data[0].cpu().numpy(), **common)
        found = sample.pred_instances.cpu()
        order = found.scores.argsort(descending=True, stable=True)
        found = sample.pred_instances = found[order]
        masks = found.masks if 'masks' in found else None
        return Result(boxes=found.bboxes.numpy(), scores=found.scores.numpy(), labels=found.labels.numpy(),
                      masks=None if masks is None else np.asarray(masks, bool), **common)

    def _pixels(self, path: str) -> np.ndarray:
        """A file as the pipeline loads it: (H, W, 3) uint8, RGB."""
        return np.ascontiguousarray(load_as(self._transforms.transforms, path)[..., ::-1])

    def _drawer(self) -> Any:
        """The config's visualiser, made once; it writes nothing by itself."""
        if self._visualizer is None:
            with DefaultScope.overwrite_default_scope(self.cfg.default_scope):
                settings = {**self.cfg.visualizer, 'vis_backends': None, 'save_dir': None,
                            'name': f'prediction {next(_numbers)}'}  # mmengine gives those of one name the same one
                self._visualizer = VISUALIZERS.build(settings)
            self._visualizer.dataset_meta = self.module.dataset_meta
        return self._visualizer
