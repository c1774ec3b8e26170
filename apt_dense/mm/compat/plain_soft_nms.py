"""Soft-NMS without compiled operators: of one class on a CPU, of all classes at once on any device."""
import numpy as np
import torch
from torch import Tensor

from apt_dense.mm.compat.plain_nms import box_overlap

STEPS = 16  # on a GPU, between two looks at what is left
METHODS = ('naive', 'linear', 'gaussian')  # in mmcv's order


def soft_nms(boxes: Tensor, scores: Tensor, iou_threshold: float, sigma: float, min_score: float, method: str,
             offset: int = 0) -> tuple[Tensor, Tensor]:
    """Soft-NMS of one class: the best box is taken, and the scores of those that overlap it are lowered; and so on.

    Boxes whose score falls below ``min_score`` go.  The order is mmcv's, equal scores included: what goes is replaced
    by the last box, the box that is taken changes places with the first.

    Args:
        boxes: (N, 4), x1, y1, x2, y2, float32, on a CPU.
        scores: (N,), float32.
        iou_threshold: overlaps from here on lower the score; of no meaning for 'gaussian'.
        sigma: of 'gaussian'.
        min_score: the first box is taken even if its score is lower.
        method: one of METHODS; scores are multiplied by 0, 1 - overlap or exp(-overlap^2 / sigma).
        offset: added to widths and heights, 0 or 1.

    Returns:
        (K, 5), boxes with their new scores, and their indices (K,), in the order in which they were taken.

    Source: arXiv 1704.04503.
    """
    x1, y1, x2, y2 = boxes.detach().numpy().T
    table = np.stack([x1, y1, x2, y2, (x2 - x1 + offset) * (y2 - y1 + offset), scores.detach().numpy()])
    index = np.arange(table.shape[1])
    number, left = 0, table.shape[1]
    while number < left:
        best = number + int(table[5, number:left].argmax())
        table[:, [number, best]] = table[:, [best, number]]
        index[[number, best]] = index[[best, number]]
        rest, names = table[:, number + 1:left], index[number + 1:left]
        with np.errstate(invalid='ignore', divide='ignore'):
            overlap = box_overlap(table[:5, number:number + 1], rest[:5], offset)[0]
        rest[5] *= decay(torch.from_numpy(overlap), iou_threshold, sigma, method).numpy()
        stays = ~(rest[5] < min_score)
        count = int(stays.sum())
        holes, last = np.flatnonzero(~stays[:count]), np.flatnonzero(stays[count:])[::-1] + count
        rest[:, holes], names[holes] = rest[:, last], names[last]
        number, left = number + 1, number + 1 + count
    return torch.from_numpy(table[[0, 1, 2, 3, 5], :left].T.copy()), torch.from_numpy(index[:left].copy())


def decay(overlap: Tensor, iou_threshold: float, sigma: float, method: str) -> Tensor:
    """What scores are multiplied by; boxes without area, whose overlap is not a number, lower nothing."""
    if method == 'gaussian':
        return overlap.nan_to_num(0).square().neg().div(sigma).exp()
    lowered = 1 - overlap if method == 'linear' else torch.zeros_like(overlap)
    return torch.where(overlap >= iou_threshold, lowered, 1.0)


def soft_nms_of_classes(boxes: Tensor, scores: Tensor, iou_threshold: float, sigma: float, min_score: float,
                        method: str, offset: int = 0, spare_each: bool = False) -> tuple[Tensor, Tensor, Tensor]:
    """Soft-NMS of all classes at once, where they share their boxes; see ``soft_nms``.

    Each step takes one box of each class that still has one.  The overlaps are computed once, for all classes.  Of
    equal scores of a class the box with the lower index is taken.

    Args:
        boxes: (N, 4), float32, on any device.
        scores: (C, N), float32; those below 0 are no candidates.
        min_score: above 0.
        spare_each: True takes the best box of each class even if its score is below ``min_score``, False the best of
            all classes.

    Returns:
        (K,) classes, (K,) indices of boxes and (K,) new scores, the best first.
    """
    best = scores.max(1)[0]
    spared = best >= 0
    if not spare_each:
        spared &= torch.arange(len(best), device=best.device) == best.argmax()
    rows = ((best >= min_score) | spared).nonzero()[:, 0]
    scores, spared = scores[rows], spared[rows]
    columns = ((scores >= min_score) | (spared[:, None] & (scores == best[rows, None]))).any(0).nonzero()[:, 0]
    factors = decay(_pairwise_overlap(boxes[columns], offset), iou_threshold, sigma, method)
    factors.fill_diagonal_(0)  # what has been taken falls to 0, below min_score
    take = _take_on_cpu if boxes.device.type == 'cpu' else _take_on_gpu
    row, column, value = take(factors, scores[:, columns], spared, min_score)
    value, order = value.sort(descending=True, stable=True)
    return rows[row[order]], columns[column[order]], value


def _take_on_cpu(factors: Tensor, scores: Tensor, spared: Tensor, min_score: float) -> tuple[Tensor, ...]:
    """Take the best box of each row (class) and lower the others, until none is left: rows, columns and scores."""
    lower_by, left, alive = factors.numpy(), scores.numpy(), spared.numpy()
    rows, taken = np.arange(len(left)), [(np.zeros(0, int), np.zeros(0, int), np.zeros(0, np.float32))]
    while len(rows):
        best = left.argmax(1)
        value = left[np.arange(len(left)), best]
        alive = alive | (value >= min_score)
        if not alive.all():
            rows, best, value, left = rows[alive], best[alive], value[alive], left[alive]
        taken.append((rows, best, value))
        left *= lower_by[best]
        alive = np.zeros(len(rows), bool)
    return tuple(torch.from_numpy(np.concatenate(parts)) for parts in zip(*taken, strict=True))


def _take_on_gpu(factors: Tensor, scores: Tensor, spared: Tensor, min_score: float) -> tuple[Tensor, ...]:
    """As ``_take_on_cpu``, but for some steps without a look at what is left, for which the host waits."""
    rows, taken = torch.arange(len(scores), device=scores.device), []
    while len(rows):
        for _ in range(STEPS):
            value, best = scores.max(1)
            alive = (value >= min_score) | spared
            taken.append((alive, rows, best, value))
            scores = scores * factors[best]
            spared = torch.zeros_like(spared)
        rows, scores, spared = rows[alive], scores[alive], spared[alive]
    if not taken:
        return rows, rows, scores.flatten()
    alive, rows, best, value = (torch.cat(parts) for parts in zip(*taken, strict=True))
    return rows[alive], best[alive], value[alive]


def _pairwise_overlap(boxes: Tensor, offset: int) -> Tensor:
    """(N, 4) -> intersection over union (N, N)."""
    x1, y1, x2, y2 = boxes.t().contiguous()
    table = torch.stack([x1, y1, x2, y2, (x2 - x1 + offset) * (y2 - y1 + offset)])
    if boxes.device.type == 'cpu':
        with np.errstate(invalid='ignore', divide='ignore'):
            return torch.from_numpy(box_overlap(table.numpy(), table.numpy(), offset))
    width = (torch.minimum(x2[:, None], x2) - torch.maximum(x1[:, None], x1) + offset).clamp_(min=0)
    height = (torch.minimum(y2[:, None], y2) - torch.maximum(y1[:, None], y1) + offset).clamp_(min=0)
    shared = width.mul_(height)
    return shared / (table[4, :, None] + table[4] - shared)
