"""Reading photographs without OpenMMLab."""
import numpy as np
import pytest
import torch
from PIL import Image

from apt_dense.calibration.images import (
    crop_square,
    find_images,
    load_image,
    resize,
    resize_longest,
    to_eight_bits,
    to_input,
)


def test_sixteen_bits_become_eight(tmp_path):
    values = np.linspace(0, 65535, 64).astype(np.uint16).reshape(8, 8)
    Image.fromarray(values).save(tmp_path / 'deep.png')
    image = np.asarray(load_image(tmp_path / 'deep.png'))
    assert (image == (values >> 8)[..., None]).all()


def test_turned_as_its_camera_says(tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6  # a quarter turn
    Image.new('RGB', (40, 20)).save(tmp_path / 'turned.jpg', exif=exif)
    assert load_image(tmp_path / 'turned.jpg').size == (20, 40)


def test_the_two_ways_of_shrinking_are_those_of_the_libraries():
    """OpenCV rounds its weights to 1 / 2048: a grey level up or down."""
    cv2 = pytest.importorskip('cv2')
    image = np.random.default_rng(0).integers(0, 256, (90, 131, 3), np.uint8)
    for size in ((60, 40), (33, 90), (262, 180)):
        ours = np.asarray(resize(Image.fromarray(image), size, 'opencv')).astype(int)
        assert abs(ours - cv2.resize(image, size, interpolation=cv2.INTER_LINEAR)).max() <= 1
        ours = np.asarray(resize(Image.fromarray(image), size, 'pillow'))
        assert (ours == mmcv_resize(image, size)).all()
    with pytest.raises(ValueError, match="resampling='nearest': choose one of"):
        resize(Image.fromarray(image), (10, 10), 'nearest')


def mmcv_resize(image: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """As the COCO configs do."""
    return pytest.importorskip('mmcv').imresize(image, size, backend='pillow')


def test_sizes():
    image = Image.new('RGB', (1000, 3))
    assert resize_longest(image, 128, 'pillow').size == (128, 1)
    assert crop_square(image, 64, 'opencv').size == (64, 64)


def test_the_square_in_the_middle():
    image = np.zeros((10, 30, 3), np.uint8)
    image[:, 10:20] = 255
    assert np.asarray(crop_square(Image.fromarray(image), 10, 'pillow')).min() == 255


def test_input_is_padded_after_normalisation():
    x = to_input(Image.new('RGB', (48, 32), (124, 116, 104)), 64)
    assert x.shape == (1, 3, 64, 64)
    assert (x[..., 32:, :] == 0).all() and (x[..., 48:] == 0).all() and (x[0, 0, :32, :48] != 0).all()
    assert x[0, :, 0, 0] == pytest.approx(torch.tensor([0.325 / 58.395, -0.28 / 57.12, 0.47 / 57.375]), abs=1e-6)


def test_images_of_folders_in_order(tmp_path):
    for name in ('b.jpg', 'a.txt', 'sub/c.PNG', 'a.webp', 'manual.pdf'):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    assert [path.name for path in find_images([tmp_path, tmp_path / 'a.txt'])] == ['a.webp', 'b.jpg', 'c.PNG', 'a.txt']


@pytest.mark.parametrize('suffix', ['.png', '.tif'])
@pytest.mark.parametrize('channels', [1, 3, 4])
@pytest.mark.parametrize('bits', [10, 12, 14])
def test_sixteen_bit_files_with_data_of_fewer_bits_are_refused(tmp_path, suffix, channels, bits):
    """Pillow tells of 16-bit colours nowhere, and gives the upper 8 bits of them: nearly black."""
    cv2 = pytest.importorskip('cv2')  # Pillow does not write such colours
    values = np.linspace(2**bits - 1, 0, 64 * channels).astype(np.uint16).reshape(8, 8, channels)
    values[..., 3:] = 2**16 - 1  # alpha may fill the range
    path = tmp_path / f'deep{suffix}'
    assert cv2.imwrite(str(path), values)
    with pytest.raises(ValueError, match=rf'deep\{suffix} has 16 bits a value, and its largest, {2**bits - 1}, has '
                                         f'{bits}: as 8 bits'):
        load_image(path)
    values[..., :3] <<= 16 - bits
    assert cv2.imwrite(str(path), values)
    assert np.asarray(load_image(path)).max() == 255


@pytest.mark.parametrize('dtype', [np.int8, np.int16, np.int32, np.uint32, np.int64, np.uint64, np.float16, np.float64])
def test_eight_bits_in_another_type(dtype):
    values = np.arange(128).reshape(8, 16).astype(dtype)
    result = to_eight_bits(values, 'x')
    assert result.dtype == np.uint8 and np.array_equal(result, values)
    if np.dtype(dtype).itemsize > 2 and np.dtype(dtype).kind != 'f':
        assert np.array_equal(to_eight_bits(values * 512, 'x'), values * 2)


@pytest.mark.parametrize('order', ['<', '>'])
def test_both_orders_of_bytes(order):
    values = np.array([[0, 256], [65535, 300]], f'{order}u2')
    assert to_eight_bits(values, 'x').tolist() == [[0, 1], [255, 1]]


def test_numbers_of_other_types(tmp_path):
    for dtype in (np.int32, np.float32):
        values = np.arange(192, dtype=dtype).reshape(8, 24)
        Image.fromarray(values).save(tmp_path / 'numbers.tif')
        assert np.array_equal(np.asarray(load_image(tmp_path / 'numbers.tif'))[..., 0], values)
        Image.fromarray(values / 192 if dtype == np.float32 else values - 1).save(tmp_path / 'numbers.tif')
        with pytest.raises(ValueError, match=r'numbers\.tif holds (float32|int32) values .*wanted'):
            load_image(tmp_path / 'numbers.tif')
    Image.fromarray(np.zeros((8, 8), np.uint16)).save(tmp_path / 'black.png')
    assert np.asarray(load_image(tmp_path / 'black.png')).max() == 0
