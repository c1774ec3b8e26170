"""What a model has found in a picture."""
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from mmengine.structures import BaseDataElement
from mmengine.visualization import Visualizer
from PIL import Image

from apt_dense.core.layout import TokenLayout
from apt_dense.drawing.patches import draw_patches
from apt_dense.drawing.saving import save_picture
from apt_dense.extras import from_extra
from apt_dense.mm.errors import DataError
from apt_dense.mm.inference.coco_ids import CocoIds, image_id_of
from apt_dense.mm.inference.sources import Picture

with from_extra('mm'):
    from mmdet.structures.bbox import get_box_tensor
    from pycocotools import mask as coco_masks

if TYPE_CHECKING:
    from supervision import Detections


@dataclass(frozen=True)
class Grid:
    """The patches of one input of the backbone: a picture, or a window of slide inference.

    Attributes:
        patch_px: (rows, cols) int, over each cell of the picture, padding left out, the side in pixels of the patch
            that covers it.  Pixels are those of the input, which the pipeline has resized.
        corner_px: row and column of the window in the resized picture; (0, 0) for a whole one.
        num_tokens: patches that cover a pixel of the picture.
        patch_size: side of a base patch in pixels.
    """
    patch_px: np.ndarray
    corner_px: tuple[int, int] = (0, 0)
    num_tokens: int = 0
    patch_size: int = 16

    @classmethod
    def all_of(cls, layout: TokenLayout, patch_size: int, content_cells: Sequence[tuple[int, int]],
               corners_px: Sequence[tuple[int, int]]) -> list['Grid']:
        """One grid for each image of a layout, whose content and corners are given."""
        layout = layout.without_prefix
        scales = layout.expand(layout.scales[:, None].double())[:, 0].round().long().cpu()
        covered = layout.covers_content(content_cells).cpu().split(list(layout.images.lengths))
        return [cls((patch_size << scales[index, :rows, :cols]).numpy(), corner, int(covered[index].sum()),
                    patch_size)
                for index, ((rows, cols), corner) in enumerate(zip(content_cells, corners_px, strict=True))]


@dataclass(frozen=True)
class Tokens:
    """What the backbone has processed of a picture.

    Attributes:
        grids: of the picture, or of each window of slide inference, in the order of its rows.
    """
    grids: list[Grid]

    def __repr__(self) -> str:
        return f'Tokens({self.num_tokens} of {self.num_cells}, {self.kept:.1%} kept)'

    @property
    def num_tokens(self) -> int:
        """Tokens that cover a pixel of the picture, of all grids; class tokens do not count."""
        return sum(grid.num_tokens for grid in self.grids)

    @property
    def num_cells(self) -> int:
        """Those of the dense model."""
        return sum(grid.patch_px.size for grid in self.grids)

    @property
    def kept(self) -> float:
        """Tokens over cells, padding left out; 1 for the dense model."""
        return self.num_tokens / self.num_cells


@dataclass(frozen=True)
class Result:
    """What a model has found in a picture.  Detection has boxes and masks, segmentation a label map.

    Attributes:
        name: of the picture: its path, 'VIDEO#12' for a frame, 'array 0' for an array.
        size: height and width of the picture in pixels, turned as the camera says (EXIF).
        classes: names; label i is ``classes[i]``.
        tokens: see ``Tokens``.
        boxes: (N, 4) float32, x1 y1 x2 y2 in pixels of the picture, the best score first.
        scores, labels: (N,) float32 in 0..1, and (N,) int.
        masks: (N, H, W) bool; None for a detector without masks.
        label_map: (H, W) int, the label of each pixel.
        number: counted from 1 in the call that gave it.
    """
    name: str
    size: tuple[int, int]
    classes: tuple[str, ...]
    tokens: Tokens
    boxes: np.ndarray | None = None
    scores: np.ndarray | None = None
    labels: np.ndarray | None = None
    masks: np.ndarray | None = None
    label_map: np.ndarray | None = None
    number: int = 1
    _picture: Picture | None = field(default=None, repr=False, compare=False)
    _sample: BaseDataElement | None = field(default=None, repr=False, compare=False)
    _visualizer: Visualizer | None = field(default=None, repr=False, compare=False)

    def __repr__(self) -> str:
        """One line, without the pixels of masks and label maps."""
        what = f'{len(self.names)} classes' if self.boxes is None else f'{len(self.boxes)} boxes'
        found = ', '.join(dict.fromkeys(self.names))
        return (f'Result({self.name!r}, {self.size[0]} x {self.size[1]} px, {what}{": " * bool(found)}{found}; '
                f'{self.tokens.kept:.1%} of the tokens kept)')

    @property
    def names(self) -> list[str]:
        """Detection: the class of each box.  Segmentation: the classes that occur, in the order of their labels."""
        labels = np.unique(self.label_map) if self.boxes is None else self.labels
        return [self.classes[label] for label in labels if label < len(self.classes)]

    def __len__(self) -> int:
        return len(self.names)

    def draw(self, path: str | Path | None = None, min_score: float = 0.3) -> Image.Image:
        """The picture with what was found, drawn by mmdetection's or mmsegmentation's visualiser.

        Args:
            path: where to write it too; the folder is made if it is not there.
            min_score: of the boxes that are drawn.

        Raises:
            DataError: for a path whose ending is not one of a picture.
            NotWritten: if it cannot be written, as on a full disk.
        """
        if path is not None and Image.registered_extensions().get(Path(path).suffix.lower()) not in Image.SAVE:
            raise DataError(f'{path} has no ending of a picture: give .png or .jpg')
        options = dict(draw_gt=False, show=False)
        if self.boxes is not None:
            options['pred_score_thr'] = min_score
        self._visualizer.add_datasample(self.name, self._picture.pixels(), self._sample, **options)
        image = Image.fromarray(self._visualizer.get_image())
        if path is not None:
            save_picture(image, Path(path))
        return image

    def pixels(self) -> Image.Image:
        """The picture itself, turned as the camera says (EXIF)."""
        return Image.fromarray(self._picture.pixels())

    def draw_truth(self, sample: BaseDataElement) -> Image.Image:
        """The picture with the truth of a dataset's sample, drawn as ``draw`` does."""
        if 'gt_instances' in sample:
            sample = sample.clone()
            sample.gt_instances.bboxes = get_box_tensor(sample.gt_instances.bboxes)
        self._visualizer.add_datasample(self.name, self._picture.pixels(), sample, draw_pred=False, show=False)
        return Image.fromarray(self._visualizer.get_image())

    def draw_patches(self) -> Image.Image:
        """The picture under the outlines of the patches, of all windows in slide inference.

        Where windows overlap, the later one's patches are drawn.
        """
        height, width = self._sample.img_shape[:2]
        picture = np.asarray(self.pixels().resize((width, height), Image.Resampling.BILINEAR))
        canvas = Image.fromarray(picture)
        for grid in self.tokens.grids:
            top, left = grid.corner_px
            rows, cols = (side * grid.patch_size for side in grid.patch_px.shape)
            scales = np.log2(grid.patch_px // grid.patch_size).astype(int)
            canvas.paste(draw_patches(picture[top:top + rows, left:left + cols], scales, grid.patch_size), (left, top))
        return canvas

    def to_supervision(self) -> 'Detections':
        """As ``supervision.Detections``; of a label map one mask for each class that occurs, with its box.

        Raises:
            ModuleNotFoundError: where supervision is not installed.
        """
        with from_extra('supervision'):
            import supervision
        boxes, scores, labels, masks = self.boxes, self.scores, self.labels, self.masks
        if boxes is None:
            labels, masks = self._class_masks()
            boxes, scores = supervision.mask_to_xyxy(masks) if len(masks) else np.zeros((0, 4)), None
        names = np.array([self.classes[label] for label in labels], dtype=str)
        return supervision.Detections(xyxy=boxes, mask=masks, confidence=scores, class_id=labels,
                                      data={'class_name': names})

    def to_coco(self, image_id: int | None = None, category_ids: Sequence[int] | None = None,
                ids: CocoIds | None = None) -> list[dict]:
        """Entries of COCO's result format, boxes as x y width height and masks as compressed RLE.

        ``pycocotools.coco.COCO.loadRes`` takes a list of them, if they have the ids of its dataset.

        Args:
            image_id: of the picture; by default the number in its file's name, as COCO's files have it
                ('000000000139.jpg' is 139), and ``number`` where the name is none.
            category_ids: of each class; by default 1, 2, ... in the order of ``classes``.
            ids: of a dataset, in place of both defaults.

        Raises:
            ValueError: for another number of category_ids than of classes.
            DataError: if ``ids`` knows no such picture or class.
        """
        if ids is not None:
            image_id = ids.of_image(self.name) if image_id is None else image_id
            category_ids = ids.of_classes(self.classes) if category_ids is None else category_ids
        image_id = image_id_of(self.name, self.number) if image_id is None else image_id
        category_ids = range(1, len(self.classes) + 1) if category_ids is None else category_ids
        if not hasattr(category_ids, '__len__') or isinstance(category_ids, (str, dict)):
            raise ValueError(f'got category_ids={category_ids!r}, wanted a list, one for each of the classes')
        if len(category_ids) != len(self.classes):
            raise ValueError(f'got {len(category_ids)} category_ids for {len(self.classes)} classes: give one for each')
        if self.boxes is None:
            labels, masks = self._class_masks()
            return [dict(image_id=image_id, category_id=category_ids[label], segmentation=_rle(mask))
                    for label, mask in zip(labels.tolist(), masks, strict=True)]
        entries = []
        for index, label in enumerate(self.labels.tolist()):
            x1, y1, x2, y2 = map(float, self.boxes[index])
            entry = dict(image_id=image_id, category_id=category_ids[label], bbox=[x1, y1, x2 - x1, y2 - y1],
                         score=float(self.scores[index]))
            if self.masks is not None:
                entry['segmentation'] = _rle(self.masks[index])
            entries.append(entry)
        return entries

    def to_dict(self) -> dict[str, Any]:
        """Plain values, for JSON: masks as compressed RLE, of a label map the share of the pixels of each class."""
        content = dict(name=self.name, height=self.size[0], width=self.size[1],
                       tokens=dict(num_tokens=self.tokens.num_tokens, num_cells=self.tokens.num_cells,
                                   kept=self.tokens.kept))
        if self.boxes is None:
            labels, masks = self._class_masks()
            content['classes'] = [dict(label=label, name=self.classes[label], share=float(mask.mean()),
                                       segmentation=_rle(mask))
                                  for label, mask in zip(labels.tolist(), masks, strict=True)]
            return content
        content['objects'] = [
            dict(label=int(label), name=name, score=float(score), box=[float(value) for value in box],
                 **({} if self.masks is None else dict(segmentation=_rle(self.masks[index]))))
            for index, (label, name, score, box) in enumerate(
                zip(self.labels, self.names, self.scores, self.boxes, strict=True))]
        return content

    def _class_masks(self) -> tuple[np.ndarray, np.ndarray]:
        """Labels (K,) that occur in the label map, and where (K, H, W)."""
        labels = np.unique(self.label_map)
        labels = labels[labels < len(self.classes)]
        return labels, self.label_map[None] == labels[:, None, None]


def _rle(mask: np.ndarray) -> dict[str, Any]:
    rle = coco_masks.encode(np.asfortranarray(mask.astype(np.uint8)))
    return dict(size=list(rle['size']), counts=rle['counts'].decode())
