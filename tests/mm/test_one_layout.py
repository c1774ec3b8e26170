"""The model, the visualiser, the calibration and the FLOP count choose the same patches."""
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from mmengine.config import Config
from mmengine.registry import MODELS, DefaultScope

import apt_dense.mm.det
import apt_dense.mm.seg  # noqa: F401
from apt_dense.calibration.thresholds import ScoreMaps
from apt_dense.core.flops import multiply_adds
from apt_dense.core.scorers import SCORERS
from apt_dense.mm.data.inputs import ConfigInputs
from tests.locations import load_tool
from tests.mm.models import test_seg

visualiser, flops = load_tool('analysis_tools/visualize_patches.py'), load_tool('analysis_tools/get_flops.py')


@pytest.fixture
def photographs(tmp_path) -> list[Path]:
    """Smooth on the left, more and more noise to the right; a detector's padding, a segmentor's two windows each."""
    paths = []
    for index, (height, width) in enumerate([(128, 96), (150, 240)]):
        rng = np.random.default_rng(index)
        noise = rng.integers(-120, 120, (height, width, 3)) * np.linspace(0, 1, width)[:, None]**2
        paths.append(tmp_path / f'{index}.png')
        cv2.imwrite(str(paths[-1]), (128 + noise).astype(np.uint8))
    return paths


@pytest.mark.parametrize('max_tokens', [None, 25])
@pytest.mark.parametrize('scorer', sorted(SCORERS))
@pytest.mark.parametrize('task', ['det', 'seg'])
@torch.no_grad()
def test_one_layout(task, scorer, max_tokens, tiny_config, photographs, tmp_path):
    cfg = tiny_config() if task == 'det' else test_seg.tiny()
    mean_std = dict(mean=[100., 120., 140.], std=[60., 50., 40.])
    cfg.model.data_preprocessor.update(mean_std)
    cfg.model.backbone.update(scorer=scorer, img_mean=mean_std['mean'], img_std=mean_std['std'])
    if task == 'seg':
        cfg.model.test_cfg.max_windows = 1  # a layout each
    resize = next(step for step in cfg.test_dataloader.dataset.pipeline if 'Resize' in step.type)
    resize.scale = (128, 128) if task == 'det' else (512, 128)
    with DefaultScope.overwrite_default_scope(cfg.default_scope):
        scored = [maps for index in range(2) for maps, _ in ConfigInputs(cfg, images=photographs).score(index)]
        cfg.model.backbone.update(max_tokens=max_tokens, thresholds=[
            float(torch.cat([maps[scale].flatten() for maps in scored]).quantile(0.3)) for scale in range(2)])
        cfg.dump(tmp_path / 'config.py')
        cfg = Config.fromfile(tmp_path / 'config.py')
        inputs = ConfigInputs(cfg, images=photographs)
        model = MODELS.build(cfg.model).eval()
        layouts = []
        model.backbone.register_forward_hook(lambda backbone, *_: layouts.append(backbone.last_layout))
        for index in range(2):
            model.test_step(inputs.sample(index))
        counts = [layout.scale_counts for layout in layouts]
        assert len(counts) == (2 if task == 'det' else 4) and min(np.sum(counts, 0)) > 0, counts
        if max_tokens:
            assert max(map(sum, counts)) <= max_tokens

        choosers, prepare = visualiser.config_source(visualiser.parse_args(
            [*map(str, photographs), '--config', str(tmp_path / 'config.py')]))
        chosen = [choosers[0][1].layout(window.x) for path in photographs for window in prepare(path)]
        assert all(torch.equal(one.scales, other.scales) and torch.equal(one.starts, other.starts)
                   for one, other in zip(chosen, layouts, strict=True))

        scores = ScoreMaps(inputs.chooser.num_scales, inputs.chooser.max_tokens)
        for index in range(2):
            for maps, content in inputs.score(index):
                scores.add(maps, content)
        assert [tuple(row) for row in scores.count_tokens(inputs.chooser.thresholds).tolist()] == counts

        counted = [flops.count_backbone(model.backbone, inputs.inputs(index)) for index in range(2)]
        assert sum(one['backbone'] for one in counted) == sum(
            multiply_adds(model.backbone, layout).total for layout in layouts)
