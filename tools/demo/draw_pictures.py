#!/usr/bin/env python
"""Draw the pictures of docs/using.md and docs/tools.md: what the tools draw, on the demo's data.

    make demo
    python tools/demo/draw_pictures.py work_dirs/apt_eva02_ti_demo_det/iter_500.pth

It calls the tools as a user does, and puts what they draw side by side.
"""
import argparse
import os
import subprocess
import sys
import tempfile
from pathlib import Path

from apt_dense.extras import from_extra

with from_extra('tools'):
    import skimage
    from PIL import Image

ROOT = Path(__file__).parents[2]
CONFIG = ROOT / 'configs/apt_eva02_ti_demo_det.py'
SCENES = ('000002', '000007', '000011', '000037')  # of the demo's validation data
PHOTOS = ('astronaut.png', 'chelsea.png', 'coffee.png', 'rocket.jpg', 'ihc.png', 'motorcycle_left.png',
          'hubble_deep_field.jpg', 'retina.jpg')
FEWER, COMPARED = (2e-3, 2e-3, 2e-3), '04_*'  # thresholds, and which of the scenes that then differ most
HEIGHT_PX, GAP_PX = 240, 8


def run(script: str, *arguments: object) -> None:
    """Run one of the tools; end with its status if it fails."""
    command = [sys.executable, '-W', 'ignore', ROOT / 'tools' / script, *arguments]
    status = subprocess.run(list(map(str, command)), stdout=subprocess.DEVNULL,
                            env={**os.environ, 'PYTHONPATH': str(ROOT)}).returncode
    if status:
        sys.exit(f'error: {script} ended with status {status}')


def beside(rows: list[list[Image.Image]], height_px: int = HEIGHT_PX) -> Image.Image:
    """Pictures in rows, all of one height; a row's width is its own."""
    rows = [[one.resize((round(one.width * height_px / one.height), height_px), Image.Resampling.LANCZOS)
             for one in row] for row in rows]
    widths = [sum(one.width + GAP_PX for one in row) - GAP_PX for row in rows]
    canvas = Image.new('RGB', (max(widths), len(rows) * (height_px + GAP_PX) - GAP_PX), 'white')
    for number, row in enumerate(rows):
        left = 0
        for one in row:
            canvas.paste(one, (left, number * (height_px + GAP_PX)))
            left += one.width + GAP_PX
    return canvas


def without_padding(picture: Image.Image, photo: Image.Image) -> Image.Image:
    """The part at the top left that a photograph fills whose longest side is the square's."""
    return picture.crop((0, 0, *(round(max(picture.size) * side / max(photo.size)) for side in photo.size)))


def save(picture: Image.Image, path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    picture.convert('RGB').save(path, quality=85, subsampling=0, optimize=True)
    print(f'{path}: {picture.width} x {picture.height} px, {path.stat().st_size / 1000:.0f} kB')


def opened(folder: Path, pattern: str) -> list[Image.Image]:
    """The pictures of a folder, in the order of their names."""
    return [Image.open(path).convert('RGB') for path in sorted(folder.glob(pattern))]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('checkpoint', type=Path, help='of apt_eva02_ti_demo_det.py')
    parser.add_argument('--data', type=Path, default=Path('data/demo'))
    parser.add_argument('--out-dir', type=Path, default=ROOT / 'docs/pictures')
    args = parser.parse_args()
    scenes = [args.data / f'val/{name}.jpg' for name in SCENES]
    photos = [Path(skimage.__path__[0], 'data', name) for name in PHOTOS]
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        run('predict.py', *scenes, '--model', args.checkpoint, '--out', folder / 'found', '--min-score', 0.5)
        run('analysis_tools/visualize_patches.py', *scenes, '--config', CONFIG, '--out-dir', folder / 'patches')
        found, patches = opened(folder / 'found', '*.png'), opened(folder / 'patches', '*.png')
        patches = list(map(without_padding, patches, found))
        save(beside([patches, found]), args.out_dir / 'predictions.jpg')
        run('analysis_tools/visualize_patches.py', *photos[1:4], '--img-size', 512, '--thresholds', 5.75, 4,
            '--out-dir', folder / 'photos')
        save(beside([opened(folder / 'photos', '*.png')]), args.out_dir / 'patches.jpg')
        run('analysis_tools/visualize_patches.py', photos[2], '--img-size', 512, '--thresholds', 5, 4,
            '--thresholds', 6, 5, '--heat-maps', '--out-dir', folder / 'side_by_side')
        save(beside([opened(folder / 'side_by_side', '*.png')], 320), args.out_dir / 'side_by_side.jpg')
        run('analysis_tools/calibrate_thresholds.py', *photos, '--size', 512, '--kept', 0.7, '--out-dir', folder)
        Image.open(folder / 'thresholds.png').save(args.out_dir / 'thresholds.png', optimize=True)
        run('analysis_tools/sweep_thresholds.py', args.checkpoint, '--kept', 0.9, 0.7, 0.5, '--out-dir', folder)
        Image.open(folder / 'sweep.png').save(args.out_dir / 'sweep.png', optimize=True)
        run('analysis_tools/compare_models.py', args.checkpoint, args.checkpoint, '--thresholds-b', *FEWER,
            '--out-dir', folder / 'comparison')
        save(opened(folder / 'comparison/different', COMPARED)[0], args.out_dir / 'compare.jpg')
        Image.open(folder / 'comparison/kept.png').save(args.out_dir / 'compare_kept.png', optimize=True)
        run('analysis_tools/simulate_token_balance.py', *photos, '--config', 'apt_eva02_b_ade20k_512', '--num-crops',
            100, '--out', args.out_dir / 'token_balance.png')
        run('check_data.py', CONFIG, '--out-dir', folder / 'checked', '--num-pictures', 2)
        save(beside([opened(folder / 'checked', 'train*')]), args.out_dir / 'check_data.jpg')
        run('test.py', CONFIG, args.checkpoint, '--show-dir', folder / 'test', '--work-dir', folder / 'work')
        save(beside([opened(folder / 'test', f'**/{SCENES[0]}*')]), args.out_dir / 'test.jpg')


if __name__ == '__main__':
    main()
