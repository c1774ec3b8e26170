"""Options that change a config: those that nothing reads are errors, those without effect are warnings."""
import argparse
import copy
import importlib
from pathlib import Path

import pytest
from mmengine.config import Config, DictAction

from apt_dense.mm.cli import launch
from apt_dense.mm.errors import LaunchError
from apt_dense.mm.preflight.options import merge_options

CONFIGS = Path(__file__).parents[3] / 'configs'
CACHE = {}


def load(name: str) -> Config:
    if name not in CACHE:
        CACHE[name] = Config.fromfile(CONFIGS / f'{name}.py')
    return copy.deepcopy(CACHE[name])


def merged(name: str, *options: str) -> tuple[Config, list[str]]:
    """(config, warnings) of a command's --cfg-options."""
    cfg, parser = load(name), argparse.ArgumentParser()
    parser.add_argument('--cfg-options', nargs='+', action=DictAction)
    return cfg, merge_options(cfg, parser.parse_args(['--cfg-options', *options]).cfg_options)


@pytest.mark.parametrize(('option', 'message'), [
    ('trian_cfg.max_iters=2', 'nothing reads it. Nearest: train_cfg.max_iters'),
    ('data_rot=/data', 'nothing reads it. Nearest: data_root'),
    ('backbone.num_scales=2', 'nothing reads it. Nearest: model.backbone.num_scales'),
    ('lr=0.1', 'nothing reads it. Nearest: optim_wrapper.optimizer.lr'),
    ('optim_wrapper.lr=0.1', 'OptimWrapper does not take it. Nearest: optim_wrapper.optimizer.lr'),
    ('model.backbone.max_tokns=7', 'APTEVA02 does not take it. Nearest: model.backbone.max_tokens'),
    ('optim_wrapper.clip_grad.max_nrom=1', 'nothing reads it. Nearest: optim_wrapper.clip_grad.max_norm'),
    ('randomness.sed=1', 'nothing reads it. Nearest: randomness.seed'),
    ('train_dataloader.batch_sise=1', 'nothing reads it. Nearest: train_dataloader.batch_size'),
    ('train_cfg.max_epochs=1', 'IterBasedTrainLoop does not take it. train_cfg has max_iters'),
    ('model.test_cfg.rcnn.scoer_thr=0.5', 'nothing reads it. Nearest: model.test_cfg.rcnn.score_thr'),
    ('default_hooks.chekpoint.interval=5', "there is no hook 'chekpoint' in the config, which has checkpoint, logger"),
    ('train_dataloader.dataset.metainfo.clases=[a]', 'Nearest: train_dataloader.dataset.metainfo.classes'),
    ('train_dataloader.dataset.pipeline.2.probability=1', 'RandomFlip does not take it. '
     'train_dataloader.dataset.pipeline.2 has prob, type'),
    ('val_evaluator.classwize=True', 'CocoMetric does not take it. Nearest: val_evaluator.classwise'),
])
def test_a_key_that_nothing_reads(option, message):
    with pytest.raises(LaunchError) as error:
        merged('apt_eva02_b_coco', option)
    text = str(error.value)
    assert text.startswith(f'--cfg-options: {option.split("=")[0]}: ') and message in text


def test_the_swallowed_arguments_of_a_metric():
    """IoUMetric takes any keyword and drops it."""
    with pytest.raises(LaunchError, match='val_evaluator.metric: .* IoUMetric does not take it'):
        merged('eva02_ti_demo_seg', 'val_evaluator.metric=mDice')


def test_all_mistakes_are_named_at_once():
    with pytest.raises(LaunchError, match=r'(?s)trian_cfg\.max_iters.*\nlr: '):
        merged('apt_eva02_b_coco', 'trian_cfg.max_iters=2', 'lr=1')


@pytest.mark.parametrize(('option', 'message'), [
    ('model.roi_head.bbox_head.num_classes=3', 'model.roi_head.bbox_head is a list of 3, say by an index of which: '
     'model.roi_head.bbox_head.0.num_classes, model.roi_head.bbox_head.1.num_classes, model.roi_head.bbox_head.2.num'),
    ('train_dataloader.dataset.pipeline.prob=1', 'is a list of 7, say by an index of which: '
     'train_dataloader.dataset.pipeline.0.prob'),
    ('param_scheduler.-1.end=3', 'param_scheduler is a list of 2'),
    ('train_dataloader.dataset.pipeline.99.prob=1', 'Index 99 exceeds the length of the list train_dataloader.dataset'),
    ('val_dataloader.dataset.pipeline.1.scale.0=9', 'is a tuple, give it whole: '
     'val_dataloader.dataset.pipeline.1.scale="[1536,1536]"'),
    ('val_dataloader.dataset.pipeline.0=LoadImageFromFile', 'val_dataloader.dataset.pipeline.0 is a dict, set an entry '
     'of it: val_dataloader.dataset.pipeline.0.type'),
])
def test_an_option_that_does_not_fit(option, message):
    with pytest.raises(LaunchError) as error:
        merged('apt_eva02_b_coco', option)
    assert str(error.value).startswith('--cfg-options: ') and message in str(error.value)


@pytest.mark.parametrize(('option', 'places'), [
    ('image_size=64', ['train_dataloader.dataset.pipeline.3.scale', 'train_dataloader.dataset.pipeline.4.crop_size',
                       'val_dataloader.dataset.pipeline.1.scale', 'test_dataloader.dataset.pipeline.1.scale']),
    ('data_root=/nowhere', ['train_dataloader.dataset.data_root', 'val_dataloader.dataset.data_root',
                            'test_dataloader.dataset.data_root', 'val_evaluator.ann_file', 'test_evaluator.ann_file']),
    ('max_iters=4', ['train_cfg.max_iters', 'param_scheduler.1.end', 'param_scheduler.1.milestones.0',
                     'param_scheduler.1.milestones.1']),
    ('img_mean=[1,2,3]', ['model.data_preprocessor.mean', 'model.backbone.img_mean']),
    ('train_pipeline.2.prob=0.2', ['train_dataloader.dataset.pipeline.2.prob']),
    ('dataset_type=CocoDataset', [f'{split}_dataloader.dataset.type' for split in ('train', 'val', 'test')]),
])
def test_a_name_that_only_other_lines_have_used(option, places):
    _, (warning,) = merged('apt_eva02_b_coco', option)
    assert f'changes nothing: only other lines of the config have used {option.split("=")[0].split(".")[0]}' in warning
    assert f'its value stands in {", ".join(places)}: set those' in warning


def test_names_of_several_files():
    """A child's own pipelines are computed from its own size; comprehensions are followed to the list they make."""
    _, (warning,) = merged('apt_eva02_l_coco_24gb', 'image_size=64')
    assert 'model.data_preprocessor.pad_size_divisor, model.backbone.img_size' in warning
    assert 'train_dataloader.dataset.pipeline' in warning and 'val_dataloader.dataset.pipeline' in warning
    _, (warning,) = merged('eva02_ti_demo_seg', 'classes=[a,b]')
    assert 'train_dataloader.dataset.metainfo.classes' in warning


def test_names_of_a_config_that_was_dumped(tmp_path, monkeypatch):
    load('apt_eva02_b_coco').dump(tmp_path / 'dump.py')
    cfg = Config.fromfile(tmp_path / 'dump.py')
    warning, = merge_options(cfg, {'data_root': '/nowhere'})
    for split in ('train', 'val', 'test'):
        assert f'{split}_dataloader.dataset.data_root' in warning


READ = [
    'optim_wrapper.paramwise_cfg.custom_keys.my_head.lr_mult=0.1',
    'model.backbone.max_tokens=7000', 'model.backbone.with_cp=True', 'model.backbone.init_cfg=None',
    'model.backbone.init_cfg.checkpoint=a.pth', 'model.init_cfg.type=Pretrained',
    'model.test_cfg.rcnn.score_thr=0.05', 'model.test_cfg.rcnn.maskness_thr=0.5', 'model.trainable=None',
    'model.roi_head.bbox_head.0.num_classes=3', 'model.roi_head.mask_head=None', 'optim_wrapper.clip_grad.max_norm=1',
    'optim_wrapper.accumulative_counts=4', 'optim_wrapper.optimizer.fused=True', 'optim_wrapper._delete_=True',
    'optim_wrapper.paramwise_cfg.norm_decay_mult=0', 'randomness.seed=1', 'randomness.deterministic=True',
    'train_dataloader.batch_sampler.type=TokenBalancedBatchSampler', 'train_dataloader.num_batch_per_epoch=3',
    'train_dataloader.prefetch_factor=4', 'train_dataloader.dataset.indices=4', 'train_dataloader=None',
    'train_dataloader.dataset.on_bad_annotation=raise', 'train_dataloader.dataset.lazy_init=False',
    'val_cfg.fp16=True', 'train_cfg.val_begin=3', 'default_hooks.checkpoint.save_best=auto',
    'custom_hooks.0.priority=3', 'default_hooks.mine.type=EMAHook', 'default_hooks.timer=None',
    'visualizer.vis_backends.0.type=TensorboardVisBackend',
    'visualizer.vis_backends.0.save_dir=here', 'find_unused_parameters=True', 'exact_resume=False',
    'requires_load_from=False', 'load_from=a.pth', 'work_dir=here', 'experiment_name=x', 'tta_model.type=DetTTAModel',
    'model_wrapper_cfg.type=MMDistributedDataParallel', 'auto_scale_lr.enable=True', 'env_cfg.dist_cfg.backend=gloo',
    'env_cfg.dist_cfg.timeout=30', 'val_evaluator.format_only=True', 'val_evaluator.outfile_prefix=x',
    'param_scheduler.0.convert_to_iter_based=True', 'log_processor.window_size=1', 'runner_type=FlexibleRunner',
    'strategy.type=SingleDeviceStrategy', 'custom_imports.imports=[apt_dense.mm.det]', 'val_evaluator=None',
    'train_dataloader.dataset.metainfo.classes=[a,b]', 'train_dataloader.dataset.data_prefix.img=x/',
]


@pytest.mark.parametrize('option', READ)
def test_keys_that_are_read_are_left_alone(option):
    assert merged('apt_eva02_b_coco', option)[1] == []


@pytest.mark.parametrize('option', [
    'model.test_cfg.mode=whole', 'model.decode_head.loss_decode.class_weight=[1,2]', 'val_evaluator.prefix=a',
    'model.decode_head.sampler.type=OHEMPixelSampler', 'tta_pipeline.0.type=X', 'test_evaluator.output_dir=x',
    'train_dataloader.dataset.img_suffix=.png', 'train_dataloader.dataset.pipeline.1.unknown_ids=ignore'])
def test_keys_of_segmentors(option):
    assert merged('apt_eva02_l_ade20k_512', option)[1] == []


def test_keys_that_the_configs_own_package_reads(tmp_path, monkeypatch):
    """The module that the config names may hand a key to another of its package; the class may be its own."""
    package = tmp_path / 'mine_of_this_test'
    package.mkdir()
    (package / '__init__.py').write_text('')
    (package / 'parts.py').write_text("def radius(cfg):\n    return cfg['own_radius_key']\n")
    (package / 'necks.py').write_text(
        'from mmdet.registry import MODELS\n\n\n@MODELS.register_module()\nclass NeckOfThisTest:\n'
        '    def __init__(self, settings):\n        pass\n')
    monkeypatch.syspath_prepend(tmp_path)
    cfg = load('apt_eva02_b_coco')
    cfg.custom_imports = dict(imports=[*cfg.custom_imports.imports, 'mine_of_this_test.necks'])
    importlib.import_module('mine_of_this_test.necks')
    cfg.model.test_cfg.own = dict()
    cfg.model.neck = dict(type='NeckOfThisTest', settings=dict())
    assert merge_options(cfg, {'model.test_cfg.own.own_radius_key': 1, 'own_radius_key': 2,
                               'model.neck.settings.what_no_code_has': 1}) == []
    with pytest.raises(LaunchError, match='nothing reads it'):
        merge_options(cfg, {'model.test_cfg.own.what_no_code_has': 1})


def test_no_check_makes_warnings_of_keys_that_nothing_reads(tmp_path, capsys):
    parser = argparse.ArgumentParser()
    launch.add_common_arguments(parser)
    launch.add_check_argument(parser)
    parser.add_argument('config')
    command = [str(CONFIGS / 'apt_eva02_b_coco.py'), '--cfg-options', 'optim_wrapper.lr=0.1']
    with pytest.raises(LaunchError, match='OptimWrapper does not take it'):
        launch.load_config(parser.parse_args(command))
    assert launch.load_config(parser.parse_args([*command, '--no-check'])).optim_wrapper.lr == 0.1
    assert 'warning: --cfg-options optim_wrapper.lr: ' in capsys.readouterr().err


def test_the_type_that_an_option_sets_is_asked():
    backend = 'visualizer.vis_backends.0.'
    assert merged('apt_eva02_b_coco', f'{backend}type=WandbVisBackend', f'{backend}init_kwargs.project=x')[1] == []
    with pytest.raises(LaunchError, match='init_kwargs.project: .* LocalVisBackend does not take it'):
        merged('apt_eva02_b_coco', f'{backend}init_kwargs.project=x')
    assert merged('apt_eva02_b_coco', 'optim_wrapper.type=AmpOptimWrapper', 'optim_wrapper.dtype=bfloat16')[1] == []
    with pytest.raises(LaunchError, match='optim_wrapper.dtype: .* OptimWrapper does not take it'):
        merged('apt_eva02_b_coco', 'optim_wrapper.dtype=bfloat16')


def test_the_tools_print_the_warning_once(capsys):
    parser = argparse.ArgumentParser()
    parser.add_argument('config')
    launch.add_common_arguments(parser)
    args = parser.parse_args([str(CONFIGS / 'apt_eva02_b_coco.py'), '--cfg-options', 'image_size=64'])
    launch.load_config(args)
    printed = capsys.readouterr().err
    assert printed.startswith('warning: --cfg-options image_size=64 changes nothing') and printed.count('\n') == 1


@pytest.mark.parametrize(('option', 'message'), [
    ('train_cfg.max_iters', "--cfg-options got 'train_cfg.max_iters', wanted KEY=VALUE"),
    *((f'model.neck={value}', f"--cfg-options got 'model.neck={value}', wanted each entry of a dict as an option: "
       'model.neck.NAME=VALUE') for value in ('dict(type=A)', 'dict(type=A,kept=0.7)', '{type: A, kept: 0.7}')),
    *((f'model.neck={value}', f"--cfg-options got 'model.neck={value}', wanted one value or a list such as [1,2]")
      for value in ('(1,2', '[1,2)', 'f(1,2)'))])
def test_an_option_that_cannot_be_read(option, message, capsys):
    parser = argparse.ArgumentParser()
    launch.add_common_arguments(parser)
    with pytest.raises(SystemExit):
        parser.parse_args(['--cfg-options', option])
    assert message in capsys.readouterr().err
