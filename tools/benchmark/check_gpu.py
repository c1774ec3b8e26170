#!/usr/bin/env python
"""What the device, torch and the kernels of attention are here, and whether a small APT computes what a CPU computes.

    python tools/benchmark/check_gpu.py --device cuda --json setup.json

Needs torch only.
"""
import argparse
import json
import sys
from importlib.metadata import PackageNotFoundError, version

import torch

from apt_dense.benchmark.cases import Case
from apt_dense.benchmark.report import markdown
from apt_dense.benchmark.run import device_name, environment
from apt_dense.command_line import target
from apt_dense.core.attention import BACKENDS, varlen_attention
from apt_dense.core.files import write_atomically
from apt_dense.core.runs import Runs

PACKAGES = ('torch', 'triton', 'torchvision', 'flash-attn', 'flash-attn-4', 'mmengine', 'mmcv', 'mmcv-lite', 'mmdet',
            'mmsegmentation', 'matplotlib', 'pytest')
MOST = 0.02  # relative error of float32 products that TF32 or another order of sums has rounded


def kernels(device: str) -> dict[str, str]:
    """Whether each backend of attention computes unequal runs in bfloat16; the first line of its error if not."""
    runs = Runs.from_lengths((5, 9), torch.device(device))
    found = {}
    for backend in BACKENDS:
        parts = [torch.randn(14, 2, 64, device=device, dtype=torch.bfloat16) for _ in range(3)]
        try:
            finite = bool(varlen_attention(*parts, runs, backend).isfinite().all())
            found[backend] = 'works' if finite else 'gives numbers that are not finite'
        except Exception as error:  # a kernel raises what it likes
            found[backend] = (str(error).splitlines() or [type(error).__name__])[0]
    return found


def packages() -> dict[str, str]:
    """Versions of those that are installed."""
    found = {}
    for name in PACKAGES:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return found


def device_facts(device: str) -> dict[str, str]:
    """The device, and what of it the figures depend on."""
    if torch.device(device).type != 'cuda':
        return dict(name=device_name(device))
    properties = torch.cuda.get_device_properties(device)
    return dict(name=properties.name, memory=f'{properties.total_memory / 2**30:.0f} GiB',
                capability=f'{properties.major}.{properties.minor}', cuda=str(torch.version.cuda),
                cudnn=str(torch.backends.cudnn.version()), bf16=str(torch.cuda.is_bf16_supported()))


@torch.inference_mode()
def difference(device: str) -> float:
    """Relative error (L2) of a small APT on the device, in float32, against the same weights on a CPU."""
    case = Case('Ti', 'demo', 256, kept=(0.6, 0.3), depth=4)
    model, x = case.build_model(dense=False), case.build_input()
    wanted = model(x)[-1]
    found = model.to(device)(x.to(device))[-1].cpu()
    return ((found - wanted).norm() / wanted.norm()).item()


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--device', default='cuda')
    parser.add_argument('--json', type=target, help='write it here')
    args = parser.parse_args(arguments)
    try:
        torch.zeros(1, device=args.device)
    except (RuntimeError, AssertionError) as error:  # AssertionError: torch is not built for CUDA
        print(f'error: --device {args.device}, but torch {torch.__version__} cannot use it: '
              f'{str(error).splitlines()[0]}. Give it a GPU, or use --device cpu', file=sys.stderr)
        return 2
    words = ['python tools/benchmark/check_gpu.py', *(arguments or sys.argv[1:])]
    content = dict(environment=environment(words), device=device_facts(args.device),
                   difference=difference(args.device), kernels=kernels(args.device), packages=packages())
    print(describe(content))
    if args.json:
        write_atomically(args.json, json.dumps(content, indent=1) + '\n')
    if content['difference'] > MOST:
        print(f'error: a small APT on {args.device} differs by {content["difference"]:.3g} from a CPU, at most {MOST} '
              'was expected: no figure of this device means anything', file=sys.stderr)
        return 1
    return 0


def describe(content: dict) -> str:
    """The facts as a table, and a line for each kernel."""
    facts = content['device'] | content['packages'] | {
        'difference from a CPU': f'{content["difference"]:.2g} (relative, float32)'}
    table = markdown(['', 'found'], [[name, text] for name, text in facts.items()])
    return '\n'.join([table, '', 'Attention in bfloat16:', '',
                      *(f'- {name}: {text}' for name, text in content['kernels'].items())])


if __name__ == '__main__':
    sys.exit(main())
