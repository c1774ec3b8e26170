"""Label maps for mmsegmentation: checked when they are read, with their folders when they are written."""
import os
from collections.abc import Sequence
from contextlib import suppress

import mmcv
import mmengine.fileio as fileio
import numpy as np
from mmengine.registry import METRICS, TRANSFORMS

from apt_dense.core.files import NotWritten
from apt_dense.extras import from_extra
from apt_dense.mm.data.output_names import name_below
from apt_dense.mm.errors import DataError

with from_extra('mm'):
    from mmseg.datasets.transforms import LoadAnnotations
    from mmseg.evaluation import IoUMetric

IGNORE = 255


@TRANSFORMS.register_module()
class LoadLabelMap(LoadAnnotations):
    """``mmseg.LoadAnnotations`` that checks what it reads, and leaves pictures alone that belong to no dataset.

    mmsegmentation cuts 16-bit ids to 8 bits without a word; an id without a class ends training with an index error
    (on a GPU, with one that names neither file nor id) and is left out of the metrics.  Its functions for one's own
    pictures use a test pipeline without the step named LoadAnnotations; this one passes over them by itself.

    Args:
        num_classes: classes of the dataset, 1 to 255; after reduce_zero_label and the dataset's label_map, ids are 0 to
            num_classes - 1 or 255, which is ignored.
        unknown_ids: 'raise', or 'ignore' to count every other id, those below 0 too, as 255.
        backend_args, imdecode_backend: of ``mmseg.LoadAnnotations``.

    Raises:
        DataError: naming the file, if it is missing or no picture, for several channels, another size than the image's,
            values that are no whole numbers, or unknown ids; or for a dataset's image that has no label map.
    """

    def __init__(self, num_classes: int, unknown_ids: str = 'raise', backend_args: dict | None = None,
                 imdecode_backend: str = 'pillow'):
        super().__init__(backend_args=backend_args, imdecode_backend=imdecode_backend)
        if unknown_ids not in ('raise', 'ignore'):
            raise DataError(f"unknown_ids={unknown_ids!r}: choose 'raise' or 'ignore'")
        if not 1 <= num_classes <= IGNORE:
            raise DataError(f'num_classes={num_classes}: label maps have 8 bits here, of which {IGNORE} is ignored: '
                            f'choose 1 to {IGNORE}')
        self.num_classes = num_classes
        self.unknown_ids = unknown_ids

    def _load_seg_map(self, results: dict) -> None:
        if 'seg_map_path' not in results:
            if 'seg_fields' in results:  # as every dataset's sample
                raise DataError(f'{results.get("img_path")} has no label map: give the dataset '
                                'data_prefix.seg_map_path, or take LoadLabelMap out of its pipeline to predict only')
            return
        results['gt_seg_map'] = self.class_ids(self.read(results), results)
        results['seg_fields'].append('gt_seg_map')

    def read(self, results: dict) -> np.ndarray:
        """The ids of a sample's file, (H, W) of any type.

        Args:
            results: has seg_map_path; with ori_shape, (height, width, ...) of the image, the size is compared.

        Raises:
            DataError: naming the file, see the class.
        """
        path = results['seg_map_path']
        try:
            labels = mmcv.imfrombytes(fileio.get(path, backend_args=self.backend_args), flag='unchanged',
                                      backend=self.imdecode_backend)
        except FileNotFoundError as error:
            raise DataError(f'{path} does not exist, the label map of {results.get("img_path")}: add it, or correct '
                            'data_prefix.seg_map_path or seg_map_suffix') from error
        except (OSError, SyntaxError) as error:  # Pillow's, for files that are cut or damaged
            raise DataError(f'{path} cannot be read: {error}. Wanted a label map: repair or replace it') from error
        if labels is None:  # OpenCV says no more
            raise DataError(f'{path} cannot be read. Wanted a label map: repair or replace it')
        if labels.ndim != 2:
            raise DataError(f'{path} has shape {labels.shape}, wanted one channel of class ids (H, W): convert a map '
                            'of colours to ids first')
        size = results.get('ori_shape', labels.shape)
        if labels.shape != tuple(size[:2]):
            raise DataError(f'{path} is {labels.shape[0]}x{labels.shape[1]} px (height x width), its image '
                            f'{results.get("img_path")} {size[0]}x{size[1]} px')
        return labels

    def class_ids(self, labels: np.ndarray, results: dict) -> np.ndarray:
        """Ids of the file, (H, W) of any type -> ids of the dataset, (H, W) uint8.

        Args:
            results: the dataset's reduce_zero_label and label_map, and seg_map_path.

        Raises:
            DataError: for ids that no class has, and values that are no ids.
        """
        values = np.unique(labels)
        broken = values[~np.isfinite(values) | (values != np.trunc(values))] if values.dtype.kind == 'f' else ()
        if len(broken):
            raise DataError(f'{results["seg_map_path"]} holds {broken[0]}, wanted whole numbers, class ids: convert '
                            'it, or name the right files')
        ids = [int(value) for value in values]
        classes = [self._class_id(label, results) for label in ids]
        unknown = [label for label, class_id in zip(ids, classes, strict=True) if class_id is None]
        if unknown and self.unknown_ids == 'raise':
            raise DataError(self._described(unknown, results))
        table = np.array([IGNORE if class_id is None else class_id for class_id in classes], np.uint8)
        return table[np.searchsorted(values, labels)]

    def _class_id(self, label: int, results: dict) -> int | None:
        """Id of the file -> id of the dataset, 255 if it is ignored, None if no class has it."""
        label_map, reduced = results.get('label_map') or {}, _reduce(label, results)
        target = label_map.get(reduced, reduced)
        # With reduce_zero_label 256 becomes 255: that is not ignored, unless the dataset says so.
        ignored = target == IGNORE and (reduced in label_map or label != IGNORE + 1)
        return target if ignored or 0 <= target < self.num_classes else None

    def _described(self, unknown: list[int], results: dict) -> str:
        settings = f'num_classes={self.num_classes} and reduce_zero_label={results["reduce_zero_label"]}'
        label_map, first = results.get('label_map') or {}, _reduce(unknown[0], results)
        if first in label_map:
            settings += f', its label_map sends {first} to {label_map[first]}'
        return (f'{results["seg_map_path"]} holds the ids {unknown[:10]}, which no class has: the dataset has '
                f"{settings}, and {IGNORE} is ignored. Correct the file or these settings, or set unknown_ids='ignore'")


def _reduce(label: int, results: dict) -> int:
    """Apply reduce_zero_label to one id; one below 0 stays what it is."""
    if not results['reduce_zero_label'] or label < 0:
        return label
    return IGNORE if label in (0, IGNORE) else label - 1


@METRICS.register_module()
class FolderIoUMetric(IoUMetric):
    """``mmseg.IoUMetric`` that writes the label maps with the folders of their images.

    mmsegmentation names a map by its image's file alone: of images of one name in different folders, the last one's map
    is left.

    Args:
        image_root: the folder that the images' own are below, see ``output_names``.

    Raises:
        DataError: if two images of one folder differ in their suffix only, and would share a map.
        NotWritten: if a map cannot be written; nothing is left of it.
    """

    def __init__(self, *args, image_root: str | None = None, **kwargs):
        super().__init__(*args, **kwargs)
        self.image_root = image_root
        self._images: dict[str, str] = {}  # label map -> its image

    def process(self, data_batch: dict, data_samples: Sequence[dict]) -> None:
        """See ``IoUMetric.process``."""
        top = self.output_dir
        if top is None:
            super().process(data_batch, data_samples)
            return
        try:
            for sample in data_samples:
                stem = os.path.splitext(name_below(sample['img_path'], self.image_root))[0]
                image = self._images.setdefault(stem, sample['img_path'])
                if image != sample['img_path']:
                    raise DataError(f'{image} and {sample["img_path"]} would both have the label map {stem}.png: '
                                    'rename one, or test them apart')
                self.output_dir = os.path.dirname(os.path.join(top, stem))  # where IoUMetric writes NAME.png
                self._process_one(data_batch, sample, f'{os.path.join(top, stem)}.png')
        finally:
            self.output_dir = top

    def _process_one(self, data_batch: dict, sample: dict, label_map: str) -> None:
        try:
            os.makedirs(self.output_dir, exist_ok=True)
            super().process(data_batch, [sample])
        except OSError as error:
            with suppress(OSError):
                os.unlink(label_map)  # what there is of it
            raise NotWritten(error.errno, error.strerror or str(error), label_map) from error
