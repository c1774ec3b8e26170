"""Time and peak memory of the APT backbone against its dense twin, on the CPU (Linux).

    python -m apt_dense.benchmark photo.jpg --model L --img-size 1536

Both models have the same random weights where they share them.  They run in turns in one process, which gives times;
peak memory is that of one further forward pass of each in a process of its own, less what the process held before it.
Needs torch, numpy and Pillow.
"""
import argparse
import multiprocessing
import statistics
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor, nn

from apt_dense.core.eva02 import APTEVA02, IMAGENET_MEAN, IMAGENET_STD, PRESETS


def parse_args(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('image', type=Path)
    parser.add_argument('--model', choices=sorted(PRESETS), default='L')
    parser.add_argument('--img-size', type=int, default=1536, help='longest side; the image is padded to a square')
    parser.add_argument('--thresholds', type=float, nargs='*', default=[2, 2, 0.3], help='fine to coarse')
    parser.add_argument('--repeats', type=int, default=3, help='timed forward passes of each model, after one untimed')
    return parser.parse_args(arguments)


def load_input(path: Path, img_size: int) -> Tensor:
    """A photograph as the detector sees it: (1, 3, S, S), RGB, normalised, then padded with zeros."""
    image = Image.open(path).convert('RGB')
    ratio = img_size / max(image.size)
    image = image.resize([round(side * ratio) for side in image.size], Image.Resampling.BILINEAR)
    pixels = torch.from_numpy(np.array(image)).permute(2, 0, 1)[None].float()
    pixels = (pixels - torch.tensor(IMAGENET_MEAN).view(1, 3, 1, 1)) / torch.tensor(IMAGENET_STD).view(1, 3, 1, 1)
    return F.pad(pixels, (0, img_size - image.width, 0, img_size - image.height))


def build(name: str, img_size: int, thresholds: Sequence[float]) -> APTEVA02:
    """A model with random weights in eval mode; dense if there are no thresholds."""
    torch.manual_seed(0)
    model = APTEVA02.from_preset(name, img_size=img_size, num_scales=len(thresholds) + 1, thresholds=thresholds).eval()
    torch.manual_seed(1)
    for parameter in (model.pos_embed, *model.blocks.parameters(), *model.patch_embed.proj.parameters()):
        nn.init.normal_(parameter, std=0.02)  # drawn again: what APT adds has used up random numbers
    return model


@torch.inference_mode()
def timed_forward(model: APTEVA02, x: Tensor) -> float:
    """Seconds of one forward pass, from the image to the dense map."""
    start = time.perf_counter()
    model(x)
    return time.perf_counter() - start


def peak_memory_mib(args: argparse.Namespace, thresholds: Sequence[float]) -> float:
    """Peak resident memory of one forward pass over what the model and input hold, measured in a new process."""
    with multiprocessing.get_context('spawn').Pool(1) as pool:
        return pool.apply(_peak_of_one_pass, (args.model, args.img_size, thresholds, args.image))


def _peak_of_one_pass(name: str, img_size: int, thresholds: Sequence[float], image: Path) -> float:
    model, x = build(name, img_size, thresholds), load_input(image, img_size)
    # Linux: start the high-water mark anew.  (getrusage's would count what the parent process held, too.)
    Path('/proc/self/clear_refs').write_text('5')
    before = _memory_kib('VmRSS')
    timed_forward(model, x)
    return (_memory_kib('VmHWM') - before) / 1024


def _memory_kib(name: str) -> int:
    """An entry of this process's status in KiB: VmRSS, resident now; VmHWM, resident at its peak."""
    lines = Path('/proc/self/status').read_text().splitlines()
    return int(next(line for line in lines if line.startswith(name)).split()[1])


def main(arguments: Sequence[str] | None = None) -> None:
    args = parse_args(arguments)
    x = load_input(args.image, args.img_size)
    models = {'dense': build(args.model, args.img_size, ()),
              'APT': build(args.model, args.img_size, args.thresholds)}
    seconds: dict[str, list[float]] = {name: [] for name in models}
    for repeat in range(args.repeats + 1):
        for name, model in models.items():
            elapsed = timed_forward(model, x)
            if repeat:
                seconds[name].append(elapsed)
    layout = models['APT'].last_layout
    del models
    memory = {'dense': peak_memory_mib(args, ()), 'APT': peak_memory_mib(args, args.thresholds)}
    print(f'EVA-02-{args.model}, {args.img_size} px, batch 1, float32, CPU, {torch.get_num_threads()} threads, '
          f'thresholds {tuple(args.thresholds)}, {args.image.name}')
    print(f'kept tokens: {layout.num_tokens} of {layout.num_cells} ({layout.num_tokens / layout.num_cells:.3f})')
    for name, times in seconds.items():
        print(f'{name:>6}: median {statistics.median(times):.2f} s (from {min(times):.2f} to {max(times):.2f}), '
              f'activations {memory[name]:.0f} MiB')
    speed_up = statistics.median(seconds['dense']) / statistics.median(seconds['APT'])
    print(f' ratio: {speed_up:.2f} times as fast, {memory["APT"] / memory["dense"]:.2f} of the memory')


if __name__ == '__main__':
    main()
