"""Predictions into a folder: pictures, COCO's JSON, label maps, videos."""
import errno
import itertools
import json
import os
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import Any

import cv2
import numpy as np
from PIL import Image

from apt_dense.core.files import PARTIAL, NotWritten, write_atomically
from apt_dense.drawing.saving import save_picture
from apt_dense.mm.errors import DataError
from apt_dense.mm.inference.coco_ids import CocoIds, image_id_of
from apt_dense.mm.inference.results import Result

FRAMES_PER_SECOND = 25.0  # where a video does not say
WRITE_BUFFER = 2**18  # bytes that OpenCV collects before it writes them


class PredictionWriter:
    """Writes results as they come; a context manager, which finishes videos and JSON.

    Written into the folder: ``NAME.png``, the picture with what was found, or ``NAME.mp4`` for a video;
    ``predictions.json`` with images, categories and, for detection, annotations with scores, in COCO's layout; for
    segmentation ``labels/NAME.png``, the label of each pixel.  Pictures of one name get numbers.

    Args:
        folder: made with the first result, if it is not there.
        task, classes: of the model.
        min_score: of the boxes that are drawn; the JSON has all.
        draw: draw at all.
        ids: of a dataset, for the JSON.  Without, a picture has the number in its file's name, as COCO's do, or its
            place where the name is none or the number is taken; class i is category i + 1.

    Raises:
        DataError: if the folder has predictions already, or ``ids`` lack a class.
    """

    def __init__(self, folder: Path, task: str, classes: tuple[str, ...], min_score: float = 0.3, draw: bool = True,
                 ids: CocoIds | None = None):
        self.folder, self.task, self.min_score, self.draw = folder, task, min_score, draw
        check_unused(folder)
        self._ids = ids
        self._category_ids = list(range(1, len(classes) + 1)) if ids is None else ids.of_classes(classes)
        self._content: dict[str, list[dict[str, Any]]] = dict(images=[], annotations=[], categories=[
            dict(id=number, name=name) for number, name in zip(self._category_ids, classes, strict=True)])
        self._image_ids: set[int] = set()
        self._taken: set[str] = set()
        self._video: tuple[str, VideoFile] | None = None

    def __enter__(self) -> 'PredictionWriter':
        return self

    def __exit__(self, kind: type | None, error: BaseException | None, traceback: TracebackType | None) -> None:
        if error is None:
            self._end_video()
        elif self._video is not None:
            self._video[1].discard()
        if not self._content['images']:
            return
        if self.task == 'seg':
            del self._content['annotations']
        with suppress(*[NotWritten] if error is not None else []):  # what has ended it says why
            write_atomically(self.folder / 'predictions.json', json.dumps(self._content) + '\n')

    def add(self, result: Result) -> None:
        """Write one result."""
        video, frame = _video_of(result)
        name = self._free_name(result.name if video is None else f'{Path(video).stem}_{frame:06d}')
        number = self._image_id(result.name)
        height, width = result.size
        image = dict(id=number, file_name=result.name, height=height, width=width,
                     num_tokens=result.tokens.num_tokens, kept_tokens=result.tokens.kept)
        if self.task == 'seg':
            image['label_map'] = f'labels/{name}.png'
            self._write_labels(result, name)
        if self.draw and video is None:
            result.draw(self.folder / f'{name}.png', self.min_score)
        elif self.draw:
            self._add_frame(video, result)
        self._content['images'].append(image)
        if self.task == 'det':
            for entry in result.to_coco(number, self._category_ids):
                entry['area'], entry['iscrowd'] = entry['bbox'][2] * entry['bbox'][3], 0
                self._content['annotations'].append(dict(id=len(self._content['annotations']) + 1, **entry))

    def _image_id(self, name: str) -> int:
        place = len(self._content['images']) + 1
        if self._ids is not None:
            return self._ids.of_image(name)
        number = image_id_of(name, place)
        if number in self._image_ids:
            number = next(free for free in itertools.count(place) if free not in self._image_ids)
        self._image_ids.add(number)
        return number

    def _free_name(self, path: str) -> str:
        """The file's name without its ending, numbered where it is taken."""
        stem = name = Path(path).stem
        number = 2
        while name in self._taken:
            name, number = f'{stem}_{number}', number + 1
        self._taken.add(name)
        return name

    def _write_labels(self, result: Result, name: str) -> None:
        kind = np.uint8 if len(result.classes) < 256 else np.uint16
        save_picture(Image.fromarray(result.label_map.astype(kind)), self.folder / 'labels' / f'{name}.png')

    def _add_frame(self, video: str, result: Result) -> None:
        if self._video is None or self._video[0] != video:
            self._end_video()
            path = self.folder / f'{self._free_name(video)}.mp4'
            self._video = video, VideoFile(path, video, result.size[::-1])
        self._video[1].write(np.asarray(result.draw(min_score=self.min_score)))

    def _end_video(self) -> None:
        if self._video is not None:
            ended, self._video = self._video[1], None
            ended.close()


def check_unused(folder: Path) -> None:
    """Raise DataError if a folder has predictions already."""
    if (folder / 'predictions.json').exists():
        raise DataError(f'{folder} has predictions already: choose another folder, or remove it')


class VideoFile:
    """A video that is written frame by frame, under another name until it is whole.

    Args:
        path: ends in .mp4; its folder is made if it is not there.
        like: the path of a video that is as fast.
        size: (width, height) in pixels.

    Raises:
        DataError: if OpenCV cannot write it.
    """

    def __init__(self, path: Path, like: str, size: tuple[int, int]):
        self._path, self._frames = path, 0
        self._partial = path.with_name(f'{path.stem}{PARTIAL}{path.suffix}')  # OpenCV looks at the ending
        path.parent.mkdir(parents=True, exist_ok=True)
        rate = cv2.VideoCapture(like).get(cv2.CAP_PROP_FPS) or FRAMES_PER_SECOND
        self._writer = cv2.VideoWriter(str(self._partial), cv2.VideoWriter_fourcc(*'mp4v'), rate, size)
        if not self._writer.isOpened():
            self.discard()
            raise DataError(f'{path} cannot be written as a video: give its pictures instead')

    def write(self, frame: np.ndarray) -> None:
        """Add a frame (H, W, 3) uint8, RGB.

        Raises:
            NotWritten: if the file has no room for it; nothing is left behind.
        """
        try:
            self._check_room(frame.nbytes + WRITE_BUFFER)
        except OSError as error:
            self.discard()
            raise NotWritten(error.errno, error.strerror, str(self._path)) from error
        self._writer.write(np.ascontiguousarray(frame[..., ::-1]))
        self._frames += 1

    def _check_room(self, num_bytes: int) -> None:
        """Take and give back room behind the file's end: OpenCV tells nobody that it could not write there."""
        with open(self._partial, 'r+b') as file:
            end = file.seek(0, os.SEEK_END)
            try:
                os.posix_fallocate(file.fileno(), end, num_bytes)
            finally:
                file.truncate(end)

    def close(self) -> None:
        """Finish it.

        Raises:
            NotWritten: if frames are missing, which OpenCV tells nobody; nothing is left behind.
        """
        self._writer.release()
        found = int(cv2.VideoCapture(str(self._partial)).get(cv2.CAP_PROP_FRAME_COUNT))
        if found < self._frames:
            self.discard()
            raise NotWritten(errno.ENOSPC, f'only {max(found, 0)} of {self._frames} frames are in it', str(self._path))
        os.replace(self._partial, self._path)

    def discard(self) -> None:
        """Give it up; nothing is left behind."""
        self._writer.release()
        self._partial.unlink(missing_ok=True)


def _video_of(result: Result) -> tuple[str | None, int]:
    """The path of the video that a result is a frame of, and the frame's number; (None, 0) for a picture."""
    path, _, frame = result.name.rpartition('#')
    return (path, int(frame)) if path and frame.isdecimal() and not Path(result.name).is_file() else (None, 0)
