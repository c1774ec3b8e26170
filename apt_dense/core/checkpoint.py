"""Key names of the official EVA-02 checkpoints, and their names here.  Every key is mapped or dropped by name.
"""
import re
from collections.abc import Mapping
from dataclasses import dataclass, field

from torch import Tensor

# RoPE tables are buffers there and computed here.
_ROPE = (r'.*\brope\w*\.freqs_(cos|sin)$', None)

# detectron2's names: ViT and pyramid inside `backbone`, RPN and RoI heads.
DETECTION_RULES = (
    _ROPE,
    (r'backbone\.net\.(.+)', r'backbone.\1'),
    (r'backbone\.(simfp_\d\..+)', r'neck.\1'),
    (r'proposal_generator\.rpn_head\.conv\.conv(\d)\.(.+)', r'rpn_head.rpn_conv.\1.conv.\2'),
    (r'proposal_generator\.rpn_head\.objectness_logits\.(.+)', r'rpn_head.rpn_cls.\1'),
    (r'proposal_generator\.rpn_head\.anchor_deltas\.(.+)', r'rpn_head.rpn_reg.\1'),
    (r'proposal_generator\.anchor_generator\..+', None),
    (r'roi_heads\.box_head\.(\d)\.conv(\d)\.norm\.(.+)', r'roi_head.bbox_head.\1.shared_convs.{\2-1}.ln.\3'),
    (r'roi_heads\.box_head\.(\d)\.conv(\d)\.(.+)', r'roi_head.bbox_head.\1.shared_convs.{\2-1}.conv.\3'),
    (r'roi_heads\.box_head\.(\d)\.fc(\d)\.(.+)', r'roi_head.bbox_head.\1.shared_fcs.{\2-1}.\3'),
    (r'roi_heads\.box_predictor\.(\d)\.cls_score\.(.+)', r'roi_head.bbox_head.\1.fc_cls.\2'),
    (r'roi_heads\.box_predictor\.(\d)\.bbox_pred\.(.+)', r'roi_head.bbox_head.\1.fc_reg.\2'),
    (r'roi_heads\.mask_head\.mask_fcn(\d)\.norm\.(.+)', r'roi_head.mask_head.convs.{\1-1}.ln.\2'),
    (r'roi_heads\.mask_head\.mask_fcn(\d)\.(.+)', r'roi_head.mask_head.convs.{\1-1}.conv.\2'),
    (r'roi_heads\.mask_head\.deconv\.(.+)', r'roi_head.mask_head.upsample.\1'),
    (r'roi_heads\.mask_head\.predictor\.(.+)', r'roi_head.mask_head.conv_logits.\1'),
)


@dataclass
class RenamedState:
    """A renamed state dict and what became of each key.

    Attributes:
        state_dict: new name -> tensor.
        mapped: old name -> new name.
        dropped: old names that have no counterpart on purpose.
    """
    state_dict: dict[str, Tensor] = field(default_factory=dict)
    mapped: dict[str, str] = field(default_factory=dict)
    dropped: list[str] = field(default_factory=list)


def rename_detection(state_dict: Mapping[str, Tensor]) -> RenamedState:
    """Rename the keys of an official EVA-02 detection state dict, whole or in part.

    Raises:
        ValueError: naming the keys that no rule knows.
    """
    return _rename(state_dict, DETECTION_RULES, 'detection')


def _rename(state_dict: Mapping[str, Tensor], rules: tuple, kind: str) -> RenamedState:
    result, unknown = RenamedState(), []
    for name, tensor in state_dict.items():
        for pattern, replacement in rules:
            match = re.fullmatch(pattern, name)
            if match is None:
                continue
            if replacement is None:
                result.dropped.append(name)
            else:
                # "{n-1}": detectron2 counts layers from 1.
                new_name = re.sub(r'\{(\d)-1\}', lambda number: str(int(number[1]) - 1), match.expand(replacement))
                result.state_dict[new_name] = tensor
                result.mapped[name] = new_name
            break
        else:
            unknown.append(name)
    if unknown:
        raise ValueError(f'{len(unknown)} keys do not belong to an official EVA-02 {kind} checkpoint: '
                         f'{", ".join(unknown[:10])}{", ..." if len(unknown) > 10 else ""}')
    return result
