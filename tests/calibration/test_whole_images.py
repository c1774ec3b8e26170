"""What is cut off or no image is found by its beginning and its end; what is whole passes without being decoded."""
import io
import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageFile

from apt_dense.calibration.whole_images import check_image, find_whole_images, split_whole

# Name -> how Pillow writes it.
KINDS = {
    'a.jpg': {}, 'progressive.jpg': dict(progressive=True), 'a.png': {}, 'a.webp': {},
    'lossless.webp': dict(lossless=True), 'a.bmp': {}, 'a.gif': {}, 'a.ppm': {}, 'a.tif': {},
    'lzw.tif': dict(compression='tiff_lzw'), 'jpeg.tif': dict(compression='jpeg')}
ENDS_SAY = [name for name in KINDS if Path(name).suffix in ('.jpg', '.png', '.webp', '.gif', '.tif')]


@pytest.fixture
def image() -> Image.Image:
    return Image.fromarray(np.random.default_rng(0).integers(0, 256, (90, 140, 3), np.uint8))


def encoded(image: Image.Image, name: str) -> bytes:
    content = io.BytesIO()
    image.save(content, Image.registered_extensions()[Path(name).suffix], **KINDS[name])
    return content.getvalue()


@pytest.mark.parametrize('name', KINDS)
def test_cut_off_anywhere(name, image, tmp_path):
    content, path = encoded(image, name), tmp_path / name
    for end in (0, 1, 20, 300, len(content) // 2, len(content) - 200, len(content) - (40 if name == 'a.gif' else 2)):
        path.write_bytes(content[:end])
        with pytest.raises(ValueError, match=rf'{name} cannot be read as an image: '):
            check_image(path)
    path.write_bytes(content)
    check_image(path)


@pytest.mark.parametrize('name', KINDS)
def test_the_rest_of_a_file_is_zeros(name, image, tmp_path):
    """As a copy that was broken off leaves it on some disks: of the length that it should have."""
    content = encoded(image, name)
    if name == 'a.png':  # in other formats zeros are colours
        (tmp_path / name).write_bytes(content[:len(content) // 2] + bytes(len(content) // 2))
        with pytest.raises(ValueError, match='cannot be read'):
            check_image(tmp_path / name)
    (tmp_path / name).write_bytes(content + bytes(5000))  # whole, and padded
    check_image(tmp_path / name)


@pytest.mark.parametrize('name', ENDS_SAY)
def test_what_is_whole_is_not_decoded(name, image, tmp_path, monkeypatch):
    (tmp_path / name).write_bytes(encoded(image, name))
    monkeypatch.setattr(ImageFile.ImageFile, 'load', lambda self: pytest.fail('decoded'))
    check_image(tmp_path / name)


def test_a_film_after_the_photograph(image, tmp_path):
    """Some telephones append one."""
    (tmp_path / 'a.jpg').write_bytes(encoded(image, 'a.jpg') + b'film' * 30000)
    (tmp_path / 'a.png').write_bytes(encoded(image, 'a.png') + b'film' * 30000)
    image.save(tmp_path / 'two.jpg', 'MPO', save_all=True, append_images=[image])
    assert split_whole(sorted(tmp_path.iterdir())) == (sorted(tmp_path.iterdir()), [])


def chunk(kind: bytes, content: bytes) -> bytes:
    return struct.pack('>I', len(content)) + kind + content + struct.pack('>I', zlib.crc32(kind + content))


NO_IMAGES = {
    'text.jpg': b'no picture', 'empty.png': b'', 'shell.jpg': b'\xff\xd8' + b'x' * 99 + b'\xff\xd9',
    'no_width.png': b'\x89PNG\r\n\x1a\n' + chunk(b'IHDR', struct.pack('>IIBBBBB', 0, 5, 8, 2, 0, 0, 0)) +
                    chunk(b'IDAT', zlib.compress(b'')) + chunk(b'IEND', b''),
    'no_height.ppm': b'P6 5 0 255\n', 'archive.webp': b'PK\x03\x04' * 50}


@pytest.mark.parametrize('name', NO_IMAGES)
def test_no_images(name, tmp_path):
    (tmp_path / name).write_bytes(NO_IMAGES[name])
    with pytest.raises(ValueError, match=rf'{name} cannot be read as an image: '):
        check_image(tmp_path / name)


def test_all_are_looked_at(image, tmp_path):
    image.save(tmp_path / 'b.png')
    assert find_whole_images([tmp_path]) == [tmp_path / 'b.png']
    for name, content in NO_IMAGES.items():
        (tmp_path / name).write_bytes(content)
    good, errors = split_whole(sorted(tmp_path.iterdir()))
    assert good == [tmp_path / 'b.png'] and len(errors) == len(NO_IMAGES)
    with pytest.raises(ValueError, match=r'archive\.webp cannot be read as an image: .* \(5 more cannot be read\)$'):
        find_whole_images([tmp_path])


def test_a_large_picture_gives_no_warning(tmp_path, recwarn):
    """Pillow warns of each above 89 million pixels when it is opened; it is said when it is read."""
    Image.new('1', (10000, 9500)).save(tmp_path / 'large.png')
    check_image(tmp_path / 'large.png')
    assert not recwarn.list
