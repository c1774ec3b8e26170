"""Every config builds; sizes are the published ones; an APT config differs from its dense twin only where it should."""
import json
import re
from pathlib import Path

import numpy as np
import pytest
import torch
from mmengine.config import Config
from mmengine.optim import build_optim_wrapper
from mmengine.registry import DATASETS, METRICS, MODELS, PARAM_SCHEDULERS, TRANSFORMS, DefaultScope
from mmengine.runner import Runner

from apt_dense.core.conversion import convert
from apt_dense.core.embed import ADDED_PARAMETERS
from apt_dense.core.normalisation import CLIP_MEAN, CLIP_STD, HALF_MEAN, HALF_STD, IMAGENET_MEAN, IMAGENET_STD
from apt_dense.mm.cli import precision
from tests.locations import CONFIGS
from tests.official import official_state

LEAVES = sorted(path.stem for path in CONFIGS.glob('*.py'))
BACKBONE_MILLIONS = {'b': 86, 'l': 304, 'h': 631}  # published sizes
ADDED = set(ADDED_PARAMETERS)
SHORT = {'pretrained', 'model.backbone.init_cfg', 'train_cfg', 'param_scheduler', 'optim_wrapper', 'max_iters',
         'requires_load_from', 'added_parameters', 'model.trainable'}
ADDED_ONLY = SHORT | {'custom_hooks'}
SMALLER = {'image_size', 'train_pipeline', 'test_pipeline', 'train_dataloader.dataset.pipeline',
           'val_dataloader.dataset.pipeline', 'test_dataloader.dataset.pipeline', 'model.backbone.img_size',
           'model.data_preprocessor.pad_size_divisor'}
SEGMENTORS = ('b_ade20k_512', 'l_ade20k_512', 'l_ade20k_640')
MODELS_OF_PAPER = (*SEGMENTORS, 'b_coco', 'l_coco')
OTHERS = ('dinov2_l_ade20k_512', 'mae_l_ade20k_512', *(
    f'dinov3_{size}_{task}' for size in 'bl' for task in ('coco_1024', 'coco_1536', 'ade20k_512', 'ade20k_640',
                                                          'ade20k_896')))
CLASSIFIERS = ('b_in1k_224', 'b_in1k_384', 'l_in1k_224', 'l_in1k_336', 'h_in1k_224', 'h_in1k_336', 'b_in1k_384_full',
               'l_in1k_336_full', 'l_in1k_448_full')
# (APT config, its dense twin, the settings in which they may differ besides APT's own).
PAIRS = [
    *((f'apt_eva02_{model}_full', f'eva02_{model}', set()) for model in MODELS_OF_PAPER),
    *((f'apt_eva02_{model}', f'eva02_{model}', ADDED_ONLY) for model in MODELS_OF_PAPER),
    *((f'apt_eva02_{model}_entire', f'eva02_{model}', SHORT) for model in MODELS_OF_PAPER),
    ('apt_eva02_b_coco_24gb', 'eva02_b_coco', ADDED_ONLY | {
        'model.backbone.with_cp', 'train_dataloader.batch_size', 'accumulative_counts'}),
    ('apt_eva02_l_coco_24gb', 'eva02_l_coco', ADDED_ONLY | SMALLER | {
        'train_dataloader.batch_size', 'accumulative_counts'}),
    *((f'apt_{model}', model, SHORT) for model in OTHERS),
    *((f'apt_vit_{model}', f'vit_{model}', set()) for model in CLASSIFIERS),
    ('apt_vit_ti_demo_cls', 'vit_ti_demo_cls', SHORT | {'default_hooks.checkpoint'}),
    *((f'apt_{model}', model, set()) for model in ('eva02_ti_demo_det', 'eva02_ti_demo_seg', 'dinov3_ti_demo_seg')),
    ('apt_eva02_ti_demo_det_tracked', 'eva02_ti_demo_det',
     {'default_hooks.checkpoint', 'custom_hooks', 'train_cfg.val_interval', 'vis_backends', 'visualizer'}),
]
APT_SETTINGS = {f'{place}.{name}' for place in ('patches', 'model.backbone') for name in ('num_scales', 'thresholds')}
OURS = ('scorer', 'proportional_attention')  # not in the paper
CHOICES = {f'{place}.{name}' for place in ('patches', 'model.backbone') for name in OURS} | {
    f'patches_{choice}.{name}' for choice in ('half', 'paper') for name in ('num_scales', 'thresholds', *OURS)}


def load(name: str) -> Config:
    return Config.fromfile(CONFIGS / f'{name}.py')


def build_meta(cfg: Config) -> torch.nn.Module:
    with torch.device('meta'), scope_of(cfg):
        return MODELS.build(cfg.model)


def scope_of(cfg: Config):
    return DefaultScope.overwrite_default_scope(cfg.default_scope)


def flat(node, prefix: str = '') -> dict:
    """Nested dicts -> {'a.b.c': value}."""
    if not isinstance(node, dict) or not node:
        return {prefix: node}
    return {key: value for name, child in node.items()
            for key, value in flat(child, f'{prefix}.{name}'.lstrip('.')).items()}


def test_leaf_configs_are_short_and_paired():
    for name in LEAVES:
        assert len((CONFIGS / f'{name}.py').read_text().splitlines()) < 40, name
    assert {name for name in LEAVES if name.startswith('apt')} == {apt for apt, _, _ in PAIRS}


def test_what_many_configs_share_stands_once():
    """... so that one change reaches them all: scales and thresholds, and the list of the added parameters."""
    texts = {path.relative_to(CONFIGS).as_posix(): path.read_text() for path in CONFIGS.rglob('*.py')}
    found = {text: sorted(path for path in texts if text in texts[path])
             for text in ('num_scales=', 'thresholds=', 'conv_down', 'zero_mlp')}
    patches = sorted(path for path in texts if path.startswith('_base_/patches/'))
    dense = ['_base_/models/cascade_mask_rcnn_eva02.py', '_base_/models/upernet_eva02.py', '_base_/models/vit_cls.py']
    assert found['num_scales='] == found['thresholds='] == dense + patches
    assert found['conv_down'] == found['zero_mlp'] == ['_base_/schedules/apt_short.py']


def test_full_fine_tuning_is_two_lines_on_the_dense_twin():
    for model in MODELS_OF_PAPER:
        *comment, base, patches = (CONFIGS / f'apt_eva02_{model}_full.py').read_text().splitlines()
        assert all(line.startswith('#') for line in comment)
        assert base.startswith(f"_base_ = ['./eva02_{model}.py', '_base_/patches/")
        assert patches == 'model = dict(backbone=dict(_base_.patches, proportional_attention=False))'


@pytest.mark.parametrize('name', LEAVES)
def test_model_and_optimiser(name):
    cfg = load(name)
    model = build_meta(cfg)
    size = name.removeprefix('apt_').split('_')[1]
    parameters = dict(model.backbone.named_parameters())
    if size in BACKBONE_MILLIONS:
        dense = sum(parameter.numel() for key, parameter in parameters.items() if key not in ADDED)
        assert dense / 1e6 == pytest.approx(BACKBONE_MILLIONS[size], abs=1)
    assert ADDED & parameters.keys() == (ADDED if name.startswith('apt') else set())
    precision.set_amp(cfg, amp=False)  # AmpOptimWrapper wants a GPU
    wrapper = build_optim_wrapper(model, cfg.optim_wrapper)
    optimised = [id(parameter) for group in wrapper.optimizer.param_groups for parameter in group['params']
                 if parameter.requires_grad]
    assert sorted(optimised) == sorted(id(parameter) for parameter in model.parameters() if parameter.requires_grad)
    for scheduler in cfg.param_scheduler:
        PARAM_SCHEDULERS.build(dict(scheduler, optimizer=wrapper, **(
            dict(epoch_length=10) if scheduler.get('convert_to_iter_based') else {})))


@pytest.mark.parametrize('name', [name for name in LEAVES if name.startswith('apt')])
def test_the_resizing_baseline_is_an_option(name):
    cfg = load(name)
    cfg.merge_from_dict({'model.backbone.detail_branch': 'none'})
    model = build_meta(cfg).eval()
    assert not ADDED & dict(model.backbone.named_parameters()).keys()
    assert model.backbone.chooser.thresholds == cfg.model.backbone.thresholds


@pytest.mark.parametrize('name', [name for name in LEAVES if 'in1k' not in name and not name.endswith('_cls')])
def test_datasets_pipelines_and_evaluator(name, tmp_path):
    cfg = load(name)
    annotations = tmp_path / 'instances.json'
    annotations.write_text(json.dumps(dict(images=[], annotations=[], categories=[])))
    detects = cfg.default_scope == 'mmdet'
    heads = ((cfg.model.roi_head.mask_head, *cfg.model.roi_head.bbox_head) if detects
             else (cfg.model.decode_head, cfg.model.auxiliary_head))
    for split in ('train', 'val', 'test'):
        loader = cfg[f'{split}_dataloader']
        with scope_of(cfg):
            dataset = DATASETS.build(dict(loader.dataset, lazy_init=True))
        assert dataset.pipeline.transforms
        num_classes = len(dataset.metainfo['classes'])
        assert {head.num_classes for head in heads} == {num_classes}
        if not detects:
            maps = [transform for transform in loader.dataset.pipeline if transform.type == 'LoadLabelMap']
            assert [transform.num_classes for transform in maps] == [num_classes]
    for split in ('val', 'test'):
        evaluator = cfg[f'{split}_evaluator']
        with scope_of(cfg):
            if not detects:
                assert METRICS.build(evaluator).metrics == ['mIoU']
                continue
            assert evaluator.ann_file == cfg.val_dataloader.dataset.data_root + cfg.val_dataloader.dataset.ann_file
            assert METRICS.build(dict(evaluator, ann_file=str(annotations))).metrics == ['bbox', 'segm']


@pytest.mark.parametrize('name', [name for name in LEAVES if 'in1k' in name or name.endswith('_cls')])
def test_datasets_of_the_classifiers(name):
    """One size in the pipelines, the backbone and its table, and one number of classes everywhere."""
    cfg = load(name)
    size = 192 if 'demo' in name else int(re.search(r'in1k_(\d+)', name)[1])
    assert cfg.model.backbone.img_size == cfg.model.backbone.pretrain_img_size == size
    assert size % (cfg.model.backbone.get('patch_size', 16) * 2**(cfg.model.backbone.num_scales - 1)) == 0
    image = np.zeros((size + 20, size + 60, 3), np.uint8)
    for split in ('train', 'val', 'test'):
        settings = cfg[f'{split}_dataloader'].dataset
        with scope_of(cfg):
            steps = [TRANSFORMS.build(step) for step in settings.pipeline if step.type.startswith('torchvision/')]
        assert settings.num_classes == cfg.model.num_classes == cfg.model.data_preprocessor.num_classes
        results = dict(img=image)
        for step in steps:
            results = step(results)
        assert results['img'].shape[:2] == (size, size) or 'demo' in name and not steps
    with scope_of(cfg):
        assert METRICS.build(cfg.val_evaluator).topk == METRICS.build(cfg.test_evaluator).topk == (1, 5)


@pytest.mark.parametrize('name', [name for name in LEAVES if 'ade20k' in name])
def test_crops_fit_the_models(name):
    """The crop is one size in the pipeline, the padding, the backbone, its table and slide inference."""
    cfg, size = load(name), int(re.search(r'ade20k_(\d+)', name)[1])
    crop = next(transform for transform in cfg.train_pipeline if transform.type == 'RandomCrop')
    preprocessor, backbone, test_cfg = cfg.model.data_preprocessor, cfg.model.backbone, cfg.model.test_cfg
    assert crop.crop_size == preprocessor.size == test_cfg.crop_size == (size, size)
    assert backbone.img_size == backbone.get('pretrain_img_size', size) == size
    assert test_cfg.mode == 'slide' and test_cfg.stride == ({512: 341, 640: 426, 896: 597}[size],) * 2


@pytest.mark.parametrize('name', [name for name in LEAVES if 'dinov3' in name and 'coco' in name])
def test_sizes_of_the_detectors_on_dinov3(name):
    """One size in both pipelines, the padding and the backbone; windows that hold whole patches of 128 px."""
    cfg, size = load(name), int(name[-4:])
    for pipeline in (cfg.train_pipeline, cfg.test_pipeline, cfg.train_dataloader.dataset.pipeline,
                     cfg.test_dataloader.dataset.pipeline):
        sizes = {value for step in pipeline for key in ('scale', 'crop_size') for value in step.get(key, ())}
        assert sizes == {size}
    assert cfg.model.backbone.img_size == cfg.model.data_preprocessor.pad_size_divisor == size
    backbone = build_meta(cfg).backbone
    assert backbone.window_size % 8 == 0 and len(backbone.global_blocks) == 4 and backbone.num_prefix == 5


@pytest.mark.parametrize('name', LEAVES)
def test_ranks_wait_for_the_evaluation_of_the_first(name):
    """Published settings take COCO's evaluation eight minutes on one CPU; NCCL gives up after ten."""
    assert load(name).env_cfg.dist_cfg == dict(backend='nccl', timeout=7200)  # seconds


def test_the_smaller_detector_is_smaller_everywhere():
    """1536 px becomes 1024 px in both pipelines, the padding and the backbone; nothing else of them changes."""
    def at_1024(node):
        if isinstance(node, dict):
            return {key: at_1024(child) for key, child in node.items()}
        if isinstance(node, list | tuple):
            return [at_1024(child) for child in node]
        return 1024 if node == 1536 else node

    small, full = (load(name).to_dict() for name in ('apt_eva02_l_coco_24gb', 'apt_eva02_l_coco'))
    assert '1536' in str(full) and '1536' not in str(small)
    assert at_1024(small['model']) == at_1024(full['model'])
    for split in ('train', 'val', 'test'):
        pipelines = [cfg[f'{split}_dataloader']['dataset']['pipeline'] for cfg in (small, full)]
        assert at_1024(pipelines[0]) == at_1024(pipelines[1])


@pytest.mark.parametrize(('name', 'twin', 'allowed'), PAIRS, ids=[pair[0] for pair in PAIRS])
def test_apt_differs_from_its_dense_twin_only_where_it_should(name, twin, allowed):
    apt, dense = flat(load(name).to_dict()), flat(load(twin).to_dict())
    different = {key for key in apt.keys() | dense.keys() if apt.get(key, '-') != dense.get(key, '-')}
    unexpected = {key for key in different - APT_SETTINGS - CHOICES
                  if not any(key == setting or key.startswith(f'{setting}.') for setting in allowed)}
    assert not unexpected
    assert different >= APT_SETTINGS


@pytest.mark.parametrize('name', [name for name in LEAVES if name.startswith('apt')])
def test_a_scorer_and_its_thresholds(name):
    """Bits for the entropy; squared errors of 0..1 images, one number for all sizes, for what replaces it."""
    cfg = load(name)
    for patches in (cfg.model.backbone, *(cfg.get(f'patches_{choice}') for choice in ('half', 'paper'))):
        if patches is None:
            continue
        thresholds = patches.thresholds
        counted = patches.get('scorer', 'entropy') != 'entropy' and 'demo' not in name
        counted &= patches is not cfg.model.backbone or not name.endswith('_full')
        assert patches.get('proportional_attention', False) == counted
        if patches.get('scorer', 'entropy') == 'entropy':
            assert all(0.3 <= threshold < 7 for threshold in thresholds)
        else:
            assert len(set(thresholds)) == 1 and 1e-6 < thresholds[0] < 2e-3
    assert ('coco' in name or 'eva02' in name and 'demo' not in name) == ('patches_half' in cfg)
    if 'patches_half' in cfg:
        assert cfg.model.backbone.thresholds < cfg.patches_half.thresholds  # it keeps more


def test_the_papers_patches_are_one_line(tmp_path):
    (tmp_path / 'own.py').write_text(f"""_base_ = '{CONFIGS}/apt_eva02_l_coco.py'
model = dict(backbone=_base_.patches_paper)
""")
    backbone = Config.fromfile(tmp_path / 'own.py').model.backbone
    assert (backbone.scorer, backbone.thresholds, backbone.embed_dims) == ('entropy', (2, 2, 0.3), 1024)
    assert not backbone.proportional_attention


@pytest.mark.parametrize('size', ['b', 'l'])
def test_the_recipes_figures(size):
    dense, short, full = (load(name.format(size)) for name in (
        'eva02_{}_coco', 'apt_eva02_{}_coco', 'apt_eva02_{}_coco_full'))
    assert (dense.train_cfg.max_iters, short.train_cfg.max_iters) == (60000, 3000)
    assert dense.param_scheduler[1].milestones == [48000, 54000]
    assert dense.optim_wrapper.paramwise_cfg.layer_decay_rate == {'b': 0.7, 'l': 0.8}[size]
    assert dense.auto_scale_lr.base_batch_size == short.auto_scale_lr.base_batch_size == 128
    assert full.patches == short.patches
    assert dict(full.patches, proportional_attention=False).items() <= dict(full.model.backbone).items()
    assert short.patches_paper == dict(num_scales=4, scorer='entropy', thresholds=(2, 2, 0.3),
                                       proportional_attention=False)
    assert short.requires_load_from and short.load_from is None
    published = dense.model.test_cfg.rcnn
    assert (published.nms.type, published.nms.iou_threshold, published.score_thr) == ('soft_nms', 0.6, 0.0)


@pytest.mark.parametrize(('model', 'iters', 'lr', 'decay', 'batch', 'channels', 'out_indices'), [
    ('b_ade20k_512', 60000, 6e-5, 0.85, 32, (768, 256), (3, 5, 7, 11)),
    ('l_ade20k_512', 80000, 4e-5, 0.9, 16, (1024, 256), (7, 11, 15, 23)),
    ('l_ade20k_640', 80000, 4e-5, 0.9, 16, (1536, 1536), (7, 11, 15, 23)),
])
def test_the_segmentation_recipes_figures(model, iters, lr, decay, batch, channels, out_indices):
    dense, short = load(f'eva02_{model}'), load(f'apt_eva02_{model}')
    assert (dense.train_cfg.max_iters, short.train_cfg.max_iters) == (iters, iters // 20)
    assert dense.optim_wrapper.optimizer.lr == short.optim_wrapper.optimizer.lr == lr
    assert dense.optim_wrapper.optimizer.weight_decay == 0.05
    assert dense.optim_wrapper.paramwise_cfg.layer_decay_rate == decay
    assert dense.auto_scale_lr.base_batch_size == short.auto_scale_lr.base_batch_size == batch
    assert (dense.model.decode_head.channels, dense.model.auxiliary_head.channels) == channels
    assert dense.model.backbone.out_indices == out_indices
    assert dense.model.backbone.drop_path_rate == (0.15 if model.startswith('b') else 0.2)
    assert dense.model.decode_head.pool_scales == (1, 2, 3, 6) and dense.model.decode_head.dropout_ratio == 0.1
    assert dense.model.auxiliary_head.loss_decode.loss_weight == 0.4 and dense.model.auxiliary_head.in_index == 2
    assert [cfg.param_scheduler[0].end for cfg in (dense, short)] == [1500, 75]
    assert dense.train_dataloader.batch_size == short.train_dataloader.batch_size == (8 if model.startswith('b') else 2)
    resize = next(step for step in dense.train_pipeline if step.type == 'RandomResize')
    assert resize.ratio_range == (0.5, 2.0) and resize.scale == (2048, dense.crop_size[0])
    with scope_of(dense):
        assert DATASETS.build(dict(dense.train_dataloader.dataset, lazy_init=True)).reduce_zero_label
    full = load(f'apt_eva02_{model}_full')
    assert full.patches == short.patches
    assert dict(full.patches, proportional_attention=False).items() <= dict(full.model.backbone).items()
    assert short.patches_paper == dict(
        num_scales=3, scorer='entropy', thresholds=(5.75, 4.0), proportional_attention=False)
    assert short.requires_load_from and short.load_from is None


def test_the_segmentation_schedule():
    """The official rate at iteration t: base * (1 - t / T), during the warm-up times the warm-up's factor."""
    cfg = load('eva02_l_ade20k_512')
    optimizer = torch.optim.AdamW([torch.nn.Parameter(torch.zeros(1))], lr=4e-5)
    schedulers = [PARAM_SCHEDULERS.build(dict(scheduler, optimizer=optimizer)) for scheduler in cfg.param_scheduler]
    rates = []
    for _ in range(2001):
        rates.append(optimizer.param_groups[0]['lr'])
        optimizer.step()
        for scheduler in schedulers:
            scheduler.step()
    for t in (0, 1, 700, 1498, 1600, 2000):
        warm = min(1, 1e-6 + (1 - 1e-6) * t / 1499)
        assert rates[t] == pytest.approx(4e-5 * (1 - t / 80000) * warm, rel=1e-6), t


@pytest.mark.parametrize('name', ['apt_eva02_b_coco', 'apt_eva02_b_ade20k_512'])
def test_short_fine_tuning_optimises_the_added_parameters_only(name):
    cfg = load(name)
    model = build_meta(cfg)
    wrapper = build_optim_wrapper(model, cfg.optim_wrapper)
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    optimised = {names[id(parameter)] for group in wrapper.optimizer.param_groups for parameter in group['params']
                 if parameter.requires_grad}
    assert optimised == {f'backbone.{name}' for name in ADDED}


@pytest.mark.parametrize(('name', 'iters', 'lr'), [
    ('b_coco', 60000, 5e-5), ('l_coco', 60000, 5e-5), ('b_ade20k_512', 60000, 6e-5), ('l_ade20k_512', 80000, 4e-5),
    ('l_ade20k_640', 80000, 4e-5)])
def test_fine_tuning_the_entire_model(name, iters, lr):
    """All parameters train, from a dense model, for 5 % of the iterations at a tenth of the rate; else the same.

    Every parameter's rate and weight decay: tests/mm/training/test_layer_decay_tables.py.
    """
    dense, short, entire = (load(f'{prefix}{name}{suffix}') for prefix, suffix in (
        ('eva02_', ''), ('apt_eva02_', ''), ('apt_eva02_', '_entire')))
    model = build_meta(entire)
    assert all(parameter.requires_grad for parameter in model.parameters()) and all(m.training for m in model.modules())
    assert entire.requires_load_from and entire.load_from is None
    assert (dense.train_cfg.max_iters, entire.train_cfg.max_iters) == (iters, iters // 20)
    assert dense.optim_wrapper.optimizer.lr == lr and entire.optim_wrapper.optimizer.lr == pytest.approx(lr / 10)
    wanted, found = (flat(cfg.optim_wrapper.to_dict()) for cfg in (dense, entire))
    assert {key for key in wanted.keys() | found.keys() if wanted.get(key) != found.get(key)} == {'optimizer.lr'}
    assert entire.param_scheduler == short.param_scheduler
    for long_part, short_part in zip(dense.param_scheduler, entire.param_scheduler, strict=True):
        for key in long_part:
            long_value, short_value = long_part[key], short_part[key]
            if key == 'milestones':
                long_value, short_value = [v // 20 for v in long_value], list(short_value)
            elif key == 'end':
                long_value //= 20
            assert long_value == short_value, key


def test_train_loader_is_endless(coco_root, tiny_config):
    """An IterBasedTrainLoop on a finite sampler pauses at each epoch's end."""
    loader = tiny_config().train_dataloader
    loader.dataset.data_root = f'{coco_root}/'
    loader.update(num_workers=0, persistent_workers=False)
    batches = iter(Runner.build_dataloader(loader))
    assert [len(next(batches)['inputs']) for _ in range(4)] == [4] * 4


def test_the_documented_config_for_an_own_dataset(tmp_path):
    cfg = documented_config('Your own dataset', 1, tmp_path / 'own.py')
    model = build_meta(cfg)
    assert [head.num_classes for head in (*model.roi_head.bbox_head, model.roi_head.mask_head)] == [3] * 4
    for split in ('train', 'val', 'test'):
        dataset = DATASETS.build(dict(cfg[f'{split}_dataloader'].dataset, lazy_init=True))
        assert dataset.metainfo['classes'] == ('bolt', 'nut', 'washer')
        assert dataset.ann_file == f'data/parts/{"train" if split == "train" else "val"}.json'
        assert dataset.data_prefix['img'] == 'data/parts/images/'


def documented_config(heading: str, number: int, path: Path) -> Config:
    """The ``number``-th Python block of docs/get_started.md after a heading, as a config."""
    text = (CONFIGS.parent / 'docs/get_started.md').read_text().split(f'## {heading}\n')[1]
    code = text.split('```python')[number].split('```')[0].replace("'configs/", f"'{CONFIGS}/")
    path.write_text(code)
    return Config.fromfile(path)


def test_the_documented_config_for_own_label_maps(tmp_path):
    cfg = documented_config('Your own dataset', 2, tmp_path / 'own.py')
    model = build_meta(cfg)
    assert model.decode_head.num_classes == model.auxiliary_head.num_classes == 3
    for split in ('train', 'val', 'test'):
        with scope_of(cfg):
            dataset = DATASETS.build(dict(cfg[f'{split}_dataloader'].dataset, lazy_init=True))
        assert dataset.metainfo['classes'] == ('road', 'roof', 'field') and not dataset.reduce_zero_label
        folder = 'train' if split == 'train' else 'val'
        assert dataset.data_prefix == dict(img_path=f'data/land/images/{folder}',
                                           seg_map_path=f'data/land/labels/{folder}')
        load, = (transform for transform in dataset.pipeline.transforms if type(transform).__name__ == 'LoadLabelMap')
        assert load.num_classes == 3


def test_the_documented_config_for_a_submission(tmp_path):
    cfg = documented_config('Evaluate', 1, tmp_path / 'submission.py')
    (tmp_path / 'images/testing').mkdir(parents=True)
    (tmp_path / 'images/testing/a.jpg').touch()
    with scope_of(cfg):
        dataset = DATASETS.build(dict(cfg.test_dataloader.dataset, data_root=str(tmp_path)))
        assert METRICS.build(dict(cfg.test_evaluator, output_dir=str(tmp_path / 'maps'))).format_only
    assert dataset.get_data_info(0)['img_path'].endswith('images/testing/a.jpg')
    names = [type(transform).__name__ for transform in dataset.pipeline.transforms]
    assert names == ['LoadImageFromFile', 'Resize', 'PackSegInputs']


@pytest.mark.parametrize('name', ['eva02_ti_demo_det', 'apt_eva02_ti_demo_det', 'eva02_ti_demo_seg',
                                  'apt_eva02_ti_demo_seg', *(f'eva02_{model}' for model in SEGMENTORS)])
def test_an_official_file_fits_the_config(name):
    """Every key lands, and the model lacks nothing but what APT adds."""
    cfg = load(name)
    target = {key: value.shape for key, value in build_meta(cfg).state_dict().items()}
    official = official_state(load(name.removeprefix('apt_')), lambda name, value: value)  # names and shapes only
    conversion = convert(official, target_shapes=target)
    added = {f'backbone.{key}' for key in ADDED} if name.startswith('apt') else set()
    assert target.keys() - conversion.state_dict.keys() == added
    assert not conversion.absent and not conversion.resampled


def test_means_and_deviations_stand_once():
    """... in one base file each, with the core's values, which a config cannot import; all else takes them there."""
    numbers = [str(value) for value in (*IMAGENET_MEAN, *IMAGENET_STD, *HALF_MEAN, *CLIP_MEAN)]
    holding = {path.name for path in CONFIGS.rglob('*.py') if any(number in path.read_text() for number in numbers)}
    assert holding == {'imagenet.py', 'half.py', 'clip.py'}
    for name, wanted in (('imagenet', (IMAGENET_MEAN, IMAGENET_STD)), ('half', (HALF_MEAN, HALF_STD)),
                         ('clip', (CLIP_MEAN, CLIP_STD))):
        cfg = Config.fromfile(CONFIGS / f'_base_/normalisation/{name}.py')
        assert (tuple(cfg.img_mean), tuple(cfg.img_std)) == wanted


@pytest.mark.parametrize('name', LEAVES)
def test_a_config_normalises_as_its_family_wants(name):
    """... and hands the same values to preprocessor and chooser."""
    model = Config.fromfile(CONFIGS / f'{name}.py').model
    wanted = {key: list(MODELS.get(model.backbone.type).default_arguments()[f'img_{key}']) for key in ('mean', 'std')}
    if name.endswith(('in1k_224', 'in1k_336', 'in1k_384')):  # AugReg's and CLIP's classifiers are plain ViTs too
        mean, std = (CLIP_MEAN, CLIP_STD) if 'vit_h' in name else (HALF_MEAN, HALF_STD)
        wanted = dict(mean=list(mean), std=list(std))
    assert {key: list(model.data_preprocessor[key]) for key in wanted} == wanted
    assert {key: list(model.backbone[f'img_{key}']) for key in wanted} == wanted
