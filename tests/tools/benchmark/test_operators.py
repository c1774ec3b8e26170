"""The comparison of the plain with the compiled operators."""
import pytest

from apt_dense.mm.compat.operator_set import PlainOperators
from tests.locations import load_tool


def test_ratio_of_sums_and_of_steps(capsys):
    load_tool('benchmark/operators.py').report('test', {'compiled': [1.0, 2.0, 4.0, 1.0, 2.0],
                                                        'plain': [0.5, 1.0, 4.0, 0.5, 4.0]})
    assert capsys.readouterr().out == (
        'test: 5 steps, compiled 10.0 s, plain 10.0 s, ratio 1.000; of single steps 0.500, half of them between 0.500 '
        'and 1.000\n')


def test_it_takes_both_kinds(monkeypatch):
    tool = load_tool('benchmark/operators.py')
    monkeypatch.setattr('sys.argv', ['operators.py'])
    for operators in (None, PlainOperators('mmcv has none')):
        monkeypatch.setattr(tool, 'plain_operators', lambda operators=operators: operators)
        with pytest.raises(SystemExit, match='^error: it takes both kinds of operators: MMCV=compiled make setup'):
            tool.main()
