"""Dumped configs and a checkpoint of version 0.1.0, made before modules changed their places, still serve."""
import gzip
from pathlib import Path

import numpy as np
import pytest
import torch
from mmengine.config import Config
from mmengine.dataset import Compose
from mmengine.registry import MODELS, DefaultScope

from apt_dense.mm.cli import launch, start
from apt_dense.mm.fault_tolerance import make_fault_tolerant
from tests.mm.conftest import draw_scene, write_coco
from tests.mm.training.test_training import losses_of

STORED = Path(__file__).parents[1] / 'data/before_the_move'


def test_a_stored_training_goes_on(tmp_path, monkeypatch):
    """Two more iterations of four, on the same images: the losses that the old code had."""
    monkeypatch.chdir(tmp_path)
    rng = np.random.default_rng(0)
    write_coco(Path('data'), [(f'{index}.jpg', *draw_scene(rng, 96, 128, 1 + index % 3)) for index in range(6)])
    Path('iter_2.pth').write_bytes(gzip.decompress((STORED / 'iter_2.pth.gz').read_bytes()))
    cfg = Config.fromfile(STORED / 'config.py')
    cfg.launcher, cfg.visualizer.name = 'none', str(tmp_path)
    make_fault_tolerant(cfg)
    start.set_start(cfg, 'iter_2.pth')
    launch.build_runner(cfg).train()
    assert losses_of(tmp_path / 'work') == pytest.approx([6.886768500010173, 6.860798358917236], rel=1e-4)


def test_a_stored_segmentor_computes_the_same():
    """The old code's logits at one place, for parameters and images from one seed; the second has a smooth part."""
    cfg = Config.fromfile(STORED / 'config_seg.py')
    with DefaultScope.overwrite_default_scope(cfg.default_scope):
        model = MODELS.build(cfg.model).eval()
        assert len(Compose(cfg.train_pipeline).transforms) == len(cfg.train_pipeline)
    generator = torch.manual_seed(0)
    for _, values in sorted(model.named_parameters()):
        values.data = 0.1 * torch.randn(values.shape, generator=generator)
    images = 2 * torch.rand(2, 3, 256, 256, generator=generator) - 1
    images[1, :, 64:] = 0.5
    with torch.no_grad():
        logits = model(images, mode='tensor')
    assert logits.shape == (2, 6, 64, 64) and model.backbone.last_layout.num_tokens == 328
    torch.testing.assert_close(logits[:, :, 20, 30], torch.tensor([
        [-0.0678309, 0.1489143, 0.0221139, -0.3146250, -0.2226147, -0.0777709],
        [-0.0477541, 0.2497977, 0.5008760, 0.0372002, -0.6608379, 0.3730531]]), rtol=1e-4, atol=1e-4)
