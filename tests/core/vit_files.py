"""State dicts of ``PackedViT``'s names as other libraries have them: made up, for every layout that is converted.

    python tests/core/vit_files.py dinov3_l.safetensors

makes a file of random weights in the layout of transformers' DINOv3-L, at full size.
"""
import re
import sys
from collections.abc import Callable

import torch
from safetensors.torch import save_file
from torch import Tensor

from apt_dense import APTSAM3, APTDINOv3, APTViT

State = dict[str, Tensor]
DIM, DEPTH = 16, 3
SMALL = dict(embed_dims=DIM, depth=DEPTH, num_heads=2, patch_size=14, img_size=56)
TABLE = dict(pretrain_img_size=56)


def random_state(model: torch.nn.Module) -> State:
    return {name: torch.randn_like(tensor) for name, tensor in model.state_dict().items()}


def renamed(state: State, *rules: tuple[str, str], prefix: str = '') -> State:
    """By the first rule whose pattern is the whole name; others keep theirs."""
    result = {}
    for name, tensor in state.items():
        match = next((match.expand(new) for pattern, new in rules if (match := re.fullmatch(pattern, name))), name)
        result[prefix + match] = tensor
    return result


def fused(state: State, name: str, parts: tuple[str, ...], kinds: tuple[str, ...] = ('weight', 'bias'),
          depth: int = DEPTH) -> State:
    """Layers of each block as one."""
    state = dict(state)
    for index in range(depth):
        for kind in kinds:
            state[f'blocks.{index}.{name}.{kind}'] = torch.cat(
                [state.pop(f'blocks.{index}.{part}.{kind}') for part in parts])
    return state


def fused_qkv(state: State, kinds: tuple[str, ...] = ('weight', 'bias'), depth: int = DEPTH) -> State:
    return fused(state, 'attn.qkv', ('attn.q_proj', 'attn.k_proj', 'attn.v_proj'), kinds, depth)


def extra(*names: str) -> State:
    return {name: torch.randn(2) for name in names}


# ---- plain ViT ----
def timm_vit(state: State) -> State:
    return fused_qkv(state) | extra('head.weight', 'head.bias')


def mae(state: State) -> State:
    return fused_qkv(state) | extra('mask_token', 'decoder_pos_embed', 'decoder_blocks.0.attn.qkv.weight',
                                    'decoder_embed.bias')


def deit_distilled(state: State) -> State:
    return renamed(fused_qkv(state), ('reg_token', 'dist_token')) | extra('head.weight', 'head_dist.weight')


def apt_classifier(state: State) -> State:
    changed = renamed(fused_qkv(state), ('cls_token', 'mixed_patch.cls_token'),
                      (r'patch_embed\.conv_down\.(.+)', r'mixed_patch.patch_attn.\1'),
                      (r'patch_embed\.zero_mlp\.(.+)', r'mixed_patch.zero_conv.\1'))
    shared = {f'mixed_patch.{name}': changed[name].clone() for name in changed if name.startswith('patch_embed.')}
    return changed | shared | {'mixed_patch.base_pos_embed': changed['pos_embed'].clone()} | extra(
        'mixed_patch.base_mini_pos_embed', 'head.weight', 'head.bias')


def apt_classifier_mean(state: State) -> State:
    return apt_classifier(state) | extra('fc_norm.weight', 'fc_norm.bias')


HF_STEM = (('reg_token', 'embeddings.register_tokens'), ('cls_token', 'embeddings.cls_token'),
           ('pos_embed', 'embeddings.position_embeddings'),
           (r'patch_embed\.proj\.(.+)', r'embeddings.patch_embeddings.projection.\1'), (r'norm\.(.+)', r'layernorm.\1'))
HF_ATTENTION = tuple((rf'blocks\.(\d+)\.attn\.{name[0]}_proj\.(.+)',
                      rf'encoder.layer.\1.attention.attention.{name}.\2') for name in ('query', 'key', 'value')) + (
    (r'blocks\.(\d+)\.attn\.proj\.(.+)', r'encoder.layer.\1.attention.output.dense.\2'),)


def hf_vit(state: State) -> State:
    return renamed(state, *HF_STEM, *HF_ATTENTION,
                   (r'blocks\.(\d+)\.norm1\.(.+)', r'encoder.layer.\1.layernorm_before.\2'),
                   (r'blocks\.(\d+)\.norm2\.(.+)', r'encoder.layer.\1.layernorm_after.\2'),
                   (r'blocks\.(\d+)\.mlp\.fc1\.(.+)', r'encoder.layer.\1.intermediate.dense.\2'),
                   (r'blocks\.(\d+)\.mlp\.fc2\.(.+)', r'encoder.layer.\1.output.dense.\2'), prefix='vit.'
                   ) | extra('classifier.weight', 'classifier.bias', 'vit.pooler.dense.weight')


# ---- DINOv2 ----
def hf_dinov2(state: State) -> State:
    if 'blocks.0.mlp.w1.weight' in state:
        state = fused(state, 'mlp.w12', ('mlp.w1', 'mlp.w2'))
    return renamed(state, *HF_STEM, *HF_ATTENTION,
                   (r'blocks\.(\d+)\.ls([12])\.gamma', r'encoder.layer.\1.layer_scale\2.lambda1'),
                   (r'blocks\.(\d+)\.mlp\.w12\.(.+)', r'encoder.layer.\1.mlp.weights_in.\2'),
                   (r'blocks\.(\d+)\.mlp\.w3\.(.+)', r'encoder.layer.\1.mlp.weights_out.\2'),
                   (r'blocks\.(.+)', r'encoder.layer.\1')) | extra('embeddings.mask_token')


def meta_dinov2(state: State) -> State:
    state = renamed(fused_qkv(state), ('reg_token', 'register_tokens')) | extra('mask_token')
    return fused(state, 'mlp.w12', ('mlp.w1', 'mlp.w2')) if 'blocks.0.mlp.w1.weight' in state else state


def timm_dinov2_giant(state: State) -> State:
    return renamed(fused(fused_qkv(state), 'mlp.fc1', ('mlp.w1', 'mlp.w2')), (r'(.+)\.w3\.(.+)', r'\1.fc2.\2'))


# ---- DINOv3 ----
def with_key_bias(state: State) -> State:
    """Fused, with the zeros that stand for the keys' bias."""
    zeros = {f'blocks.{index}.attn.k_proj.bias': torch.zeros(DIM) for index in range(DEPTH)}
    return fused_qkv(state | zeros)


def meta_dinov3(state: State) -> State:
    masks = {f'blocks.{index}.attn.qkv.bias_mask': torch.ones(3, DIM).index_fill(0, torch.tensor(1), 0).flatten()
             for index in range(DEPTH)}
    biased = state | {f'blocks.{index}.attn.k_proj.bias': torch.randn(DIM) for index in range(DEPTH)}
    return renamed(fused_qkv(biased), ('reg_token', 'storage_tokens')) | masks | extra(
        'mask_token', 'rope_embed.periods', 'local_cls_norm.weight')


def timm_dinov3(state: State) -> State:
    biases = ((r'(.+\.attn)\.([qv])_proj\.bias', r'\1.\2_bias'),)
    return renamed(fused_qkv(state, ('weight',)), (r'(blocks\.\d+)\.ls([12])\.gamma', r'\1.gamma_\2'),
                   (r'(.+\.mlp)\.w1\.(.+)', r'\1.fc1_g.\2'), (r'(.+\.mlp)\.w2\.(.+)', r'\1.fc1_x.\2'),
                   (r'(.+\.mlp)\.w3\.(.+)', r'\1.fc2.\2'), *biases)


def timm_dinov3_fused_bias(state: State) -> State:
    return renamed(with_key_bias(state), (r'(blocks\.\d+)\.ls([12])\.gamma', r'\1.gamma_\2'))


def hf_dinov3(state: State) -> State:
    gated = 'blocks.0.mlp.w1.weight' in state
    return renamed(state, *HF_STEM[:2], (r'patch_embed\.proj\.(.+)', r'embeddings.patch_embeddings.\1'),
                   (r'blocks\.(\d+)\.attn\.proj\.(.+)', r'layer.\1.attention.o_proj.\2'),
                   (r'blocks\.(\d+)\.attn\.(.+)', r'layer.\1.attention.\2'),
                   (r'blocks\.(\d+)\.ls([12])\.gamma', r'layer.\1.layer_scale\2.lambda1'),
                   (r'blocks\.(\d+)\.mlp\.w1\.(.+)', r'layer.\1.mlp.gate_proj.\2'),
                   (rf'blocks\.(\d+)\.mlp\.{"w2" if gated else "fc1"}\.(.+)', r'layer.\1.mlp.up_proj.\2'),
                   (rf'blocks\.(\d+)\.mlp\.{"w3" if gated else "fc2"}\.(.+)', r'layer.\1.mlp.down_proj.\2'),
                   (r'blocks\.(.+)', r'layer.\1')) | extra('embeddings.mask_token')


# ---- CLIP ----
def hf_clip(state: State) -> State:
    flat = state | {'cls_token': state['cls_token'][0, 0], 'pos_embed': state['pos_embed'][0]}
    return renamed(flat, ('cls_token', 'embeddings.class_embedding'),
                   ('pos_embed', 'embeddings.position_embedding.weight'),
                   (r'patch_embed\.proj\.(.+)', r'embeddings.patch_embedding.\1'),
                   (r'norm_pre\.(.+)', r'pre_layrnorm.\1'), (r'norm\.(.+)', r'post_layernorm.\1'),
                   (r'blocks\.(\d+)\.attn\.proj\.(.+)', r'encoder.layers.\1.self_attn.out_proj.\2'),
                   (r'blocks\.(\d+)\.attn\.(.+)', r'encoder.layers.\1.self_attn.\2'),
                   (r'blocks\.(\d+)\.norm([12])\.(.+)', r'encoder.layers.\1.layer_norm\2.\3'),
                   (r'blocks\.(.+)', r'encoder.layers.\1'), prefix='vision_model.') | extra(
        'text_model.final_layer_norm.weight', 'logit_scale', 'visual_projection.weight',
        'vision_model.embeddings.position_ids')


def llava(state: State) -> State:
    """LLaVA's own name of its tower, beside its language model."""
    tower = {f'model.vision_tower.vision_tower.{name}': tensor for name, tensor in hf_clip(state).items()
             if name.startswith('vision_model.')}
    return tower | extra('model.layers.0.mlp.up_proj.weight', 'model.mm_projector.0.weight', 'lm_head.weight')


def openai_clip(state: State) -> State:
    flat = state | {'cls_token': state['cls_token'][0, 0], 'pos_embed': state['pos_embed'][0]}
    return renamed(fused_qkv(flat), ('cls_token', 'class_embedding'), ('pos_embed', 'positional_embedding'),
                   (r'patch_embed\.proj\.weight', 'conv1.weight'), (r'norm_pre\.(.+)', r'ln_pre.\1'),
                   (r'norm\.(.+)', r'ln_post.\1'),
                   (r'blocks\.(\d+)\.attn\.qkv\.(.+)', r'transformer.resblocks.\1.attn.in_proj_\2'),
                   (r'blocks\.(\d+)\.attn\.proj\.(.+)', r'transformer.resblocks.\1.attn.out_proj.\2'),
                   (r'blocks\.(\d+)\.norm([12])\.(.+)', r'transformer.resblocks.\1.ln_\2.\3'),
                   (r'blocks\.(\d+)\.mlp\.fc1\.(.+)', r'transformer.resblocks.\1.mlp.c_fc.\2'),
                   (r'blocks\.(\d+)\.mlp\.fc2\.(.+)', r'transformer.resblocks.\1.mlp.c_proj.\2'), prefix='visual.'
                   ) | extra('visual.proj', 'transformer.resblocks.0.attn.in_proj_weight', 'positional_embedding',
                             'text_projection', 'logit_scale', 'token_embedding.weight', 'ln_final.bias')


def timm_clip_in_open_clip(state: State) -> State:
    return {f'visual.trunk.{name}': tensor for name, tensor in fused_qkv(state).items()} | extra(
        'text.transformer.resblocks.0.ln_1.weight', 'logit_scale', 'visual.trunk.head.weight')


# ---- SAM 3 ----
def hf_sam3(state: State) -> State:
    return renamed(state, ('pos_embed', 'embeddings.position_embeddings'), HF_STEM[3],
                   (r'norm_pre\.(.+)', r'layer_norm.\1'),
                   (r'blocks\.(\d+)\.attn\.proj\.(.+)', r'layers.\1.attention.o_proj.\2'),
                   (r'blocks\.(\d+)\.attn\.(.+)', r'layers.\1.attention.\2'),
                   (r'blocks\.(\d+)\.norm([12])\.(.+)', r'layers.\1.layer_norm\2.\3'),
                   (r'blocks\.(.+)', r'layers.\1'), prefix='vision_encoder.backbone.') | extra(
        'vision_encoder.neck.fpn_layers.0.proj1.weight', 'detr_decoder.norm.weight', 'mask_decoder.a')


def meta_sam3(state: State) -> State:
    table = torch.cat([torch.randn(1, 1, DIM), state['pos_embed']], 1)  # with the class token's
    return renamed(fused_qkv(state | {'pos_embed': table}), (r'norm_pre\.(.+)', r'ln_pre.\1'),
                   prefix='detector.backbone.vision_backbone.trunk.') | extra(
        'detector.backbone.vision_backbone.trunk.blocks.0.attn.freqs_cis', 'tracker.maskmem_tpos_enc',
        'detector.backbone.vision_backbone.convs.0.conv_1x1.bias', 'detector.transformer.decoder.norm.bias')


def plain(**changes) -> Callable[[], APTViT]:
    return lambda: APTViT(**{**SMALL, **TABLE, **changes})


def dinov3(**changes) -> Callable[[], APTDINOv3]:
    return lambda: APTDINOv3(**{**SMALL, **changes})


def sam3() -> APTSAM3:
    return APTSAM3(**SMALL, **TABLE, window_size=0, global_block_indexes=(), mlp_ratio=2.0)


_DINOV2, _REGISTERS = dict(layer_scale=1e-5), dict(layer_scale=1e-5, num_registers=4)
_GATED = dict(mlp='swiglu', mlp_ratio=2.0)
_CLIP = dict(pre_norm=True, patch_bias=False, mlp='quick_gelu')
# Layout -> what makes the model, the family, and what makes the file of its state dict.
_APT = dict(num_scales=2, thresholds=(1,))
FILES = {
    'timm_vit': (plain(), 'vit', timm_vit),
    'timm_no_embed_class': (plain(prefix_positions=0, num_registers=4, layer_scale=1e-5), 'vit', timm_vit),
    'timm_registers_with_positions': (plain(prefix_positions=5, num_registers=4), 'vit', timm_vit),
    'mae': (plain(), 'vit', mae),
    'deit_distilled': (plain(num_registers=1, prefix_positions=2), 'vit', deit_distilled),
    'apt_classifier': (plain(**_APT), 'vit', apt_classifier),
    'apt_classifier_mean': (plain(with_cls_token=False, prefix_positions=0, layer_scale=1e-5, final_norm=False, **_APT),
                            'vit', apt_classifier_mean),
    'apt_classifier_clip': (plain(pre_norm=True, patch_bias=False, **_APT), 'clip', apt_classifier),
    'hf_vit': (plain(), 'vit', hf_vit),
    'hf_dinov2': (plain(**_DINOV2), 'dinov2', hf_dinov2),
    'hf_dinov2_registers': (plain(**_REGISTERS), 'dinov2', hf_dinov2),
    'hf_dinov2_giant': (plain(**_DINOV2, **_GATED), 'dinov2', hf_dinov2),
    'meta_dinov2_registers': (plain(**_REGISTERS), 'dinov2', meta_dinov2),
    'meta_dinov2_giant': (plain(**_DINOV2, **_GATED), 'dinov2', meta_dinov2),
    'timm_dinov2_giant': (plain(**_DINOV2, **_GATED), 'vit', timm_dinov2_giant),
    'hf_dinov3': (dinov3(), 'dinov3', hf_dinov3),
    'hf_dinov3_gated': (dinov3(**_GATED), 'dinov3', hf_dinov3),
    'timm_dinov3': (dinov3(), 'dinov3', timm_dinov3),
    'timm_dinov3_gated': (dinov3(**_GATED), 'dinov3', timm_dinov3),
    'timm_dinov3_without_bias': (dinov3(qkv_bias=False), 'dinov3', timm_dinov3),
    'timm_dinov3_fused_bias': (dinov3(), 'dinov3', timm_dinov3_fused_bias),
    'meta_dinov3': (dinov3(), 'dinov3', meta_dinov3),
    'meta_dinov3_gated': (dinov3(**_GATED), 'dinov3', meta_dinov3),
    'hf_clip': (plain(**_CLIP), 'clip', hf_clip),
    'llava': (plain(**_CLIP), 'clip', llava),
    'openai_clip': (plain(**_CLIP), 'clip', openai_clip),
    'timm_clip_in_open_clip': (plain(**_CLIP), 'clip', timm_clip_in_open_clip),
    'hf_sam3': (sam3, 'sam3', hf_sam3),
    'meta_sam3': (sam3, 'sam3', meta_sam3),
}

if __name__ == '__main__':
    save_file(hf_dinov3(random_state(APTDINOv3.from_preset('L'))), sys.argv[1])
