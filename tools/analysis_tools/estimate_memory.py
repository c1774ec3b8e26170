#!/usr/bin/env python
"""Estimate the memory of training on one GPU, from a CPU: what autograd keeps, counted tensor by tensor.

    python tools/analysis_tools/estimate_memory.py configs/apt_eva02_b_coco_full.py photo.jpg
    python tools/analysis_tools/estimate_memory.py configs/eva02_l_ade20k_512.py photo.jpg --save docs/memory.json

One forward pass under bfloat16 autocast, whose saved tensors are counted and dropped.  Added to that: parameters,
gradients and AdamW's two states in float32, and autocast's bfloat16 copy of the weights.  Not counted: CUDA's context
and workspaces, fragmentation, and that a GPU's autocast runs LayerNorm in float32: leave a fifth, and 2 GB, of the
GPU free.  The photograph is resized to the square, in the way of the config's pipeline, so nothing is padded.  A
segmentor sees it twice, and the count is halved: the batch norm behind UPerHead's pooling to 1 x 1 wants more than one
value a channel.
"""
import argparse
import json
import sys
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor, nn

import apt_dense.mm.det
import apt_dense.mm.seg  # noqa: F401
from apt_dense.calibration.images import load_image, resize, to_input
from apt_dense.command_line import at_least
from apt_dense.core.files import check_target, write_atomically
from apt_dense.extras import from_extra
from apt_dense.mm.cli.config_files import read_config
from apt_dense.mm.cli.launch import run_tool, scope_of
from apt_dense.mm.data.inputs import chooser_of, image_size_of, resampling_of
from apt_dense.mm.errors import LaunchError

with from_extra('mm'):
    from mmdet.structures import DetDataSample
    from mmdet.structures.mask import BitmapMasks
    from mmengine.config import Config
    from mmengine.model import revert_sync_batchnorm
    from mmengine.registry import MODELS, init_default_scope
    from mmengine.structures import BaseDataElement, InstanceData, PixelData
    from mmseg.structures import SegDataSample
    from PIL import Image

GB = 1e9


class SavedBytes:
    """Context that counts, and does not keep, what autograd saves for the backward pass: each storage once.

    Attributes:
        total: bytes, counted without the parameters and autocast's bfloat16 copies of them.
    """

    def __init__(self, model: nn.Module):
        self.total = 0
        self._known = {parameter.untyped_storage().data_ptr() for parameter in model.parameters()}
        self._parameters: dict[int, list[Tensor]] = {}  # by their number of elements
        for parameter in model.parameters():
            self._parameters.setdefault(parameter.numel(), []).append(parameter.detach())
        self._alive: list[Tensor] = []  # of the current part: a freed address may come again

    def forget(self) -> None:
        """Let go of the tensors seen so far; call where no later part saves them again."""
        self._known.difference_update(tensor.untyped_storage().data_ptr() for tensor in self._alive)
        self._alive = []

    def _is_copy(self, tensor: Tensor) -> bool:
        """Whether a tensor, or the one that it is a view of, has a parameter's values in bfloat16."""
        size = tensor.untyped_storage().nbytes() // tensor.element_size()
        if tensor.dtype != torch.bfloat16 or size not in self._parameters:
            return False
        values = tensor.detach().as_strided((size,), (1,), 0)
        return any(torch.equal(values, parameter.flatten().bfloat16()) for parameter in self._parameters[size])

    def _pack(self, tensor: Tensor) -> None:
        pointer = tensor.untyped_storage().data_ptr()
        if pointer not in self._known:
            self._known.add(pointer)
            self._alive.append(tensor.detach())
            self.total += 0 if self._is_copy(tensor) else tensor.untyped_storage().nbytes()

    def __enter__(self) -> 'SavedBytes':
        self._hooks = torch.autograd.graph.saved_tensors_hooks(self._pack, lambda _: None)
        self._hooks.__enter__()
        return self

    def __exit__(self, *error) -> None:
        self._hooks.__exit__(*error)


def side_of(cfg: Config, given: int | None) -> int:
    """The side of the square in pixels: the one that is given, or that of the config's images.

    Raises:
        LaunchError: if it does not fit the model's windows and patches, or is not given and the config has no square.
        ValueError: for a config without a backbone that packs tokens.
    """
    divisor, sides = chooser_of(cfg).size_divisor_px, image_size_of(cfg)
    if given is None and sides[0] != sides[1]:
        raise LaunchError(f'model.backbone.img_size={sides} of the config is no square: give --size')
    side = sides[0] if given is None else given
    if side < 1 or side % divisor:
        raise LaunchError(f'--size {side} must be a multiple of {divisor} px, such as '
                          f'{max(-(-side // divisor), 1) * divisor}')
    return side


def detection_sample(size: int) -> DetDataSample:
    """Three objects, a small, a medium and a large one, on a square of ``size`` px."""
    boxes = torch.tensor([[side, side, 4 * side, 4 * side] for side in (size // 64, size // 16, size // 6)]).float()
    masks = BitmapMasks(torch.ones(len(boxes), size, size, dtype=torch.uint8).numpy(), size, size)
    sample = DetDataSample(gt_instances=InstanceData(bboxes=boxes, labels=torch.zeros(len(boxes)).long(), masks=masks))
    sample.ignored_instances = InstanceData(bboxes=boxes[:0], labels=torch.zeros(0).long())
    sample.set_metainfo(dict(img_shape=(size, size), pad_shape=(size, size), batch_input_shape=(size, size),
                             scale_factor=(1.0, 1.0)))
    return sample


def segmentation_sample(size: int) -> SegDataSample:
    """A label map of one class on a square of ``size`` px."""
    sample = SegDataSample(gt_sem_seg=PixelData(data=torch.zeros(1, size, size).long()))
    sample.set_metainfo(dict(img_shape=(size, size), pad_shape=(size, size)))
    return sample


def saved_bytes(model: nn.Module, images: Tensor, samples: list) -> tuple[float, float, float]:
    """Bytes that a training step saves for an image: (of all blocks, of one block's input, of everything else)."""
    model.backbone.with_cp = False
    counter, blocks, inputs = SavedBytes(model), [], []

    def begin(block: nn.Module, arguments: tuple) -> None:
        inputs.append(arguments[0].untyped_storage().nbytes())
        blocks.append(-counter.total)

    def end(block: nn.Module, *_) -> None:
        blocks[-1] += counter.total
        counter.forget()

    for block in model.backbone.blocks:
        block.register_forward_pre_hook(begin)
        block.register_forward_hook(end)
    with counter, torch.autocast('cpu', dtype=torch.bfloat16):
        model.loss(images, samples)
    return tuple(bytes_ / len(images) for bytes_ in (sum(blocks), max(inputs), counter.total - sum(blocks)))


SAMPLES = {'mmdet': detection_sample, 'mmseg': segmentation_sample,
           'mmengine': lambda size: BaseDataElement(gt_label=0)}


class Memory(NamedTuple):
    """What a training step takes, in bytes; ``with_cp`` is activation checkpointing."""
    size_px: int
    tokens: int
    cells: int
    parameters: int
    trained: int
    weights: int
    blocks: float
    blocks_with_cp: float
    rest: float

    def of(self, images: int, with_cp: bool) -> float:
        """Bytes with so many images a step."""
        return self.weights + images * (self.rest + (self.blocks_with_cp if with_cp else self.blocks))


def count(cfg: Config, image: Image.Image, size_px: int | None) -> Memory:
    """Count the training step of a config.

    Args:
        image: of any size; resized to the square.
        size_px: side of the square; None: see ``side_of``.
    """
    init_default_scope(scope_of(cfg))
    size_px = cfg.model.backbone.img_size = side_of(cfg, size_px)
    model = revert_sync_batchnorm(MODELS.build(cfg.model)).train()
    image = resize(image, (size_px, size_px), resampling_of(cfg))
    chooser = model.backbone.chooser
    x = to_input(image, size_px, chooser.img_mean, chooser.img_std)
    batch = 2 if cfg.default_scope == 'mmseg' else 1
    sample = SAMPLES[cfg.default_scope](size_px)
    of_blocks, of_input, rest = saved_bytes(model, x.repeat(batch, 1, 1, 1), [sample] * batch)
    depth, layout = len(model.backbone.blocks), model.backbone.last_layout
    total = sum(parameter.numel() for parameter in model.parameters())
    trained = sum(parameter.numel() for parameter in model.parameters() if parameter.requires_grad)
    return Memory(size_px, sum(layout.scale_counts) // batch, layout.num_cells // batch, total, trained,
                  4 * total + 2 * total + (4 + 8) * trained, of_blocks, depth * of_input + of_blocks / depth, rest)


def read_entries(path: Path) -> dict[str, dict]:
    """What ``--save`` has written; {} where nothing is."""
    check_target(path, '--save')
    try:
        entries = json.loads(path.read_text(encoding='utf-8')) if path.exists() else {}
    except ValueError as error:
        raise LaunchError(f'--save {path} is no JSON file ({error}): give another, or remove it') from error
    if not isinstance(entries, dict):
        raise LaunchError(f'--save {path} holds a {type(entries).__name__}, wanted entries by config: give another')
    return entries


def save(memory: Memory, config: str, path: Path) -> None:
    """Put an entry under the config's name into a JSON file, which is made if it is not there."""
    entries = read_entries(path)
    entries[Path(config).stem] = {name: round(value) for name, value in memory._asdict().items()}
    write_atomically(path, json.dumps(dict(sorted(entries.items())), indent=1) + '\n')


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('config', help='of a detector, a segmentor or a classifier')
    parser.add_argument('image', type=Path)
    parser.add_argument('--size', type=at_least(1), help="px, side of the square (the config's)")
    parser.add_argument('--batch-size', type=at_least(1), nargs='+', default=[1, 2, 4], help='images (1 2 4)')
    parser.add_argument('--save', type=Path, metavar='FILE', help='JSON to put the figures into, by config, in bytes')
    args = parser.parse_args()
    cfg, image = read_config(args.config), load_image(args.image)
    if args.save:
        read_entries(args.save)
    memory = count(cfg, image, args.size)
    if args.save:
        save(memory, args.config, args.save)
    print(f'{args.config} at {memory.size_px} px: {memory.tokens} of {memory.cells} tokens, '
          f'{memory.parameters / 1e6:.0f} million parameters, {memory.trained / 1e6:.0f} trained')
    print(f'weights, gradients, optimiser: {memory.weights / GB:.1f} GB; an image: {memory.blocks / GB:.1f} GB in the '
          f'blocks, {memory.rest / GB:.1f} GB in the rest')
    for images in args.batch_size:
        print('{} images: {:.1f} GB, with_cp=True: {:.1f} GB'.format(
            images, *(memory.of(images, with_cp) / GB for with_cp in (False, True))))


if __name__ == '__main__':
    sys.exit(run_tool(main))
