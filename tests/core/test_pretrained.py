"""from_pretrained: files and folders of published models, and names at Hugging Face."""
import json
import sys
from types import SimpleNamespace

import pytest
import torch
from safetensors.torch import save_file

from apt_dense import APTSAM3, APTDINOv3, APTViT
from apt_dense.core.normalisation import CLIP_MEAN, HALF_STD
from apt_dense.core.vit_sizes import heads_of
from tests.core.vit_files import DEPTH, DIM, FILES, random_state

CONFIG = dict(hidden_size=DIM, num_hidden_layers=DEPTH, num_attention_heads=4, hidden_act='gelu', layer_norm_eps=1e-3)
SAM3 = dict(model_type='sam3_vit_model', window_size=4, global_attn_indexes=[1], image_size=112, **CONFIG)


def folder(path, layout: str, **config):
    """A folder with a file of a layout and a config; the state dict here."""
    build, _, write = FILES[layout]
    state = random_state(build())
    save_file({name: tensor.contiguous() for name, tensor in write(state).items()}, path / 'model.safetensors')
    if config:
        (path / 'config.json').write_text(json.dumps(config))
    return state


@pytest.mark.parametrize(('layout', 'family', 'config'), [
    ('hf_vit', APTViT, dict(model_type='vit', **CONFIG)), ('mae', APTViT, {}),
    ('hf_dinov2_registers', APTViT, dict(model_type='dinov2_with_registers', **CONFIG)),
    ('hf_clip', APTViT, dict(model_type='clip', vision_config=dict(model_type='clip_vision_model', **CONFIG))),
    ('timm_dinov3', APTDINOv3, dict(architecture='vit_small_patch16_dinov3')),
    ('hf_dinov3', APTDINOv3, dict(model_type='dinov3_vit', rope_theta=50.0, **CONFIG)),
    ('hf_sam3', APTSAM3, dict(model_type='sam3', vision_config=dict(
        model_type='sam3_vision_model', backbone_config=SAM3)))])
def test_a_folder(tmp_path, layout, family, config):
    """Dense, and with scales: every tensor of the file is the model's, what APT adds keeps its own start."""
    state = folder(tmp_path, layout, **config)
    told = {} if 'model_type' in config else dict(num_heads=4)
    for scales in ({}, dict(num_scales=3, thresholds=(1, 1))):
        model = family.from_pretrained(tmp_path, **told, **scales)
        own = model.state_dict()
        assert not model.training and own.keys() - state.keys() == set(model.added_parameters)
        assert all(torch.equal(own[name], tensor) for name, tensor in state.items())
        assert model.blocks[0].attn.num_heads == 4 and model.num_scales == len(model.thresholds) + 1
        assert model.blocks[0].norm1.eps == (1e-3 if told == {} else 1e-5 if family is APTDINOv3 else 1e-6)
        assert family is not APTDINOv3 or model.rope.theta == config.get('rope_theta', 100.0)
        if scales:
            assert not model.patch_embed.zero_mlp.weight.any() and model.patch_embed.conv_down.weight.any()


def test_settings_of_the_config(tmp_path):
    folder(tmp_path, 'hf_sam3', **SAM3)
    model = APTSAM3.from_pretrained(tmp_path)
    assert (model.window_size, model.global_blocks, model.resampling) == (4, {1}, 'tiled')
    folder(tmp_path, 'hf_dinov2_registers', model_type='dinov2_with_registers', **CONFIG)
    assert APTViT.from_pretrained(tmp_path).resampling == 'bicubic_antialias'
    folder(tmp_path, 'hf_vit', model_type='vit', **CONFIG)
    assert APTViT.from_pretrained(tmp_path).resampling == 'bicubic'


@pytest.mark.parametrize(('layout', 'kind', 'eps', 'activation'), [
    ('hf_vit', 'vit', 1e-12, 'GELU'), ('hf_dinov2', 'dinov2', 1e-6, 'GELU'), ('hf_clip', 'clip_vision_model', 1e-5,
                                                                              'QuickGELU'),
    ('llava', 'clip_vision_model', 1e-5, 'QuickGELU')])
def test_a_config_that_leaves_out_what_is_usual(tmp_path, layout, kind, eps, activation):
    """transformers' defaults, as in the configs of LLaVA, whose image encoder's says nothing of them."""
    folder(tmp_path, layout, model_type='llava', vision_config=dict(model_type=kind, num_attention_heads=4))
    model = APTViT.from_pretrained(tmp_path)
    assert model.norm.eps == model.blocks[0].norm1.eps == eps
    assert type(model.blocks[0].mlp.act).__name__ == activation


def test_sam3s_config_may_be_short(tmp_path):
    folder(tmp_path, 'hf_sam3', model_type='sam3_vit_model', num_attention_heads=4, global_attn_indexes=[0])
    model = APTSAM3.from_pretrained(tmp_path)
    assert model.window_size == 24 and model.global_blocks == {0}


def test_configs_of_other_model_types(tmp_path):
    """One of a relative counts (I-JEPA's, say), one of a language model does not."""
    folder(tmp_path, 'hf_vit', model_type='ijepa', **CONFIG)
    assert APTViT.from_pretrained(tmp_path).norm.eps == 1e-3
    folder(tmp_path, 'llava', **dict(CONFIG, model_type='llava_llama', hidden_size=64))
    model = APTViT.from_pretrained(tmp_path, num_heads=2, mlp='quick_gelu')
    assert model.norm.eps == 1e-5 and model.head_dim == DIM // 2


def test_normalisation(tmp_path):
    """Of the preprocessor's file, of timm's config, or of the family; what is given counts most."""
    folder(tmp_path, 'hf_vit', model_type='vit', **CONFIG)
    (tmp_path / 'preprocessor_config.json').write_text('{"image_mean": [0.5, 0.4, 0.3], "image_std": [0.5, 0.5, 0.5]}')
    model = APTViT.from_pretrained(tmp_path)
    assert model.chooser.img_mean == (127.5, 102.0, 76.5) and model.chooser.img_std == HALF_STD
    assert APTViT.from_pretrained(tmp_path, img_mean=(1, 2, 3)).chooser.img_mean == (1, 2, 3)
    (tmp_path / 'preprocessor_config.json').unlink()
    (tmp_path / 'processor_config.json').write_text(
        '{"image_processor": {"image_mean": [0.1, 0.1, 0.1], "image_std": [0.5, 0.5, 0.5]}}')
    assert APTViT.from_pretrained(tmp_path).chooser.img_mean == (25.5,) * 3
    (tmp_path / 'processor_config.json').unlink()
    folder(tmp_path, 'timm_vit', architecture='vit_base', pretrained_cfg=dict(mean=[0.2] * 3, std=[0.5] * 3))
    assert APTViT.from_pretrained(tmp_path, num_heads=4).chooser.img_mean == (51.0,) * 3
    folder(tmp_path, 'hf_clip', model_type='clip_vision_model', **CONFIG)
    assert APTViT.from_pretrained(tmp_path).chooser.img_mean == CLIP_MEAN


def test_sizes_that_are_given(tmp_path):
    """Positions and patches are resampled to them."""
    state = folder(tmp_path, 'hf_vit', model_type='vit', **CONFIG)
    model = APTViT.from_pretrained(tmp_path, patch_size=16, pretrain_img_size=96, img_size=(96, 192))
    assert model.pos_embed.shape == (1, 37, DIM) and model.patch_embed.proj.weight.shape[-1] == 16
    assert torch.equal(model.pos_embed[:, 0], state['pos_embed'][:, 0])
    assert torch.equal(APTViT.from_pretrained(tmp_path, patch_size=16).pos_embed, state['pos_embed'])
    assert APTViT.from_pretrained(tmp_path, with_cls_token=False).cls_token is None


def test_an_image_size_that_scales_and_windows_take(tmp_path):
    """A table of 4 x 4 patches is of no multiple of eight, DINOv2's of 37 x 37 of none at all."""
    folder(tmp_path, 'hf_vit', model_type='vit', **CONFIG)
    assert APTViT.from_pretrained(tmp_path, num_scales=4, thresholds=(1, 1, 1)).num_scales == 4
    model = APTViT.from_pretrained(tmp_path, window_size=3, global_block_indexes=(1,))
    assert model.window_size == 3
    with pytest.raises(ValueError, match='img_size=57'):
        APTViT.from_pretrained(tmp_path, img_size=57)


# ---- what is refused ----
def test_another_family_names_its_class(tmp_path):
    folder(tmp_path, 'hf_dinov3')
    with pytest.raises(ValueError, match=r'is of the family dinov3: take APTDINOv3\.from_pretrained'):
        APTViT.from_pretrained(tmp_path)
    folder(tmp_path, 'llava')
    with pytest.raises(ValueError, match=r'is of the family clip: take APTViT\.from_pretrained'):
        APTSAM3.from_pretrained(tmp_path / 'model.safetensors')


@pytest.mark.parametrize(('layout', 'config', 'message'), [
    ('hf_vit', dict(CONFIG, model_type='dinov2'), "model_type 'dinov2', and the tensors are of the family vit"),
    ('hf_vit', dict(CONFIG, model_type='vit', num_hidden_layers=DEPTH + 1), 'num_hidden_layers=4, and the tensors 3'),
    ('hf_vit', dict(CONFIG, model_type='vit', hidden_size=8), 'hidden_size=8, and the tensors 16'),
    ('hf_vit', dict(CONFIG, model_type='vit', hidden_act='gelu_new'), "hidden_act='gelu_new', which APTViT has not"),
    ('hf_dinov3', dict(CONFIG, model_type='dinov3_vit', hidden_act='quick_gelu'), 'which APTDINOv3 has not'),
    ('hf_dinov3_gated', dict(CONFIG, model_type='dinov3_vit'), "hidden_act='gelu' in a gated MLP"),
    ('hf_sam3', dict(CONFIG, model_type='sam3_vit_model', rope_parameters=dict(rope_theta=5.0)), 'rope_theta=5.0, and'),
    ('timm_vit', dict(architecture='vit_base_patch16_rope_224'), 'turns queries and keys, and APTViT does not')])
def test_a_config_that_does_not_fit(tmp_path, layout, config, message):
    folder(tmp_path, layout, **config)
    family = {'hf_sam3': APTSAM3}.get(layout, APTDINOv3 if 'dinov3' in layout else APTViT)
    with pytest.raises(ValueError, match=message):
        family.from_pretrained(tmp_path)


def test_overrides_that_do_not_fit_the_file(tmp_path):
    folder(tmp_path, 'hf_vit', model_type='vit', **CONFIG)
    with pytest.raises(ValueError, match=r'does not fit APTViT\. 16 parameters of the model are not in the file: '
                                         r'backbone\.blocks\.3'):
        APTViT.from_pretrained(tmp_path, depth=4)
    with pytest.raises(TypeError, match='colour'):
        APTViT.from_pretrained(tmp_path, colour=1)


def test_a_clip_without_a_config_must_be_told_its_activation(tmp_path):
    folder(tmp_path, 'openai_clip')
    with pytest.raises(ValueError, match="no tensor tells the activation of a CLIP: give mlp='quick_gelu'"):
        APTViT.from_pretrained(tmp_path, num_heads=2)
    model = APTViT.from_pretrained(tmp_path, num_heads=2, mlp='quick_gelu')
    assert model.norm_pre.eps == 1e-5 and model.chooser.img_mean == CLIP_MEAN


def test_heads_without_a_config(tmp_path):
    """64 channels each, but for published models that have others."""
    assert [heads_of(dims, 'vit') for dims in (192, 384, 512, 768, 1280, 1408)] == [3, 6, 8, 12, 16, 16]
    assert [heads_of(dims, 'dinov3') for dims in (384, 1280, 4096)] == [6, 20, 32]
    assert heads_of(1024, 'sam3') == 16
    folder(tmp_path, 'mae')
    with pytest.raises(ValueError, match='16 channels are no multiple of 64: give num_heads'):
        APTViT.from_pretrained(tmp_path)


# ---- names at Hugging Face ----
def hub(monkeypatch, files_of: dict, asked: list) -> None:
    """A huggingface_hub whose snapshots are folders here; it notes which files are asked for."""
    def snapshot_download(name: str, allow_patterns: list[str]) -> str:
        asked.append((name, allow_patterns))
        if name not in files_of:
            raise OSError('404: no such repository.\nA second line.')
        return str(files_of[name])
    monkeypatch.setitem(sys.modules, 'huggingface_hub', SimpleNamespace(snapshot_download=snapshot_download))


def test_a_name(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    folder(tmp_path, 'hf_vit', model_type='vit', **CONFIG)
    asked = []
    hub(monkeypatch, {'owner/vit-base': tmp_path}, asked)
    assert APTViT.from_pretrained('owner/vit-base').embed_dims == DIM
    assert [name for name, _ in asked] == ['owner/vit-base']
    assert {'config.json', 'preprocessor_config.json', 'model*.safetensors'} <= set(asked[0][1])
    with pytest.raises(ValueError, match=r'owner/none does not exist here, and was not fetched from Hugging Face: 404: '
                                         r'no such repository\. Without a connection give a local folder$'):
        APTViT.from_pretrained('owner/none')


def test_a_name_without_such_files(tmp_path, monkeypatch):
    asked = []
    hub(monkeypatch, {'owner/other': tmp_path}, asked)
    with pytest.raises(ValueError, match=r'owner/other at Hugging Face has none of model\.safetensors'):
        APTViT.from_pretrained('owner/other')
    assert 'pytorch_model*.bin' in asked[1][1]


@pytest.mark.parametrize('name', ['no/such/folder/here', 'no_such_file.pth', '/tmp/no/such'])
def test_what_is_no_name(name):
    with pytest.raises(ValueError, match=f'{name} does not exist, and is no name of a model at Hugging Face'):
        APTDINOv3.from_pretrained(name)


def test_a_missing_huggingface_hub_names_its_extra(monkeypatch):
    monkeypatch.setitem(sys.modules, 'huggingface_hub', None)
    with pytest.raises(ModuleNotFoundError, match="huggingface_hub is not installed. What is needed here is in the "
                                                  "extra 'hf'"):
        APTViT.from_pretrained('owner/vit-base')
