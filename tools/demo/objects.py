"""The objects of the demo dataset: painted, textured, turned, with soft edges.

A painter takes x (right) and y (down) in -1..1 and returns colours (H, W, 3) and a mask of the object.
"""
import math
from collections.abc import Callable

from apt_dense.extras import from_extra

with from_extra('mm'):
    import cv2
    import numpy as np

CLASSES = ('ball', 'crate', 'kite', 'lifebuoy', 'starfish')
OVERSAMPLING = 2  # objects are painted at twice their size and averaged down, which smooths their edges


def random_crop(rng: np.random.Generator, photo: np.ndarray, height: int, width: int) -> np.ndarray:
    """Cut a random part of the wanted aspect ratio from a photograph, mirror it at times: (height, width, 3) uint8."""
    scale = min(photo.shape[0] / height, photo.shape[1] / width) * rng.uniform(0.6, 1.0)
    rows, cols = int(height * scale), int(width * scale)
    top, left = rng.integers(photo.shape[0] - rows + 1), rng.integers(photo.shape[1] - cols + 1)
    crop = cv2.resize(photo[top:top + rows, left:left + cols], (width, height), interpolation=cv2.INTER_AREA)
    return crop[:, ::-1] if rng.random() < 0.5 else crop


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
