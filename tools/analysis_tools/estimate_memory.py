#!/usr/bin/env python
"""Estimate the memory of training a detector on one GPU, from a CPU: what autograd keeps, counted tensor by tensor.

    python tools/analysis_tools/estimate_memory.py configs/apt_eva02_b_coco_full.py photo.jpg --size 1536

One forward pass under bfloat16 autocast, whose saved tensors are counted and dropped.  Added to that: parameters,
gradients and AdamW's two states in float32, and autocast's bfloat16 copy of the weights.  Not counted: CUDA's context
and workspaces, fragmentation, and that a GPU's autocast runs LayerNorm in float32: leave a fifth, and 2 GB, of the
GPU free.  The photograph is resized to the square, so nothing is padded.
"""
import argparse
from pathlib import Path

import torch
from mmdet.structures import DetDataSample
from mmdet.structures.mask import BitmapMasks
from mmengine.config import Config
from mmengine.registry import MODELS, init_default_scope
from mmengine.structures import InstanceData
from PIL import Image
from torch import Tensor, nn

import apt_dense.mm.det  # noqa: F401
from apt_dense.images import load_image, to_input

GB = 1e9


class SavedBytes:
    """Context that counts, and does not keep, what autograd saves for the backward pass: each storage once.

    Attributes:
        total: bytes, parameters not counted.
    """

    def __init__(self, model: nn.Module):
        self.total = 0
        self._known = {parameter.untyped_storage().data_ptr() for parameter in model.parameters()}
        self._alive: list[Tensor] = []  # of the current part: a freed address may come again

    def forget(self) -> None:
        """Let go of the tensors seen so far; call where no later part saves them again."""
        self._known.difference_update(tensor.untyped_storage().data_ptr() for tensor in self._alive)
        self._alive = []

    def _pack(self, tensor: Tensor) -> None:
        pointer = tensor.untyped_storage().data_ptr()
        if pointer not in self._known:
            self._known.add(pointer)
            self._alive.append(tensor.detach())
            self.total += tensor.untyped_storage().nbytes()

    def __enter__(self) -> 'SavedBytes':
        self._hooks = torch.autograd.graph.saved_tensors_hooks(self._pack, lambda _: None)
        self._hooks.__enter__()
        return self

    def __exit__(self, *error) -> None:
        self._hooks.__exit__(*error)


def saved_bytes(model: nn.Module, image: Tensor) -> tuple[int, int, int]:
    """Bytes that a training step of one image saves: (of all blocks, of one block's input, of everything else)."""
    size = image.shape[-1]
    boxes = torch.tensor([[side, side, 4 * side, 4 * side] for side in (size // 64, size // 16, size // 6)]).float()
    masks = BitmapMasks(torch.ones(len(boxes), size, size, dtype=torch.uint8).numpy(), size, size)
    sample = DetDataSample(gt_instances=InstanceData(bboxes=boxes, labels=torch.zeros(len(boxes)).long(), masks=masks))
    sample.ignored_instances = InstanceData(bboxes=boxes[:0], labels=torch.zeros(0).long())
    sample.set_metainfo(dict(img_shape=(size, size), pad_shape=(size, size), batch_input_shape=(size, size),
                             scale_factor=(1.0, 1.0)))
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
        model.loss(image, [sample])
    return sum(blocks), max(inputs), counter.total - sum(blocks)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('config', help='of a detector')
    parser.add_argument('image', type=Path)
    parser.add_argument('--size', type=int, default=1536, help='px, side of the square (1536)')
    parser.add_argument('--batch-size', type=int, nargs='+', default=[1, 2, 4], help='images (1 2 4)')
    args = parser.parse_args()
    cfg = Config.fromfile(args.config)
    init_default_scope(cfg.default_scope)
    cfg.model.backbone.img_size = args.size
    model = MODELS.build(cfg.model).train()
    image = load_image(args.image).resize((args.size, args.size), Image.Resampling.BILINEAR)
    of_blocks, of_input, rest = saved_bytes(model, to_input(image, args.size))
    depth, layout = len(model.backbone.blocks), model.backbone.last_layout
    total = sum(parameter.numel() for parameter in model.parameters())
    trained = sum(parameter.numel() for parameter in model.parameters() if parameter.requires_grad)
    weights = 4 * total + 2 * total + (4 + 8) * trained
    print(f'{args.config} at {args.size} px: {sum(layout.scale_counts)} of {layout.num_cells} tokens, '
          f'{total / 1e6:.0f} million parameters, {trained / 1e6:.0f} trained')
    print(f'weights, gradients, optimiser: {weights / GB:.1f} GB; an image: {of_blocks / GB:.1f} GB in the blocks, '
          f'{rest / GB:.1f} GB in the rest')
    recomputed = depth * of_input + of_blocks / depth
    for images in args.batch_size:
        both = (weights + images * (activations + rest) for activations in (of_blocks, recomputed))
        print('{} images: {:.1f} GB, with_cp=True: {:.1f} GB'.format(images, *(bytes_ / GB for bytes_ in both)))


if __name__ == '__main__':
    main()
