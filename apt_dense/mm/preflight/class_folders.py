"""Folders of classes: the same in all splits, and as many as the model has classes."""
from collections.abc import Iterator, Sequence
from pathlib import Path

from mmengine.config import Config

from apt_dense.mm.errors import DataError
from apt_dense.mm.preflight.datasets import Source, datasets_of, is_remote, joined
from apt_dense.mm.preflight.findings import STOP, Finding, Rule

UNUSABLE = Rule(
    'class-folders', STOP, 'folders of classes that are not there, hold no pictures or are too few or many',
    'Put a folder for each class there, with its pictures')
OTHER_CLASSES = Rule(
    'other-class-folders', STOP, 'splits whose folders of classes have other names: labels would mean other classes',
    'Give all splits the same folders')
HEAD = Rule(
    'classes-of-the-head', STOP, 'a classifier for another number of classes than there are folders',
    'Set model.num_classes and model.data_preprocessor.num_classes to the number of folders')
RULES = (UNUSABLE, OTHER_CLASSES, HEAD)


def check_class_folders(cfg: Config, splits: Sequence[str]) -> Iterator[Finding]:
    """Check the datasets that have a folder for each class; see RULES."""
    first: tuple[str, list[str]] | None = None
    for split in splits:
        for source in datasets_of(cfg, split):
            folder = _folder(source)
            if folder is None:
                continue
            try:
                names = _classes(source, folder)
            except DataError as error:
                yield Finding(UNUSABLE, source.key, str(error))
                continue
            first = first or (str(folder), names)
            if names != first[1]:
                yield Finding(OTHER_CLASSES, str(folder), _difference(names, *first))
            yield from _check_model(cfg, folder, len(names))


def _folder(source: Source) -> Path | None:
    if source.kind is None or source.kind.__name__ != 'ClassFolderDataset' or is_remote(source.settings):
        return None
    return Path(joined(source.settings, (source.settings.get('data_prefix') or {}).get('img_path', '')))


def _classes(source: Source, folder: Path) -> list[str]:
    from apt_dense.mm.data.class_folders import check_number, list_classes  # which need torchvision
    names, _ = list_classes(folder)
    check_number(folder, names, source.settings.get('num_classes'))
    return names


def _difference(names: list[str], other: str, wanted: list[str]) -> str:
    more, fewer = sorted(set(names) - set(wanted)), sorted(set(wanted) - set(names))
    parts = [f'{what} {", ".join(some[:3])}{", ..." if len(some) > 3 else ""}'
             for what, some in (('has', more), ('lacks', fewer)) if some]
    return f'{" and ".join(parts)}, unlike {other}'


def _check_model(cfg: Config, folder: Path, count: int) -> Iterator[Finding]:
    model = cfg.get('model') or {}
    places = {'model.num_classes': model.get('num_classes'), 'model.data_preprocessor.num_classes': (
        model.get('data_preprocessor') or {}).get('num_classes')}
    for key, number in places.items():
        if isinstance(number, int) and number != count:
            yield Finding(HEAD, key, f'{number}, and {folder} has {count} folders of classes')
