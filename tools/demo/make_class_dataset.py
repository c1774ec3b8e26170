"""Make a small classification dataset from the demo's objects and photographs: which two kinds of object are there?

A picture is 192 px a side and shows one object of each of two kinds, large or small, before a photograph; its class is
the pair.  Five kinds give ten classes, ball_crate to lifebuoy_starfish.  They follow each other, so that each has
as many pictures as the others.  Training and validation take disjoint sets of photographs.

Written below ``--out``, a folder for each class::

    {train,val}/ball_crate/000000.jpg
    meta.json, LICENSE.txt      the arguments it was made with; where the photographs come from

Picture i of a split depends on (seed, split, i) alone.
"""
import argparse
import itertools
import json
import os
import shutil
import signal
import sys
from pathlib import Path

from make_demo_dataset import license_text
from objects import CLASSES, render_object
from scenes import BACKGROUNDS, INSIDE, MARGIN_PX, NUM_TEXTURES, SPLITS, draw_object, find_place, load_photos

from apt_dense.command_line import at_least
from apt_dense.extras import from_extra

with from_extra('mm'):
    import cv2
    import numpy as np

GENERATOR = 'make_class_dataset'
VERSION = 1
PAIRS = tuple(itertools.combinations(range(len(CLASSES)), 2))
NAMES = tuple('_'.join(CLASSES[kind] for kind in pair) for pair in PAIRS)
SIDE_PX = 192
OBJECT_PX = (16, 112)  # the longer side of an object before it is rotated


def make_picture(seed: int, split: str, index: int, photos: list[np.ndarray]) -> np.ndarray:
    """Compose picture ``index`` of a split, of class ``index % 10``: (192, 192, 3) uint8, BGR."""
    rng = np.random.default_rng([seed, SPLITS.index(split), index, len(PAIRS)])
    background = BACKGROUNDS[rng.choice(len(BACKGROUNDS), p=[odds for _, odds in BACKGROUNDS])][0]
    image = np.clip(background(rng, photos, SIDE_PX, SIDE_PX), 0, 255)
    image = cv2.copyMakeBorder(image, *[MARGIN_PX] * 4, cv2.BORDER_REPLICATE)
    object_ids, areas = np.zeros(image.shape[:2], np.uint8), []
    for kind in rng.permutation(PAIRS[index % len(PAIRS)]):
        place = None
        while place is None:  # the first finds room at once, and so does a smaller second one
            size_px = round(OBJECT_PX[0] * (OBJECT_PX[1] / OBJECT_PX[0])**rng.uniform())
            colour, cover = render_object(rng, CLASSES[kind], size_px, photos[:NUM_TEXTURES])
            place = find_place(rng, object_ids, cover > 0.5, areas)
        object_ids, top, left = place
        draw_object(image, colour, cover, top, left)
        areas.append(int((cover > 0.5).sum()))
    return np.round(image[INSIDE]).astype(np.uint8)


def file_name(split: str, index: int) -> str:
    """The path of a picture, relative to the dataset."""
    return f'{split}/{NAMES[index % len(NAMES)]}/{index:06d}.jpg'


def make_dataset(out: str | Path, num_train: int = 3000, num_val: int = 500, seed: int = 0) -> bool:
    """Make the dataset in the folder ``out``, unless it is there already.

    Everything is written to a temporary folder beside ``out`` and renamed at the end: ``out`` is never half-written.

    Args:
        num_train, num_val: pictures of each split, at least 10.

    Returns:
        True if it was made, False if the same dataset was there.

    Raises:
        ValueError: for too few pictures or a negative seed.
        FileExistsError: if ``out`` is something else.
    """
    for name, value, least in (('num_train', num_train, len(NAMES)), ('num_val', num_val, len(NAMES)),
                               ('seed', seed, 0)):
        if value < least:
            raise ValueError(f'{name}={value}: want a whole number of at least {least}')
    out = Path(out).resolve()
    counts = dict(zip(SPLITS, (num_train, num_val), strict=True))
    meta = dict(generator=GENERATOR, version=VERSION, seed=seed, **counts)
    if out.exists() and (out.is_file() or any(out.iterdir())):
        found = json.loads((out / 'meta.json').read_text()) if (out / 'meta.json').is_file() else {}
        missing = [name for split in SPLITS for index in range(counts[split])
                   if not (out / (name := file_name(split, index))).is_file()]
        if found == meta and not missing:
            return False
        raise FileExistsError(f'{out} exists and is not the dataset of {meta} with all of its pictures: remove it, or '
                              'give another --out')
    temporary = out.with_name(f'.{out.name}.{os.getpid()}.tmp')
    try:
        for split in SPLITS:
            photos = load_photos(split)
            for index in range(counts[split]):
                path = temporary / file_name(split, index)
                path.parent.mkdir(parents=True, exist_ok=True)
                image = make_picture(seed, split, index, photos)
                path.write_bytes(cv2.imencode('.jpg', image, [cv2.IMWRITE_JPEG_QUALITY, 95])[1].tobytes())
        (temporary / 'LICENSE.txt').write_text(license_text())
        (temporary / 'meta.json').write_text(json.dumps(meta, indent=2) + '\n')
        if out.exists():
            out.rmdir()  # empty
        temporary.rename(out)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    return True


def main(argv: list[str] | None = None) -> None:
    """The command line; wrong arguments and a missing package end it with status 2 and one line that says why."""
    parser = argparse.ArgumentParser(description=__doc__.split('\n')[0])
    parser.add_argument('--out', default='data/demo_cls', help='the folder to make (default: %(default)s)')
    parser.add_argument('--num-train', type=int, default=3000, help='training pictures (default: %(default)s)')
    parser.add_argument('--num-val', type=int, default=500, help='validation pictures (default: %(default)s)')
    parser.add_argument('--seed', type=at_least(0), default=0,
                        help='another seed, other pictures (default: %(default)s)')
    args = parser.parse_args(argv)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # or the temporary folder would stay behind
    try:
        made = make_dataset(**vars(args))
    except (ValueError, OSError, ImportError) as error:
        parser.error(str(error))
    print(f'{args.out}: {"made" if made else "is there already,"} {args.num_train} training and {args.num_val} '
          'validation pictures')


if __name__ == '__main__':
    main()
