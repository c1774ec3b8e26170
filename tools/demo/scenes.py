"""The scenes of the demo dataset and of its larger kin: objects composed on photographs that scikit-image ships."""
import importlib.util
from pathlib import Path
from typing import NamedTuple

from objects import CLASSES, random_colour, random_crop, render_object

from apt_dense.extras import from_extra, install_command

with from_extra('mm'):
    import cv2
    import numpy as np

SPLITS = ('train', 'val')
MIN_VISIBLE = 0.6  # of an object's area
EMPTY_EVERY = 25
MARGIN_PX = 160  # drawn around each scene and cut off at the end, so that objects and shadows may cross the border
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


class Recipe(NamedTuple):
    """What the scenes of a dataset are like.

    Attributes:
        side_px: the least and the largest side of a scene.
        object_px: the least and the largest size of an object: the longer side of its box before it is rotated.
        size_beta: parameters of the beta distribution of an object's size, on a logarithmic scale.
        num_objects_odds: how often a scene is given 1, 2, ... objects.
        fixed_longest: one side of each scene, drawn at random, is the largest.
    """
    side_px: tuple[int, int]
    object_px: tuple[int, int]
    size_beta: tuple[float, float]
    num_objects_odds: tuple[float, ...]
    fixed_longest: bool = False


_UP_TO_12 = (0.04, 0.06, 0.08, 0.10, 0.11, 0.12, 0.11, 0.10, 0.09, 0.08, 0.06, 0.05)
RECIPES = {
    'demo': Recipe((192, 320), (14, 140), (1.7, 1.1), (0.08, 0.12, 0.16, 0.18, 0.16, 0.13, 0.10, 0.07)),
    # Harder: more objects, a quarter of them below 28 px.  The second one has the same kind of scenes in half the
    # resolution: a model that works at 384 px enlarges them, as COCO's pictures of 640 px are enlarged to 1536.
    'scenes_384': Recipe((256, 384), (8, 200), (1.5, 1.0), _UP_TO_12, fixed_longest=True),
    'scenes_192': Recipe((128, 192), (4, 100), (1.5, 1.0), _UP_TO_12, fixed_longest=True),
}


class Scene(NamedTuple):
    """One scene: ``image`` (H, W, 3) uint8, BGR; ``object_ids`` (H, W) uint8, 0 where the background shows and k where
    object k does; ``category_ids`` of the objects 1, 2, ..."""
    image: np.ndarray
    object_ids: np.ndarray
    category_ids: list[int]


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


def make_scene(seed: int, split: str, index: int, photos: list[np.ndarray],
               recipe: Recipe = RECIPES['demo']) -> Scene:
    """Compose scene ``index`` of a split from the split's photographs (`load_photos`)."""
    rng = np.random.default_rng([seed, SPLITS.index(split), index])
    smallest_px, largest_px = recipe.side_px
    sides = rng.integers(smallest_px, largest_px + 1, 2)
    if recipe.fixed_longest:
        sides[rng.integers(2)] = largest_px
    height, width = sides
    background = BACKGROUNDS[rng.choice(len(BACKGROUNDS), p=[odds for _, odds in BACKGROUNDS])][0]
    image = np.clip(background(rng, photos, height, width), 0, 255)
    image = cv2.copyMakeBorder(image, *[MARGIN_PX] * 4, cv2.BORDER_REPLICATE)
    object_ids = np.zeros(image.shape[:2], np.uint8)
    category_ids, areas = [], []
    empty = index % EMPTY_EVERY == EMPTY_EVERY - 1
    smallest_px, largest_px = recipe.object_px
    for _ in range(0 if empty else 1 + rng.choice(len(recipe.num_objects_odds), p=recipe.num_objects_odds)):
        category_id = int(rng.integers(len(CLASSES))) + 1
        size_px = round(smallest_px * (largest_px / smallest_px)**rng.beta(*recipe.size_beta))
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
