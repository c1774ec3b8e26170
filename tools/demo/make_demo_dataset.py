"""Make a small detection and segmentation dataset: textured objects composed on real photographs.

It needs no download and no accelerator: the backgrounds are photographs inside the scikit-image wheel, and a detector
of a few million parameters learns it from random weights on two CPU cores in minutes.  A scene is 192 to 320 pixels a
side and holds 1 to 8 objects of five classes; every 25th scene of a split is empty.  About two thirds of the scenes
have large smooth areas (a clear sky over a photographed ground, a defocused photograph), which an adaptive patch model
may merge; the others are busy all over.  Training and validation take disjoint sets of photographs.

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
import importlib.util
import json
import math
import os
import shutil
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

from apt_dense.extras import from_extra, install_command

with from_extra('mm'):
    import cv2
    import numpy as np
    from pycocotools import mask as coco_mask

CLASSES = ('ball', 'crate', 'kite', 'lifebuoy', 'starfish')
SPLITS = ('train', 'val')
GENERATOR = 'make_demo_dataset'
VERSION = 1  # of the recipe: a change of the scenes must change it, or old folders are taken for new ones
MIN_SIDE_PX, MAX_SIDE_PX = 192, 320
MIN_OBJECT_PX, MAX_OBJECT_PX = 14, 140  # the longer side of an object's box before it is rotated
MIN_VISIBLE = 0.6  # of an object's area
EMPTY_EVERY = 25
NUM_OBJECTS_ODDS = (0.08, 0.12, 0.16, 0.18, 0.16, 0.13, 0.10, 0.07)  # of 1 to 8 objects
OVERSAMPLING = 2  # objects are painted at twice their size and averaged down, which smooths their edges
MARGIN_PX = 128  # drawn around each scene and cut off at the end, so that objects and shadows may cross the border
INSIDE = np.s_[MARGIN_PX:-MARGIN_PX, MARGIN_PX:-MARGIN_PX]

# Photograph -> what scikit-image says of its source.  The first ones of each split also give the objects' textures.
NUM_TEXTURES = 3
PHOTOS = {
    'train': {
        'brick.png': 'CC0Textures, CC0',
        'grass.png': 'DeviantArt (linolafett), CC0',
        'ihc.png': 'Center for Microscopy and Molecular Imaging, no known copyright restrictions',
        'astronaut.png': 'NASA, public domain',
        'chelsea.png': 'Stefan van der Walt, CC0',
        'clock_motion.png': 'Stefan van der Walt, public domain',
        'coins.png': 'Brooklyn Museum, no known copyright restrictions',
        'hubble_deep_field.jpg': 'NASA, public domain',
        'retina.jpg': 'Mikael Haggstrom, CC0',
    },
    'val': {
        'gravel.png': 'CC0Textures, CC0',
        'coffee.png': 'Rachel Michetti, courtesy of Pikolo Espresso Bar, CC0',
        'motorcycle_left.png': 'Middlebury 2014 stereo benchmark (Scharstein et al., GCPR 2014); no terms stated',
        'camera.png': 'Lav Varshney, CC0',
        'cell.png': 'Mueller et al., Optics Express 26(8), 2018, CC0',
        'rocket.jpg': 'SpaceX, public domain',
    },
}


class Scene(NamedTuple):
    """One scene: ``image`` (H, W, 3) uint8, BGR; ``object_ids`` (H, W) uint8, 0 where the background shows and k where
    object k does; ``category_ids`` of the objects 1, 2, ..."""
    image: np.ndarray
    object_ids: np.ndarray
    category_ids: list[int]


# ---- photographs and backgrounds ----
def load_photos(split: str) -> list[np.ndarray]:
    """Return a split's photographs from scikit-image's folder, each (H, W, 3) uint8, BGR, at most 800 pixels a side.

    Raises:
        ImportError: if scikit-image is not installed.
        FileNotFoundError: if it ships without one of the photographs.
    """
    spec = importlib.util.find_spec('skimage')  # found, not imported: only its files are needed
    if spec is None:
        raise ImportError('scikit-image is not installed, and the backgrounds are its photographs: '
                          f'pip install scikit-image, or {install_command("tools")}')
    folder = Path(spec.submodule_search_locations[0]) / 'data'
    photos = []
    for name in PHOTOS[split]:
        photo = cv2.imread(str(folder / name)) if (folder / name).is_file() else None
        if photo is None:
            raise FileNotFoundError(f'no readable photograph {folder / name}: scikit-image 0.26 ships it, install '
                                    'that version')
        shrink = 800 / max(photo.shape)
        photos.append(cv2.resize(photo, None, fx=shrink, fy=shrink, interpolation=cv2.INTER_AREA) if shrink < 1
                      else photo)
    return photos


def random_crop(rng: np.random.Generator, photo: np.ndarray, height: int, width: int) -> np.ndarray:
    """Cut a random part of the wanted aspect ratio from a photograph, mirror it at times: (height, width, 3) uint8."""
    scale = min(photo.shape[0] / height, photo.shape[1] / width) * rng.uniform(0.6, 1.0)
    rows, cols = int(height * scale), int(width * scale)
    top, left = rng.integers(photo.shape[0] - rows + 1), rng.integers(photo.shape[1] - cols + 1)
    crop = cv2.resize(photo[top:top + rows, left:left + cols], (width, height), interpolation=cv2.INTER_AREA)
    return crop[:, ::-1] if rng.random() < 0.5 else crop


def graded_crop(rng: np.random.Generator, photos: list[np.ndarray], height: int, width: int) -> np.ndarray:
    """A random crop of a random photograph with its colours shifted: (height, width, 3) float32."""
    crop = random_crop(rng, photos[rng.integers(len(photos))], height, width).astype(np.float32)
    return crop * rng.uniform(0.65, 1.05, 3).astype(np.float32) + np.float32(rng.uniform(-10, 30))


def defocused(rng: np.random.Generator, photos: list[np.ndarray], height: int, width: int) -> np.ndarray:
    """A photograph far out of focus: smooth everywhere."""
    return cv2.GaussianBlur(graded_crop(rng, photos, height, width), (0, 0), rng.uniform(20, 45))


def horizon(rng: np.random.Generator, photos: list[np.ndarray], height: int, width: int) -> np.ndarray:
    """A nearly constant sky or wall over the ground of a photograph, with haze towards a gently waved horizon."""
    zenith = random_colour(rng, (0, 179), (10, 110), (130, 250))
    haze = np.clip(zenith + rng.uniform(-6, 14), 0, 255)
    row, col = np.mgrid[0:height, 0:width].astype(np.float32)
    edge = height * rng.uniform(0.35, 0.7) + 6 * np.sin(col / rng.uniform(25, 60) + rng.uniform(0, 6))
    sky = zenith + (haze - zenith) * np.minimum(row / edge, 1)[..., None]
    depth = np.clip((row - edge) / (height - edge), 0, 1)[..., None]
    ground = graded_crop(rng, photos, height, width)
    ground = haze + (ground - haze) * (0.45 + 0.55 * depth)
    below = np.clip(row - edge + 0.5, 0, 1)[..., None]
    return (sky + (ground - sky) * below).astype(np.float32)


BACKGROUNDS = ((graded_crop, 0.3), (defocused, 0.3), (horizon, 0.4))  # and how often each is taken


# ---- objects: a painter takes x (right) and y (down) in -1..1, returns colours (H, W, 3) and a mask of the object ----
def random_colour(rng: np.random.Generator, hue: tuple, saturation: tuple, value: tuple) -> np.ndarray:
    """A BGR colour, (3,) float32 in 0..255, from ranges in OpenCV's HSV (hue 0..179)."""
    hsv = np.array([[[rng.uniform(*hue), rng.uniform(*saturation), rng.uniform(*value)]]]).astype(np.uint8)
    return cv2.cvtColor(hsv, cv2.COLOR_HSV2BGR)[0, 0].astype(np.float32)


def paint_ball(rng: np.random.Generator, x: np.ndarray, y: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """A blue sphere with pale dots in a hexagonal pattern, darker towards its rim."""
    radius = np.hypot(x, y)
    bulge = np.arcsin(np.minimum(radius, 1)) / np.maximum(radius, 1e-6)  # the pattern crowds towards the rim
    period = rng.uniform(0.65, 0.85)
    rows = y * bulge / (period * 0.866) + rng.uniform(0, 1)
    cols = x * bulge / period + 0.5 * (np.round(rows) % 2) + rng.uniform(0, 1)
    dots = np.hypot(cols - np.round(cols), (rows - np.round(rows)) * 0.866) < 0.29
    base = random_colour(rng, (104, 124), (170, 255), (150, 230))
    colour = np.where(dots[..., None], random_colour(rng, (20, 35), (20, 120), (225, 255)), base)
    return colour * (1 - 0.45 * np.minimum(radius, 1)[..., None]**4), radius <= 1


def paint_crate(rng: np.random.Generator, x: np.ndarray, y: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """A brown rectangle of grained planks in a frame with a brace."""
    aspect = rng.uniform(0.65, 1.0)
    y = y / aspect
    num_planks = rng.integers(4, 7)
    plank, across = np.divmod((y + 1) / 2 * num_planks, 1)
    shades = rng.uniform(0.75, 1.0, num_planks)[np.clip(plank, 0, num_planks - 1).astype(int)]
    grain = 1 + 0.12 * np.sin(rng.uniform(25, 40) * (y + 0.08 * np.sin(3 * x + 2 * plank)))
    shades = np.where(np.abs(across - 0.5) > 0.42, 0.4, shades * grain)
    border = np.minimum(1 - np.abs(x), (1 - np.abs(y)) * aspect)
    brace = np.abs(x - y) / math.sqrt(2)
    wood = (border < 0.17) | (brace < 0.12)
    shades = np.where(wood, 1.2, shades)
    shades = np.where(~wood & ((border < 0.23) | (brace < 0.17)), 0.4, shades)
    return random_colour(rng, (9, 17), (120, 190), (120, 190)) * shades[..., None], border >= 0


def paint_kite(rng: np.random.Generator, x: np.ndarray, y: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """A kite: magenta and pale checks, dark spars."""
    shoulder, half_width = rng.uniform(-0.4, -0.15), rng.uniform(0.6, 0.8)
    check = rng.uniform(0.28, 0.4)
    odd = (np.floor((x + y) / check) + np.floor((x - y) / check)) % 2 > 0
    pale = random_colour(rng, (25, 90), (10, 120), (220, 255))
    colour = np.where(odd[..., None], pale, random_colour(rng, (148, 164), (170, 255), (170, 240)))
    spars = (np.abs(x) < 0.035) | (np.abs(y - shoulder) < 0.035)
    reach = np.where(y < shoulder, (y + 1) / (shoulder + 1), (1 - y) / (1 - shoulder))
    return np.where(spars[..., None], 0.3 * colour, colour), np.abs(x) <= half_width * reach


def paint_lifebuoy(rng: np.random.Generator, x: np.ndarray, y: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """A ring with a hole: red and white sectors, lit as a torus."""
    inner = rng.uniform(0.42, 0.55)
    radius = np.hypot(x, y)
    across = (2 * radius - inner - 1) / (1 - inner)  # -1 at the hole, 1 at the rim
    turn = np.arctan2(y, x) / (2 * np.pi) * rng.choice([4, 6])
    white = (turn % 1 < rng.uniform(0.3, 0.5))[..., None]
    colour = np.where(white, random_colour(rng, (0, 179), (0, 15), (225, 255)),
                      random_colour(rng, (174, 179), (200, 255), (180, 240)))
    return colour * (1.08 - 0.5 * np.clip(across, -1, 1)[..., None]**2), np.abs(across) <= 1


def paint_starfish(rng: np.random.Generator, x: np.ndarray, y: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Five rounded arms, yellow to orange, with rows of dark warts along them."""
    angle = np.arctan2(x, -y) * 5 / (2 * np.pi)  # whole numbers on the arms' axes
    radius, off_axis = np.hypot(x, y), np.abs(angle - np.round(angle)) * 2 * np.pi / 5
    reach = rng.uniform(0.34, 0.42) + 0.62 * ((1 + np.cos(2 * np.pi * angle)) / 2)**1.4
    warts = np.hypot((radius * 7) % 1 - 0.5, radius * off_axis * 7) < 0.36
    colour = random_colour(rng, (19, 27), (200, 255), (225, 255)) * (1 - 0.3 * (radius / reach)[..., None]**2)
    return np.where(warts[..., None], 0.45 * colour, colour), radius <= np.minimum(reach, 1)


PAINTERS: dict[str, Callable] = {'ball': paint_ball, 'crate': paint_crate, 'kite': paint_kite,
                                 'lifebuoy': paint_lifebuoy, 'starfish': paint_starfish}


def render_object(rng: np.random.Generator, name: str, size_px: int,
                  textures: list[np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
    """Paint one object, rotated at random, roughened by a photograph and lit from one side.

    Returns:
        colours (h, w, 3) and coverage (h, w) in 0..1, both float32, trimmed to the object.
    """
    side = OVERSAMPLING * size_px
    axis = (np.arange(side, dtype=np.float32) + 0.5) / side * 2 - 1
    colour, inside = PAINTERS[name](rng, *np.meshgrid(axis, axis))
    texture = cv2.cvtColor(random_crop(rng, textures[rng.integers(len(textures))], side, side), cv2.COLOR_BGR2GRAY)
    rough = (texture - texture.mean()) / max(texture.std(), 8.0)
    colour = colour * (1 + rng.uniform(0.05, 0.15) * np.clip(rough, -2, 2))[..., None]
    canvas = OVERSAMPLING * math.ceil(size_px * math.sqrt(2) + 1)
    turn = cv2.getRotationMatrix2D(((side - 1) / 2, (side - 1) / 2), rng.uniform(0, 360), 1)
    turn[:, 2] += (canvas - side) / 2
    colour = cv2.warpAffine(colour.astype(np.float32), turn, (canvas, canvas), borderMode=cv2.BORDER_REPLICATE)
    cover = cv2.warpAffine(inside.astype(np.float32), turn, (canvas, canvas))
    half = (canvas // OVERSAMPLING,) * 2
    colour = cv2.resize(colour, half, interpolation=cv2.INTER_AREA)
    cover = cv2.resize(cover, half, interpolation=cv2.INTER_AREA)
    axis = np.linspace(-1, 1, half[0], dtype=np.float32)
    light = rng.uniform(0, 2 * np.pi)
    colour *= (1 + 0.22 * (np.cos(light) * axis + np.sin(light) * axis[:, None]))[..., None]
    left, top, width, height = cv2.boundingRect((cover > 0.5).astype(np.uint8))
    trim = np.s_[max(top - 1, 0):top + height + 1, max(left - 1, 0):left + width + 1]  # one pixel for the soft edge
    return np.clip(colour[trim], 0, 255), cover[trim]


# ---- scenes ----
def make_scene(seed: int, split: str, index: int, photos: list[np.ndarray]) -> Scene:
    """Compose scene ``index`` of a split from the split's photographs (`load_photos`)."""
    rng = np.random.default_rng([seed, SPLITS.index(split), index])
    height, width = rng.integers(MIN_SIDE_PX, MAX_SIDE_PX + 1, 2)
    background = BACKGROUNDS[rng.choice(len(BACKGROUNDS), p=[odds for _, odds in BACKGROUNDS])][0]
    image = np.clip(background(rng, photos, height, width), 0, 255)
    image = cv2.copyMakeBorder(image, *[MARGIN_PX] * 4, cv2.BORDER_REPLICATE)
    object_ids = np.zeros(image.shape[:2], np.uint8)
    category_ids, areas = [], []
    empty = index % EMPTY_EVERY == EMPTY_EVERY - 1
    for _ in range(0 if empty else 1 + rng.choice(len(NUM_OBJECTS_ODDS), p=NUM_OBJECTS_ODDS)):
        category_id = int(rng.integers(len(CLASSES))) + 1
        size_px = round(MIN_OBJECT_PX * (MAX_OBJECT_PX / MIN_OBJECT_PX)**rng.beta(1.7, 1.1))
        colour, cover = render_object(rng, CLASSES[category_id - 1], size_px, photos[:NUM_TEXTURES])
        place = find_place(rng, object_ids, cover > 0.5, areas)
        if place is None:
            continue
        object_ids, top, left = place
        draw_object(image, colour, cover, top, left)
        category_ids.append(category_id)
        areas.append(int((cover > 0.5).sum()))
    return Scene(np.round(image[INSIDE]).astype(np.uint8), object_ids[INSIDE], category_ids)


def find_place(rng: np.random.Generator, object_ids: np.ndarray, mask: np.ndarray,
               areas: list[int]) -> tuple[np.ndarray, int, int] | None:
    """Look for a place in front where a new object leaves enough of every object visible, itself included.

    Args:
        object_ids: (H, W) uint8, the objects so far, with the margin.
        mask: (h, w) bool, the new object.
        areas: the whole areas of the objects so far, hidden or not, in pixels.

    Returns:
        The map with the new object stamped on it, and its top and left there; None if 40 tries found no place.
    """
    whole = np.array([*areas, mask.sum()])
    # At most a quarter of the box's height and width may lie outside the scene.
    lowest = MARGIN_PX - np.array(mask.shape) // 4
    highest = np.array(object_ids.shape) - MARGIN_PX - 3 * np.array(mask.shape) // 4
    for _ in range(40):
        top, left = rng.integers(lowest, highest + 1).tolist()
        stamped = object_ids.copy()
        window = stamped[top:top + mask.shape[0], left:left + mask.shape[1]]
        hides = (window[mask] > 0).mean()
        window[mask] = len(whole)
        visible = np.bincount(stamped[INSIDE].ravel(), minlength=len(whole) + 1)[1:]
        # An object wholly inside another would be hard to tell from the other's pattern.
        if (visible >= MIN_VISIBLE * whole).all() and hides <= 0.5:
            return stamped, top, left
    return None


def draw_object(image: np.ndarray, colour: np.ndarray, cover: np.ndarray, top: int, left: int) -> None:
    """Blend an object into ``image`` (H, W, 3) float32, in place, over a soft shadow a little below it."""
    reach = max(round(0.05 * max(cover.shape)), 1)
    shadow = 0.35 * cv2.GaussianBlur(np.pad(cover, 3 * reach), (0, 0), reach)[..., None]
    row, col = top - 2 * reach, left - 3 * reach
    image[row:row + shadow.shape[0], col:col + shadow.shape[1]] *= 1 - shadow
    window = image[top:top + cover.shape[0], left:left + cover.shape[1]]
    window += cover[..., None] * (colour - window)


# ---- files ----
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


def write_split(root: Path, split: str, num_scenes: int, seed: int) -> None:
    """Write one split's scenes, label maps and annotations below ``root``."""
    photos = load_photos(split)
    images, annotations = [], []
    for folder in (root / split, root / 'semantic' / split, root / 'annotations'):
        folder.mkdir(parents=True, exist_ok=True)
    for index in range(num_scenes):
        scene = make_scene(seed, split, index, photos)
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


def make_dataset(out: str | Path, num_train: int = 200, num_val: int = 50, seed: int = 0, force: bool = False) -> bool:
    """Make the dataset in the folder ``out``, unless it is there already.

    Everything is written to a temporary folder beside ``out`` and renamed at the end: ``out`` is never half-written.

    Args:
        out: the dataset's folder; missing or empty, or one that an earlier call made.
        num_train, num_val: scenes of each split, at least 1.
        seed: 0 or more.
        force: replace a dataset that was made with other arguments or is incomplete.

    Returns:
        True if it was made, False if the same dataset was there.

    Raises:
        ValueError: for a count below 1 or a negative seed.
        FileExistsError: if ``out`` is a file, another dataset (without ``force``), or a folder of something else.
        ImportError, FileNotFoundError: see `load_photos`.
    """
    for name, value, least in (('num_train', num_train, 1), ('num_val', num_val, 1), ('seed', seed, 0)):
        if value < least:
            raise ValueError(f'{name}={value}: want a whole number of at least {least}')
    out = Path(out).resolve()
    meta = {'generator': GENERATOR, 'version': VERSION, 'num_train': num_train, 'num_val': num_val, 'seed': seed}
    if is_made(out, meta, force):
        return False
    temporary = out.with_name(f'.{out.name}.{os.getpid()}.tmp')
    try:
        temporary.mkdir(parents=True)
        for split in SPLITS:
            write_split(temporary, split, meta[f'num_{split}'], seed)
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
    parser.add_argument('--seed', type=int, default=0, help='another seed, other scenes (default: %(default)s)')
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
