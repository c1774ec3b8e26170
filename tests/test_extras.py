"""What the code imports is what setup.py's extras install, and a missing package names its extra."""
import ast
import os
import re
import runpy
import subprocess
import sys
from collections.abc import Iterator
from types import SimpleNamespace

import pytest
from packaging.requirements import Requirement

from apt_dense.extras import from_extra
from tests.locations import ROOT

# Import names that are not the distribution's.
DISTRIBUTIONS = {'PIL': 'pillow', 'cv2': 'opencv-python', 'mmseg': 'mmsegmentation', 'flash_attn': 'flash-attn',
                 'lmms_eval': 'lmms-eval', 'skimage': 'scikit-image', 'mmcv': 'mmcv-lite',
                 'faster_coco_eval': 'faster-coco-eval'}
# gradio asks for an older Pillow than the tests'; torchvision's release follows torch's.
# lmms-eval is left to who evaluates: it brings some seventy packages, and an older filelock.
UNPINNED = {'flash-attn', 'gradio', 'starlette', 'torchvision', 'lmms-eval', 'filelock'}
LOCAL = {'apt_dense', 'tests', 'tools', *(path.stem for path in (ROOT / 'tools').rglob('*.py'))}
# Where code lies -> the extras that it may take from; the first that fits counts.
MAY_USE = {
    'apt_dense/core': ('flash', 'tools', 'hf'),  # inside functions only: test_import.py
    'apt_dense/__init__.py': (),
    'apt_dense/demo': ('demo', 'mm'),
    **dict.fromkeys(('apt_dense/hf/llava_data.py', 'apt_dense/hf/lmms_eval_model.py'), ('vqa',)),
    'apt_dense/hf': ('hf',),
    'apt_dense/mm/inference': ('mm', 'images', 'supervision'),
    'apt_dense/mm': ('mm', 'gpu'),  # the latter where a GPU is, inside a function
    'apt_dense': ('images', 'tools'),
    'configs': ('mm',),
    'tools/export.py': ('mm', 'export'),
    **dict.fromkeys(('tools/benchmark/benchmark_encoders.py', 'tools/benchmark/benchmark_llava.py'), ('hf',)),
    **dict.fromkeys(('tools/vqa', 'tools/demo/vqa_model.py', 'tools/demo/run_vqa_demo.py'), ('vqa',)),
    'tools': ('mm', 'images', 'tools'),
    'tests': ('mm', 'test', 'hf', 'vqa'),
}


@pytest.fixture(scope='module')
def package() -> dict:
    """What setup.py tells setuptools."""
    told = {}
    setuptools = SimpleNamespace(setup=lambda **settings: told.update(settings), find_packages=lambda include: include)
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(sys.modules, 'setuptools', setuptools)
        runpy.run_path(str(ROOT / 'setup.py'))
    return told


def names_of(requirements: list[str]) -> set[str]:
    return {Requirement(text).name.lower() for text in requirements}


def third_party(tree: ast.AST) -> Iterator[tuple[ast.stmt, str]]:
    """(statement, distribution) of each import of something that is neither Python's nor ours."""
    for node in ast.walk(tree):
        modules = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
        modules += [node.module] if isinstance(node, ast.ImportFrom) and not node.level else []
        for name in {module.partition('.')[0] for module in modules}:
            if name not in sys.stdlib_module_names and name not in LOCAL:
                yield node, DISTRIBUTIONS.get(name, name).lower()


SOURCES = sorted(path.relative_to(ROOT) for folder in ('apt_dense', 'configs', 'tests', 'tools')
                 for path in (ROOT / folder).rglob('*.py')
                 if not path.is_relative_to(ROOT / 'tools/experiments')  # for a clone that `make setup` has made
                 and not path.is_relative_to(ROOT / 'tools/docs')  # requirements-docs.txt
                 and not path.is_relative_to(ROOT / 'tests/tools/docs'))


def test_every_import_is_in_an_extra_that_its_place_may_use(package):
    assert len(SOURCES) > 100
    extras = {name: names_of(requirements) for name, requirements in package['extras_require'].items()}
    for source in SOURCES:
        allowed = next(names for place, names in MAY_USE.items() if source.is_relative_to(place))
        known = names_of(package['install_requires']).union(*(extras[name] for name in allowed))
        for _, distribution in third_party(ast.parse((ROOT / source).read_text())):
            assert distribution in known, f'{source} imports {distribution}: put it into one of the extras {allowed}'


def test_every_extra_package_is_imported_somewhere(package):
    """... or, for a few, run or looked up in another way."""
    # mmseg imports the first two, lmms-eval filelock, and they do not declare them.
    otherwise = {'ftfy', 'regex', 'ruff', 'pytest-xdist', 'filelock'}
    imported = {distribution for source in SOURCES
                for _, distribution in third_party(ast.parse((ROOT / source).read_text()))}
    for extra, requirements in package['extras_require'].items():
        assert names_of(requirements) <= imported | otherwise, extra


def guarded_imports(tree: ast.Module) -> dict[ast.AST, str]:
    """Statement in a `with from_extra(EXTRA)` -> EXTRA."""
    guarded = {}
    for node in ast.walk(tree):
        call = node.items[0].context_expr if isinstance(node, ast.With) else None
        if isinstance(call, ast.Call) and getattr(call.func, 'id', '') == 'from_extra':
            guarded |= dict.fromkeys(ast.walk(node), call.args[0].value)
    return guarded


def test_imports_name_their_extra_when_they_fail(package):
    """Each stands in `with from_extra(EXTRA)`, and that extra has it.  (Importing apt_dense.mm asks for mmengine.)"""
    extras = {name: names_of(requirements) for name, requirements in package['extras_require'].items()}
    for source in (source for source in SOURCES if source.parts[0] in ('apt_dense', 'tools')):
        tree = ast.parse((ROOT / source).read_text())
        guarded = guarded_imports(tree)
        for node, distribution in third_party(tree):
            if node in guarded:
                assert distribution in extras[guarded[node]], f'{source}: {distribution} is not in {guarded[node]}'
            elif distribution != 'torch' and not source.is_relative_to('apt_dense/core'):
                one_task = distribution in ('mmdet', 'mmsegmentation') and node in tree.body
                assert source.is_relative_to('apt_dense/mm') and not one_task, (
                    f'{source}: import {distribution} in `with from_extra(...)`')


def test_exact_versions_lie_in_the_ranges(package):
    pins = {}
    for name in ('requirements.txt', 'requirements-openmmlab.txt'):
        pins |= {match[1].lower(): match[2] for match in re.finditer(r'(?m)^([\w.-]+)==([^\s#]+)',
                                                                     (ROOT / name).read_text())}
    pins['opencv-python'] = pins['opencv-python-headless']
    for requirements in (package['install_requires'], *package['extras_require'].values()):
        for requirement in map(Requirement, requirements):
            if requirement.name not in UNPINNED:
                assert pins[requirement.name.lower()] in requirement.specifier, requirement


def test_another_opencv_is_refused(package):
    """The next major version warps images differently, and metrics with them."""
    opencv, = (Requirement(text) for text in package['extras_require']['mm'] if text.startswith('opencv'))
    assert '5.0.0' not in opencv.specifier and '4.99' in opencv.specifier


def test_one_oldest_python_everywhere(package):
    oldest = package['python_requires'].removeprefix('>=')
    for name, wanted in (('README.md', f'Python {oldest} or newer'),
                         ('docs/get_started.md', f'Python {oldest} or newer'),
                         ('tools/setup_env.sh', f'no Python >= {oldest} found'),
                         ('tools/setup_env.sh', f'sys.version_info < ({oldest.replace(".", ", ")})'),
                         ('ruff.toml', f'target-version = "py{oldest.replace(".", "")}"')):
        assert wanted in (ROOT / name).read_text(), name


@pytest.mark.parametrize(('statement', 'missing', 'extra'), [
    ('import apt_dense.calibration.images', 'numpy', 'images'),
    ('import apt_dense.calibration.images', 'PIL', 'images'),
    ('import apt_dense.mm', 'mmengine', 'mm'), ('import apt_dense.mm.seg', 'mmseg', 'mm'),
    ('import apt_dense.mm.det', 'mmdet', 'mm')])
def test_a_missing_package_names_its_extra(statement, missing, extra):
    script = f'import sys\nsys.modules[{missing!r}] = None\n{statement}'
    done = subprocess.run([sys.executable, '-c', script], capture_output=True, text=True, timeout=120,
                          env={**os.environ, 'PYTHONPATH': str(ROOT)})
    assert done.returncode == 1
    how = 'make setup VENV=ENVIRONMENT' if extra == 'mm' else f"pip install -e '.[{extra}]'"
    assert done.stderr.splitlines()[-1].startswith(
        f"ModuleNotFoundError: {missing} is not installed. What is needed here is in the extra '{extra}': {how} in the "
        "project's folder")
    assert f"'apt-dense[{extra}]'" in done.stderr.splitlines()[-1]  # who has installed the wheel has no such folder


def test_a_module_of_our_own_names_no_extra():
    with pytest.raises(ModuleNotFoundError, match="^No module named 'apt_dense.no'$"), from_extra('images'):
        import apt_dense.no  # noqa: F401
    with pytest.raises(ImportError, match='cannot import name'), from_extra('images'):
        from torch import no_such_thing  # noqa: F401
