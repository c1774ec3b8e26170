"""The experiments in tiny: models of 128 px that train a few steps on four images."""
import importlib
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from mmdet.visualization import DetLocalVisualizer
from mmengine.logging import MessageHub
from mmseg.visualization import SegLocalVisualizer

from tests.locations import TOOLS, load_tool

FOLDER = TOOLS / 'experiments'
sys.path.insert(0, str(FOLDER))
try:  # under their own names, by which configs and the tools import them
    modules = SimpleNamespace(**{name: importlib.import_module(name) for name in (
        'boundary_iou', 'cell_config', 'cell_costs', 'cell_identity', 'cell_queue', 'cell_results', 'cell_thresholds',
        'cells', 'expansion', 'feature_loss', 'grids', 'input_sizes', 'report_plots', 'report_tables', 'run_cell')})
    modules.run, modules.report = load_tool('experiments/run.py'), load_tool('experiments/report.py')
finally:
    sys.path.remove(str(FOLDER))

DET = """
_base_ = '{configs}/det.py'
side = 128
max_iters = 2
train_pipeline = _base_.train_pipeline
train_pipeline[3].update(scale=(side, side))
train_pipeline[4].update(crop_size=(side, side))
test_pipeline = _base_.test_pipeline
test_pipeline[1].update(scale=(side, side))
train_dataloader = dict(dataset=dict(pipeline=train_pipeline))
val_dataloader = dict(dataset=dict(pipeline=test_pipeline))
test_dataloader = dict(dataset=dict(pipeline=test_pipeline))
model = dict(
    data_preprocessor=dict(pad_size_divisor=side),
    backbone=dict(img_size=side, pretrain_img_size=side, embed_dims=32, depth=2, num_heads=2, window_size=4,
                  global_block_indexes=(1, )),
    neck=dict(in_channels=32),
    test_cfg=dict(rpn=dict(nms_pre=50, max_per_img=20), rcnn=dict(score_thr=0.0, max_per_img=8)))
train_cfg = dict(max_iters=max_iters)
default_hooks = dict(checkpoint=dict(interval=2))
param_scheduler = [dict(type='LinearLR', start_factor=0.5, by_epoch=False, begin=0, end=max_iters)]
"""
SEG = """
_base_ = '{configs}/seg.py'
side = 128
max_iters = 2
train_pipeline = _base_.train_pipeline
train_pipeline[2].update(scale=(side, side))
train_pipeline[3].update(crop_size=(side, side))
test_pipeline = _base_.test_pipeline
test_pipeline[1].update(scale=(side, side))
train_dataloader = dict(dataset=dict(pipeline=train_pipeline))
val_dataloader = dict(dataset=dict(pipeline=test_pipeline))
test_dataloader = dict(dataset=dict(pipeline=test_pipeline))
model = dict(
    data_preprocessor=dict(size=(side, side)),
    backbone=dict(img_size=side, pretrain_img_size=side, embed_dims=32, depth=4, num_heads=2, out_indices=(0, 1, 2, 3)),
    neck=dict(embed_dim=32),
    decode_head=dict(in_channels=[32] * 4, channels=16),
    auxiliary_head=dict(in_channels=32, channels=16),
    test_cfg=dict(crop_size=(side, side), stride=(side, side)))
train_cfg = dict(max_iters=max_iters)
param_scheduler = [dict(type='LinearLR', start_factor=0.5, by_epoch=False, begin=0, end=max_iters)]
"""


@pytest.fixture(scope='session')
def data(tmp_path_factory) -> Path:
    """A folder of datasets: 'tiny', four scenes to train on and two to test."""
    folder = tmp_path_factory.mktemp('experiments')
    load_tool('demo/make_demo_dataset.py').make_dataset(folder / 'tiny', 4, 2, recipe='scenes_192')
    return folder


@pytest.fixture(autouse=True)
def _num_threads():
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


@pytest.fixture
def tiny(tmp_path, monkeypatch, data) -> SimpleNamespace:
    """tiny.main(*names, ...) runs grids of tiny.grids in this process; tiny.started lists the cells that ran."""
    monkeypatch.setattr('mmengine.config.config.FormatCode', lambda text, **options: (text, True))  # slow
    monkeypatch.setattr('gc.collect', lambda: 0)  # by each dataset that mmengine loads
    configs = tmp_path / 'configs'
    configs.mkdir()
    for name, text in (('det', DET), ('seg', SEG)):
        (configs / f'{name}.py').write_text(text.format(configs=FOLDER / 'configs'))
    monkeypatch.setitem(modules.grids.DATASETS, 'tiny', modules.grids.Dataset('scenes_192', 4, 2, enlarged=2 / 3))
    monkeypatch.syspath_prepend(FOLDER)
    started = []
    in_own_process = modules.cell_queue._run_process

    def in_this_process(work_dir: Path) -> int:
        started.append(work_dir.name.rpartition('-')[0])
        for kind in (MessageHub, DetLocalVisualizer, SegLocalVisualizer):  # kept by name for the life of a process
            kind._instance_dict.clear()
        return modules.run_cell.main([str(work_dir / 'job.json')])

    monkeypatch.setattr(modules.cell_queue, '_run_process', in_this_process)
    results = tmp_path / 'results/cells.jsonl'

    def main(cells: list, *options: str) -> int:
        monkeypatch.setitem(modules.run.GRIDS, 'tiny', lambda: cells)
        return modules.run.main(['tiny', '--results', str(results), '--work-dir', str(tmp_path / 'work'), '--data',
                                 str(data), '--configs', str(configs), '--timing-rounds', '1', '1', *options])

    return SimpleNamespace(main=main, started=started, configs=configs, work=tmp_path / 'work', results=results,
                           in_own_process=in_own_process, in_this_process=in_this_process)
