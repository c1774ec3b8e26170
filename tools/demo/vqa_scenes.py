"""Scenes of the demo dataset with questions whose answers are exact, in the json of LLaVA's conversations.

What is at one side, how many objects there are, which colour one has, which of two is larger: all follow from the map
of object ids, and a question is asked only where its answer is clear.  Written below a folder::

    {train,val}.json          rows of LLaVA's format, one for each scene, with some questions
    {train,val}/000000.png    the scenes
    {train,val}_cells.npy     (scenes, 8, 8) uint8: what is in each cell of 14 px, 0 the background, else the category
    meta.json                 the arguments that it was made with
"""
import json
import os
import shutil
from itertools import permutations
from pathlib import Path

from objects import CLASSES
from scenes import SPLITS, Recipe, Scene, load_photos, make_scene

from apt_dense.extras import from_extra

with from_extra('mm'):
    import cv2
    import numpy as np

SIDE_PX, PATCH_PX = 112, 14
RECIPE = Recipe((SIDE_PX, SIDE_PX), (28, 64), (1.2, 1.2), (0.25, 0.35, 0.25, 0.15))
COLOURS = dict(zip(CLASSES, ('blue', 'brown', 'pink', 'red', 'yellow'), strict=True))
NUMBERS = ('zero', 'one', 'two', 'three', 'four')
SIDES = {'left': (1, 1), 'right': (1, -1), 'top': (0, 1), 'bottom': (0, -1)}  # axis of the centre, and its sign
CLEAR_PX = 12  # by which the outermost object is further out than the next one
CLEAR_RATIO = 1.4  # of two areas
IN_CELL = 0.3  # of a cell, that an object covers at least to be in it
WORDS = ('what', 'is', 'at', 'the', 'how', 'many', 'objects', 'are', 'there', 'which', 'colour', 'object', 'larger',
         'or', '?', ',', *SIDES, *CLASSES, *COLOURS.values(), *NUMBERS)


def questions_of(scene: Scene, rng: np.random.Generator) -> list[tuple[str, str]]:
    """Questions about a scene and their answers, in random order: words with spaces between them."""
    names = [CLASSES[category - 1] for category in scene.category_ids]
    masks = [scene.object_ids == number for number in range(1, len(names) + 1)]
    pairs = [('how many objects are there ?', NUMBERS[len(names)])]
    centres = np.array([np.argwhere(mask).mean(0) for mask in masks]).reshape(-1, 2)
    for side, (axis, sign) in SIDES.items():
        places = np.sort(sign * centres[:, axis])
        if len(places) == 1 or len(places) > 1 and places[1] - places[0] >= CLEAR_PX:
            name = names[int((sign * centres[:, axis]).argmin())]
            # One of the two: in a conversation one answer gives the other away.
            pairs.append((f'what is at the {side} ?', name) if rng.random() < 0.5 else
                         (f'which colour is the object at the {side} ?', COLOURS[name]))
    areas = {name: int(mask.sum()) for name, mask in zip(names, masks, strict=True) if names.count(name) == 1}
    for first, second in permutations(areas, 2):
        small, large = sorted((areas[first], areas[second]))
        if rng.random() < 0.5 and large >= CLEAR_RATIO * small:
            pairs.append((f'which is larger , the {first} or the {second} ?',
                          first if areas[first] == large else second))
    return [pairs[index] for index in rng.permutation(len(pairs))]


def cells_of(scene: Scene) -> np.ndarray:
    """What is in each cell: (8, 8) uint8, the category that covers most of it, 0 where none covers enough."""
    side = SIDE_PX // PATCH_PX
    cells = np.array([0, *scene.category_ids])[scene.object_ids].reshape(side, PATCH_PX, side, PATCH_PX)
    shares = np.stack([(cells == category).mean((1, 3)) for category in range(1, len(CLASSES) + 1)])
    return np.where(shares.max(0) >= IN_CELL, shares.argmax(0) + 1, 0).astype(np.uint8)


def write_dataset(out: Path, num_train: int, num_val: int, seed: int = 0, most: int = 6) -> None:
    """Write the dataset into a folder that is not there yet, or leave the one that is there and was made the same way.

    Args:
        out: the folder.
        num_train, num_val: scenes of each split, on disjoint photographs.
        seed: of all scenes.
        most: questions of a scene.

    Raises:
        FileExistsError: if the folder holds anything else.
    """
    meta = dict(generator='vqa_scenes', version=1, num_train=num_train, num_val=num_val, seed=seed, most=most)
    if out.exists():
        if (out / 'meta.json').is_file() and json.loads((out / 'meta.json').read_text()) == meta:
            return
        raise FileExistsError(f'{out} exists and was not made with {meta}: remove it, or give another folder')
    temporary = out.with_name(f'.{out.name}.{os.getpid()}.tmp')
    try:
        for split, count in zip(SPLITS, (num_train, num_val), strict=True):
            (temporary / split).mkdir(parents=True)
            photos, rows, cells = load_photos(split), [], []
            for index in range(count):
                scene = make_scene(seed, split, index, photos, RECIPE)
                name = f'{split}/{index:06d}.png'
                (temporary / name).write_bytes(cv2.imencode('.png', scene.image)[1].tobytes())
                cells.append(cells_of(scene))
                asked = questions_of(scene, np.random.default_rng([seed, SPLITS.index(split), index, 1]))[:most]
                rows.append({'id': f'{split}{index:06d}', 'image': name, 'conversations': _turns(asked)})
            np.save(temporary / f'{split}_cells.npy', np.stack(cells))
            (temporary / f'{split}.json').write_text(json.dumps(rows))
        (temporary / 'meta.json').write_text(json.dumps(meta))
        temporary.rename(out)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def _turns(asked: list[tuple[str, str]]) -> list[dict[str, str]]:
    turns = []
    for number, (question, answer) in enumerate(asked):
        turns += [{'from': 'human', 'value': question if number else f'<image>\n{question}'},
                  {'from': 'gpt', 'value': answer}]
    return turns
