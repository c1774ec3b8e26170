"""The model zoo's table is what the configs say."""
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


def test_memory_is_that_of_the_size():
    page = ('| model | px | ... |\n'
            '| `a.py` (upper bound) | 1024 | 9 | 6.5 | 5.3 + 0.9 | 12.7 | 18.9 | 31.3 | 8.0, 9.5 |\n'
            '| `a.py`, scaled | 1536 | 9 | 6.5 | 11.9 + 2.0 | 20 | 34 | 62 | 10, 13 |\n')
    assert tool.memory_of('a', 1024, False, page) == '12.7'
    assert tool.memory_of('a', 1536, True, page) == '10'
    assert tool.memory_of('a', 512, True, page) == tool.memory_of('b', 1024, True, page) == ''
