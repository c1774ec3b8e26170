"""LogPatchesHook: what stands in the backends after validations, and that the training is the same."""
import json
import re
import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace

import numpy as np
import pytest
import torch
from mmengine.registry import DefaultScope
from mmengine.runner import Runner
from PIL import Image
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from apt_dense.calibration.images import PATCH_COLOURS
from apt_dense.mm.errors import LaunchError
from apt_dense.mm.training.log_patches import LogPatchesHook, draw_bars
from tests.mm.conftest import point_to
from tests.mm.models import test_seg


def config(task, tiny_config, coco_root, tmp_path, max_iters=3, **options):
    """A validation after each iteration."""
    if task == 'det':
        cfg = point_to(tiny_config(), coco_root, tmp_path / 'work', max_iters)
    else:
        scenes = test_seg.write_scenes(tmp_path / 'scenes', [(128, 128), (150, 211), (99, 75), (96, 200)])
        cfg = test_seg.point_to(test_seg.tiny(), scenes, tmp_path / 'work', max_iters)
    cfg.train_cfg.val_interval = 1
    cfg.visualizer.vis_backends = [dict(type='LocalVisBackend'), dict(type='TensorboardVisBackend')]
    if options.pop('hook', True):
        cfg.custom_hooks = [*cfg.custom_hooks, dict(type='LogPatchesHook', **options)]
    return cfg


def train(cfg):
    with DefaultScope.overwrite_default_scope(cfg.default_scope):
        runner = Runner.from_cfg(cfg)
        runner.train()
    return runner


@pytest.mark.parametrize('task', ['det', 'seg'])
def test_what_is_logged(task, tiny_config, coco_root, tmp_path):
    """Three validations, of which the first and the third are logged, of two images."""
    options = dict(pred_score_thr=0.0) if task == 'det' else {}
    train(config(task, tiny_config, coco_root, tmp_path, num_images=2, interval=2, **options))
    pictures = {path.name for path in (tmp_path / 'work').rglob('vis_image/*.png')}
    wanted = {f'{name}_{step}.png' for name in ('patches_0', 'patches_1', 'predictions_0', 'predictions_1',
                                                'tokens_by_size') for step in (1, 3)}
    assert wanted <= pictures and not any(name.endswith('_2.png') and 'val_img' not in name for name in pictures)
    (folder,) = {path.parent for path in (tmp_path / 'work').rglob('tokens_by_size_1.png')}
    first, second = (np.asarray(Image.open(folder / f'patches_{number}_1.png')) for number in range(2))
    assert first.shape != second.shape or (first != second).any()
    (scalars,) = (tmp_path / 'work').rglob('vis_data/scalars.json')
    lines = [json.loads(line) for line in Path(scalars).read_text().splitlines()]
    shares = [[line[f'val_tokens_{side}px'] for side in (16, 32, 64)] for line in lines if 'val_tokens_16px' in line]
    assert len(shares) >= 2 and all(sum(share) == pytest.approx(1) and min(share) >= 0 for share in shares)
    (events,) = (tmp_path / 'work').rglob('events.out*')
    accumulator = EventAccumulator(str(events), size_guidance=dict(images=0, histograms=0)).Reload()
    assert [event.step for event in accumulator.Images('patches_1')] == [1, 3]
    histograms = accumulator.Histograms('tokens_by_scale')
    assert [event.step for event in histograms] == [1, 3]
    for event, share in zip(histograms, (shares[0], shares[-1]), strict=True):
        value = event.histogram_value
        assert value.bucket_limit == [0.5, 1.5, 2.5] and value.num == sum(value.bucket) > 0
        assert [count / value.num for count in value.bucket] == pytest.approx(share)


def test_the_training_is_the_same(tiny_config, coco_root, tmp_path):
    weights = []
    for hook in (True, False):
        (tmp_path / str(hook)).mkdir()
        cfg = config('det', tiny_config, coco_root, tmp_path / str(hook), max_iters=2, hook=hook)
        cfg.randomness = dict(seed=3)
        weights.append(train(cfg).model.state_dict())
    assert all(torch.equal(value, weights[1][name]) for name, value in weights[0].items())


def test_a_dense_model_has_grids_without_scores(coco_root, tmp_path, tiny_config):
    cfg = point_to(tiny_config('eva02_ti_demo_det'), coco_root, tmp_path / 'work')
    cfg.custom_hooks = [*cfg.custom_hooks, dict(type='LogPatchesHook', num_images=1)]
    runner = train(cfg)
    assert runner.message_hub.get_scalar('val/val_tokens_16px').current() == 1
    assert list((tmp_path / 'work').rglob('vis_image/patches_0_2.png'))


class FakeWandb(ModuleType):
    """What mmengine's backend and the histogram call of W&B, with the checks that W&B makes itself."""

    def __init__(self):
        super().__init__('wandb')
        self.logged, self.config, self.run = [], SimpleNamespace(update=lambda *_, **__: None), SimpleNamespace(
            log_code=lambda **_: None)

    def init(self, dir):
        assert Path(dir).is_dir()

    def Image(self, image):
        assert image.ndim == 3 and image.dtype == np.uint8
        return 'image'

    def Histogram(self, np_histogram):
        counts, edges = np_histogram
        assert len(edges) == len(counts) + 1
        return counts

    def log(self, values, commit):
        self.logged.append(values)

    def join(self):
        pass


def test_weights_and_biases(tiny_config, coco_root, tmp_path, monkeypatch):
    wandb = FakeWandb()
    monkeypatch.setitem(sys.modules, 'wandb', wandb)
    cfg = config('det', tiny_config, coco_root, tmp_path, max_iters=1, num_images=1)
    cfg.visualizer.vis_backends = [dict(type='WandbVisBackend')]
    cfg.visualizer.name = 'of this test'
    train(cfg)
    names = [name for values in wandb.logged for name in values]
    assert {'patches_0', 'predictions_0', 'tokens_by_size', 'tokens_by_scale', 'loss', 'val_tokens_16px'} <= set(names)
    histograms = [values['tokens_by_scale'] for values in wandb.logged if 'tokens_by_scale' in values]
    assert len(histograms) == 1 and len(histograms[0]) == 3 and histograms[0].sum() > 0


@pytest.mark.slow
def test_weights_and_biases_itself(tiny_config, coco_root, tmp_path):
    """Offline, where it is installed: pictures as they stand in the files, and the histogram in the run's log."""
    pytest.importorskip('wandb')
    cfg = config('det', tiny_config, coco_root, tmp_path, max_iters=1, num_images=1)
    cfg.visualizer.vis_backends = [dict(type='LocalVisBackend'),
                                   dict(type='WandbVisBackend', init_kwargs=dict(project='test', mode='offline'))]
    cfg.visualizer.name = 'of the test with W&B'
    train(cfg)
    (run,) = (tmp_path / 'work').rglob('offline-run-*/run-*.wandb')
    for name in ('patches_0', 'predictions_0', 'tokens_by_size'):
        (logged,), (file,) = run.parent.rglob(f'{name}_*.png'), (tmp_path / 'work').rglob(f'vis_image/{name}_1.png')
        assert np.array_equal(np.asarray(Image.open(logged)), np.asarray(Image.open(file))), name
    (values,) = set(re.findall(rb'tokens_by_scale\x12\x06values[^[]{1,9}(\[[^]]+])', run.read_bytes()))
    (scalars,) = (tmp_path / 'work').rglob('vis_data/scalars.json')
    lines = [json.loads(line) for line in scalars.read_text().splitlines()]
    (shares,) = ([line[f'val_tokens_{side}px'] for side in (16, 32, 64)] for line in lines if 'val_tokens_16px' in line)
    counts = np.asarray(json.loads(values))
    assert counts.sum() > 0 and counts / counts.sum() == pytest.approx(shares)


def test_bars():
    """The colours of the patches, as high as their shares."""
    picture = draw_bars([0.25, 0.75, 0.0], 16)
    heights = [(picture == tuple(int(colour[place:place + 2], 16) for place in (1, 3, 5))).all(-1).sum(0).max()
               for colour in PATCH_COLOURS[1:3]]
    assert heights[0] == pytest.approx(0.75 * (220 - 52), abs=2) and heights[1] <= 1


@pytest.mark.parametrize('options', [dict(num_images=0), dict(interval=0.5)])
def test_what_is_refused(options):
    with pytest.raises(LaunchError, match='LogPatchesHook: .*must be a whole number from 1 on'):
        LogPatchesHook(**options)
