"""What several tests of the fixes need."""
import pytest
from mmdet.models.roi_heads.roi_extractors import SingleRoIExtractor

from apt_dense.mm import compat


@pytest.fixture
def extractor(monkeypatch):
    """mmdet's RoI extractor with the fix, which ends with the test."""
    monkeypatch.setattr(SingleRoIExtractor, 'forward', SingleRoIExtractor.forward)
    compat.keep_rois_in_float32()
    return SingleRoIExtractor(dict(type='RoIAlign', output_size=2, sampling_ratio=0), out_channels=3,
                              featmap_strides=[4, 8], finest_scale=28)
