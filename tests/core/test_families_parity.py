"""Each family against transformers: random weights through the converter, tokens after every block and the norm."""
from collections.abc import Callable, Sequence
from pathlib import Path
from types import ModuleType

import pytest
import torch
from torch import Tensor, nn

import apt_dense
from tests.core.packed import tokens_of_blocks
from tests.core.toys import randomise
from tests.hf.models import sam3
from tests.published import published

SIZES = dict(hidden_size=32, num_hidden_layers=3, num_attention_heads=2)
MLP = dict(intermediate_size=64)
TABLE = dict(image_size=80, patch_size=16)
ONE_SCALE, FOUR_SCALES = dict(num_scales=1, thresholds=()), dict(num_scales=4, thresholds=(-1,) * 3)


@pytest.fixture(scope='module')
def transformers() -> ModuleType:
    return published('transformers')


def vit(transformers: ModuleType) -> nn.Module:
    return transformers.ViTModel(transformers.ViTConfig(**SIZES, **MLP, **TABLE))


def vit_mae(transformers: ModuleType) -> nn.Module:
    return transformers.ViTMAEModel(transformers.ViTMAEConfig(**SIZES, **MLP, **TABLE, mask_ratio=0.0))


def deit(transformers: ModuleType) -> nn.Module:
    return transformers.DeiTModel(transformers.DeiTConfig(**SIZES, **MLP, **TABLE, qkv_bias=False))


def dinov2(transformers: ModuleType) -> nn.Module:
    return transformers.Dinov2Model(transformers.Dinov2Config(**SIZES, image_size=70, patch_size=14))


def dinov2_gated(transformers: ModuleType) -> nn.Module:
    return transformers.Dinov2Model(transformers.Dinov2Config(**SIZES, **TABLE, use_swiglu_ffn=True))


def dinov2_registers(transformers: ModuleType) -> nn.Module:
    return transformers.Dinov2WithRegistersModel(transformers.Dinov2WithRegistersConfig(**SIZES, **TABLE))


def dinov3(transformers: ModuleType) -> nn.Module:
    return transformers.DINOv3ViTModel(transformers.DINOv3ViTConfig(**SIZES, **MLP, **TABLE, num_register_tokens=4))


def dinov3_gated(transformers: ModuleType) -> nn.Module:
    return transformers.DINOv3ViTModel(transformers.DINOv3ViTConfig(
        **SIZES, **MLP, **TABLE, num_register_tokens=4, use_gated_mlp=True, hidden_act='silu'))


def clip(transformers: ModuleType) -> nn.Module:
    return transformers.CLIPVisionModel(transformers.CLIPVisionConfig(**SIZES, **MLP, **TABLE))


def clip_gelu(transformers: ModuleType) -> nn.Module:
    return transformers.CLIPVisionModel(transformers.CLIPVisionConfig(**SIZES, **MLP, **TABLE, hidden_act='gelu'))


class InOrder(nn.Module):
    """MAE's encoder shuffles the patches that it keeps, unless the noise is in order."""

    def __init__(self, model: nn.Module):
        super().__init__()
        self.model = model

    def forward(self, x: Tensor, **options) -> Tensor:
        cells = x.shape[2] * x.shape[3] // self.model.config.patch_size**2
        return self.model(x, noise=torch.arange(cells).expand(len(x), -1), **options)


FAMILIES = {'APTViT': (vit, vit_mae, deit, dinov2, dinov2_gated, dinov2_registers, clip, clip_gelu),
            'APTDINOv3': (dinov3, dinov3_gated)}


@torch.no_grad()
def their_tokens(model: nn.Module, x: Tensor, norm: nn.Module) -> list[Tensor]:
    """After each block, and after the last norm, which some apply to the class token only: (B, N, C)."""
    outputs = []
    blocks = next(module for module in model.modules() if isinstance(module, nn.ModuleList))
    hooks = [block.register_forward_hook(lambda block, given, output: outputs.append(
        output[0] if isinstance(output, tuple) else output)) for block in blocks]
    run = InOrder(model) if 'MAE' in type(model).__name__ else model
    resized = {} if 'ino' in type(model).__name__.lower() else dict(interpolate_pos_encoding=True)
    run(x, **resized)
    for hook in hooks:
        hook.remove()
    return [*outputs, norm(outputs[-1])]


def compare(ours: Sequence[Tensor], theirs: Sequence[Tensor]) -> None:
    assert len(ours) == len(theirs) > SIZES['num_hidden_layers']
    for mine, wanted in zip(ours, theirs, strict=True):
        assert wanted.std() > 0.1
        torch.testing.assert_close(mine, wanted, atol=1e-4, rtol=0)


@pytest.mark.parametrize(('family', 'make'), [(family, make) for family, makers in FAMILIES.items() for make in makers])
def test_a_family(family: str, make: Callable, tmp_path: Path, transformers: ModuleType):
    """... on images that are not square, and not of the table's size; on four scales, of which no patch is merged."""
    theirs = make(transformers).eval()
    randomise(theirs)
    theirs.save_pretrained(tmp_path)
    patch_size = theirs.config.patch_size
    x = torch.randn(2, 3, 8 * patch_size, 16 * patch_size)
    norm = next(module for name, module in theirs.named_modules()
                if name in ('norm', 'layernorm', 'post_layernorm'))
    wanted = their_tokens(theirs, x, norm)
    for scales in (ONE_SCALE, FOUR_SCALES):
        ours = getattr(apt_dense, family).from_pretrained(tmp_path, **scales)
        assert ours.num_prefix == wanted[0].shape[1] - 8 * 16 > 0
        compare(tokens_of_blocks(ours, x), wanted)


@pytest.mark.parametrize(('grid', 'global_blocks'), [((16, 16), (1, 2)), ((8, 16), ())])
def test_sam3(grid: tuple[int, int], global_blocks: tuple[int, ...], tmp_path: Path, transformers: ModuleType):
    """Windows of eight cells, and global blocks; transformers takes global blocks on square images only."""
    from transformers.models.sam3.configuration_sam3 import Sam3ViTConfig
    from transformers.models.sam3.modeling_sam3 import Sam3ViTModel
    theirs = Sam3ViTModel(Sam3ViTConfig(**SIZES, **MLP, image_size=16 * 14, patch_size=14, window_size=8,
                                        global_attn_indexes=list(global_blocks), pretrain_image_size=5 * 14)).eval()
    randomise(theirs)
    theirs.save_pretrained(tmp_path)
    x = torch.randn(2, 3, grid[0] * 14, grid[1] * 14)
    wanted = [output.flatten(1, 2) for output in their_tokens(theirs, x, nn.Identity())]
    for scales in (ONE_SCALE, FOUR_SCALES):
        ours = apt_dense.APTSAM3.from_pretrained(tmp_path, **scales)
        assert ours.window_size == 8 and ours.global_blocks == set(global_blocks)
        compare(tokens_of_blocks(ours, x), wanted)


def test_the_encoder_of_a_whole_sam3(tmp_path: Path, transformers: ModuleType):
    theirs = sam3()
    theirs.save_pretrained(tmp_path)
    x = torch.randn(2, 3, 112, 112)
    wanted = [output.flatten(1, 2) for output in their_tokens(theirs.vision_encoder.backbone, x, nn.Identity())]
    ours = apt_dense.APTSAM3.from_pretrained(tmp_path, num_scales=3, thresholds=(-1, -1))
    assert ours.window_size == 4 and ours.global_blocks == {1, 3}
    compare(tokens_of_blocks(ours, x), wanted)
