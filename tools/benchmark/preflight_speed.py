"""Time and memory of the preflight on a made-up COCO file of train2017's size, in a process of its own.

Prints seconds, the peak of the resident memory and the size of the file.  docs/data.md reports it.
"""
import argparse
import io
import json
import random
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from apt_dense.command_line import at_least
from apt_dense.extras import from_extra

with from_extra('images'):
    from PIL import Image


NUM_IMAGES, NUM_ANNOTATIONS, NUM_CLASSES = 118_287, 860_001, 80


def write_file(path: Path, num_images: int, num_annotations: int) -> None:
    """Write polygons of about 25 points, as long as train2017's, streaming; every 90th is a crowd as RLE."""
    rng = random.Random(0)
    with open(path, 'w') as file:
        file.write('{"info": {}, "images": ')
        json.dump([dict(id=number, file_name=f'{number:012}.jpg', width=640, height=480, license=1,
                        coco_url=f'http://images.example.org/train2017/{number:012}.jpg',
                        date_captured='2013-11-14 11:18:45') for number in range(1, num_images + 1)], file)
        file.write(', "annotations": [')
        for number in range(1, num_annotations + 1):
            x, y = round(rng.uniform(0, 500), 2), round(rng.uniform(0, 360), 2)
            width, height = round(rng.uniform(8, 120), 2), round(rng.uniform(8, 110), 2)
            if number % 90:
                shape = [[round(value, 2) for _ in range(25)
                          for value in (x + rng.random() * width, y + rng.random() * height)]]
            else:
                shape = dict(size=[480, 640], counts=[100] * 100 + [480 * 640 - 10000])
            item = dict(segmentation=shape, area=round(width * height / 2, 4), iscrowd=int(number % 90 == 0),
                        image_id=rng.randint(1, num_images), bbox=[x, y, width, height],
                        category_id=rng.randint(1, NUM_CLASSES), id=number)
            file.write(f'{"" if number == 1 else ", "}{json.dumps(item)}')
        file.write('], "categories": ')
        json.dump([dict(id=number, name=f'class {number}', supercategory='thing')
                   for number in range(1, NUM_CLASSES + 1)], file)
        file.write('}')


def measure(root: Path) -> None:
    """Check the file in this process; print the time and the peak of its memory."""
    with from_extra('mm'):
        from mmengine.config import Config

        import apt_dense.mm.det  # noqa: F401
        from apt_dense.mm.preflight.run import check
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    classes = [f'class {number}' for number in range(1, NUM_CLASSES + 1)]
    cfg = Config(dict(default_scope='mmdet', train_dataloader=dict(dataset=dict(
        type='CheckedCocoDataset', data_root=str(root), ann_file='train.json', data_prefix=dict(img='images/'),
        metainfo=dict(classes=classes), filter_cfg=dict(filter_empty_gt=True),
        pipeline=[dict(type='LoadImageFromFile'), dict(type='LoadAnnotations', with_bbox=True, with_mask=True)]))))
    start, start_cpu = time.perf_counter(), time.process_time()
    report = check(cfg, ['train'])
    seconds, cpu_seconds = time.perf_counter() - start, time.process_time() - start_cpu
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    print(*report.counts, *report.findings, sep='\n')
    print(f'{seconds:.1f} s ({cpu_seconds:.1f} s of one core), peak {peak:.0f} MB, of which {before:.0f} MB are the '
          'imported libraries')


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument('--images', type=at_least(1), default=NUM_IMAGES)
    parser.add_argument('--annotations', type=at_least(1), default=NUM_ANNOTATIONS)
    parser.add_argument('--measure', type=Path, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.measure:
        measure(args.measure)
        return
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        write_file(root / 'train.json', args.images, args.annotations)
        (root / 'images').mkdir()
        picture = io.BytesIO()
        Image.new('RGB', (640, 480)).save(picture, 'JPEG')
        for number in range(1, args.images + 1):
            (root / f'images/{number:012}.jpg').write_bytes(picture.getvalue())
        print(f'{args.images} images, {args.annotations} annotations, {(root / "train.json").stat().st_size >> 20} MB')
        subprocess.run([sys.executable, __file__, '--measure', folder], check=True)


if __name__ == '__main__':
    main()
