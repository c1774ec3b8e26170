"""Key names of the official EVA-02 checkpoints, and how to know them.

The names on the right-hand side are those of this project's models under mmengine: backbone, neck, rpn_head, roi_head,
decode_head, auxiliary_head.
"""
import re
from collections.abc import Iterable

import torch

from apt_dense.core.checkpoint_files import USE_AS_IT_IS, listed
from apt_dense.core.embed import ADDED_PARAMETERS
from apt_dense.core.eva02 import APTEVA02
from apt_dense.core.pyramid import SimpleFeaturePyramid
from apt_dense.core.renaming import without_ddp_prefix

# (pattern, new name), or None for what has no counterpart here on purpose.  RoPE tables are computed, not stored.
_ROPE = (r'.*\brope\w*\.freqs_(cos|sin)', None)
RULES = {
    # detectron2: backbone and pyramid in one module, layers counted from 1 ("{2-1}" is group 2 less 1).
    'det': (
        _ROPE,
        (r'backbone\.net\.(.+)', r'backbone.\1'),
        (r'backbone\.(simfp_\d\..+)', r'neck.\1'),
        (r'proposal_generator\.rpn_head\.conv\.conv(\d)\.(.+)', r'rpn_head.rpn_conv.\1.conv.\2'),
        (r'proposal_generator\.rpn_head\.objectness_logits\.(.+)', r'rpn_head.rpn_cls.\1'),
        (r'proposal_generator\.rpn_head\.anchor_deltas\.(.+)', r'rpn_head.rpn_reg.\1'),
        (r'proposal_generator\.anchor_generator\..+', None),
        (r'pixel_(mean|std)', None),
        (r'roi_heads\.box_head\.(\d)\.conv(\d)\.norm\.(.+)', r'roi_head.bbox_head.\1.shared_convs.{\2-1}.ln.\3'),
        (r'roi_heads\.box_head\.(\d)\.conv(\d)\.(.+)', r'roi_head.bbox_head.\1.shared_convs.{\2-1}.conv.\3'),
        (r'roi_heads\.box_head\.(\d)\.fc(\d)\.(.+)', r'roi_head.bbox_head.\1.shared_fcs.{\2-1}.\3'),
        (r'roi_heads\.box_predictor\.(\d)\.cls_score\.(.+)', r'roi_head.bbox_head.\1.fc_cls.\2'),
        (r'roi_heads\.box_predictor\.(\d)\.bbox_pred\.(.+)', r'roi_head.bbox_head.\1.fc_reg.\2'),
        (r'roi_heads\.mask_head\.mask_fcn(\d)\.norm\.(.+)', r'roi_head.mask_head.convs.{\1-1}.ln.\2'),
        (r'roi_heads\.mask_head\.mask_fcn(\d)\.(.+)', r'roi_head.mask_head.convs.{\1-1}.conv.\2'),
        (r'roi_heads\.mask_head\.deconv\.(.+)', r'roi_head.mask_head.upsample.\1'),
        (r'roi_heads\.mask_head\.predictor\.(.+)', r'roi_head.mask_head.conv_logits.\1'),
    ),
    # mmsegmentation 0.x: the neck is part of the backbone; mmseg's Feature2Pyramid has the same layers.
    'seg': (
        _ROPE,
        (r'backbone\.fpn1\.(.+)', r'neck.upsample_4x.\1'),
        (r'backbone\.fpn2\.(.+)', r'neck.upsample_2x.\1'),
        (r'(backbone\.(?:cls_token|pos_embed|patch_embed\..+|blocks\..+))', r'\1'),
        (r'((?:decode_head|auxiliary_head)\..+)', r'\1'),
    ),
    # Masked image modelling, and classifiers fine-tuned from it: the backbone alone.
    'pretrain': (
        _ROPE,
        (r'(cls_token|pos_embed|patch_embed\..+|blocks\..+)', r'backbone.\1'),
        (r'mask_token|(norm|fc_norm|lm_head|head)\..+', None),
    ),
}
TASKS = tuple(RULES)
# Where official files have the backbone, and beginnings of names that a converted file does not have.
PREFIXES = {'det': 'backbone.net.', 'seg': 'backbone.', 'pretrain': ''}
_TELLTALES = {
    'det': ('backbone.net.', 'backbone.simfp_'),
    'seg': ('backbone.fpn1.', 'backbone.rope.'),
    'pretrain': ('blocks.',),
}
# What no other vision transformer has together in its blocks: EVA-01, BEiT, DINO, MAE and timm's copies of EVA-02 lack
# two of them or more; official Ti and S files lack the last.
_EVA02_LAYERS = ('attn.q_proj.weight', 'attn.q_bias', 'mlp.w1.weight', 'mlp.ffn_ln.weight')


def recognise_task(names: Iterable[str]) -> str:
    """Tell from the key names which official layout they are: 'det', 'seg' or 'pretrain'.

    Raises:
        ValueError: if they are none of these.
    """
    names = list(names)
    if is_converted(names):
        raise ValueError(f'these are the names of this project: the file is {USE_AS_IT_IS}')
    task = looks_official(names)
    if task is not None and not lacking_layers(names, PREFIXES[task]):
        return task
    if lacking_layers(names, PREFIXES['seg']):
        raise ValueError(f'these keys belong to no official EVA-02 checkpoint: {describe_other(names)}')
    return 'seg'


def looks_official(names: Iterable[str]) -> str | None:
    """'det', 'seg' or 'pretrain' if the names are those of an official EVA-02 file of B or L, else None.

    Its blocks, if there are any, must be EVA-02's: other vision transformers use the same names around them.
    """
    names = list(without_ddp_prefix(dict.fromkeys(names)))
    for task, beginnings in _TELLTALES.items():
        blocks = f'{PREFIXES[task]}blocks.'
        if any(name.startswith(beginnings) for name in names) and not (
                any(name.startswith(blocks) for name in names) and lacking_layers(names, PREFIXES[task])):
            return task
    return None


def is_converted(names: Iterable[str]) -> bool:
    """Whether the names are those of a model of this project, with a neck or heads, or with what APT adds.

    A dense backbone of EVA-02 alone has the names of an official segmentor's.
    """
    names = list(names)
    own = tuple(f'backbone.{name}' for name in ADDED_PARAMETERS)
    return any(name.startswith('backbone.blocks.0.attn.q_proj.') for name in names) and any(
        name.startswith(('neck.', 'rpn_head.', 'roi_head.', *own)) for name in names)


def lacking_layers(names: Iterable[str], prefix: str = '') -> list[str]:
    """Which of EVA-02's own layers no block of the backbone below ``prefix`` has; [] for one of B or L."""
    pattern = re.compile(re.escape(prefix) + r'blocks\.\d+\.(.+)')
    found = {match[1] for name in names if (match := pattern.fullmatch(name))}
    return [layer for layer in _EVA02_LAYERS if layer not in found]


def describe_other(names: Iterable[str], prefix: str = '') -> str:
    """What a file of another model holds, and what was wanted of it."""
    names = list(names)
    wanted = ', '.join(f'{prefix}blocks.N.{layer}' for layer in _EVA02_LAYERS)
    described = (f'{listed(names)}. Wanted are {wanted} in the blocks of B and L; there is no '
                 f'{", ".join(lacking_layers(names, prefix))}')
    return described + (". These names are timm's: take the file of EVA-02's authors"
                        if any('.mlp.fc1_g.' in name for name in names) else '')


def names_of_parts(names: Iterable[str], task: str) -> dict[str, set[str]]:
    """Part of the model -> the names that it has when it is whole, as they are here.

    Args:
        names: of the converted file, which tell the depth.
        task: 'det', 'seg' or 'pretrain'.
    """
    depth = 1 + max((int(match[1]) for name in names if (match := re.match(r'backbone\.blocks\.(\d+)\.', name))),
                    default=0)
    with torch.device('meta'):
        backbone = APTEVA02(32, embed_dims=4, depth=depth, num_heads=1, window_size=0, global_block_indexes=(),
                            pretrain_img_size=32, with_cls_token=task != 'det')
        pyramid = SimpleFeaturePyramid(4, 4)
    parts = {'backbone': {f'backbone.{name}' for name in backbone.state_dict()}}
    both, norm = ('weight', 'bias'), ('weight', 'bias', 'running_mean', 'running_var', 'num_batches_tracked')
    if task == 'det':
        conv_ln = ('conv.weight', 'ln.weight', 'ln.bias')
        layers = [f'rpn_conv.{n}.conv' for n in range(2)] + ['rpn_cls', 'rpn_reg']
        parts['neck'] = {f'neck.{name}' for name in pyramid.state_dict()}
        parts['rpn_head'] = {f'rpn_head.{layer}.{kind}' for layer in layers for kind in both}
        parts['roi_head.bbox_head'] = {f'roi_head.bbox_head.{stage}.{name}' for stage in range(3) for name in (
            *(f'shared_convs.{n}.{kind}' for n in range(4) for kind in conv_ln),
            *(f'{layer}.{kind}' for layer in ('shared_fcs.0', 'fc_cls', 'fc_reg') for kind in both))}
        parts['roi_head.mask_head'] = {f'roi_head.mask_head.{name}' for name in (
            *(f'convs.{n}.{kind}' for n in range(4) for kind in conv_ln),
            *(f'{layer}.{kind}' for layer in ('upsample', 'conv_logits') for kind in both))}
    if task == 'seg':
        conv_bn = ('conv.weight', *(f'bn.{kind}' for kind in norm))
        upper = [*(f'psp_modules.{n}.1' for n in range(4)), 'bottleneck', 'fpn_bottleneck',
                 *(f'{kind}_convs.{n}' for kind in ('lateral', 'fpn') for n in range(3))]
        parts['neck'] = {f'neck.{name}' for name in (
            *(f'upsample_4x.{layer}.{kind}' for layer in (0, 3) for kind in both),
            *(f'upsample_4x.1.{kind}' for kind in norm), *(f'upsample_2x.0.{kind}' for kind in both))}
        for head, layers in (('decode_head', upper), ('auxiliary_head', ['convs.0'])):
            parts[head] = {f'{head}.{layer}.{kind}' for layer in layers for kind in conv_bn} | {
                f'{head}.conv_seg.{kind}' for kind in both}
    return parts
