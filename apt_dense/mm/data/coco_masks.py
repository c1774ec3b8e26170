"""Masks of COCO annotations: what is wrong with them, their area and extent."""
import math
from typing import Any, NamedTuple

import numpy as np

NUMBERS = (int, float)


class Mask(NamedTuple):
    """What the checks want to know of a ``segmentation``; takes the place of its polygons where they are not kept.

    Attributes:
        problem: why it cannot be read; '' if it can.
        size: (height_px, width_px) that an RLE says; None for polygons.
        bounds: (left, top, right, bottom) of polygons, in pixels; None for an RLE.
    """
    problem: str = ''
    size: tuple | None = None
    bounds: tuple[float, float, float, float] | None = None


def describe(segmentation: Any) -> Mask | None:
    """What a ``segmentation`` is; None if there is none."""
    if isinstance(segmentation, Mask):
        return segmentation
    if isinstance(segmentation, list) and segmentation:
        return _describe_polygons(segmentation)
    if isinstance(segmentation, dict) and segmentation:
        return _describe_rle(segmentation)
    return None if not segmentation else Mask(f'segmentation is {str(segmentation)[:40]!r}')


def _describe_polygons(polygons: list) -> Mask:
    left = top = math.inf
    right = bottom = -math.inf
    for polygon in polygons:
        if type(polygon) is not list or len(polygon) % 2 or len(polygon) < 6:
            return Mask(f'polygon {str(polygon)[:60]} is not a list of x, y of three points or more')
        try:
            finite = math.isfinite(sum(polygon))
        except TypeError:
            finite = False
        if not finite:
            return Mask(f'polygon {str(polygon)[:60]} holds something else than finite numbers')
        x, y = polygon[::2], polygon[1::2]
        left, top, right, bottom = min(left, min(x)), min(top, min(y)), max(right, max(x)), max(bottom, max(y))
    return Mask(bounds=(left, top, right, bottom))


def _describe_rle(rle: dict) -> Mask:
    size, counts = rle.get('size'), rle.get('counts')
    if not (isinstance(size, list) and len(size) == 2 and all(type(side) is int and side > 0 for side in size)):
        return Mask(f'RLE with size {size}, which is not [height, width]')
    try:
        runs = counts if isinstance(counts, list) else decode_counts(counts)
        total, good = sum(runs), min(runs, default=0) >= 0
    except (TypeError, ValueError, AttributeError, IndexError):
        return Mask(f'RLE with counts {str(counts)[:40]!r}, which are no run lengths')
    if not good or total != size[0] * size[1]:
        return Mask(f'RLE whose runs make {total} pixels, not {size[0]}x{size[1]}', tuple(size))
    return Mask(size=tuple(size))


def decode_counts(counts: str) -> list[int]:
    """Run lengths of a compressed RLE: pycocotools' base 48, five bits a character, differences from the third on.

    Source: ``rleFrString`` in maskApi.c.
    """
    digits = np.frombuffer(counts.encode('ascii'), np.uint8).astype(np.int64) - 48
    if len(digits) == 0 or digits.min() < 0 or digits.max() > 63 or digits[-1] & 32:
        raise ValueError('no compressed run lengths')
    runs, value, shift = [], 0, 0
    for digit in digits.tolist():
        value |= (digit & 31) << shift
        shift += 5
        if digit & 32:
            continue
        if digit & 16:
            value -= 1 << shift
        runs.append(value + runs[-2] if len(runs) > 2 else value)
        value = shift = 0
    return runs


def area_of(segmentation: Any) -> float | None:
    """Pixels of a mask that can be read; None for others.  The parts of a polygon are added up."""
    mask = describe(segmentation)
    if mask is None or mask.problem:
        return None
    if isinstance(segmentation, dict):
        counts = segmentation['counts']
        return float(sum((counts if isinstance(counts, list) else decode_counts(counts))[1::2]))
    total = 0.0
    for polygon in segmentation:
        x, y = np.reshape(polygon, (-1, 2)).T
        total += abs(np.dot(x, np.roll(y, 1)) - np.dot(y, np.roll(x, 1))) / 2
    return float(total)
