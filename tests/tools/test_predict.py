"""tools/predict.py, also as ``apt-dense predict``: what it writes, and what it says of bad input."""
import json
import os
import subprocess
import sys

import cv2
import numpy as np
import pytest
from PIL import Image
from pycocotools import mask as coco_masks

import apt_dense
from apt_dense import cli
from apt_dense.mm.cli.launch import run_tool
from tests.locations import ROOT, TOOLS, load_tool
from tests.mm.inference.conftest import NAMES, checkpoints, folder, picture  # noqa: F401


def predict(*arguments, status=0, cwd=None):
    command = [sys.executable, '-W', 'ignore', TOOLS / 'predict.py', *map(str, arguments)]
    done = subprocess.run(command, capture_output=True, text=True, cwd=cwd,
                          env={**os.environ, 'PYTHONPATH': str(ROOT), 'OMP_NUM_THREADS': '1'})
    assert done.returncode == status, done.stdout + done.stderr
    return done.stdout, done.stderr


def predict_here(monkeypatch, capsys, *arguments):
    """The same in this process, which has imported everything."""
    monkeypatch.setattr(sys, 'argv', ['predict.py', *map(str, arguments)])
    assert run_tool(load_tool('predict.py').main) == 0
    return capsys.readouterr().out


def content_of(out):
    return json.loads((out / 'predictions.json').read_text())


def test_detection_of_a_folder(checkpoints, folder, tmp_path, monkeypatch, capsys):  # noqa: F811
    out = tmp_path / 'out'
    classes = apt_dense.load(checkpoints['det']).classes
    (tmp_path / 'val.json').write_text(json.dumps(dict(
        images=[dict(id=70 + index, file_name=name) for index, name in enumerate(NAMES)],
        categories=[dict(id=50 + index, name=name) for index, name in enumerate(classes)])))
    said = predict_here(monkeypatch, capsys, folder, '--model', checkpoints['det'], '--out', out, '--batch-size', 2,
                        '--as-published', '--annotations', tmp_path / 'val.json')
    assert '3 pictures' in said and 'of the tokens kept' in said
    content = content_of(out)
    assert [image['file_name'] for image in content['images']] == [str(folder / name) for name in NAMES]
    assert [(image['height'], image['width']) for image in content['images']] == [(96, 128), (120, 90), (64, 200)]
    assert [category['name'] for category in content['categories']] == list(classes)
    assert [image['id'] for image in content['images']] == [70, 71, 72]
    wanted = apt_dense.load(checkpoints['det'], as_published=True).predict(folder)
    assert len(content['annotations']) == sum(map(len, wanted)) > 0
    first = content['annotations'][0]
    assert first['category_id'] == wanted[0].labels[0] + 50 and first['image_id'] == 70
    assert first['score'] == pytest.approx(wanted[0].scores[0])
    assert np.array_equal(coco_masks.decode(first['segmentation']), wanted[0].masks[0])
    assert len({entry['id'] for entry in content['annotations']}) == len(content['annotations'])
    assert sorted(path.name for path in out.glob('*.png')) == ['a.png', 'b.png', 'c.png']


def test_segmentation_of_pictures_and_videos(checkpoints, folder, tmp_path):  # noqa: F811
    """Two pictures of one name; two videos, one after the other; one file that is no picture."""
    for name in ('one', 'two'):
        writer = cv2.VideoWriter(str(tmp_path / f'{name}.avi'), cv2.VideoWriter_fourcc(*'MJPG'), 5, (128, 96))
        for seed in range(2):
            writer.write(picture(96, 128, seed)[..., ::-1])
        writer.release()
    (tmp_path / 'other').mkdir()
    Image.fromarray(picture(40, 50)).save(tmp_path / 'other/a.jpg')
    (tmp_path / 'text.jpg').write_text('no picture')
    out = tmp_path / 'out'
    said, errors = predict(folder / 'a.png', tmp_path / 'text.jpg', tmp_path / 'other/a.jpg', tmp_path / 'one.avi',
                           tmp_path / 'two.avi', '--model', checkpoints['seg'], '--out', out, status=1)
    assert 'text.jpg cannot be read as a picture' in errors and '6 pictures' in said
    content = content_of(out)
    assert 'annotations' not in content
    wanted = apt_dense.load(checkpoints['seg']).predict([folder / 'a.png', tmp_path / 'other/a.jpg'])
    for image, result in zip(content['images'], wanted, strict=False):
        assert np.array_equal(np.asarray(Image.open(out / image['label_map'])), result.label_map)
        assert image['kept_tokens'] == pytest.approx(result.tokens.kept)
    assert {path.name for path in out.iterdir()} == {'a.png', 'a_2.png', 'one.mp4', 'two.mp4', 'labels',
                                                     'predictions.json'}
    assert len({image['label_map'] for image in content['images']}) == 6
    for name in ('one', 'two'):
        capture = cv2.VideoCapture(str(out / f'{name}.mp4'))
        assert int(capture.get(cv2.CAP_PROP_FRAME_COUNT)) == 2 and capture.get(cv2.CAP_PROP_FPS) == pytest.approx(5)


@pytest.mark.parametrize(('arguments', 'message'), [
    (('missing.jpg', '--model', 'x.pth'), 'error: missing.jpg does not exist'),
    (('empty', '--model', 'x.pth'), 'error: empty holds no image'),
    (('a.png', '--model', 'x.pth'), 'error: checkpoint x.pth does not exist'),
    (('a.png', '--model', 'apt_eva02_l_coc', '--weights', 'x.pth'), 'error: checkpoint x.pth does not exist'),
    (('a.png', '--model', 'eva02'), "error: 'eva02' is no config of this project"),
    (('a.png', '--model', '{det}', '--kept', '0.5'), 'error: kept=0.5 needs pictures'),
    (('a.png', '--model', '{det}', '--thresholds', '1'), 'error: got 1 thresholds'),
    (('a.png', '--model', '{det}', '--device', 'cuda:77'), "error: device='cuda:77'"),
    (('a.png', '--model', '{det}', '--batch-size', '0'), 'error: --batch-size 0: wanted 1 or more'),
    (('a.png', '--model', '{det}', '--out', 'used'), 'error: used has predictions already'),
])
def test_bad_input_is_one_line(arguments, message, checkpoints, tmp_path, refused):  # noqa: F811
    (tmp_path / 'empty').mkdir()
    (tmp_path / 'used').mkdir()
    (tmp_path / 'used/predictions.json').write_text('{}')
    Image.fromarray(picture(40, 50)).save(tmp_path / 'a.png')
    arguments = [text.format(**checkpoints) for text in arguments]
    if '--out' not in arguments:
        arguments += ['--out', 'out']
    assert message in refused(load_tool('predict.py').main, arguments)


def test_commands(capsys, monkeypatch, tmp_path):
    monkeypatch.setitem(sys.modules, '__main__', sys.modules['__main__'])  # a command takes its place
    monkeypatch.setattr(sys, 'argv', sys.argv)
    for name, (tool, _) in cli.COMMANDS.items():
        assert (cli.TOOLS / tool).is_file(), name
        with pytest.raises(SystemExit) as stopped:
            cli.main([name, '--help'])
        said = capsys.readouterr().out
        assert stopped.value.code == 0 and said.startswith(f'usage: apt-dense {name} ')
        assert f'python tools/{tool}' not in said
    assert cli.main([]) == 2 and cli.main(['--help']) == 0 and 'predict' in capsys.readouterr().out
    assert cli.main(['--version']) == 0 and capsys.readouterr().out.strip() == apt_dense.__version__
    assert cli.main(['paint']) == 2 and "no command 'paint'" in capsys.readouterr().err
    Image.fromarray(picture(40, 50)).save(tmp_path / 'a.png')
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit) as stopped:
        cli.main(['patches', 'a.png', '--img-size', '128'])
    assert stopped.value.code == 0 and (tmp_path / 'patches/a_patches.png').is_file()


def test_a_missing_extra_is_one_line(monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, '__main__', sys.modules['__main__'])
    monkeypatch.setattr(sys, 'argv', sys.argv)
    monkeypatch.setitem(sys.modules, 'tqdm', None)
    assert cli.main(['predict', 'a.png', '--model', 'b.pth', '--out', 'c']) == 2
    said = capsys.readouterr().err
    assert said.startswith("error: tqdm is not installed. What is needed here is in the extra 'mm'") and (
        said.count('\n') == 1), said
