"""The code of docs/using.md and of the README runs as it stands, but for the paths."""
import json
import re

import pytest

import apt_dense
from tests.locations import ROOT
from tests.mm.inference.conftest import NAMES

PATH = 'work_dirs/apt_eva02_ti_demo_det/iter_500.pth'


def blocks_of(page):
    return re.findall(r'```python\n(.*?)```', (ROOT / page).read_text(encoding='utf-8'), re.DOTALL)


@pytest.mark.parametrize('page', ['README.md', 'docs/using.md'])
def test_three_lines(page, checkpoints, folder, tmp_path, monkeypatch):
    code = blocks_of(page)[0]
    assert PATH in code and len(code.split('\n\n')[-1].splitlines()) <= 3
    monkeypatch.chdir(tmp_path)
    (tmp_path / 'photo.jpg').write_bytes((folder / 'c.jpg').read_bytes())
    exec(compile(code.replace(PATH, str(checkpoints['det'])), page, 'exec'), {})
    assert (tmp_path / 'found.png').stat().st_size


def test_ids_of_coco(checkpoints, folder, tmp_path):
    code = blocks_of('docs/using.md')[2]
    model = apt_dense.load(checkpoints['det'])
    content = dict(images=[dict(id=index, file_name=name) for index, name in enumerate(NAMES)], annotations=[],
                   categories=[dict(id=index, name=name) for index, name in enumerate(model.classes)])
    (tmp_path / 'val.json').write_text(json.dumps(content))
    for old, new in (('instances_val2017.json', str(tmp_path / 'val.json')), ('val2017/', str(folder))):
        assert old in code
        code = code.replace(old, new)
    names = dict(model=model)
    exec(compile(code, 'using.md', 'exec'), names)
    assert len(names['found']) == sum(map(len, model.predict(folder)))


def test_streams_and_other_thresholds(checkpoints, folder, capsys):
    first, stream, _, ways, _ = blocks_of('docs/using.md')
    names = {}
    exec(compile(first.partition('result,')[0].replace(PATH, str(checkpoints['det'])), 'using.md', 'exec'), names)
    exec(compile(stream.replace('film.mp4', str(folder)), 'using.md', 'exec'), names)
    assert re.fullmatch(r'(.*\.(png|jpg) \d+ \d+% of the tokens\n){3}', capsys.readouterr().out)
    names['checkpoint'] = checkpoints['det']  # of three sizes of patches, the demo's have four
    for old, new in (('photos/', str(folder)), ('(9e-5, 9e-5, 9e-5)', '(3, 3)'), ('(-1, -1, -1)', '(-1, -1)')):
        assert old in ways
        ways = ways.replace(old, new)
    exec(compile(ways, 'using.md', 'exec'), names)
    assert {result.tokens.kept for result in names['model'].predict(folder)} == {1}
