"""Make a small detection and segmentation dataset: textured objects composed on real photographs.

It needs no download and no accelerator: the backgrounds are photographs inside the scikit-image wheel, and a detector
of a few million parameters learns it from random weights on two CPU cores in minutes.  A scene is 192 to 320 pixels a
side and holds 1 to 8 objects of five classes; every 25th scene of a split is empty.  About two thirds of the scenes
have large smooth areas (a clear sky over a photographed ground, a defocused photograph), which an adaptive patch model
may merge; the others are busy all over.  Training and validation take disjoint sets of photographs.

``--recipe`` makes a harder dataset of the same kind (`scenes.RECIPES`): up to 12 objects a scene, many of them small,
on scenes whose longer side is 384 px (``scenes_384``), or the same in half the resolution (``scenes_192``).  Where a
photograph is smaller than a scene it is enlarged.

Written below ``--out``, in COCO's layout::

    annotations/instances_{train,val}.json   boxes and masks; category ids from 1; masks as compressed RLE, exact
    {train,val}/000000.jpg                   the scenes
    semantic/{train,val}/000000.png          label maps, uint8: 0 background, 1 to 5 the category id, 255 ignore
    meta.json, LICENSE.txt                   the arguments it was made with; where the photographs come from

The label maps are for mmseg with ``classes=('background', *CLASSES)`` and ``reduce_zero_label=False``; the value 255
is reserved and does not occur.

Exactness: one map of object ids is stamped front over back, so every pixel has one owner and masks, boxes and label
maps all follow from it.  A mask is the visible part of an object, where its coverage of the pixel is above one half;
colours are blended with the fractional coverage.  An object is placed only where it and all earlier ones keep 60 % of
their area visible (the image border hides too); one that finds no such place is left out of the scene.  So everything
that is drawn is annotated, and nothing that is annotated is hardly visible.

Scene i of a split depends on (seed, split, i) alone: the numbers of scenes do not change its pixels or boxes.  The
files are the same byte for byte under the same versions of numpy, OpenCV and scikit-image.
"""
import argparse
import json
import os
import shutil
import signal
import sys
from pathlib import Path

from objects import CLASSES
from scenes import PHOTOS, RECIPES, SPLITS, Scene, load_photos, make_scene

from apt_dense.command_line import at_least
from apt_dense.extras import from_extra

with from_extra('mm'):
    import cv2
    import numpy as np
    from pycocotools import mask as coco_mask

GENERATOR = 'make_demo_dataset'
VERSION = 1  # of the recipe: a change of the scenes must change it, or old folders are taken for new ones


def annotations_of(scene: Scene, image_id: int, first_id: int) -> list[dict]:
    """A scene's annotations in COCO's format, one for each object."""
    annotations = []
    for number, category_id in enumerate(scene.category_ids, start=1):
        rle = coco_mask.encode(np.asfortranarray(scene.object_ids == number, dtype=np.uint8))
        annotations.append({
            'id': first_id + number - 1, 'image_id': image_id, 'category_id': category_id, 'iscrowd': 0,
            'bbox': coco_mask.toBbox(rle).tolist(), 'area': int(coco_mask.area(rle)),
            'segmentation': {'size': rle['size'], 'counts': rle['counts'].decode('ascii')}})
    return annotations


def file_names(split: str, index: int) -> tuple[str, str]:
    """The paths, relative to the dataset, of a scene and of its label map."""
    return f'{split}/{index:06d}.jpg', f'semantic/{split}/{index:06d}.png'


def write_split(root: Path, split: str, num_scenes: int, seed: int, recipe: str = 'demo') -> None:
    """Write one split's scenes, label maps and annotations below ``root``."""
    photos = load_photos(split)
    images, annotations = [], []
    for folder in (root / split, root / 'semantic' / split, root / 'annotations'):
        folder.mkdir(parents=True, exist_ok=True)
    for index in range(num_scenes):
        scene = make_scene(seed, split, index, photos, RECIPES[recipe])
        labels = np.array([0, *scene.category_ids], np.uint8)[scene.object_ids]
        image_name, labels_name = file_names(split, index)
        # Encoded first, written by Python: cv2.imwrite does not say why it could not write.
        (root / image_name).write_bytes(cv2.imencode('.jpg', scene.image, [cv2.IMWRITE_JPEG_QUALITY, 95])[1].tobytes())
        (root / labels_name).write_bytes(cv2.imencode('.png', labels)[1].tobytes())
        height, width = labels.shape
        images.append({'id': index + 1, 'file_name': Path(image_name).name, 'height': height, 'width': width})
        annotations += annotations_of(scene, index + 1, len(annotations) + 1)
    (root / f'annotations/instances_{split}.json').write_text(json.dumps({
        'info': {'description': 'apt_dense demo dataset: objects composed on photographs of scikit-image'},
        'licenses': [], 'images': images, 'annotations': annotations,
        'categories': [{'id': number, 'name': name} for number, name in enumerate(CLASSES, start=1)]}))


def license_text() -> str:
    """Where the photographs come from, as scikit-image's documentation says."""
    lines = ['The scenes were composed by tools/demo/make_demo_dataset.py on crops of photographs that',
             'scikit-image ships (skimage/data).  Their sources, as stated in the documentation of skimage.data:', '']
    for split in SPLITS:
        lines += [f'{split}:', *(f'  {name}: {terms}' for name, terms in PHOTOS[split].items()), '']
    return '\n'.join(lines)


def make_dataset(out: str | Path, num_train: int = 200, num_val: int = 50, seed: int = 0, force: bool = False,
                 recipe: str = 'demo') -> bool:
    """Make the dataset in the folder ``out``, unless it is there already.

    Everything is written to a temporary folder beside ``out`` and renamed at the end: ``out`` is never half-written.

    Args:
        out: the dataset's folder; missing or empty, or one that an earlier call made.
        num_train, num_val: scenes of each split, at least 1.
        seed: 0 or more.
        force: replace a dataset that was made with other arguments or is incomplete.
        recipe: what the scenes are like, a key of `scenes.RECIPES`.

    Returns:
        True if it was made, False if the same dataset was there.

    Raises:
        ValueError: for a count below 1, a negative seed or an unknown recipe.
        FileExistsError: if ``out`` is a file, another dataset (without ``force``), or a folder of something else.
        ImportError, FileNotFoundError: see `load_photos`.
    """
    for name, value, least in (('num_train', num_train, 1), ('num_val', num_val, 1), ('seed', seed, 0)):
        if value < least:
            raise ValueError(f'{name}={value}: want a whole number of at least {least}')
    if recipe not in RECIPES:
        raise ValueError(f'recipe={recipe!r}: choose one of {sorted(RECIPES)}')
    out = Path(out).resolve()
    meta = {'generator': GENERATOR, 'version': VERSION, 'num_train': num_train, 'num_val': num_val, 'seed': seed}
    if recipe != 'demo':
        meta['recipe'] = recipe
    if is_made(out, meta, force):
        return False
    temporary = out.with_name(f'.{out.name}.{os.getpid()}.tmp')
    try:
        temporary.mkdir(parents=True)
        for split in SPLITS:
            write_split(temporary, split, meta[f'num_{split}'], seed, recipe)
        (temporary / 'LICENSE.txt').write_text(license_text())
        (temporary / 'meta.json').write_text(json.dumps(meta, indent=2) + '\n')
        if out.exists():
            shutil.rmtree(out)  # empty, or a dataset of this program that --force gives up: is_made has checked
        temporary.rename(out)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    return True


def is_made(out: Path, meta: dict, force: bool) -> bool:
    """True if ``out`` holds the complete dataset of ``meta``, False if it may be written; FileExistsError otherwise."""
    if not out.exists() or (out.is_dir() and not any(out.iterdir())):
        return False
    found = json.loads((out / 'meta.json').read_text()) if (out / 'meta.json').is_file() else {}
    if found.get('generator') != GENERATOR:
        raise FileExistsError(f'{out} exists and is not a demo dataset, which would have a meta.json of {GENERATOR}: '
                              'give another --out')
    wanted = [name for split in SPLITS for i in range(meta[f'num_{split}']) for name in file_names(split, i)]
    wanted += [f'annotations/instances_{split}.json' for split in SPLITS]
    missing = [name for name in wanted if not (out / name).is_file()]
    if found == meta and not missing:
        return True
    if force:
        return False
    reason = f'was made with {found}' if found != meta else f'lacks {len(missing)} of its files, such as {missing[0]}'
    raise FileExistsError(f'{out} {reason}; wanted all files of {meta}: use --force to replace it')


def main(argv: list[str] | None = None) -> None:
    """The command line; wrong arguments and a missing package end it with status 2 and one line that says why."""
    parser = argparse.ArgumentParser(description=__doc__.split('\n')[0])
    parser.add_argument('--out', default='data/demo', help='the folder to make (default: %(default)s)')
    parser.add_argument('--num-train', type=int, default=200, help='training scenes (default: %(default)s)')
    parser.add_argument('--num-val', type=int, default=50, help='validation scenes (default: %(default)s)')
    parser.add_argument('--seed', type=at_least(0), default=0, help='another seed, other scenes (default: %(default)s)')
    parser.add_argument('--recipe', choices=sorted(RECIPES), default='demo',
                        help='what the scenes are like (default: %(default)s)')
    parser.add_argument('--force', action='store_true', help='replace a dataset made with other arguments')
    args = parser.parse_args(argv)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # or the temporary folder would stay behind
    try:
        made = make_dataset(**vars(args))
    except (ValueError, OSError, ImportError) as error:
        parser.error(str(error))
    print(f'{args.out}: {"made" if made else "is there already,"} {args.num_train} training and {args.num_val} '
          'validation scenes')


if __name__ == '__main__':
    main()
