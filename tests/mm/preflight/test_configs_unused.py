"""Names in a child's file that its base has already used, and names that nothing reads."""
from pathlib import Path

import pytest
from mmengine.config import Config

from apt_dense.mm.preflight.configs_unused import check_unused

CONFIGS = Path(__file__).parents[3] / 'configs'


def found(tmp_path: Path, code: str, base: str = 'apt_eva02_l_coco') -> dict[str, str]:
    """{name: message} of a child's file."""
    (tmp_path / 'child.py').write_text(f"_base_ = '{CONFIGS}/{base}.py'\n{code}\n")
    findings = list(check_unused(Config.fromfile(tmp_path / 'child.py')))
    assert all(finding.where.startswith(f'{tmp_path}/child.py: ') for finding in findings)
    return {finding.where.rpartition(' ')[2]: str(finding) for finding in findings}


@pytest.mark.parametrize(('code', 'name', 'places'), [
    ("train_pipeline = [dict(type='LoadImageFromFile')]", 'train_pipeline', ['train_dataloader.dataset.pipeline']),
    ('image_size = 640', 'image_size', ['train_dataloader.dataset.pipeline.3.scale',
                                        'val_dataloader.dataset.pipeline.1.scale']),
    ("data_root = 'data/mine/'", 'data_root', ['train_dataloader.dataset.data_root', 'val_evaluator.ann_file']),
    ('max_iters = 10', 'max_iters', ['train_cfg.max_iters', 'param_scheduler.1.end']),
    ('img_mean = [1.0, 2.0, 3.0]', 'img_mean', ['model.data_preprocessor.mean', 'model.backbone.img_mean']),
    ("vis_backends = [dict(type='TensorboardVisBackend')]", 'vis_backends', ['visualizer.vis_backends']),
])
def test_an_override_that_the_base_has_already_used(tmp_path, code, name, places):
    messages = found(tmp_path, code)
    assert list(messages) == [name] and '[override-without-effect]' in messages[name]
    assert all(place in messages[name] for place in places)


@pytest.mark.parametrize('code', [
    # Used by a line of the child, or through the base's names.
    "train_pipeline = [dict(type='LoadImageFromFile')]\ntrain_dataloader = dict(dataset=dict(pipeline=train_pipeline))",
    'image_size = 640\nmodel = dict(backbone=dict(img_size=image_size))',
    'max_iters = 10\ntrain_cfg = dict(max_iters=max_iters)',
    'train_pipeline = _base_.train_pipeline\ntrain_dataloader = dict(dataset=dict(pipeline=train_pipeline))',
    'max_iters = 3000', 'image_size = 1536', "data_root = 'data/coco/'",  # what the base has
    "tta_pipeline = []\ntta_model = dict(type='X')",  # read by tools/test.py
    'train_cfg = dict(max_iters=10)',
    "data = dict(data_root='x')\nfor_all = dict(**data)\ntrain_dataloader = dict(dataset=for_all)",
])
def test_what_is_used(tmp_path, code):
    assert found(tmp_path, code) == {}


def test_a_grandchild_may_use_it(tmp_path):
    (tmp_path / 'middle.py').write_text(f"_base_ = '{CONFIGS}/apt_eva02_l_coco.py'\nimage_size = 640\n")
    code = "_base_ = './middle.py'\nmodel = dict(backbone=dict(img_size=_base_.image_size))\n"
    (tmp_path / 'leaf.py').write_text(code)
    assert list(check_unused(Config.fromfile(tmp_path / 'leaf.py'))) == []
    finding, = check_unused(Config.fromfile(tmp_path / 'middle.py'))
    assert finding.where == f'{tmp_path}/middle.py: image_size'


def test_a_name_that_nothing_reads(tmp_path):
    messages = found(tmp_path, 'trian_cfg = dict(max_iters=2)\nmy_classes = ("a", "b")')
    assert list(messages) == ['my_classes', 'trian_cfg'] and 'nearest: train_cfg' in messages['trian_cfg']
    assert all('[setting-nobody-reads]' in message for message in messages.values())


@pytest.mark.parametrize('code', ['resum = True', 'load_form = None', 'find_unused_parameter = True'])
def test_a_mistyped_name_of_which_the_value_stands_elsewhere(tmp_path, code):
    messages = found(tmp_path, code)
    assert 'nearest: ' in messages[code.split()[0]] and len(messages) == 1


def test_a_base_may_offer_names(tmp_path):
    (tmp_path / 'base.py').write_text("_base_ = []\nchoices = ['x', 'y']\ntrian_cfg = dict()\n")
    (tmp_path / 'leaf.py').write_text("_base_ = './base.py'\n")
    finding, = check_unused(Config.fromfile(tmp_path / 'leaf.py'))
    assert finding.where.endswith('base.py: trian_cfg')


def test_a_dumped_config_has_every_name(tmp_path):
    for name in ('apt_eva02_l_coco_24gb', 'apt_eva02_ti_demo_det', 'eva02_ti_demo_seg', 'apt_eva02_l_ade20k_640'):
        Config.fromfile(CONFIGS / f'{name}.py').dump(tmp_path / 'dump.py')
        assert list(check_unused(Config.fromfile(tmp_path / 'dump.py'))) == []


def test_a_dumped_config_that_was_changed(tmp_path):
    """Its train_pipeline is no mistyped tta_pipeline."""
    cfg = Config.fromfile(CONFIGS / 'apt_eva02_ti_demo_det.py')
    for split in ('train', 'test'):
        cfg[f'{split}_dataloader'].dataset.pipeline[0].to_float32 = True
    cfg.dump(tmp_path / 'dump.py')
    assert list(check_unused(Config.fromfile(tmp_path / 'dump.py'))) == []


def test_other_configs_are_passed_over(tmp_path):
    assert list(check_unused(Config(dict(image_size=3)))) == []
    (tmp_path / 'c.json').write_text('{"image_size": 3}')
    assert list(check_unused(Config.fromfile(tmp_path / 'c.json'))) == []


@pytest.mark.parametrize('code', [
    'image_size: int = 640', "data_root, image_size = 'data/coco/', 640", '[image_size] = [640]',
    'total = (image_size := 640)\ntrain_cfg = dict(max_iters=total)', 'for image_size in [640]:\n    pass',
    'if True:\n    image_size = 640', 'try:\n    image_size = 640\nexcept ValueError:\n    pass',
    'image_size = 600\nimage_size += 40', 'image_size = scale = 640\ntrain_cfg = dict(max_iters=scale)',
    '*rest, image_size = [1, 640]\ntrain_cfg = dict(max_iters=rest[0])',
])
def test_every_way_to_set_a_name(tmp_path, code):
    messages = found(tmp_path, code)
    assert list(messages) == ['image_size'] and '[override-without-effect]' in messages['image_size']


@pytest.mark.parametrize('code', [
    'image_size: int = 640\nmodel = dict(backbone=dict(img_size=image_size))',
    'height, width = 64, 96\ntrain_cfg = dict(max_iters=height * width)',
    'for step in [1, 2]:\n    last = step\ntrain_cfg = dict(max_iters=last)',
    'if (flag := True):\n    lr = 1e-3\nelse:\n    lr = 1e-4\n'
    'optim_wrapper = dict(optimizer=dict(lr=lr if flag else 0))',
    'train_cfg = dict()\ntrain_cfg["max_iters"] = 4', 'for _ in range(2):\n    pass',
    'sizes = [1]\nsizes += [2]\ntrain_cfg = dict(max_iters=sizes[1])',
])
def test_every_way_to_use_a_name(tmp_path, code):
    assert found(tmp_path, code) == {}


def test_places_of_names_that_are_set_together(tmp_path):
    (tmp_path / 'base.py').write_text("root, size = 'data/', 5\ntrain_cfg = dict(max_iters=size, note=root)\n")
    messages = found(tmp_path, '', 'apt_eva02_l_coco')
    assert messages == {}
    (tmp_path / 'child.py').write_text("_base_ = './base.py'\nsize: int = 7\n")
    finding, = check_unused(Config.fromfile(tmp_path / 'child.py'))
    assert finding.where.endswith('child.py: size') and 'train_cfg.max_iters' in finding.got
