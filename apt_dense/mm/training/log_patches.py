"""Patches, scores and predictions of a few validation images, while a model is trained."""
from collections.abc import Sequence

import numpy as np
import torch
from mmengine import dist
from mmengine.device import get_device
from mmengine.hooks import Hook
from mmengine.registry import HOOKS
from mmengine.runner import Runner
from mmengine.structures import BaseDataElement
from torch import Tensor

from apt_dense.calibration.images import PATCH_COLOURS
from apt_dense.calibration.inputs import BackboneInput
from apt_dense.core.vit import PackedViT
from apt_dense.drawing.panels import font_of
from apt_dense.drawing.variants import draw_variants
from apt_dense.extras import from_extra
from apt_dense.mm.data.load_picture import load_as
from apt_dense.mm.errors import LaunchError
from apt_dense.mm.training.histograms import add_histogram
from apt_dense.mm.training.hooks import backbone_of

with from_extra('mm'):
    from PIL import Image, ImageDraw

BARS_PX, BAR_FONT_PX = (220, 360), 440  # height and width; the side that the font's size is for


@HOOKS.register_module()
class LogPatchesHook(Hook):
    """Log what is seen of a few validation images to all visualisation backends, at every n-th validation.

    For image i of them, ``patches_i`` is the patch grid with the scores of each patch size, and ``predictions_i`` truth
    beside prediction, as ``pred_score_thr`` lets them through.  Of all validation images, ``val_tokens_16px`` and so on
    are the shares of the tokens of each patch size (padding included), scalars like those of the log;
    ``tokens_by_size`` is a picture of them, and ``tokens_by_scale`` a histogram in TensorBoard and W&B: 0 is a base
    patch, 1 one of twice its side, and so on.  The images are the same each time, evenly spread over those that the
    first process validates; they are taken as they pass by, so that nothing is computed twice, and the training is the
    same as without.

    Args:
        num_images: how many.
        interval: validations from one logging to the next; the first is logged.
        heat_maps: draw the scores.
        options: more arguments of the visualiser's ``add_datasample``, such as ``pred_score_thr`` of a detector.

    Raises:
        LaunchError: for an interval or a number below 1.
        ValueError: if the model's backbone packs no tokens.
    """

    def __init__(self, num_images: int = 4, interval: int = 1, heat_maps: bool = True, **options: object):
        for name, value in (('num_images', num_images), ('interval', interval)):
            if not isinstance(value, int) or value < 1:
                raise LaunchError(f'LogPatchesHook: {name}={value!r} must be a whole number from 1 on')
        self.num_images, self.interval, self.heat_maps, self.options = num_images, interval, heat_maps, options
        self._validations = 0
        self._handle = None
        self._batches: list[int] = []  # whose first image is drawn
        self._x: Tensor | None = None  # of the first forward pass of a batch
        self._counts: Tensor | None = None  # tokens of each scale

    def before_val_epoch(self, runner: Runner) -> None:
        backbone = backbone_of(runner.model, type(self).__name__)
        self._batches, self._x, self._counts = [], None, None
        if self._validations % self.interval == 0:
            length = len(runner.val_dataloader)
            count = min(self.num_images, length)
            self._batches = [number * length // count for number in range(count)]
            self._counts = torch.zeros(backbone.num_scales, dtype=torch.float64)
            self._handle = backbone.register_forward_hook(self._note)
        self._validations += 1

    def _note(self, backbone: PackedViT, inputs: tuple[Tensor, ...], outputs: Sequence[Tensor]) -> None:
        self._counts += torch.tensor(backbone.last_layout.scale_counts, dtype=torch.float64)
        if self._x is None:
            self._x = inputs[0][:1]

    def after_val_iter(self, runner: Runner, batch_idx: int, data_batch: dict | None = None,
                       outputs: Sequence[BaseDataElement] | None = None) -> None:
        if batch_idx in self._batches and dist.get_rank() == 0:
            number, sample = self._batches.index(batch_idx), outputs[0]
            self._draw_patches(runner, number, tuple(data_batch['inputs'][0].shape[-2:]))
            picture = self._load(runner, sample.img_path)
            state = np.random.get_state()  # mmdetection's visualiser draws from it, and so does the augmentation
            runner.visualizer.add_datasample(f'predictions_{number}', picture[..., ::-1], data_sample=sample,
                                             step=runner.iter, **self.options)
            np.random.set_state(state)
        self._x = None

    def _draw_patches(self, runner: Runner, number: int, size_px: tuple[int, int]) -> None:
        """Of the first input of a picture: the whole, or the first window of slide inference."""
        chooser = backbone_of(runner.model).chooser
        content_px = tuple(min(side, whole) for side, whole in zip(size_px, self._x.shape[2:], strict=True))
        label = 'thresholds ' + ' '.join(f'{value:g}' for value in chooser.thresholds)
        scorer = runner.cfg.model.backbone.get('scorer', 'entropy')
        picture, _ = draw_variants([(scorer, [(label, chooser)])],
                                   [BackboneInput(self._x, content_px)], self.heat_maps and chooser.num_scales > 1)
        runner.visualizer.add_image(f'patches_{number}', np.asarray(picture), step=runner.iter)

    @staticmethod
    def _load(runner: Runner, path: str) -> np.ndarray:
        """The picture as the validation pipeline loads it, (H, W, 3) uint8, BGR."""
        dataset = runner.val_dataloader.dataset
        while hasattr(dataset, 'dataset'):
            dataset = dataset.dataset
        return load_as(getattr(getattr(dataset, 'pipeline', None), 'transforms', ()), path)

    def after_val_epoch(self, runner: Runner, metrics: dict | None = None) -> None:
        if self._handle is None:
            return
        self._handle.remove()
        self._handle, self._batches = None, []
        counts = self._counts.to(get_device())
        dist.all_reduce(counts)
        shares = (counts / counts.sum().clamp(min=1)).tolist()
        patch_size = backbone_of(runner.model).patch_size
        for scale, share in enumerate(shares):
            runner.message_hub.update_scalar(f'val/val_tokens_{patch_size << scale}px', share)
        if dist.get_rank() == 0:
            runner.visualizer.add_image('tokens_by_size', draw_bars(shares, patch_size), step=runner.iter)
            add_histogram(runner.visualizer, 'tokens_by_scale', counts.tolist(), runner.iter)


def draw_bars(shares: Sequence[float], patch_size: int) -> np.ndarray:
    """A bar for each patch size, as high as its share of the tokens: (H, W, 3) uint8, RGB."""
    height, width = BARS_PX
    canvas = Image.new('RGB', (width, height), '#3c4048')
    draw, font = ImageDraw.Draw(canvas), font_of(BAR_FONT_PX)
    step = width / len(shares)
    for scale, share in enumerate(shares):
        left, top = (scale + 0.15) * step, 26 + (height - 52) * (1 - share)
        draw.rectangle((left, top, left + 0.7 * step, height - 26), fill=PATCH_COLOURS[scale % len(PATCH_COLOURS)])
        draw.text((left, top - 20), f'{share:.1%}', fill='white', font=font)
        draw.text((left, height - 22), f'{patch_size << scale} px', fill='white', font=font)
    return np.asarray(canvas)
