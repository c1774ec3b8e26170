"""Pictures of any depth and number of channels, in the pipelines of both packages and given to their functions."""
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from mmdet.apis import DetInferencer, inference_detector, init_detector
from mmengine.config import Config
from mmengine.dataset import Compose
from mmengine.registry import TRANSFORMS, DefaultScope
from mmseg.apis import MMSegInferencer, inference_model, init_model
from PIL import Image

import apt_dense.mm.det
import apt_dense.mm.seg  # noqa: F401
from apt_dense.calibration.images import load_image
from apt_dense.mm.fault_tolerance.bad_data import LoadCheckedImage
from tests.mm.conftest import CONFIGS, shrink
from tests.mm.test_inference import picture, shrunk_segmentor

BOTH = pytest.mark.parametrize('scope_name', ['mmdet', 'mmseg'])
CONFIG_NAMES = sorted(path.stem for path in CONFIGS.glob('*.py'))


def load(scope_name: str, results: dict, **arguments) -> np.ndarray:
    with DefaultScope.overwrite_default_scope(scope_name):
        return TRANSFORMS.build(dict(type='LoadImageFromFile', **arguments))(results)['img']


def write(folder: Path, values: np.ndarray, suffix: str = '.png') -> str:
    path = str(folder / f'picture{suffix}')
    assert cv2.imwrite(path, values)
    return path


@pytest.fixture
def deep() -> np.ndarray:
    """BGR, uint16, over the whole range."""
    values = np.random.default_rng(0).integers(0, 2**16, (20, 30, 3), np.uint16)
    values[0, 0] = 2**16 - 1
    return values


@BOTH
@pytest.mark.parametrize('suffix', ['.png', '.tif'])
def test_sixteen_bits_become_eight(scope_name, suffix, deep, tmp_path):
    for values in (deep, deep[..., 0]):
        image = load(scope_name, dict(img_path=write(tmp_path, values, suffix)))
        assert image.dtype == np.uint8 and image.shape == (20, 30, 3)
        assert np.array_equal(image, (values if values.ndim == 3 else np.dstack([values] * 3)) >> 8)


@BOTH
@pytest.mark.parametrize('suffix', ['.png', '.tif'])
@pytest.mark.parametrize('bits', [8, 10, 12, 14])
@pytest.mark.parametrize('grey', [False, True])
def test_data_of_fewer_bits_is_refused_until_the_config_says_so(scope_name, suffix, bits, grey, deep, tmp_path):
    """12 bits in 16 were nearly black, without a word."""
    values = (deep[..., 0] if grey else deep) >> (16 - bits)
    path = write(tmp_path, values, suffix)
    message = (rf'picture\{suffix} has 16 bits a value, and its largest, {2**bits - 1}, has {bits}: .*'
               rf"dict\(type='LoadImageFromFile', bits={bits}\)")
    with pytest.raises(ValueError, match=message):
        load(scope_name, dict(img_path=path))
    image = load(scope_name, dict(img_path=path), bits=bits)
    assert np.array_equal(image[..., 0], (values if grey else values[..., 0]) >> (bits - 8)) and image.max() == 255
    assert load(scope_name, dict(img_path=path), bits=16).max() == (2**bits - 1) >> 8
    if bits > 8:
        with pytest.raises(ValueError, match=rf'picture\{suffix} holds {2**bits - 1}, .* bits=8: set bits={bits}'):
            load(scope_name, dict(img_path=path), bits=8)


@BOTH
def test_a_picture_may_be_written_into(scope_name, deep, tmp_path):
    """As some transforms do."""
    for values in (deep, deep[..., 0], (deep >> 8).astype(np.uint8)):
        assert load(scope_name, dict(img_path=write(tmp_path, values))).flags.writeable
        assert load(scope_name, dict(img=values)).flags.writeable


@BOTH
def test_black_is_black(scope_name, tmp_path):
    assert load(scope_name, dict(img_path=write(tmp_path, np.zeros((4, 5), np.uint16)))).max() == 0


@BOTH
def test_bits_of_a_setting(scope_name):
    with DefaultScope.overwrite_default_scope(scope_name), pytest.raises(ValueError, match='bits=24: .* 8 to 16'):
        TRANSFORMS.build(dict(type='LoadImageFromFile', bits=24))


@BOTH
def test_photographs_are_what_they_were(scope_name, tmp_path):
    """A JPEG that its camera has turned, grey, with alpha, with a palette: as mmcv reads them."""
    values, exif = picture(40, 60), Image.Exif()
    exif[0x0112] = 6
    Image.fromarray(values).save(tmp_path / 'turned.jpg', exif=exif)
    Image.fromarray(values[..., 0]).save(tmp_path / 'grey.png')
    Image.fromarray(np.dstack([values, values[..., :1]])).save(tmp_path / 'alpha.png')
    Image.fromarray(values).quantize(8).save(tmp_path / 'palette.png')
    Image.fromarray(values[..., 0] > 90).save(tmp_path / 'bilevel.png')
    for path in sorted(tmp_path.iterdir()):
        expected = cv2.imread(str(path), cv2.IMREAD_COLOR)
        assert np.array_equal(load(scope_name, dict(img_path=str(path))), expected), path.name
        found = load(scope_name, dict(img_path=str(path)), to_float32=True)
        assert found.dtype == np.float32 and np.array_equal(found, expected)
        for color_type, flag in (('unchanged', cv2.IMREAD_UNCHANGED), ('grayscale', cv2.IMREAD_GRAYSCALE)):
            found = load(scope_name, dict(img_path=str(path)), color_type=color_type)
            assert np.array_equal(found, cv2.imread(str(path), flag)), path.name


def test_the_checked_loader_reads_the_same(deep, tmp_path):
    path = write(tmp_path, deep >> 4)
    with pytest.raises(ValueError, match='has 16 bits a value'):
        LoadCheckedImage()(dict(img_path=path))
    assert LoadCheckedImage(bits=12)(dict(img_path=path, height=20, width=30))['img'].max() == 255


@pytest.mark.parametrize('name', CONFIG_NAMES)
def test_every_configs_pipelines_refuse_twelve_bits(name, deep, tmp_path):
    """In training, testing and multi-scale testing."""
    path = write(tmp_path, deep >> 4)
    cfg = Config.fromfile(CONFIGS / f'{name}.py')
    pipelines = [cfg[key] for key in ('train_pipeline', 'test_pipeline', 'tta_pipeline') if key in cfg]
    assert len(pipelines) >= (1 if 'in1k' in name else 2)  # the short recipe of classifiers augments nothing
    with DefaultScope.overwrite_default_scope(cfg.default_scope):
        for pipeline in pipelines:
            with pytest.raises(ValueError, match='has 16 bits a value, and its largest, 4095, has 12'):
                Compose(pipeline)(dict(img_path=path))


# ---- arrays ----
@pytest.fixture(params=['detection', 'segmentation'])
def predict(request):
    """predict(picture) -> an array that two pictures share if the model has seen the same."""
    torch.manual_seed(0)
    if request.param == 'segmentation':
        model = init_model(shrunk_segmentor('apt_eva02_ti_demo_seg'), device='cpu')
        return lambda given: inference_model(model, given).pred_sem_seg.data
    cfg = shrink(Config.fromfile(CONFIGS / 'apt_eva02_ti_demo_det.py'))
    cfg.model.test_cfg.rpn.max_per_img = 20
    model = init_detector(cfg, device='cpu', palette='random')
    return lambda given: inference_detector(model, given).pred_instances.bboxes


def test_arrays_of_every_kind(predict):
    """Grey, with one channel, with alpha, of 16 bits, of other types: as the same picture with three channels."""
    colour, grey = picture(96, 128), picture(96, 128)[..., 0]
    deep = grey.astype(np.uint16) << 8
    deep[0, 0] = 2**16 - 1
    wanted = predict(colour), predict(np.dstack([grey] * 3))
    assert not torch.equal(*(part.flatten()[:100] for part in wanted))
    for same in (np.dstack([colour, grey]), colour.astype(np.float32), colour.astype(np.int16), colour + 0.25):
        assert torch.equal(predict(same), wanted[0])
    for same in (grey, grey[..., None], grey.astype(np.float64), np.asfortranarray(grey)):
        assert torch.equal(predict(same), wanted[1])
    assert torch.equal(predict(deep), predict(np.dstack([deep >> 8] * 3).astype(np.uint8)))


@pytest.mark.parametrize(('array', 'message'), [
    (np.zeros((96, 128, 2), np.uint8), r'has shape \(96, 128, 2\), wanted a picture \(H, W\), .*blue first'),
    (np.zeros((3, 96, 128), np.uint8), r'has shape \(3, 96, 128\), .*channels last'),
    (np.zeros((2, 96, 128, 3), np.uint8), r'has shape \(2, 96, 128, 3\), .*several pictures into a list'),
    (np.zeros((0, 128, 3), np.uint8), r'has shape \(0, 128, 3\)'),
    (np.full((96, 128), 4000, np.uint16), 'the array has 16 bits a value, and its largest, 4000, has 12'),
    (np.full((96, 128, 4), (9, 9, 4000, 65535), np.uint16), 'the array has 16 bits a value, .* 4000, has 12'),
    (np.full((96, 128, 3), 0.5), 'float64 values up to 0.5, wanted 0 to 255: multiply by 255'),
    (np.full((96, 128, 3), 300.0), 'float64 values from 0.* to 300.0, wanted 8 or 16 bits'),
    (np.full((96, 128, 3), np.nan), 'float64 values from nan to nan'),
    (np.full((96, 128, 3), -1, np.int16), 'int16 values from -1 to'),
    (np.full((96, 128, 3), 2**20), 'int64 values from .* to 1048576'),
    (np.zeros((96, 128), bool), 'bool values'),
])
def test_what_is_no_picture_says_what_is_wanted(predict, array, message):
    with pytest.raises(ValueError, match=message):
        predict(array)


@pytest.mark.parametrize('name', ['apt_eva02_ti_demo_det', 'apt_eva02_ti_demo_seg'])
def test_predictions_are_drawn_on_every_kind(name, tmp_path):
    """The packages' visualisers take three channels of 8 bits only, or draw something else."""
    grey = picture(96, 128)[..., 0]
    if 'det' in name:
        cfg = shrink(Config.fromfile(CONFIGS / f'{name}.py'))
        cfg.model.test_cfg.rpn.max_per_img = 5
        build, inferencer_type, options = init_detector, DetInferencer, dict(pred_score_thr=0.0)
    else:
        cfg, build, inferencer_type, options = shrunk_segmentor(name), init_model, MMSegInferencer, {}
    model = build(cfg, device='cpu')
    torch.save(dict(state_dict=model.state_dict(), meta=dict(dataset_meta=dict(cfg.metainfo))), tmp_path / 'model.pth')
    inferencer = inferencer_type(cfg, str(tmp_path / 'model.pth'), device='cpu')
    colour = np.dstack([grey] * 3)
    kinds = (grey, grey[..., None], np.dstack([colour, grey]), grey.astype(np.float64), colour.astype(np.uint16) << 8)
    wanted, *others = (inferencer(given, return_vis=True, **options)['visualization'] for given in (colour, *kinds))
    assert not np.array_equal(np.squeeze(wanted), colour)
    for drawn in others:
        assert (np.squeeze(drawn) != np.squeeze(wanted)).mean() < 1e-3  # matplotlib rounds now and then


def test_a_path_after_an_array_and_both_in_a_list(tmp_path):
    """mmsegmentation's function changes the config at the first array."""
    model = init_model(shrunk_segmentor('apt_eva02_ti_demo_seg'), device='cpu')
    array = picture(96, 128)
    path = write(tmp_path, array)
    wanted = inference_model(model, array).pred_sem_seg.data
    for result in (inference_model(model, path), *inference_model(model, [array, path])):
        assert torch.equal(result.pred_sem_seg.data, wanted)


def test_the_tools_read_what_the_pipelines_read(deep, tmp_path):
    """The same 8 bits, the same refusals."""
    for values in (deep, deep[..., 0], np.dstack([deep, deep[..., :1]])):
        path = Path(write(tmp_path, values))
        assert np.array_equal(np.asarray(load_image(path))[..., ::-1], load('mmseg', dict(img_path=str(path))))
        path = write(tmp_path, values >> 4)
        for read in (lambda path=path: load_image(Path(path)), lambda path=path: load('mmdet', dict(img_path=path))):
            with pytest.raises(ValueError, match='has 16 bits a value, and its largest, 4095, has 12'):
                read()
