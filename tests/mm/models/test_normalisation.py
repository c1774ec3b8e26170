"""Mean, std and order of the channels: the same in data preprocessor and chooser, or nothing starts."""
import pytest
from mmengine.registry import MODELS, DefaultScope
from mmengine.runner import Runner

import apt_dense.mm.det
import apt_dense.mm.seg  # noqa: F401
from apt_dense.mm.cli import launch
from apt_dense.mm.data.inputs import ConfigInputs
from apt_dense.mm.errors import DataError
from apt_dense.mm.models import normalisation
from tests.mm import conftest
from tests.mm.models import test_seg

pytestmark = pytest.mark.own_device  # mmengine's runner takes the GPU itself

CHANGES = [
    ({'mean': [127.5, 127.5, 127.5]}, r'data_preprocessor.mean is .127.5.*img_mean is \(123.675'),
    ({'std': [58.395, 57.12, 57.0]}, 'data_preprocessor.std is'),
    ({'mean': [123.675]}, 'data_preprocessor.mean is'),
    ({'mean': [1, 2, 3]}, 'data_preprocessor.mean is'),
    ({'bgr_to_rgb': False}, 'bgr_to_rgb=False: images are loaded as BGR'),
]


@pytest.mark.parametrize(('change', 'message'), CHANGES)
@pytest.mark.parametrize('task', ['det', 'seg'])
def test_another_normalisation_stops_at_once(task, change, message, tiny_config, coco_root, tmp_path):
    scope = 'mmdet' if task == 'det' else 'mmseg'
    if task == 'det':
        cfg = conftest.point_to(tiny_config(), coco_root, tmp_path / 'work')
    else:
        scenes = test_seg.write_scenes(tmp_path / 'scenes', [(128, 128)])
        cfg = test_seg.point_to(test_seg.tiny(), scenes, tmp_path / 'work')
    cfg.model.data_preprocessor.update(change)
    if len(change.get('mean', [1, 2, 3])) == 1:
        cfg.model.data_preprocessor.std = [58.395]
    with DefaultScope.overwrite_default_scope(scope):
        with pytest.raises(ValueError, match=message):
            MODELS.build(cfg.model)
        with pytest.raises(ValueError, match=message):
            ConfigInputs(cfg)
        # A detector or segmentor of the libraries, which does not look: the hook does.
        cfg.model.type = 'mmdet.CascadeRCNN' if task == 'det' else 'mmseg.EncoderDecoder'
        runner = Runner.from_cfg(cfg)
        with pytest.raises(ValueError, match=message):
            runner.train()
        # And so do the tools, whatever hooks a config has.
        cfg.custom_hooks, cfg.launcher = [], 'none'
        with pytest.raises(DataError, match=message):
            launch.build_runner(cfg)


def test_both_changed_together_and_the_dense_model_are_fine(tiny_config):
    cfg = tiny_config()
    cfg.model.data_preprocessor.update(mean=[127.5] * 3, std=[127.5] * 3)
    cfg.model.backbone.update(img_mean=(127.5,) * 3, img_std=(127.5,) * 3)
    MODELS.build(cfg.model)
    cfg.model.data_preprocessor.update(mean=[127, 127, 127], std=[64, 64, 64])
    cfg.model.backbone.update(img_mean=[127, 127, 127], img_std=(64, 64, 64))
    MODELS.build(cfg.model)
    dense = tiny_config('eva02_ti_demo_det')  # it scores nothing
    dense.model.data_preprocessor.mean = [100, 100, 100]
    MODELS.build(dense.model)


def test_a_pipeline_that_may_normalise_by_itself_is_let_pass_with_a_warning(tiny_config, monkeypatch):
    said = []
    monkeypatch.setattr(normalisation, 'print_log', lambda message, **options: said.append(message))
    cfg = tiny_config()
    cfg.model.data_preprocessor.update(mean=None, std=None)
    MODELS.build(cfg.model)
    assert len(said) == 1 and 'the patches are right only if the pipeline normalises' in said[0]
