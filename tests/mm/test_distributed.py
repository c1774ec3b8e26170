"""Training with two real processes on CPUs, started as a user does."""
import json
import multiprocessing
import os
import re
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from mmengine.config import Config
from mmengine.device import get_device

from apt_dense.mm.fault_tolerance.run_comparison import differing, load, logged
from apt_dense.mm.fault_tolerance.signals import EXIT_STOPPED
from tests.locations import ROOT
from tests.mm import processes
from tests.mm.conftest import CONFIGS, draw_scene, point_to, shrink, write_coco
from tests.mm.toys import toy_config
from tests.mm.training.test_training import logged_scalars

pytestmark = [pytest.mark.slow,
              pytest.mark.skipif(get_device() != 'cpu', reason='mmengine trains on this device')]


@pytest.fixture(scope='module')
def two_processes(tmp_path_factory) -> SimpleNamespace:
    """tools/dist_train.sh on a tiny detector for three iterations; one rank's image is noise, the other's is flat."""
    root = tmp_path_factory.mktemp('distributed')
    rng = np.random.default_rng(0)
    flat, boxes = draw_scene(rng, 192, 192, 1)
    write_coco(root / 'data', [('noise.png', rng.integers(0, 255, (192, 192, 3), np.uint8), boxes),
                               ('flat.png', np.full_like(flat, 90), boxes)])
    cfg = point_to(shrink(Config.fromfile(CONFIGS / 'apt_eva02_ti_demo_det.py')), root / 'data', root / 'work', 3)
    cfg.train_dataloader.update(batch_size=1, sampler=dict(type='InfiniteSampler', shuffle=False))
    for transform in cfg.train_dataloader.dataset.pipeline:
        if 'ratio_range' in transform:
            transform.ratio_range = (1.0, 1.2)  # no padding, which would be coarse patches
    cfg.model.backbone.thresholds = (5.0, 5.0)
    cfg.custom_hooks = [dict(type='KeptTokensHook', interval=2), dict(type='DistributedChecksHook')]
    cfg.custom_imports.imports = [*cfg.custom_imports.imports, 'tests.mm.distributed_checks']
    cfg.dump(root / 'config.py')
    environment = dict(os.environ, PYTHON=sys.executable, PYTHONPATH=str(ROOT), PORT=processes.free_port(),
                       OMP_NUM_THREADS='1')
    done = subprocess.run([ROOT / 'tools/dist_train.sh', root / 'config.py', '2'], env=environment, cwd=root,
                          capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-4000:]
    ranks = [torch.load(root / f'work/rank{rank}.pth') for rank in range(2)]
    log = next((root / 'work').rglob('*.log')).read_text()
    return SimpleNamespace(ranks=ranks, log=log, scalars=logged_scalars(root / 'work'))


def test_gradients_equal_those_of_the_joined_batch(two_processes):
    """Also where one rank has no fine patch and the other no coarse one; batch norms are synchronised."""
    first, second = two_processes.ranks
    assert first['tokens'] == (0, 0, 1) and second['tokens'] == (16, 0, 0)
    names = first['shared'].keys()
    assert {'backbone.patch_embed.conv_down.weight', 'neck.upsample_2x.0.weight'} <= {
        name.removeprefix('segmentor.') for name in names}
    assert any(name.endswith('running_var') for name in names)
    for name in names:
        wanted = second['joined'][name]
        scale = max(wanted.abs().max().item(), 1e-3)
        for rank in (first, second):
            assert (rank['shared'][name] - wanted).abs().max() <= 1e-5 * scale, name


def test_synchronised_batch_norm_of_batches_of_different_sizes(two_processes):
    for rank in two_processes.ranks:
        for found, wanted in zip(rank['uneven'], rank['uneven_joined'], strict=True):
            torch.testing.assert_close(found, wanted, atol=1e-5, rtol=1e-5)


def test_all_ranks_stop_for_the_loss_of_one(two_processes):
    for rank in two_processes.ranks:
        assert rank['refused'].startswith('a loss that is not finite; images: 1.jpg. ')


def test_ranks_end_with_the_same_weights(two_processes):
    first, second = (rank['weights'] for rank in two_processes.ranks)
    assert first.keys() == second.keys() and all(torch.equal(first[name], second[name]) for name in first)
    assert first['backbone.patch_embed.zero_mlp.weight'].any()


def test_the_log_says_that_batch_norm_is_synchronised(two_processes):
    assert two_processes.log.count('SyncBN on CPUs: the batch statistics of 12 layers are synchronised by '
                                   'all_reduce over 2 processes') == 1


def test_the_log_lists_the_tokens_of_each_rank(two_processes):
    lines = re.findall(r'mean of (\d) iterations: (\d+) (\d+); idle share (0\.\d+)', two_processes.log)
    assert [int(iterations) for iterations, *_ in lines] == [2, 1]
    for _, noise, flat, idle in lines:
        assert int(noise) == 64 and int(flat) < 16
        assert float(idle) == pytest.approx(1 - (int(noise) + int(flat)) / 2 / int(noise), abs=0.02)
    train = [entry for entry in two_processes.scalars if 'loss' in entry]
    assert len(train) == 3 and 'idle_share' in train[1]
    assert any('coco/bbox_mAP' in entry for entry in two_processes.scalars)


def start_rank(rank: str, port: str, log: Path, *argv) -> multiprocessing.Process:
    """A rank of tools/train.py, started as torchrun does."""
    return processes.train(log, [*argv, '--launcher', 'pytorch'], RANK=rank, LOCAL_RANK=rank, WORLD_SIZE='2',
                           LOCAL_WORLD_SIZE='2', MASTER_ADDR='127.0.0.1', MASTER_PORT=port)


def run_both(log: Path, *argv, second: tuple = ()) -> list[int]:
    """The exit statuses of both ranks; ``second`` are more options of rank 1."""
    port = processes.free_port()
    ranks = [start_rank('0', port, log, *argv), start_rank('1', port, log, *argv, *second)]
    for rank in ranks:
        rank.join(120)
    codes = [rank.exitcode for rank in ranks]
    for rank in ranks:
        rank.kill()  # one that waits for the other
    return codes


def test_a_signal_to_one_rank_stops_both_and_resuming_is_exact(tmp_path):
    """Rank 1 is resumed on a machine whose work directory is empty."""
    cfg = toy_config(tmp_path / 'whole')
    cfg.custom_imports = dict(imports=['tests.mm.toys', 'tests.mm.distributed_checks'])
    cfg.dump(tmp_path / 'whole.py')
    cfg.custom_hooks.append(dict(type='SignalOneRankHook', train_iter=6))
    cfg.dump(tmp_path / 'signalled.py')
    log, parts = tmp_path / 'log', tmp_path / 'parts'
    assert run_both(log, tmp_path / 'whole.py') == [0, 0], log.read_text()[-2000:]
    assert run_both(log, tmp_path / 'signalled.py', '--work-dir', parts) == [EXIT_STOPPED] * 2, log.read_text()[-2000:]
    assert (parts / 'last_checkpoint').read_text().endswith('iter_7.pth')
    assert run_both(log, tmp_path / 'whole.py', '--work-dir', parts, '--resume', second=(
        '--work-dir', tmp_path / 'empty')) == [0, 0], log.read_text()[-2000:]
    assert not differing(*(load(folder / 'iter_10.pth') for folder in (tmp_path / 'whole', parts)))
    assert logged(tmp_path / 'whole') == logged(parts) and len(logged(parts)) == 10


def test_a_rank_that_fails_alone_says_so(tmp_path):
    toy_config(tmp_path / 'work').dump(tmp_path / 'toy.py')
    rank = start_rank('1', processes.free_port(), tmp_path / 'log', tmp_path / 'toy.py', '--cfg-options',
                      'train_dataloader.dataset.ann_file=/no.json')
    rank.join(60)
    assert rank.exitcode == 2
    assert (tmp_path / 'log').read_text().startswith('error: rank 1: dataset files are missing:\n  /no.json: ')


def test_what_the_preflight_of_rank_0_finds_stops_both(tiny_config, coco_root, tmp_path):
    """Rank 0 checks; the other ends with it, and says where to read why."""
    path = coco_root / 'annotations/instances_train.json'
    content = json.loads(path.read_text())
    content['annotations'][0]['bbox'][0] = float('nan')
    path.write_text(json.dumps(content))
    point_to(tiny_config(), coco_root, tmp_path / 'work').dump(tmp_path / 'config.py')
    log = tmp_path / 'log'
    assert run_both(log, tmp_path / 'config.py') == [2, 2], log.read_text()[-2000:]
    assert log.read_text().count('[coco-box-not-finite]') == 1 and 'error: rank 0: ' in log.read_text()
    assert 'error: rank 1: ' in log.read_text() and 'rank 0' in log.read_text().partition('error: rank 1: ')[2]


def test_both_ranks_start_where_the_preflight_only_warns(tiny_config, coco_root, tmp_path):
    cfg = point_to(tiny_config(), coco_root, tmp_path / 'work')
    cfg.model.test_cfg.rcnn.scoer_thr = 0.1
    cfg.dump(tmp_path / 'config.py')
    log = tmp_path / 'log'
    assert run_both(log, tmp_path / 'config.py') == [0, 0], log.read_text()[-2000:]
    assert log.read_text().count('preflight: model.test_cfg.rcnn.scoer_thr: nothing reads it') == 1
