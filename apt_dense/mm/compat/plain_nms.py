"""NMS without compiled operators, for CPUs."""
import numpy as np
import torch
from torch import Tensor

BLOCK = 64  # boxes whose overlaps with all others are computed together
SMALL = 192  # up to here all overlaps are computed at once
LATER = np.triu(np.ones((SMALL, SMALL), bool), 1)


def nms(boxes: Tensor, scores: Tensor, iou_threshold: float, offset: int = 0) -> Tensor:
    """Greedy non-maximum suppression: a box goes if its overlap with a better one that stays is above the threshold.

    Boxes are taken in the order of ``scores.sort(descending=True)``, equal scores included, as mmcv does.

    Args:
        boxes: (N, 4), x1, y1, x2, y2, float32, on a CPU.
        scores: (N,).
        iou_threshold: of intersection over union.
        offset: added to widths and heights, 0 or 1.

    Returns:
        (K,) indices of the boxes that stay, best first.
    """
    order = scores.detach().sort(0, descending=True)[1]
    x1, y1, x2, y2 = boxes.detach()[order].numpy().T
    table = np.stack([x1, y1, x2, y2, (x2 - x1 + offset) * (y2 - y1 + offset)])
    with np.errstate(invalid='ignore', divide='ignore', over='ignore'):
        if len(order) <= SMALL or iou_threshold < 0:
            return order[torch.from_numpy(_greedy(table, iou_threshold, offset))]
        kept = np.zeros(len(order), bool)
        for part in _apart(x1, x2, offset):
            kept[part[_greedy(table[:, part], iou_threshold, offset)]] = True
    return order[torch.from_numpy(kept)]


def _apart(x1: np.ndarray, x2: np.ndarray, offset: int) -> list[np.ndarray]:
    """Split boxes where a vertical line separates them, as it does the groups of mmcv's batched_nms, which are shifted.

    Returns:
        Ascending indices of each part; small parts are joined.
    """
    by_x = x1.argsort(kind='stable')
    gaps = np.flatnonzero(x1[by_x][1:] > np.maximum.accumulate(x2[by_x])[:-1] + offset) + 1
    cuts, last = [], 0
    while (number := int(np.searchsorted(gaps, last + BLOCK))) < len(gaps):
        last = gaps[number]
        cuts.append(last)
    return [np.sort(part) for part in np.split(by_x, cuts)]


def _greedy(table: np.ndarray, iou_threshold: float, offset: int) -> np.ndarray:
    """Indices of the boxes that stay; table (5, N) has coordinates and areas, best first."""
    left, kept = np.arange(table.shape[1]), []
    while len(left):
        size = len(left) if len(left) <= SMALL else BLOCK
        block = table[:, :size]
        best = _first_come(box_overlap(block, block, offset) > iou_threshold)
        kept.append(left[:size][best])
        left, table = left[size:], table[:, size:]
        if len(left):
            free = ~(box_overlap(block[:, best], table, offset) > iou_threshold).any(0)
            left, table = left[free], table[:, free]
    return np.concatenate(kept) if kept else left


def box_overlap(boxes: np.ndarray, others: np.ndarray, offset: int) -> np.ndarray:
    """(5, M), (5, N), coordinates and areas -> intersection over union (M, N)."""
    x1, y1, x2, y2, area = boxes[:, :, None]
    width, height = np.minimum(x2, others[2]), np.minimum(y2, others[3])
    width -= np.maximum(x1, others[0])
    height -= np.maximum(y1, others[1])
    if offset:
        width += offset
        height += offset
    np.maximum(width, 0, out=width)
    width *= np.maximum(height, 0, out=height)
    union = np.add(area, others[4], out=height)
    union -= width
    return np.divide(width, union, out=width)


def _first_come(hits: np.ndarray) -> np.ndarray:
    """Which boxes, best first, no better one that stays hits: hits (N, N) -> (N,).  Rows are taken as whole numbers."""
    hits &= LATER[:len(hits), :len(hits)]
    packed = np.packbits(hits, axis=1, bitorder='little')
    size, text, gone = packed.shape[1], packed.tobytes(), 0
    for index in np.flatnonzero(packed.any(1)).tolist():
        if not gone >> index & 1:
            gone |= int.from_bytes(text[index * size:(index + 1) * size], 'little')
    bits = np.frombuffer(gone.to_bytes(size, 'little'), np.uint8)
    return np.unpackbits(bits, count=len(hits), bitorder='little') == 0
