"""Configs of the package as bases of configs that lie elsewhere."""
import re
import runpy
import sys

import pytest
from mmengine.config import Config

import apt_dense.mm  # noqa: F401
from apt_dense.mm.cli import launch
from tests.locations import CONFIGS, ROOT, TOOLS

LEAVES = sorted(path.name for path in CONFIGS.glob('*.py'))


def inherit(path, base: str) -> Config:
    path.write_text(f'_base_ = {base}\n')
    return Config.fromfile(path)


@pytest.mark.parametrize('name', LEAVES)
def test_every_config_is_a_base_by_name(name, tmp_path):
    """The same settings: no class is looked for in a scope of another package."""
    inherited = inherit(tmp_path / 'own.py', f"'apt_dense::{name}'")
    assert inherited.to_dict() == Config.fromfile(CONFIGS / name).to_dict()


def test_parts_are_bases_too_beside_own_files(tmp_path):
    (tmp_path / 'rates.py').write_text('optim_wrapper = dict(optimizer=dict(lr=1.0))\n')
    cfg = inherit(tmp_path / 'own.py', "['./rates.py', 'apt_dense::_base_/patches/ade20k.py']")
    assert (cfg.optim_wrapper.optimizer.lr, cfg.patches.num_scales) == (1.0, 3)


def test_the_documented_base_for_programs_that_do_not_import_apt_dense(tmp_path):
    line, = re.findall(r"`_base_ = (__import__.*)`", (ROOT / 'docs/get_started.md').read_text())
    name = re.search(r'\w+\.py', line)[0]
    assert inherit(tmp_path / 'own.py', line).to_dict() == Config.fromfile(CONFIGS / name).to_dict()


def test_other_packages_are_left_to_mmengine(tmp_path):
    with pytest.raises(AssertionError, match='does not support to load another config'):
        inherit(tmp_path / 'own.py', "'another::folder/config.py'")


def test_a_name_that_is_not_there(tmp_path, monkeypatch, capsys):
    (tmp_path / 'own.py').write_text("_base_ = 'apt_dense::apt_eva02_xl_coco.py'\n")
    monkeypatch.setattr(sys, 'argv', ['train.py', str(tmp_path / 'own.py')])
    status = launch.run_tool(runpy.run_path(str(TOOLS / 'train.py'))['main'])
    assert status == 2
    assert re.search(r"error: config .*own\.py cannot be read.*: .*No such file .*\.mim/configs/apt_eva02_xl_coco\.py'",
                     capsys.readouterr().err)
