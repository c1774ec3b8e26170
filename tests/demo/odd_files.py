"""Files that somebody may drop on a page: pictures of every kind, and what is none."""
import io
from pathlib import Path

import numpy as np
from PIL import Image

GOOD = ('jpeg', 'png', 'grey', 'alpha', 'palette', 'one_bit', 'cmyk', 'deep', 'webp', 'bmp', 'gif', 'tiff', 'turned',
        'dot', 'strip', 'black', 'wrong ending', 'name with ünicode')
BAD = ('text', 'empty', 'cut', 'zip', 'video', 'too large', 'bomb', 'dark 16 bits', 'svg')


def write_odd_files(root: Path) -> tuple[list[Path], list[Path]]:
    """Those that are pictures, in the order of GOOD, and those that are none, in that of BAD."""
    rng = np.random.default_rng(0)
    image = Image.fromarray(rng.integers(0, 256, (90, 140, 3), np.uint8))
    exif = Image.Exif()
    exif[0x0112] = 6
    good = {
        'photo.jpg': image, 'photo.png': image, 'grey.png': image.convert('L'), 'alpha.png': image.convert('RGBA'),
        'palette.png': image.convert('P'), 'bits.png': image.convert('1'), 'cmyk.jpg': image.convert('CMYK'),
        'deep.png': Image.fromarray(rng.integers(0, 65536, (40, 60), np.uint16)), 'photo.webp': image,
        'photo.bmp': image, 'photo.gif': image, 'photo.tif': image, 'turned.jpg': image,
        'dot.png': image.crop((0, 0, 1, 1)),
        'strip.png': image.resize((3000, 2)), 'black.png': Image.new('RGB', (64, 64))}
    for name, content in good.items():
        content.save(root / name, **(dict(exif=exif) if name == 'turned.jpg' else {}))
    image.save(root / 'ending.txt', 'PNG')
    image.save(root / 'fotó ä.png')
    data = io.BytesIO()
    image.save(data, 'PNG')
    bad = {'text.jpg': b'no picture', 'empty.png': b'', 'cut.png': data.getvalue()[:2000],
           'archive.jpg': b'PK\x03\x04' * 50, 'film.jpg': b'\x00\x00\x00\x18ftypmp42' + b'\x00' * 99}
    for name, content in bad.items():
        (root / name).write_bytes(content)
    Image.new('L', (9000, 9000)).save(root / 'large.png')
    Image.new('1', (20000, 20000)).save(root / 'bomb.png')
    Image.fromarray(np.full((40, 60), 900, np.uint16)).save(root / 'dark.png')
    (root / 'drawing.svg').write_text('<svg xmlns="http://www.w3.org/2000/svg"/>')
    return ([root / name for name in (*good, 'ending.txt', 'fotó ä.png')],
            [root / name for name in (*bad, 'large.png', 'bomb.png', 'dark.png', 'drawing.svg')])
