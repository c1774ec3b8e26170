"""apt_dense for mmsegmentation: importing this module registers its segmentor, transforms and metric."""
from apt_dense.extras import from_extra
from apt_dense.mm import compat
from apt_dense.mm.data import load_picture
from apt_dense.mm.data.label_maps import IGNORE, FolderIoUMetric, LoadLabelMap
from apt_dense.mm.models.encoder_decoder import APTEncoderDecoder

with from_extra('mm'):
    from mmseg.registry import TRANSFORMS
    from mmseg.visualization import SegLocalVisualizer

__all__ = ['IGNORE', 'APTEncoderDecoder', 'FolderIoUMetric', 'LoadLabelMap']

load_picture.register(TRANSFORMS)
compat.draw_on_any_picture(SegLocalVisualizer)
