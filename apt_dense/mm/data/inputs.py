"""What the backbone of a config's model is given for each image of a dataset, without the model."""
import random
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import torch
from mmcv.transforms import LoadAnnotations
from mmengine.config import Config, ConfigDict
from mmengine.dataset import Compose, pseudo_collate
from mmengine.registry import DATASETS, MODELS, init_default_scope
from torch import Tensor

from apt_dense.calibration.inputs import BackboneInput
from apt_dense.core.chooser import PatchChooser
from apt_dense.core.vit import PackedViT
from apt_dense.mm.models.normalisation import check_normalisation

SPLITS = ('train', 'val', 'test')
MAX_DRAWS = 100  # of the training pipeline, until one of an image keeps an object


class ConfigInputs:
    """What the backbone of a config's model gets in training or testing, image by image.

    The dataset, the pipeline, the data preprocessor with its padding and, for segmentation, the windows of slide
    inference are the config's own.  Test pipelines run without their annotations.  No model is built.

    Args:
        cfg: as ``Config.fromfile`` reads it; it is not changed.
        split: 'train', 'val' or 'test', whose data loader names the dataset.  Wrappers that repeat images are passed
            over: each image counts once.
        pipeline: whose pipeline the images go through; by default ``split``.  With 'train' each image is drawn once,
            by its index and ``seed``.
        num_scales: in place of the backbone's, with thresholds of 0.
        seed: of the training pipeline's random choices.
        images: files in place of the dataset's, through a test pipeline.

    Attributes:
        chooser: the backbone's, see ``PatchChooser``.
        settings: everything that the scores follow from, see ``input_settings``.

    Raises:
        ValueError: if the config has no such data loader, or no backbone that packs tokens, or its backbone
            undoes another normalisation than the data preprocessor's.
    """

    def __init__(self, cfg: Config, split: str = 'test', pipeline: str | None = None, num_scales: int | None = None,
                 seed: int = 0, images: Sequence[Path] | None = None):
        pipeline = pipeline or split
        if images is not None and pipeline == 'train':
            raise ValueError('a training pipeline needs annotations, which image files have not: take the test '
                             'pipeline')
        self.training = pipeline == 'train'
        self.seed = seed
        init_default_scope(cfg.get('default_scope', 'mmengine'))
        self.chooser = chooser_of(cfg, num_scales)
        self.preprocessor = MODELS.build(_preprocessor_config(cfg))
        check_normalisation(self.preprocessor, self.chooser)
        self.settings = input_settings(cfg, split, pipeline, num_scales, seed)
        self._model_class = MODELS.get(cfg.model.type)
        self._test_cfg = cfg.model.get('test_cfg')
        self._transforms = _transforms(cfg, pipeline)
        self._samples: list[tuple[Any, int]] = []  # dataset and position, or what the pipeline begins with
        if images is None:
            parts = [_build_dataset(leaf) for leaf in _leaves(_dataset_config(cfg, split))]
            self._samples = [(part.get_data_info, index) for part in parts for index in range(len(part))]
        else:
            self._samples = [(_image_info, (str(path), index)) for index, path in enumerate(images)]

    def __len__(self) -> int:
        return len(self._samples)

    def path(self, index: int) -> str:
        """The image's path as the dataset gives it."""
        return self._info(index)['img_path']

    def sample(self, index: int) -> dict:
        """What the pipeline gives for the image: a batch of one for the data preprocessor.

        Raises:
            ValueError: if no draw of the training pipeline keeps an object.
        """
        random.seed(self.seed + index)
        np.random.seed((self.seed + index) % 2**32)
        torch.manual_seed(self.seed + index)
        for _ in range(MAX_DRAWS):  # in training, mmengine takes another image where a draw loses all objects
            data = self._transforms(self._info(index))
            if data is not None:
                return pseudo_collate([data])
        raise ValueError(f'{self.path(index)}: {MAX_DRAWS} draws of the pipeline left no object')

    @torch.no_grad()
    def inputs(self, index: int) -> list[BackboneInput]:
        """The inputs that the image gives: one, or one for each slide window.

        Raises:
            ValueError: if the image cannot be read, or no draw of the training pipeline keeps an object.
        """
        return self._inputs(lambda: self.sample(index), self.path(index))

    @torch.no_grad()
    def inputs_of(self, image: Path | np.ndarray) -> list[BackboneInput]:
        """The inputs that a file gives, or an image (H, W, 3) uint8, RGB, as a frame of a video.

        Raises:
            ValueError: if it cannot be read.
        """
        given = dict(img=image[..., ::-1]) if isinstance(image, np.ndarray) else dict(img_path=str(image))
        info = dict(given, img_id=0, seg_fields=[], reduce_zero_label=False)
        name = 'the image' if isinstance(image, np.ndarray) else str(image)
        return self._inputs(lambda: pseudo_collate([self._transforms(info)]), name)

    def _inputs(self, make_sample: Callable[[], dict], name: str) -> list[BackboneInput]:
        try:
            data = make_sample()
            size_px = tuple(data['inputs'][0].shape[-2:])
            x = self.preprocessor(data, self.training)['inputs']
        except (OSError, AssertionError, cv2.error) as error:  # mmcv asserts that an image was decoded
            raise ValueError(f'{name} cannot be read: {error}') from error
        corners = [(slice(None), slice(None))]
        if not self.training and hasattr(self._model_class, 'slide_inference') and self._test_cfg.mode == 'slide':
            corners = slide_windows(tuple(x.shape[2:]), self._test_cfg.crop_size, self._test_cfg.stride)
        return [self._input(x, size_px, *corner) for corner in corners]

    def _input(self, x: Tensor, size_px: tuple[int, int], rows: slice, cols: slice) -> BackboneInput:
        """The part of the preprocessed image (1, 3, H, W), of which ``size_px`` is no padding, that a window is."""
        x = x[:, :, rows, cols]
        corner = rows.start or 0, cols.start or 0
        content = tuple(max(0, min(side, whole - start))
                        for side, whole, start in zip(x.shape[2:], size_px, corner, strict=True))
        if not self.training and getattr(self._model_class, 'pads_to_size_divisor', False):
            x = self.chooser.pad(x)
        return BackboneInput(x, content, corner)

    def score(self, index: int) -> list[tuple[list[Tensor], tuple[int, int]]]:
        """Of each of the image's inputs, the score maps (H, W) and the cells that hold content, rows and columns.

        Raises:
            ValueError: as ``inputs``, or if the image does not fit the backbone.
        """
        try:
            return [([scores[0] for scores in self.chooser.scores(one.x)],
                     one.content_cells(self.chooser.patch_size)) for one in self.inputs(index)]
        except ValueError as error:
            path = self.path(index)
            raise error if path in str(error) else ValueError(f'{path}: {error}') from error

    def _info(self, index: int) -> dict:
        get, argument = self._samples[index]
        return get(argument)


def chooser_of(cfg: Config, num_scales: int | None = None) -> PatchChooser:
    """The chooser of a config's backbone, without the backbone.

    Args:
        num_scales: in place of the backbone's, with thresholds of 0.

    Raises:
        ValueError: if the backbone packs no tokens, or one of its settings is wrong.
    """
    arguments = dict((cfg.get('model') or {}).get('backbone') or {})
    if not arguments:
        raise ValueError(f'{cfg.filename} has no model with a backbone: give a config of a model')
    kind = arguments.pop('type')
    arguments.pop('init_cfg', None)
    family = MODELS.get(kind) or object
    if not issubclass(family, PackedViT):
        raise ValueError(f'{cfg.filename}: model.backbone is {kind}, wanted one that packs tokens, such as APTEVA02')
    if num_scales:
        arguments.update(num_scales=num_scales, thresholds=(0.0,) * (num_scales - 1))
    return family.build_chooser(**arguments)


def image_size_of(cfg: Config) -> tuple[int, int]:
    """(height, width) in pixels of the images that a config's backbone is built for: its own, or its family's."""
    backbone = cfg.model.backbone
    size = backbone.get('img_size', MODELS.get(backbone.type).default_arguments()['img_size'])
    return tuple(size) if isinstance(size, (list, tuple)) else (size, size)


def resampling_of(cfg: Config, split: str = 'train') -> str:
    """How the pipeline of a split resizes images, one of ``apt_dense.calibration.images.RESAMPLINGS``."""
    return 'pillow' if any(step.get('backend') == 'pillow' for step in _pipeline(cfg, split)) else 'opencv'


def slide_windows(size_px: tuple[int, int], crop_px: tuple[int, int],
                  stride_px: tuple[int, int]) -> list[tuple[slice, slice]]:
    """Rows and columns of the windows of mmsegmentation's slide inference, in its order.

    The last window of a row or column is moved back into the image; an image smaller than the crop is one window.
    """
    starts = []
    for size, crop, stride in zip(size_px, crop_px, stride_px, strict=True):
        count = max(size - crop + stride - 1, 0) // stride + 1
        starts.append([slice(max(min(index * stride + crop, size) - crop, 0), min(index * stride + crop, size))
                       for index in range(count)])
    return [(rows, cols) for rows in starts[0] for cols in starts[1]]


def input_settings(cfg: Config, split: str = 'test', pipeline: str | None = None, num_scales: int | None = None,
                   seed: int = 0) -> dict[str, Any]:
    """Everything in a config that the scores of a dataset's images follow from, for the cache of token counts."""
    backbone = cfg.model.backbone
    names = ('patch_size', 'scorer', 'img_mean', 'img_std', 'max_tokens')
    leaves = [{key: value for key, value in leaf.items() if key != 'pipeline'}
              for leaf in _leaves(_dataset_config(cfg, split))]
    return {
        'datasets': leaves,
        'pipeline': _pipeline(cfg, pipeline or split),
        'training': (pipeline or split) == 'train',
        'seed': seed,
        'data_preprocessor': _preprocessor_config(cfg),
        'test_cfg': cfg.model.get('test_cfg') if 'decode_head' in cfg.model else None,
        'num_scales': num_scales or backbone.get('num_scales'),
        **{name: backbone.get(name) for name in names},
    }


def _preprocessor_config(cfg: Config) -> ConfigDict:
    if not cfg.model.get('data_preprocessor'):
        raise ValueError(f'{cfg.filename} has no model.data_preprocessor, which normalises and pads the images')
    return cfg.model.data_preprocessor


def _dataset_config(cfg: Config, split: str) -> ConfigDict:
    if split not in SPLITS:
        raise ValueError(f'split={split!r} is not one of {SPLITS}')
    if not cfg.get(f'{split}_dataloader'):
        raise ValueError(f'{cfg.filename} has no {split}_dataloader: choose another split')
    return cfg[f'{split}_dataloader'].dataset


def _leaves(dataset: ConfigDict) -> Iterator[ConfigDict]:
    """The datasets that hold images, inside wrappers."""
    inner = dataset.get('datasets') or ([dataset.dataset] if 'dataset' in dataset else [])
    if not inner:
        yield dataset
    for part in inner:
        yield from _leaves(part)


def _pipeline(cfg: Config, split: str) -> list[ConfigDict]:
    return next(_leaves(_dataset_config(cfg, split))).pipeline


def _transforms(cfg: Config, split: str) -> Compose:
    """A split's pipeline, in testing without annotations, which do not change the image and take time to read."""
    pipeline = Compose(_pipeline(cfg, split))
    if split != 'train':
        pipeline.transforms = [step for step in pipeline.transforms if not isinstance(step, LoadAnnotations)]
    return pipeline


def test_transforms(cfg: Config) -> Compose:
    """The test pipeline of a config, without annotations: for pictures that belong to no dataset."""
    return _transforms(cfg, 'test')


def _image_info(path_and_index: tuple[str, int]) -> dict:
    """What a dataset without annotations would give for a file."""
    path, index = path_and_index
    return dict(img_path=path, img_id=index, seg_fields=[], reduce_zero_label=False)


def _build_dataset(leaf: ConfigDict) -> Any:
    return DATASETS.build({**leaf, 'pipeline': [], 'lazy_init': False})
