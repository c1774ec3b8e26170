"""The demo of visual question answering: questions whose answers are exact, and a run of a few steps."""
import json
import sys

import numpy as np
import pytest

from tests.hf.models import transformers
from tests.locations import load_tool

transformers()
pytest.importorskip('accelerate')
demo = load_tool('demo/run_vqa_demo.py')
vqa_model, vqa_scenes, scenes = (sys.modules[name] for name in ('vqa_model', 'vqa_scenes', 'scenes'))


def scene_of(*boxes: tuple[str, int, int, int]) -> object:
    """A scene of squares: class, top, left and side in pixels."""
    ids = np.zeros((112, 112), np.uint8)
    for number, (_, top, left, side) in enumerate(boxes, start=1):
        ids[top:top + side, left:left + side] = number
    categories = [vqa_scenes.CLASSES.index(name) + 1 for name, *_ in boxes]
    return scenes.Scene(np.zeros((112, 112, 3), np.uint8), ids, categories)


def every_question(scene: object) -> dict[str, str]:
    """All that may be asked: which of two questions is drawn at random."""
    return dict(pair for seed in range(20) for pair in vqa_scenes.questions_of(scene, np.random.default_rng(seed)))


def test_answers_of_a_scene():
    """A ball at the top left, a larger crate at the right, a kite of the crate's height at the bottom."""
    asked = every_question(scene_of(('ball', 0, 0, 28), ('crate', 30, 80, 32), ('kite', 84, 50, 26)))
    assert asked == {
        'how many objects are there ?': 'three',
        'what is at the left ?': 'ball', 'which colour is the object at the left ?': 'blue',
        'what is at the right ?': 'crate', 'which colour is the object at the right ?': 'brown',
        'what is at the top ?': 'ball', 'which colour is the object at the top ?': 'blue',
        'what is at the bottom ?': 'kite', 'which colour is the object at the bottom ?': 'pink',
        'which is larger , the crate or the kite ?': 'crate', 'which is larger , the kite or the crate ?': 'crate'}


def test_what_is_not_clear_is_not_asked():
    """Two of a kind, side by side at nearly one height; an empty scene."""
    asked = every_question(scene_of(('ball', 10, 10, 30), ('ball', 15, 60, 60)))
    assert not any('larger' in question for question in asked)
    asked = every_question(scene_of(('ball', 10, 10, 30), ('kite', 12, 60, 30)))
    assert set(asked.values()) == {'two', 'ball', 'kite', 'blue', 'pink'}
    assert not any(side in question for question in asked for side in ('top', 'bottom', 'larger'))
    assert every_question(scene_of()) == {'how many objects are there ?': 'zero'}


def test_cells():
    cells = vqa_scenes.cells_of(scene_of(('kite', 14, 28, 28)))
    assert cells.shape == (8, 8) and (cells[1:3, 2:4] == 3).all() and (cells > 0).sum() == 4
    assert not vqa_scenes.cells_of(scene_of(('kite', 0, 0, 7))).any()  # a quarter of its cell


def test_every_word_is_in_the_vocabulary():
    processor = vqa_model.build_processor()
    for scene in (scene_of(('ball', 0, 0, 28), ('crate', 30, 80, 32), ('kite', 84, 50, 26)), scene_of()):
        for pair in every_question(scene).items():
            ids = processor.tokenizer(' '.join(pair))['input_ids']
            assert processor.tokenizer.unk_token_id not in ids and processor.tokenizer.decode(ids) == ' '.join(pair)


@pytest.mark.slow
def test_a_short_run(tmp_path, monkeypatch, capsys):
    """Few steps teach nothing: the files are there, all models answer all questions, a second run trains nothing."""
    monkeypatch.setattr(sys, 'argv', ['run_vqa_demo.py', '--data', str(tmp_path / 'data'), '--work-dir',
                                      str(tmp_path / 'work'), '--scenes', '40', '8', '--tower-steps', '2', '--steps',
                                      '2'])
    demo.main()
    assert 'the tower names' in capsys.readouterr().out
    results = json.loads((tmp_path / 'work/results.json').read_text())
    assert list(results['results']) == ['dense', 'random', 'resizing', 'APT', 'APT, rows repeated']
    assert len(results['blind']) == 2
    numbers = {len(result['answers']) for result in results['results'].values()}
    kept = {name: result['kept'] for name, result in results['results'].items()}
    assert len(numbers) == 1 and kept['dense'] == kept['APT, rows repeated'] == 1
    assert kept['APT'] == kept['resizing'] == kept['random'] < 1
    assert (tmp_path / 'work/questions.png').stat().st_size > 10_000
    assert (tmp_path / 'work/results.md').read_text().count('\n') == 9
    demo.main()
    assert 'the tower names' not in capsys.readouterr().out
    monkeypatch.setattr(sys, 'argv', [*sys.argv[:6], '41', '8'])
    with pytest.raises(SystemExit, match='was not made with .*41'):
        demo.main()
