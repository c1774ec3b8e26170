"""The tools' options and early checks; each mistake is one message that says what to do."""
import argparse
import errno
import importlib.util
import json
import logging
import os
import pickle
import re
import signal
import subprocess
import sys
import time
import warnings
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from mmdet.datasets import CocoDataset
from mmdet.evaluation import DumpDetResults
from mmengine.config import Config
from mmengine.device import get_device
from mmengine.evaluator import Evaluator
from mmengine.model import BaseModel, PretrainedInit
from mmengine.registry import MODELS, RUNNERS
from mmengine.runner import Runner
from mmseg.evaluation import IoUMetric
from PIL import Image

from apt_dense.mm import compat
from apt_dense.mm.cli import launch, outputs, start
from apt_dense.mm.cli.dataset_files import check_dataset_files
from apt_dense.mm.errors import LaunchError
from apt_dense.mm.fault_tolerance import checkpointing, signals
from apt_dense.mm.fault_tolerance.bad_data import BadDataHook, GuardSamples
from apt_dense.mm.preflight.findings import PreflightError
from apt_dense.mm.training.hooks import CheckFrozenLoadedHook
from tests.locations import ROOT
from tests.mm.conftest import point_to

TOOLS = ROOT / 'tools'
SHORT_CONFIG = ROOT / 'configs/apt_eva02_b_coco.py'


def import_tool(name):
    spec = importlib.util.spec_from_file_location(name, TOOLS / f'{name}.py')
    tool = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(tool)
    return tool


train_tool, test_tool = import_tool('train'), import_tool('test')


@pytest.fixture(autouse=True)
def environment(monkeypatch, tmp_path):
    """An empty working directory, and no trace of a launcher."""
    monkeypatch.chdir(tmp_path)
    for name in (*launch.RANK_VARIABLES, 'LOCAL_RANK'):
        monkeypatch.setenv(name, '')  # so that monkeypatch removes what a test leaves
        monkeypatch.delenv(name)


@pytest.fixture
def checkpoint(tmp_path):
    path = tmp_path / 'checkpoint.pth'
    torch.save({'state_dict': {'backbone.pos_embed': torch.zeros(1)}}, path)
    return str(path)


def config(**settings) -> Config:
    return Config(dict(default_scope='mmdet', work_dir='work', **settings))


def parse(*argv) -> argparse.Namespace:
    parser = argparse.ArgumentParser()
    parser.add_argument('config')
    launch.add_common_arguments(parser)
    return parser.parse_args(list(map(str, argv)))


@pytest.fixture
def run_tool(monkeypatch):
    """run_tool(tool, *argv) -> (exit status, the config that the runner would get or None, the runner's calls)."""

    def run(tool, *argv):
        built, calls = [], []

        def build_runner(cfg):
            built.append(cfg)
            return SimpleNamespace(train=lambda: calls.append('train'), test=lambda: calls.append('test'))

        monkeypatch.setattr(launch, 'build_runner', build_runner)
        monkeypatch.setattr(sys, 'argv', [tool.__file__, *map(str, argv)])
        return launch.run_tool(tool.main), built[0] if built else None, calls

    return run


def test_run_tool_prints_a_launch_error_and_nothing_else(capsys):
    def main():
        raise launch.LaunchError('no data: link it')

    assert launch.run_tool(main) == 2
    assert capsys.readouterr() == ('', 'error: no data: link it\n')


LAUNCHED = [('pytorch', 'RANK'), ('slurm', 'SLURM_PROCID'), ('mpi', 'OMPI_COMM_WORLD_RANK')]


def start_as(monkeypatch, launcher, variable, rank):
    """This process is a rank of a command with --launcher."""
    monkeypatch.setattr(sys, 'argv', ['train.py', 'config.py', '--launcher', launcher, '--amp'])
    monkeypatch.setenv(variable, rank)


@pytest.mark.parametrize(('launcher', 'variable'), LAUNCHED)
def test_run_tool_prints_the_error_of_every_rank(monkeypatch, capsys, launcher, variable):
    def main():
        raise launch.LaunchError('no data')

    for rank in ('0', '1', '10'):
        start_as(monkeypatch, launcher, variable, rank)
        assert launch.run_tool(main) == 2
        assert capsys.readouterr().err == f'error: rank {rank}: no data\n'


@pytest.mark.parametrize(('launcher', 'variable'), LAUNCHED)
@pytest.mark.parametrize('argv', [['train.py', 'config.py'], ['train.py', 'config.py', '--launcher', 'none']])
def test_a_rank_without_its_launcher_means_nothing(monkeypatch, tmp_path, capsys, launcher, variable, argv):
    """A single run in a Slurm job or a shell of mpirun's: it prints its errors and holds its work directory."""
    monkeypatch.setenv(variable, '3')
    monkeypatch.setattr(sys, 'argv', argv)

    def main():
        raise launch.LaunchError('no data')

    assert launch.run_tool(main) == 2
    assert capsys.readouterr().err == 'error: no data\n'
    cfg = config(launcher='none')
    with launch.claim_output_dirs(cfg):
        assert (tmp_path / 'work/.train.lock').read_text().startswith(f'process {os.getpid()} ')
    assert launch.rank_of('none') is None and launch.rank_of(launcher) == 3


def test_run_tool_names_the_rank_of_every_other_end(monkeypatch, capsys):
    ends = {signals.TrainingStopped('stopped by SIGUSR1 in the validation'): 'rank 1: stopped by SIGUSR1 in the valid',
            OSError(errno.ENOSPC, 'No space left on device', 'w/log'): 'error: rank 1: w/log cannot be written: ',
            checkpointing.WorkDirError(errno.EACCES, 'w is in use'): 'error: rank 1: w is in use\n'}
    start_as(monkeypatch, 'pytorch', 'RANK', '1')

    def main():
        raise error

    for error, printed in ends.items():  # noqa: B007  (main raises it)
        assert launch.run_tool(main) in (2, 75)
        assert capsys.readouterr().err.startswith(printed)
    error = KeyError('a bug')
    with pytest.raises(KeyError, match='a bug'):
        launch.run_tool(main)
    assert capsys.readouterr().err == 'error: rank 1: KeyError, see its traceback\n'


def test_torchruns_report_gets_the_error(monkeypatch, tmp_path, capsys):
    monkeypatch.setenv('TORCHELASTIC_ERROR_FILE', str(tmp_path / 'error.json'))
    start_as(monkeypatch, 'pytorch', 'RANK', '1')

    def main():
        raise launch.LaunchError('no data: link it')

    with warnings.catch_warnings():
        warnings.filterwarnings('ignore', message='Unable to enable fault handler')  # of what pytest puts for stderr
        assert launch.run_tool(main) == 2
    assert json.loads((tmp_path / 'error.json').read_text())['message']['message'] == 'LaunchError: no data: link it'
    assert 'error: rank 1: no data' in capsys.readouterr().err


def test_run_tool_leaves_other_errors_alone():
    for error in (ValueError('a bug'), SystemExit(2), KeyboardInterrupt()):
        def main(error=error):
            raise error

        with pytest.raises(type(error)):
            launch.run_tool(main)


class Broken(torch.utils.data.Dataset):
    """Every file of it is missing."""

    def __len__(self):
        return 1

    def __getitem__(self, index):
        return GuardSamples([dict(type='LoadCheckedImage')])(dict(img_path='/data/7.jpg'))


@pytest.mark.parametrize('num_workers', [0, 1])
@pytest.mark.parametrize('rank', ['0', '1'])
def test_run_tool_names_a_bad_sample_of_any_process_and_its_workers(monkeypatch, capsys, num_workers, rank):
    start_as(monkeypatch, 'pytorch', 'RANK', rank)
    loader = torch.utils.data.DataLoader(Broken(), num_workers=num_workers)
    assert launch.run_tool(lambda: list(loader)) == 2
    line, = capsys.readouterr().err.splitlines()
    assert line.startswith(f'error: rank {rank}: bad sample: ') and '/data/7.jpg' in line
    assert line.endswith("set on_bad='skip'")


@pytest.mark.slow
def test_run_tool_prints_errors_of_the_data(monkeypatch, capsys):
    def not_finite():
        hook = BadDataHook()
        hook._batches = [(['7.jpg'], torch.tensor(False))]
        hook._refuse()

    mains = {'error: a loss that is not finite; images: 7.jpg. ': not_finite,
             'error: this config trains a few parameters of a trained model, and no ':
                 lambda: CheckFrozenLoadedHook().before_train(None)}
    for message, main in mains.items():
        assert launch.run_tool(main) == 2
        printed = capsys.readouterr().err
        assert printed.startswith(message) and printed.count('\n') == 1
        with monkeypatch.context() as context:
            start_as(context, 'pytorch', 'RANK', '1')
            assert launch.run_tool(main) == 2
        assert capsys.readouterr().err.startswith(message.replace('error: ', 'error: rank 1: '))


@pytest.mark.parametrize('initialized', [False, True])
def test_run_tool_ends_the_process_group(monkeypatch, initialized):
    ended = []
    monkeypatch.setattr(torch.distributed, 'is_initialized', lambda: initialized)
    monkeypatch.setattr(torch.distributed, 'destroy_process_group', lambda: ended.append(True))
    assert launch.run_tool(lambda: None) == 0
    assert ended == [True] * initialized


def test_load_config_puts_the_options_into_the_config():
    cfg = launch.load_config(parse(SHORT_CONFIG))
    assert (cfg.launcher, cfg.work_dir) == ('none', 'work_dirs/apt_eva02_b_coco')
    assert os.environ['LOCAL_RANK'] == '0'
    cfg = launch.load_config(parse(
        SHORT_CONFIG, '--work-dir', 'here', '--launcher', 'slurm', '--cfg-options', 'optim_wrapper.optimizer.lr=0.5',
        'model.backbone.thresholds=[1,2.5,3]', 'train_dataloader.dataset.pipeline.2.prob=0.25',
        'model.backbone.init_cfg=None', 'work_dir=there', 'load_from=a=b.pth'))
    assert (cfg.launcher, cfg.work_dir, cfg.load_from) == ('slurm', 'here', 'a=b.pth')
    assert cfg.optim_wrapper.optimizer.lr == 0.5
    assert cfg.model.backbone.thresholds == [1, 2.5, 3] and cfg.model.backbone.init_cfg is None
    assert cfg.train_dataloader.dataset.pipeline[2] == dict(type='RandomFlip', prob=0.25)
    assert launch.load_config(parse(SHORT_CONFIG, '--cfg-options', 'work_dir=there')).work_dir == 'there'


@pytest.mark.parametrize('option', ['--local_rank', '--local-rank'])
def test_local_rank_of_the_old_launcher(monkeypatch, option):
    launch.load_config(parse(SHORT_CONFIG, f'{option}=3'))
    assert os.environ['LOCAL_RANK'] == '3'
    launch.load_config(parse(SHORT_CONFIG))
    assert os.environ['LOCAL_RANK'] == '3'  # the environment, which torchrun sets, comes first


def test_a_config_or_base_that_does_not_exist(tmp_path):
    with pytest.raises(launch.LaunchError, match=rf'config configs/no\.py \(in {tmp_path}\) does not exist'):
        launch.load_config(parse('configs/no.py'))
    (tmp_path / 'leaf.py').write_text("_base_ = './no_base.py'\n")
    with pytest.raises(launch.LaunchError, match=r'config leaf\.py cannot be read.*no_base\.py'):
        launch.load_config(parse('leaf.py'))


def test_options_that_do_not_fit(tmp_path):
    (tmp_path / 'config.txt').touch()
    with pytest.raises(launch.LaunchError, match=r'config\.txt is no config: give a file that ends in \.py'):
        launch.load_config(parse('config.txt'))
    for option, message in (('train_dataloader.dataset.pipeline.99.prob=1', 'Index 99 exceeds the length'),
                            ('load_from.path=a.pth', 'load_from={.*NoneType')):
        with pytest.raises(launch.LaunchError, match=f'--cfg-options: .*{message}'):
            launch.load_config(parse(SHORT_CONFIG, '--cfg-options', option))


@pytest.mark.parametrize(('option', 'message'), [
    ('work_dir=5', "work_dir: got the number 5, wanted a text: work_dir='work_dirs/mine'"),
    ('model=5', 'model: got the number 5, wanted a dict'),
    ('train_cfg=[1]', r'train_cfg: got the list \[1\], wanted a dict: train_cfg=dict\(max_iters='),
    ('optim_wrapper=AdamW', "optim_wrapper: got the text 'AdamW', wanted a dict: optim_wrapper=dict"),
    ('optim_wrapper.optimizer=AdamW', "optim_wrapper.optimizer: got the text 'AdamW', wanted a dict"),
    ('default_hooks=None', 'default_hooks: got None, wanted a dict'),
    ('default_hooks.checkpoint=5', 'default_hooks.checkpoint: got the number 5, wanted a dict'),
    ('custom_hooks=[EMAHook]', "custom_hooks.0: got the text 'EMAHook', wanted a dict"),
    ('custom_hooks=EMAHook', "custom_hooks: got the text 'EMAHook', wanted a list"),
    ('env_cfg=None', 'env_cfg: got None, wanted a dict'), ('randomness=None', 'randomness: got None, wanted a dict'),
    ('env_cfg.mp_cfg=None', 'env_cfg.mp_cfg: got None, wanted a dict'),
    ('default_scope=foo.bar', "got the text 'foo.bar'"), ('default_scope=__main__', "got the text '__main__'"),
    ('env_cfg.mp_cfg=5', 'env_cfg.mp_cfg: got the number 5'),
    ('param_scheduler=5', 'param_scheduler: got the number 5'),
    ('param_scheduler=[5]', 'param_scheduler.0: got the number 5'),
    ('randomness=5', 'randomness: got the number 5'), ('randomness.seed=abc', "randomness.seed: got the text 'abc'"),
    ('randomness.seed=-1', 'randomness.seed: got the number -1, wanted a whole number from 0 to 4294967295'),
    ('randomness.seed=1.5', 'randomness.seed: got the number 1.5'),
    ('model.backbone=None', 'model.backbone: got None'), ('model.neck=5', 'model.neck: got the number 5'),
    ('model.trainable=backbone', "model.trainable: got the text 'backbone', wanted a list"),
    ('load_from=5', 'load_from: got the number 5'),
    ('resume=abc', "resume: got the text 'abc', wanted True or False"),
    ('visualizer.vis_backends=5', 'visualizer.vis_backends: got the number 5'),
    ('val_evaluator=[5]', 'val_evaluator.0: got the number 5'), ('val_dataloader=5', 'val_dataloader: got the number'),
    ('log_level=info', "log_level: got the text 'info', wanted 'DEBUG', 'INFO'"),
    ('default_scope=mmdetection', "default_scope: got the text 'mmdetection'. Set it to 'mmdet'")])
def test_settings_of_another_kind(option, message):
    with pytest.raises(PreflightError, match=message):
        launch.load_config(parse(SHORT_CONFIG, '--cfg-options', option))


@pytest.mark.parametrize('name', ['RANK', 'LOCAL_RANK', 'WORLD_SIZE'])
def test_an_environment_that_is_no_number(name, monkeypatch, capsys):
    for each in ('RANK', 'LOCAL_RANK', 'WORLD_SIZE'):
        monkeypatch.setenv(each, 'abc' if each == name else '0')
    assert launch.run_tool(lambda: launch.load_config(parse(SHORT_CONFIG, '--launcher', 'pytorch')) and None) == 2
    assert f"the environment has {name}='abc', wanted a whole number: torchrun sets it" in capsys.readouterr().err


@pytest.mark.parametrize('port', ['abc', '99999', '-1'])
def test_a_port_that_is_none(port, monkeypatch):
    monkeypatch.setenv('MASTER_PORT', port)
    monkeypatch.setenv('RANK', '0')
    with pytest.raises(launch.LaunchError, match=f"MASTER_PORT='{port}', wanted a number from 0 to 65535"):
        launch.load_config(parse(SHORT_CONFIG, '--launcher', 'pytorch'))
    launch.load_config(parse(SHORT_CONFIG))


def test_pytorch_launcher_without_torchrun(monkeypatch):
    with pytest.raises(launch.LaunchError, match=r'RANK is not set\): start with tools/dist_train\.sh'):
        launch.load_config(parse(SHORT_CONFIG, '--launcher', 'pytorch'))
    monkeypatch.setenv('RANK', '0')
    assert launch.load_config(parse(SHORT_CONFIG, '--launcher', 'pytorch')).launcher == 'pytorch'


def test_scope_of():
    known = ['mmdet', 'mmseg', 'mmengine']
    assert [launch.scope_of(Config(dict(default_scope=scope))) for scope in known] == known
    for settings in (dict(default_scope='mmpose'), dict(default_scope=None), {}):
        with pytest.raises(launch.LaunchError,
                           match=r"default_scope=('mmpose'|None): set it to 'mmdet' .*'mmseg' .* or 'mmengine'"):
            launch.scope_of(Config(settings))


def test_check_checkpoint(checkpoint, tmp_path):
    for path in (checkpoint, 'checkpoint.pth', 'https://host/a.pth', 'torchvision://resnet50', 's3://bucket/a.pth'):
        start.check_checkpoint(path, 'x')
    with pytest.raises(launch.LaunchError, match=r'checkpoint /no/a\.pth does not exist \(load_from\)'):
        start.check_checkpoint('/no/a.pth', 'load_from')
    with pytest.raises(launch.LaunchError, match=rf'checkpoint a\.pth \(in {tmp_path}\) does not exist'):
        start.check_checkpoint('a.pth', 'load_from')
    with pytest.raises(launch.LaunchError, match=r'is a folder \(a directory\): name a file'):
        start.check_checkpoint(str(tmp_path), 'a directory')


def test_a_checkpoint_in_the_home_directory(checkpoint, tmp_path, monkeypatch):
    monkeypatch.setenv('HOME', str(tmp_path))  # mmengine expands it too
    start.check_checkpoint('~/checkpoint.pth', 'load_from')
    with pytest.raises(launch.LaunchError, match=rf'checkpoint {tmp_path}/no\.pth does not exist'):
        start.check_checkpoint('~/no.pth', 'load_from')


def test_an_official_checkpoint_is_told_what_to_do(tmp_path):
    path = str(tmp_path / 'eva02_L_coco_sys.pth')
    torch.save({'model': {'backbone.net.pos_embed': torch.zeros(1)}}, path)
    with pytest.raises(launch.LaunchError, match=r'official EVA-02 det checkpoint.*\(load_from\).*eva02_to_mm\.py'):
        start.check_checkpoint(path, 'load_from')
    with pytest.raises(launch.LaunchError, match='Convert it'):
        launch.check_pretrained(dict(backbone=dict(init_cfg=dict(type='Pretrained', checkpoint=path))))


VIT = {f'blocks.0.{layer}.weight': torch.zeros(1) for layer in ('norm1', 'attn.qkv', 'attn.proj', 'mlp.fc1', 'mlp.fc2')}


@pytest.mark.parametrize('prefix', ['', 'module.', 'backbone.net.'])
def test_another_vision_transformer_is_told_what_is_wanted(tmp_path, prefix):
    """A file of timm or DINO, or a ViTDet of detectron2: mmengine would load nothing of it, and go on."""
    path = str(tmp_path / 'vit.pth')
    torch.save({'model': {f'{prefix}{name}': value for name, value in VIT.items()}}, path)
    with pytest.raises(launch.LaunchError, match=r'vit\.pth is no checkpoint of this project \(load_from\): .*no '
                                                 r'official EVA-02 checkpoint: .*Wanted are .*attn\.q_proj') as error:
        start.check_checkpoint(path, 'load_from')
    assert 'eva02_to_mm' not in str(error.value)


def test_another_models_pretrained_file_is_its_own_affair(tmp_path):
    """Of a teacher, say: the backbone's own is looked at when it is loaded."""
    torch.save(VIT, tmp_path / 'vit.pth')
    init_cfg = dict(type='Pretrained', checkpoint=str(tmp_path / 'vit.pth'))
    launch.check_pretrained(dict(teacher=dict(init_cfg=init_cfg)))


def test_a_broken_or_unsafe_checkpoint(tmp_path):
    (tmp_path / 'broken.pth').write_text('nonsense')
    torch.save({'model': {'a': torch.zeros(1)}, 'code': argparse.Namespace()}, tmp_path / 'unsafe.pth')
    with pytest.raises(launch.LaunchError, match=r'broken\.pth cannot be read .*: it is another kind .*\(--resume\)'):
        start.check_checkpoint(str(tmp_path / 'broken.pth'), '--resume')
    with pytest.raises(launch.LaunchError, match='holds more than plain data .*argparse.Namespace'):
        start.check_checkpoint(str(tmp_path / 'unsafe.pth'), 'load_from')


@pytest.fixture
def work(tmp_path):
    """A work directory whose last checkpoint is iter_2.pth."""
    folder = tmp_path / 'work'
    folder.mkdir()
    torch.save({'state_dict': {'backbone.pos_embed': torch.zeros(1)}}, folder / 'iter_2.pth')
    (folder / 'last_checkpoint').write_text(str(folder / 'iter_2.pth'))
    return folder


def start_of(option, **settings):
    cfg = config(**settings)
    start.set_start(cfg, option)
    return cfg.resume, cfg.get('load_from')


def test_start_without_resume(work, checkpoint):
    assert start_of(None) == (False, None)
    assert start_of(None, load_from=checkpoint) == (False, checkpoint)
    assert start_of(None, load_from='https://host/a.pth', requires_load_from=True) == (False, 'https://host/a.pth')


def test_resume_from_the_work_directory(work, checkpoint):
    last = str(work / 'iter_2.pth')
    for settings in ({}, dict(load_from=checkpoint), dict(load_from='no.pth'), dict(requires_load_from=True)):
        assert start_of('auto', **settings) == (True, last)


def test_resume_without_a_checkpoint_keeps_load_from(checkpoint, capsys):
    assert start_of('auto', load_from=checkpoint, requires_load_from=True) == (False, checkpoint)
    assert start_of('auto') == (False, None)
    assert 'work has no checkpoint to resume: training starts at iteration 0' in capsys.readouterr().out


def test_resume_from_a_named_checkpoint(work, checkpoint):
    for settings in ({}, dict(load_from='no.pth'), dict(resume=True, load_from='no.pth')):
        assert start_of(checkpoint, **settings) == (True, checkpoint)


def test_resume_by_the_config(work, checkpoint):
    assert start_of(None, resume=True, load_from=checkpoint) == (True, checkpoint)
    assert start_of(None, resume=True) == (True, str(work / 'iter_2.pth'))
    (work / 'last_checkpoint').unlink()  # as after a kill between the first checkpoint and this file
    assert start_of(None, resume=True) == (True, str(work / 'iter_2.pth').removeprefix(f'{work.parent}/'))
    (work / 'iter_2.pth').unlink()
    assert start_of(None, resume=True) == (False, None)


def test_missing_checkpoints_say_where_they_are_named(work):
    with pytest.raises(launch.LaunchError, match=r'checkpoint no\.pth .*does not exist \(--resume\)'):
        start_of('no.pth')
    with pytest.raises(launch.LaunchError, match=r'checkpoint no\.pth .*does not exist \(load_from\)'):
        start_of(None, load_from='no.pth')
    with pytest.raises(launch.LaunchError, match=r'checkpoint no\.pth .*does not exist'):
        start_of(None, resume=True, load_from='no.pth')
    (work / 'iter_2.pth').unlink()
    with pytest.raises(launch.LaunchError, match=r'iter_2\.pth does not exist \(work/last_checkpoint; name another: '
                                                 r'--resume PATH\)'):
        start_of('auto')


@pytest.mark.parametrize(('scope', 'model'), [('mmdet', 'detector'), ('mmseg', 'segmentor')])
@pytest.mark.parametrize('resume', [None, 'auto'])
def test_short_fine_tuning_needs_a_dense_model(scope, model, resume, tmp_path):
    (tmp_path / 'short.py').write_text(f"default_scope = '{scope}'\nwork_dir = 'work'\nrequires_load_from = True\n")
    cfg = Config.fromfile('short.py')
    message = rf'short\.py fine-tunes a .* dense {model}, .*`--cfg-options load_from=PATH`.*_full config'
    with pytest.raises(launch.LaunchError, match=message):
        start.set_start(cfg, resume)


def pretrained(path):
    return dict(type='Pretrained', checkpoint=path)


@pytest.mark.parametrize('kind', ['Pretrained', PretrainedInit])
def test_check_pretrained_looks_everywhere_in_the_model(checkpoint, kind):
    heads = [dict(type='Head'), dict(type='Head', init_cfg=[dict(type='Xavier'), pretrained(checkpoint)])]
    model = dict(type='Detector', backbone=dict(init_cfg=pretrained('https://host/a.pth')), bbox_head=heads, neck=None)
    launch.check_pretrained(Config(dict(model=model)).model)
    launch.check_pretrained(None)
    model['backbone']['init_cfg'] = dict(type='Pretrained')
    with pytest.raises(launch.LaunchError, match=r"model\.backbone\.init_cfg=dict\(type='Pretrained'\) names no file"):
        launch.check_pretrained(Config(dict(model=model)).model)
    model['backbone']['init_cfg'] = None
    heads[1]['init_cfg'][1] = dict(pretrained('no.pth'), type=kind)
    key = r'model\.bbox_head\.1\.init_cfg\.1'
    with pytest.raises(launch.LaunchError, match=rf'checkpoint no\.pth .* \({key}\.checkpoint; name yours: '
                                                 rf'--cfg-options {key}\.checkpoint=PATH, or .*: {key}=None\)'):
        launch.check_pretrained(Config(dict(model=model)).model)


@pytest.fixture
def coco(tmp_path):
    """A dataset's settings; its files are there."""
    for name in ('coco/train', 'coco/val', 'coco/annotations'):
        (tmp_path / name).mkdir(parents=True)
    for split in ('train', 'val'):
        (tmp_path / f'coco/annotations/{split}.json').touch()

    def dataset(split, **settings):
        return dict(dict(type='CocoDataset', data_root='coco/', ann_file=f'annotations/{split}.json',
                         data_prefix=dict(img=f'{split}/')), **settings)

    return dataset


def loaders(train, val) -> dict:
    return dict(train_dataloader=dict(batch_size=2, dataset=train), val_dataloader=dict(dataset=val),
                val_evaluator=dict(type='CocoMetric', ann_file='coco/annotations/val.json'))


def missing(cfg: dict, *splits: str) -> str:
    with pytest.raises(launch.LaunchError) as error:
        check_dataset_files(Config(cfg), *splits)
    return str(error.value)


def test_dataset_files_are_there(coco):
    cfg = loaders(coco('train'), coco('val'))
    check_dataset_files(Config(cfg), 'train', 'val', 'test')
    check_dataset_files(Config(dict(cfg, train_dataloader=None)), 'train')
    check_dataset_files(Config({}), 'train', 'val', 'test')


def test_a_missing_root_explains_what_is_below_it(coco, tmp_path):
    cfg = loaders(coco('train', data_root='data/coco/'), coco('val', data_root='data/coco/'))
    cfg['val_evaluator']['ann_file'] = 'data/coco/annotations/val.json'
    assert missing(cfg, 'train', 'val') == (
        f'dataset files are missing:\n  data/coco/ (in {tmp_path}): train_dataloader.dataset.data_root, '
        'val_dataloader.dataset.data_root, val_evaluator.ann_file\n'
        'Put or link them there (ln -s /path/to/data data), or say for each key where yours are: '
        '--cfg-options train_dataloader.dataset.data_root=/path')


def test_every_missing_root_is_named(coco):
    cfg = loaders(coco('train', data_root='/no/data'), coco('val', data_root='/no/data/'))
    cfg['test_dataloader'] = dict(dataset=coco('val', data_root='/no/data/coco'))
    assert missing(cfg, 'train', 'val', 'test').splitlines()[1:-1] == [
        '  /no/data: train_dataloader.dataset.data_root, val_dataloader.dataset.data_root, '
        'test_dataloader.dataset.data_root']


def test_each_missing_file_is_named(coco, tmp_path):
    cfg = loaders(coco('train', ann_file='annotations/no.json', data_prefix=dict(img='train/', seg='stuff/')),
                  coco('val', ann_file='/no/val.json', data_prefix=dict(img='nowhere')))
    cfg['val_evaluator'] = [cfg['val_evaluator'], dict(type='LVISMetric', ann_file='/no/val.json')]
    assert missing(cfg, 'train', 'val').splitlines()[1:-1] == [
        f'  coco/annotations/no.json (in {tmp_path}): train_dataloader.dataset.ann_file',
        f'  coco/stuff/ (in {tmp_path}): train_dataloader.dataset.data_prefix.seg',
        '  /no/val.json: val_dataloader.dataset.ann_file, val_evaluator.1.ann_file',
        f'  coco/nowhere (in {tmp_path}): val_dataloader.dataset.data_prefix.img']
    assert missing(cfg, 'val').splitlines()[-1].endswith('--cfg-options val_dataloader.dataset.ann_file=/path')


def test_only_the_given_splits_are_checked(coco):
    cfg = loaders(coco('train', ann_file='no.json'), coco('val'))
    check_dataset_files(Config(cfg), 'val')
    assert 'train_dataloader.dataset.ann_file' in missing(cfg, 'train', 'val')


@pytest.mark.parametrize(('wrap', 'key'), [
    (lambda dataset: dict(type='RepeatDataset', times=2, dataset=dataset), 'dataset.dataset'),
    (lambda dataset: dict(type='MultiImageMixDataset', dataset=dict(type='ClassBalancedDataset', dataset=dataset)),
     'dataset.dataset.dataset'),
    (lambda dataset: dict(type='ConcatDataset', datasets=[dict(dataset, ann_file=''), dataset]), 'dataset.datasets.1'),
    (lambda dataset: [dataset], 'dataset.0'),
])
def test_datasets_inside_wrappers(coco, wrap, key):
    check_dataset_files(Config(loaders(wrap(coco('train')), coco('val'))), 'train')
    assert f': train_dataloader.{key}.ann_file\n' in missing(
        loaders(wrap(coco('train', ann_file='no.json')), coco('val')), 'train')


@pytest.mark.parametrize(('wrap', 'key'), [
    (lambda metric: metric, 'val_evaluator'), (lambda metric: [dict(type='Other'), metric], 'val_evaluator.1'),
    (lambda metric: dict(type='Evaluator', metrics=[metric]), 'val_evaluator.metrics.0')])
def test_annotation_files_of_evaluators(coco, wrap, key):
    cfg = loaders(coco('train'), coco('val'))
    cfg['val_evaluator'] = wrap(dict(type='CocoMetric', ann_file='coco/annotations/no.json'))
    assert f'): {key}.ann_file\n' in missing(cfg, 'val')
    cfg['val_evaluator'] = wrap(dict(type='CocoMetric', ann_file=None))
    check_dataset_files(Config(cfg), 'val')


def test_files_of_other_machines_are_passed_over(coco):
    remote = dict(backend_args=dict(backend='petrel'))
    cfg = loaders(coco('train', data_root='/no/', **remote), coco('val', data_root='s3://bucket/coco/'))
    cfg['val_evaluator'].update(ann_file='/no/val.json', **remote)
    check_dataset_files(Config(cfg), 'train', 'val')
    cfg = loaders(coco('train', data_root='', ann_file='https://host/a.json', data_prefix=dict(img='s3://images')),
                  coco('val', data_root=None, ann_file='', data_prefix=None))
    cfg['val_evaluator']['ann_file'] = 's3://bucket/val.json'
    check_dataset_files(Config(cfg), 'train', 'val')


def test_auto_scale_lr():
    cfg = config(auto_scale_lr=dict(enable=False, base_batch_size=128))
    launch.set_auto_scale_lr(cfg)
    assert cfg.auto_scale_lr == dict(enable=True, base_batch_size=128)
    for settings in ({}, dict(auto_scale_lr=None), dict(auto_scale_lr=dict(enable=False))):
        with pytest.raises(launch.LaunchError, match=r'set auto_scale_lr=dict\(base_batch_size=N\)'):
            launch.set_auto_scale_lr(config(**settings))


@pytest.mark.parametrize(('scope', 'more'), [('mmdet', {}), ('mmseg', dict(interval=1))])
def test_visualization_keeps_the_configs_settings(scope, more):
    cfg = config(default_hooks=dict(visualization=dict(type='MyHook', score_thr=0.5), timer=dict(type='IterTimerHook')),
                 visualizer=dict(type='MyVisualizer'))
    cfg.default_scope = scope
    outputs.set_visualization(cfg, show=True, show_dir=None, wait_time=2)
    assert cfg.default_hooks == dict(
        visualization=dict(type='MyHook', score_thr=0.5, draw=True, show=True, wait_time=2, **more),
        timer=dict(type='IterTimerHook'))
    assert cfg.visualizer == dict(type='MyVisualizer')


def test_visualization_that_the_config_switches_off():
    cfg = config(default_hooks=dict(visualization=None), visualizer=None)
    outputs.set_visualization(cfg, show=True, show_dir=None, wait_time=2)
    assert cfg.default_hooks.visualization.type == 'DetVisualizationHook'
    assert cfg.visualizer.type == 'DetLocalVisualizer'


def test_visualization_needs_a_scope():
    with pytest.raises(launch.LaunchError, match='default_scope=None'):
        outputs.set_visualization(Config({}), show=True, show_dir=None, wait_time=2)


@pytest.mark.parametrize('evaluator', [dict(type='VOCMetric'), [dict(type='VOCMetric')]])
@pytest.mark.parametrize('out', ['predictions.pkl', 'predictions.pickle'])
def test_output_of_a_detector(evaluator, out):
    cfg = config(test_evaluator=evaluator)
    outputs.set_output(cfg, out)
    assert cfg.test_evaluator[0] == dict(type='VOCMetric')
    metrics = Evaluator(cfg.test_evaluator).metrics
    assert len(metrics) == 2 and isinstance(metrics[1], DumpDetResults)
    assert metrics[1].out_file_path == out


@pytest.mark.parametrize('out', ['predictions', 'predictions.json', 'pkl'])
def test_output_of_a_detector_is_a_pickle_file(out):
    with pytest.raises(launch.LaunchError, match=rf'--out {out}: .* written to a file named \*\.pkl'):
        outputs.set_output(config(test_evaluator=dict(type='CocoMetric')), out)


@pytest.mark.parametrize('evaluator', [dict(type='IoUMetric'), [dict(type='CityscapesMetric'), dict(type='IoUMetric')]])
def test_output_of_a_segmentor(evaluator, tmp_path):
    cfg = Config(dict(default_scope='mmseg', test_evaluator=evaluator))
    outputs.set_output(cfg, str(tmp_path / 'maps'))
    metrics = cfg.test_evaluator if isinstance(evaluator, list) else [cfg.test_evaluator]
    assert [metric.get('output_dir') for metric in metrics[:-1]] == [None] * (len(metrics) - 1)
    settings = {key: value for key, value in metrics[-1].items() if key != 'type'}
    assert IoUMetric(**settings).output_dir == str(tmp_path / 'maps')


def test_output_of_a_segmentor_needs_its_metric():
    with pytest.raises(launch.LaunchError, match='--out needs an IoUMetric in test_evaluator'):
        outputs.set_output(Config(dict(default_scope='mmseg', test_evaluator=dict(type='DiceMetric'))), 'maps')


@MODELS.register_module(force=True)
class LaunchToy(BaseModel):

    def __init__(self, init_cfg=None):
        super().__init__()
        warnings.warn('``build_loss`` would be deprecated soon', stacklevel=1)

    def forward(self, inputs, mode='tensor'):
        return inputs


@pytest.mark.parametrize('scope', ['mmdet', 'mmseg'])
def test_build_runner(tmp_path, caplog, scope):
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter('always')
        runner = launch.build_runner(Config(dict(
            default_scope=scope, work_dir=str(tmp_path / 'work'), model=dict(type='LaunchToy'),
            experiment_name=f'test_build_runner_{scope}')))
        warnings.warn('To copy construct from a tensor, it is recommended', stacklevel=1)
        warnings.warn('loss is nan', stacklevel=1)
    shown = [str(warning.message) for warning in caught]
    assert shown[-1] == 'loss is nan' and not [text for text in shown if text.startswith(('``build_loss', 'To copy'))]
    assert isinstance(runner, Runner) and isinstance(runner.model, LaunchToy)
    runner.logger.addHandler(caplog.handler)
    runner.logger.warning('"FileClient" will be deprecated in future')
    runner.logger.warning('loss is nan')
    assert [record.getMessage() for record in caplog.records] == ['loss is nan']


def test_what_the_core_says_is_in_the_runs_log(tmp_path):
    """The core logs by Python's logging, which mmengine's loggers do not hear; each run has its own file."""
    for run in ('first', 'second'):
        launch.build_runner(Config(dict(default_scope='mmdet', work_dir=str(tmp_path / run),
                                        model=dict(type='LaunchToy'), experiment_name=f'test_the_core_{run}')))
        logging.getLogger('apt_dense.core.attention').info(f'auto takes sdpa in the {run} run')
    logs = {run: next((tmp_path / run).rglob('*.log')).read_text() for run in ('first', 'second')}
    for run, text in logs.items():
        assert re.findall('auto takes sdpa in the .* run', text) == [f'auto takes sdpa in the {run} run']


@pytest.mark.parametrize(('scope', 'lines'), [('mmdet', 1), ('mmseg', 0)])
def test_a_detectors_log_names_the_operators_once(tmp_path, scope, lines):
    launch.build_runner(Config(dict(default_scope=scope, work_dir=str(tmp_path), model=dict(type='LaunchToy'),
                                    experiment_name=f'test_operators_{scope}')))
    text = next(tmp_path.rglob('*.log')).read_text()
    assert text.count('RoIAlign, NMS and soft-NMS: ') == lines


def test_a_gpu_without_a_detectors_operators(tmp_path, monkeypatch):
    def refuse(device):
        raise ImportError(f'none for {device}')

    monkeypatch.setattr(compat, 'describe_operators', refuse)
    with pytest.raises(LaunchError, match='^none for cpu$'):
        launch.build_runner(Config(dict(default_scope='mmdet', work_dir=str(tmp_path), model=dict(type='LaunchToy'),
                                        experiment_name='test_no_operators')))


def test_build_runner_of_a_named_type():
    made = []

    @RUNNERS.register_module(force=True)
    class LaunchRunner:
        logger = None

        @classmethod
        def from_cfg(cls, cfg):
            made.append(cfg)
            return cls()

    cfg = config(runner_type='LaunchRunner', max_epochs=3)
    assert isinstance(launch.build_runner(cfg), LaunchRunner)
    assert made[0].max_epochs == 3


@pytest.mark.skipif(get_device() != 'cpu', reason='only without a GPU')
@pytest.mark.parametrize('launcher', ['slurm', 'mpi'])
def test_build_runner_with_a_launcher_that_wants_gpus(launcher):
    with pytest.raises(launch.LaunchError, match=f"launcher '{launcher}' without a GPU"):
        launch.build_runner(config(launcher=launcher))


@pytest.fixture
def leaf(tmp_path, coco):
    """A config of a detector whose dataset is there: one object of COCO's first class."""
    categories = [dict(id=number, name=name) for number, name in enumerate(CocoDataset.METAINFO['classes'])]
    content = dict(images=[dict(id=1, file_name='1.png', width=32, height=24)], categories=categories, annotations=[
        dict(id=1, image_id=1, category_id=0, bbox=[2, 2, 9, 9], area=81, iscrowd=0)])
    for split in ('train', 'val'):
        (tmp_path / f'coco/annotations/{split}.json').write_text(json.dumps(content))
        Image.new('RGB', (32, 24)).save(tmp_path / f'coco/{split}/1.png')
    dataset = {split: coco(split) for split in ('train', 'val')}
    (tmp_path / 'leaf.py').write_text(
        "default_scope = 'mmdet'\nmodel = dict(type='LaunchToy')\n"
        "train_cfg = dict(by_epoch=False, max_iters=1)\n"
        "optim_wrapper = dict(type='OptimWrapper', optimizer=dict(type='SGD', lr=0.1))\n"
        f"auto_scale_lr = dict(enable=False, base_batch_size=8)\ntrain_dataloader = dict(dataset={dataset['train']})\n"
        f"val_dataloader = test_dataloader = dict(dataset={dataset['val']})\n"
        "val_evaluator = test_evaluator = dict(type='CocoMetric', ann_file='coco/annotations/val.json')\n")
    return tmp_path / 'leaf.py'


def test_train_tool(run_tool, leaf, checkpoint):
    status, cfg, calls = run_tool(train_tool, leaf)
    assert (status, calls) == (0, ['train'])
    assert (cfg.resume, cfg.work_dir, cfg.optim_wrapper.type) == (False, 'work_dirs/leaf', 'OptimWrapper')
    assert not cfg.auto_scale_lr.enable
    status, cfg, calls = run_tool(
        train_tool, leaf, '--amp', '--auto-scale-lr', '--resume', checkpoint, '--work-dir', 'w')
    assert (status, calls) == (0, ['train'])
    assert (cfg.resume, cfg.load_from, cfg.work_dir) == (True, checkpoint, 'w')
    assert cfg.optim_wrapper.type in ('BF16OptimWrapper', 'AmpOptimWrapper') and cfg.auto_scale_lr.enable


def test_a_config_without_training(run_tool, leaf, capsys):
    status, cfg, _ = run_tool(train_tool, leaf, '--cfg-options', 'train_dataloader=None', 'optim_wrapper=None')
    assert status == 2 and cfg is None
    printed = capsys.readouterr().err
    assert 'leaf.py has no train_dataloader, optim_wrapper: there is nothing to train' in printed


def test_resume_option_with_and_without_a_value(run_tool, leaf, work):
    assert run_tool(train_tool, leaf, '--resume', '--work-dir', work)[1].load_from == str(work / 'iter_2.pth')
    assert run_tool(train_tool, '--resume', 'auto', leaf, '--work-dir', work)[1].load_from == str(work / 'iter_2.pth')
    assert run_tool(train_tool, leaf, '--work-dir', work)[1].get('load_from') is None


@pytest.mark.parametrize(('argv', 'message'), [
    (['--cfg-options', 'load_from=no.pth'], 'checkpoint no.pth'),
    (['--cfg-options', 'model.init_cfg.type=Pretrained', 'model.init_cfg.checkpoint=no.pth'],
     '(model.init_cfg.checkpoint; name yours'),
    (['--cfg-options', 'train_dataloader.dataset.ann_file=no.json'], 'train_dataloader.dataset.ann_file'),
    (['--cfg-options', 'val_dataloader.dataset.ann_file=no.json'], 'val_dataloader.dataset.ann_file'),
    (['--cfg-options', 'requires_load_from=True'], 'leaf.py fine-tunes a trained dense detector'),
    (['--amp', '--cfg-options', 'optim_wrapper.type=Other'], '--amp with'),
    (['--auto-scale-lr', '--cfg-options', 'auto_scale_lr._delete_=True'], '--auto-scale-lr needs'),
])
def test_train_tool_stops_before_the_runner_is_built(run_tool, leaf, capsys, argv, message):
    status, cfg, _ = run_tool(train_tool, leaf, *argv)
    assert status == 2 and cfg is None
    printed = capsys.readouterr().err
    assert printed.startswith('error: ') and message in printed


def test_test_tool(run_tool, leaf, checkpoint):
    status, cfg, calls = run_tool(test_tool, leaf, checkpoint, '--cfg-options', 'train_dataloader=None', 'resume=True',
                                  'load_from=other.pth')
    assert (status, calls) == (0, ['test'])
    assert (cfg.load_from, cfg.resume) == (checkpoint, False)
    assert 'visualizer' not in cfg and cfg.test_evaluator.type == 'CocoMetric'
    cfg = run_tool(test_tool, leaf, checkpoint, '--show', '--wait-time', '0.5', '--out', 'a.pkl')[1]
    assert cfg.default_hooks.visualization == dict(type='DetVisualizationHook', draw=True, show=True, wait_time=0.5)
    assert cfg.test_evaluator[1] == dict(type='DumpDetResults', out_file_path='a.pkl')
    assert 'fp16' not in (cfg.get('test_cfg') or {})
    assert run_tool(test_tool, leaf, checkpoint, '--amp', '--cfg-options', 'test_cfg.type=TestLoop')[1].test_cfg.fp16
    cfg = run_tool(test_tool, leaf, checkpoint, '--show-dir', 'drawn')[1]
    assert cfg.default_hooks.visualization == dict(
        type='DrawPredictionsHook', out_dir='drawn', image_root=f'{Path.cwd()}/coco/val', show=False, wait_time=2,
        loading=None, pred_score_thr=0.3)


@pytest.mark.parametrize(('argv', 'message'), [
    (['no.pth'], '(the second argument)'),
    (['checkpoint.pth', '--out', 'a.json'], '--out a.json'),
    (['checkpoint.pth', '--cfg-options', 'test_dataloader.dataset.ann_file=no'], 'test_dataloader.dataset.ann_file'),
    (['checkpoint.pth', '--show-dir', 'drawn', '--cfg-options', 'default_scope=mmpose'],
     "default_scope: got the text 'mmpose'. Set it to 'mmdet'"),
    (['checkpoint.pth', '--show-dir', 'coco/val'], '--show-dir coco/val holds the test data'),
])
def test_test_tool_stops_before_the_runner_is_built(run_tool, leaf, checkpoint, capsys, argv, message):
    status, cfg, _ = run_tool(test_tool, leaf, *argv)
    assert status == 2 and cfg is None
    printed = capsys.readouterr().err
    assert printed.startswith('error: ') and message in printed


@pytest.mark.slow
def test_train_resume_and_test_for_real(tiny_config, coco_root, tmp_path, monkeypatch):
    """The tools on a tiny detector: in mixed precision, resumed, predictions written and drawn."""
    # The runner writes its config 15 times, and laying it out nicely would take most of this test's time.
    monkeypatch.setattr('mmengine.config.config.FormatCode', lambda text, **options: (text, True))
    point_to(tiny_config(), coco_root, tmp_path / 'work', max_iters=1).dump(tmp_path / 'tiny.py')

    def run(tool, *argv):
        monkeypatch.setattr(sys, 'argv', ['tool', str(tmp_path / 'tiny.py'), *argv])
        assert launch.run_tool(tool.main) == 0

    no_validation = [f'val_{part}=None' for part in ('cfg', 'dataloader', 'evaluator')]
    run(train_tool, '--amp', '--cfg-options', *no_validation)
    run(train_tool, '--resume', '--cfg-options', 'train_cfg.max_iters=2', *no_validation)
    losses = [json.loads(line) for path in (tmp_path / 'work').rglob('scalars.json')
              for line in path.read_text().splitlines() if '"loss"' in line]
    assert sorted(entry['iter'] for entry in losses) == [1, 2]
    assert all(np.isfinite(entry['loss']) for entry in losses)
    run(test_tool, 'work/iter_2.pth', '--out', 'out/predictions.pkl', '--show-dir', 'drawn', '--cfg-options',
        'test_dataloader.dataset.indices=2', 'model.test_cfg.rcnn.max_per_img=5')
    predictions = pickle.loads((tmp_path / 'out/predictions.pkl').read_bytes())
    assert [len(prediction['pred_instances']['scores']) for prediction in predictions] == [5, 5]
    assert sorted(path.name for path in (tmp_path / 'drawn').iterdir()) == ['0.jpg', '1.jpg']


def test_the_resizing_baseline_is_an_option(tiny_config, coco_root, tmp_path, monkeypatch, capsys):
    """Of a short fine-tuning's config: tested with the dense model's checkpoint, and refused in training.

    What it predicts is what APT does before its detail branch, which starts at zero, has learnt anything.
    """
    cfg = point_to(tiny_config(), coco_root, tmp_path / 'work', max_iters=1)
    short = Config.fromfile(SHORT_CONFIG)
    cfg.merge_from_dict(dict(model=dict(trainable=short.model.trainable), custom_hooks=short.custom_hooks,
                             requires_load_from=True))
    cfg.dump(tmp_path / 'short.py')
    dense = MODELS.build(tiny_config('eva02_ti_demo_det').model)
    dense.init_weights()
    torch.save({'state_dict': dense.state_dict()}, tmp_path / 'dense.pth')

    def run(tool, *argv):
        monkeypatch.setattr(sys, 'argv', ['tool', str(tmp_path / 'short.py'), *argv])
        return launch.run_tool(tool.main)

    boxes = []
    for option in ('model.backbone.detail_branch=none', 'model.backbone.detail_branch=zero'):
        name = option.rpartition('=')[2]
        assert run(test_tool, 'dense.pth', '--out', f'{name}.pkl', '--cfg-options', option, f'experiment_name={name}',
                   'model.test_cfg.rcnn.max_per_img=5', 'test_dataloader.dataset.indices=2') == 0
        boxes.append([item['pred_instances']['bboxes'] for item in pickle.loads(Path(f'{name}.pkl').read_bytes())])
    assert [len(found) for found in boxes[0]] == [5] * 2
    for resized, untrained in zip(*boxes, strict=True):
        assert torch.equal(resized, untrained)
    capsys.readouterr()
    assert run(train_tool, '--cfg-options', 'model.backbone.detail_branch=none', 'load_from=dense.pth') == 2
    assert 'error: trainable=' in (printed := capsys.readouterr().err) and 'Traceback' not in printed
    assert not list((tmp_path / 'work').glob('*.pth'))


def test_from_the_command_line_an_error_is_one_line(tmp_path):
    """The tools as programs, started in another directory."""
    (tmp_path / 'empty.py').touch()
    commands = {
        ('train.py', 'no.py', '--amp'): f'error: config no.py (in {tmp_path}) does not exist',
        ('test.py', 'empty.py', 'no.pth'): f'error: checkpoint no.pth (in {tmp_path}) does not exist',
    }
    environment = dict(os.environ, PYTHONPATH=str(ROOT))
    processes = [subprocess.Popen([sys.executable, '-W', 'ignore', TOOLS / tool, *argv], text=True, env=environment,
                                  stdout=subprocess.PIPE, stderr=subprocess.PIPE) for tool, *argv in commands]
    for process, message in zip(processes, commands.values(), strict=True):
        output, errors = process.communicate(timeout=120)
        assert process.returncode == 2
        assert errors.startswith(message) and errors.count('\n') == 1, errors
        assert 'Traceback' not in output


@pytest.fixture
def run_script(tmp_path):
    """run_script(name, *argv, **environment) -> the result; stand-ins for python and srun print how they are called."""
    stand_ins = tmp_path / 'bin'
    stand_ins.mkdir()
    for program in ('python', 'srun', 'sbatch', 'other_python'):
        (stand_ins / program).write_text(
            '#!/bin/sh\necho "$PYTHONPATH"\nbasename "$0"\nfor arg; do echo "$arg"; done\nexit 7\n')
        (stand_ins / program).chmod(0o755)

    def run(name, *argv, **environment):
        return subprocess.run([TOOLS / name, *argv], capture_output=True, text=True,
                              env=dict(PATH=f'{stand_ins}:{os.environ["PATH"]}', **environment))

    return run


@pytest.mark.parametrize(('script', 'usage', 'least'), [
    ('dist_train.sh', 'CONFIG GPUS [options of tools/train.py]', 2),
    ('dist_test.sh', 'CONFIG CHECKPOINT GPUS [options of tools/test.py]', 3),
    ('slurm_train.sh', 'PARTITION JOB_NAME CONFIG WORK_DIR [options of tools/train.py]', 4),
    ('slurm_requeue.sh', 'PARTITION JOB_NAME CONFIG WORK_DIR [options of tools/train.py]', 4),
    ('slurm_test.sh', 'PARTITION JOB_NAME CONFIG CHECKPOINT [options of tools/test.py]', 4)])
def test_scripts_with_too_few_arguments(run_script, script, usage, least):
    for count in (0, least - 1):
        result = run_script(script, *['x'] * count)
        assert result.returncode == 2
        assert (result.stdout, result.stderr) == ('', f'usage: {TOOLS / script} {usage}\n')
    assert run_script(script, *['2'] * least).returncode == 7  # the status is the program's


MORE = ['--cfg-options', 'a="x y"', '']  # what a missing pair of quotes would spoil
OTHER = dict(PYTHON='other_python', PYTHONPATH='/p q')


@pytest.mark.parametrize(('script', 'argv', 'gpus', 'tool'), [
    ('dist_train.sh', ['a b.py'], '2', 'train.py'), ('dist_test.sh', ['a b.py', 'c d.pth'], '4', 'test.py')])
def test_dist_scripts(run_script, script, argv, gpus, tool):
    tail = [f'--nproc_per_node={gpus}', f'{TOOLS}/{tool}', *argv, '--launcher', 'pytorch', *MORE]
    assert run_script(script, *argv, gpus, *MORE).stdout.splitlines() == [
        str(ROOT), 'python', '-m', 'torch.distributed.run', '--nnodes=1', '--node_rank=0', '--master_addr=127.0.0.1',
        '--master_port=29500', *tail]
    result = run_script(script, *argv, gpus, *MORE, NNODES='3', NODE_RANK='1', MASTER_ADDR='host', PORT='12', **OTHER)
    assert result.stdout.splitlines() == [
        f'{ROOT}:/p q', 'other_python', '-m', 'torch.distributed.run', '--nnodes=3', '--node_rank=1',
        '--master_addr=host', '--master_port=12', *tail]


def srun_options(gpus_per_node, gpus, cpus):
    return ['--partition=my part', '--job-name=my job', f'--gres=gpu:{gpus_per_node}', f'--ntasks={gpus}',
            f'--ntasks-per-node={gpus_per_node}', f'--cpus-per-task={cpus}', '--kill-on-bad-exit=1']


@pytest.mark.parametrize(('script', 'tool_argv'), [
    ('slurm_train.sh', ['train.py', 'a b.py', '--work-dir', 'c d']), ('slurm_test.sh', ['test.py', 'a b.py', 'c d'])])
def test_slurm_scripts(run_script, script, tool_argv):
    argv = ['my part', 'my job', 'a b.py', 'c d', *MORE]
    tail = ['-u', f'{TOOLS}/{tool_argv[0]}', *tool_argv[1:], '--launcher', 'slurm', *MORE]
    assert run_script(script, *argv).stdout.splitlines() == [
        str(ROOT), 'srun', *srun_options(8, 8, 5), 'python', *tail]
    result = run_script(script, *argv, GPUS='16', GPUS_PER_NODE='4', CPUS_PER_TASK='3', SRUN_ARGS='--time=1 --mem 2',
                        **OTHER)
    assert result.stdout.splitlines() == [
        f'{ROOT}:/p q', 'srun', *srun_options(4, 16, 3), '--time=1', '--mem', '2', 'other_python', *tail]


@pytest.mark.parametrize('script', ['slurm_train.sh', 'slurm_test.sh'])
@pytest.mark.parametrize(('gpus', 'gpus_per_node'), [('2', 2), ('8', 8), ('32', 8)])
def test_slurm_takes_no_more_gpus_of_a_machine_than_the_job_has(run_script, script, gpus, gpus_per_node):
    printed = run_script(script, 'my part', 'my job', 'c.py', 'd', GPUS=gpus).stdout.splitlines()
    assert printed[2:9] == srun_options(gpus_per_node, gpus, 5)


def test_requeue_script_submits_itself(run_script, tmp_path):
    printed = run_script('slurm_requeue.sh', 'my part', 'my job', 'a b.py', tmp_path / 'c d', *MORE, GPUS='2',
                         SBATCH_ARGS='--time=1 --mem 2', NOTICE='60').stdout.splitlines()
    assert printed[1:] == [
        'sbatch', *srun_options(2, 2, 5)[:-1], '--requeue', '--signal=B:USR1@60', '--open-mode=append',
        f'--output={tmp_path}/c d/slurm-%j.out', '--export=ALL', '--time=1', '--mem', '2',
        f'{TOOLS}/slurm_requeue.sh', 'my part', 'my job', 'a b.py', f'{tmp_path}/c d', *MORE]
    assert (tmp_path / 'c d').is_dir()


# A training: how it ends on its own, and on SIGUSR1 and SIGTERM, which srun passes on.
SRUN = """#!/bin/sh
echo "srun $*"
trap 'echo saved; exit $ON_USR1' USR1
trap 'echo cancelled; exit 75' TERM
touch started
n=0
while [ $n -lt $TENTHS ]; do sleep 0.1; n=$((n + 1)); done
exit $AT_END
"""


@pytest.mark.parametrize(('sent', 'srun', 'requeued'), [
    (None, dict(TENTHS='1', AT_END='0'), None),
    (None, dict(TENTHS='1', AT_END='1'), None),
    (None, dict(TENTHS='1', AT_END='75'), 'the training was stopped with status 75'),
    (signal.SIGUSR1, dict(ON_USR1='75'), 'the training was stopped with status 75'),
    (signal.SIGUSR1, dict(ON_USR1='137'), 'the training was stopped with status 137'),  # one process ends the others
    (signal.SIGUSR1, dict(ON_USR1='0'), None),
    (signal.SIGTERM, {}, None),
])
def test_requeue_script_in_a_job(tmp_path, sent, srun, requeued):
    stand_ins = tmp_path / 'bin'
    stand_ins.mkdir()
    for program, text in (('srun', SRUN), ('scontrol', '#!/bin/sh\necho "scontrol $*"\n')):
        (stand_ins / program).write_text(text)
        (stand_ins / program).chmod(0o755)
    job = subprocess.Popen(
        [TOOLS / 'slurm_requeue.sh', 'part', 'job', 'a.py', 'work', '--amp'], stdout=subprocess.PIPE, text=True,
        cwd=tmp_path, env=dict(dict(TENTHS='600', AT_END='9', ON_USR1='9'), PATH=f'{stand_ins}:{os.environ["PATH"]}',
                               APT_DENSE_ROOT='/project', SLURM_JOB_ID='17', **srun))
    while sent and not (tmp_path / 'started').exists():
        time.sleep(0.01)
    if sent:
        job.send_signal(sent)
    printed = job.communicate(timeout=60)[0].splitlines()
    assert printed[0] == ('srun --kill-on-bad-exit=1 python -u /project/tools/train.py a.py --work-dir work --launcher '
                          'slurm --resume --amp')
    assert (printed[-1] == 'scontrol requeue 17') == bool(requeued)
    assert ('saved' in printed, 'cancelled' in printed) == (sent == signal.SIGUSR1, sent == signal.SIGTERM)
    if requeued:
        assert printed[-2] == f'[slurm_requeue] job 17 is queued again: {requeued}' and job.returncode == 0
    else:
        assert job.returncode == int({None: srun.get('AT_END'), signal.SIGUSR1: '0', signal.SIGTERM: '75'}[sent])


SIGNAL_BEFORE = """
early() {
    while [ ! -e started ]; do sleep 0.01; done
    [ -n "$SENT" ] || { SENT=1; kill -USR1 $$; }
}
SENT=
trap '[ "$BASH_COMMAND" != "$COMMAND" ] || early' DEBUG
"""


@pytest.mark.parametrize('command', ['TRAINING=$!', 'wait $!'])
def test_requeue_script_waits_for_the_training_whenever_the_notice_comes(tmp_path, command):
    """... also just before the script reads the number of the process that it has started last."""
    stand_ins = tmp_path / 'bin'
    stand_ins.mkdir()
    for program, text in (('srun', SRUN), ('scontrol', '#!/bin/sh\necho "scontrol $*"\n')):
        (stand_ins / program).write_text(text)
        (stand_ins / program).chmod(0o755)
    (tmp_path / 'early.sh').write_text(SIGNAL_BEFORE)
    done = subprocess.run(
        [TOOLS / 'slurm_requeue.sh', 'part', 'job', 'a.py', 'work'], capture_output=True, text=True, cwd=tmp_path,
        timeout=45, env=dict(PATH=f'{stand_ins}:{os.environ["PATH"]}', APT_DENSE_ROOT='/project', SLURM_JOB_ID='17',
                             TENTHS='600', AT_END='9', ON_USR1='75', COMMAND=command, BASH_ENV=tmp_path / 'early.sh'))
    assert done.stdout.splitlines()[1:] == [
        'saved', '[slurm_requeue] job 17 is queued again: the training was stopped with status 75',
        'scontrol requeue 17'], done.stderr


def test_requeue_script_does_not_wait_for_ever(tmp_path):
    """A validation longer than the notice: the job is queued again before Slurm ends it."""
    stand_ins = tmp_path / 'bin'
    stand_ins.mkdir()
    for program, text in (('srun', '#!/bin/sh\ntrap "" USR1\ntouch started\nexec sleep 5 >/dev/null\n'),
                          ('scontrol', '#!/bin/sh\necho "scontrol $*"\n')):
        (stand_ins / program).write_text(text)
        (stand_ins / program).chmod(0o755)
    job = subprocess.Popen(
        [TOOLS / 'slurm_requeue.sh', 'part', 'job', 'a.py', 'work'], stdout=subprocess.PIPE, text=True, cwd=tmp_path,
        env=dict(PATH=f'{stand_ins}:{os.environ["PATH"]}', APT_DENSE_ROOT='/project', SLURM_JOB_ID='17', NOTICE='1'))
    while not (tmp_path / 'started').exists():
        time.sleep(0.01)
    job.send_signal(signal.SIGUSR1)
    printed = job.communicate(timeout=60)[0].splitlines()
    assert printed == ['[slurm_requeue] job 17 is queued again: the training has not stopped in time, and goes on from '
                       'its last checkpoint', 'scontrol requeue 17']
