"""EVA-02's UperNet on mmsegmentation's classes: what differs from mmsegmentation, and nothing else."""
import torch
from mmengine.registry import MODELS
from torch import Tensor

from apt_dense.extras import from_extra
from apt_dense.mm.data.inputs import slide_windows
from apt_dense.mm.models.distill import DistillMixin
from apt_dense.mm.models.freeze import FreezeMixin
from apt_dense.mm.models.normalisation import check_model_normalisation

with from_extra('mm'):
    from mmseg.models.segmentors import EncoderDecoder
    from mmseg.structures import SegDataSample

MAX_WINDOWS = 4


@MODELS.register_module()
class APTEncoderDecoder(FreezeMixin, DistillMixin, EncoderDecoder):
    """``mmseg.EncoderDecoder`` for images of any size, with ``trainable`` (see ``FreezeMixin``) and ``distill`` (see
    ``DistillMixin``).

    The backbone wants whole windows, or whole patches of the largest size.  In testing, a whole image or a window of
    slide inference (of an image smaller than the window) has any size: it is padded at the bottom and right with zeros,
    the mean colour, and the logits of the padding are cut off.  Images of a training batch are padded by the data
    preprocessor.

    The windows of slide inference are computed several at a time: ``test_cfg.max_windows`` at most, 4 by default, the
    images of the batch counted apart.  More take more memory, for logits of all classes mostly.

    Raises:
        ValueError: if the data preprocessor normalises otherwise than the backbone assumes.
    """

    pads_to_size_divisor = True

    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        check_model_normalisation(self)

    def test_step(self, data: dict) -> list[SegDataSample]:
        """Predict a batch of the data loader or of mmsegmentation's inference functions.

        Images of different sizes, of which mmsegmentation makes no batch, are predicted one by one.
        """
        inputs, samples = data['inputs'], data.get('data_samples')
        if len({image.shape for image in inputs}) <= 1:
            return super().test_step(data)
        results = []
        for index, image in enumerate(inputs):
            results += super().test_step(dict(inputs=[image], data_samples=samples and [samples[index]]))
        return results

    val_step = test_step

    def encode_decode(self, inputs: Tensor, batch_img_metas: list[dict]) -> Tensor:
        """(B, 3, H, W), normalised -> logits (B, classes, H, W)."""
        height_px, width_px = inputs.shape[2:]
        padded = self.backbone.chooser.pad(inputs)
        # A torch.Size here is what mmseg's heads take for the size of the logits.
        metas = [dict(meta, img_shape=padded.shape[2:]) for meta in batch_img_metas]
        return super().encode_decode(padded, metas)[..., :height_px, :width_px]

    def slide_inference(self, inputs: Tensor, batch_img_metas: list[dict]) -> Tensor:
        """(B, 3, H, W), normalised -> logits (B, classes, H, W): the mean of the windows over each pixel.

        As mmsegmentation's, which computes each window alone, and waits for the device once more.
        """
        batch_size, _, *sides = inputs.shape
        windows = slide_windows(tuple(sides), self.test_cfg.crop_size, self.test_cfg.stride)
        together = max(1, self.test_cfg.get('max_windows', MAX_WINDOWS) // batch_size)
        chooser = self.backbone.chooser
        if chooser.max_tokens is not None and chooser.max_tokens_per == 'batch':
            together = 1  # the budget is one window's
        logits = inputs.new_zeros(batch_size, self.out_channels, *sides)
        counts = inputs.new_zeros(1, 1, *sides)
        for begin in range(0, len(windows), together):
            some = windows[begin:begin + together]
            found = self.encode_decode(torch.cat([inputs[:, :, rows, cols] for rows, cols in some]),
                                       batch_img_metas * len(some))
            for (rows, cols), part in zip(some, found.split(batch_size), strict=True):
                logits[:, :, rows, cols] += part
                counts[:, :, rows, cols] += 1
        return logits.div_(counts)
