"""Pictures for classification: a folder for each class, as ImageNet is usually kept."""
from pathlib import Path

from mmengine.dataset import BaseDataset
from mmengine.registry import DATASETS

from apt_dense.mm.errors import DataError
from apt_dense.python_torchvision import import_torchvision


@DATASETS.register_module()
class ClassFolderDataset(BaseDataset):
    """A folder for each class with its pictures, at any depth: data_root/train/n01440764/x.JPEG.

    torchvision lists them: classes in the order of their folders' names, which are their names unless ``metainfo``
    gives others.  It reads no annotation file.

    Args:
        num_classes: how many folders there must be.  A class that is missing would move the numbers of those after it.
        data_root, data_prefix, metainfo, pipeline, ...: of mmengine's ``BaseDataset``; ``data_prefix`` is
            ``dict(img_path='train')``, the folder with the classes' folders.

    Raises:
        DataError: for a folder without folders, a class without pictures, or another number of classes.
    """

    def __init__(self, num_classes: int | None = None, **kwargs):
        self.num_classes = num_classes
        super().__init__(**kwargs)

    def load_data_list(self) -> list[dict]:
        """img_path, gt_label and sample_idx of each picture."""
        root = Path(self.data_prefix['img_path'])
        names, samples = list_classes(root)
        check_number(root, names, self.num_classes)
        given = self._metainfo.get('classes')
        if given is not None and len(given) != len(names):
            raise DataError(f'metainfo.classes has {len(given)} names, and {root} {len(names)} folders of classes: '
                            'give one name for each folder, in the order of the folders, or none')
        self._metainfo.setdefault('classes', tuple(names))
        return [dict(img_path=path, gt_label=label) for path, label in samples]

    def filter_data(self) -> list[dict]:
        """All pictures."""
        return self.data_list


def check_number(root: Path, names: list[str], wanted: int | None) -> None:
    """Raise DataError if there are not as many classes as wanted; None is any number."""
    if wanted not in (None, len(names)):
        raise DataError(f'{root} has {len(names)} folders of classes, from {names[0]} to {names[-1]}, and num_classes '
                        f"is {wanted}: put the missing ones there, or set num_classes of the datasets and of the "
                        "model's head")


def list_classes(root: Path) -> tuple[list[str], list[tuple[str, int]]]:
    """The names of the classes, sorted, and (path, class number) of each picture.

    Raises:
        DataError: for a folder that is not there, holds no folders, or a class without pictures.
    """
    folder = import_torchvision('torchvision.datasets.folder')
    if not root.is_dir():
        raise DataError(f'{root} is not a folder: wanted one with a folder for each class')
    if not any(child.is_dir() for child in root.iterdir()):
        pictures = sum(child.suffix.lower() in folder.IMG_EXTENSIONS for child in root.iterdir())
        raise DataError(f'{root} holds {pictures} pictures and no folders: wanted a folder for each class. '
                        "(ImageNet's validation pictures come without: torchvision.datasets.ImageNet(ROOT, 'val') "
                        'sorts them)')
    try:
        dataset = folder.ImageFolder(str(root))
    except FileNotFoundError as error:
        raise DataError(f'{root}: {error}') from error
    return dataset.classes, dataset.samples
