"""The documents' pictures of what the tools draw."""
from PIL import Image

from tests.locations import ROOT, load_tool

tool = load_tool('demo/draw_pictures.py')


def test_the_pictures_are_small_enough_for_a_page():
    pictures = list((ROOT / 'docs/pictures').iterdir())
    assert len(pictures) == 12 and all(path.stat().st_size <= 200_000 for path in pictures)


def test_padding_is_cut_off():
    square = Image.new('RGB', (256, 256))
    assert tool.without_padding(square, Image.new('RGB', (300, 200))).size == (256, 171)
    assert tool.without_padding(square, Image.new('RGB', (100, 400))).size == (64, 256)


def test_rows_of_one_height():
    red, blue = Image.new('RGB', (60, 30), 'red'), Image.new('RGB', (50, 100), 'blue')
    picture = tool.beside([[red, blue], [blue]], height_px=100)
    assert picture.size == (200 + tool.GAP_PX + 50, 200 + tool.GAP_PX)
    at = {name: picture.getpixel(place) for name, place in
          dict(first=(10, 10), gap=(203, 10), second=(250, 10), below=(10, 150), beyond=(250, 150)).items()}
    assert at == dict(first=(255, 0, 0), gap=(255, 255, 255), second=(0, 0, 255), below=(0, 0, 255),
                      beyond=(255, 255, 255))
