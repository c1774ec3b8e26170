"""Plain ViTs, DINOv2 and DINOv3 of timm, shrunk: random weights through the converter, tokens after every block."""
from types import ModuleType

import pytest
import torch
from torch import Tensor, nn

from apt_dense.core.pretrained import load_pretrained
from apt_dense.core.vit_conversion import convert_vit
from apt_dense.core.vit_sizes import FAMILY_CLASSES
from tests.core.packed import tokens_of_blocks
from tests.core.toys import randomise
from tests.published import published

SMALL = dict(embed_dim=32, depth=3, num_heads=2, dynamic_img_size=True)
# Name -> family, and what the tensors of the encoder don't tell.  timm resamples tables with antialias.
MODELS = {
    'vit_small_patch16_224': ('vit', {}), 'deit_tiny_distilled_patch16_224': ('vit', {}),
    'vit_medium_patch16_reg4_gap_256': ('vit', {}), 'vit_betwixt_patch16_reg4_gap_256': ('vit', {}),
    'deit3_small_patch16_224': ('vit', {}), 'vit_small_patch14_dinov2': ('vit', {}),
    'vit_small_patch14_reg4_dinov2': ('vit', {}), 'vit_giant_patch14_dinov2': ('vit', {}),
    'vit_base_patch16_clip_224': ('clip', dict(mlp='gelu')),
    'vit_base_patch16_clip_quickgelu_224': ('clip', dict(mlp='quick_gelu')),
    'vit_small_patch16_dinov3': ('dinov3', {}), 'vit_small_patch16_dinov3_qkvb': ('dinov3', {}),
    'vit_small_plus_patch16_dinov3': ('dinov3', {}),
}


@pytest.fixture(scope='module')
def timm() -> ModuleType:
    return published('timm')


@torch.no_grad()
def their_tokens(model: nn.Module, x: Tensor) -> list[Tensor]:
    outputs = []
    hooks = [block.register_forward_hook(lambda block, given, output: outputs.append(output)) for block in model.blocks]
    last = model.forward_features(x)
    for hook in hooks:
        hook.remove()
    return [*outputs, last]


@pytest.mark.parametrize('name', MODELS)
def test_a_model(name, tmp_path, timm):
    """... on images that are not square, and not of the table's size; on four scales, of which no patch is merged."""
    family, told = MODELS[name]
    patch_size = 14 if 'patch14' in name else 16
    theirs = timm.create_model(name, img_size=5 * patch_size, **SMALL).eval()
    randomise(theirs)
    torch.save(theirs.state_dict(), tmp_path / 'model.pth')
    x = torch.randn(2, 3, 8 * patch_size, 16 * patch_size)
    wanted = their_tokens(theirs, x)
    assert convert_vit(theirs.state_dict()).family == family
    resampling = {} if family == 'dinov3' else dict(resampling='bicubic_antialias')
    for scales in (dict(), dict(num_scales=4, thresholds=(-1,) * 3)):
        ours = load_pretrained(FAMILY_CLASSES[family], tmp_path / 'model.pth',
                               dict(num_heads=2, **told, **resampling, **scales))
        got = tokens_of_blocks(ours, x)
        assert len(got) == len(wanted) == 4
        for mine, tokens in zip(got, wanted, strict=True):
            assert tokens.std() > 0.1 and mine.shape == tokens.shape
            torch.testing.assert_close(mine, tokens, atol=1e-4, rtol=0)
