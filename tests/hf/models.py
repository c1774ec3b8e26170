"""Small models of transformers with random weights, for the tests of apt_dense.hf."""
from types import ModuleType

import pytest
import torch
from torch import nn

from tests.published import published

SIZES = dict(hidden_size=32, num_hidden_layers=3, num_attention_heads=2, image_size=64, patch_size=16)
MLP = dict(SIZES, intermediate_size=64)
TEXT = dict(hidden_size=32, intermediate_size=64, num_hidden_layers=1, num_attention_heads=2, vocab_size=64,
            max_position_embeddings=8, projection_dim=32, bos_token_id=0, eos_token_id=1)
STAGES = dict(out_features=['stem', 'stage1', 'stage3'])
FLAG = dict(interpolate_pos_encoding=True)


def transformers() -> ModuleType:
    """The package; skips the test where it is missing.  (SAM 3 imports torchvision.)"""
    return published('transformers')


def build(kind: str, **settings) -> nn.Module:
    """A model of transformers in evaluation mode.

    Args:
        kind: name of a class of transformers.
        settings: of its config, beside ``SIZES``.
    """
    t = transformers()
    family = next(name for name in ('DINOv3ViT', 'Dinov2WithRegisters', 'Dinov2', 'CLIPVision', 'ViT', 'CLIP')
                  if kind.startswith(name))
    if family == 'CLIP':
        config = t.CLIPConfig(vision_config={**MLP, **settings}, text_config=TEXT, projection_dim=16)
    else:
        sizes = {**SIZES, 'mlp_ratio': 2} if family.startswith('Dinov2') else MLP
        if family == 'DINOv3ViT':
            sizes = {**sizes, 'num_register_tokens': 4, 'pos_embed_rescale': None}
        config = getattr(t, f'{family}Config')(**{**sizes, **settings})
    return randomised(getattr(t, kind)(config)).eval()


def sam3(image_px: int = 112) -> nn.Module:
    """A Sam3Model of 4 windows, in evaluation mode."""
    t = transformers()
    pytest.importorskip('torchvision')
    cells = image_px // 14
    encoder = dict(hidden_size=32, intermediate_size=64, num_hidden_layers=4, num_attention_heads=2, patch_size=14,
                   image_size=image_px, window_size=4, global_attn_indexes=[1, 3], pretrain_image_size=56)
    head = dict(hidden_size=32, intermediate_size=64, num_attention_heads=2, num_layers=1)
    config = t.Sam3Config(
        vision_config=dict(backbone_config=dict(model_type='sam3_vit_model', **encoder), fpn_hidden_size=32,
                           backbone_feature_sizes=[[cells * scale] * 2 for scale in (4, 2, 1)]),
        text_config=TEXT, geometry_encoder_config=head, detr_encoder_config=head,
        detr_decoder_config=dict(head, num_queries=5),
        mask_decoder_config=dict(hidden_size=32, num_upsampling_stages=3, num_attention_heads=2))
    return randomised(t.Sam3Model(config)).eval()


def randomised(model: nn.Module) -> nn.Module:
    """The model with weights that leave no part of it without effect."""
    for parameter in model.parameters():
        nn.init.normal_(parameter, std=0.2)
    return model


def smooth_and_busy(height_px: int = 64, width_px: int = 128) -> torch.Tensor:
    """(2, 3, H, W): noise, but smooth in the left half of the first and in a corner of the second."""
    image = torch.randn(2, 3, height_px, width_px)
    image[0, :, :, :width_px // 2] = 0
    image[1, :, :height_px // 2, :height_px // 2] = 0.5
    return image
