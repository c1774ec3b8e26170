"""The small detector and its data, for tools that take a config."""
import sys

import pytest

from apt_dense.mm.cli.launch import run_tool
from tests.mm import conftest
from tests.mm.conftest import coco_root, plain_config_dumps, scope, tiny_config
from tests.mm.models import test_seg

__all__ = ['coco_root', 'plain_config_dumps', 'scope', 'tiny_config']


@pytest.fixture
def written(tmp_path, tiny_config, coco_root):
    """written(name) -> the path of a tiny demo config on the small detection or segmentation dataset."""
    scenes = test_seg.write_scenes(tmp_path / 'semantic', [(128, 128), (150, 211)])

    def write(name: str) -> str:
        if name.endswith('seg'):
            cfg = test_seg.point_to(test_seg.tiny(name), scenes, tmp_path / 'work')
        else:
            cfg = conftest.point_to(tiny_config(name), coco_root, tmp_path / 'work')
        cfg.dump(tmp_path / f'{name}.py')
        return str(tmp_path / f'{name}.py')

    return write


@pytest.fixture
def refused(tmp_path, monkeypatch, capsys):
    """refused(main, arguments) -> the one line with which a tool ends with status 2, in an empty directory."""

    def refuse(main, arguments: list[str]) -> str:
        monkeypatch.chdir(tmp_path)
        monkeypatch.setattr(sys, 'argv', ['tool.py', *arguments])
        try:
            status = run_tool(main)
        except SystemExit as stopped:  # of argparse
            status = stopped.code
        errors = [line for line in capsys.readouterr().err.splitlines() if 'error: ' in line]
        assert status == 2 and len(errors) == 1, errors
        return errors[0]

    return refuse
