"""A dumped config and a checkpoint of version 0.1.0, made before modules changed their places, still serve."""
import gzip
from pathlib import Path

import numpy as np
import pytest
from mmengine.config import Config

from apt_dense.mm.cli import launch
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
    launch.set_start(cfg, 'iter_2.pth')
    launch.build_runner(cfg).train()
    assert losses_of(tmp_path / 'work') == pytest.approx([6.886768500010173, 6.860798358917236], rel=1e-4)
