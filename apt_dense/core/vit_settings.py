"""What config.json tells about a vision transformer that its tensors do not: heads, activation, windows, pixels."""
from collections.abc import Mapping, Sequence

from apt_dense.core.layers import ACTIVATIONS
from apt_dense.core.normalisation import CLIP_MEAN, CLIP_STD
from apt_dense.core.vit_conversion import ViTConversion
from apt_dense.core.vit_sizes import heads_of

# transformers' model_type of an image encoder -> family, and what a config that leaves it out means.
MODEL_TYPES = {'vit': 'vit', 'vit_mae': 'vit', 'deit': 'vit', 'dinov2': 'dinov2', 'dinov2_with_registers': 'dinov2',
               'dinov3_vit': 'dinov3', 'clip_vision_model': 'clip', 'sam3_vit_model': 'sam3'}
USUAL = {'vit': dict(layer_norm_eps=1e-12), 'dinov2': dict(layer_norm_eps=1e-6), 'dinov3': dict(layer_norm_eps=1e-5),
         'clip': dict(layer_norm_eps=1e-5, hidden_act='quick_gelu'), 'sam3': dict(layer_norm_eps=1e-6)}
SECTIONS = ('detector_config', 'vision_config', 'backbone_config')  # where whole models keep their image encoder's
CLIP_DEFAULTS = dict(norm_eps=1e-5, img_mean=CLIP_MEAN, img_std=CLIP_STD)
SAM3_THETA = 10000.0  # APTSAM3's base of the rotations


def arguments_of(conversion: ViTConversion, config: Mapping, preprocessing: Mapping, overrides: Mapping) -> dict:
    """The arguments with which the family's class is the converted model.

    Args:
        conversion: of the file.
        config: content of config.json, as transformers or timm writes it; empty if there is none.
        preprocessing: of images, as preprocessor_config.json has it; or empty.
        overrides: what the user has said; it stands above all else.

    Raises:
        ValueError: if the config is of another model than the tensors, or a setting is not known from anywhere.
    """
    family, sizes = conversion.family, conversion.sizes
    arguments = dict(sizes)
    if family == 'clip':
        arguments |= CLIP_DEFAULTS
    elif family == 'dinov2' and sizes['num_registers'] and conversion.source != 'timm':
        arguments['resampling'] = 'bicubic_antialias'
    if 'architecture' in config:
        arguments |= _of_timm(config, family, sizes)
    else:
        arguments |= _of_transformers(config, conversion)
    arguments |= _normalisation(preprocessing.get('image_mean'), preprocessing.get('image_std'))
    if 'patch_size' in overrides and 'pretrain_img_size' in sizes:  # the table keeps its cells
        arguments['pretrain_img_size'] = sizes['pretrain_img_size'] // sizes['patch_size'] * overrides['patch_size']
    arguments |= overrides
    if 'num_heads' not in arguments:
        arguments['num_heads'] = heads_of(sizes['embed_dims'], family)
    if family == 'clip' and 'mlp' not in arguments:
        raise ValueError("no tensor tells the activation of a CLIP: give mlp='quick_gelu' (OpenAI's, and LLaVA's) or "
                         "mlp='gelu' (most of open_clip's)")
    return arguments


def _of_timm(config: Mapping, family: str, sizes: Mapping) -> dict:
    name = str(config['architecture'])
    if 'rope' in name or '_pe_' in name:
        raise ValueError(f'{name} turns queries and keys, and APTViT does not')
    trained = config.get('pretrained_cfg', {})
    activation = 'quick_gelu' if 'quickgelu' in name else 'gelu'
    return _normalisation(trained.get('mean'), trained.get('std')) | (
        dict(mlp=activation) if family == 'clip' and 'mlp' not in sizes else {})


def _of_transformers(config: Mapping, conversion: ViTConversion) -> dict:
    while True:
        section = next((config[name] for name in SECTIONS if isinstance(config.get(name), Mapping)), None)
        if section is None:
            break
        config = section
    kind, family = config.get('model_type'), conversion.family
    if kind not in MODEL_TYPES and config.get('hidden_size') != conversion.sizes['embed_dims']:
        return {}  # there is none, or it is of another part of the model, as LLaVA's is of its language model
    if MODEL_TYPES.get(kind, family) != family:
        raise ValueError(f'config.json is of model_type {kind!r}, and the tensors are of the family {family}: the two '
                         'do not belong together')
    if kind in MODEL_TYPES:
        config = USUAL[family] | dict(config)
    for name, size in (('hidden_size', 'embed_dims'), ('num_hidden_layers', 'depth')):
        if name in config and config[name] != conversion.sizes[size]:
            raise ValueError(f'config.json has {name}={config[name]}, and the tensors {conversion.sizes[size]}: the '
                             'two do not belong together, or the file is not whole')
    arguments = {ours: config[theirs] for theirs, ours in (('num_attention_heads', 'num_heads'),
                                                           ('layer_norm_eps', 'norm_eps')) if theirs in config}
    arguments |= _activation(config, conversion)
    rope = config.get('rope_parameters') or {}
    if family == 'dinov3':
        arguments['rope_theta'] = rope.get('rope_theta', config.get('rope_theta', 100.0))
    if family == 'sam3':
        if rope.get('rope_theta', SAM3_THETA) != SAM3_THETA:
            raise ValueError(f'config.json has rope_theta={rope["rope_theta"]}, and APTSAM3 has {SAM3_THETA:g}')
        arguments |= {ours: config[theirs] for theirs, ours in (
            ('window_size', 'window_size'), ('window_size', 'rope_cells'), ('image_size', 'img_size'),
            ('global_attn_indexes', 'global_block_indexes')) if theirs in config}
    return arguments


def _activation(config: Mapping, conversion: ViTConversion) -> dict:
    """The MLP's, where the family's class leaves a choice."""
    name, family = config.get('hidden_act', 'gelu'), conversion.family
    if family == 'clip' and 'hidden_act' not in config:
        return {}
    if conversion.sizes.get('mlp') == 'swiglu':
        if family == 'dinov3' and name != 'silu':
            raise ValueError(f'config.json has hidden_act={name!r} in a gated MLP, and APTDINOv3 has silu')
        return {}
    if name not in (ACTIVATIONS if conversion.class_name == 'APTViT' else ('gelu',)):
        raise ValueError(f'config.json has hidden_act={name!r}, which {conversion.class_name} has not')
    return dict(mlp=name) if conversion.class_name == 'APTViT' else {}


def _normalisation(mean: Sequence[float] | None, std: Sequence[float] | None) -> dict:
    """Of RGB in 0..1 -> in 0..255."""
    if mean is None or std is None:
        return {}
    return {name: tuple(round(255 * value, 6) for value in values)
            for name, values in (('img_mean', mean), ('img_std', std))}
