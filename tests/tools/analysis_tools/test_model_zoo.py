"""The model zoo's tables are what the configs say, and fit into the page."""
import itertools

import pytest

from tests.locations import CONFIGS, load_tool

tool = load_tool('analysis_tools/model_zoo.py')


# Of a page of 1280 px: what the two lists at its sides leave, padding of a cell, and a letter of text and of code.
WIDTH_PX, PADDING_PX, LETTER_PX, CODE_PX = 748, 18, 6.6, 6.6


def tables_of_page() -> list[list[list[str]]]:
    """The cells of each of the zoo's tables, headings first."""
    zoo = tool.PAGE.read_text(encoding='utf-8').split('<!-- zoo -->')[1].split('<!-- end of zoo -->')[0]
    parts = [part.splitlines() for part in zoo.split('\n\n') if part.startswith('|')]
    return [[[cell.strip() for cell in line.strip('|').split('|')] for line in [lines[0], *lines[2:]]]
            for lines in parts]


def narrowest_px(text: str) -> float:
    """Code is never broken, text at its blanks."""
    if text.startswith('`'):
        return len(text.strip('`')) * CODE_PX
    return max(map(len, text.split())) * LETTER_PX


def test_the_page_is_up_to_date_and_a_change_is_found(tmp_path, monkeypatch, capsys):
    tables = tool.tables()
    monkeypatch.setattr(tool, 'tables', lambda: tables)
    assert tool.main(['--check']) == 0, 'run tools/analysis_tools/model_zoo.py'
    changed = tmp_path / 'model_zoo.md'
    changed.write_text(tool.PAGE.read_text(encoding='utf-8').replace('| 58.93 mAP |', '| 59.93 mAP |'))
    monkeypatch.setattr(tool, 'PAGE', changed)
    assert tool.main(['--check']) == 1 and 'other tables' in capsys.readouterr().out


def test_every_config_but_the_demos_has_its_rows():
    wanted = sorted(path.stem for path in CONFIGS.glob('*.py') if '_demo_' not in path.name)
    tables = tables_of_page()
    assert sorted(row[0].strip('`') for table in tables[::2] for row in table[1:]) == wanted
    assert sorted(row[0].split()[2].strip('`') for table in tables[1::2] for row in table[1:]) == wanted


def test_a_family_and_dataset_stand_together_once():
    groups = [name for name, _ in itertools.groupby(row.group for row in tool.rows())]
    assert groups[:2] == ['EVA-02 on COCO', 'EVA-02 on ADE20K'] and len(groups) == len(set(groups))


def test_no_cell_is_empty_and_no_table_scrolls_sideways():
    tables = tables_of_page()
    assert {tuple(table[0]) for table in tables} == {tool.FIGURES, tool.COMMANDS}
    for table in tables:
        assert all(len(row) == len(table[0]) and all(row) for row in table)
        columns = zip(*table, strict=True)
        assert sum(max(map(narrowest_px, column)) + PADDING_PX for column in columns) <= WIDTH_PX, table[1]


def test_memory_is_that_of_the_size():
    counted = dict(a=dict(size_px=1024, parameters=10, weights=6.5e9, blocks=5.3e9, blocks_with_cp=0.6e9, rest=0.9e9))
    assert tool.memory_of('a', 1024, 10, False, counted) == '12.7'
    assert tool.memory_of('a', 1024, 10, True, counted) == '8.0'
    for config, size_px, parameters in (('a', 512, 10), ('b', 1024, 10), ('a', 1024, 11)):
        with pytest.raises(ValueError, match=rf'no figures of {config} at {size_px} px: count them'):
            tool.memory_of(config, size_px, parameters, True, counted)
