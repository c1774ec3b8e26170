"""Pictures of a test's predictions, for detection and segmentation alike."""
import os
from collections.abc import Sequence
from typing import Any

from mmengine.hooks import Hook
from mmengine.registry import HOOKS, TRANSFORMS
from mmengine.runner import Runner
from mmengine.structures import BaseDataElement
from mmengine.visualization import Visualizer

from apt_dense.mm.data.load_picture import as_picture
from apt_dense.mm.data.output_names import name_below


@HOOKS.register_module()
class DrawPredictionsHook(Hook):
    """Draw truth beside prediction for every test image into a directory, with the folders of the images.

    mmdetection's hook writes below the run's folder in the work directory, mmsegmentation's below its visualiser's;
    both name the pictures by the image's file alone.

    Args:
        out_dir: the directory.
        image_root: the folder that the images' own are below, see ``output_names``.
        show: show them on the screen too.
        wait_time: seconds that each stays there.
        loading: the step of the test pipeline that loads the images; by default ``LoadImageFromFile`` as it is.
        options: more arguments of the visualiser's ``add_datasample``, such as ``pred_score_thr``.
    """

    def __init__(self, out_dir: str, image_root: str | None = None, show: bool = False, wait_time: float = 0.0,
                 loading: dict | None = None, **options: Any):
        self.out_dir, self.image_root = out_dir, image_root
        self._load = TRANSFORMS.build(loading or dict(type='LoadImageFromFile'))
        self.options = dict(options, show=show, wait_time=wait_time)
        self._visualizer = Visualizer.get_current_instance()

    def after_test_iter(self, runner: Runner, batch_idx: int, data_batch: dict,
                        outputs: Sequence[BaseDataElement]) -> None:
        """Draw a batch."""
        for sample in outputs:
            name = name_below(sample.img_path, self.image_root)
            image = as_picture(self._load(dict(img_path=sample.img_path))['img'], name, bits=16)
            self._visualizer.add_datasample(name, image[..., ::-1], data_sample=sample,
                                            out_file=os.path.join(self.out_dir, name), **self.options)
