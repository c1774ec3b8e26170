"""Every config builds; sizes are the published ones; an APT config differs from its dense twin only where it should."""
import json
from pathlib import Path

import pytest
import torch
from mmdet.registry import DATASETS, METRICS, MODELS
from mmengine.config import Config
from mmengine.optim import build_optim_wrapper
from mmengine.registry import PARAM_SCHEDULERS
from mmengine.runner import Runner

from apt_dense.core.checkpoint import convert
from tests.official import official_state

CONFIGS = Path(__file__).parents[2] / 'configs'
LEAVES = sorted(path.stem for path in CONFIGS.glob('*.py'))
BACKBONE_MILLIONS = {'b': 86, 'l': 304}  # published sizes of EVA-02-B and L
ADDED = {'patch_embed.conv_down.weight', 'patch_embed.conv_down.bias', 'patch_embed.zero_mlp.weight',
         'patch_embed.zero_mlp.bias'}
SHORT = {'pretrained', 'model.backbone.init_cfg', 'train_cfg', 'param_scheduler', 'optim_wrapper', 'max_iters'}
# (APT config, its dense twin, the settings in which they may differ besides APT's own).
PAIRS = [
    *((f'apt_eva02_{size}_coco_full', f'eva02_{size}_coco', set()) for size in 'bl'),
    *((f'apt_eva02_{size}_coco', f'eva02_{size}_coco',
       SHORT | {'requires_load_from', 'custom_hooks', 'model.trainable'}) for size in 'bl'),
    *((f'apt_eva02_{size}_coco_resizing', f'eva02_{size}_coco',
       SHORT | {'train_dataloader', 'auto_scale_lr', 'model.backbone.detail_branch'})
      for size in 'bl'),
    ('apt_eva02_ti_demo_det', 'eva02_ti_demo_det', set()),
    ('apt_eva02_ti_demo_det_tracked', 'eva02_ti_demo_det',
     {'default_hooks.checkpoint', 'custom_hooks', 'train_cfg.val_interval', 'vis_backends', 'visualizer'}),
]
APT_SETTINGS = {'model.backbone.num_scales', 'model.backbone.thresholds'}


def load(name: str) -> Config:
    return Config.fromfile(CONFIGS / f'{name}.py')


def build_meta(cfg: Config) -> torch.nn.Module:
    with torch.device('meta'):
        return MODELS.build(cfg.model)


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


@pytest.mark.parametrize('name', LEAVES)
def test_model_and_optimiser(name):
    cfg = load(name)
    model = build_meta(cfg)
    size = name.removeprefix('apt_').split('_')[1]
    parameters = dict(model.backbone.named_parameters())
    if size in BACKBONE_MILLIONS:
        dense = sum(parameter.numel() for key, parameter in parameters.items() if key not in ADDED)
        assert dense / 1e6 == pytest.approx(BACKBONE_MILLIONS[size], abs=1)
    assert ADDED & parameters.keys() == (ADDED if name.startswith('apt') and not name.endswith('resizing') else set())
    if name.endswith('resizing'):
        assert 'optim_wrapper' not in cfg
        return
    wrapper = build_optim_wrapper(model, cfg.optim_wrapper)
    optimised = [id(parameter) for group in wrapper.optimizer.param_groups for parameter in group['params']
                 if parameter.requires_grad]
    assert sorted(optimised) == sorted(id(parameter) for parameter in model.parameters() if parameter.requires_grad)
    for scheduler in cfg.param_scheduler:
        PARAM_SCHEDULERS.build(dict(scheduler, optimizer=wrapper))


@pytest.mark.parametrize('name', LEAVES)
def test_datasets_pipelines_and_evaluator(name, tmp_path):
    cfg = load(name)
    annotations = tmp_path / 'instances.json'
    annotations.write_text(json.dumps(dict(images=[], annotations=[], categories=[])))
    for split in ('train', 'val', 'test'):
        loader = cfg.get(f'{split}_dataloader')
        if loader is None:
            assert split == 'train' and name.endswith('resizing')
            continue
        dataset = DATASETS.build(dict(loader.dataset, lazy_init=True))
        assert dataset.pipeline.transforms
        for head in (cfg.model.roi_head.mask_head, *cfg.model.roi_head.bbox_head):
            assert head.num_classes == len(dataset.metainfo['classes'])
    for split in ('val', 'test'):
        evaluator = cfg[f'{split}_evaluator']
        assert evaluator.ann_file == cfg.val_dataloader.dataset.data_root + cfg.val_dataloader.dataset.ann_file
        assert METRICS.build(dict(evaluator, ann_file=str(annotations))).metrics == ['bbox', 'segm']


@pytest.mark.parametrize(('name', 'twin', 'allowed'), PAIRS, ids=[pair[0] for pair in PAIRS])
def test_apt_differs_from_its_dense_twin_only_where_it_should(name, twin, allowed):
    apt, dense = flat(load(name).to_dict()), flat(load(twin).to_dict())
    different = {key for key in apt.keys() | dense.keys() if apt.get(key, '-') != dense.get(key, '-')}
    unexpected = {key for key in different - APT_SETTINGS
                  if not any(key == setting or key.startswith(f'{setting}.') for setting in allowed)}
    assert not unexpected
    assert different >= APT_SETTINGS


@pytest.mark.parametrize('size', ['b', 'l'])
def test_the_recipes_figures(size):
    dense, short, full = (load(name.format(size)) for name in (
        'eva02_{}_coco', 'apt_eva02_{}_coco', 'apt_eva02_{}_coco_full'))
    assert (dense.train_cfg.max_iters, short.train_cfg.max_iters) == (60000, 3000)
    assert dense.param_scheduler[1].milestones == [48000, 54000]
    assert dense.optim_wrapper.paramwise_cfg.layer_decay_rate == {'b': 0.7, 'l': 0.8}[size]
    assert dense.auto_scale_lr.base_batch_size == short.auto_scale_lr.base_batch_size == 128
    assert full.model.backbone.thresholds == short.model.backbone.thresholds == (2, 2, 0.3)
    assert short.requires_load_from and short.load_from is None
    published = dense.model.test_cfg.rcnn
    assert (published.nms.type, published.nms.iou_threshold, published.score_thr) == ('soft_nms', 0.6, 0.0)


def test_short_fine_tuning_optimises_the_added_parameters_only():
    cfg = load('apt_eva02_b_coco')
    model = build_meta(cfg)
    wrapper = build_optim_wrapper(model, cfg.optim_wrapper)
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    optimised = {names[id(parameter)] for group in wrapper.optimizer.param_groups for parameter in group['params']
                 if parameter.requires_grad}
    assert optimised == {f'backbone.{name}' for name in ADDED}


def test_train_loader_is_endless(coco_root, tiny_config):
    """An IterBasedTrainLoop on a finite sampler pauses at each epoch's end."""
    loader = tiny_config().train_dataloader
    loader.dataset.data_root = f'{coco_root}/'
    loader.update(num_workers=0, persistent_workers=False)
    batches = iter(Runner.build_dataloader(loader))
    assert [len(next(batches)['inputs']) for _ in range(4)] == [4] * 4


def test_the_documented_config_for_an_own_dataset(tmp_path):
    text = (CONFIGS.parent / 'docs/get_started.md').read_text().split('## Your own dataset')[1]
    code = text.split('```python')[1].split('```')[0].replace("'configs/", f"'{CONFIGS}/")
    (tmp_path / 'own.py').write_text(code)
    cfg = Config.fromfile(tmp_path / 'own.py')
    model = build_meta(cfg)
    assert [head.num_classes for head in (*model.roi_head.bbox_head, model.roi_head.mask_head)] == [3] * 4
    for split in ('train', 'val', 'test'):
        dataset = DATASETS.build(dict(cfg[f'{split}_dataloader'].dataset, lazy_init=True))
        assert dataset.metainfo['classes'] == ('bolt', 'nut', 'washer')
        assert dataset.ann_file == f'data/parts/{"train" if split == "train" else "val"}.json'
        assert dataset.data_prefix['img'] == 'data/parts/images/'


@pytest.mark.parametrize('name', ['eva02_ti_demo_det', 'apt_eva02_ti_demo_det'])
def test_an_official_file_fits_the_config(name):
    """Every key lands, and the model lacks nothing but what APT adds."""
    cfg = load(name)
    target = {key: value.shape for key, value in build_meta(cfg).state_dict().items()}
    conversion = convert(official_state(load('eva02_ti_demo_det')), target_shapes=target)
    added = {f'backbone.{key}' for key in ADDED} if name.startswith('apt') else set()
    assert target.keys() - conversion.state_dict.keys() == added
    assert not conversion.absent and not conversion.resampled
