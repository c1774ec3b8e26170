#!/usr/bin/env python
"""Export a model's encoder with fixed shapes: a program of torch.export (.pt2), or ONNX (.onnx).

    python tools/export.py eva02_b_coco eva02_b.onnx --weights checkpoints/eva02_b_coco.pth
    python tools/export.py work_dirs/mine/iter_3000.pth apt.pt2 --tokens 6000

The encoder is the backbone: from the normalised image to its feature maps.  A dense model takes the image alone.  With
APT, --tokens is the fixed number of tokens: fewer are filled up, and `max_tokens` keeps an image from having more.  The
patches are chosen outside, and come in as further tensors: docs/deploying.md.  Neck and heads stay in torch.

What was written is run once, on an image of noise and a flat part, and compared with the model.
"""
import argparse
import os
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from torch import Tensor

from apt_dense.benchmark.inputs import normalise
from apt_dense.command_line import at_least
from apt_dense.core.export import FixedEncoder
from apt_dense.core.files import PARTIAL, NotWritten, check_target, write_atomically
from apt_dense.core.vit import PackedViT
from apt_dense.extras import from_extra

with from_extra('mm'):
    import apt_dense.mm  # noqa: F401
    from apt_dense.mm.cli.launch import run_tool
    from apt_dense.mm.data.inputs import image_size_of
    from apt_dense.mm.errors import DataError
    from apt_dense.mm.inference import load

FORMATS = ('.pt2', '.onnx')
TOLERANCE = 1e-3  # of the largest value of a map, float32
Runner = Callable[[Tensor, dict[str, Tensor]], list[Tensor]]


def parse_args(arguments: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('model', help='a checkpoint, or the name or file of a config (then with --weights)')
    parser.add_argument('out', type=Path, help='file, .pt2 or .onnx')
    parser.add_argument('--weights', help='checkpoint of the config; official EVA-02 files are converted on the way')
    parser.add_argument('--size', type=at_least(1), nargs=2, metavar=('HEIGHT', 'WIDTH'),
                        help="of the images in pixels, padding included (default: those of the config)")
    parser.add_argument('--tokens', type=at_least(1), help='with APT: how many, class token and registers included')
    parser.add_argument('--thresholds', type=float, nargs='+', help="fine to coarse, in place of the config's")
    return parser.parse_args(arguments)


def sample_image(size_px: tuple[int, int]) -> Tensor:
    """(1, 3, H, W), normalised: the upper half flat, the lower half noise."""
    image = torch.randint(0, 256, (1, 3, *size_px), generator=torch.Generator().manual_seed(0)).float()
    image[:, :, :size_px[0] // 2] = 128
    return normalise(image)


def open_encoder(args: argparse.Namespace) -> tuple[PackedViT, FixedEncoder]:
    """The model's backbone, and the same with fixed shapes."""
    if args.out.suffix not in FORMATS:
        raise DataError(f'{args.out} ends in {args.out.suffix!r}: choose one of {", ".join(FORMATS)}')
    check_target(args.out)
    model = load(args.model, args.weights, 'cpu', thresholds=args.thresholds)
    backbone = model.module.backbone
    size_px = tuple(args.size or image_size_of(model.cfg))
    if backbone.num_scales > 1 and args.tokens is None:
        raise DataError(f'{args.model} has {backbone.num_scales} sizes of patches: say how many tokens, --tokens; '
                        'calibrate_thresholds.py shows how many your images have')
    if backbone.num_scales == 1 and args.tokens is not None:
        raise DataError(f'{args.model} is a dense model, whose tokens are fixed: leave --tokens out')
    try:
        encoder = FixedEncoder(backbone, size_px, args.tokens).eval().requires_grad_(False)
        if args.tokens is not None:
            backbone.chooser.max_tokens = args.tokens - backbone.num_prefix
        return backbone, encoder
    except ValueError as error:
        raise DataError(str(error)) from error


def export_program(encoder: FixedEncoder, image: Tensor, layout: dict[str, Tensor], path: Path) -> Runner:
    """Write a program of torch.export; return what runs the written one."""
    program = torch.export.export(encoder, (image,), layout)
    write_atomically(path, lambda file: torch.export.save(program, file))
    program = torch.export.load(path).module()
    return lambda image, layout: list(program(image, **layout))


def export_onnx(encoder: FixedEncoder, image: Tensor, layout: dict[str, Tensor], path: Path) -> Runner:
    """Write ONNX, with weights of more than 2 GB in a file beside it; return what runs the written one."""
    with from_extra('export'):
        import onnx  # noqa: F401
        import onnxruntime
        import onnxscript  # noqa: F401  both for torch.onnx
    size = sum(parameter.nbytes for parameter in encoder.parameters())
    maps = [f'map_{index}' for index in range(len(encoder.model.out_indices))]
    torch.onnx.export(encoder, (image,), path, kwargs=layout, input_names=['image', *layout], output_names=maps,
                      dynamo=True, external_data=size > 1.9e9, verbose=False)
    session = onnxruntime.InferenceSession(path, providers=['CPUExecutionProvider'])

    def run(image: Tensor, layout: dict[str, Tensor]) -> list[Tensor]:
        found = session.run(None, {name: value.numpy() for name, value in dict(layout, image=image).items()})
        return [torch.from_numpy(one) for one in found]

    return run


@contextmanager
def whole_or_none(out: Path) -> Iterator[Path]:
    """A path to write at in place of ``out``, in a folder of its own; what is there moves to ``out``'s at the end.

    Raises:
        NotWritten: if it cannot be written; nothing is left behind.
    """
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=out.parent, prefix=f'{out.name}{PARTIAL}') as folder:
            yield Path(folder, out.name)
            for file in Path(folder).iterdir():
                os.replace(file, out.parent / file.name)
    except OSError as error:
        raise NotWritten(error.errno, error.strerror or str(error), str(out)) from error


def difference(found: list[Tensor], wanted: tuple[Tensor, ...]) -> float:
    """The largest of all maps, in shares of the map's largest value."""
    return max(((one - other).abs().max() / other.abs().max()).item() for one, other in zip(found, wanted, strict=True))


@torch.no_grad()
def main(arguments: list[str] | None = None) -> int:
    args = parse_args(arguments)
    backbone, encoder = open_encoder(args)
    image = sample_image(encoder.size_px)
    wanted = backbone(image)
    layout = {} if args.tokens is None else encoder.inputs(backbone.last_layout)
    write = export_program if args.out.suffix == '.pt2' else export_onnx
    with whole_or_none(args.out) as path:
        largest = difference(write(encoder, image, layout, path)(image, layout), wanted)
        if not largest < TOLERANCE:
            raise DataError(f'{args.out} would differ from the model by {largest:.1e} of the largest value: nothing '
                            'was written, and please tell us')
    shapes = ', '.join(str(tuple(one.shape)) for one in wanted)
    print(f'{args.out}: {args.out.stat().st_size / 1e6:.1f} MB; image (1, 3, {encoder.size_px[0]}, '
          f'{encoder.size_px[1]}), {encoder.num_tokens} tokens -> maps {shapes}')
    print(f'inputs: {", ".join(["image", *layout])}')
    print(f'checked: differs from the model by {largest:.1e} of the largest value')
    return 0


if __name__ == '__main__':
    sys.exit(run_tool(main))
