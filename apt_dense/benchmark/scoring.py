"""Time and memory of scoring against two plain ways to compute the same entropies.

    python -m apt_dense.benchmark.scoring
    python -m apt_dense.benchmark.scoring --img-size 1536 --one-hot-size 512 --json scoring.json

'one-hot' expands every pixel to its histogram's bins, scale by scale, as the public code's data pipeline does: 10 GB
for one image of 1536 px, so it runs on a smaller one, and time and memory are given per pixel.  'histc' calls
torch.histc for every patch of every scale.  'apt_dense, whole' is all that the model does before it embeds: it restores
the image from the normalised one, scores it by the entropy, or by the configs' scorer, and lays its tokens out.
"""
import argparse
import functools
import json
import statistics
import sys
from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from apt_dense.benchmark.inputs import SYNTHETIC_THRESHOLD, normalise, synthetic_image, synthetic_scales
from apt_dense.benchmark.measure import CLOCKS, Marks, keep_freed_memory, peak_of
from apt_dense.benchmark.report import count, format_seconds, markdown
from apt_dense.benchmark.run import device_name, environment
from apt_dense.command_line import at_least, device, target
from apt_dense.core.chooser import PatchChooser
from apt_dense.core.files import write_atomically
from apt_dense.core.importance import LUMA_WEIGHTS, patch_entropy
from apt_dense.core.layout import TokenLayout

PATCH_SIZE, NUM_SCALES, BINS = 32, 3, 512  # of the merged scales: 32, 64 and 128 px
CHOOSER = PatchChooser(NUM_SCALES + 1, (SYNTHETIC_THRESHOLD,) * NUM_SCALES, window_size=32)  # as in EVA-02's detectors
CONFIGS_CHOOSER = PatchChooser(NUM_SCALES + 1, (1e-4,) * NUM_SCALES, scorer='upsampling_error_max', window_size=32)


def one_hot_entropy(image: Tensor) -> list[Tensor]:
    """Entropies (1, h, w) of the three scales of an image (1, 3, H, W) in 0..255, by one-hot histograms."""
    bins = (_grey(image) * BINS / 255).long().clamp_(0, BINS - 1)
    maps = []
    for scale in range(NUM_SCALES):
        side = PATCH_SIZE << scale
        patches = bins.unfold(1, side, side).unfold(2, side, side).flatten(3)
        shares = F.one_hot(patches, BINS).sum(3).float() / side**2
        maps.append(-(shares * shares.clamp(min=1e-10).log2()).sum(-1))
    return maps


def histc_entropy(image: Tensor) -> list[Tensor]:
    """The same by one torch.histc a patch."""
    grey, maps = _grey(image)[0], []
    for scale in range(NUM_SCALES):
        side = PATCH_SIZE << scale
        patches = grey.unfold(0, side, side).unfold(1, side, side)
        entropies = []
        for patch in patches.flatten(0, 1):
            shares = torch.histc(patch, BINS, 0, 255) / side**2
            shares = shares[shares > 0]
            entropies.append(-(shares * shares.log2()).sum())
        maps.append(torch.stack(entropies).view(1, *patches.shape[:2]))
    return maps


def own_entropy(image: Tensor) -> list[Tensor]:
    """The same by apt_dense."""
    return patch_entropy(image, PATCH_SIZE, NUM_SCALES, BINS)


def make_layout(image: Tensor) -> TokenLayout:
    """A normalised image (1, 3, H, W) -> the layout of a detector's tokens."""
    return CHOOSER.layout(image)


def make_configs_layout(image: Tensor) -> TokenLayout:
    """The same by the scorer of the COCO and ADE20K configs."""
    return CONFIGS_CHOOSER.layout(image)


def _grey(image: Tensor) -> Tensor:
    """(1, 3, H, W) -> (1, H, W)."""
    return sum(weight * channel for weight, channel in zip(LUMA_WEIGHTS, image.unbind(1), strict=True))


METHODS: dict[str, Callable[[Tensor], object]] = {
    'one-hot': one_hot_entropy, 'histc': histc_entropy, 'apt_dense': own_entropy, 'apt_dense, whole': make_layout,
    'upsampling_error_max, whole': make_configs_layout}


def build_image(img_size: int, method: str = 'apt_dense', device: str = 'cpu') -> Tensor:
    """A synthetic image (1, 3, S, S) that keeps 0.7 of the tokens: in 0..255, or normalised for a layout."""
    image = synthetic_image(synthetic_scales(0.7, img_size // 16, img_size // 16))[None]
    return (normalise(image) if METHODS[method] in (make_layout, make_configs_layout) else image).to(device)


def _prepare(method: str, img_size: int, device: str) -> Callable[[], object]:
    """For ``peak_of``, in whatever process."""
    return functools.partial(METHODS[method], build_image(img_size, method, device))


def measure(method: str, img_size: int, repeats: int, device: str, clock: str) -> dict[str, object]:
    """A row: the method's time and peak memory for one image."""
    run, times = _prepare(method, img_size, device), []
    for _ in range(repeats + 1):
        marks = Marks(device, clock)
        marks.mark()
        run()
        marks.mark()
        times.append(sum(marks.seconds().values()))
    memory = peak_of(functools.partial(_prepare, method, img_size, device), device)
    return dict(method=method, img_size=img_size, device=device_name(device), clock=clock, repeats=repeats,
                seconds=statistics.median(times[1:]), memory=memory)


def describe(rows: Sequence[dict]) -> str:
    """Where and how the rows were measured."""
    return f'{rows[0]["device"]}, float32, batch 1, {rows[0]["clock"]} time, {count(rows[0]["repeats"], "round")}'


def table(rows: Sequence[dict]) -> str:
    """The rows, with time and memory per pixel and the ratio to apt_dense's time per pixel."""
    own = next(row for row in rows if row['method'] == 'apt_dense')
    lines = []
    for row in rows:
        pixels = row['img_size']**2
        per_pixel = row['seconds'] / pixels
        lines.append([row['method'], str(row['img_size']), format_seconds(row['seconds']), f'{per_pixel * 1e9:.1f}',
                      f'{row["memory"]["extra"]:.0f}', f'{row["memory"]["extra"] * 2**20 / pixels:.0f}',
                      f'{per_pixel / (own["seconds"] / own["img_size"]**2):.1f}'])
    return markdown(['scoring by', 'px', 'time', 'ns per pixel', 'peak MiB', 'bytes per pixel', 'times apt_dense'],
                    lines)


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog='python -m apt_dense.benchmark.scoring', description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--img-size', type=at_least(1), default=1536)
    parser.add_argument('--one-hot-size', type=at_least(1), default=512,
                        help='image for the one-hot histogram (512: 1.5 GB)')
    parser.add_argument('--repeats', type=at_least(1), default=5)
    parser.add_argument('--device', type=device, default='cpu')
    parser.add_argument('--clock', choices=list(CLOCKS), default='wall')
    parser.add_argument('--threads', type=at_least(1))
    parser.add_argument('--json', type=target)
    args = parser.parse_args(arguments)
    if args.threads:
        torch.set_num_threads(args.threads)
    keep_freed_memory()
    rows = [measure(method, args.one_hot_size if method == 'one-hot' else args.img_size, args.repeats, args.device,
                    args.clock) for method in METHODS]
    print(f'{describe(rows)}\n\n{table(rows)}')
    if args.json:
        content = dict(environment=environment(['python -m apt_dense.benchmark.scoring', *(arguments or sys.argv[1:])]),
                       rows=rows)
        write_atomically(args.json, json.dumps(content, indent=1) + '\n')
    return 0


if __name__ == '__main__':
    sys.exit(main())
