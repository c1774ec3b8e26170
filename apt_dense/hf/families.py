"""Which encoders of transformers can be packed, and where their parts stand in the module tree."""
from collections.abc import Mapping
from dataclasses import dataclass

from torch import nn

from apt_dense.core.normalisation import CLIP_MEAN, CLIP_STD, HALF_MEAN, HALF_STD, IMAGENET_MEAN, IMAGENET_STD


@dataclass(frozen=True)
class Family:
    """One kind of encoder.  Names are paths from the encoder, and from a layer of it; '' is what it does not have.

    Attributes:
        packed: the class of the core that computes the same: 'APTViT', 'APTDINOv3' or 'APTSAM3'.
        classes: transformers' classes that hold such an encoder.
        layers: the blocks.
        projection: the patch embedding.
        table, cls_token, registers: absolute positions, and the rows before an image's patches.
        prefix_positions: entries of the table for these rows.
        norm_pre, norm: before the first block, and after the last one.
        pooled_norm: where the last hidden state has no norm, and its first row, the pooled output, has.
        attention, proj: in a layer; the latter, inside the attention, is its last product.
        norms, scales: in a layer: of its two branches.
        resampling: of the table.
        takes: what images are taken: 'any'; 'flag', others than configured where interpolate_pos_encoding is True; or
            'configured'.
        mean, std: how the images of the published models are normalised, in 0..255.
    """
    packed: str
    classes: tuple[str, ...]
    layers: str
    projection: str
    norms: tuple[str, str]
    table: str = ''
    cls_token: str = ''
    registers: str = ''
    prefix_positions: int = 1
    norm_pre: str = ''
    norm: str = ''
    pooled_norm: str = ''
    attention: str = 'attention'
    proj: str = 'o_proj'
    scales: tuple[str, ...] = ()
    resampling: str = 'bicubic'
    takes: str = 'any'
    mean: tuple[float, ...] = IMAGENET_MEAN
    std: tuple[float, ...] = IMAGENET_STD

    def layers_of(self, encoder: nn.Module) -> nn.ModuleList:
        """The blocks of an encoder."""
        return encoder.get_submodule(self.layers)


_SCALES = ('layer_scale1.lambda1', 'layer_scale2.lambda1')
_EMBEDDINGS = dict(projection='embeddings.patch_embeddings.projection', table='embeddings.position_embeddings')
_DINOV2 = dict(_EMBEDDINGS, layers='encoder.layer', cls_token='embeddings.cls_token', norm='layernorm',
               norms=('norm1', 'norm2'), scales=_SCALES)

FAMILIES = (
    Family('APTDINOv3', ('DINOv3ViTModel', 'DINOv3ViTBackbone'), layers='model.layer', norms=('norm1', 'norm2'),
           projection='embeddings.patch_embeddings', cls_token='embeddings.cls_token',
           registers='embeddings.register_tokens', norm='norm', scales=_SCALES),
    Family('APTViT', ('Dinov2Model', 'Dinov2Backbone'), **_DINOV2),
    Family('APTViT', ('Dinov2WithRegistersModel', 'Dinov2WithRegistersBackbone'), **_DINOV2,
           registers='embeddings.register_tokens', resampling='bicubic_antialias'),
    Family('APTViT', ('ViTModel',), **_EMBEDDINGS, layers='layers', cls_token='embeddings.cls_token', norm='layernorm',
           norms=('layernorm_before', 'layernorm_after'), takes='flag', mean=HALF_MEAN, std=HALF_STD),
    Family('APTViT', ('CLIPVisionModel',), layers='encoder.layers', projection='embeddings.patch_embedding',
           table='embeddings.position_embedding.weight', cls_token='embeddings.class_embedding',
           norm_pre='pre_layrnorm', pooled_norm='post_layernorm', attention='self_attn', proj='out_proj',
           norms=('layer_norm1', 'layer_norm2'), takes='flag', mean=CLIP_MEAN, std=CLIP_STD),
    Family('APTSAM3', ('Sam3ViTModel',), **_EMBEDDINGS, layers='layers', norms=('layer_norm1', 'layer_norm2'),
           prefix_positions=0, norm_pre='layer_norm', resampling='tiled', takes='configured', mean=HALF_MEAN,
           std=HALF_STD))

_RELATIVE = 'it adds a relative-position bias to its attention, which attention over packed tokens does not take'
_SHIFTED = 'its windows are shifted from block to block and its tokens are merged between stages'
_POOLING = 'it pools its tokens between stages'
REASONS: Mapping[str, str] = {
    **dict.fromkeys(('beit', 'data2vec-vision', 'sam_vision_model', 'sam_hq_vision_model', 'vitdet', 'lw_detr_vit'),
                    _RELATIVE),
    **dict.fromkeys(('swin', 'swinv2', 'swin2sr', 'donut-swin', 'maskformer-swin'), _SHIFTED),
    **dict.fromkeys(('hiera', 'sam2_hiera_det_model', 'pvt', 'pvt_v2', 'segformer', 'levit', 'groupvit_vision_model'),
                    _POOLING),
    **dict.fromkeys(('convnext', 'convnextv2', 'dinov3_convnext'), 'it is a convolutional network, without tokens'),
    'vit_mae': 'it drops and shuffles patches at random: open the checkpoint as ViTModel, whose weights are the '
               "same, and give adapt the checkpoint's image_processor"}


def family_of(module: nn.Module) -> Family | None:
    """The family of an encoder; None for any other module.

    A class of yours on top of one of transformers counts if it leaves ``forward`` as it is.
    """
    owner = next((kind for kind in type(module).__mro__ if 'forward' in vars(kind)), nn.Module)
    if not owner.__module__.startswith('transformers.models.'):
        return None
    return next((family for family in FAMILIES if owner.__name__ in family.classes), None)


def supported() -> str:
    """The names of all classes that can be packed."""
    return ', '.join(name for family in FAMILIES for name in family.classes)


def reason_against(module: nn.Module) -> str | None:
    """Why a module of transformers cannot be packed, where that is known."""
    return REASONS.get(getattr(getattr(module, 'config', None), 'model_type', None))
