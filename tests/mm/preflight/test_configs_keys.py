"""Keys in the files of a config that nothing takes, below dicts with a type and without."""
import importlib
from pathlib import Path

import pytest
from mmengine.config import Config

from apt_dense.mm.preflight.configs_keys import check_keys
from apt_dense.mm.preflight.configs_metrics import check_metrics
from apt_dense.mm.preflight.configs_types import UNKNOWN, check_types
from apt_dense.mm.preflight.findings import STOP

CONFIGS = Path(__file__).parents[3] / 'configs'
SPLITS = ('train', 'val', 'test')


def found(tmp_path: Path, code: str, base: str = 'eva02_ti_demo_det', splits=SPLITS) -> dict[str, str]:
    """{key: message} of a child's file."""
    (tmp_path / 'child.py').write_text(f"_base_ = '{CONFIGS}/{base}.py'\n{code}\n")
    return {finding.where: str(finding) for finding in check_keys(Config.fromfile(tmp_path / 'child.py'), splits)}


@pytest.mark.parametrize(('code', 'key', 'said'), [
    ('model = dict(backbone=dict(img_sz=32))', 'model.backbone.img_sz', 'EVA02 does not take it; nearest: img_size'),
    ('model = dict(bakbone=dict(depth=2))', 'model.bakbone', 'CascadeRCNN does not take it; nearest: backbone'),
    ('train_dataloader = dict(batchsize=2)', 'train_dataloader.batchsize', 'nothing reads it; nearest: batch_size'),
    ('train_dataloader = dict(num_worker=2)', 'train_dataloader.num_worker', 'nearest: num_workers'),
    ('train_dataloader = dict(dataset=dict(anno_file="a.json"))', 'train_dataloader.dataset.anno_file',
     'CheckedCocoDataset does not take it; nearest: ann_file'),
    ('train_dataloader = dict(sampler=dict(shufle=True))', 'train_dataloader.sampler.shufle', 'nearest: shuffle'),
    ('optim_wrapper = dict(clip_gradd=dict(max_norm=1))', 'optim_wrapper.clip_gradd', 'nearest: clip_grad'),
    ('optim_wrapper = dict(optimizer=dict(weight_decy=0.1))', 'optim_wrapper.optimizer.weight_decy', 'weight_decay'),
    ('optim_wrapper = dict(clip_grad=dict(max_nrom=1.0))', 'optim_wrapper.clip_grad.max_nrom', 'nearest: max_norm'),
    ('train_cfg = dict(max_iter=3)', 'train_cfg.max_iter', 'nearest: max_iters'),
    ('train_cfg = dict(max_epochs=3)', 'train_cfg.max_epochs', 'IterBasedTrainLoop does not take it'),
    ('val_cfg = dict(fp61=True)', 'val_cfg.fp61', 'nearest: fp16'),
    ('val_evaluator = dict(classwize=True)', 'val_evaluator.classwize', 'nearest: classwise'),
    ('randomness = dict(sed=3)', 'randomness.sed', 'nearest: seed'),
    ('default_hooks = dict(checkpoint=dict(intervall=5))', 'default_hooks.checkpoint.intervall',
     'CheckpointHook does not take it; nearest: interval'),
    ('default_hooks = dict(logger=dict(intervall=5))', 'default_hooks.logger.intervall', 'nearest: interval'),
    ('default_hooks = dict(timer=dict(interval=5))', 'default_hooks.timer.interval', 'IterTimerHook does not take it'),
    ("custom_hooks = [dict(type='EMAHook', momentun=0.1)]", 'custom_hooks.0.momentun', 'nearest: momentum'),
    ("custom_hooks = [dict(type='EarlyStoppingHook', monitor='coco/bbox_mAP', pateince=3)]",
     'custom_hooks.0.pateince', 'nearest: patience'),
    ("visualizer = dict(vis_backends=[dict(type='LocalVisBackend', save_dirs='x')])",
     'visualizer.vis_backends.0.save_dirs', 'nearest: save_dir'),
    ("param_scheduler = [dict(type='LinearLR', start_facter=0.1)]", 'param_scheduler.0.start_facter', 'start_factor'),
    ('default_hooks = dict(chekpoint=dict(interval=5))', 'default_hooks.chekpoint', 'nearest: checkpoint'),
])
def test_a_key_that_stops(tmp_path, code, key, said):
    messages = found(tmp_path, code)
    message = messages.pop(key)
    assert messages == {} and said in message and '[key-not-taken]' in message


def test_a_step_of_a_pipeline(tmp_path):
    messages = found(tmp_path, (
        "pipeline = [dict(type='LoadImageFromFile', to_floa32=True), dict(type='LoadAnnotations', with_masks=True),\n"
        "    dict(type='RandomResize', scale=(9, 9), keepratio=True), dict(type='RandomFlip', probability=0.5),\n"
        "    dict(type='RandomApply', transforms=[dict(type='RandomFlip', porb=1)]), dict(type='PackDetInputs')]\n"
        "train_dataloader = dict(dataset=dict(type='RepeatDataset', times=1, dataset=dict(\n"
        "    type='CocoDataset', ann_file='a', pipeline=pipeline), _delete_=True))"))
    steps = 'train_dataloader.dataset.dataset.pipeline'
    assert {key: message.partition('nearest: ')[2].partition('.')[0].partition(',')[0]
            for key, message in messages.items()} == {
        f'{steps}.0.to_floa32': 'to_float32', f'{steps}.1.with_masks': 'with_mask',
        f'{steps}.2.keepratio': 'keep_ratio',
        f'{steps}.3.probability': '', f'{steps}.4.transforms.0.porb': 'prob'}


@pytest.mark.parametrize(('code', 'key', 'rule', 'said'), [
    ("val_evaluator = dict(iou_metric=['mDice'])", 'val_evaluator.iou_metric', 'key-not-taken',
     'drops it; nearest: iou_metrics'),
    ("val_evaluator = dict(dice=True)", 'val_evaluator.dice', 'key-nobody-reads', 'drops it; it takes '),
    ('model = dict(test_cfg=dict(strid=(3, 3)))', 'model.test_cfg.strid', 'key-nobody-reads', 'nothing reads it'),
    ('model = dict(test_cfg=dict(mode="slide", stride=(3, 3), stridee=(3, 3)))', 'model.test_cfg.stridee',
     'key-nobody-reads', 'nothing reads it; nearest: stride'),
    ("train_dataloader = dict(dataset=dict(metainfo=dict(clases=('a',))))",
     'train_dataloader.dataset.metainfo.clases', 'key-nobody-reads', 'nearest: classes'),
    ('env_cfg = dict(cudnn_benchmrk=True)', 'env_cfg.cudnn_benchmrk', 'key-nobody-reads', 'nearest: cudnn_benchmark'),
    ('auto_scale_lr = dict(base_batchsize=16)', 'auto_scale_lr.base_batchsize', 'key-nobody-reads', 'base_batch_size'),
])
def test_a_key_that_is_dropped_without_a_word(tmp_path, code, key, rule, said):
    messages = found(tmp_path, code, 'eva02_ti_demo_seg')
    message = messages.pop(key)
    assert messages == {} and said in message and f'[{rule}]' in message


@pytest.mark.parametrize(('code', 'base'), [
    ("default_hooks = dict(checkpoint=dict(save_param_scheduler=False, published_keys=['meta']))", 'eva02_ti_demo_det'),
    ("custom_hooks = [dict(type='EMAHook', ema_type='ExpMomentumEMA', gamma=100, update_buffers=True)]",
     'eva02_ti_demo_det'),
    ("val_evaluator = dict(ann_file='x', backend_args=dict(backend='local'))", 'eva02_ti_demo_det'),
    ("optim_wrapper = dict(type='AmpOptimWrapper', loss_scale=dict(init_scale=8, growth_interval=3), "
     "dtype='bfloat16', accumulative_counts=2)", 'eva02_ti_demo_det'),
    ("model = dict(decode_head=dict(norm_cfg=dict(type='BN', requires_grad=True, eps=1e-3, momentum=0.1)))",
     'eva02_ti_demo_seg'),
    ("visualizer = dict(vis_backends=[dict(type='WandbVisBackend', init_kwargs=dict(project='x', anything=1))])",
     'eva02_ti_demo_det'),
    ("train_dataloader = dict(dataset=dict(metainfo=dict(classes=('a', 'b'), palette=[(1, 2, 3)] * 2)))",
     'eva02_ti_demo_seg'),
    ("model = dict(decode_head=dict(loss_decode=dict(loss_name='loss_own', class_weight=[1.0, 2.0])))",
     'eva02_ti_demo_seg'),
])
def test_keys_that_go_on_to_others(tmp_path, code, base):
    assert found(tmp_path, code, base) == {}


def test_augmentation_in_testing_that_may_not_be_used_is_a_warning(tmp_path):
    messages = found(tmp_path, "tta_model = dict(type='SegTTAModel', modul=1)", 'eva02_ti_demo_seg')
    assert list(messages) == ['tta_model.modul'] and '[key-nobody-reads]' in messages['tta_model.modul']


def test_only_what_the_splits_use(tmp_path):
    code = 'optim_wrapper = dict(clip_gradd=1)\nval_dataloader = dict(batchsize=1)\ntest_cfg = dict(fp61=True)'
    assert set(found(tmp_path, code, splits=('train', 'val'))) == {'optim_wrapper.clip_gradd',
                                                                   'val_dataloader.batchsize'}
    assert set(found(tmp_path, code, splits=('test',))) == {'test_cfg.fp61'}


def test_what_a_class_of_ones_own_may_take_out_is_a_warning(tmp_path, monkeypatch):
    (tmp_path / 'heads_of_this_test.py').write_text(
        'from mmdet.registry import MODELS\n\n\n@MODELS.register_module()\nclass OddNeckOfThisTest:\n'
        '    def __init__(self, conv):\n        pass\n')
    monkeypatch.syspath_prepend(tmp_path)
    importlib.import_module('heads_of_this_test')
    messages = found(tmp_path, (
        "model = dict(neck=dict(_delete_=True, type='OddNeckOfThisTest', convv=1,\n"
        "    conv=dict(type='ReLU', inplase=True)))"))
    assert '[key-not-taken]' in messages['model.neck.convv'] and 'nearest: conv' in messages['model.neck.convv']
    assert '[key-nobody-reads]' in messages['model.neck.conv.inplase'] and len(messages) == 2


def test_keys_that_the_class_above_takes_out(tmp_path):
    """DETR's head takes bg_cls_weight out of its loss, ResNet's blocks fallback_on_stride out of dcn."""
    assert found(tmp_path, (
        "model = dict(backbone=dict(_delete_=True, type='ResNet', depth=50,\n"
        "    dcn=dict(type='DCN', deform_groups=1, fallback_on_stride=False)),\n"
        "    rpn_head=dict(_delete_=True, type='DETRHead', num_classes=3,\n"
        "    loss_cls=dict(type='CrossEntropyLoss', bg_cls_weight=0.1)))")) == {}


@pytest.mark.parametrize('name', [
    'mmdet/detr/detr_r50_8xb2-150e_coco', 'mmdet/fpg/faster-rcnn_r50_fpg-chn128_crop640-50e_coco',
    'mmdet/vfnet/vfnet_r50-mdconv-c3-c5_fpn_ms-2x_coco', 'mmdet/albu_example/mask-rcnn_r50_fpn_albu-1x_coco',
    'mmdet/dcn/cascade-mask-rcnn_r50-dconv-c3-c5_fpn_1x_coco', 'mmdet/yolox/yolox_s_8xb8-300e_coco',
    'mmdet/rtmdet/rtmdet-ins_tiny_8xb32-300e_coco', 'mmdet/deformable_detr/deformable-detr_r50_16xb2-50e_coco',
    'mmdet/queryinst/queryinst_r50_fpn_1x_coco', 'mmdet/seesaw_loss/mask-rcnn_r50_fpn_seesaw-loss_random-ms-2x_lvis-v1',
    'mmseg/segformer/segformer_mit-b0_8xb2-160k_ade20k-512x512',
    'mmseg/ocrnet/ocrnet_hr18_4xb2-40k_cityscapes-512x1024',
    'mmseg/knet/knet-s3_r50-d8_upernet_8xb2-adamw-80k_ade20k-512x512',
    'mmseg/pidnet/pidnet-s_2xb6-120k_1024x1024-cityscapes',
    'mmseg/mask2former/mask2former_swin-t_8xb2-160k_ade20k-512x512'])
def test_the_libraries_own_configs_are_not_refused(name):
    library, _, path = name.partition('/')
    file = Path(importlib.import_module(library).__file__).parent / f'.mim/configs/{path}.py'
    if not file.is_file():
        pytest.skip(f'{library} is installed without its configs')
    cfg = Config.fromfile(file)
    found = [finding for finding in (*check_types(cfg, SPLITS), *check_keys(cfg, SPLITS), *check_metrics(cfg, SPLITS))
             if finding.rule.severity == STOP or finding.rule is UNKNOWN]
    assert found == []
