"""A detector with masks trains with each step that mixes samples and moves masks."""
import pytest
from mmengine.runner import Runner

from apt_dense.mm import det  # noqa: F401  (it registers the steps)
from tests.mm.conftest import point_to

MIXED = [('CopyPaste', {}), ('CachedMosaic', dict(img_scale=(128, 128))), ('CachedMixUp', dict(img_scale=(128, 128)))]


@pytest.mark.parametrize('poly2mask', [True, False])
@pytest.mark.parametrize(('kind', 'settings'), MIXED)
def test_a_detector_trains_with_masks(tiny_config, coco_root, tmp_path, kind, settings, poly2mask):
    cfg = point_to(tiny_config(), coco_root, tmp_path / 'work')
    inner = cfg.train_dataloader.dataset
    inner.pipeline[1].poly2mask = poly2mask
    step, load, rest = dict(type=kind, **settings), inner.pipeline[:2], inner.pipeline[2:]
    if kind == 'CopyPaste':
        inner.pipeline = [*load, dict(type='Pad', size=(128, 128))]
        cfg.train_dataloader.dataset = dict(type='MultiImageMixDataset', dataset=inner, pipeline=[step, *rest])
    else:
        inner.pipeline = [*load, step, *rest]
    runner = Runner.from_cfg(cfg)
    runner.train()
    assert runner.iter == 2

