"""Files of other libraries through the converter, into models of configs."""
import json
import runpy
import sys
from pathlib import Path

import pytest
import torch
from mmengine.config import Config
from mmengine.registry import MODELS, DefaultScope
from mmengine.runner import load_checkpoint
from safetensors.torch import save_file

from apt_dense import APTDINOv3, APTViT
from apt_dense.converting import read_config
from apt_dense.core.embed import ADDED_PARAMETERS
from apt_dense.core.vit_conversion import convert_vit
from tests.core.vit_files import DEPTH, FILES, fused_qkv, hf_dinov2, hf_dinov3, hf_vit, random_state
from tests.locations import TOOLS
from tests.mm.conftest import CONFIGS

TOOL = TOOLS / 'model_converters/vit_to_mm.py'


@pytest.fixture
def convert(monkeypatch, capsys):
    """convert(*arguments) -> (status, output, errors) of the tool."""

    def run(*arguments: object) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, 'argv', [str(TOOL), *map(str, arguments)])
        try:
            runpy.run_path(str(TOOL), run_name='__main__')
            status = 0
        except SystemExit as stopped:
            status = stopped.code
        return status, *capsys.readouterr()

    return run


def segmentor(name: str, **backbone) -> Config:
    """A demo config of DINOv3 with a tiny model."""
    cfg = Config.fromfile(CONFIGS / f'{name}.py')
    cfg.model.backbone.update(img_size=128, embed_dims=32, depth=3, num_heads=2, out_indices=(0, 1, 2), **backbone)
    cfg.model.neck.update(embed_dim=32, norm_cfg=dict(type='BN'))
    cfg.model.decode_head.update(in_channels=[32] * 4, channels=16, norm_cfg=dict(type='BN'))
    cfg.model.auxiliary_head.update(in_channels=32, channels=16, norm_cfg=dict(type='BN'))
    return cfg


def dinov3_folder(path: Path) -> Path:
    """A folder as transformers writes it: two shards, their index, and a config."""
    path.mkdir()
    model = APTDINOv3(img_size=128, embed_dims=32, depth=3, num_heads=2)
    state = hf_dinov3({name: 0.2 * tensor for name, tensor in random_state(model).items()})
    places = {}
    for index, names in enumerate((sorted(state)[:9], sorted(state)[9:])):
        save_file({name: state[name] for name in names}, path / f'model-{index}.safetensors')
        places |= dict.fromkeys(names, f'model-{index}.safetensors')
    (path / 'model.safetensors.index.json').write_text(json.dumps({'weight_map': places}))
    (path / 'config.json').write_text(json.dumps(dict(
        model_type='dinov3_vit', hidden_size=32, num_hidden_layers=3, num_attention_heads=2)))
    return path


@torch.no_grad()
@pytest.mark.parametrize('name', ['dinov3_ti_demo_seg', 'apt_dinov3_ti_demo_seg'])
def test_a_sharded_folder_into_a_segmentor(name, tmp_path, convert):
    """Its backbone is the file's model; the heads start from their own values."""
    source = dinov3_folder(tmp_path / 'dinov3')
    cfg = segmentor(name)
    if name.startswith('apt'):
        cfg.model.backbone.update(num_scales=3, thresholds=(-1.0, -1.0))  # nothing is merged: the dense model
    cfg.dump(tmp_path / 'config.py')
    target = tmp_path / 'new/converted.pth'
    status, output, errors = convert(source, target, '--config', tmp_path / 'config.py')
    assert status == 0, errors
    for line in ('family:      dinov3, APTDINOv3; names of transformers', 'mapped:      ', 'left over:   none',
                 'dropped:     1 keys without a counterpart here: embeddings.mask_token',
                 'not in it:   auxiliary_head, decode_head, neck', f'written:     {target}'):
        assert line in output
    content = torch.load(target)
    assert content['meta'] == dict(converted_from='dinov3', family='dinov3', names_of='transformers', entry='',
                                   dataset_meta=dict(cfg.metainfo))
    with DefaultScope.overwrite_default_scope('mmseg'):
        model = MODELS.build(cfg.model).eval()
    load_checkpoint(model, str(target))
    theirs = APTDINOv3.from_pretrained(source, out_indices=(0, 1, 2))
    x = torch.randn(2, 3, 128, 192)
    for ours, wanted in zip(model.backbone(x), theirs(x), strict=True):
        assert wanted.std() > 0.1
        torch.testing.assert_close(ours, wanted, atol=1e-5, rtol=0)


@torch.no_grad()
def test_a_resampled_file_into_a_backbone(tmp_path, convert):
    """Through init_cfg, with another patch and table than the file's."""
    from apt_dense.mm.models.core_modules import APTViT as Backbone
    state = random_state(APTViT(img_size=56, embed_dims=32, depth=2, num_heads=2, patch_size=14, pretrain_img_size=56))
    torch.save({'model': fused_qkv(state, depth=2), 'optimizer': {}}, tmp_path / 'mae.pth')
    sizes = dict(img_size=96, embed_dims=32, depth=2, num_heads=2, pretrain_img_size=96)
    cfg = segmentor('dinov3_ti_demo_seg')
    cfg.model.backbone = dict(type='APTViT', out_indices=(0, 1), **sizes)
    cfg.dump(tmp_path / 'config.py')
    status, output, errors = convert(tmp_path / 'mae.pth', tmp_path / 'new.pth', '--config', tmp_path / 'config.py')
    assert status == 0, errors
    for line in ('taken from:  model', 'not used:    entries optimizer',
                 'resampled:   backbone.patch_embed.proj.weight: patches of 14 -> 16 px',
                 'resampled:   backbone.pos_embed: 4x4 -> 6x6 positions'):
        assert line in output
    backbone = Backbone(**sizes, init_cfg=dict(type='Pretrained', checkpoint=str(tmp_path / 'new.pth'),
                                               prefix='backbone.'))
    backbone.init_weights()
    given = APTViT.from_pretrained(tmp_path / 'mae.pth', num_heads=2, patch_size=16, pretrain_img_size=96)
    assert all(torch.equal(tensor, given.state_dict()[name]) for name, tensor in backbone.state_dict().items())


@pytest.mark.parametrize('layout', ['mae', 'hf_clip', 'hf_sam3', 'apt_classifier', 'apt_classifier_clip'])
def test_files_of_each_kind(layout, tmp_path, convert):
    build, family, write = FILES[layout]
    file = {name: tensor.contiguous() for name, tensor in write(random_state(build())).items()}
    torch.save(file, tmp_path / 'file.bin')
    save_file(file, tmp_path / 'file.safetensors')
    for name, asked in (('file.bin', 'auto'), ('file.safetensors', family)):
        status, output, errors = convert(tmp_path / name, tmp_path / f'{name}.pth', '--family', asked)
        assert status == 0 and f'family:      {family}, ' in output, errors
        content = torch.load(tmp_path / f'{name}.pth')
        wanted = convert_vit(file).state_dict
        assert content['meta']['family'] == family and content['state_dict'].keys() == wanted.keys()
        assert all(torch.equal(tensor, wanted[key]) for key, tensor in content['state_dict'].items())


# Config -> family, published size, and what makes a file of it.
CONFIGS_OF = {
    'dinov3_b_coco_1024': (APTDINOv3, 'B', hf_dinov3), 'apt_dinov3_l_coco_1536': (APTDINOv3, 'L', hf_dinov3),
    'apt_dinov3_b_ade20k_640': (APTDINOv3, 'B', hf_dinov3), 'dinov3_l_ade20k_512': (APTDINOv3, 'L', hf_dinov3),
    'apt_dinov2_l_ade20k_512': (APTViT, 'dinov2_l', hf_dinov2), 'mae_l_ade20k_512': (APTViT, 'mae_l', hf_vit),
    'apt_mae_l_ade20k_512': (APTViT, 'mae_l', hf_vit)}


@pytest.mark.parametrize('name', CONFIGS_OF)
def test_published_sizes_fit_the_configs(name):
    """By their shapes alone, which take no memory."""
    family, preset, write = CONFIGS_OF[name]
    shapes, _ = read_config(str(CONFIGS / f'{name}.py'))
    with torch.device('meta'):
        file = write(family.from_preset(preset).state_dict())
    conversion = convert_vit(file, target_shapes=shapes)
    assert {key: tensor.shape for key, tensor in conversion.state_dict.items()} == {
        key: shape for key, shape in shapes.items() if key.startswith('backbone.') and key.removeprefix('backbone.')
        not in ADDED_PARAMETERS}


# ---- what is refused: one line, status 2, and no file ----
def test_bad_input(tmp_path, convert):
    build, _, write = FILES['hf_vit']
    file = write(random_state(build()))
    torch.save(file, tmp_path / 'vit.pth')
    whole = (tmp_path / 'vit.pth').read_bytes()
    (tmp_path / 'cut.pth').write_bytes(whole[:len(whole) // 2])
    torch.save({**file, 'odd': torch.zeros(1)}, tmp_path / 'odd.pth')
    torch.save({name: tensor for name, tensor in file.items() if 'layer.1.output' not in name}, tmp_path / 'less.pth')
    torch.save({'layers.0.blocks.0.attn.qkv.weight': torch.zeros(1)}, tmp_path / 'swin.pth')
    torch.save({f'blocks.0.{layer}': torch.zeros(1) for layer in
                ('attn.q_proj.weight', 'attn.q_bias', 'mlp.w1.weight', 'mlp.ffn_ln.weight')}, tmp_path / 'eva02.pth')
    (tmp_path / 'empty').mkdir()
    segmentor('dinov3_ti_demo_seg').dump(tmp_path / 'config.py')
    before = sorted(path.name for path in tmp_path.iterdir())
    for arguments, message in (
            (['cut.pth'], 'cannot be read as a checkpoint'), (['none.pth'], 'none.pth does not exist'),
            (['empty'], 'holds none of model.safetensors.index.json'),
            (['odd.pth'], '1 keys do not belong to a vit file of transformers: odd'),
            (['less.pth'], '2 keys are missing: blocks.1.mlp.fc2.bias, blocks.1.mlp.fc2.weight'),
            (['swin.pth'], 'Swin, whose windows shift'), (['eva02.pth'], 'tools/model_converters/eva02_to_mm.py'),
            (['vit.pth', '--family', 'dinov3'], 'these are the names of vit, not of dinov3: set --family vit'),
            (['vit.pth', '--weights', 'model_ema'], "no entry 'model_ema'"),
            (['vit.pth', '--config', tmp_path / 'config.py'], 'does not fit the config'),
            (['vit.pth', '--config', tmp_path / 'none.py'], 'none.py')):
        source, *options = arguments
        status, output, errors = convert(tmp_path / source, tmp_path / 'converted.pth', *options)
        assert status == 2 and not output
        lines = [line for line in errors.splitlines() if line.startswith('error: ')]
        assert len(lines) == 1 and message in lines[0] and errors.endswith('Nothing was written.\n')
    assert sorted(path.name for path in tmp_path.iterdir()) == before


def test_files_that_are_there(tmp_path, convert):
    build, _, write = FILES['hf_vit']
    torch.save(write(random_state(build())), tmp_path / 'vit.pth')
    (tmp_path / 'converted.pth').write_text('mine')
    status, _, errors = convert(tmp_path / 'vit.pth', tmp_path / 'converted.pth')
    assert status == 2 and 'exists: remove it, or replace it with --force' in errors
    assert (tmp_path / 'converted.pth').read_text() == 'mine'
    assert convert(tmp_path / 'vit.pth', tmp_path / 'converted.pth', '--force')[0] == 0
    assert len(torch.load(tmp_path / 'converted.pth')['state_dict']) == 6 + 16 * DEPTH
    status, _, errors = convert(tmp_path / 'vit.pth', tmp_path / 'vit.pth', '--force')
    assert status == 2 and 'the same file' in errors
