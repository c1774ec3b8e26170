"""Pictures and label maps by their names: which belong together, and which are left out."""
import os
from collections import Counter
from collections.abc import Iterable, Iterator
from pathlib import PurePath
from typing import Any

from mmengine.fileio import list_dir_or_file

from apt_dense.mm.preflight.findings import STOP, WARN, Finding, Rule
from apt_dense.mm.preflight.parts import listed

PICTURES = ('.jpg', '.jpeg', '.png', '.bmp', '.tif', '.tiff', '.webp', '.gif', '.ppm', '.pgm', '.jp2')

EMPTY = Rule(
    'no-pictures', STOP, 'a folder in which no file ends in img_suffix',
    'Set img_suffix, or data_prefix.img_path, to what is there')
DROPPED = Rule(
    'pictures-of-another-suffix', STOP,
    'pictures with a label map that are left out, because they do not end in img_suffix (.JPG is not .jpg)',
    'Rename them, or load them by a second dataset with their img_suffix (ConcatDataset)')
BESIDE = Rule(
    'pictures-beside', WARN, 'pictures without a label map that are left out, because they do not end in img_suffix',
    'Rename them if they belong to the data')
NO_MAP = Rule(
    'pictures-without-map', STOP, 'pictures whose label map does not exist',
    'Add the maps, take the pictures out, or correct seg_map_suffix or data_prefix.seg_map_path')
NO_MAP_SKIPPED = Rule(
    'pictures-without-map-skipped', WARN, 'pictures whose label map does not exist, and which on_bad leaves out',
    "on_bad='skip' leaves them out")
NO_PICTURE = Rule(
    'maps-without-picture', WARN, 'label maps to which no picture belongs', 'Add the pictures, or take the maps out')
LISTED = Rule(
    'listed-pictures-missing', STOP, 'pictures that ann_file lists and that do not exist',
    'ann_file has one name a line, without folder and suffix: correct it, img_suffix or data_prefix.img_path')
FOLDER = Rule(
    'list-is-a-folder', WARN, 'an ann_file that is a folder: all pictures are taken',
    'Name the file that lists one picture a line, or leave ann_file out')
SAME = Rule(
    'map-is-the-picture', STOP, 'pictures that are taken for their own label maps',
    'Give data_prefix.seg_map_path a folder of its own, or seg_map_suffix another end than img_suffix')
FILE_RULES = (EMPTY, DROPPED, BESIDE, NO_MAP, NO_MAP_SKIPPED, NO_PICTURE, LISTED, FOLDER, SAME)


def files_below(folder: str | None) -> list[str]:
    """Names relative to the folder, inside others too, as mmsegmentation finds them; none if it does not exist."""
    if not folder or not os.path.isdir(folder):
        return []
    return sorted(list_dir_or_file(folder, list_dir=False, recursive=True))


def check_files(key: str, dataset: Any, samples: list[dict], wants_maps: bool, skips: bool) -> Iterator[Finding]:
    """Compare the names of pictures and label maps.

    Args:
        key: of the dataset in the config.
        dataset: a BaseSegDataset.
        samples: its samples: img_path, seg_map_path.
        wants_maps: the pipeline loads label maps.
        skips: the pipeline leaves out what does not load.
    """
    folder, map_folder = dataset.data_prefix.get('img_path'), dataset.data_prefix.get('seg_map_path')
    maps = files_below(map_folder) if wants_maps else []
    if dataset.ann_file and not os.path.isdir(dataset.ann_file):
        absent = [sample['img_path'] for sample in samples if not os.path.isfile(sample['img_path'])]
        if absent:
            yield Finding(LISTED, f'{key}.ann_file', f'{dataset.ann_file} lists {len(samples)} pictures, of which '
                          f'{len(absent)} do not exist: {listed(absent, 3)}')
        dropped = set()
    else:
        if dataset.ann_file:
            yield Finding(FOLDER, f'{key}.ann_file', f'{dataset.ann_file} is a folder, and {len(samples)} pictures are '
                          f'taken from {folder}')
        names = _other_pictures(dataset, folder, map_folder)
        dropped = {name for name in names if _map_of(name, dataset.seg_map_suffix) in set(maps)}
        yield from _check_suffix(key, dataset, samples, folder, sorted(dropped), sorted(set(names) - dropped))
    if wants_maps and samples:
        yield from _check_pairs(key, dataset, samples, maps, dropped, skips)


def _map_of(name: str, suffix: str) -> str:
    return os.path.splitext(name)[0] + suffix


def _suffixes(names: Iterable[str]) -> str:
    """'3 .JPG, 1 .txt'."""
    counts = Counter(PurePath(name).suffix or 'without suffix' for name in names)
    return listed(f'{count} {suffix}' for suffix, count in counts.most_common())


def _other_pictures(dataset: Any, folder: str, map_folder: str | None) -> list[str]:
    """Pictures that do not end in img_suffix, and are no label maps that lie in the same folder or below it."""
    names = [name for name in files_below(folder)
             if not name.endswith(dataset.img_suffix) and os.path.splitext(name)[1].lower() in PICTURES]
    if map_folder is None:
        return names
    inside = os.path.relpath(map_folder, folder)
    if inside == '.':
        return [name for name in names if not name.endswith(dataset.seg_map_suffix)]
    return [name for name in names if not name.startswith(inside + os.sep)]


def _check_suffix(key: str, dataset: Any, samples: list[dict], folder: str, dropped: list[str],
                  beside: list[str]) -> Iterator[Finding]:
    suffix = dataset.img_suffix
    if not samples:
        files = files_below(folder)
        held = f' ({_suffixes(files)})' if files else ''
        yield Finding(EMPTY, f'{key}.img_suffix',
                      f'no file ends in {suffix!r} in {folder}, which has {len(files)} files{held}')
        return
    for rule, names in ((DROPPED, dropped), (BESIDE, beside)):
        if names:
            yield Finding(rule, f'{key}.img_suffix', f'{len(names)} pictures do not end in {suffix!r} in {folder} '
                          f'({_suffixes(names)}) beside {len(samples)} that do: {listed(names, 3)}')


def _check_pairs(key: str, dataset: Any, samples: list[dict], maps: list[str], dropped: set[str],
                 skips: bool) -> Iterator[Finding]:
    suffix, map_folder = dataset.seg_map_suffix, dataset.data_prefix['seg_map_path']
    same = [sample['img_path'] for sample in samples if sample['img_path'] == sample['seg_map_path']]
    if same:
        yield Finding(SAME, f'{key}.data_prefix', f'{len(same)} pictures: {listed(same, 3)}')
        return
    there = {os.path.join(map_folder, name) for name in maps}
    absent = [sample for sample in samples
              if sample['seg_map_path'] not in there and not os.path.isfile(sample['seg_map_path'])]
    if absent:
        stem = os.path.splitext(os.path.basename(absent[0]['img_path']))[0]
        like = next((f'; {name} is there' for name in maps if os.path.basename(name).startswith(stem)), '')
        yield Finding(
            NO_MAP_SKIPPED if skips else NO_MAP, f'{key}.data_prefix.seg_map_path',
            f'{len(absent)} of {len(samples)} pictures have no label map that ends in {suffix!r} in {map_folder} '
            f'({_suffixes(maps) or "no file"}): {listed((sample["img_path"] for sample in absent), 3)}, which wants '
            f'{os.path.basename(absent[0]["seg_map_path"])}{like}')
    if not dataset.ann_file or os.path.isdir(dataset.ann_file):
        used = {sample['seg_map_path'] for sample in samples}
        used |= {os.path.join(map_folder, _map_of(name, suffix)) for name in dropped}
        left = [name for name in maps if name.endswith(suffix) and os.path.join(map_folder, name) not in used]
        if left:
            yield Finding(NO_PICTURE, f'{key}.data_prefix.img_path',
                          f'{len(left)} of {len(maps)} label maps in {map_folder} have no picture that ends in '
                          f'{dataset.img_suffix!r} in {dataset.data_prefix["img_path"]}: {listed(left, 3)}')
