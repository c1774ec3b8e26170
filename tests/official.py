"""Make a file of random weights in the layout of an official EVA-02 detector or segmentor, at full size.

    python tests/official.py configs/eva02_l_coco.py official.pth
"""
import re
import sys
from collections.abc import Callable

import torch
from mmengine.config import Config
from mmengine.registry import MODELS, DefaultScope

# Names here -> official names; "{1+1}" is group 1 plus 1.
SEGMENTOR = (
    (r'neck\.upsample_4x\.(.+)', r'backbone.fpn1.\1'),
    (r'neck\.upsample_2x\.(.+)', r'backbone.fpn2.\1'),
    (r'((?:backbone|decode_head|auxiliary_head)\..+)', r'\1'),
)
DETECTOR = (
    (r'backbone\.(.+)', r'backbone.net.\1'),
    (r'neck\.(.+)', r'backbone.\1'),
    (r'rpn_head\.rpn_conv\.(\d)\.conv\.(.+)', r'proposal_generator.rpn_head.conv.conv\1.\2'),
    (r'rpn_head\.rpn_cls\.(.+)', r'proposal_generator.rpn_head.objectness_logits.\1'),
    (r'rpn_head\.rpn_reg\.(.+)', r'proposal_generator.rpn_head.anchor_deltas.\1'),
    (r'roi_head\.bbox_head\.(\d)\.shared_convs\.(\d)\.ln\.(.+)', r'roi_heads.box_head.\1.conv{\2+1}.norm.\3'),
    (r'roi_head\.bbox_head\.(\d)\.shared_convs\.(\d)\.conv\.(.+)', r'roi_heads.box_head.\1.conv{\2+1}.\3'),
    (r'roi_head\.bbox_head\.(\d)\.shared_fcs\.(\d)\.(.+)', r'roi_heads.box_head.\1.fc{\2+1}.\3'),
    (r'roi_head\.bbox_head\.(\d)\.fc_cls\.(.+)', r'roi_heads.box_predictor.\1.cls_score.\2'),
    (r'roi_head\.bbox_head\.(\d)\.fc_reg\.(.+)', r'roi_heads.box_predictor.\1.bbox_pred.\2'),
    (r'roi_head\.mask_head\.convs\.(\d)\.ln\.(.+)', r'roi_heads.mask_head.mask_fcn{\1+1}.norm.\2'),
    (r'roi_head\.mask_head\.convs\.(\d)\.conv\.(.+)', r'roi_heads.mask_head.mask_fcn{\1+1}.\2'),
    (r'roi_head\.mask_head\.upsample\.(.+)', r'roi_heads.mask_head.deconv.\1'),
    (r'roi_head\.mask_head\.conv_logits\.(.+)', r'roi_heads.mask_head.predictor.\1'),
)


def official_name(name: str, rules: tuple) -> str:
    for pattern, replacement in rules:
        match = re.fullmatch(pattern, name)
        if match:
            return re.sub(r'\{(\d)\+1\}', lambda number: str(int(number[1]) + 1), match.expand(replacement))
    raise ValueError(name)


def random_like(name: str, value: torch.Tensor) -> torch.Tensor:
    """Small normal numbers; variances are positive and counters whole."""
    if name.endswith('num_batches_tracked'):
        return torch.tensor(7)
    if name.endswith('running_var'):
        return torch.rand(value.shape) + 0.5
    return torch.randn(value.shape) * 0.1


def official_state(cfg: Config, values: Callable[[str, torch.Tensor], torch.Tensor] = random_like
                   ) -> dict[str, torch.Tensor]:
    """Values under the official names, RoPE tables included: random float32, or what ``values`` makes of a name."""
    with DefaultScope.overwrite_default_scope(cfg.default_scope), torch.device('meta'):
        model = MODELS.build(cfg.model)
    rules = SEGMENTOR if cfg.default_scope == 'mmseg' else DETECTOR
    state = {official_name(name, rules): values(name, value) for name, value in model.state_dict().items()}
    head_dim, cells = model.backbone.head_dim, (cfg.model.backbone.img_size // 16)**2
    tables = ({'rope': cells} if cfg.default_scope == 'mmseg'
              else {'net.rope_win': cfg.model.backbone.window_size**2, 'net.rope_glb': cells})
    for name, size in tables.items():
        state |= {f'backbone.{name}.freqs_{part}': torch.randn(size, head_dim) for part in ('cos', 'sin')}
    return state


if __name__ == '__main__':
    torch.save({'model': official_state(Config.fromfile(sys.argv[1]))}, sys.argv[2])
