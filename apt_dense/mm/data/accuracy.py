"""What is made of a classifier's logits: top-k accuracy, and a file."""
import pickle
from collections.abc import Sequence
from pathlib import Path

import torch
from mmengine.evaluator import BaseMetric
from mmengine.registry import METRICS
from torch import Tensor

from apt_dense.core.files import write_atomically
from apt_dense.mm.errors import DataError


@METRICS.register_module()
class TopKAccuracy(BaseMetric):
    """The share of the pictures, in per cent, whose class is among the k with the highest logits.

    A k above the number of classes counts as that number.

    Args:
        topk: each k is a figure, 'accuracy/top1'.
        collect_device, prefix, collect_dir: of mmengine's ``BaseMetric``.
    """

    default_prefix = 'accuracy'

    def __init__(self, topk: Sequence[int] = (1, 5), **kwargs):
        super().__init__(**kwargs)
        if not topk or not all(isinstance(number, int) and number > 0 for number in topk):
            raise DataError(f'topk={topk!r}: wanted whole numbers from 1 on')
        self.topk = tuple(topk)

    def process(self, data_batch: dict, data_samples: Sequence[Tensor]) -> None:
        """Note at which place the class of each picture stands among its logits, which are ``data_samples``."""
        logits = torch.stack(list(data_samples)).float().cpu()
        labels = labels_of(data_batch['data_samples'], logits.shape[1])
        own = logits.gather(1, labels[:, None])
        # A tie counts against the class, so that equal logits are no success.
        self.results += ((logits >= own).sum(1) - 1).tolist()

    def compute_metrics(self, results: list[int]) -> dict[str, float]:
        """The figures over the whole dataset."""
        return {f'top{number}': 100 * sum(place < number for place in results) / len(results) for number in self.topk}


@METRICS.register_module()
class DumpLogits(BaseMetric):
    """Writes a list with img_path, gt_label and logits, float32 (classes,), of each picture, by pickle.

    Args:
        out_file_path: a file *.pkl.
        collect_device, collect_dir: of mmengine's ``BaseMetric``.
    """

    default_prefix = 'logits'

    def __init__(self, out_file_path: str, **kwargs):
        super().__init__(**kwargs)
        self.out_file_path = out_file_path

    def process(self, data_batch: dict, data_samples: Sequence[Tensor]) -> None:
        """Note the logits, which are ``data_samples``."""
        self.results += [dict(img_path=sample.get('img_path'), gt_label=sample.get('gt_label'),
                              logits=logits.float().cpu().numpy().copy())
                         for sample, logits in zip(data_batch['data_samples'], data_samples, strict=True)]

    def compute_metrics(self, results: list[dict]) -> dict[str, float]:
        """Write the file."""
        write_atomically(Path(self.out_file_path), pickle.dumps(results))
        return {}


def labels_of(samples: Sequence, num_classes: int) -> Tensor:
    """(B,) int64; DataError for one that is no class."""
    for sample in samples:
        if not 0 <= sample.gt_label < num_classes:
            raise DataError(f'{sample.get("img_path")} is of class {sample.gt_label}, and the model has {num_classes} '
                            "classes, from 0 on: set num_classes of the model's head to those of the dataset")
    return torch.tensor([sample.gt_label for sample in samples])
