#!/usr/bin/env python
"""A small dataset of synthetic images that keep a wanted share of the tokens, and configs that test on it.

    python tools/benchmark/synthetic_dataset.py whole_det --apt apt_eva02_l_coco --dense eva02_l_coco --img-size 1536 \\
        --num-images 55
    python tools/benchmark/benchmark_model.py whole_det/apt.py --against whole_det/dense.py --amp --num-batches 55 \\
        --max-iter 50

Speed needs images of the right numbers of tokens, no photographs: no two of them keep the same number, and with the
thresholds of whole_det/apt.py, 1 for every size, the model keeps that share of each.  Accuracy on them means nothing.
A detector is tested with mmdetection's usual setting: without a checkpoint it finds nothing then, and makes no masks.
"""
import argparse
import json
import sys
from pathlib import Path
from typing import Any

from apt_dense.benchmark.inputs import SYNTHETIC_THRESHOLD, synthetic_image, synthetic_scales
from apt_dense.command_line import at_least, share
from apt_dense.extras import from_extra
from apt_dense.mm.cli import launch
from apt_dense.mm.inference.opening import USUAL_TEST

with from_extra('mm'):
    import cv2
    import numpy as np
    from mmengine.config import Config
    from mmengine.registry import DATASETS, DefaultScope

CONFIGS = Path(__file__).parents[2] / 'configs'
PATCH_SIZE = 16


def parse_args(arguments: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('out', type=Path, help='folder for the images and the configs')
    parser.add_argument('--apt', required=True, help='name of a config of EVA-02 with APT')
    parser.add_argument('--dense', required=True, help='name of its dense twin')
    parser.add_argument('--img-size', type=at_least(1), required=True, help='side of the images, the config\'s')
    parser.add_argument('--num-images', type=at_least(1), default=55)
    parser.add_argument('--kept', type=share, default=0.7, help='share of the tokens (0.7)')
    return parser.parse_args(arguments)


def write_images(folder: Path, img_size: int, kept: float, num_scales: int, num_images: int) -> None:
    """Write NUMBER.png, of which each keeps three tokens more than the one before, and label maps of one class."""
    for name in ('images', 'labels'):
        (folder / name).mkdir(parents=True, exist_ok=True)
    side = img_size // PATCH_SIZE
    for number in range(num_images):
        share = kept + 3 * (number - num_images // 2) / side**2
        scales = synthetic_scales(share, side, side, num_scales, number)
        image = synthetic_image(scales, PATCH_SIZE, number).permute(1, 2, 0)
        cv2.imwrite(str(folder / f'images/{number:04}.png'), image.numpy().astype(np.uint8))
        cv2.imwrite(str(folder / f'labels/{number:04}.png'), np.ones((img_size, img_size), np.uint8))


def write_objects(path: Path, img_size: int, classes: tuple[str, ...], num_images: int) -> None:
    """Write a COCO file in which every class has an object, and every image at least one."""
    images = [dict(id=number, file_name=f'{number:04}.png', height=img_size, width=img_size)
              for number in range(num_images)]
    x, side = img_size // 4, img_size // 2
    polygon = [x, x, x + side, x, x + side, x + side, x, x + side]
    objects = [dict(id=number + 1, image_id=number % num_images, category_id=number % len(classes), iscrowd=0,
                    bbox=[x, x, side, side], area=side**2, segmentation=[polygon])
               for number in range(max(num_images, len(classes)))]
    categories = [dict(id=number, name=name) for number, name in enumerate(classes)]
    path.write_text(json.dumps(dict(images=images, annotations=objects, categories=categories)))


def write_config(path: Path, base: str, is_detector: bool, thresholds: tuple[float, ...]) -> None:
    """Write a config that inherits one of the project's, and tests on the images beside it."""
    folder = path.parent.resolve()
    dataset = dict(data_root=f'{folder}/') | (
        dict(ann_file='objects.json', data_prefix=dict(img='images/')) if is_detector else
        dict(data_prefix=dict(img_path='images', seg_map_path='labels'), img_suffix='.png'))
    lines = [f'_base_ = {str(CONFIGS / f"{base}.py")!r}', f'test_dataloader = dict(dataset={dataset!r})']
    model: dict[str, Any] = dict(backbone=dict(scorer='entropy', thresholds=thresholds)) if thresholds else {}
    if is_detector:  # random weights give all boxes much the same score: the published setting keeps 8000 of them
        model['test_cfg'] = dict(rcnn=USUAL_TEST | dict(nms=USUAL_TEST['nms'] | dict(_delete_=True)))
    if model:
        lines.append(f'model = {model!r}')
    if is_detector:
        lines.append(f'test_evaluator = dict(ann_file={str(folder / "objects.json")!r})')
    path.write_text('\n'.join(lines) + '\n')


def main(arguments: list[str] | None = None) -> None:
    args = parse_args(arguments)
    cfg = Config.fromfile(CONFIGS / f'{args.apt}.py')
    num_scales = cfg.model.backbone.num_scales
    is_detector = launch.scope_of(cfg) == 'mmdet'
    write_images(args.out, args.img_size, args.kept, num_scales, args.num_images)
    if is_detector:
        dataset = cfg.test_dataloader.dataset
        with DefaultScope.overwrite_default_scope('mmdet'):
            known = DATASETS.get(dataset.type).METAINFO
        classes = tuple(dataset.get('metainfo', known)['classes'])
        write_objects(args.out / 'objects.json', args.img_size, classes, args.num_images)
    write_config(args.out / 'apt.py', args.apt, is_detector, (SYNTHETIC_THRESHOLD,) * (num_scales - 1))
    write_config(args.out / 'dense.py', args.dense, is_detector, ())
    print(f'{args.out}: {args.num_images} images of {args.img_size} px that keep {args.kept:g} of the tokens')


if __name__ == '__main__':
    sys.exit(launch.run_tool(main))
