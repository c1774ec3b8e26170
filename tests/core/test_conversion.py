"""Conversion of official checkpoints: every key lands, or nothing is written."""
import sys
from types import SimpleNamespace

import pytest
import torch
import torch.nn.functional as F

from apt_dense import APTEVA02, SimpleFeaturePyramid
from apt_dense.core.conversion import convert
from apt_dense.core.eva02_keys import looks_official
from tests.locations import load_tool

pytestmark = pytest.mark.own_device  # files are read and written on a CPU

DEPTH, DIM = 3, 16


def backbone(**changes) -> APTEVA02:
    return APTEVA02(**dict(dict(img_size=64, embed_dims=DIM, depth=DEPTH, num_heads=2, window_size=0,
                                global_block_indexes=(), pretrain_img_size=224, with_cls_token=True), **changes))


def randomised(state: dict) -> dict:
    return {name: torch.randn_like(value) if value.is_floating_point() else value for name, value in state.items()}


@pytest.fixture
def pretrained() -> dict:
    """The layout of a masked-image-modelling file."""
    state = randomised(backbone().state_dict())
    extra = ('mask_token', 'norm.weight', 'norm.bias', 'lm_head.weight', 'lm_head.bias', 'rope.freqs_cos',
             'rope.freqs_sin', 'blocks.0.attn.rope.freqs_cos')
    return {**state, **{name: torch.randn(2) for name in extra}}


@pytest.fixture
def detector() -> dict:
    """The layout of a detectron2 file: backbone, pyramid, RPN and heads."""
    state = {f'backbone.net.{name}': value for name, value in backbone(with_cls_token=False).state_dict().items()}
    state |= {f'backbone.net.{name}': torch.zeros(4, 4) for name in ('rope_win.freqs_cos', 'rope_glb.freqs_sin')}
    state |= {f'backbone.{name}': value for name, value in SimpleFeaturePyramid(DIM, 8).state_dict().items()}
    both = ('weight', 'bias')
    rpn, heads = 'proposal_generator.rpn_head', 'roi_heads'
    names = [f'{rpn}.{layer}.{kind}' for layer in ('conv.conv0', 'conv.conv1', 'objectness_logits', 'anchor_deltas')
             for kind in both]
    for stage in range(3):
        names += [f'{heads}.box_head.{stage}.conv{n}.{kind}' for n in range(1, 5)
                  for kind in ('weight', 'norm.weight', 'norm.bias')]
        names += [f'{heads}.box_head.{stage}.fc1.{kind}' for kind in both]
        names += [f'{heads}.box_predictor.{stage}.{layer}.{kind}' for layer in ('cls_score', 'bbox_pred')
                  for kind in both]
    names += [f'{heads}.mask_head.mask_fcn{n}.{kind}' for n in range(1, 5)
              for kind in ('weight', 'norm.weight', 'norm.bias')]
    names += [f'{heads}.mask_head.{layer}.{kind}' for layer in ('deconv', 'predictor') for kind in both]
    return randomised({**state, **{name: torch.zeros(3) for name in names}})


@pytest.fixture
def segmentor(reference) -> dict:
    """The backbone and neck of the official segmentation reference file."""
    state = {key[3:]: value for key, value in reference('eva02_seg_backbone').items() if key.startswith('sd/')}
    return {**state, 'backbone.fpn1.1.num_batches_tracked': torch.tensor(0),
            'backbone.blocks.0.attn.rope.freqs_cos': torch.zeros(2)}


# ---- names ----
def test_detection(detector):
    result = convert(detector)
    assert result.task == 'det' and not result.absent and not result.resampled
    assert sorted(result.dropped) == ['backbone.net.rope_glb.freqs_sin', 'backbone.net.rope_win.freqs_cos']
    assert len(result.mapped) == len(result.state_dict) == len(detector) - 2
    for old, new in (
            ('backbone.net.blocks.2.attn.q_bias', 'backbone.blocks.2.attn.q_bias'),
            ('backbone.simfp_2.4.norm.bias', 'neck.simfp_2.4.norm.bias'),
            ('proposal_generator.rpn_head.conv.conv1.bias', 'rpn_head.rpn_conv.1.conv.bias'),
            ('roi_heads.box_head.1.conv4.norm.weight', 'roi_head.bbox_head.1.shared_convs.3.ln.weight'),
            ('roi_heads.box_head.2.fc1.weight', 'roi_head.bbox_head.2.shared_fcs.0.weight'),
            ('roi_heads.mask_head.mask_fcn1.weight', 'roi_head.mask_head.convs.0.conv.weight'),
            ('roi_heads.mask_head.deconv.bias', 'roi_head.mask_head.upsample.bias')):
        assert result.state_dict[new] is detector[old]


def test_segmentation_backbone_and_neck(segmentor):
    result = convert(segmentor)
    assert (result.task, result.absent) == ('seg', ['decode_head', 'auxiliary_head'])
    assert result.dropped == ['backbone.blocks.0.attn.rope.freqs_cos']
    assert torch.equal(result.state_dict['neck.upsample_4x.3.weight'], segmentor['backbone.fpn1.3.weight'])
    assert torch.equal(result.state_dict['neck.upsample_2x.0.bias'], segmentor['backbone.fpn2.0.bias'])
    assert torch.equal(result.state_dict['backbone.cls_token'], segmentor['backbone.cls_token'])


def test_pretrained(pretrained):
    result = convert(pretrained)
    assert result.task == 'pretrain'
    assert {'mask_token', 'norm.weight', 'lm_head.bias', 'rope.freqs_cos'} <= set(result.dropped)
    model = backbone()
    model.load_state_dict({name.removeprefix('backbone.'): value for name, value in result.state_dict.items()})
    assert torch.equal(model.pos_embed, pretrained['pos_embed'])


def test_only_a_backbone_or_backbone_and_pyramid(detector):
    net = {name: value for name, value in detector.items() if name.startswith('backbone.net.')}
    assert convert(net).absent == ['neck', 'rpn_head', 'roi_head.bbox_head', 'roi_head.mask_head']
    both = {name: value for name, value in detector.items() if name.startswith('backbone.')}
    assert convert(both).absent == ['rpn_head', 'roi_head.bbox_head', 'roi_head.mask_head']


def test_data_parallel_prefix(detector):
    wrapped = {f'module.{name}': value for name, value in detector.items()}
    assert convert(wrapped).state_dict.keys() == convert(detector).state_dict.keys()


@pytest.mark.parametrize('name', ['backbone.net.blocks.1.attn.qkv.weight', 'roi_heads.keypoint_head.weight', 'odd'])
def test_unknown_keys_are_named(detector, name):
    wanted = 'left over' if 'qkv' in name else 'do not belong'
    with pytest.raises(ValueError, match=rf'1 keys .*{wanted}.*{name.split("net.")[-1]}'):
        convert({**detector, name: torch.zeros(1)})


@pytest.mark.parametrize(('old', 'new'), [
    ('backbone.net.blocks.1.mlp.w3.bias', 'backbone.blocks.1.mlp.w3.bias'),
    ('backbone.simfp_3.1.weight', 'neck.simfp_3.1.weight'),
    ('roi_heads.box_predictor.2.cls_score.bias', 'roi_head.bbox_head.2.fc_cls.bias')])
def test_missing_keys_are_named(detector, old, new):
    del detector[old]
    with pytest.raises(ValueError, match=rf'1 keys are missing: {new}'):
        convert(detector)


def test_a_file_of_something_else():
    with pytest.raises(ValueError, match=r'belong to no official EVA-02 checkpoint: layer1\.0\.conv1\.weight'):
        convert({'layer1.0.conv1.weight': torch.zeros(1)})
    with pytest.raises(ValueError, match="unknown task 'pose'"):
        convert({}, 'pose')


def test_a_converted_file_is_not_converted_again(detector):
    with pytest.raises(ValueError, match=r"in this project's format already\. Use it as it is: apt_dense\.load"):
        convert(convert(detector).state_dict)
    apt = {f'backbone.{name}': value for name, value in backbone(num_scales=3, thresholds=(1, 1)).state_dict().items()}
    with pytest.raises(ValueError, match="in this project's format already"):
        convert(apt)


def test_a_missing_last_block():
    state = {f'backbone.net.{name}': value for name, value in backbone(
        embed_dims=192, depth=11, num_heads=3, with_cls_token=False).state_dict().items()}
    with pytest.raises(ValueError, match=r'the last block, backbone\.blocks\.11, is missing: .*192 channels has 12'):
        convert(state)


def test_official_names_are_told_from_converted_ones(detector, segmentor, pretrained):
    for state, task in ((detector, 'det'), (segmentor, 'seg'), (pretrained, 'pretrain')):
        assert looks_official(state) == task
        assert looks_official(convert(state).state_dict) is None


BOTH = ('weight', 'bias')
# What the blocks of other vision transformers hold, and names beside them.
OTHER_VITS = {
    'timm_vit_dino_mae': ((*(f'{layer}.{kind}' for layer in ('norm1', 'attn.qkv', 'attn.proj', 'norm2', 'mlp.fc1',
                                                            'mlp.fc2') for kind in BOTH),),
                          ('cls_token', 'pos_embed', 'patch_embed.proj.weight', 'norm.weight', 'head.weight')),
    'timm_eva02_b': (('attn.q_proj.weight', 'attn.q_proj.bias', 'attn.k_proj.weight', 'attn.v_proj.weight',
                      'attn.v_proj.bias', 'mlp.fc1_g.weight', 'mlp.fc1_x.weight', 'mlp.norm.weight', 'mlp.fc2.weight'),
                     ('cls_token', 'pos_embed', 'patch_embed.proj.weight', 'fc_norm.weight')),
    'timm_eva02_ti': (('attn.qkv.weight', 'attn.q_bias', 'attn.v_bias', 'mlp.fc1_g.weight', 'mlp.fc2.weight'),
                      ('pos_embed', 'patch_embed.proj.weight')),
    'eva02_ti': (('attn.qkv.weight', 'attn.q_bias', 'attn.v_bias', 'mlp.w1.weight', 'mlp.w2.weight', 'mlp.w3.weight'),
                 ('pos_embed', 'patch_embed.proj.weight', 'rope.freqs_cos')),
    'eva01_beit': (('attn.qkv.weight', 'attn.q_bias', 'attn.v_bias', 'mlp.fc1.weight', 'mlp.fc2.weight', 'gamma_1'),
                   ('mask_token', 'pos_embed', 'patch_embed.proj.weight')),
    'dinov3_swiglu': (('attn.qkv.weight', 'attn.qkv.bias', 'ls1.gamma', 'mlp.w1.weight', 'mlp.w2.weight',
                       'mlp.w3.weight'), ('storage_tokens', 'patch_embed.proj.weight', 'rope_embed.periods')),
}


@pytest.fixture(params=OTHER_VITS)
def other_vit(request) -> dict:
    """The names of another transformer's bare backbone."""
    layers, others = OTHER_VITS[request.param]
    return {name: torch.zeros(2, 2) for name in (*others, *(f'blocks.{n}.{layer}' for n in (0, 1) for layer in layers))}


# What each task's official files put before the backbone's names, and other names of their layout.
LAYOUTS = {'pretrain': ('', ()), 'det': ('backbone.net.', ('backbone.simfp_2.0.weight', 'roi_heads.mask_head.a')),
           'seg': ('backbone.', ('backbone.fpn1.0.weight', 'decode_head.conv_seg.weight'))}


@pytest.mark.parametrize('layout', LAYOUTS)
@pytest.mark.parametrize('wrapped', [False, True])
def test_another_vision_transformer_is_not_taken_for_eva02(other_vit, layout, wrapped):
    prefix, others = LAYOUTS[layout]
    state = {f'{prefix}{name}': value for name, value in other_vit.items()} | dict.fromkeys(others, torch.zeros(1))
    state = {f'module.{name}': value for name, value in state.items()} if wrapped else state
    assert looks_official(state) is None
    for task, named in (('auto', ''), (layout, f'{layout} ')):
        with pytest.raises(ValueError, match=f'these keys belong to no official EVA-02 {named}checkpoint: .*Wanted are '
                                             r'.*attn\.q_proj\.weight, .*attn\.q_bias, .*mlp\.w1\.weight, .*mlp\.ffn_ln'
                                             r'\.weight in the blocks of B and L; there is no .*mlp\.ffn_ln\.weight'):
            convert(state, task)


def test_timms_copy_of_eva02_is_told_apart():
    state = {f'blocks.0.{layer}': torch.zeros(1) for layer in OTHER_VITS['timm_eva02_b'][0]}
    with pytest.raises(ValueError, match=r"no attn\.q_bias, mlp\.w1\.weight, mlp\.ffn_ln\.weight\. These names are "
                                         "timm's: take the file of EVA-02's authors"):
        convert(state)


def test_another_task_than_the_files(detector, pretrained):
    with pytest.raises(ValueError, match='belong to no official EVA-02 det checkpoint: .*backbone.net.blocks.N.attn'):
        convert(pretrained, 'det')
    with pytest.raises(ValueError, match='belong to no official EVA-02 pretrain checkpoint: backbone.net'):
        convert(detector, 'pretrain')


@pytest.mark.parametrize('name', ['bottom_up.res2.0.conv1.weight', 'layers.0.attn.qkv.weight'])
@pytest.mark.parametrize('head', ['roi_heads.box_head.fc1.bias', 'roi_head.bbox_head.fc.bias', 'decode_head.a'])
def test_a_model_with_another_backbone_is_not_taken_for_eva02(name, head):
    """Of detectron2, mmdetection or mmsegmentation: neither official nor converted already."""
    state = dict.fromkeys((f'backbone.{name}', head), torch.zeros(1))
    assert looks_official(state) is None
    with pytest.raises(ValueError, match=f'belong to no official EVA-02 checkpoint: backbone.{name}'):
        convert(state)


def test_a_data_parallel_file_is_official(detector, segmentor, pretrained):
    """mmengine takes the prefix away, and finds no name of the model all the same."""
    for state, task in ((detector, 'det'), (segmentor, 'seg'), (pretrained, 'pretrain')):
        assert looks_official({f'module.{name}': value for name, value in state.items()}) == task


# ---- sizes ----
def test_patches_of_14_px(pretrained):
    pretrained['patch_embed.proj.weight'] = torch.randn(DIM, 3, 14, 14)
    pretrained['pos_embed'] = torch.randn(1, 16 * 16 + 1, DIM)
    result = convert(pretrained)
    assert len(result.resampled) == 2
    expected = F.interpolate(pretrained['patch_embed.proj.weight'], size=(16, 16), mode='bicubic', align_corners=False)
    torch.testing.assert_close(result.state_dict['backbone.patch_embed.proj.weight'], expected)
    table = result.state_dict['backbone.pos_embed']
    assert table.shape == (1, 14 * 14 + 1, DIM)
    assert torch.equal(table[:, 0], pretrained['pos_embed'][:, 0])
    grid = pretrained['pos_embed'][0, 1:].T.view(1, DIM, 16, 16)
    expected = F.interpolate(grid, size=(14, 14), mode='bicubic', align_corners=False)[0].flatten(1).T
    torch.testing.assert_close(table[0, 1:], expected)


def shapes(model) -> dict:
    return {f'backbone.{name}': value.shape for name, value in model.state_dict().items()}


def test_positions_follow_the_target(pretrained):
    target = shapes(backbone(img_size=(512, 512), pretrain_img_size=512))
    result = convert(pretrained, target_shapes=target)
    assert result.resampled == ['backbone.pos_embed: 14x14 -> 32x32 positions']
    assert result.state_dict['backbone.pos_embed'].shape == target['backbone.pos_embed']


def test_a_detector_takes_no_class_token_and_apt_may_add_parameters(pretrained):
    target = shapes(backbone(with_cls_token=False, num_scales=3, thresholds=(2, 2)))
    result = convert(pretrained, target_shapes=target)
    assert 'cls_token' in result.dropped and 'backbone.cls_token' not in result.state_dict


def test_what_does_not_fit_the_target_is_named(pretrained):
    with pytest.raises(ValueError, match=r'does not fit the config\. .*parameters of the model are not in the file: '
                                         r'backbone\.blocks\.3'):
        convert(pretrained, target_shapes=shapes(backbone(depth=4)))
    with pytest.raises(ValueError, match=r'keys have no place in the model: backbone\.blocks\.2'):
        convert(pretrained, target_shapes=shapes(backbone(depth=2)))
    with pytest.raises(ValueError, match=r'shapes differ: .*\(16, 16\) in the file, \(32, 32\) in the model'):
        convert(pretrained, target_shapes=shapes(backbone(embed_dims=32)))


# ---- the tool ----
@pytest.fixture
def run_tool(monkeypatch, capsys):
    """run_tool(*arguments) -> the converter's exit status and what it prints."""
    tool = load_tool('model_converters/eva02_to_mm.py')

    def run(*arguments) -> SimpleNamespace:
        monkeypatch.setattr(sys, 'argv', ['eva02_to_mm.py', *map(str, arguments)])
        status = 0
        try:
            tool.run(tool.main)
        except SystemExit as stopped:
            status = stopped.code
        printed = capsys.readouterr()
        return SimpleNamespace(returncode=status, stdout=printed.out, stderr=printed.err)

    return run


def test_tool_converts_and_reports(tmp_path, detector, run_tool):
    source, target = tmp_path / 'official.pth', tmp_path / 'out/converted.pth'
    torch.save({'model': detector, 'optimizer': {}}, source)
    before = source.read_bytes()
    done = run_tool(source, target)
    assert done.returncode == 0, done.stderr
    for line in (f'mapped:      {len(detector) - 2} keys', 'dropped:     2 keys', 'left over:   none',
                 'not used:    entries optimizer', f'written:     {target}'):
        assert line in done.stdout
    converted = torch.load(target)
    assert converted['meta'] == {'converted_from': 'official.pth', 'task': 'det', 'entry': 'model'}
    assert converted['state_dict'].keys() == convert(detector).state_dict.keys()
    assert source.read_bytes() == before
    again = run_tool(source, target)
    assert again.returncode == 2 and 'exists: remove it, or replace it with --force' in again.stderr


def test_tool_on_another_vision_transformer(tmp_path, run_tool):
    torch.save({'model': {f'blocks.0.{layer}': torch.zeros(1) for layer in OTHER_VITS['timm_vit_dino_mae'][0]}},
               tmp_path / 'vit.pth')
    done = run_tool(tmp_path / 'vit.pth', tmp_path / 'converted.pth')
    assert done.returncode == 2 and 'belong to no official EVA-02 checkpoint' in done.stderr
    assert [path.name for path in tmp_path.iterdir()] == ['vit.pth']


def test_tool_writes_nothing_on_an_error(tmp_path, detector, run_tool):
    source = tmp_path / 'official.pth'
    torch.save({'model': {**detector, 'roi_heads.odd': torch.zeros(1)}}, source)
    done = run_tool(source, tmp_path / 'converted.pth')
    assert done.returncode == 2 and not done.stdout
    assert done.stderr.startswith('error: 1 keys do not belong') and 'roi_heads.odd' in done.stderr
    assert [path.name for path in tmp_path.iterdir()] == ['official.pth']
    same = run_tool(source, source, '--force')
    assert same.returncode == 2 and 'the same file' in same.stderr
