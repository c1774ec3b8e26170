"""Small COCO files, good ones to be spoiled."""
import copy
import json
from pathlib import Path

import cv2
import numpy as np

CLASSES = ('cat', 'dog', 'emu')
WIDTH, HEIGHT = 64, 48


def annotation(number: int, image: int, category: int, box: list, **more) -> dict:
    """An object with its box as polygon."""
    x, y, w, h = box
    return dict(dict(id=number, image_id=image, category_id=category, bbox=box, area=w * h, iscrowd=0,
                     segmentation=[[x, y, x + w, y, x + w, y + h, x, y + h]]), **more)


def coco(num_images: int = 4, classes=CLASSES, **changes) -> dict:
    """A good file: one object an image, classes in turn."""
    content = dict(
        images=[dict(id=number, file_name=f'{number}.png', width=WIDTH, height=HEIGHT)
                for number in range(1, num_images + 1)],
        annotations=[annotation(number, number, 1 + (number - 1) % len(classes), [4 + number, 6, 20, 16])
                     for number in range(1, num_images + 1)],
        categories=[dict(id=number, name=name) for number, name in enumerate(classes, start=1)])
    return copy.deepcopy({**content, **changes})


def write(root: Path, content: dict | list | str | bytes, name: str = 'a.json', pictures: bool = True) -> Path:
    """Write a file, and its pictures into root/img."""
    root.mkdir(parents=True, exist_ok=True)
    path = root / name
    if isinstance(content, bytes):
        path.write_bytes(content)
        return path
    path.write_text(content if isinstance(content, str) else json.dumps(content))
    (root / 'img').mkdir(exist_ok=True)
    for image in content.get('images', ()) if pictures and isinstance(content, dict) else ():
        if isinstance(image.get('file_name'), str):
            target = root / 'img' / image['file_name'].replace('\\', '/')
            target.parent.mkdir(parents=True, exist_ok=True)
            cv2.imwrite(str(target), np.full((HEIGHT, WIDTH, 3), 90, np.uint8))
    return path


def dataset(root: Path, kind: str = 'CheckedCocoDataset', masks: bool = False, test_mode: bool = False, **more) -> dict:
    """A dataset's config for the file that ``write`` has written."""
    return dict(dict(type=kind, data_root=f'{root}/', ann_file='a.json', data_prefix=dict(img='img/'),
                     metainfo=dict(classes=CLASSES), test_mode=test_mode, pipeline=[
                         dict(type='LoadImageFromFile'), dict(type='LoadAnnotations', with_bbox=True, with_mask=masks),
                         dict(type='PackDetInputs')]), **more)
