"""Key names of plain vision transformers in other libraries' files, and how to know them.

On the right-hand side stand the names of ``PackedViT``, and of what is fused in a file: ``attn.qkv``, ``mlp.w12`` and
``mlp.fc1`` of twice the width; ``mlp.up`` and ``mlp.down`` have their name from whether there is a gate, ``mlp.w1``.
``vit_conversion`` takes them apart.
"""
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from apt_dense.core.checkpoint_files import USE_AS_IT_IS, listed
from apt_dense.core.eva02_keys import looks_official
from apt_dense.core.renaming import Rules

FAMILIES = ('vit', 'dinov2', 'dinov3', 'clip', 'sam3')
WHOLE_MODEL = r'.+'  # a file's other parts, of which nothing is asked
BOTH = r'(weight|bias)'


@dataclass(frozen=True)
class Layout:
    """One way to name the parameters of a vision transformer.

    Attributes:
        source: whose names they are.
        families: family -> names that its files have, besides ``first``; the first family whose names are there.
        first: names of which every file has one, below the prefix.
        prefix: pattern of what may stand before all names of the encoder.
        rules: see ``renaming.rename``, of names below the prefix.
        others: pattern of the names of other parts, which are dropped on purpose.
    """
    source: str
    families: Mapping[str, tuple[str, ...]]
    first: tuple[str, ...]
    rules: Rules
    prefix: str = ''
    others: str = r'(?!)'

    def find(self, names: Iterable[str]) -> tuple[str, list[str]] | None:
        """The prefix and the families that the names may be of; None if they are not of this layout."""
        names = set(names)
        for name in sorted(name for name in names if name.endswith(self.first)):
            for prefix in (name.removesuffix(first) for first in self.first if name.endswith(first)):
                families = [family for family, wanted in self.families.items()
                            if all(prefix + own in names for own in wanted)]
                if families and re.fullmatch(self.prefix, prefix):
                    return prefix, families
        return None

    def rules_below(self, prefix: str) -> Rules:
        """The rules of whole names, where the encoder's begin with the prefix."""
        own = [(f'{re.escape(prefix)}(?:{pattern})', new) for pattern, new in self.rules]
        outside = rf'(?!{re.escape(prefix)})(?:{self.others})' if prefix else self.others
        return own if self.others == WHOLE_MODEL and not prefix else [*own, (outside, None)]


# ---- blocks, as several libraries have them ----
_TIMM_BLOCKS = (
    (rf'(blocks\.\d+\.(?:norm[12]|attn\.qkv|attn\.proj|mlp\.fc[12])\.{BOTH})', r'\1'),
    (r'(blocks\.\d+\.ls[12]\.gamma)', r'\1'),
)
_TIMM_STEM = (
    (r'(cls_token|reg_token|pos_embed|(?:patch_embed\.proj|norm_pre|norm)\.(?:weight|bias))', r'\1'),
)
_HF_STEM = (
    (r'embeddings\.cls_token', 'cls_token'),
    (r'embeddings\.register_tokens', 'reg_token'),
    (r'embeddings\.distillation_token', 'reg_token'),
    (r'embeddings\.position_embeddings', 'pos_embed'),
    (rf'embeddings\.patch_embeddings\.projection\.{BOTH}', r'patch_embed.proj.\1'),
    (r'embeddings\.mask_token', None),
    (rf'layernorm\.{BOTH}', r'norm.\1'),
)
# Files of transformers, and the names that its modules have since version 5.
_HF_BLOCK = r'(?:encoder\.layer|layers)\.(\d+)\.'
_HF_ATTENTION = (
    *((rf'{_HF_BLOCK}attention\.(?:attention\.{name}|{name[0]}_proj)\.{BOTH}', rf'blocks.\1.attn.{name[0]}_proj.\2')
      for name in ('query', 'key', 'value')),
    (rf'{_HF_BLOCK}attention\.(?:output\.dense|o_proj)\.{BOTH}', r'blocks.\1.attn.proj.\2'),
)

# MAE's and DeiT's authors have the same names; DINOv2's in timm are told from others by nothing.
_TIMM = Layout(
    'timm', {'clip': ('norm_pre.weight',), 'vit': (), 'dinov2': ('blocks.0.ls1.gamma',)},
    ('blocks.0.attn.qkv.weight',),
    (*_TIMM_STEM, *_TIMM_BLOCKS,
     (r'dist_token', 'reg_token'),
     (r'mask_token|decoder_.+|(?:head|head_dist|fc_norm)\.(?:weight|bias)', None)),
    prefix=r'(?:visual\.trunk\.)?',
    others=r'text\..+|logit_scale|logit_bias')
_APT = Layout(
    "APT's classifier", {'clip': ('norm_pre.weight',), 'vit': ()},
    tuple(f'mixed_patch.{name}' for name in ('cls_token', 'patch_attn.weight', 'patch_embed.proj.weight')),
    (*_TIMM_STEM, *_TIMM_BLOCKS,
     (r'mixed_patch\.cls_token', 'cls_token'),
     (r'mixed_patch\.base_pos_embed', 'pos_embed'),
     (rf'mixed_patch\.patch_embed\.proj\.{BOTH}', r'patch_embed.proj.\1'),
     (rf'mixed_patch\.patch_attn\.{BOTH}', r'patch_embed.conv_down.\1'),
     (rf'mixed_patch\.zero_conv\.{BOTH}', r'patch_embed.zero_mlp.\1'),
     (r'mixed_patch\.base_mini_pos_embed|(?:head|fc_norm)\.(?:weight|bias)', None)))
_HF_VIT = Layout(
    'transformers', {'vit': ()}, ('encoder.layer.0.layernorm_before.weight', 'layers.0.layernorm_before.weight'),
    (*_HF_STEM, *_HF_ATTENTION,
     (rf'{_HF_BLOCK}layernorm_before\.{BOTH}', r'blocks.\1.norm1.\2'),
     (rf'{_HF_BLOCK}layernorm_after\.{BOTH}', r'blocks.\1.norm2.\2'),
     (rf'{_HF_BLOCK}(?:intermediate\.dense|mlp\.fc1)\.{BOTH}', r'blocks.\1.mlp.fc1.\2'),
     (rf'{_HF_BLOCK}(?:output\.dense|mlp\.fc2)\.{BOTH}', r'blocks.\1.mlp.fc2.\2'),
     (r'pooler\..+', None)),
    prefix=r'(?:vit\.|deit\.)?', others=r'(?:classifier|cls_classifier|distillation_classifier|decoder)\..+')
_HF_DINOV2 = Layout(
    'transformers', {'dinov2': ('embeddings.cls_token',)}, ('encoder.layer.0.layer_scale1.lambda1',),
    (*_HF_STEM, *_HF_ATTENTION,
     (rf'{_HF_BLOCK}(norm[12])\.{BOTH}', r'blocks.\1.\2.\3'),
     (rf'{_HF_BLOCK}layer_scale([12])\.lambda1', r'blocks.\1.ls\2.gamma'),
     (rf'{_HF_BLOCK}mlp\.(fc[12])\.{BOTH}', r'blocks.\1.mlp.\2.\3'),
     (rf'{_HF_BLOCK}mlp\.weights_in\.{BOTH}', r'blocks.\1.mlp.w12.\2'),
     (rf'{_HF_BLOCK}mlp\.gate_proj\.{BOTH}', r'blocks.\1.mlp.w1.\2'),
     (rf'{_HF_BLOCK}mlp\.up_proj\.{BOTH}', r'blocks.\1.mlp.w2.\2'),
     (rf'{_HF_BLOCK}mlp\.(?:weights_out|down_proj)\.{BOTH}', r'blocks.\1.mlp.w3.\2')),
    prefix=r'(?:dinov2\.|dinov2_with_registers\.)?', others=r'classifier\..+')
_META_DINOV2 = Layout(
    "DINOv2's authors", {'dinov2': ('blocks.0.attn.qkv.weight', 'mask_token')}, ('blocks.0.ls1.gamma',),
    (*_TIMM_STEM, *_TIMM_BLOCKS,
     (r'register_tokens', 'reg_token'),
     (rf'(blocks\.\d+\.mlp\.(?:w12|w3))\.{BOTH}', r'\1.\2'),
     (r'mask_token', None)))
_HF_DINOV3 = Layout(
    'transformers', {'dinov3': ()}, ('layer.0.attention.o_proj.weight', 'model.layer.0.attention.o_proj.weight'),
    (*((rule, name) for rule, name in _HF_STEM if 'patch_embeddings' not in rule),
     (rf'embeddings\.patch_embeddings\.{BOTH}', r'patch_embed.proj.\1'),
     (rf'(?:model\.)?layer\.(\d+)\.attention\.([qkv]_proj)\.{BOTH}', r'blocks.\1.attn.\2.\3'),
     (rf'(?:model\.)?layer\.(\d+)\.attention\.o_proj\.{BOTH}', r'blocks.\1.attn.proj.\2'),
     (rf'(?:model\.)?layer\.(\d+)\.(norm[12])\.{BOTH}', r'blocks.\1.\2.\3'),
     (r'(?:model\.)?layer\.(\d+)\.layer_scale([12])\.lambda1', r'blocks.\1.ls\2.gamma'),
     (rf'(?:model\.)?layer\.(\d+)\.mlp\.gate_proj\.{BOTH}', r'blocks.\1.mlp.w1.\2'),
     (rf'(?:model\.)?layer\.(\d+)\.mlp\.(up|down)_proj\.{BOTH}', r'blocks.\1.mlp.\2.\3'),
     (rf'norm\.{BOTH}', r'norm.\1'),
     (r'rope_embeddings\..+', None)))
_TIMM_DINOV3 = Layout(
    'timm', {'dinov3': ('blocks.0.attn.qkv.weight', 'reg_token', 'cls_token')}, ('blocks.0.gamma_1',),
    (*_TIMM_STEM, *_TIMM_BLOCKS,
     (r'(blocks\.\d+\.)gamma_([12])', r'\1ls\2.gamma'),
     (r'(blocks\.\d+\.attn\.)([qkv])_bias', r'\1\2_proj.bias'),
     (rf'(blocks\.\d+\.mlp\.)fc1_g\.{BOTH}', r'\1w1.\2'),
     (rf'(blocks\.\d+\.mlp\.)fc1_x\.{BOTH}', r'\1w2.\2'),
     (r'mask_token|rope\..+|(?:head|fc_norm)\.(?:weight|bias)', None)))
_META_DINOV3 = Layout(
    "DINOv3's authors", {'dinov3': ('blocks.0.attn.qkv.weight',)}, ('storage_tokens',),
    (*_TIMM_STEM, *_TIMM_BLOCKS,
     (r'storage_tokens', 'reg_token'),
     (r'(blocks\.\d+\.attn)\.qkv\.bias_mask', r'\1.bias_mask'),
     (rf'(blocks\.\d+\.mlp\.w[123])\.{BOTH}', r'\1.\2'),
     (r'mask_token|rope_embed\..+|(?:head|local_cls_norm)\..+', None)))  # that norm is for training's local crops
_CLIP_OTHERS = (r'text_model\..+|(?:visual|text)_projection\.weight|logit_scale|(?:model\.)?language_model\..+|'
                r'(?:model\.)?multi_modal_projector\..+|lm_head\..+|'
                r'model\.(?:mm_projector|layers|embed_tokens|norm)\..+|(?:model\.)?image_newline')
_HF_CLIP = Layout(
    'transformers', {'clip': ('embeddings.class_embedding',)}, ('encoder.layers.0.self_attn.q_proj.weight',),
    ((r'embeddings\.class_embedding', 'cls_token'),
     (r'embeddings\.position_embedding\.weight', 'pos_embed'),
     (rf'embeddings\.patch_embedding\.{BOTH}', r'patch_embed.proj.\1'),
     (r'embeddings\.position_ids', None),
     (rf'pre_layrnorm\.{BOTH}', r'norm_pre.\1'),
     (rf'post_layernorm\.{BOTH}', r'norm.\1'),
     (rf'encoder\.layers\.(\d+)\.self_attn\.([qkv]_proj)\.{BOTH}', r'blocks.\1.attn.\2.\3'),
     (rf'encoder\.layers\.(\d+)\.self_attn\.out_proj\.{BOTH}', r'blocks.\1.attn.proj.\2'),
     (rf'encoder\.layers\.(\d+)\.layer_norm([12])\.{BOTH}', r'blocks.\1.norm\2.\3'),
     (rf'encoder\.layers\.(\d+)\.mlp\.(fc[12])\.{BOTH}', r'blocks.\1.mlp.\2.\3')),
    prefix=r'(?:model\.)?(?:vision_tower\.){0,2}(?:vision_model\.)?', others=_CLIP_OTHERS)
_OPENAI_CLIP = Layout(
    'OpenAI and open_clip', {'clip': ('class_embedding', 'conv1.weight')},
    ('transformer.resblocks.0.attn.in_proj_weight',),
    ((r'class_embedding', 'cls_token'),
     (r'positional_embedding', 'pos_embed'),
     (r'conv1\.weight', 'patch_embed.proj.weight'),
     (rf'ln_pre\.{BOTH}', r'norm_pre.\1'),
     (rf'ln_post\.{BOTH}', r'norm.\1'),
     (rf'transformer\.resblocks\.(\d+)\.attn\.in_proj_{BOTH}', r'blocks.\1.attn.qkv.\2'),
     (rf'transformer\.resblocks\.(\d+)\.attn\.out_proj\.{BOTH}', r'blocks.\1.attn.proj.\2'),
     (rf'transformer\.resblocks\.(\d+)\.ln_([12])\.{BOTH}', r'blocks.\1.norm\2.\3'),
     (rf'transformer\.resblocks\.(\d+)\.mlp\.c_fc\.{BOTH}', r'blocks.\1.mlp.fc1.\2'),
     (rf'transformer\.resblocks\.(\d+)\.mlp\.c_proj\.{BOTH}', r'blocks.\1.mlp.fc2.\2'),
     (r'proj', None)),
    prefix=r'(?:visual\.)?',
    others=r'(?:transformer|token_embedding|ln_final)\..+|positional_embedding|text_projection|logit_scale|'
           r'input_resolution|context_length|vocab_size')
# Whole models: what is outside the image encoder is dropped, whatever it is.
_HF_SAM3 = Layout(
    'transformers', {'sam3': ('layer_norm.weight', 'embeddings.position_embeddings')},
    ('layers.0.attention.o_proj.weight',),
    ((r'embeddings\.position_embeddings', 'pos_embed'),
     (rf'embeddings\.patch_embeddings\.projection\.{BOTH}', r'patch_embed.proj.\1'),
     (rf'layer_norm\.{BOTH}', r'norm_pre.\1'),
     (rf'layers\.(\d+)\.layer_norm([12])\.{BOTH}', r'blocks.\1.norm\2.\3'),
     (rf'layers\.(\d+)\.attention\.([qkv]_proj)\.{BOTH}', r'blocks.\1.attn.\2.\3'),
     (rf'layers\.(\d+)\.attention\.o_proj\.{BOTH}', r'blocks.\1.attn.proj.\2'),
     (rf'layers\.(\d+)\.mlp\.(fc[12])\.{BOTH}', r'blocks.\1.mlp.\2.\3'),
     (r'layers\.\d+\.rotary_emb\..+', None)),
    prefix=r'(?:detector_model\.)?(?:vision_encoder\.)?(?:backbone\.)?', others=WHOLE_MODEL)
_META_SAM3 = Layout(
    "SAM 3's authors", {'sam3': ('ln_pre.weight',)}, ('blocks.0.attn.qkv.weight',),
    (*_TIMM_STEM, *_TIMM_BLOCKS,
     (rf'ln_pre\.{BOTH}', r'norm_pre.\1'),
     (r'blocks\.\d+\.attn\.freqs_cis', None)),
    prefix=r'(?:.+\.)?backbone\.vision_backbone\.trunk\.', others=WHOLE_MODEL)

# The more particular first.
LAYOUTS = (_META_SAM3, _HF_SAM3, _HF_DINOV3, _META_DINOV3, _TIMM_DINOV3, _APT, _META_DINOV2, _HF_VIT, _HF_DINOV2,
           _HF_CLIP, _OPENAI_CLIP, _TIMM)

# Encoders that cannot work: pattern of a key -> what they are, and why.
_BIAS = 'whose attention adds a bias by relative position, which kernels for packed tokens do not take'
REFUSED = {
    r'.*attn\.(?:pool_q|norm_q)\..*': 'MViT, whose stages pool',
    r'(?:.*\.)?blocks\.\d+\.proj\.weight|.*stages\.\d+\.layers\.\d+\.proj\..*': 'Hiera, whose stages pool',
    r'(?:.*\.)?encoder\.(?:layers\.\d+\.patch_embedding|patch_embeddings\.\d+)\..*':
        'PVT or SegFormer, whose stages pool',
    r'.*layers\.\d+\.(?:blocks\.\d+|downsample)\..*|.*stages\.\d+\.blocks\.\d+\.attn\.w_msa\..*':
        'Swin, whose windows shift and whose stages merge patches',
    r'.*\batt(?:n|ention)\.rel_pos_[hw]': f'SAM 1 or ViTDet, {_BIAS}',
    r'.*relative_position_bias(?:_table|\..+)|(?:.*\.)?(?:shared|attn)[._]rel_pos\..+': f'BEiT or a relative, {_BIAS}',
}


def find_layout(names: Iterable[str], family: str = 'auto') -> tuple[Layout, str, str]:
    """Tell from the key names whose they are: the layout, the prefix of the encoder's names, and its family.

    Args:
        names: of the file.
        family: 'auto' for the first that fits, or the one that it must be.

    Raises:
        ValueError: for names that are of no known layout or of another family, and for encoders that cannot work.
    """
    names = list(names)
    found = [(layout, *match) for layout in LAYOUTS if (match := layout.find(names))]
    for layout, prefix, families in found:
        if layout.others == WHOLE_MODEL:
            return layout, prefix, _choose(families, family)
    _refuse(names)
    for layout, prefix, families in found:
        return layout, prefix, _choose(families, family)
    raise ValueError(f'these keys belong to no encoder that is known here: {listed(names)}. Wanted are, for example, '
                     + '; '.join(describe_layouts(family)))


def _choose(families: list[str], family: str) -> str:
    if family == 'auto':
        return families[0]
    if family not in families:
        raise ValueError(f'these are the names of {" or ".join(families)}, not of {family}: set --family '
                         f'{families[0]}, or leave it out')
    return family


def _refuse(names: list[str]) -> None:
    for pattern, what in REFUSED.items():
        name = next((name for name in names if re.fullmatch(pattern, name)), None)
        if name is not None:
            raise ValueError(f'{name} is of {what}: this encoder cannot have patches of adaptive size')
    if looks_official(names):
        raise ValueError('these are the names of an official EVA-02 file: convert it by '
                         'tools/model_converters/eva02_to_mm.py')
    if any(name.startswith('backbone.blocks.0.attn.q_proj.') for name in names):
        raise ValueError(f'these are the names of this project: the file is {USE_AS_IT_IS}')


def describe_layouts(family: str = 'auto') -> list[str]:
    """For each layout of a family, or of all, two of the names that its files have."""
    lines = []
    for layout in LAYOUTS:
        kinds = [kind for kind in layout.families if family in ('auto', kind)]
        if kinds:
            lines.append(f'{" and ".join([layout.first[0], *layout.families[kinds[-1]]])} '
                         f'({", ".join(kinds)}, {layout.source})')
    return lines
