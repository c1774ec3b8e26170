"""One training step and one validation of each demo, in bfloat16, on the device that mmengine takes."""
import json
import math
from pathlib import Path

import pytest
import torch

pytest.importorskip('mmdet', reason='needs OpenMMLab')
pytest.importorskip('mmseg', reason='needs OpenMMLab')

from mmengine.config import Config
from mmengine.registry import DefaultScope
from mmengine.runner import Runner

from apt_dense.mm.cli import precision
from tests.mm import conftest, test_classification
from tests.mm.conftest import coco_root, plain_config_dumps, tiny_config  # noqa: F401
from tests.mm.models import test_seg
from tests.mm.test_classification import data  # noqa: F401

SCORES = {'det': 'coco/bbox_mAP', 'seg': 'mIoU', 'cls': 'accuracy/top1'}


def demo(kind: str, request: pytest.FixtureRequest, tmp_path: Path) -> Config:
    """The tiny detector, segmentor or classifier, to be trained for one step."""
    if kind == 'det':
        tiny_config, coco_root = map(request.getfixturevalue, ('tiny_config', 'coco_root'))
        return conftest.point_to(tiny_config(), coco_root, tmp_path / 'work', max_iters=1)
    if kind == 'cls':
        return Config.fromfile(test_classification.config(request.getfixturevalue('data'), tmp_path / 'work', **{
            'work_dir': str(tmp_path / 'work'), 'train_cfg.max_iters': 1, 'train_cfg.val_interval': 1,
            'model.backbone.num_scales': 2, 'model.backbone.thresholds': (5.0,)}))
    scenes = test_seg.write_scenes(tmp_path / 'semantic', [(128, 128), (150, 211), (99, 75), (96, 200)])
    return test_seg.point_to(test_seg.tiny(), scenes, tmp_path / 'work', max_iters=1)


@pytest.mark.parametrize('kind', SCORES)
def test_a_step_in_bfloat16(kind, device, request, tmp_path):
    cfg = demo(kind, request, tmp_path)
    precision.set_amp(cfg, True)
    with DefaultScope.overwrite_default_scope(cfg.default_scope):
        runner = Runner.from_cfg(cfg)
        before = {name: value.clone() for name, value in runner.model.state_dict().items()}
        dtypes = []
        runner.model.backbone.blocks[0].attn.proj.register_forward_hook(lambda *call: dtypes.append(call[2].dtype))
        runner.train()
    entries = [json.loads(line) for path in (tmp_path / 'work').rglob('vis_data/scalars.json')
               for line in path.read_text().splitlines()]
    losses = [entry['loss'] for entry in entries if 'loss' in entry]
    assert len(losses) == 1 and math.isfinite(losses[0])
    assert any(SCORES[kind] in entry for entry in entries)
    assert dtypes and set(dtypes) == {torch.bfloat16}
    state = runner.model.state_dict()
    assert {value.device.type for value in state.values()} == {torch.device(device).type}
    changed = [name for name, value in state.items() if not torch.equal(value.cpu(), before[name].cpu())]
    assert any(name.startswith('backbone.blocks') for name in changed) and all(
        value.isfinite().all() for value in state.values() if value.is_floating_point())
