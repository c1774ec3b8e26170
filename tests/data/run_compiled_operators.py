"""Write operators.npz, the outputs of mmcv's compiled operators: python -m tests.data.run_compiled_operators

In an environment of `MMCV=compiled make setup`, from the project's folder, with APT_DENSE_OPS=compiled.
"""
import os
from pathlib import Path

import numpy as np

os.environ['APT_DENSE_OPS'] = 'compiled'

import apt_dense.mm  # noqa: F401, I001
from mmcv.ops import nms, soft_nms
from mmcv.ops.roi_align import roi_align

from tests.mm.compat import operator_sets as sets


def outputs() -> dict[str, np.ndarray]:
    """Key -> array, for all cases of ``operator_sets``."""
    kept = {}
    for name, maps, rois, settings, gradient in sets.roi_align_cases():
        maps = maps.clone().requires_grad_()
        pooled = roi_align(maps, rois, settings['output_size'], settings['spatial_scale'], settings['sampling_ratio'],
                           'avg', settings['aligned'])
        pooled.backward(gradient)
        kept |= {f'roi_align/{name}/pooled': pooled.detach().numpy(), f'roi_align/{name}/gradient': maps.grad.numpy()}
    for name, boxes, scores in sets.box_cases():
        for offset in (0, 1):
            kept[f'nms/{name}_{offset}'] = nms(boxes, scores, sets.NMS_THRESHOLD, offset)[1].numpy().astype(np.int16)
            for method in ('naive', 'linear', 'gaussian'):
                found, index = soft_nms(boxes, scores, sets.SOFT_THRESHOLD, sets.SIGMA, sets.MIN_SCORE, method, offset)
                kept[f'soft_nms/{name}_{offset}_{method}/scores'] = found[:, 4].numpy()
                kept[f'soft_nms/{name}_{offset}_{method}/index'] = index.numpy().astype(np.int16)
    return kept


if __name__ == '__main__':
    path = Path(__file__).with_name('operators.npz')
    np.savez_compressed(path, **outputs())
    print(f'{path.stat().st_size:>9} {path.name}')
