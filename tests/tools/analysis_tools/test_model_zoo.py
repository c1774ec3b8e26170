"""The model zoo's table is what the configs say."""
import pytest

from tests.locations import CONFIGS, load_tool

tool = load_tool('analysis_tools/model_zoo.py')


def test_the_page_is_up_to_date_and_a_change_is_found(tmp_path, monkeypatch, capsys):
    table = tool.table()
    monkeypatch.setattr(tool, 'table', lambda: table)
    assert tool.main(['--check']) == 0, 'run tools/analysis_tools/model_zoo.py'
    changed = tmp_path / 'model_zoo.md'
    changed.write_text(tool.PAGE.read_text(encoding='utf-8').replace('| 58.93 mAP |', '| 59.93 mAP |'))
    monkeypatch.setattr(tool, 'PAGE', changed)
    assert tool.main(['--check']) == 1 and 'another table' in capsys.readouterr().out


def test_every_config_but_the_demos_has_a_row():
    wanted = {path.name for path in CONFIGS.glob('*.py') if '_demo_' not in path.name}
    assert [row.path.name for row in tool.rows()].count('eva02_b_coco.py') == 1
    assert {row.path.name for row in tool.rows()} == wanted


def test_no_cell_is_empty():
    for line in (line for line in tool.PAGE.read_text(encoding='utf-8').splitlines() if line.startswith('| `')):
        cells = [cell.strip() for cell in line.strip('|').split('|')]
        assert len(cells) == len(tool.HEADINGS) and all(cells), line


def test_memory_is_that_of_the_size():
    counted = dict(a=dict(size_px=1024, parameters=10, weights=6.5e9, blocks=5.3e9, blocks_with_cp=0.6e9, rest=0.9e9))
    assert tool.memory_of('a', 1024, 10, False, counted) == '12.7'
    assert tool.memory_of('a', 1024, 10, True, counted) == '8.0'
    for config, size_px, parameters in (('a', 512, 10), ('b', 1024, 10), ('a', 1024, 11)):
        with pytest.raises(ValueError, match=rf'no figures of {config} at {size_px} px: count them'):
            tool.memory_of(config, size_px, parameters, True, counted)
