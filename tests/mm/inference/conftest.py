"""A detector and a segmentor as a training leaves them: a checkpoint with its config inside."""
import functools
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from mmengine.config import Config
from mmengine.registry import MODELS, DefaultScope
from mmengine.runner import Runner

from tests.mm.conftest import CONFIGS, draw_scene, point_to, shrink, write_coco
from tests.mm.models import test_seg

NAMES = ('a.png', 'b.png', 'c.jpg')


def picture(height, width, seed=0):
    """RGB."""
    return draw_scene(np.random.default_rng(seed), height, width, 2)[0][..., ::-1].copy()


@pytest.fixture(scope='session')
def folder(tmp_path_factory):
    """Three pictures of different sizes."""
    path = tmp_path_factory.mktemp('pictures')
    for seed, (name, size) in enumerate(zip(NAMES, ((96, 128), (120, 90), (64, 200)), strict=True)):
        cv2.imwrite(str(path / name), picture(*size, seed)[..., ::-1])
    return path


@pytest.fixture(scope='session')
def checkpoints(tmp_path_factory):
    """Checkpoints by task, each of a training of one iteration; not to be changed."""
    return train(tmp_path_factory.getbasetemp() / 'trained')


@functools.cache
def train(root: Path) -> dict[str, Path]:
    """Once in a process: each module that imports the fixture has one of its own."""
    root.mkdir()
    scenes = [(f'{index}.png', *draw_scene(np.random.default_rng(index), 96, 128, 2)) for index in range(2)]
    write_coco(root / 'det_data', scenes)
    test_seg.write_scenes(root / 'seg_data', [(96, 128), (110, 128)])
    cfgs = {'det': point_to(shrink(Config.fromfile(CONFIGS / 'apt_eva02_ti_demo_det.py')), root / 'det_data',
                            root / 'det', 1),
            'seg': test_seg.point_to(test_seg.tiny(), root / 'seg_data', root / 'seg', 1)}
    for cfg in cfgs.values():
        cfg.val_cfg = cfg.val_dataloader = cfg.val_evaluator = None
        torch.manual_seed(0)
        with DefaultScope.overwrite_default_scope(cfg.default_scope):
            Runner.from_cfg(cfg).train()
    return {task: root / task / 'iter_1.pth' for task in cfgs}


@pytest.fixture
def dense_det(tmp_path):
    """A config of the dense detector, and weights for it without a config."""
    cfg = shrink(Config.fromfile(CONFIGS / 'eva02_ti_demo_det.py'))
    cfg.dump(tmp_path / 'dense.py')
    with DefaultScope.overwrite_default_scope('mmdet'):
        torch.save(dict(state_dict=MODELS.build(cfg.model).state_dict()), tmp_path / 'dense.pth')
    return tmp_path / 'dense.py', tmp_path / 'dense.pth'
