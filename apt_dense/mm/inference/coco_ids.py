"""The numbers that pictures and classes have in files of COCO's layout."""
from collections.abc import Iterable
from pathlib import Path

from apt_dense.mm.data.json_stream import LIST, read_sections
from apt_dense.mm.errors import DataError


def image_id_of(name: str, number: int) -> int:
    """The number in a file's name, as COCO's are: 'val2017/000000000139.jpg' is 139; else ``number``.

    Args:
        name: of a ``Result``.  A video's frame and an array take ``number``.
    """
    stem, suffix = Path(name).stem, Path(name).suffix
    return int(stem) if stem.isascii() and stem.isdecimal() and '#' not in suffix else number


class CocoIds:
    """The ids of a dataset's pictures, by their file's name, and of its classes.

    Args:
        file: the annotations, in COCO's layout.

    Raises:
        DataError: if it cannot be read, or has no images or no categories.
    """

    def __init__(self, file: str | Path):
        self._file, self._images, self._categories = file, {}, {}
        try:
            for section, item in read_sections(str(file)):
                if item is LIST or section not in ('images', 'categories'):
                    continue
                if section == 'images':
                    self._images[item['file_name']] = item['id']
                else:
                    self._categories[item['name']] = item['id']
        except OSError as error:
            raise DataError(f'{file} cannot be read: {error.strerror}') from error
        except DataError as error:
            raise DataError(f'{file} {error}') from error
        except (KeyError, TypeError) as error:
            raise DataError(f"{file} has an image or a category without {error}, wanted COCO's layout") from error
        if not self._images or not self._categories:
            raise DataError(f'{file} has {len(self._images)} images and {len(self._categories)} categories: give '
                            "annotations in COCO's layout")

    def of_image(self, name: str) -> int:
        """The id of a picture, whose path ends in the file's name in the dataset.

        Raises:
            DataError: if there is none.
        """
        parts = Path(name).parts
        for start in range(len(parts)):
            found = self._images.get('/'.join(parts[start:]))
            if found is not None:
                return found
        raise DataError(f'{name} is no picture of {self._file}, whose pictures are named like '
                        f'{next(iter(self._images))}: give the file of these pictures, or leave it out')

    def of_classes(self, classes: Iterable[str]) -> list[int]:
        """The id of each class.

        Raises:
            DataError: if there is none.
        """
        classes = list(classes)
        absent = [name for name in classes if name not in self._categories]
        if absent:
            raise DataError(f'the model has the class {absent[0]!r}, which {self._file} has not: it has '
                            f'{", ".join(list(self._categories)[:5])}, ...')
        return [self._categories[name] for name in classes]
