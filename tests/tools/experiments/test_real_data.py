"""tools/experiments/coco.sh and ade20k.sh: the configs and commands of their grid, with stand-ins for the training."""
import os
import subprocess
import sys

import pytest
from mmengine.config import Config

from tests.locations import ROOT, TOOLS

STAND_IN = """#!/bin/sh
# For python: thresholds are found at once, trainings and tests are noted and fail where they are told to.
case "$*" in
*calibrate_thresholds.py*)
    while [ "$1" != --out-dir ]; do shift; done
    mkdir -p "$2"
    echo "model = dict(backbone=dict(thresholds={thresholds}))" > "$2/thresholds.py"
    echo found ;;
*torch.distributed.run*) echo "$@" >> {noted}; [ ! -f {failing} ] ;;
*) exec {python} "$@" ;;
esac
"""


@pytest.fixture
def run(tmp_path):
    """run(script, *arguments, status=0) -> its output; commands are in tmp_path/noted."""
    def run_script(script, *arguments, thresholds='(5.0, 4.0)', status=0):
        python = tmp_path / 'python'
        python.write_text(STAND_IN.format(noted=tmp_path / 'noted', failing=tmp_path / 'failing', python=sys.executable,
                                          thresholds=thresholds))
        python.chmod(0o755)
        done = subprocess.run([TOOLS / 'experiments' / script, *arguments], cwd=tmp_path, text=True,
                              capture_output=True, env={**os.environ, 'PYTHON': str(python), 'PORT': '29871',
                                                        'PYTHONPATH': str(ROOT)})
        assert done.returncode == status, done.stdout + done.stderr
        return done.stdout + done.stderr

    (tmp_path / 'dense.pth').touch()
    return run_script


@pytest.mark.parametrize(('script', 'thresholds', 'short'), [
    ('coco.sh', '(2.0, 2.0, 0.3)', 3000), ('ade20k.sh', '(5.75, 4.0)', 4000)])
def test_the_grid(script, thresholds, short, run, tmp_path):
    run(script, 'dense.pth', '4', thresholds=thresholds)
    (work,) = (tmp_path / 'work_dirs/real').iterdir()
    configs = {path.stem: Config.fromfile(path) for path in work.glob('*.py')}
    assert len(configs) == 3 + 2 * (4 * 3 + 2) + 4
    for name, cfg in configs.items():
        backbone = cfg.model.backbone
        if name.startswith('dense'):
            assert backbone.num_scales == 1
        else:
            scorer, _, rest = name.partition('-')
            assert backbone.proportional_attention == (scorer != 'entropy' and 'resizing' not in rest)
            assert backbone.scorer == scorer and str(tuple(backbone.thresholds)) == thresholds
            by_added = any(kind in rest for kind in ('added', 'resizing', 'untrained'))
            assert bool(cfg.model.get('trainable')) == by_added, name
        if name.endswith('-long'):
            usual = configs[name.removesuffix('-long')]
            assert cfg.train_cfg.max_iters == 4 * short == 4 * usual.train_cfg.max_iters
            for step, before in zip(cfg.param_scheduler, usual.param_scheduler, strict=True):
                assert (step.begin, step.end) == (4 * before.begin, 4 * before.end)
                assert step.get('milestones') == ([4 * at for at in before.milestones] if 'milestones' in before else
                                                  None)
            assert cfg.optim_wrapper == usual.optim_wrapper
    commands = (tmp_path / 'noted').read_text().splitlines()
    assert len(commands) == len(configs) and all('--nproc_per_node=4' in command for command in commands)
    assert sum('train.py' in command and f'load_from={tmp_path}/dense.pth' in command for command in commands) == 22
    assert not run(script, 'dense.pth', '4').strip()  # all is done
    assert len((tmp_path / 'noted').read_text().splitlines()) == len(commands)


def test_what_has_failed_is_run_again(run, tmp_path):
    (tmp_path / 'failing').touch()
    run('coco.sh', 'dense.pth', status=1)
    assert len((tmp_path / 'noted').read_text().splitlines()) == 1
    (tmp_path / 'failing').unlink()
    run('coco.sh', 'dense.pth')
    assert len((tmp_path / 'noted').read_text().splitlines()) == 1 + 35


def test_the_list_runs_nothing(run, tmp_path):
    said = run('ade20k.sh', 'dense.pth', '--list')
    assert said.count(' h  ') == 35 and 'about 40' in said.splitlines()[-1], said
    assert not (tmp_path / 'work_dirs').exists() and not (tmp_path / 'noted').exists()


@pytest.mark.parametrize(('arguments', 'message'), [
    ((), 'usage: '), (('none.pth',), 'checkpoint none.pth does not exist'), (('dense.pth', 'x'), 'x is neither')])
def test_bad_arguments(arguments, message, run):
    assert message in run('coco.sh', *arguments, status=2)
