"""Registration in mmengine's root registry, and what the wrappers add to the core's modules."""
import itertools
import re
from types import SimpleNamespace

import mmcv.cnn
import mmcv.ops
import mmdet.registry
import mmengine.registry
import mmseg.registry
import pytest
import torch
from mmengine.config import ConfigDict
from mmengine.model import PretrainedInit
from mmengine.runner.checkpoint import _load_checkpoint_to_model

import apt_dense
import apt_dense.mm
from apt_dense.mm.errors import DataError
from apt_dense.mm.models.unloaded import unloaded
from apt_dense.mm.training.hooks import CheckFrozenLoadedHook

BACKBONE = dict(type='APTEVA02', img_size=64, embed_dims=32, depth=2, num_heads=2, window_size=4,
                global_block_indexes=(1,), pretrain_img_size=64)
NECK = dict(type='SimpleFPN', in_channels=32, out_channels=16)


@pytest.mark.parametrize('registry', [mmengine.registry.MODELS, mmdet.registry.MODELS, mmseg.registry.MODELS])
def test_one_registration_serves_every_package(registry):
    assert isinstance(registry.build(dict(BACKBONE)), apt_dense.APTEVA02)
    assert isinstance(registry.build(dict(NECK)), apt_dense.SimpleFeaturePyramid)


def test_ln2d_as_a_norm_layer_of_mmcv():
    module = mmcv.cnn.ConvModule(3, 8, 3, norm_cfg=dict(type='LN2d', eps=1e-6))
    assert module.conv.bias is None
    assert module.norm_name == 'ln'
    x = torch.randn(2, 3, 5, 7)
    y = module.conv(x)
    expected = (y - y.mean(1, True)) / (y.var(1, unbiased=False, keepdim=True) + 1e-6).sqrt()
    torch.testing.assert_close(module(x), expected.relu(), atol=1e-5, rtol=0)


@pytest.mark.parametrize('plain', [False, True])
def test_pyramid_maps_suit_roi_align(plain, monkeypatch):
    """mmcv's compiled RoIAlign ignores strides, and the plain one copies maps whose channels are not last."""
    monkeypatch.setattr('apt_dense.mm.models.core_modules.plain_operators', lambda: object() if plain else None)
    neck = mmdet.registry.MODELS.build(dict(NECK))
    x = torch.randn(2, 32, 8, 12)
    with torch.no_grad():
        maps = neck((x,))
        core_maps = apt_dense.SimpleFeaturePyramid.forward(neck, (x,))
    assert not core_maps[0].is_contiguous()
    for level, core_level in zip(maps, core_maps, strict=True):
        assert (level.permute(0, 2, 3, 1) if plain and level.device.type == 'cpu' else level).is_contiguous()
        torch.testing.assert_close(level, core_level)


def test_init_cfg_loads_a_checkpoint(tmp_path):
    source = mmengine.registry.MODELS.build(dict(BACKBONE))
    torch.save({'state_dict': {f'backbone.{name}': value for name, value in source.state_dict().items()}},
               tmp_path / 'pretrained.pth')
    init_cfg = dict(type='Pretrained', checkpoint=str(tmp_path / 'pretrained.pth'), prefix='backbone.')
    target = mmengine.registry.MODELS.build(dict(BACKBONE, init_cfg=init_cfg))
    assert not torch.equal(target.pos_embed, source.pos_embed)
    target.init_weights()
    for name, value in source.state_dict().items():
        assert torch.equal(target.state_dict()[name], value), name


def test_init_weights_without_a_checkpoint_keeps_the_zero_start():
    backbone = mmengine.registry.MODELS.build(dict(BACKBONE, num_scales=3, thresholds=(2, 2)))
    backbone.init_weights()
    assert backbone.patch_embed.zero_mlp.weight.abs().max() == 0
    assert backbone.patch_embed.conv_down.weight.abs().max() > 0
    assert backbone.blocks[0].attn.q_proj.weight.std().item() == pytest.approx(0.02, rel=0.1)


def test_init_cfg_names_the_converter_for_an_official_file(tmp_path):
    source = mmengine.registry.MODELS.build(dict(BACKBONE))
    torch.save({'module': source.state_dict()}, tmp_path / 'official.pt')
    backbone = mmengine.registry.MODELS.build(
        dict(BACKBONE, init_cfg=dict(type='Pretrained', checkpoint=str(tmp_path / 'official.pt'))))
    with pytest.raises(ValueError, match='official EVA-02 pretrain checkpoint.*eva02_to_mm.py'):
        backbone.init_weights()


def pretrained(path) -> dict:
    return dict(type='Pretrained', checkpoint=str(path))


@pytest.mark.parametrize('make', [lambda entry: [entry], lambda entry: (entry,),
                                  lambda entry: [dict(type='Normal', layer='Linear', std=0.1), entry],
                                  lambda entry: [dict(entry, type=PretrainedInit)], lambda entry: ConfigDict(entry)])
def test_init_cfg_in_every_form_that_mmengine_takes(make, tmp_path):
    """Loaded, last and over everything else; an official file is refused."""
    source = mmengine.registry.MODELS.build(dict(BACKBONE))
    target = mmengine.registry.MODELS.build(dict(BACKBONE, init_cfg=make(
        dict(pretrained(tmp_path / 'converted.pth'), prefix='backbone.'))))
    torch.save({'state_dict': {f'backbone.{name}': value for name, value in source.state_dict().items()}},
               tmp_path / 'converted.pth')
    target.init_weights()
    assert all(torch.equal(value, source.state_dict()[name]) for name, value in target.state_dict().items())
    torch.save({'module': source.state_dict()}, tmp_path / 'official.pt')
    target = mmengine.registry.MODELS.build(dict(BACKBONE, init_cfg=make(pretrained(tmp_path / 'official.pt'))))
    with pytest.raises(ValueError, match='official EVA-02 pretrain checkpoint.*eva02_to_mm.py'):
        target.init_weights()


@pytest.mark.parametrize('init_cfg', [None, [], {}, [dict(type='Normal', layer='Linear', std=0.5)],
                                      dict(type='Normal', layer='Linear', std=0.5)])
def test_init_cfg_without_a_checkpoint(init_cfg):
    backbone = mmengine.registry.MODELS.build(dict(BACKBONE, init_cfg=init_cfg))
    backbone.init_weights()
    std = backbone.blocks[0].attn.q_proj.weight.std().item()
    assert std == pytest.approx(0.5 if init_cfg else 0.02, rel=0.1)


PLAIN = dict(type='APTViT', img_size=32, embed_dims=16, depth=2, num_heads=2, pretrain_img_size=32)
SMALL = dict(img_size=32, patch_size=16, embed_dims=16, depth=2, num_heads=2)
PUBLISHED = {'APTViT': dict(SMALL, pretrain_img_size=32), 'APTDINOv3': SMALL,
             'APTSAM3': dict(SMALL, pretrain_img_size=32, window_size=2, global_block_indexes=(1,), mlp_ratio=4.0),
             'APTEVA02': dict(SMALL, pretrain_img_size=32, window_size=2, global_block_indexes=(1,))}


@pytest.mark.parametrize(('family', 'changes', 'message'), [
    ('APTViT', dict(embed_dims=32), r'cls_token is \(1, 1, 32\), wanted \(1, 1, 16\)'),
    ('APTViT', dict(layer_scale=1.0), 'blocks.0.ls1.gamma, .*are not in the model'),
    ('APTViT', dict(depth=1), '1 block, and the config has 2$'),
    ('APTViT', dict(depth=4), '4 blocks, and the config has 2$'),
    ('APTViT', dict(pre_norm=True), 'norm_pre.bias, norm_pre.weight are not in the model'),
    ('APTViT', dict(final_norm=False), 'norm.bias, norm.weight are not in the file'),
    ('APTViT', dict(with_cls_token=False), 'cls_token is not in the file'),
    ('APTViT', dict(patch_bias=False), 'patch_embed.proj.bias is not in the file'),
    ('APTViT', dict(mlp_ratio=2.0), r'blocks.0.mlp.fc1.weight is \(32, 16\), wanted \(64, 16\)'),
    ('APTViT', dict(prefix_positions=0), r'pos_embed is \(1, 4, 16\), wanted \(1, 5, 16\)'),
    ('APTSAM3', dict(window_size=2, global_block_indexes=(1,), mlp_ratio=4.0), r'pos_embed is .* wanted')])
def test_init_cfg_with_a_file_of_another_model(tmp_path, family, changes, message):
    """... of which mmengine would load the layers that fit, and train the others from random numbers."""
    other = mmengine.registry.MODELS.build(dict(PLAIN, type=family, **{'patch_size': 16, **changes}))
    torch.save({f'backbone.{name}': value for name, value in other.state_dict().items()}, tmp_path / 'other.pth')
    backbone = mmengine.registry.MODELS.build(dict(PLAIN, init_cfg=dict(
        type='Pretrained', checkpoint=str(tmp_path / 'other.pth'), prefix='backbone.')))
    with pytest.raises(ValueError, match='is of another plain ViT backbone than the config') as error:
        backbone.init_weights()
    problems = str(error.value).partition('than the config: ')[2].partition('. Give the backbone')[0]
    assert re.search(message, problems) and error.value.__class__ is DataError


@pytest.mark.parametrize(('family', 'other'), itertools.permutations(PUBLISHED, 2))
def test_init_cfg_with_a_file_of_another_family(tmp_path, family, other):
    source, backbone = (mmengine.registry.MODELS.build(dict(PUBLISHED[name], type=name, init_cfg=init_cfg))
                        for name, init_cfg in ((other, None), (family, pretrained(tmp_path / 'other.pth'))))
    torch.save(source.state_dict(), tmp_path / 'other.pth')
    with pytest.raises(DataError, match='init_cfg: .*other.pth (is of another|holds no) '):
        backbone.init_weights()


@pytest.mark.parametrize(('source', 'own'), [
    (dict(), dict(num_scales=2, thresholds=(3,))), (dict(num_scales=2, thresholds=(3,)), dict()),
    (dict(), dict(final_norm=False)), (dict(num_registers=2), dict()), (dict(), dict(with_cls_token=False)),
    (dict(), dict(reduction=dict(type='DTEM', kept=0.9))), (dict(pretrain_img_size=64), dict())])
def test_init_cfg_with_a_file_that_has_what_is_needed(tmp_path, source, own):
    """... where the model adds a part, or does without one, as the converter lets it."""
    file, target = (mmengine.registry.MODELS.build({**PLAIN, **changes, 'init_cfg': init_cfg})
                    for changes, init_cfg in ((source, None), (own, pretrained(tmp_path / 'file.pth'))))
    torch.save(dict(file.state_dict(), **{'neck.weight': torch.ones(2)}), tmp_path / 'file.pth')
    target.init_weights()
    assert torch.equal(target.blocks[1].mlp.fc1.weight, file.blocks[1].mlp.fc1.weight)


@pytest.mark.parametrize(('content', 'prefix', 'message'), [
    ({'blocks.0.attn.qkv.weight': 1, 'pos_embed': 1}, None, 'holds no EVA-02 backbone: got blocks.0.attn.qkv.weight, '
     'pos_embed. Wanted are blocks.N.attn.q_proj.weight, .*ffn_ln.weight'),
    ({'state_dict': {'backbone.layers.0.attn.qkv.weight': 1}}, 'backbone.', 'holds no EVA-02 backbone: got '
     'backbone.layers.0.attn.qkv.weight. Wanted are backbone.blocks.N.attn.q_proj.weight'),
    ({'state_dict': 'ours'}, None, "holds .* below 'backbone.', and prefix is None: set prefix='backbone.'"),
    ({'state_dict': 'ours'}, 'model.backbone', "holds .* below 'backbone.', and prefix is 'model.backbone': set "
     "prefix='backbone.'"),
    ({'model': 'ours'}, 'backbone.', "keeps its parameters under 'model', and mmengine looks under 'state_dict'"),
])
def test_init_cfg_with_a_file_that_would_load_nothing(tmp_path, content, prefix, message):
    """mmengine writes the names into the log, and trains from random numbers."""
    own = {f'backbone.{name}': value for name, value in
           mmengine.registry.MODELS.build(dict(BACKBONE)).state_dict().items()}

    def tensors(node):
        if isinstance(node, dict):
            return {name: tensors(value) for name, value in node.items()}
        return own if node == 'ours' else torch.zeros(1)

    torch.save(tensors(content), tmp_path / 'file.pth')
    init_cfg = dict(type='Pretrained', checkpoint=str(tmp_path / 'file.pth'), prefix=prefix)
    backbone = mmengine.registry.MODELS.build(dict(BACKBONE, init_cfg=init_cfg))
    with pytest.raises(DataError, match=f'init_cfg: .*file.pth {message}'):
        backbone.init_weights()


class Detector(torch.nn.Module):
    """A backbone of 16 positions, a batch norm, and a layer of its own that is called as the table is."""

    def __init__(self):
        super().__init__()
        self.backbone = mmengine.registry.MODELS.build(dict(BACKBONE))
        self.norm = torch.nn.BatchNorm2d(4)
        self.pos_embed = torch.nn.Parameter(torch.zeros(1, 17, 32))


@pytest.mark.parametrize('entries', [17, 5, 10, 1 + 14 * 14])
@pytest.mark.parametrize('prefix', ['', 'module.'])
def test_what_a_checkpoint_would_load(entries, prefix):
    """Tables of any square grid; mmengine takes 'module.' away, and does not count batches."""
    model = Detector()
    state = {f'{prefix}{name}': value for name, value in model.state_dict().items()
             if not name.endswith('num_batches_tracked')}
    state[f'{prefix}backbone.pos_embed'] = torch.zeros(1, entries, 32)
    for checkpoint in (state, dict(state_dict=state, meta={})):
        assert unloaded(model, checkpoint) == []
    _load_checkpoint_to_model(model, dict(state_dict=state), strict=True)  # mmengine says so too
    CheckFrozenLoadedHook().after_load_checkpoint(SimpleNamespace(model=model, _load_from=''), state)


@pytest.mark.parametrize('change', [
    {'backbone.pos_embed': torch.zeros(1, 17, 64)}, {'backbone.pos_embed': torch.zeros(1, 13, 32)},
    {'backbone.pos_embed': torch.zeros(2, 5, 32)}, {'backbone.pos_embed': torch.zeros(17, 32)},
    {'pos_embed': torch.zeros(1, 5, 32)}, {'backbone.blocks.0.norm1.weight': torch.zeros(31)},
    {'backbone.blocks.1.attn.q_bias': None}, {'norm.running_mean': torch.zeros(5)}, {'norm.running_var': None}])
def test_what_a_checkpoint_would_not_load(change):
    """A table of another width or of no square, another module's, and whatever else is missing or misshapen."""
    model = Detector().requires_grad_(False)
    state = {name: value for name, value in {**model.state_dict(), **change}.items() if value is not None}
    assert unloaded(model, {'state_dict': state}) == list(change)
    runner = SimpleNamespace(model=model, _load_from='dense.pth')
    with pytest.raises(ValueError, match=f'dense.pth lacks 1 frozen parameters .*: {next(iter(change))}. Give'):
        CheckFrozenLoadedHook().after_load_checkpoint(runner, {'state_dict': state})
