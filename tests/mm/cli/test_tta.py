"""tools/test.py with its preflight: test-time augmentation, of a detector that was trained with mosaics."""
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from mmengine.config import Config
from mmengine.registry import MODELS

from apt_dense.mm import det  # noqa: F401  (it registers the models)
from tests.locations import ROOT, TOOLS
from tests.mm.conftest import point_to

pytestmark = pytest.mark.slow
AUGMENTED = [
    dict(type='LoadImageFromFile'),
    dict(type='TestTimeAug', transforms=[
        [dict(type='Resize', scale=size, keep_ratio=True) for size in ((128, 128), (96, 96))],
        [dict(type='RandomFlip', prob=1.0), dict(type='RandomFlip', prob=0.0)],
        [dict(type='LoadAnnotations', with_bbox=True, with_mask=True)],
        [dict(type='PackDetInputs', meta_keys=('img_id', 'img_path', 'ori_shape', 'img_shape', 'scale_factor', 'flip',
                                               'flip_direction'))]])]


@pytest.fixture
def config(tiny_config, coco_root, tmp_path) -> Config:
    """A detector of boxes, whose training pipeline keeps a cache of pictures for its mosaics."""
    cfg = point_to(tiny_config(), coco_root, tmp_path / 'work')
    steps = cfg.train_dataloader.dataset.pipeline
    steps[2:2] = [dict(type='CachedMosaic', img_scale=(128, 128)), dict(type='CachedMixUp', img_scale=(128, 128))]
    cfg.model.roi_head.mask_head = None
    for evaluator in (cfg.val_evaluator, cfg.test_evaluator):
        evaluator.metric = 'bbox'
    for loader in (cfg.val_dataloader, cfg.test_dataloader):
        loader.dataset.pipeline[2].with_mask = False
    steps[1].with_mask = False
    cfg.tta_model = dict(type='DetTTAModel', tta_cfg=dict(nms=dict(type='nms', iou_threshold=0.5), max_per_img=100))
    cfg.tta_pipeline = AUGMENTED
    return cfg


def run(cfg: Config, tmp_path: Path, *options: str) -> subprocess.CompletedProcess:
    torch.save({'state_dict': MODELS.build(cfg.model).state_dict()}, tmp_path / 'model.pth')
    cfg.dump(tmp_path / 'config.py')
    command = [sys.executable, TOOLS / 'test.py', tmp_path / 'config.py', tmp_path / 'model.pth', *options]
    environment = dict(os.environ, PYTHONPATH=str(ROOT), OMP_NUM_THREADS='1')
    return subprocess.run(command, capture_output=True, text=True, cwd=tmp_path, env=environment)


def test_augmentation_in_testing(config, tmp_path):
    done = run(config, tmp_path, '--tta')
    assert done.returncode == 0, done.stderr[-3000:]
    assert 'coco/bbox_mAP:' in done.stdout + done.stderr and 'preflight: ' not in done.stdout + done.stderr


def test_a_mistake_in_the_augmentation_is_told_first(config, tmp_path):
    config.tta_model.modul = 1
    config.tta_pipeline[1].transforms[0][0].keepratio = True
    done = run(config, tmp_path, '--tta')
    assert done.returncode == 2 and 'Traceback' not in done.stderr
    assert 'model.modul: DetTTAModel does not take it' in done.stderr
    assert 'test_dataloader.dataset.pipeline.1.transforms.0.0.keepratio: Resize does not take it' in done.stderr
