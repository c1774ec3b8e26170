"""Detail after expansion: a term that starts at zero, added to the maps to which the tokens were expanded.

Registered for the configs of the experiments; no model of apt_dense has it.
"""
from mmengine.registry import MODELS
from torch import Tensor, nn

from apt_dense.core.chooser import PatchChooser
from apt_dense.core.layout import TokenLayout
from apt_dense.mm.models.core_modules import APTEVA02

TERMS = ('smoothed', 'cells')


@MODELS.register_module()
class ExpandedEVA02(APTEVA02):
    """``APTEVA02`` with a term over the cells of merged patches, one for each of its maps.

    Args:
        expansion: 'smoothed', a 3 x 3 depth-wise convolution of the expanded map; 'cells', a linear map of each cell's
            own patch embedding, which merging leaves out.
        arguments: of ``APTEVA02``.
    """

    def __init__(self, expansion: str, **arguments):
        super().__init__(**arguments)
        if expansion not in TERMS:
            raise ValueError(f'expansion={expansion!r} is not one of {TERMS}')
        self.expansion = expansion
        self.terms = nn.ModuleList(
            nn.Conv2d(self.embed_dims, self.embed_dims, 3, padding=1, groups=self.embed_dims)
            if expansion == 'smoothed' else nn.Conv2d(self.embed_dims, self.embed_dims, 1) for _ in self.out_indices)
        for parameter in self.terms.parameters():
            nn.init.zeros_(parameter)

    @classmethod
    def build_chooser(cls, expansion: str, **arguments) -> PatchChooser:
        """See ``PackedViT.build_chooser``."""
        return APTEVA02.build_chooser(**arguments)

    def forward_layout(self, x: Tensor, layout: TokenLayout) -> tuple[Tensor, ...]:
        """See ``PackedViT.forward_layout``."""
        maps = super().forward_layout(x, layout)
        merged = layout.expand((layout.scales > 0)[:, None].to(maps[0].dtype))
        given = maps if self.expansion == 'smoothed' else [self.patch_embed.proj(x)] * len(maps)
        return tuple(each + merged * term(part) for each, term, part in zip(maps, self.terms, given, strict=True))
