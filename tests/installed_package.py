#!/usr/bin/env python
"""Build the package, install it into a new environment and use it there, from an empty directory.

    python tests/installed_package.py

The wheel is built from the source distribution, and that from the files that git knows.  What they need is taken from
the environment that runs this, all but apt_dense itself; nothing is downloaded, and pip checks that it is what the
package's extras ask for.
"""
import json
import math
import os
import shutil
import subprocess
import sys
import sysconfig
import tempfile
import time
import venv
import zipfile
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

ROOT = Path(__file__).parents[1]
EXTRAS = ('export', 'images', 'mm', 'supervision', 'test', 'tools')  # all but flash and gpu
# Of no use without a clone: they install, drill or document the project itself.
LEFT_OUT = ('setup_env.sh', 'benchmark/benchmark_docs.py', 'demo/draw_overview.py', 'demo/draw_pictures.py',
            'demo/draw_encoders.py',
            'analysis_tools/model_zoo.py', 'docs/', 'fault_drill/', 'experiments/')
OWN_CONFIG = """_base_ = 'apt_dense::apt_eva02_ti_demo_det.py'
train_cfg = dict(max_iters=1)
train_dataloader = dict(num_workers=0, persistent_workers=False)
val_cfg = val_dataloader = val_evaluator = None
default_hooks = dict(checkpoint=dict(interval=1))
"""
CHECKS = """
import sys
import apt_dense
assert apt_dense.__file__.startswith(sys.prefix), apt_dense.__file__
assert not {'mmengine', 'mmcv', 'PIL'} & sys.modules.keys()  # it needs torch alone
import apt_dense.mm
from mmengine.config import Config
cfg = Config.fromfile('large.py')
assert (cfg.model.backbone.embed_dims, cfg.model.backbone.scorer) == (1024, 'upsampling_error_max')
print(apt_dense.__path__[0])
"""


def run(*command: object, folder: Path) -> str:
    """What a command prints; it starts in a folder, and finds Python packages in its environment only."""
    environment = {name: value for name, value in os.environ.items() if name not in ('PYTHONPATH', 'PYTHONHOME')}
    done = subprocess.run(list(map(str, command)), cwd=folder, env=dict(environment, OMP_NUM_THREADS='1'), text=True,
                          stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
    if done.returncode:
        sys.exit(f'{done.stdout}\nerror: {" ".join(map(str, command))} ended with status {done.returncode}')
    return done.stdout


def copy_sources(folder: Path) -> None:
    """The project's files as they are now, without what git ignores: an earlier build, for example."""
    listed = run('git', 'ls-files', '--cached', '--others', '--exclude-standard', '-z', folder=ROOT)
    for name in listed.rstrip('\0').split('\0'):
        if os.path.lexists(ROOT / name):
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(ROOT / name, folder / name, follow_symlinks=False)


def build(folder: Path) -> Path:
    """Sources -> source distribution -> wheel."""
    copy_sources(folder / 'source')
    run(sys.executable, 'setup.py', '-q', 'sdist', '-d', folder, folder=folder / 'source')
    run(sys.executable, '-m', 'pip', 'wheel', '-q', '--no-deps', '--no-build-isolation', '--no-index', '-w', folder,
        next(folder.glob('*.tar.gz')), folder=folder)
    return next(folder.glob('*.whl'))


def check_contents(wheel: Path) -> None:
    """All of the code, all configs, the tools; nothing beside the package, and no tool that needs a clone."""
    names = set(zipfile.ZipFile(wheel).namelist())
    outside = sorted(name for name in names if not name.startswith(('apt_dense/', 'apt_dense-')))
    left_out = tuple(f'apt_dense/.mim/tools/{name}' for name in LEFT_OUT)
    outside += sorted(name for name in names if name.startswith(left_out))
    wanted = {path.relative_to(ROOT).as_posix() for path in (ROOT / 'apt_dense').rglob('*.py')}
    for folder in ('configs', 'tools'):
        wanted |= {f'apt_dense/.mim/{path.relative_to(ROOT).as_posix()}' for path in (ROOT / folder).rglob('*.py')}
    wanted = {name for name in wanted | {'apt_dense/.mim/tools/dist_train.sh'} if not name.startswith(left_out)}
    if outside or wanted - names:
        sys.exit(f'error: {wheel.name} has {outside}, which it should not, and lacks {sorted(wanted - names)}')


def install(wheel: Path, environment: Path) -> Path:
    """Make an environment with the wheel and the packages of this one; return its Python.

    The wheel goes in alone.  With the other packages in sight pip then has nothing to install, and fails if a package
    that the extras ask for, or that one of these asks for, is missing or of another version.
    """
    venv.create(environment, symlinks=True)
    python = environment / 'bin/python'
    pip = (sys.executable, '-m', 'pip', '--python', python, 'install', '-q', '--no-index')
    run(*pip, '--no-deps', wheel, folder=environment)
    # What a .pth file names is added to sys.path; .pth files that lie there, of an editable install, are not read.
    packages = Path(sysconfig.get_path('purelib', 'venv', vars=dict(base=str(environment))))
    (packages / 'packages_of_the_tests.pth').write_text(
        ''.join(f'{sysconfig.get_path(kind)}\n' for kind in ('purelib', 'platlib')))
    let_stand_ins_count(packages)
    run(*pip, f'{wheel}[{",".join(EXTRAS)}]', folder=environment)
    return python


def let_stand_ins_count(packages: Path) -> None:
    """Give a folder of packages the metadata of those that another, which is there, stands in for.

    requirements.txt has the headless build of OpenCV, which is the same module cv2 without windows; mmengine and the
    extra mm ask for the other.  A compiled mmcv is mmcv-lite and more.  pip knows no package that stands for another.
    """
    for name, other in (('opencv-python', 'opencv-python-headless'), ('mmcv-lite', 'mmcv')):
        try:
            version(name)
        except PackageNotFoundError:
            metadata = packages / f'{name.replace("-", "_")}-{version(other)}.dist-info'
            metadata.mkdir()
            (metadata / 'METADATA').write_text(f'Metadata-Version: 2.1\nName: {name}\nVersion: {version(other)}\n')


def use(python: Path, folder: Path) -> None:
    """Import, inherit a config, make the demo dataset, train one step of the demo."""
    (folder / 'large.py').write_text("_base_ = 'apt_dense::apt_eva02_l_coco.py'\n")
    (folder / 'own.py').write_text(OWN_CONFIG)
    tools = Path(run(python, '-c', CHECKS, folder=folder).splitlines()[-1], '.mim/tools')
    run(python, tools / 'demo/make_demo_dataset.py', '--num-train', 4, '--num-val', 1, folder=folder)
    run(python, tools / 'train.py', 'own.py', folder=folder)
    log = next(folder.glob('work_dirs/own/*/vis_data/scalars.json')).read_text()
    loss = json.loads(log.splitlines()[0])['loss']
    if not (folder / 'work_dirs/own/iter_1.pth').is_file() or not math.isfinite(loss):
        sys.exit(f'error: the demo step left no checkpoint, or its loss is {loss}')


def main() -> None:
    start = time.perf_counter()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        wheel = build(folder)
        check_contents(wheel)
        python = install(wheel, folder / 'environment')
        (folder / 'empty').mkdir()
        use(python, folder / 'empty')
        seconds = time.perf_counter() - start
        print(f'{wheel.name}: built, installed and used from an empty directory, in {seconds:.0f} s')


if __name__ == '__main__':
    main()
