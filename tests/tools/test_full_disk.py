"""A disk that fills while a tool writes: one message, status 2, and no file that is not whole."""
import ast
import json
import resource
import sys
from pathlib import Path
from types import SimpleNamespace

import cv2
import numpy as np
import pytest
import torch
from mmengine.config import Config
from mmengine.visualization import LocalVisBackend
from PIL import Image

from apt_dense.calibration.token_counts import write_token_counts
from apt_dense.cli import COMMANDS
from apt_dense.core.files import NotWritten
from apt_dense.mm.cli.launch import run_tool
from apt_dense.mm.data.label_maps import FolderIoUMetric
from apt_dense.mm.inference.writing import PredictionWriter, VideoFile
from apt_dense.mm.preflight.draw import draw_samples
from tests.core.test_conversion import pretrained  # noqa: F401
from tests.full_disk import full_disk
from tests.locations import ROOT, TOOLS, load_tool
from tests.mm.inference.conftest import checkpoints, picture  # noqa: F401

# Tool and arguments -> the file that the message names.
WRITING = {
    'predict.py a.png --model {det} --out o': 'o/a.png',
    'predict.py a.png --model {seg} --out o --no-draw': 'o/labels/a.png',
    'predict.py a.png --model {det} --out o --no-draw': 'o/predictions.json',
    'predict.py film.avi --model {det} --out o': 'o/film.mp4',
    'export.py {seg} o/a.pt2 --tokens 40': 'o/a.pt2',
    'analysis_tools/visualize_patches.py a.png --img-size 256 --out-dir o': 'o/a_patches.png',
    'analysis_tools/visualize_patches.py film.avi --img-size 256 --out-dir o': 'o/film_patches.mp4',
    'analysis_tools/calibrate_thresholds.py a.png --size 128 --kept 0.5 --out-dir o': 'o/thresholds.png',
    'analysis_tools/simulate_token_balance.py --token-counts counts.json --out o/a.png': 'o/a.png',
    'model_converters/eva02_to_mm.py official.pth o/a.pth': 'o/a.pth',
}
# Calls that leave half a file on a full disk.  What only this project's authors run may make them.
WRITERS = {'imwrite', 'save', 'savefig', 'VideoWriter', 'write_bytes', 'write_text'}
AUTHORS_TOOLS = ('benchmark', 'demo', 'docs', 'experiments', 'fault_drill')


@pytest.fixture
def place(tmp_path, monkeypatch, pretrained):  # noqa: F811
    monkeypatch.chdir(tmp_path)
    Image.fromarray(picture(96, 128)).save('a.png')
    writer = cv2.VideoWriter('film.avi', cv2.VideoWriter_fourcc(*'MJPG'), 5, (128, 96))
    for seed in range(2):
        writer.write(picture(96, 128, seed)[..., ::-1])
    writer.release()
    write_token_counts(tmp_path / 'counts.json', {}, {f'{number}.jpg': 100 + number for number in range(64)})
    torch.save(pretrained, 'official.pth')
    return tmp_path


def files_below(folder):
    return sorted(path for path in folder.rglob('*') if path.is_file())


@pytest.mark.parametrize('command', WRITING)
def test_a_tool(command, checkpoints, place, monkeypatch, capsys):  # noqa: F811
    tool, *arguments = command.format(**checkpoints).split()
    monkeypatch.setattr(sys, 'argv', ['tool.py', *arguments])
    before = files_below(place)
    tool = load_tool(tool)
    with full_disk(50 if '{seg}' in command else 300):  # a small label map has less
        try:
            status = run_tool(tool.main) if hasattr(tool, 'run_tool') else tool.run(tool.main) if (
                'model_converters' in command) else tool.main()
        except SystemExit as stopped:
            status = stopped.code
    said = capsys.readouterr().err
    assert status == 2 and 'Traceback' not in said, said
    (line,) = [line for line in said.splitlines() if 'cannot be written' in line]
    assert WRITING[command] in line and 'Make room there, or choose another place' in line and len(line) < 250
    assert files_below(place) == before


def test_a_video_is_given_up_at_the_frame_that_has_no_room(tmp_path):
    """Not at its end: predicting a film takes hours."""
    frames = [np.random.default_rng(seed).integers(0, 256, (480, 640, 3), np.uint8) for seed in range(40)]
    video = VideoFile(tmp_path / 'o/film.mp4', 'none.avi', (640, 480))
    rest = iter(frames)
    with full_disk(2_000_000), pytest.raises(NotWritten, match=r'film\.mp4 cannot be written: File too large. Make'):
        for frame in rest:
            video.write(frame)
    assert 10 < len(list(rest)) < 39 and not files_below(tmp_path)
    video = VideoFile(tmp_path / 'o/film.mp4', 'none.avi', (640, 480))
    for frame in frames:
        video.write(frame)
    video.close()
    assert [path.name for path in files_below(tmp_path)] == ['film.mp4']
    assert int(cv2.VideoCapture(str(tmp_path / 'o/film.mp4')).get(cv2.CAP_PROP_FRAME_COUNT)) == 40


def test_a_film_ends_the_tool_where_the_disk_is_full(place, monkeypatch, capfd):
    """Before the next film is begun."""
    writer = cv2.VideoWriter('long.avi', cv2.VideoWriter_fourcc(*'MJPG'), 5, (640, 480))
    for seed in range(30):
        writer.write(np.random.default_rng(seed).integers(0, 256, (480, 640, 3), np.uint8))
    writer.release()
    before = files_below(place)
    with full_disk(1_300_000):
        status = load_tool('analysis_tools/visualize_patches.py').main(
            ['long.avi', 'film.avi', '--img-size', '512', '--out-dir', 'o'])
    said = capfd.readouterr()
    assert status == 2 and said.err.startswith('error: o/long_patches.mp4 cannot be written'), said.err
    assert 'long.avi#1' in said.out and 'film.avi#0' not in said.out and said.err.count('\n') == 1
    assert files_below(place) == before


class Drawn:
    """A frame of film.avi as a result."""

    size, classes, tokens = (480, 640), ('a',), SimpleNamespace(num_tokens=1, kept=1.0)

    def __init__(self, number):
        self.name, self.number = f'film.avi#{number}', number

    def draw(self, min_score):
        return np.random.default_rng(self.number).integers(0, 256, (480, 640, 3), np.uint8)

    def to_coco(self, number, category_ids):
        return []


@pytest.mark.parametrize('json_has_room', [True, False])
def test_predictions_of_a_film_that_has_no_room(json_has_room, place):
    """It is the film that the message names, and what was predicted before stands in the JSON where that has room."""
    before = files_below(place)
    with pytest.raises(NotWritten, match=r'^o/film\.mp4 cannot be written'), full_disk(1_300_000), (
            PredictionWriter(Path('o'), 'det', ('a',))) as writer:
        for number in range(30):
            if number == 2 and not json_has_room:
                resource.setrlimit(resource.RLIMIT_FSIZE, (100, resource.getrlimit(resource.RLIMIT_FSIZE)[1]))
            writer.add(Drawn(number))
    left = [path for path in files_below(place) if path not in before]
    assert [path.name for path in left] == ['predictions.json'] * json_has_room
    for path in left:
        assert 2 <= len(json.loads(path.read_text())['images']) < 30


def test_samples_of_a_dataset(written, tmp_path):
    cfg = Config.fromfile(written('apt_eva02_ti_demo_seg'))
    before = files_below(tmp_path)
    with full_disk(), pytest.raises(NotWritten, match=r'\.png cannot be written'):
        list(draw_samples(cfg, str(tmp_path / 'new'), 1))
    assert files_below(tmp_path) == before
    assert 'drawn with their truth' in next(draw_samples(cfg, str(tmp_path / 'new'), 1))


def test_label_maps_of_a_test(tmp_path):
    metric = FolderIoUMetric(output_dir=str(tmp_path / 'maps'), format_only=True)
    metric.dataset_meta = dict(classes=('a', 'b'))
    noise = torch.from_numpy(np.random.default_rng(0).integers(0, 2, (1, 90, 90)))
    sample = dict(img_path=str(tmp_path / 'a.jpg'), pred_sem_seg=dict(data=noise))
    with full_disk(), pytest.raises(NotWritten, match=r'a\.png cannot be written: File too large'):
        metric.process({}, [sample])
    assert not files_below(tmp_path)
    metric.process({}, [sample])
    assert [path.name for path in files_below(tmp_path)] == ['a.png']


def test_pictures_that_a_training_logs(tmp_path):
    backend = LocalVisBackend(str(tmp_path / 'run'))
    image = np.random.default_rng(0).integers(0, 255, (50, 60, 3), np.uint8)
    with full_disk(), pytest.raises(NotWritten, match=r'patches_7\.png cannot be written'):
        backend.add_image('patches', image, 7)
    assert not files_below(tmp_path)
    backend.add_image('patches', image, 7)
    (file,) = files_below(tmp_path)
    assert np.array_equal(np.asarray(Image.open(file)), image)


def test_nothing_else_writes_in_place():
    """All goes through core.files and drawing.saving; a video through VideoFile."""
    assert all((TOOLS / tool).is_file() for tool, _ in COMMANDS.values())
    found = set()
    for path in [*(ROOT / 'apt_dense').rglob('*.py'), *TOOLS.rglob('*.py')]:
        place = path.relative_to(ROOT)
        if place.parts[1] in AUTHORS_TOOLS or '.mim' in place.parts:
            continue
        for node in ast.walk(ast.parse(path.read_text(encoding='utf-8'))):
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and node.func.attr in WRITERS:
                found.add(f'{place}: {ast.unparse(node.func)}')
    assert found == {
        'apt_dense/converting.py: torch.save', 'apt_dense/drawing/saving.py: picture.save',
        'apt_dense/drawing/saving.py: figure.savefig', 'apt_dense/mm/preflight/draw.py: excerpt.write_text',
        'apt_dense/mm/inference/writing.py: cv2.VideoWriter', 'tools/export.py: torch.export.save'}
