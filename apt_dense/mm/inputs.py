"""What the backbone of a config's model is given for each image of a dataset, without training or weights."""
import copy
import random
from collections.abc import Iterator
from typing import Any

import cv2
import numpy as np
import torch
from mmcv.transforms import LoadAnnotations
from mmengine.config import Config, ConfigDict
from mmengine.dataset import Compose, pseudo_collate
from mmengine.registry import DATASETS, MODELS, init_default_scope
from torch import Tensor, nn

from apt_dense.core.calibrate import InputScorer
from apt_dense.core.eva02 import APTEVA02

SPLITS = ('train', 'val', 'test')
MAX_DRAWS = 100  # of the training pipeline, until one of an image keeps an object


class ConfigInputs:
    """Score maps of what a config's model gets in training or testing, image by image.

    The dataset, the pipeline, the data preprocessor with its padding and, for segmentation, the windows of slide
    inference are the config's own.  Test pipelines run without their annotations.

    Args:
        cfg: as ``Config.fromfile`` reads it; it is not changed.
        split: 'train', 'val' or 'test', whose data loader names the dataset.  Wrappers that repeat images are passed
            over: each image counts once.
        pipeline: whose pipeline the images go through; by default ``split``.  With 'train' each image is drawn once,
            by its index and ``seed``.
        num_scales: in place of the backbone's.
        seed: of the training pipeline's random choices.

    Raises:
        ValueError: if the config has no such data loader, or no APTEVA02 backbone with two scales or more.
    """

    def __init__(self, cfg: Config, split: str = 'test', pipeline: str | None = None, num_scales: int | None = None,
                 seed: int = 0):
        self.training = (pipeline or split) == 'train'
        self.seed = seed
        init_default_scope(cfg.get('default_scope', 'mmengine'))
        self.model, self.preprocessor = _build(cfg, num_scales)
        self.scorer = InputScorer(self.model.backbone)
        self.num_scales, self.patch_size = self.scorer.backbone.num_scales, self.scorer.backbone.patch_size
        self._maps: list[list[Tensor]] = []
        self._take_the_network_out()
        parts = [_build_dataset(leaf) for leaf in _leaves(_dataset_config(cfg, split))]
        self._images = [(part, index) for part in parts for index in range(len(part))]
        self._transforms = _transforms(cfg, pipeline or split)
        self.settings = input_settings(cfg, split, pipeline, num_scales, seed)

    def __len__(self) -> int:
        return len(self._images)

    def path(self, index: int) -> str:
        """The image's path as the dataset gives it."""
        dataset, position = self._images[index]
        return dataset.get_data_info(position)['img_path']

    @torch.no_grad()
    def score(self, index: int) -> list[list[Tensor]]:
        """The score maps (see ``InputScorer``) of each input that the image gives: one, or one for each slide window.

        Raises:
            ValueError: if the image cannot be read, does not fit the backbone, or no draw of the training pipeline
                keeps an object.
        """
        try:
            batch = self.preprocessor(pseudo_collate([self._draw(index)]), self.training)
        except (OSError, AssertionError, cv2.error) as error:  # mmcv asserts that an image was decoded
            raise ValueError(f'{self.path(index)} cannot be read: {error}') from error
        self._maps = []
        try:
            if hasattr(self.model, 'slide_inference') and not self.training:
                self.model.inference(batch['inputs'], [sample.metainfo for sample in batch['data_samples']])
            else:
                self.model.extract_feat(batch['inputs'])
        except ValueError as error:
            raise ValueError(f'{self.path(index)}: {error}') from error
        return self._maps

    def _draw(self, index: int) -> dict:
        """The image and its annotations after the pipeline."""
        random.seed(self.seed + index)
        np.random.seed((self.seed + index) % 2**32)
        torch.manual_seed(self.seed + index)
        dataset, position = self._images[index]
        for _ in range(MAX_DRAWS):  # in training, mmengine takes another image where a draw loses all objects
            data = self._transforms(dataset.get_data_info(position))
            if data is not None:
                return data
        raise ValueError(f'{self.path(index)}: {MAX_DRAWS} draws of the pipeline left no object')

    def _take_the_network_out(self) -> None:
        """Let the model's own inference run with a backbone that only scores and a head that says nothing."""

        def extract_feat(inputs: Tensor, *args: Any) -> tuple[Tensor]:
            self._maps.append(self.scorer(inputs))
            return (inputs,)

        self.model.extract_feat = extract_feat
        if hasattr(self.model, 'slide_inference'):
            self.model.out_channels = 1
            self.model.decode_head.predict = lambda features, metas, test_cfg: features[0].new_zeros(
                len(features[0]), 1, *features[0].shape[2:])


def input_settings(cfg: Config, split: str = 'test', pipeline: str | None = None, num_scales: int | None = None,
                   seed: int = 0) -> dict[str, Any]:
    """Everything in a config that the scores of a dataset's images follow from, for the cache of token counts."""
    backbone = cfg.model.backbone
    names = ('patch_size', 'scorer', 'img_mean', 'img_std')
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


def _build(cfg: Config, num_scales: int | None) -> tuple[nn.Module, nn.Module]:
    """The model, on the meta device, and the data preprocessor."""
    model_cfg = copy.deepcopy(cfg.model)
    model_cfg.pop('trainable', None)
    if num_scales:
        model_cfg.backbone.update(num_scales=num_scales, thresholds=(0.0,) * (num_scales - 1))
    with torch.device('meta'):
        model = MODELS.build(model_cfg).eval()
    if not isinstance(getattr(model, 'backbone', None), APTEVA02):
        raise ValueError(f'{cfg.filename}: model.backbone is {model_cfg.backbone.get("type")}, wanted APTEVA02')
    return model, MODELS.build(_preprocessor_config(cfg))


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


def _build_dataset(leaf: ConfigDict) -> Any:
    return DATASETS.build({**leaf, 'pipeline': [], 'lazy_init': False})
