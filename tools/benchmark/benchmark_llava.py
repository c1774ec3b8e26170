#!/usr/bin/env python
"""LLaVA-1.5 up to the first token of an answer: multiply-adds, and the time of tower and prefill on this machine.

    python tools/benchmark/benchmark_llava.py --count
    python tools/benchmark/benchmark_llava.py --clock process --json llava.json

Measured is the tower of the published size, CLIP ViT-L/14 at 336 px, with a language model of the 7B's width that is
cut to two layers: dense and APT in turns, one image, random weights, float32.  Ideal is the dense model's multiply-adds
over APT's, of the same cut model.  The patches are given, as a data loader gives them; scoring an image is timed alone.
Needs the extra hf.
"""
import argparse
import copy
import json
import statistics
import sys
from functools import partial

import torch
from torch import Tensor, nn

from apt_dense.benchmark.measure import CLOCKS, interleave, keep_freed_memory
from apt_dense.benchmark.run import environment
from apt_dense.command_line import at_least, share
from apt_dense.core.files import write_atomically
from apt_dense.extras import from_extra
from apt_dense.hf import adapt_llava
from apt_dense.hf.image_patches import choose_patches
from apt_dense.hf.llava_flops import llava_multiply_adds, patches_of, published_config

with from_extra('hf'):
    from transformers import LlavaConfig, LlavaForConditionalGeneration

SHARES = (1.0, 0.9, 0.8, 0.7, 0.6, 0.5)


def parse_args(arguments: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--count', action='store_true', help='only count the multiply-adds of the whole models')
    parser.add_argument('--kept', type=share, default=0.7, help='share of the image tokens (0.7)')
    parser.add_argument('--text', type=at_least(1), default=64, help='tokens of the prompt without the image (64)')
    parser.add_argument('--layers', type=at_least(1), default=2, help='of the language model (2)')
    parser.add_argument('--repeats', type=at_least(1), default=7, help='rounds that count (7)')
    parser.add_argument('--clock', choices=CLOCKS, default='wall', help='process: for busy machines (wall)')
    parser.add_argument('--json', help='write what was measured here')
    return parser.parse_args(arguments)


def tokens_at(share: float, cells: int) -> int:
    """The number of tokens that is nearest to a share of the cells, of those that two patch sizes give."""
    return cells - 3 * round((1 - share) * cells / 3)


def count_table(text_tokens: int) -> str:
    """Multiply-adds of the published models by kept tokens, as a table of Markdown."""
    lines = ['| model | kept | image tokens | tower | projector | prefill | all | ideal speed-up |', f'|{"---|" * 8}']
    for name in ('7B', '13B'):
        config = published_config(name)
        dense = llava_multiply_adds(config, 576, text_tokens).total
        for kept in SHARES:
            tokens = tokens_at(kept, 576)
            found = llava_multiply_adds(config, tokens, text_tokens)
            parts = [f'{part / 1e12:.3f}' for part in (found.tower, found.projector, found.prefill, found.total)]
            lines.append(f'| {name} | {kept:.0%} | {tokens} | {" | ".join(parts)} | {dense / found.total:.2f} |')
    return '\n'.join(lines)


def build_pair(config: LlavaConfig) -> tuple[nn.Module, nn.Module]:
    """A dense model and an APT one, of two sizes of patches, on one language model."""
    dense = LlavaForConditionalGeneration(config).eval()
    with torch.device('meta'):
        apt = LlavaForConditionalGeneration(config).eval()
    apt.model.language_model, apt.lm_head = dense.model.language_model, dense.lm_head
    apt.model.multi_modal_projector = dense.model.multi_modal_projector
    apt.model.vision_tower = copy.deepcopy(dense.model.vision_tower)
    return adapt_llava(dense, variant='dense'), adapt_llava(apt)


def prompt(config: LlavaConfig, num_tokens: int, text_tokens: int) -> Tensor:
    """(1, L): image tokens, then text."""
    return torch.tensor([[config.image_token_id] * num_tokens + [1] * text_tokens])


def measure(args: argparse.Namespace) -> dict:
    """Seconds of each round, the ideal, and what scoring takes."""
    config = published_config('7B', num_hidden_layers=args.layers)
    models = dict(zip(('dense', 'apt'), build_pair(config), strict=True))
    counts = dict(dense=576, apt=tokens_at(args.kept, 576))
    adds = {name: llava_multiply_adds(config, count, args.text).total for name, count in counts.items()}
    image, clock = torch.randn(1, 3, 336, 336), CLOCKS[args.clock]

    def seconds(call: partial) -> float:
        start = clock()
        call()
        return clock() - start

    calls = {name: partial(models[name], input_ids=prompt(config, count, args.text), pixel_values=image,
                           patch_scales=patches_of(count, 24, 24), logits_to_keep=1, use_cache=False)
             for name, count in counts.items()}
    calls['score'] = partial(choose_patches, models['apt'].model.vision_tower.apt.packed.chooser, image)
    found = interleave({name: partial(seconds, call) for name, call in calls.items()}, args.repeats, 1)
    speedup = statistics.median(a / b for a, b in zip(found['dense'], found['apt'], strict=True))
    ideal = adds['dense'] / adds['apt']
    return dict(kept=counts['apt'] / 576, tokens=counts, text_tokens=args.text, layers=args.layers, clock=args.clock,
                threads=torch.get_num_threads(), seconds=found, multiply_adds=adds, speedup=speedup, ideal=ideal,
                of_ideal=speedup / ideal)


def main(arguments: list[str] | None = None) -> None:
    args = parse_args(arguments)
    if args.count:
        print(count_table(args.text))
        return
    keep_freed_memory()
    row = measure(args)
    medians = {name: statistics.median(values) for name, values in row['seconds'].items()}
    print(f'kept {row["kept"]:.3f}: dense {medians["dense"]:.2f} s, APT {medians["apt"]:.2f} s, speed-up '
          f'{row["speedup"]:.3f} of {row["ideal"]:.3f} ({row["of_ideal"]:.3f}); scoring an image '
          f'{1000 * medians["score"]:.1f} ms')
    if args.json:
        write_atomically(args.json, json.dumps(dict(environment=environment(sys.argv), row=row), indent=1) + '\n')


if __name__ == '__main__':
    torch.set_grad_enabled(False)
    main()
