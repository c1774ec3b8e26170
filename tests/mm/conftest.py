"""A detector small enough to train a few steps, on images made here."""
import json
from collections.abc import Callable
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from mmengine.config import Config
from mmengine.registry import DefaultScope

import apt_dense.mm  # noqa: F401  where mmcv has no compiled operators, before mmdet is imported
from tests.locations import CONFIGS

# Prefixes of what APT adds, as the configs of a short fine-tuning name them.
ADDED = list(Config.fromfile(CONFIGS / '_base_/schedules/apt_short.py').added_parameters)
CLASSES = ('ball', 'crate', 'kite', 'lifebuoy', 'starfish')


@pytest.fixture(autouse=True)
def plain_config_dumps(monkeypatch):
    """A runner writes its config, and formatting it with yapf takes longer than a small training run."""
    for module in ('mmengine.config.config', 'yapf.yapflib.yapf_api'):  # the fork imports it where it is called
        monkeypatch.setattr(f'{module}.FormatCode', lambda text, **options: (text, True), raising=False)


@pytest.fixture(autouse=True)
def own_cache(tmp_path_factory, monkeypatch):
    """What the preflight remembers is not left in the user's folder."""
    monkeypatch.setenv('APT_DENSE_CACHE', str(tmp_path_factory.getbasetemp() / 'cache'))


@pytest.fixture(autouse=True)
def scope():
    """mmdetection's scope, as its runner sets it."""
    with DefaultScope.overwrite_default_scope('mmdet'):
        yield


@pytest.fixture(autouse=True)
def workers_that_end_soon(monkeypatch):
    """torch waits five seconds for each worker of a loader that an error has ended, and then ends it."""
    monkeypatch.setattr(torch.utils.data._utils, 'MP_STATUS_CHECK_INTERVAL', 1.0)


def shrink(cfg: Config) -> Config:
    """Make a demo config's model tiny: 128 px, 4 blocks of 32 channels, windows of 4 cells, 3 scales for APT."""
    cfg.model.data_preprocessor.pad_size_divisor = 128
    cfg.model.backbone.update(img_size=128, embed_dims=32, depth=4, num_heads=2, window_size=4,
                              global_block_indexes=(1, 3), pretrain_img_size=64)
    if cfg.model.backbone.num_scales > 1:
        cfg.model.backbone.update(num_scales=3, scorer='entropy', thresholds=(3.0, 3.0))
    cfg.model.neck.in_channels = 32
    cfg.model.test_cfg.rcnn.score_thr = 0.0  # an untrained detector is sure of nothing
    return cfg


@pytest.fixture
def tiny_config() -> Callable[..., Config]:
    """tiny_config(name='apt_eva02_ti_demo_det') -> the demo config with a tiny model."""

    def load(name: str = 'apt_eva02_ti_demo_det') -> Config:
        return shrink(Config.fromfile(CONFIGS / f'{name}.py'))

    return load


def draw_scene(rng: np.random.Generator, height: int, width: int, num_objects: int) -> tuple[np.ndarray, list]:
    """A smooth image with noisy rectangles: BGR (H, W, 3) uint8 and [x, y, w, h] boxes."""
    image = np.full((height, width, 3), 90, np.uint8)
    boxes = []
    for _ in range(num_objects):
        w, h = rng.integers(20, 50, 2)
        x, y = rng.integers(0, width - w), rng.integers(0, height - h)
        image[y:y + h, x:x + w] = rng.integers(0, 255, (h, w, 3))
        boxes.append([int(x), int(y), int(w), int(h)])
    return image, boxes


def write_coco(root: Path, scenes: list[tuple[str, np.ndarray, list]]) -> None:
    """Write images (name, pixels, boxes) and their annotations, train and val alike, in the demo dataset's layout."""
    images, annotations = [], []
    for split in ('train', 'val'):
        (root / split).mkdir(parents=True, exist_ok=True)
    (root / 'annotations').mkdir()
    for number, (name, pixels, boxes) in enumerate(scenes, start=1):
        for split in ('train', 'val'):
            assert cv2.imwrite(str(root / split / name), pixels)
        images.append(dict(id=number, file_name=name, height=pixels.shape[0], width=pixels.shape[1]))
        for x, y, w, h in boxes:
            polygon = [x, y, x + w, y, x + w, y + h, x, y + h]
            annotations.append(dict(id=len(annotations) + 1, image_id=number, category_id=1 + len(annotations) % 5,
                                    bbox=[x, y, w, h], area=w * h, iscrowd=0, segmentation=[polygon]))
    categories = [dict(id=index, name=name) for index, name in enumerate(CLASSES, start=1)]
    for split in ('train', 'val'):
        content = dict(images=images, annotations=annotations, categories=categories)
        (root / 'annotations' / f'instances_{split}.json').write_text(json.dumps(content))


@pytest.fixture
def coco_root(tmp_path) -> Path:
    """A dataset of six images of 96 x 128 px with one to three objects."""
    rng = np.random.default_rng(0)
    scenes = [(f'{index}.jpg', *draw_scene(rng, 96, 128, 1 + index % 3)) for index in range(6)]
    write_coco(tmp_path / 'data', scenes)
    return tmp_path / 'data'


def point_to(cfg: Config, root: Path, work_dir: Path, max_iters: int = 2) -> Config:
    """Make a demo config train ``max_iters`` steps on ``root`` in this process, logging every step."""
    for loader in (cfg.train_dataloader, cfg.val_dataloader, cfg.test_dataloader):
        loader.dataset.data_root = f'{root}/'
        loader.update(num_workers=0, persistent_workers=False)
        for transform in loader.dataset.pipeline:
            for key in ('scale', 'crop_size'):
                if key in transform:
                    transform[key] = (128, 128)
    for evaluator in (cfg.val_evaluator, cfg.test_evaluator):
        evaluator.ann_file = f'{root}/annotations/instances_val.json'
    return run_briefly(cfg, work_dir, max_iters)


def run_briefly(cfg: Config, work_dir: Path, max_iters: int) -> Config:
    """Train ``max_iters`` batches of two, logging each, then validate and save."""
    cfg.train_dataloader.batch_size = 2
    cfg.train_cfg.update(max_iters=max_iters, val_interval=max_iters)
    cfg.default_hooks.logger.interval = 1
    cfg.default_hooks.checkpoint.interval = max_iters
    cfg.work_dir = str(work_dir)
    # mmengine keeps one visualiser and one message hub for each name in a process.
    cfg.visualizer.name = str(work_dir)
    cfg.experiment_name = str(work_dir).replace('/', '_')
    return cfg
