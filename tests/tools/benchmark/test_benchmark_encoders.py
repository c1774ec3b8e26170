"""The encoders' speed against transformers: the command, and that the page has the stored figures."""
import json

import pytest
import torch

from tests.locations import ROOT, load_tool

CONTENT = json.loads((ROOT / 'docs/benchmarks/encoders.json').read_text())


@pytest.mark.parametrize('row', CONTENT['rows'], ids=lambda row: f'{row["model"]}:{row["size_px"]}')
def test_the_page_has_the_stored_figures(row):
    parts = [f'{row["model"]}, {row["depth"]} blocks', str(row['size_px']), f'{row["dense_over_transformers"]:.2f}']
    for kept in ('0.7', '0.5'):
        found = row['apt'][kept]
        assert found['of_ideal'] == pytest.approx(found['speedup'] / found['ideal'])
        parts.append(f'{found["speedup"]:.2f} of {found["ideal"]:.2f} ({found["of_ideal"]:.2f})')
    assert f'| {" | ".join(parts)} |' in (ROOT / 'docs/encoders.md').read_text().splitlines()


def test_the_command(tmp_path, capsys):
    """A row for each encoder, in the words of the page, and the same as JSON; what cannot be measured ends with 2."""
    pytest.importorskip('transformers')
    tool, file = load_tool('benchmark/benchmark_encoders.py'), tmp_path / 'encoders.json'
    with torch.no_grad():
        assert tool.main(['DINOv3-S:256', 'SAM3:336', '--depth', '1', '--repeats', '1', '--json', str(file)]) == 0
        rows = json.loads(file.read_text())['rows']
        printed = capsys.readouterr().out.splitlines()[2:]
        found = [(row['model'], row['size_px'], row['depth']) for row in rows]
        assert found == [('DINOv3-S', 256, 1), ('SAM3', 336, 1)]
        assert printed == [tool.line(row) for row in rows]
        assert tool.main(['CLIP-L:336', '--depth', '1']) == 2 and tool.main(['Swin-T:224']) == 2
    assert 'there is a twin of transformers for DINOv3, SAM 3 and the plain ViT' in capsys.readouterr().err
