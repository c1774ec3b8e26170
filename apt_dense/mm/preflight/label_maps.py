"""Label maps of segmentation datasets: their files, and whether every class can occur with their ids."""
import os
from collections.abc import Iterator
from typing import Any

import mmcv
import numpy as np
from mmengine.config import Config
from mmengine.registry import DATASETS, TRANSFORMS, DefaultScope
from PIL import UnidentifiedImageError

from apt_dense.mm.preflight.configs_classes import dataset_classes
from apt_dense.mm.preflight.findings import STOP, WARN, Finding, Rule
from apt_dense.mm.preflight.headers import open_header, reads_pictures
from apt_dense.mm.preflight.label_map_files import FILE_RULES, check_files
from apt_dense.mm.preflight.parts import Part, class_of, kind_of, leaf_datasets, listed, steps_of

SETTINGS = Rule('dataset-settings', STOP, 'a segmentation dataset that its settings do not make', 'Correct them')
PREFIX = Rule(
    'no-picture-folder', STOP, 'a segmentation dataset without a folder of pictures that exists',
    "Set data_root, and data_prefix=dict(img_path='images/train', seg_map_path='labels/train') below it")
UNREADABLE = Rule(
    'label-maps-refused', STOP, 'label maps that LoadLabelMap refuses: no class ids, of another size, damaged',
    'Correct the files, or the settings that the message names')
UNREADABLE_SKIPPED = Rule(
    'label-maps-skipped', WARN, 'label maps that LoadLabelMap refuses, and which on_bad leaves out',
    "on_bad='skip' leaves them out")
PICTURE = Rule('pictures-refused', STOP, 'pictures of label maps that cannot be read', 'Repair or remove them')
IGNORED = Rule(
    'all-but-one-class-ignored', STOP,
    'label maps of which nothing, or one class alone, is left: 0/255 masks, reduce_zero_label where 0 is a class',
    'Ids are 0 to num_classes - 1, and 255 is ignored: convert the maps (255 to 1, for a mask), or correct '
    'reduce_zero_label or unknown_ids')
NEVER = Rule(
    'class-never-seen', WARN, 'classes of which no label map that was read has a pixel',
    'Are the ids, metainfo.classes and reduce_zero_label of one kind?')
LOSSY = Rule(
    'jpeg-label-maps', WARN, 'label maps in JPEG, which changes ids at the borders of objects',
    'Make them anew as PNG from where they come from')
RULES = (*FILE_RULES, SETTINGS, PREFIX, UNREADABLE, UNREADABLE_SKIPPED, PICTURE, IGNORED, NEVER, LOSSY)

NUM_MAPS = {None: 64, 'sample': 200}  # read of each dataset
FEW_MAPS = 8  # are enough if they hold every class, or there are too many classes to expect that
MORE_MAPS = 2000  # read if all but one class would be ignored
MANY_CLASSES = 32


def check_label_maps(cfg: Config, split: str, deep: str | None) -> Iterator[Finding]:
    """Check the segmentation datasets of a split; see RULES.

    Args:
        split: 'train', 'val' or 'test'.
        deep: None, the names of all files and up to 64 label maps; 'sample', up to 200 label maps and their pictures;
            'all', all of them.
    """
    for dataset, wrappers in leaf_datasets(cfg, split):
        kind = class_of(dataset[1], DATASETS, cfg)
        if kind is None or 'BaseSegDataset' not in [base.__name__ for base in kind.__mro__]:
            continue
        backend = (dataset[1].get('backend_args') or {}).get('backend', 'local')
        if backend == 'local' and '://' not in str(dataset[1].get('data_root') or ''):
            steps = [step for part in (*wrappers, dataset) for step in steps_of(part)]
            yield from _check_dataset(cfg, dataset, steps, deep, split)


def _check_dataset(cfg: Config, part: Part, steps: list[Part], deep: str | None, split: str) -> Iterator[Finding]:
    key, settings = part
    try:
        with DefaultScope.overwrite_default_scope(cfg.get('default_scope')):
            dataset = DATASETS.build(dict(settings, pipeline=[], lazy_init=True))
    except Exception as error:  # whatever a dataset's class says of its settings
        yield Finding(SETTINGS, key, _said(error.__context__ or error))  # without the registry's words
        return
    folder = dataset.data_prefix.get('img_path')
    if not folder or not os.path.isdir(folder):
        yield Finding(PREFIX, f'{key}.data_prefix.img_path',
                      f'{folder} is no folder' if folder else f'not set, data_prefix has {listed(dataset.data_prefix)}')
        return
    try:
        samples = _chosen(dataset.load_data_list(), settings.get('indices'))
    except Exception as error:
        yield Finding(SETTINGS, key, _said(error))
        return
    loads = next((step for _, step in steps if 'LabelMap' in kind_of(step) or 'Annotations' in kind_of(step)), None)
    skips = split == 'train' and any(
        kind_of(step) == 'GuardSamples' and step.get('on_bad') == 'skip' for _, step in steps)
    wants_maps = loads is not None and dataset.data_prefix.get('seg_map_path') is not None
    yield from check_files(key, dataset, samples, wants_maps, skips)
    load = _loader(loads, part, cfg) if wants_maps else None
    samples = [sample for sample in samples if os.path.isfile(sample.get('seg_map_path') or '')]
    if load is not None and samples:
        if dataset.seg_map_suffix.lower().endswith(('.jpg', '.jpeg')):
            yield Finding(LOSSY, f'{key}.seg_map_suffix', f'{dataset.seg_map_suffix!r}')
        known = reads_pictures(step for _, step in steps)
        yield from _check_ids(key, dataset, load, samples, deep, skips, known)


def _said(error: BaseException) -> str:
    return str(error).rstrip('. ') or type(error).__name__


def _chosen(samples: list[dict], indices: int | list[int] | None) -> list[dict]:
    """The samples that the dataset's ``indices`` leave."""
    if indices is None:
        return samples
    if isinstance(indices, int):
        return samples[:indices] if indices >= 0 else samples[indices:]
    return [samples[index] for index in indices]


def _loader(step: dict, dataset: Part, cfg: Config) -> Any:
    """The LoadLabelMap that reads a dataset as its pipeline does; None if it reads in a way of its own."""
    # mmsegmentation, which detection does not need.
    from apt_dense.mm.data.label_maps import LoadAnnotations, LoadLabelMap

    kind = class_of(step, TRANSFORMS, cfg)
    settings = {name: step[name] for name in ('backend_args', 'imdecode_backend') if name in step}
    if kind is not None and issubclass(kind, LoadLabelMap):
        settings = {name: value for name, value in step.items() if name != 'type'}
        return kind(**settings) if 1 <= step.get('num_classes', 0) <= 255 else None
    classes = dataset_classes(dataset, cfg)
    return LoadLabelMap(len(classes.names), **settings) if kind is LoadAnnotations and classes else None


def _spread(samples: list[dict], number: int | None) -> list[dict]:
    """``number`` samples at even distances; each eighth of them is spread over all too."""
    if number is None or len(samples) <= number:
        chosen = samples
    else:
        chosen = [samples[int(index)] for index in np.linspace(0, len(samples) - 1, number)]
    return [sample for start in range(FEW_MAPS) for sample in chosen[start::FEW_MAPS]]


def _check_ids(key: str, dataset: Any, load: Any, samples: list[dict], deep: str | None,
               skips: bool, known: bool) -> Iterator[Finding]:
    """``known``: the pictures are such as OpenCV reads."""
    found: dict[int, int] = {}  # id in the files -> class, 255 if it is ignored
    refused, broken, num_read = [], [], 0
    first = _spread(samples, NUM_MAPS.get(deep))
    taken = set(map(id, first))
    rest = [] if deep == 'all' else _spread([sample for sample in samples if id(sample) not in taken], MORE_MAPS)
    for number, sample in enumerate([*first, *rest]):
        seen = set(found.values()) - {255}
        if number >= len(first) and len(seen) > 1:  # more only to be sure that a class cannot occur: it may be rare
            break
        if deep is None and num_read >= FEW_MAPS and len(seen) > 1 and (
                load.num_classes > MANY_CLASSES or set(range(load.num_classes)) <= seen):
            break
        num_read += 1
        try:
            size = {'ori_shape': _size(sample['img_path'], deep is not None)} if known else {}
        except (OSError, ValueError) as error:
            broken.append(f'{sample["img_path"]}: {error}')
            size = {}
        try:
            ids = np.unique(load.read({**sample, **size}))
            classes = load.class_ids(ids[None], sample)[0]
        except (OSError, ValueError) as error:
            refused.append(str(error) if sample['seg_map_path'] in str(error) else f'{sample["seg_map_path"]}: {error}')
        else:
            found.update(zip(ids.astype(int).tolist(), classes.tolist(), strict=True))
    for rule, messages, what in ((PICTURE, broken, 'pictures'), (
            UNREADABLE_SKIPPED if skips else UNREADABLE, refused, 'label maps')):
        if messages:
            yield Finding(rule, key, f'{len(messages)} of {num_read} {what} that were read cannot be used, the first: '
                          f'{messages[0]}')
    if found:
        read = f'{num_read - len(refused)} of {len(samples)} label maps were read'
        yield from _check_occurring(key, dataset, load, found, read, deep)


def _check_occurring(key: str, dataset: Any, load: Any, found: dict[int, int], read: str,
                     deep: str | None) -> Iterator[Finding]:
    names = dataset.metainfo.get('classes') or range(load.num_classes)
    seen = sorted(set(found.values()) - {255})
    ignored = sorted(label for label, target in found.items() if target == 255)
    never = [names[index] for index in range(min(load.num_classes, len(names))) if index not in seen]
    ids = (f'with reduce_zero_label={dataset.reduce_zero_label} and num_classes={load.num_classes}, the ids '
           f'{listed(sorted(found), 20)} were found, of which {listed(ignored, 20) or "none"} '
           f'{"is" if len(ignored) == 1 else "are"} ignored; {read}')
    if not seen:
        yield Finding(IGNORED, key, f'every pixel is ignored: {ids}')
    elif len(seen) == 1 and never and ignored:
        yield Finding(IGNORED, key, f'only {names[seen[0]]!r} is left, {listed(never)} cannot occur: {ids}')
    elif never and (load.num_classes <= MANY_CLASSES or deep == 'all'):
        yield Finding(NEVER, key, f'no pixel of {listed(never, 10)}: {ids}')


def _size(path: str, decode: bool) -> tuple[int, int]:
    """(height, width) in pixels of a picture as it is loaded, turned as its EXIF data say.

    Args:
        decode: decode the whole file, which finds a damaged one.
    """
    try:
        with open_header(path) as picture:
            width, height = picture.size
            turned = picture.getexif().get(274, 1) > 4
    except UnidentifiedImageError:  # a format that OpenCV knows and Pillow does not, perhaps
        picture = mmcv.imread(path)
        if picture is None:
            raise
        return picture.shape[:2]
    if decode and mmcv.imread(path) is None:
        raise ValueError('it cannot be decoded')
    return (width, height) if turned else (height, width)
