"""The comparison of two models: figures, pictures, and what is refused."""
import json

import numpy as np
import pytest
from PIL import Image

from tests.locations import load_tool
from tests.mm.inference.conftest import checkpoints  # noqa: F401


@pytest.fixture(scope='module')
def tool():
    return load_tool('analysis_tools/compare_models.py')


@pytest.mark.parametrize('task', ['det', 'seg'])
def test_a_model_and_the_same_with_nothing_merged(task, tool, checkpoints, tmp_path, capsys):  # noqa: F811
    out = tmp_path / 'out'
    tool.main([str(checkpoints[task]), str(checkpoints[task]), '--thresholds-b', '-1', '-1', '--draw', '1',
               '--min-score', '0', '--out-dir', str(out)])
    printed = capsys.readouterr().out
    content = json.loads((out / 'compare.json').read_text())
    assert content['metrics_a']['kept_tokens_content'] < 1 == content['metrics_b']['kept_tokens_content']
    assert all(image['kept_a'] < 1 == image['kept_b'] and 0 <= image['score_a'] <= 1 for image in content['images'])
    assert len(content['images']) == 2 and '2 images: B better on ' in printed
    for name in {'det': ('coco/bbox_mAP_s', 'coco/segm_mAP'), 'seg': ('mIoU', 'aAcc')}[task]:
        assert name in content['metrics_a'] and name in printed
    (drawn,) = (out / 'different').iterdir()
    most = max(content['images'], key=lambda image: abs(image['score_a'] - image['score_b']))
    assert drawn.stem == f'01_{most["path"].rpartition("/")[2][:-4]}'
    pixels = np.asarray(Image.open(drawn)).astype(int)
    assert pixels.shape[0] > 2 * 96 and pixels.shape[1] > 3 * 128
    assert Image.open(out / 'kept.png').size[0] > 1000


def test_the_same_twice_is_alike(tool, checkpoints, tmp_path, capsys):  # noqa: F811
    tool.main([str(checkpoints['seg'])] * 2 + ['--draw', '0', '--out-dir', str(tmp_path)])
    printed = capsys.readouterr().out
    assert 'B better on 0, A on 0, alike on 2' in printed and '+0' in printed


@pytest.mark.parametrize(('arguments', 'message'), [
    (('{det}', '{seg}'), 'A is a detector and B a segmentor: give two models of one task'),
    (('{det}', 'x.pth'), 'checkpoint x.pth does not exist'),
    (('{det}', '{det}', '--draw', '-1'), '--draw -1: wanted 0 or more'),
    (('{det}', '{det}', '--thresholds-b', '1'), 'got 1 thresholds'),
    (('{seg}', '{seg}', '--cfg-options', 'test_dataloader.dataset.data_root=nowhere'), 'dataset files are missing'),
    (('{seg}', '{seg}', '--cfg-options', 'test_evaluator.format_only=True', 'test_evaluator.output_dir=out'),
     'test_evaluator is IoUMetric: wanted'),
])
def test_bad_input_is_one_line(arguments, message, tool, checkpoints, refused):  # noqa: F811
    assert message in refused(tool.main, [text.format(**checkpoints) for text in arguments])
