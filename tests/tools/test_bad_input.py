"""Bad input of every tool: one message, status 2, nothing written, and before time is spent on a model."""
import io
import os
import subprocess
import sys

import cv2
import numpy as np
import pytest
import torch
from PIL import Image

import apt_dense
from apt_dense.mm.cli.launch import run_tool
from apt_dense.mm.errors import DataError
from tests.locations import CONFIGS, ROOT, TOOLS, load_tool
from tests.mm.inference.conftest import checkpoints, picture  # noqa: F401

DEMO = f'{CONFIGS}/apt_eva02_ti_demo_det.py'
SCRIPTS = {
    'predict': 'predict.py', 'export': 'export.py', 'train': 'train.py', 'test': 'test.py', 'check': 'check_data.py',
    'patches': 'analysis_tools/visualize_patches.py', 'calibrate': 'analysis_tools/calibrate_thresholds.py',
    'convert': 'model_converters/eva02_to_mm.py', 'compare': 'analysis_tools/compare_models.py',
    'sweep': 'analysis_tools/sweep_thresholds.py', 'memory': 'analysis_tools/estimate_memory.py',
    'balance': 'analysis_tools/simulate_token_balance.py', 'flops': 'analysis_tools/get_flops.py',
    'speed': 'benchmark/benchmark_model.py',
}
# Commands, with a place for a config.
WITH_CONFIG = {
    'train': 'train {}', 'check': 'check {}', 'flops': 'flops {}', 'memory': 'memory {} a.png',
    'predict': 'predict a.png --out o --model {}', 'sweep': 'sweep {}', 'export': 'export {} o.pt2',
    'compare': 'compare {} {}', 'test': 'test {} model.pth',
    'patches': 'patches a.png --config {}', 'calibrate': 'calibrate --kept 0.5 --config {}',
    'balance': 'balance a.png --config {}',
}
BAD_CONFIGS = {
    'no.py': 'does not exist', 'folder.py': 'folder.py is a folder', 'bytes.py': 'bytes.py cannot be read',
    'raises.py': 'raises.py cannot be read, mend it: RuntimeError: on purpose', 'syntax.py': 'syntax.py cannot be read',
    'text.jpg': 'text.jpg is no config', 'eva02_ti': "'eva02_ti' is no config of this project",
}


@pytest.fixture
def place(tmp_path, monkeypatch):
    """A folder with what is wrong in every way, in which the tools run."""
    monkeypatch.chdir(tmp_path)
    Image.fromarray(picture(40, 50)).save('a.png')
    (tmp_path / 'used/labels').mkdir(parents=True)
    Image.fromarray(picture(40, 50)).save('used/labels/a.png')
    for name in ('folder.py', 'folder.pth', 'folder.jpg', 'empty', 'folder.json'):
        (tmp_path / name).mkdir()
    (tmp_path / 'bytes.py').write_bytes(bytes(range(256)))
    (tmp_path / 'raises.py').write_text("raise RuntimeError('on purpose')\n")
    (tmp_path / 'syntax.py').write_text('model = dict(\n')
    (tmp_path / 'bare.py').write_text('x = 1\n')
    for name in ('text.jpg', 'text.pth', 'text.mp4', 'text.safetensors', 'file'):
        (tmp_path / name).write_text('no picture')
    (tmp_path / 'empty.pth').touch()
    torch.save({'a': torch.zeros(9)}, 'bare.pth')
    (tmp_path / 'cut.pth').write_bytes((tmp_path / 'bare.pth').read_bytes()[:500])
    return tmp_path


def refuse(tool, arguments, place, monkeypatch, capfd):
    """What a tool says; it must end with 2, without a traceback, and leave the folder as it is."""
    before = sorted(place.rglob('*'))
    monkeypatch.setattr(sys, 'argv', ['tool.py', *arguments])
    capfd.readouterr()
    try:
        status = run_tool(load_tool(SCRIPTS[tool]).main)
    except SystemExit as stopped:  # of argparse
        status = stopped.code
    said = capfd.readouterr().err
    assert status == 2 and 'Traceback' not in said, said
    assert sorted(place.rglob('*')) == before
    return said.strip().splitlines()[-1]


@pytest.mark.parametrize('config', BAD_CONFIGS)
@pytest.mark.parametrize('tool', WITH_CONFIG)
def test_configs(tool, config, place, monkeypatch, capfd):
    _, *arguments = WITH_CONFIG[tool].replace('{}', config).split()
    said = refuse(tool, arguments, place, monkeypatch, capfd)
    assert BAD_CONFIGS[config] in said and 'config' in said and len(said) < 500, said


@pytest.mark.parametrize(('command', 'message'), [
    (f'predict a.png --out file --model {DEMO}', '--out file takes no files: Not a directory. Choose another folder'),
    (f'predict a.png --out file/below --model {DEMO}', '--out file/below takes no files'),
    (f'predict a.png --out /proc/no --model {DEMO}', '--out /proc/no takes no files'),
    (f'predict a.png --out o --model {DEMO} --weights folder.pth', 'checkpoint folder.pth is a folder'),
    (f'predict a.png --out o --model {DEMO} --weights cut.pth', 'cut.pth cannot be read as a checkpoint: it is dama'),
    (f'predict a.png --out o --model {DEMO} --weights text.pth', 'text.pth cannot be read as a checkpoint: it is an'),
    (f'predict a.png --out o --model {DEMO} --weights text.safetensors', 'text.safetensors cannot be read as'),
    (f'predict a.png --out o --model {DEMO} --weights bare.pth', 'bare.pth does not fit'),
    ('predict a.png --out o --model empty.pth', 'empty.pth cannot be read as a checkpoint: it is empty'),
    (f'predict a.png --out o --model {DEMO} --device mps', "device='mps' is not there"),
    (f'predict a.png --out o --model {DEMO} --min-score 7', '--min-score 7 is no score'),
    (f'predict a.png --out o --model {DEMO} --thresholds nan 1 1', 'are no numbers'),
    (f'predict a.png --out o --model {DEMO} --max-tokens 0', '--max-tokens: got 0, wanted a whole number from 1 on'),
    (f'predict a.png --out o --model {DEMO} --kept 0', 'kept=0.0 is no share of the tokens'),
    (f'predict a.png --out o --model {DEMO} --kept 0.5 --calibrate-on text.jpg', 'text.jpg cannot be read'),
    ('predict a.png --out o --model no.pth --annotations no.json', 'no.json cannot be read: No such file'),
    ('predict a.png --out o --model no.pth --annotations text.jpg', 'text.jpg is a single value, not an object'),
    ('predict empty --out o --model no.pth', 'empty holds no image'),
    ('predict folder.jpg --out o --model no.pth', 'folder.jpg holds no image'),
    ('predict a.png --out . --model no.pth', '--out . has a.png in it, and what is written there could take'),
    ('predict used/labels --out used --model no.pth', '--out used has used/labels/a.png in it, and what is written'),
    ('patches no.jpg', 'no.jpg does not exist'),
    ('patches text.jpg', 'text.jpg cannot be read as an image'),
    ('patches text.mp4', 'text.mp4 cannot be read as a video'),
    ('patches empty', 'empty holds no image'),
    ('patches a.png --config bare.py', 'bare.py has no model with a backbone'),
    ('patches a.png --thresholds 1 nan', 'contain a NaN'),
    ('patches a.png --out-dir file', '--out-dir file takes no files'),
    ('calibrate a.png --size 512 --kept 0', '--kept 0 is no share'),
    ('calibrate a.png --size 512 --kept nan', '--kept nan is no share'),
    ('calibrate a.png --size 512 --max-tokens 0', '--max-tokens 0: wanted 1 or more'),
    ('calibrate a.png --size 512 --thresholds nan 1', 'contain a NaN'),
    ('calibrate a.png --size 512 --kept 0.5 --out-dir file', '--out-dir file takes no files'),
    ('calibrate a.png --size 512 --kept 0.5 --save-tokens folder.json', '--save-tokens folder.json is a folder'),
    ('calibrate text.jpg --size 512 --kept 0.5', 'no image was scored'),
    ('calibrate --config bare.py --kept 0.5', 'bare.py has no'),
    ('convert no.pth o.pth', 'no.pth does not exist'),
    ('convert folder.pth o.pth', 'folder.pth is a folder'),
    ('convert cut.pth o.pth', 'cut.pth cannot be read as a checkpoint: it is damaged'),
    ('convert text.jpg o.pth', 'text.jpg'),
    ('convert bare.pth folder.pth --force', 'folder.pth is a folder'),
    ('convert bare.pth file/o.pth', 'takes no files'),
    ('check bare.py', 'bare.py has neither a model nor a dataset'),
    (f'check {DEMO} --out-dir file', '--out-dir file takes no files'),
    (f'export {DEMO} folder.pt2/o.pt2 --tokens 0', 'argument --tokens: got 0, wanted a whole number from 1 on'),
    (f'export {DEMO} file/o.pt2 --tokens 9', 'takes no files'),
    (f'test {DEMO} no.pth --work-dir file', '--work-dir file takes no files'),
    (f'test {DEMO} no.pth --show-dir file/below', '--show-dir file/below takes no files'),
    (f'test {DEMO} no.pth --out file/o.pkl', 'the folder of --out file/o.pkl, file takes no files'),
    (f'test {DEMO} no.pth --out file', '--out file takes no files'),
    ('train bare.py', 'bare.py has no train_dataloader'),
    ('memory bare.py a.png', "default_scope=None: set it to 'mmdet'"),
    (f'memory {DEMO} text.jpg', 'text.jpg cannot be read as an image'),
    (f'balance a.png --config {DEMO} --out file/o.png', 'takes no files'),
    (f'balance a.png --config {DEMO} --out o.xyz', '--out o.xyz: wanted a name that ends in one of eps, jpeg'),
    (f'balance a.png --config {DEMO} --num-crops 0', '--num-crops: got 0, wanted a whole number from 1 on'),
    (f'flops {DEMO} --num-images -3', '--num-images: got -3, wanted a whole number from 1 on'),
    (f'flops {DEMO} --json file/o.json', 'takes no files'),
    (f'memory {DEMO} a.png --save text.jpg', '--save text.jpg is no JSON file'),
    (f'memory {DEMO} a.png --batch-size two', '--batch-size: got two, wanted a whole number from 1 on'),
    (f'speed {DEMO} --max-iter 0', '--max-iter: got 0, wanted a whole number from 1 on'),
    (f'speed {DEMO} --num-warmup -1', '--num-warmup: got -1, wanted a whole number from 0 on'),
    (f'speed {DEMO} --threads -2', '--threads: got -2, wanted'),
    (f'speed {DEMO} --json file/o.json', 'takes no files'),
    (f'check {DEMO} --num-pictures -1', '--num-pictures: got -1, wanted a whole number from 0 on'),
    (f'sweep {DEMO} --out-dir file', '--out-dir file takes no files'),
    (f'compare {DEMO} {DEMO} --out-dir file', '--out-dir file takes no files'),
])
def test_the_rest(command, message, place, monkeypatch, capfd):
    tool, *arguments = command.split()
    said = refuse(tool, arguments, place, monkeypatch, capfd)
    assert message in said and len(said) < 500, said


def test_nothing_that_can_be_predicted(checkpoints, place, monkeypatch, capfd):  # noqa: F811
    """Found only when it is read, so the model is there: no empty predictions are left."""
    Image.fromarray(np.full((90, 90), 900, np.uint16)).save('dark.png')
    said = refuse('predict', ['dark.png', '--model', str(checkpoints['det']), '--out', 'new'], place, monkeypatch,
                  capfd)
    assert 'dark.png cannot be read as a picture: dark.png has 16 bits a value' in said


CUT_OFF = {  # before the model, or the config that a command names, is looked for
    'predict': 'predict cut.{} --out o --model no.pth', 'patches': 'patches cut.{} --config no.py',
    'calibrate_on': f'predict a.png --out o --model {DEMO} --weights no.pth --kept 0.5 --calibrate-on a.png cut.{{}}',
    'sweep': 'sweep no.pth --calibrate-on a.png cut.{}', 'balance': f'balance a.png cut.{{}} --config {DEMO}',
    'flops': f'flops {DEMO} no.pth --images of_{{}}',
}


@pytest.mark.parametrize('suffix', ['jpg', 'png'])
@pytest.mark.parametrize('command', CUT_OFF)
def test_what_is_cut_off_is_said_first(command, suffix, place, monkeypatch, capfd):
    Image.fromarray(picture(90, 90)).save(f'cut.{suffix}')
    content = (place / f'cut.{suffix}').read_bytes()
    (place / f'of_{suffix}').mkdir()
    for file in (f'cut.{suffix}', f'of_{suffix}/cut.{suffix}'):
        (place / file).write_bytes(content[:len(content) // 2])
    tool, *arguments = CUT_OFF[command].format(suffix).split()
    said = refuse(tool, arguments, place, monkeypatch, capfd)
    assert f'cut.{suffix} cannot be read as a' in said and 'image file is truncated' in said, said


@pytest.mark.parametrize('cut', [False, True])
def test_what_opencv_alone_reads_is_a_picture(cut, place, monkeypatch, capfd):
    """Radiance's format, which Pillow does not know."""
    assert cv2.imwrite('light.hdr', picture(40, 50).astype(np.float32))
    content = (place / 'light.hdr').read_bytes()
    (place / 'light.hdr').write_bytes(content[:len(content) // 2] if cut else content)
    said = refuse('predict', ['light.hdr', '--model', 'no.pth', '--out', 'new'], place, monkeypatch, capfd)
    assert 'light.hdr cannot be read as a picture' in said if cut else 'checkpoint no.pth does not exist' in said, said


def test_calibrating_says_first_what_it_leaves_out(place, monkeypatch, capfd):
    """And what is no picture by its values when it is read; both are counted."""
    Image.fromarray(picture(90, 90)).save('cut.png')
    (place / 'cut.png').write_bytes((place / 'cut.png').read_bytes()[:500])
    Image.fromarray(np.full((90, 90), 900, np.uint16)).save('dark.png')
    tool, images = load_tool(SCRIPTS['calibrate']), ['a.png', 'dark.png', 'cut.png', '--size', '64']
    monkeypatch.setattr(tool, 'score_images', lambda *_: pytest.fail(capfd.readouterr().err))
    with pytest.raises(pytest.fail.Exception, match=r'^calibrate_thresholds: cut\.png cannot be read as an image'):
        tool.main([*images, '--kept', '0.5'])
    tool = load_tool(SCRIPTS['calibrate'])
    assert tool.main([*images, '--thresholds', '1', '1', '--num-workers', '0']) == 1
    assert '2 images left out, see above' in capfd.readouterr().err


def test_predict_looks_at_all_files_first(checkpoints, place, monkeypatch):  # noqa: F811
    """What is wrong with the last would lose the results of all before it."""
    model = apt_dense.load(checkpoints['seg'])
    monkeypatch.setattr(model, '_predict', lambda *_: pytest.fail('predicted'))
    Image.fromarray(picture(90, 90)).save(place / 'folder.jpg/cut.jpg')
    (place / 'folder.jpg/cut.jpg').write_bytes((place / 'folder.jpg/cut.jpg').read_bytes()[:-300])
    for source in (['a.png', np.zeros((9, 9, 3), np.uint8), 'text.jpg'], ('a.png', place / 'folder.jpg'),
                   ['a.png', 'no.png'], ['a.png', 'text.mp4']):
        with pytest.raises(DataError, match=r'(text|cut)\.(jpg|mp4) cannot be read as a|no.png does not exist'):
            model.predict(source)
    with pytest.raises(DataError, match=r'text\.jpg cannot be read as a picture: .* \(1 more cannot be read\)$'):
        model.predict(['text.jpg', 'folder.jpg'])


def test_what_is_no_picture_is_said_before_the_model_is_looked_for(place, monkeypatch, capfd):
    """Of a list and of a folder; what is one goes on."""
    (place / 'folder.jpg/text.png').write_text('no picture')
    arguments = ['text.jpg', 'text.mp4', 'folder.jpg', '--model', 'no.pth', '--out', 'new']
    said = refuse('predict', arguments, place, monkeypatch, capfd)
    assert said == ('predict: folder.jpg/text.png cannot be read as a picture: give a JPEG, PNG, WebP, TIFF or BMP '
                    'file that is not damaged')
    monkeypatch.setattr(sys, 'argv', ['', 'a.png', *arguments])
    assert run_tool(load_tool('predict.py').main) == 2
    lines = [line for line in capfd.readouterr().err.splitlines() if 'error: ' in line or 'predict: ' in line]
    assert [line.split()[1] for line in lines] == ['text.jpg', 'text.mp4', 'folder.jpg/text.png', 'checkpoint']


@pytest.mark.parametrize('converter', ['eva02_to_mm.py', 'vit_to_mm.py'])
def test_a_checkpoint_of_this_project_is_not_converted(converter, checkpoints, place):  # noqa: F811
    """In a process of its own: mmengine's classes, which the log is made of, are not known there."""
    done = subprocess.run([sys.executable, TOOLS / 'model_converters' / converter, checkpoints['seg'], 'o.pth'],
                          capture_output=True, text=True, env={**os.environ, 'PYTHONPATH': str(ROOT)})
    assert done.returncode == 2 and not (place / 'o.pth').exists()
    assert "in this project's format already. Use it as it is: apt_dense.load(FILE)" in done.stderr, done.stderr
    assert 'author' not in done.stderr and done.stderr.startswith(f'error: {checkpoints["seg"]} is a checkpoint of a')


def test_another_order_than_it_was_given(checkpoints):  # noqa: F811
    """Whatever is wrong with a value that Python gives: DataError, before the model is read."""
    for options in (dict(device='mps'), dict(device=None), dict(device='meta'), dict(thresholds='ab'),
                    dict(thresholds=5), dict(thresholds=('a', 'b')), dict(thresholds=(float('nan'), 1)),
                    dict(max_tokens=1.5), dict(max_tokens=0), dict(max_tokens=True), dict(kept=True), dict(kept='0.5'),
                    dict(kept=float('nan')), dict(kept=0.5, calibrate_on=[]), dict(kept=0.5, calibrate_on=5),
                    dict(kept=0.5, calibrate_on=[np.zeros((9, 9, 3))])):
        with pytest.raises(DataError) as caught:
            apt_dense.load('not looked for.pth', **options)
        assert 'not looked for' not in str(caught.value), options


def test_a_checkpoint_whose_config_lacks_a_part(place):
    text = "model = dict(type='X', backbone=dict(type='APTEVA02'), roi_head=dict())\n"
    torch.save(dict(state_dict={}, meta=dict(cfg=text)), 'short.pth')
    with pytest.raises(DataError, match=r'has no model\.test_cfg\.rcnn'):
        apt_dense.load('short.pth')
    text += "test_dataloader = dict(dataset=dict())\nmodel['test_cfg'] = 1\n"
    torch.save(dict(state_dict={}, meta=dict(cfg=text)), 'odd.pth')
    with pytest.raises(DataError, match='is not one that mmengine has written'):
        apt_dense.load('odd.pth')
    text = ("model = dict(type='NoModel', backbone=dict(type='APTEVA02'), decode_head=dict(num_classes=2))\n"
            "test_dataloader = dict(dataset=dict(type='BaseSegDataset', pipeline=[]))\n")
    torch.save(dict(state_dict={}, meta=dict(cfg=text)), 'unknown.pth')
    with pytest.raises(DataError, match=r'unknown\.pth: its model cannot be built: .*NoModel'):
        apt_dense.load('unknown.pth')


def test_a_text_is_no_checkpoint_whatever_its_end(place):
    """Of any length: torch's reader fails in another way for each."""
    content = io.BytesIO()
    torch.save({'a': torch.zeros(100)}, content)
    for end in range(0, len(content.getvalue()) - 1, 97):
        (place / 'cut.pth').write_bytes(content.getvalue()[:end])
        with pytest.raises(DataError, match=r'^cut\.pth cannot be read as a checkpoint: it is (empty|damaged)'):
            apt_dense.load('cut.pth')
