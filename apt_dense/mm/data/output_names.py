"""Names of what a test writes for an image: the image's own, with its folders below the dataset's data prefix.

Images of one name in different folders are common (Cityscapes' cities, video frames); named by the file alone, their
outputs would overwrite each other.
"""
import os
from collections.abc import Iterator, Sequence
from typing import Any

IMAGES = ('img', 'img_path')  # keys of data_prefix
LABEL_MAPS = ('seg', 'seg_map_path')


def common_folder(dataset: Any, keys: Sequence[str] = IMAGES) -> str | None:
    """The folder that all data of a kind lie below: one dataset's data prefix, or what several have in common.

    Args:
        dataset: a dataset's config, a wrapper's, or a list of them.
        keys: of data_prefix.

    Returns:
        None if there is none, or if the datasets have nothing in common.
    """
    folders = list(_folders(dataset, keys))
    remote = ['://' in folder for folder in folders]
    if not folders or any(remote) and not all(remote):
        return None
    return os.path.commonpath(folders if any(remote) else map(os.path.abspath, folders)) or None


def _folders(node: Any, keys: Sequence[str]) -> Iterator[str]:
    if isinstance(node, (list, tuple)):
        for item in node:
            yield from _folders(item, keys)
    elif isinstance(node, dict) and (node.get('dataset') or node.get('datasets')):
        for name in ('dataset', 'datasets'):
            yield from _folders(node.get(name), keys)
    elif isinstance(node, dict):
        prefixes = node.get('data_prefix') or {}
        prefix = next((prefixes[key] for key in keys if prefixes.get(key)), '')
        root = node.get('data_root') or ''
        if prefix or (root and keys == IMAGES):
            yield prefix if '://' in prefix else os.path.join(root, prefix)


def name_below(path: str, folder: str | None) -> str:
    """A file's path below a folder; of a file elsewhere its whole path, as a relative one."""
    relative = os.path.relpath(path, folder or os.curdir)
    if relative.split(os.sep)[0] == os.pardir:
        return os.path.abspath(path).lstrip(os.sep)
    return relative
