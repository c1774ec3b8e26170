"""Time of attention alone, by every kernel that is there, over numbers of tokens that it has not seen and has seen.

    python -m apt_dense.benchmark.attention --device cuda
    python -m apt_dense.benchmark.attention --device cuda --methods cudnn torch_varlen fa3 --lengths 20 --json a.json

Each number of tokens is computed twice: what the first time takes longer is done once for each number, such as cuDNN's
plans.  The heads are those of EVA-02-L; the runs are images of 512 and 1536 px and the windows of one of 1536 px.
"""
import argparse
import json
import statistics
import sys
from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from apt_dense.benchmark.cases import DTYPES
from apt_dense.benchmark.measure import CLOCKS, Marks
from apt_dense.benchmark.report import count, format_seconds, markdown
from apt_dense.benchmark.run import device_name, environment
from apt_dense.command_line import at_least, device, target
from apt_dense.core.attention import BACKENDS, varlen_attention
from apt_dense.core.files import write_atomically
from apt_dense.core.runs import Runs

HEADS, HEAD_DIM = 16, 64
# fa3 and fa4 last: from then on they are behind torch's variable-length attention.  Both in one process are refused.
METHODS = ('cudnn', *(name for name in ('sdpa', 'torch_varlen', 'flash_attn', 'fa3', 'fa4') if name in BACKENDS))
RUNS = {'image of 512 px': (716,), 'image of 1536 px': (6451,),
        'windows of 1536 px': (1024, 300, 700, 900, 1024, 64, 800, 650, 989)}  # 0.7 of the tokens, and unequal


def attend(method: str, q: Tensor, k: Tensor, v: Tensor, runs: Runs) -> Tensor:
    """Attention by a backend of the models, or, for 'cudnn', by torch's plain attention with cuDNN alone."""
    if method != 'cudnn':
        return varlen_attention(q, k, v, runs, method)
    with sdpa_kernel(SDPBackend.CUDNN_ATTENTION):
        parts = [tuple(part[None].transpose(1, 2) for part in run)
                 for run in zip(*(part.split(runs.lengths) for part in (q, k, v)), strict=True)]
        outs = [torch.nn.functional.scaled_dot_product_attention(*run) for run in parts]
        return torch.cat([out[0].transpose(0, 1) for out in outs])


def seconds(method: str, lengths: Sequence[int], dtype: torch.dtype, device: str, clock: str) -> tuple[float, float]:
    """Seconds of the first and of the second time that runs of these lengths are computed."""
    runs = Runs.from_lengths(tuple(lengths), torch.device(device))
    parts = [torch.randn(sum(lengths), HEADS, HEAD_DIM, device=device, dtype=dtype) for _ in range(3)]
    times = []
    for _ in range(2):
        marks = Marks(device, clock)
        marks.mark()
        attend(method, *parts, runs)
        marks.mark()
        times.append(sum(marks.seconds().values()))
    return times[0], times[1]


@torch.inference_mode()
def measure(method: str, name: str, args: argparse.Namespace) -> dict[str, object]:
    """A row: the medians over numbers of tokens that lie three apart.

    Raises:
        ImportError, ValueError, RuntimeError: if the kernel is not there, or does not take these tensors.
    """
    dtype, (first, *rest) = getattr(torch, args.dtype), [max(1, length // args.shrink) for length in RUNS[name]]
    seconds(method, (first, *rest), dtype, args.device, args.clock)  # loads the kernel
    pairs = [seconds(method, (first + 3 * number, *rest), dtype, args.device, args.clock)
             for number in range(1, args.lengths + 1)]
    times = dict(zip(('first', 'again'), (statistics.median(part) for part in zip(*pairs, strict=True)), strict=True))
    return dict(method=method, runs=name, tokens=first + sum(rest), dtype=args.dtype, lengths=args.lengths,
                device=device_name(args.device), **times)


def table(rows: Sequence[dict]) -> str:
    """The rows, and how much longer the first time takes."""
    lines = [[row['runs'], str(row['tokens']), row['method'], format_seconds(row['first']),
              format_seconds(row['again']), f'{row["first"] / row["again"]:.2f}'] for row in rows]
    return markdown(['runs', 'tokens', 'attention by', 'a new number of tokens', 'again', 'ratio'], lines)


def describe(rows: Sequence[dict]) -> str:
    """Where and how the rows were measured."""
    return f'{rows[0]["device"]}, {rows[0]["dtype"]}, {count(rows[0]["lengths"], "number")} of tokens, {HEADS} heads'


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog='python -m apt_dense.benchmark.attention', description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--methods', nargs='+', choices=METHODS, default=METHODS, help='those that are there')
    parser.add_argument('--lengths', type=at_least(1), default=20, help='numbers of tokens (20)')
    parser.add_argument('--shrink', type=at_least(1), default=1, help='runs of so many times fewer tokens, to be quick')
    parser.add_argument('--dtype', choices=DTYPES, default='bfloat16')
    parser.add_argument('--device', type=device, default='cpu')
    parser.add_argument('--clock', choices=list(CLOCKS), default='wall')
    parser.add_argument('--json', type=target)
    args = parser.parse_args(arguments)
    rows, absent = [], []
    for method in (name for name in METHODS if name in args.methods):
        try:
            rows += [measure(method, name, args) for name in RUNS]
        except (ImportError, ValueError, RuntimeError) as error:
            absent.append(f'{method}: {str(error).splitlines()[0]}')
    rows.sort(key=lambda row: list(RUNS).index(row['runs']))
    print('\n'.join([*([describe(rows), '', table(rows), ''] if rows else []), *absent]))
    if args.json:
        words = ['python -m apt_dense.benchmark.attention', *(arguments or sys.argv[1:])]
        write_atomically(args.json, json.dumps(dict(environment=environment(words), rows=rows, absent=absent),
                                               indent=1) + '\n')
    return 0 if rows else 1


if __name__ == '__main__':
    sys.exit(main())
