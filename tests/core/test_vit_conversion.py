"""Conversion of other libraries' files: every key lands, or nothing comes of it."""
import pytest
import torch
import torch.nn.functional as F

from apt_dense.core.vit_conversion import convert_vit
from tests.core.vit_files import DEPTH, DIM, FILES, plain, random_state

# A parameter of each family that may not be missing, and how files call it.
NEEDED = {'timm_vit': ('blocks.1.attn.qkv.bias', r'blocks\.1\.attn\.k_proj\.bias'),
          'hf_vit': ('vit.encoder.layer.2.output.dense.weight', r'blocks\.2\.mlp\.fc2\.weight'),
          'hf_dinov2': ('encoder.layer.1.layer_scale2.lambda1', r'blocks\.1\.ls2\.gamma'),
          'meta_dinov3': ('norm.bias', r'norm\.bias'), 'hf_dinov3': ('embeddings.cls_token', 'cls_token'),
          'hf_clip': ('vision_model.pre_layrnorm.weight', r'norm_pre\.weight'),
          'openai_clip': ('visual.positional_embedding', 'pos_embed'),
          'hf_sam3': ('vision_encoder.backbone.layers.0.mlp.fc1.weight', r'blocks\.0\.mlp\.fc1\.weight')}


@pytest.fixture
def files():
    """files(layout) -> the state dict here, and the file's."""
    def make(layout):
        build, _, write = FILES[layout]
        state = random_state(build())
        return state, write(state)
    return make


@pytest.mark.parametrize('layout', FILES)
def test_every_layout(files, layout):
    state, file = files(layout)
    before = {name: tensor.clone() for name, tensor in file.items()}
    result = convert_vit(file)
    assert result.family == FILES[layout][1]
    assert result.state_dict.keys() == {f'backbone.{name}' for name in state}
    for name, tensor in state.items():
        assert torch.equal(result.state_dict[f'backbone.{name}'], tensor), name
    assert result.mapped.keys() | set(result.dropped) == file.keys()
    assert file.keys() == before.keys() and all(torch.equal(file[name], before[name]) for name in file)


@pytest.mark.parametrize('layout', FILES)
def test_the_sizes_are_those_of_the_model(files, layout):
    """... so that a model of them has these parameters."""
    state, file = files(layout)
    result = convert_vit(file)
    build, _, _ = FILES[layout]
    changed = dict(window_size=0, global_block_indexes=()) if result.family == 'sam3' else {}
    if layout.startswith('apt_classifier'):
        changed = dict(num_scales=2, thresholds=(1,))
    model = type(build())(**{**result.sizes, 'num_heads': 2, 'img_size': 56, **changed})
    assert {name: tensor.shape for name, tensor in model.state_dict().items()} == {
        name: tensor.shape for name, tensor in state.items()}


@pytest.mark.parametrize('layout', NEEDED)
def test_missing_keys_are_named(files, layout):
    _, file = files(layout)
    old, new = NEEDED[layout]
    del file[old]
    with pytest.raises(ValueError, match=rf'^\d keys are missing: {new}[, ]'):
        convert_vit(file)


@pytest.mark.parametrize('layout', FILES)
def test_unknown_keys_are_named(files, layout):
    """Beside a name of the first block, where every layout has the encoder's."""
    _, file = files(layout)
    old = next(name for name in file if name.endswith(('norm1.weight', 'layernorm_before.weight', 'ln_1.weight',
                                                       'layer_norm1.weight')))
    odd = old.removesuffix('weight') + 'odd'
    with pytest.raises(ValueError, match=rf'1 keys do not belong to a \w+ file of .+: {odd}$'):
        convert_vit({**file, odd: torch.zeros(1)})


@pytest.mark.parametrize('layout', [name for name in FILES if 'sam3' not in name])
def test_keys_of_another_part_are_named(files, layout):
    """A whole SAM 3 has any parts beside its encoder, the others have not."""
    _, file = files(layout)
    with pytest.raises(ValueError, match=r'1 keys do not belong to a \w+ file of .+: depth_head\.weight$'):
        convert_vit({**file, 'depth_head.weight': torch.zeros(1)})


def test_a_data_parallel_prefix(files):
    state, file = files('timm_vit')
    result = convert_vit({f'module.{name}': tensor for name, tensor in file.items()})
    assert result.state_dict.keys() == {f'backbone.{name}' for name in state}


# ---- families ----
def test_the_family_that_is_asked_for(files):
    _, file = files('timm_no_embed_class')
    assert convert_vit(file, 'dinov2').family == 'dinov2'  # the same names
    with pytest.raises(ValueError, match='these are the names of vit or dinov2, not of dinov3: set --family vit'):
        convert_vit(file, 'dinov3')
    with pytest.raises(ValueError, match="unknown family 'swin': choose one of"):
        convert_vit(file, 'swin')


def test_a_file_of_something_else():
    with pytest.raises(ValueError, match=r'belong to no encoder that is known here: layer1\.0\.conv1\.weight\. Wanted '
                                         r'are, .*encoder\.layer\.0\.layernorm_before\.weight \(vit, transformers\)'):
        convert_vit({'layer1.0.conv1.weight': torch.zeros(1)})
    with pytest.raises(ValueError, match='storage_tokens and blocks') as error:
        convert_vit({'layer1.0.conv1.weight': torch.zeros(1)}, 'dinov3')
    assert 'clip' not in str(error.value)


@pytest.mark.parametrize(('name', 'what'), [
    ('blocks.0.attn.relative_position_bias_table', 'BEiT or a relative, whose attention adds a bias'),
    ('beit.encoder.layer.0.attention.attention.relative_position_bias.relative_position_bias_table', 'BEiT'),
    ('image_encoder.blocks.0.attn.rel_pos_h', 'SAM 1 or ViTDet'), ('backbone.net.blocks.3.attn.rel_pos_w', 'ViTDet'),
    ('encoder.layer.0.attention.rel_pos_h', 'SAM 1 or ViTDet'),
    ('blocks.0.attn.rel_pos.mlp.fc1.weight', 'BEiT or a relative'),
    ('blocks.0.attn.rel_pos.relative_position_bias_table', 'BEiT or a relative'),
    ('shared_rel_pos.relative_position_bias_table', 'BEiT or a relative'),
    ('shared_rel_pos.mlp.fc1.weight', 'BEiT or a relative'),
    ('encoder.layers.0.patch_embedding.proj.weight', 'PVT or SegFormer, whose stages pool'),
    ('segformer.encoder.patch_embeddings.0.proj.weight', 'PVT or SegFormer, whose stages pool'),
    ('layers.0.blocks.0.attn.relative_position_bias_table', 'Swin, whose windows shift'),
    ('swin.encoder.layers.0.blocks.0.attention.self.relative_position_bias_table', 'Swin'),
    ('backbone.stages.0.blocks.0.attn.w_msa.qkv.weight', 'Swin'),
    ('blocks.2.proj.weight', 'Hiera, whose stages pool'), ('image_encoder.trunk.blocks.5.proj.weight', 'Hiera'),
    ('stages.0.blocks.0.attn.pool_q.weight', 'MViT, whose stages pool')])
def test_encoders_that_cannot_work(files, name, what):
    """... some of which have timm's names else."""
    for others in ({}, files('timm_vit')[1]):
        with pytest.raises(ValueError, match=f'{name} is of .*{what}.*cannot have patches of adaptive size'):
            convert_vit({**others, name: torch.zeros(1)})


def test_a_pvt_is_no_swin():
    names = ('encoder.layers.0.blocks.0.attention.key.bias', 'encoder.layers.0.patch_embedding.proj.weight')
    with pytest.raises(ValueError, match='is of PVT or SegFormer'):
        convert_vit({name: torch.zeros(1) for name in names})


def test_official_eva02_and_converted_files(files):
    eva02 = {f'blocks.0.{layer}': torch.zeros(1)
             for layer in ('attn.q_proj.weight', 'attn.q_bias', 'mlp.w1.weight', 'mlp.ffn_ln.weight')}
    with pytest.raises(ValueError, match='official EVA-02 file: convert it by tools/model_converters/eva02_to_mm.py'):
        convert_vit(eva02)
    with pytest.raises(ValueError, match="in this project's format already. Use it as it is"):
        convert_vit(convert_vit(files('hf_vit')[1]).state_dict)


# ---- what cannot be told apart or put together ----
def test_two_names_of_one_parameter_must_agree(files):
    _, file = files('apt_classifier')
    file['mixed_patch.base_pos_embed'] += 1
    with pytest.raises(ValueError, match=r'(mixed_patch\.base_)?pos_embed and .*pos_embed are one parameter here, '
                                         'pos_embed, and differ in the file'):
        convert_vit(file)


def test_biases_of_dinov3s_keys(files):
    _, file = files('timm_dinov3_fused_bias')
    file['blocks.1.attn.qkv.bias'][DIM] = 1
    with pytest.raises(ValueError, match=r'blocks\.1\.attn: keys have a bias that is not 0'):
        convert_vit(file)
    _, file = files('meta_dinov3')
    file['blocks.2.attn.qkv.bias_mask'][0] = 0
    with pytest.raises(ValueError, match=r'blocks\.2\.attn\.qkv\.bias_mask masks other biases than those of the keys'):
        convert_vit(file)


def test_tensors_of_other_sizes(files):
    _, file = files('timm_vit')
    file['blocks.1.attn.qkv.weight'] = torch.zeros(3 * DIM + 1, DIM)
    with pytest.raises(ValueError, match=rf'attn\.qkv\.weight has {3 * DIM + 1} rows, wanted a multiple of 3'):
        convert_vit(file)
    file['blocks.1.attn.qkv.weight'] = torch.zeros(3 * DIM + 3, DIM)
    with pytest.raises(ValueError, match=r'3 shapes do not fit the others: blocks\.1\.attn\.q_proj\.weight: \(17, '):
        convert_vit(file)
    file['pos_embed'] = torch.zeros(1, 19, DIM)
    with pytest.raises(ValueError, match='pos_embed has 19 entries, which fit no grid: wanted a square number and 0 or '
                                         '1 for the prefix'):
        convert_vit(file)


# ---- a target ----
def shapes(**changes) -> dict:
    model = plain(**changes)()
    return {f'backbone.{name}': tensor.shape for name, tensor in model.state_dict().items()} | {
        'decode_head.conv.weight': torch.Size([1])}


def test_positions_and_patches_follow_the_target(files):
    state, file = files('hf_vit')
    result = convert_vit(file, target_shapes=shapes(patch_size=16, img_size=96, pretrain_img_size=96))
    assert result.absent == ['decode_head'] and len(result.resampled) == 2
    expected = F.interpolate(state['patch_embed.proj.weight'], size=(16, 16), mode='bicubic', align_corners=False)
    torch.testing.assert_close(result.state_dict['backbone.patch_embed.proj.weight'], expected)
    table = result.state_dict['backbone.pos_embed']
    assert torch.equal(table[:, 0], state['pos_embed'][:, 0])
    grid = state['pos_embed'][0, 1:].T.view(1, DIM, 4, 4)
    expected = F.interpolate(grid, size=(6, 6), mode='bicubic', align_corners=False)[0].flatten(1).T
    torch.testing.assert_close(table[0, 1:], expected)


def test_a_table_without_prefix_follows_the_target(files):
    _, file = files('timm_no_embed_class')
    target = shapes(prefix_positions=0, num_registers=4, layer_scale=1, img_size=84, pretrain_img_size=84)
    assert convert_vit(file, target_shapes=target).state_dict['backbone.pos_embed'].shape == (1, 36, DIM)


def test_what_a_target_may_do_without(files):
    """A class token and the last norm; what APT adds may be in neither."""
    _, file = files('hf_vit')
    target = shapes(with_cls_token=False, final_norm=False, num_scales=3, thresholds=(1, 1))
    result = convert_vit(file, target_shapes=target)
    assert {'vit.embeddings.cls_token', 'vit.layernorm.bias'} <= set(result.dropped)
    assert not {'backbone.cls_token', 'backbone.norm.weight'} & result.state_dict.keys()
    _, file = files('apt_classifier')
    assert 'mixed_patch.zero_conv.bias' in convert_vit(file, target_shapes=shapes()).dropped


def test_what_does_not_fit_the_target_is_named(files):
    _, file = files('hf_vit')
    with pytest.raises(ValueError, match=r'does not fit the config\. .*parameters of the model are not in the file: '
                                         rf'backbone\.blocks\.{DEPTH}'):
        convert_vit(file, target_shapes=shapes(depth=DEPTH + 1))
    with pytest.raises(ValueError, match=r'keys have no place in the model: backbone\.blocks\.2'):
        convert_vit(file, target_shapes=shapes(depth=2))
    with pytest.raises(ValueError, match=r'shapes differ: .*\(16, 16\) in the file, \(32, 32\) in the model'):
        convert_vit(file, target_shapes=shapes(embed_dims=32))


# ---- a classifier's head ----
@pytest.mark.parametrize(('layout', 'name'), [('timm_vit', 'head'), ('hf_vit', 'classifier'),
                                              ('apt_classifier', 'head')])
def test_a_head_is_kept_where_it_is_wanted(files, layout, name):
    state, file = files(layout)
    dims = state['cls_token'].shape[-1]
    head = {f'{name}.weight': torch.randn(7, dims), f'{name}.bias': torch.randn(7)}
    shapes = {f'backbone.{key}': tensor.shape for key, tensor in state.items()}
    file = {key: tensor for key, tensor in file.items() if not key.startswith('head.')}
    assert not [key for key in convert_vit({**file, **head}, target_shapes=shapes).state_dict if 'head' in key]
    wanted = shapes | {'head.weight': torch.Size([7, dims]), 'head.bias': torch.Size([7])}
    for result in (convert_vit({**file, **head}, target_shapes=wanted), convert_vit({**file, **head}, head=True)):
        assert torch.equal(result.state_dict['head.weight'], head[f'{name}.weight'])
        assert result.mapped[f'{name}.bias'] == 'head.bias' and f'{name}.bias' not in result.dropped
    dropped = convert_vit({**file, **head}, target_shapes=wanted, head=False)
    assert dropped.absent == ['head'] and f'{name}.weight' in dropped.dropped
    other = wanted | {'head.weight': torch.Size([10, dims]), 'head.bias': torch.Size([10])}
    with pytest.raises(ValueError, match=f'the head is of 7 classes and {dims} channels, .* of 10 and {dims}: --head'):
        convert_vit({**file, **head}, target_shapes=other)


def test_the_norm_after_a_mean_belongs_to_the_head(files):
    """A model that pools by a mean has fc_norm in place of the last norm: both are checked."""
    state, file = files('timm_vit')
    dims = state['cls_token'].shape[-1]
    file = {key: tensor for key, tensor in file.items() if key not in ('norm.weight', 'norm.bias')}
    head = {'head.weight': torch.randn(7, dims), 'head.bias': torch.randn(7), 'fc_norm.weight': torch.randn(dims),
            'fc_norm.bias': torch.randn(dims)}
    shapes = {f'backbone.{key}': tensor.shape for key, tensor in state.items() if not key.startswith('norm.')}
    wanted = shapes | {key: tensor.shape for key, tensor in head.items()}
    result = convert_vit({**file, **head}, target_shapes=wanted)
    assert all(torch.equal(result.state_dict[key], tensor) for key, tensor in head.items())
    token = shapes | {'head.weight': torch.Size([7, dims]), 'head.bias': torch.Size([7])}  # pools by the class token
    with pytest.raises(ValueError, match='2 keys have no place in the model: fc_norm.bias, fc_norm.weight'):
        convert_vit({**file, **head}, target_shapes=token)
