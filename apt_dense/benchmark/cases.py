"""What is measured: a model at a resolution, its batch, and how it runs."""
import dataclasses
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from apt_dense.benchmark.encoders import OTHERS, encoder
from apt_dense.benchmark.inputs import SYNTHETIC_THRESHOLD, build_batch
from apt_dense.core.checkpoint_files import load_official
from apt_dense.core.embed import ADDED_PARAMETERS
from apt_dense.core.eva02 import APTEVA02
from apt_dense.core.position import positions_fit, resample_positions, table_side
from apt_dense.core.vit import PackedViT

GEOMETRIES = ('det', 'seg', 'demo', 'own')
MODES = ('forward', 'train')
DTYPES = ('float32', 'bfloat16', 'float16')
DETECTION_THRESHOLDS = (2.0, 2.0, 0.3)  # the paper's, fine to coarse
NO_REDUCTION_KEPT = 0.7  # of the images that a row without reduction sees


@dataclass(frozen=True)
class Case:
    """One row of a benchmark.

    Attributes:
        model: 'Ti', 'S', 'B' or 'L' of EVA-02, or another name of ``encoders.OTHERS``.
        geometry: of EVA-02: 'det', windows of 32 cells with some global blocks; 'seg', full attention, a class token,
            four outputs; 'demo', the small detector of the demo: windows of 8 cells.  Other encoders have 'own', the
            attention that they were trained with and one output.
        img_size: side of the square images in pixels.
        kept: wanted kept-token fraction of each image of the batch, on synthetic images.  (1.0, ...) is 'no reduction':
            APT with thresholds of -1, where scoring and layout really run.
        photos: photographs to use instead, one for each image of the batch.
        thresholds: for photographs, fine to coarse.
        mode: 'forward' (inference mode) or 'train' (forward and backward pass, without the optimiser's step).
        dtype: 'float32', 'bfloat16' or 'float16': a forward pass has its weights in it, a training step runs under
            autocast with float32 weights.
        device, backend: where, and ``attn_backend``.
        compiled: dense and APT with torch.compile.
        graph_tokens: dense and APT as CUDA graphs, by so many tokens; 0 for none.
        with_cp: activation checkpointing.
        proportional: APT with ``proportional_attention``.
        deterministic: under ``torch.use_deterministic_algorithms``.
        clock: on a CPU 'wall', or 'process', the processor time of this process: on a machine that others use, with one
            thread, it is far less noisy.
        new_images: another batch in each round, of another number of tokens each time, as in use.  What a GPU does once
            for each number of tokens, such as cuDNN's plans, is then in every round, and with one batch in none.
        depth: blocks, 0 for the model's own number; fewer blocks keep their kind, so the rest is an earlier end.
    """
    model: str = 'B'
    geometry: str = 'det'
    img_size: int = 1536
    kept: tuple[float, ...] = (0.7,)
    photos: tuple[str, ...] = ()
    thresholds: tuple[float, ...] = DETECTION_THRESHOLDS
    mode: str = 'forward'
    dtype: str = 'float32'
    device: str = 'cpu'
    backend: str = 'auto'
    compiled: bool = False
    graph_tokens: int = 0
    with_cp: bool = False
    proportional: bool = False
    deterministic: bool = False
    clock: str = 'wall'
    new_images: bool = False
    depth: int = 0

    @property
    def batch(self) -> int:
        """Images of the batch."""
        return len(self.photos or self.kept)

    @property
    def no_reduction(self) -> bool:
        """True for a row in which APT must reduce nothing."""
        return not self.photos and set(self.kept) == {1.0}

    @property
    def apt_thresholds(self) -> tuple[float, ...]:
        """The thresholds of the APT model."""
        if self.photos:
            return self.thresholds
        return (-1.0 if self.no_reduction else SYNTHETIC_THRESHOLD,) * len(self.thresholds)

    @property
    def title(self) -> str:
        """Model, geometry, size and, if it is one, the photograph in a few words."""
        depth = f' first {self.depth} blocks' if self.depth else ''
        names = {Path(photo).name for photo in self.photos}
        photo = f' {names.pop()}' if len(names) == 1 else ''
        geometry = '' if self.model in OTHERS else f' {self.geometry}'
        return f'{self.encoder_name}{depth}{geometry} {self.img_size}{photo}'

    @property
    def encoder_name(self) -> str:
        """Family and size."""
        return self.model if self.model in OTHERS else f'EVA-02-{self.model}'

    @property
    def on_gpu(self) -> bool:
        """True if it runs on a CUDA device."""
        return torch.device(self.device).type == 'cuda'

    def arguments(self, dense: bool) -> dict[str, object]:
        """The arguments of the encoder's family for this row's dense or APT model.

        Raises:
            ValueError: for an unknown model, or a geometry that it does not have.
        """
        if (self.model in OTHERS) != (self.geometry == 'own'):
            raise ValueError(f'{self.model} has no geometry {self.geometry!r}: EVA-02 has det, seg and demo, other '
                             'encoders have own')
        family, preset = encoder(self.model)
        arguments = dict(preset, img_size=self.img_size, attn_backend=self.backend, with_cp=self.with_cp,
                         compiled=self.compiled, graph_tokens=self.graph_tokens or None)
        depth = arguments.get('depth') or family.default_arguments()['depth']
        if self.geometry == 'seg':
            arguments |= dict(global_block_indexes=range(depth), window_size=0, with_cls_token=True,
                              pretrain_img_size=self.img_size,
                              out_indices=(7, 11, 15, 23) if depth == 24 else (3, 5, 7, 11))
        elif self.geometry == 'demo':
            arguments |= dict(window_size=8, pretrain_img_size=self.img_size)
        arguments['depth'] = min(self.depth or depth, depth)
        for name in ('global_block_indexes', 'out_indices'):
            indexes = arguments.get(name, family.default_arguments()[name] if family is not APTEVA02 else ())
            arguments[name] = [index for index in indexes if 0 <= index < arguments['depth']]
        arguments['out_indices'] = arguments['out_indices'] or [-1]
        if not dense:
            arguments |= dict(num_scales=len(self.thresholds) + 1, thresholds=self.apt_thresholds,
                              proportional_attention=self.proportional)
        return arguments

    def build_model(self, dense: bool, checkpoint: str | Path | None = None) -> PackedViT:
        """The dense or the APT model on the device; they share their weights, random or of a checkpoint.

        What APT adds starts as in training: ZeroMLP at zero, unless the checkpoint has it.

        Raises:
            ValueError: if the checkpoint's backbone is not this row's.
        """
        torch.manual_seed(0)
        with torch.device(self.device):  # a GPU draws the weights of L at once, a CPU in seconds
            model = encoder(self.model)[0](**self.arguments(dense))
        torch.manual_seed(1)  # again: what APT adds has used up random numbers
        prefix = (model.cls_token, model.reg_token)
        for parameter in (model.pos_embed, *model.patch_embed.proj.parameters(), *model.blocks.parameters(), *prefix):
            if parameter is not None:
                nn.init.normal_(parameter, std=0.02)
        if checkpoint:
            load_backbone(model, checkpoint)
        train = self.mode == 'train'
        dtype = torch.float32 if train else getattr(torch, self.dtype)
        return model.train(train).to(self.device, dtype)

    def build_input(self, number: int = 0) -> Tensor:
        """A batch (B, 3, S, S), normalised, on the device, in the dtype of the forward pass.

        Args:
            number: of the batch.  Synthetic images are others for each, and keep 3, -3, 6, -6, ... tokens more than
                those of batch 0.

        Raises:
            ValueError: if a photograph cannot be read, or as many tokens cannot be kept.
        """
        kept = (NO_REDUCTION_KEPT,) * self.batch if self.no_reduction else self.kept
        family, preset = encoder(self.model)
        chooser = family.build_chooser(**preset)
        more = 3 * ((number + 1) // 2) * (1 if number % 2 else -1)  # tokens: whole merges of four patches
        kept = [fraction + more / (self.img_size // chooser.patch_size)**2 for fraction in kept]
        batch = build_batch(self.img_size, kept, self.photos, len(self.thresholds) + 1, chooser.patch_size,
                            chooser.img_mean, chooser.img_std, number * self.batch)
        return batch.to(self.device, torch.float32 if self.mode == 'train' else getattr(torch, self.dtype))

    def autocast(self) -> AbstractContextManager:
        """The context of a training step's forward pass."""
        if self.mode == 'train' and self.dtype != 'float32':
            return torch.autocast(torch.device(self.device).type, getattr(torch, self.dtype))
        return nullcontext()

    def variants(self, **axes: Sequence[object]) -> Iterator['Case']:
        """This case with every combination of the given fields' values, the last named varying fastest."""
        if not axes:
            yield self
            return
        (name, values), *rest = axes.items()
        for value in values:
            yield from dataclasses.replace(self, **{name: value}).variants(**dict(rest))


def load_backbone(model: PackedViT, checkpoint: str | Path) -> None:
    """Load the ``backbone.*`` entries of a checkpoint; those that only APT has may be absent, or too many.

    A position table of another grid is resampled.

    Raises:
        ValueError: if another parameter is missing, unknown or of another shape.
    """
    state, _, _ = load_official(checkpoint)
    state = {name.removeprefix('backbone.'): value for name, value in state.items() if name.startswith('backbone.')}
    wanted = {name: value.shape for name, value in model.state_dict().items()}
    state = {name: value for name, value in state.items() if name in wanted or name not in ADDED_PARAMETERS}
    table, own = state.get('pos_embed'), wanted.get('pos_embed')
    if table is not None and own is not None and table.shape != own and (
            positions_fit(table.shape, own, model.prefix_positions)):
        state['pos_embed'] = resample_positions(table, table_side(model.pos_embed, model.prefix_positions),
                                                model.prefix_positions)
    bad = [name for name in wanted.keys() | state.keys()
           if not (name in ADDED_PARAMETERS and name not in state)
           and (name not in wanted or name not in state or state[name].shape != wanted[name])]
    if bad:
        raise ValueError(f'{checkpoint} has another backbone than this row: {", ".join(sorted(bad)[:4])} do not fit. '
                         'Choose its model, geometry and image size')
    model.load_state_dict({**model.state_dict(), **state})

