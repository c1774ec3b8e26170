#!/usr/bin/env python
"""Speed of the packed encoders against their dense twins and against transformers' own forward pass, in one run.

    python tools/benchmark/benchmark_encoders.py
    python tools/benchmark/benchmark_encoders.py DINOv3-L:512 SAM3:1008 --depth 4 --repeats 5 --json encoders.json

All have random weights and the same sizes, take the same image and run in turns, forward, float32.  "Of ideal" is the
measured speed-up over that of the multiply-adds, the dense twin's over APT's.  transformers runs its fused attention
(sdpa).  Needs the extra hf.
"""
import argparse
import json
import statistics
import sys
from functools import partial

import torch
from torch import nn

from apt_dense.benchmark.cases import Case
from apt_dense.benchmark.measure import CLOCKS, interleave, seconds_of_pass
from apt_dense.benchmark.run import environment
from apt_dense.command_line import at_least, share
from apt_dense.core.dinov3 import APTDINOv3
from apt_dense.core.files import write_atomically
from apt_dense.core.flops import ideal_speedup
from apt_dense.core.sam3 import APTSAM3
from apt_dense.core.vit import PackedViT
from apt_dense.extras import from_extra

with from_extra('hf'):
    from transformers import DINOv3ViTConfig, DINOv3ViTModel, ViTConfig, ViTModel
    from transformers.models.sam3.configuration_sam3 import Sam3ViTConfig
    from transformers.models.sam3.modeling_sam3 import Sam3ViTModel

ROWS = ('DINOv3-L:512', 'DINOv3-L:1024', 'DINOv3-L:1536', 'SAM3:1008')
KEPT = (0.7, 0.5)


def parse_args(arguments: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('rows', nargs='*', default=ROWS, metavar='MODEL:PX', help=f'({" ".join(ROWS)})')
    parser.add_argument('--kept', type=share, nargs='+', default=KEPT, help='shares of the tokens (0.7 0.5)')
    parser.add_argument('--depth', type=at_least(0), default=0, help='only so many blocks, to be quick')
    parser.add_argument('--repeats', type=at_least(1), default=5, help='rounds that count (5)')
    parser.add_argument('--clock', choices=CLOCKS, default='wall', help='process: for busy machines (wall)')
    parser.add_argument('--json', help='write the rows here')
    return parser.parse_args(arguments)


def transformers_twin(model: PackedViT, size_px: int) -> nn.Module:
    """The model of transformers that has the sizes of a packed one, with random weights.

    Raises:
        ValueError: for a family that this script has no such model of.
    """
    block = model.blocks[0]
    sizes = dict(hidden_size=model.embed_dims, num_hidden_layers=len(model.blocks), image_size=size_px,
                 num_attention_heads=block.attn.num_heads, intermediate_size=block.mlp.last.in_features,
                 patch_size=model.patch_size, attn_implementation='sdpa')
    if isinstance(model, APTDINOv3):
        return DINOv3ViTModel(DINOv3ViTConfig(**sizes, num_register_tokens=model.num_prefix - 1)).eval()
    if isinstance(model, APTSAM3):
        return Sam3ViTModel(Sam3ViTConfig(**sizes, window_size=model.window_size,
                                          global_attn_indexes=sorted(model.global_blocks))).eval()
    if type(model).__name__ == 'APTViT' and model.norm_pre is None and block.ls1 is None:
        return ViTModel(ViTConfig(**sizes), add_pooling_layer=False).eval()
    raise ValueError(f'{type(model).__name__}: there is a twin of transformers for DINOv3, SAM 3 and the plain ViT')


def measure(name: str, size_px: int, args: argparse.Namespace) -> dict[str, object]:
    """One encoder at one size: seconds of each in turns, and what follows from them."""
    cases = {kept: Case(name, 'own', size_px, (kept,), depth=args.depth, clock=args.clock) for kept in args.kept}
    some = next(iter(cases.values()))
    dense = some.build_model(dense=True)
    inputs = {kept: case.build_input() for kept, case in cases.items()}
    x = next(iter(inputs.values()))
    functions = {'transformers': partial(seconds_of_pass, some, transformers_twin(dense, size_px), x),
                 'dense': partial(seconds_of_pass, some, dense, x)}
    ideals = {}
    for kept, case in cases.items():
        model = case.build_model(dense=False)
        ideals[kept] = ideal_speedup(model, model.make_layout(inputs[kept]))
        functions[f'kept {kept:g}'] = partial(seconds_of_pass, case, model, inputs[kept])
    seconds = interleave(functions, args.repeats, 1)

    def ratio(slow: str, fast: str) -> float:
        return statistics.median(a / b for a, b in zip(seconds[slow], seconds[fast], strict=True))

    row = dict(model=name, size_px=size_px, depth=args.depth or len(dense.blocks), clock=args.clock, seconds=seconds,
               dense_over_transformers=ratio('transformers', 'dense'), apt={})
    for kept, ideal in ideals.items():
        speedup = ratio('dense', f'kept {kept:g}')
        row['apt'][kept] = dict(speedup=speedup, ideal=ideal, of_ideal=speedup / ideal)
    return row


def line(row: dict) -> str:
    """A row of the table."""
    parts = [f'{row["model"]}, {row["depth"]} blocks', str(row['size_px']), f'{row["dense_over_transformers"]:.2f}']
    for found in row['apt'].values():
        parts.append(f'{found["speedup"]:.2f} of {found["ideal"]:.2f} ({found["of_ideal"]:.2f})')
    return f'| {" | ".join(parts)} |'


def main(arguments: list[str] | None = None) -> int:
    """Print the table; the exit status: 0, or 2 for a row that cannot be measured."""
    args = parse_args(arguments)
    head = ['encoder', 'px', "dense twin, times transformers' speed", *(f'kept {kept:g}: speed-up of ideal' for kept in
                                                                       args.kept)]
    rows = []
    try:
        print(f'| {" | ".join(head)} |\n|{"---|" * len(head)}')
        for text in args.rows:
            name, _, size = text.partition(':')
            rows.append(measure(name, int(size), args))
            print(line(rows[-1]), flush=True)
    except ValueError as error:
        print(f'error: {text}: {error}', file=sys.stderr)
        return 2
    if args.json:
        content = dict(environment=environment(sys.argv), rows=rows)
        write_atomically(args.json, json.dumps(content, indent=1) + '\n')
    return 0


if __name__ == '__main__':
    torch.set_grad_enabled(False)
    sys.exit(main())
