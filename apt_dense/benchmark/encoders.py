"""The encoders that can be measured, by the names that the benchmark gives them."""
from collections.abc import Mapping

from apt_dense.core import dinov3, eva02, plain_vit, sam3
from apt_dense.core.vit import PackedViT

# EVA-02's are named by their size alone.
OTHERS = {
    'ViT-B': (plain_vit.APTViT, plain_vit.PRESETS['mae_b']), 'ViT-L': (plain_vit.APTViT, plain_vit.PRESETS['mae_l']),
    'DINOv2-L': (plain_vit.APTViT, plain_vit.PRESETS['dinov2_l']),
    'CLIP-L': (plain_vit.APTViT, plain_vit.PRESETS['clip_l_336']),
    **{f'DINOv3-{size}': (dinov3.APTDINOv3, preset) for size, preset in dinov3.PRESETS.items()},
    'SAM3': (sam3.APTSAM3, sam3.PRESETS['sam3'])}


def encoder(name: str) -> tuple[type[PackedViT], Mapping]:
    """The family of an encoder, and the arguments that make it of that size.

    Raises:
        ValueError: for an unknown name.
    """
    if name in eva02.PRESETS:
        return eva02.APTEVA02, eva02.PRESETS[name]
    if name not in OTHERS:
        raise ValueError(f'unknown model {name!r}: choose one of {names()}')
    return OTHERS[name]


def names() -> list[str]:
    """Of all encoders."""
    return [*eva02.PRESETS, *OTHERS]
