"""Every argument of the families, the chooser and the embedding with values that it cannot have."""
import pytest
import torch

from apt_dense import APTEVA02, APTSAM3, APTDINOv3, APTViT, PackedViT, PatchChooser, SimpleFeaturePyramid
from apt_dense.core.arguments import check_arguments
from apt_dense.core.block import Attention, Block
from apt_dense.core.embed import AdaptivePatchEmbed
from apt_dense.core.layers import MLP
from apt_dense.core.rope import Rotary

NAN, INFINITY = float('nan'), float('inf')
NO_COUNT = (0, -1, 2.0, '2', None, True, (2,), NAN)
NO_NUMBER = (-1, NAN, INFINITY, '1', None, True, (1.0,))
NO_FLAG = (None, 0, 1, 'yes', ())
NO_NAME = ('wrong', None, 0, ('gelu',), ['gelu'], True)
NO_CHANNELS = (5, None, 'rgb', (1, 2), (1, 2, 3, 4), (1, 2, 'b'), (1, 2, NAN), (1, 2, None), ((1, 2, 3),))
NO_INDEXES = (5, None, '1', iter((1,)), (99,), (-99,), (0.5,), ('1',), (None,), (True,))
BAD = {  # every argument that a family has
    'make_block': (None, 5), 'rope': (5, 'turn', Rotary(64)), 'table_cells': (-1, 1.0, '2', None, True),
    **dict.fromkeys(('embed_dims', 'depth', 'num_heads', 'num_scales'), NO_COUNT), 'patch_size': NO_COUNT[:-2],
    **dict.fromkeys(('num_registers', 'prefix_positions', 'window_size'), (-1, *NO_COUNT[2:])),
    **dict.fromkeys(('graph_tokens', 'max_tokens'), [value for value in NO_COUNT if value is not None]),
    'img_size': (0, -16, 224.0, '224', None, True, (224,), (224, 224, 224), (224, 0), ('224', 224), NAN, 100),
    'pretrain_img_size': (0, -16, 224.0, '224', None, True, (224,), (224, 448), NAN, 100),
    'drop_path_rate': (1, 1.5, *NO_NUMBER), 'norm_eps': NO_NUMBER,
    **dict.fromkeys(('mlp_ratio', 'rope_theta', 'rope_cells'), (0, *NO_NUMBER)), 'layer_scale': (
        0, -1, NAN, INFINITY, '1', True, (1.0,)),
    **dict.fromkeys(('with_cls_token', 'patch_bias', 'pre_norm', 'final_norm', 'qkv_bias', 'compiled', 'with_cp',
                     'pad_mlp', 'keep_casts', 'proportional_attention'), NO_FLAG),
    **dict.fromkeys(('mlp', 'resampling', 'scorer', 'detail_branch', 'rope_anchor', 'pos_anchor', 'attn_backend',
                     'max_tokens_per'), NO_NAME),
    'global_block_indexes': NO_INDEXES, 'out_indices': ((), (0, 0), (0, -2), *NO_INDEXES),
    'thresholds': (1, None, '5', (1,), (1, 1, 1), (1, NAN), (1, '1'), (1, None)),
    'img_mean': NO_CHANNELS, 'img_std': ((1, 1, 0), (-1, 1, 1), *NO_CHANNELS),
    'reduction': (
        5, 'ToMe', {}, dict(type='Merge'), dict(type=['ToMe'], kept=0.7), dict(type='ToMe', kept=NAN),
        dict(type='ToMe', kept='0.7'), dict(type='ToMe', kept=0.7, blocks=5), dict(type='ToMe', share=0.7), (1, 2),
        dict(type='ToMe', kept=0.7, proportional=1), dict(type='ToMe', r=(8, NAN)), dict(type='ToMe', r=True),
        dict(type='DTEM', kept=0.7, nearest=0), dict(type='DTEM', kept=0.7, tau1=0),
        dict(type='DTEM', kept=0.7, tau2=NAN), dict(type='DTEM', kept=0.7, metric_dims=0),
        dict(type='EViT', rates='half'), dict(type='EViT', rates=NAN), dict(type='Random', seed=-1))}
SMALL = dict(depth=2, embed_dims=16, num_heads=2, num_scales=3, thresholds=(1, 1))
FAMILIES = {
    APTViT: dict(img_size=256), APTDINOv3: dict(img_size=256), APTSAM3: dict(global_block_indexes=(1,)),
    APTEVA02: dict(img_size=512, global_block_indexes=(1,))}
# What a family has of these by itself.
FIXED = {APTSAM3: dict(pre_norm=False, resampling='bicubic', patch_bias=True), APTViT: {}, APTDINOv3: {}, APTEVA02: {}}


def packed_vit(**arguments) -> PackedViT:
    """A model of nobody's family."""
    given = dict(make_block=lambda rate: Block(Attention(16, 2), MLP(16, 32), rate), rope=Rotary(8), embed_dims=16,
                 depth=2, table_cells=4, img_size=256, num_scales=3, thresholds=(1, 1))
    return PackedViT(**{**given, **arguments})


def cases() -> list:
    found = [(packed_vit, name, value) for name in {'make_block', 'rope', 'table_cells', 'embed_dims', 'depth'} | set(
        PackedViT.default_arguments()) for value in BAD[name]]
    for family in FAMILIES:
        found += [(family, name, value) for name in family.default_arguments() for value in BAD[name]]
    return sorted(found, key=lambda case: (case[0].__name__, case[1]))


@pytest.mark.parametrize(('build', 'name', 'value'), cases())
def test_each_argument_is_refused_by_its_name(build, name, value):
    with pytest.raises(ValueError) as error, torch.device('meta'):
        build(**{**(SMALL | FAMILIES[build] if build in FAMILIES else {}), name: value})
    message = str(error.value)
    assert name in message and message.count('\n') == 0
    assert any(word in message for word in ('must', 'wanted', 'choose', 'give', 'holds', 'set')), message
    names_one = name in ('global_block_indexes', 'out_indices') and isinstance(value, tuple) and value
    shown = value[-1] if names_one else value
    assert name in ('reduction', 'img_std') or str(shown) in message or repr(value) in message, message


@pytest.mark.parametrize('family', FAMILIES)
def test_good_values(family):
    """... among them those of the rules' edges, and numbers of other kinds."""
    numbers = dict(drop_path_rate=0, norm_eps=0) if family is not APTEVA02 else {}
    good = dict(SMALL | FAMILIES[family], out_indices=[-1, 0], thresholds=[1, 2.5], img_mean=[0, 0, 0], **numbers)
    with torch.device('meta'):
        assert len(family(**good).blocks) == 2


@pytest.mark.parametrize(('family', 'name'), [(family, name) for family, fixed in FIXED.items() for name in (
    *fixed, 'make_block', 'rope', 'table_cells', 'windows')])
def test_what_is_no_argument_of_a_family(family, name):
    """... because it has it by itself, or because there is none."""
    value = FIXED[family].get(name, 3)
    with pytest.raises(TypeError, match=f'unexpected keyword argument .{name}.') as error, torch.device('meta'):
        family(**SMALL | FAMILIES[family], **{name: value})
    if name in FIXED[family]:
        assert f'{family.__name__} has {name}=' in str(error.value) and 'leave it out' in str(error.value)
    assert name not in family.default_arguments()
    with pytest.raises(TypeError, match=f'unexpected keyword argument .{name}.'):
        family.build_chooser(**{name: value})


@pytest.mark.parametrize('family', FAMILIES)
def test_the_chooser_alone_refuses_what_the_model_refuses(family):
    for name in set(family.default_arguments()) & {'num_registers', 'window_size', 'depth', 'norm_eps', 'mlp_ratio',
                                                   'with_cls_token', 'img_mean', 'global_block_indexes'}:
        for value in BAD[name]:
            with pytest.raises(ValueError, match=name):
                family.build_chooser(**SMALL | FAMILIES[family] | {name: value})


CHOOSER = {name: BAD[name] for name in ('num_scales', 'thresholds', 'scorer', 'patch_size', 'window_size', 'max_tokens',
                                        'max_tokens_per', 'img_mean', 'img_std', 'compiled')}
EMBED = {name: BAD[name] for name in ('patch_size', 'embed_dims', 'num_scales', 'detail_branch')}


@pytest.mark.parametrize(('build', 'name', 'values'), [
    *((PatchChooser, name, values) for name, values in (CHOOSER | {'num_prefix': BAD['num_registers']}).items()),
    (SimpleFeaturePyramid, 'in_channels', (3, *NO_COUNT)), (SimpleFeaturePyramid, 'out_channels', NO_COUNT),
    *((AdaptivePatchEmbed, name, values) for name, values in (EMBED | {'bias': NO_FLAG}).items())])
def test_arguments_of_the_chooser_the_embedding_and_the_pyramid(build, name, values):
    needed = {PatchChooser: dict(num_scales=3, thresholds=(1, 1)), SimpleFeaturePyramid: dict(in_channels=8)}
    good = needed.get(build, {})
    for value in values:
        with pytest.raises(ValueError, match=name):
            build(**good | {name: value})


def test_a_name_without_a_rule():
    """A name that has no rule is a programming error, not a pass."""
    with pytest.raises(KeyError, match='windows'):
        check_arguments(windows=3)


@pytest.mark.parametrize(('shape', 'message'), [
    ((0, 3, 64, 64), r'input has shape \(0, 3, 64, 64\): an empty batch, give it one image at least'),
    ((2, 3, 0, 64), r'input has shape \(2, 3, 0, 64\): an image without pixels'),
    ((2, 1, 64, 64), r'input has shape \(2, 1, 64, 64\), wanted \(B, 3, H, W\)'),
    ((3, 64, 64), r'input has shape \(3, 64, 64\), wanted \(B, 3, H, W\)')])
def test_inputs_without_images(shape, message):
    for chooser in (PatchChooser(), PatchChooser(2, (1,))):
        with pytest.raises(ValueError, match=message):
            chooser.layout(torch.zeros(shape))
    with pytest.raises(ValueError, match=message):
        packed_vit()(torch.zeros(shape))


@pytest.mark.parametrize('x', [torch.zeros(1, 3, 64, 64, dtype=torch.uint8), torch.zeros(1, 3, 64, 64).bool(), 'a.png',
                               None, [[1.0]]])
def test_inputs_that_are_no_normalised_images(x):
    """An image of 0..255 in particular: it would be restored to something else."""
    for chooser in (PatchChooser(), PatchChooser(2, (1,))):
        with pytest.raises(ValueError, match=r'wanted normalised images, a floating-point tensor \(B, 3, H, W\)'):
            chooser.layout(x)
