#!/usr/bin/env python
"""Predict pictures, folders and videos with a trained model.

    python tools/predict.py photo.jpg photos/ film.mp4 --model work_dirs/mine/iter_3000.pth --out found
    python tools/predict.py photos/ --model apt_eva02_l_coco --weights eva02_L_coco.pth --out found \\
        --kept 0.7 --calibrate-on photos/

Written into --out: each picture with what was found, NAME.png (NAME.mp4 for a video); predictions.json in COCO's
layout, with each picture's tokens; for segmentation labels/NAME.png, the label of each pixel.  What is no picture or
cut off is named before the model is loaded, what turns out to be damaged in the middle later; the others go on, and the
exit status is 1; 2 if none can be read, and nothing is written.
"""
import argparse
import sys
import time
from pathlib import Path

from apt_dense.command_line import at_least
from apt_dense.core.files import check_folder
from apt_dense.core.scorers import SCORERS
from apt_dense.extras import from_extra

with from_extra('mm'):
    from tqdm import tqdm

    import apt_dense.mm  # noqa: F401
    from apt_dense.mm.cli.launch import run_tool
    from apt_dense.mm.errors import DataError
    from apt_dense.mm.inference import CocoIds, load
    from apt_dense.mm.inference.sources import count_pictures, find_readable
    from apt_dense.mm.inference.writing import PredictionWriter, check_unused


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('inputs', nargs='+', metavar='INPUT', help='pictures, folders with those below them, videos')
    parser.add_argument('--model', required=True,
                        help='a checkpoint, or the name or file of a config (then with --weights)')
    parser.add_argument('--weights', help='checkpoint of the config; official EVA-02 files are converted on the way')
    parser.add_argument('--out', type=Path, required=True, help='folder')
    parser.add_argument('--device', default='auto', help="'auto' (a GPU where there is one), 'cpu', 'cuda', 'cuda:1'")
    parser.add_argument('--batch-size', type=int, default=1, help='pictures that a detector gets at once')
    parser.add_argument('--min-score', type=float, default=0.3, help='of the boxes that are drawn; the JSON has all')
    parser.add_argument('--no-draw', action='store_true', help='write no pictures and videos')
    parser.add_argument('--annotations', metavar='FILE',
                        help="COCO's file of the pictures: the JSON has its ids of pictures and classes")
    parser.add_argument('--as-published', action='store_true',
                        help="a detector's published test setting, every box of any score; slow")
    patches = parser.add_argument_group('patches', "in place of the config's")
    patches.add_argument('--kept', type=float, help='share of the tokens to keep; with --calibrate-on')
    patches.add_argument('--calibrate-on', nargs='+', metavar='INPUT', help='pictures like those to be predicted')
    patches.add_argument('--thresholds', type=float, nargs='+', help='fine to coarse')
    patches.add_argument('--scorer', choices=sorted(SCORERS), help="of --thresholds or --kept (default: the config's)")
    patches.add_argument('--max-tokens', type=at_least(1), help='the most of an image')
    patches.add_argument('--proportional-attention', action=argparse.BooleanOptionalAction,
                         help="merged patches count in attention by their cells (default: the config's)")
    args = parser.parse_args()
    if args.batch_size < 1:
        parser.error(f'--batch-size {args.batch_size}: wanted 1 or more')
    if not 0 <= args.min_score <= 1:
        parser.error(f'--min-score {args.min_score:g} is no score: give a number from 0 to 1')
    return args


def main() -> int:
    args = parse_args()
    check_folder(args.out, '--out')
    check_unused(args.out)
    inputs, failed = find_readable(args.inputs)
    for error in failed:
        print(f'predict: {error}', file=sys.stderr)
    if not inputs:
        return 2
    written = (args.out.resolve(), args.out.resolve() / 'labels')
    own = next((path for path in inputs if Path(path).resolve().parent in written), None)
    if own is not None:
        print(f'predict: --out {args.out} has {own} in it, and what is written there could take its place: '
              'choose another folder', file=sys.stderr)
        return 2
    ids = CocoIds(args.annotations) if args.annotations else None
    for path in inputs if ids else ():
        ids.of_image(str(path))
    model = load(args.model, args.weights, args.device, args.kept, calibrate_on=args.calibrate_on,
                 thresholds=args.thresholds, scorer=args.scorer, max_tokens=args.max_tokens,
                 proportional_attention=args.proportional_attention, as_published=args.as_published)
    print(model)

    def fail(error: DataError) -> None:
        print(f'predict: {error}', file=sys.stderr)
        failed.append(error)

    start, done, tokens, cells = time.perf_counter(), 0, 0, 0
    with PredictionWriter(args.out, model.task, model.classes, args.min_score, not args.no_draw, ids) as writer:
        for result in tqdm(model.stream(inputs, args.batch_size, fail), total=count_pictures(inputs), unit='picture',
                           disable=None):
            writer.add(result)
            done, tokens, cells = done + 1, tokens + result.tokens.num_tokens, cells + result.tokens.num_cells
    if not done:
        return 2
    rate = done / (time.perf_counter() - start)
    print(f'{done} pictures, {rate:.2f} a second with reading and writing; {tokens / max(cells, 1):.1%} of the tokens '
          f'kept -> {args.out}')
    return 1 if failed else 0


if __name__ == '__main__':
    sys.exit(run_tool(main))
