"""The charts of docs/benchmarks are of the files beside them."""
import json
from dataclasses import asdict
from pathlib import Path

import pytest
from PIL import Image

from apt_dense.benchmark import charts
from apt_dense.benchmark.cases import Case

FOLDER = Path(__file__).parents[2] / 'docs/benchmarks'


@pytest.mark.parametrize('name', charts.CHARTS)
def test_the_pictures_are_up_to_date(name):
    """A file that was measured again wants its chart drawn again: benchmark_docs.py --no-run."""
    with Image.open(FOLDER / f'{name}.png') as picture:
        assert picture.info['Source'] == charts.digest(FOLDER, name)


def test_relative_times_are_those_of_the_dense_twin():
    rows = [dict(kept=kept, apt=dict(speedup=speedup, ideal=ideal))
            for kept, speedup, ideal in ((0.5, 2.5, 4.0), (1.0, 0.8, 1.0))]
    assert charts.relative_times(rows) == [(1.0, 1.25, 1.0), (0.5, 0.4, 0.25)]


def test_a_chart_is_drawn_from_its_files_alone(tmp_path):
    def row(model, mode, kept, speedup):
        return dict(title=f'EVA-02-{model} det 1536', kept=kept, case=asdict(Case(model, mode=mode)),
                    apt=dict(speedup=speedup, speedup_range=[speedup, speedup], ideal=speedup))

    rows = dict(kept=[row('B', 'forward', 0.7, 1.7)], kept_l=[row('L', 'forward', 0.7, 1.6)],
                kept_train=[row('B', 'train', 0.7, 1.7)], overhead_train=[row('B', 'train', 1.0, 1.0)])
    for name, members in rows.items():
        (tmp_path / f'{name}.json').write_text(json.dumps(dict(rows=members)))
    assert not charts.save(tmp_path, 'kept') and not (tmp_path / 'kept.png').exists()  # overhead.json is missing
    (tmp_path / 'overhead.json').write_text(json.dumps(dict(rows=[row('B', 'forward', 1.0, 0.99)])))
    assert charts.save(tmp_path, 'kept')
    with Image.open(tmp_path / 'kept.png') as picture:
        assert picture.info['Source'] == charts.digest(tmp_path, 'kept') and picture.width > 1000
    first = (tmp_path / 'kept.png').read_bytes()
    (tmp_path / 'kept.json').write_text(json.dumps(dict(rows=[row('B', 'forward', 0.7, 1.2)])))
    assert charts.save(tmp_path, 'kept') and (tmp_path / 'kept.png').read_bytes() != first
