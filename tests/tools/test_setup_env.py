"""tools/setup_env.sh: what it decides, by its functions in a shell where torch, pip and nvcc are made up."""
import subprocess
import sys
from pathlib import Path

import pytest

from tests.locations import ROOT, TOOLS

SCRIPT = TOOLS / 'setup_env.sh'


def shell(code: str, tmp_path: Path, **variables: str) -> tuple[int, str]:
    """(exit status, output) of code after the script's functions are defined; the environment has no compiler."""
    environment = {'PATH': '/usr/bin:/bin', 'HOME': str(tmp_path), 'VENV': str(tmp_path / 'venv'), **variables}
    done = subprocess.run(['bash', '-c', f'source {SCRIPT}\ncd "$HOME"\n{code}'], env=environment, text=True,
                          stdout=subprocess.PIPE, stderr=subprocess.STDOUT, timeout=60)
    return done.returncode, done.stdout


def torch(facts: str) -> str:
    return f'torch_facts() {{ echo "{facts}"; }}\n'


@pytest.mark.parametrize(('facts', 'variables', 'expected'), [
    ('2.13.0+cpu -', {}, 'cpu'),
    ('2.13.0 13.0 9.0', {}, 'cuda 9.0+PTX'),
    ('2.13.0 13.0 8.0 9.0', {}, 'cuda 8.0;9.0+PTX'),
    ('2.13.0 13.0 9.0', {'TORCH_CUDA_ARCH_LIST': '8.0;8.6'}, 'cuda 8.0;8.6'),
    ('2.13.0 13.0 9.0', {'FORCE_CUDA': '0'}, 'cpu'),
    ('2.13.0 13.0', {'FORCE_CUDA': '1'}, 'cuda 8.0;9.0+PTX'),
    ('2.13.0 13.0', {'FORCE_CUDA': '0'}, 'cpu'),
])
def test_what_mmcv_is_compiled_for(tmp_path, facts, variables, expected):
    assert shell(f'{torch(facts)}compile_for', tmp_path, **variables) == (0, f'{expected}\n')


def test_a_cuda_build_without_a_gpu_asks(tmp_path):
    """It would compile for CPUs without a word, and training on a GPU would end at the first RoIAlign."""
    status, text = shell(f'{torch("2.13.0 13.0")}compile_for', tmp_path)
    assert status == 1
    assert text.startswith('[setup] ERROR: torch 2.13.0 is built for CUDA 13.0 and sees no GPU here. FORCE_CUDA=1 ')
    assert 'FORCE_CUDA=0 for CPUs only' in text and '8.0;9.0+PTX' in text


def test_cuda_wanted_of_a_torch_without(tmp_path):
    status, text = shell(f'{torch("2.13.0+cpu -")}compile_for', tmp_path, FORCE_CUDA='1')
    assert status == 1 and 'FORCE_CUDA=1, but torch 2.13.0+cpu is built without CUDA: install a CUDA build' in text


def make_nvcc(folder: Path, release: str) -> Path:
    nvcc = folder / 'bin/nvcc'
    nvcc.parent.mkdir(parents=True)
    nvcc.write_text(f'#!/bin/sh\necho "Cuda compilation tools, release {release}, V{release}.88"\n')
    nvcc.chmod(0o755)
    return folder


@pytest.mark.parametrize('release', ['13.0', '13.2'])
def test_nvcc_of_torchs_major_version(tmp_path, release):
    home = make_nvcc(tmp_path / 'cuda', release)
    code = f'{torch("2.13.0 13.0")}find_cuda_home'
    assert shell(code, tmp_path, CUDA_HOME=str(home)) == (0, f'{home}\n')
    assert shell(code, tmp_path, PATH=f'{home}/bin:/usr/bin:/bin') == (0, f'{home}\n')


@pytest.mark.parametrize('release', ['12.8', None])
def test_nvcc_of_another_version_and_none(tmp_path, release):
    """The message names the remedy before anything is downloaded; torch would stop the build at its end."""
    home = make_nvcc(tmp_path / 'cuda', release) if release else tmp_path
    status, text = shell(f'{torch("2.13.0 13.0")}find_cuda_home', tmp_path, CUDA_HOME=str(home))
    assert status == 1
    assert (f'torch is built for CUDA 13.0 and {home}/bin/nvcc is of CUDA 12.8' if release else
            f"need the compiler nvcc of CUDA 13.0, which is not in {home}/bin") in text
    assert "-m pip install 'cuda-toolkit[nvcc,cccl,cublas,cusparse,cusolver]==13.0.*', and set CUDA_HOME to " in text
    assert 'site-packages/nvidia/cu13' in text


FAKE_COMPILE = """
present() { :; }
compile_mmcv() { echo "compile for $2 $3"; mkdir -p "$4/dist"; touch "$4/dist/mmcv.whl"; }
PIP=(echo pip)
mkdir -p venv/bin; printf '#!/bin/sh\\necho cpython-311-torch2.13.0\\n' > venv/bin/python; chmod +x venv/bin/python
"""


def test_wheels_are_kept_by_architecture(tmp_path):
    """One compiled on an H100 has no kernel for an A100."""
    def install(target):
        return shell(f'{FAKE_COMPILE}install_compiled_mmcv mmcv==2.1.0 {target}', tmp_path)[1]

    for target, made in (("cuda '9.0+PTX'", True), ("cuda '8.0+PTX'", True), ('cpu', True), ("cuda '9.0+PTX'", False),
                         ('cpu', False)):
        text = install(target)
        assert ('compile for' in text) == made
        assert 'pip install -qq --no-deps' in text
    kept = sorted(path.name for path in (tmp_path / '.cache/apt_dense/wheels').iterdir())
    assert kept == ['cpython-311-torch2.13.0-cpu-mmcv2.1.0', 'cpython-311-torch2.13.0-cuda-8.0_PTX-mmcv2.1.0',
                    'cpython-311-torch2.13.0-cuda-9.0_PTX-mmcv2.1.0']


def test_what_is_compiled_is_told_to_mmcv(tmp_path):
    """... which looks at FORCE_CUDA and at visible GPUs; without CUDA it must see none."""
    code = """check_compiler() { :; }; find_cuda_home() { echo /cuda; }; env() { echo "env $*" >&2; }
    mkdir build; touch build/unpacked; compile_mmcv mmcv==2.1.0 """
    for target, settings, said in (
            ("cuda '8.0;9.0+PTX'", 'FORCE_CUDA=1 TORCH_CUDA_ARCH_LIST=8.0;9.0+PTX CUDA_HOME=/cuda ',
             'cuda 8.0;9.0+PTX'), ("cpu ''", 'FORCE_CUDA=0 CUDA_VISIBLE_DEVICES= ', 'cpu')):
        status, text = shell(f'rm -rf build; {code}{target} build', tmp_path)
        assert status == 0 and f'compiling the ops of mmcv==2.1.0 for {said}, once: ' in text
        assert f'env {settings}CFLAGS=' in (tmp_path / 'build/build.log').read_text()


INSTALL = """
PIP=(echo pip)
cd {root}
missing_pins() {{ sed -n 's/^\\([a-z-]*==[^ ]*\\).*/\\1/p' "$1"; }}
compile_for() {{ echo "cuda 9.0+PTX"; }}
lacks_operators() {{ echo "{reason}"; }}
install_compiled_mmcv() {{ echo "compiled $*"; }}
present() {{ echo "{there}"; }}
install_openmmlab
"""


@pytest.mark.parametrize(('variables', 'reason', 'expected'), [
    ({}, '', 'mmengine==0.10.7 mmdet==3.3.0 mmsegmentation==1.2.2 mmcv-lite==2.1.0'),
    ({'MMCV': 'compiled'}, 'none', 'mmengine==0.10.7 mmdet==3.3.0 mmsegmentation==1.2.2 '
     'compiled mmcv==2.1.0 cuda 9.0+PTX'),
    ({'MMCV': 'compiled'}, '', 'mmengine==0.10.7 mmdet==3.3.0 mmsegmentation==1.2.2'),
    ({'OPENMMLAB': 'onedl'}, '', 'onedl-mmengine==0.10.12 onedl-mmdetection==3.5.1 onedl-mmsegmentation==1.4.2 '
     'imaug==0.4.3 mmcv-lite==2.1.0'),
])
def test_which_packages_are_installed(tmp_path, variables, reason, expected):
    status, text = shell(INSTALL.format(root=ROOT, reason=reason, there=''), tmp_path, **variables)
    assert status == 0
    installed = [line.removeprefix('pip install -qq --no-deps --no-build-isolation ') for line in text.splitlines()
                 if not line.startswith('[setup]')]
    assert ' '.join(installed) == expected


def test_forks_are_not_unpacked_over_stock_packages(tmp_path):
    status, text = shell(INSTALL.format(root=ROOT, reason='', there='mmdet'), tmp_path, OPENMMLAB='onedl')
    assert status == 1
    assert 'has the stock packages mmdet, whose files have the same names: name another environment' in text
    assert 'pip' not in text


@pytest.mark.parametrize('variables', [{'MMCV': 'full'}, {'OPENMMLAB': 'fork'}])
def test_no_such_choice(tmp_path, variables):
    status, text = shell('main', tmp_path, **variables)
    name, value = next(iter(variables.items()))
    assert status == 1 and f'ERROR: {name}={value}: choose ' in text
    assert not (tmp_path / 'venv').exists()


TORCHVISION = """
PIP=(echo pip)
present() {{ echo "{there}"; }}
mkdir -p venv/bin; printf '#!/bin/sh\\n{python}\\n' > venv/bin/python; chmod +x venv/bin/python
install_torchvision
"""


@pytest.mark.parametrize(('facts', 'there', 'expected'), [
    ('2.13.0+cpu -', '', []), ('2.13.0+cu130 13.0 9.0', 'torchvision', []),
    ('2.13.0 13.0 9.0', '', ['pip install -qq --no-deps torchvision==0.28.*']),
    ('2.9.1+cu128 12.8 8.0', '', ['pip install -qq --no-deps torchvision==0.24.*'])])
def test_the_torchvision_of_a_cuda_torch(tmp_path, facts, there, expected):
    status, text = shell(torch(facts) + TORCHVISION.format(there=there, python='exit 0'), tmp_path)
    assert status == 0 and 'WARNING' not in text
    assert [line for line in text.splitlines() if not line.startswith('[setup]')] == expected


def test_a_torchvision_that_does_not_load(tmp_path):
    code = TORCHVISION.format(there='torchvision', python='echo Traceback; echo OSError: libcudart >&2; exit 1')
    status, text = shell(torch('2.13.0 13.0') + code, tmp_path)
    assert status == 0
    assert 'torch 2.13.0 is built for CUDA 13.0 and sees no GPU here: it computes on the CPU' in text
    assert 'WARNING: torchvision does not load beside torch 2.13.0 (OSError: libcudart): detectors will not run' in text


@pytest.mark.parametrize(('there', 'expected'), [
    ([], 'timm==1.0.31 torchvision==0.28.0'), (['venv/oracles'], ''), (['venv/lib'], 'timm==1.0.31')])
def test_what_tests_compare_with_has_a_folder_of_its_own(tmp_path, there, expected):
    """... but for a torchvision that the environment has, whatever its version."""
    for place in there:
        (tmp_path / place / 'torchvision').mkdir(parents=True)
        (tmp_path / place / 'torchvision/__init__.py').touch()
    if 'venv/oracles' in there:
        metadata = tmp_path / 'venv/oracles/timm-1.0.31.dist-info'
        metadata.mkdir()
        (metadata / 'METADATA').write_text('Metadata-Version: 2.1\nName: timm\nVersion: 1.0.31\n')
    (tmp_path / 'venv/bin').mkdir(parents=True)
    python = tmp_path / 'venv/bin/python'
    python.write_text(f'#!/bin/sh\nPYTHONPATH=$PYTHONPATH:{tmp_path}/venv/lib exec {sys.executable} -S "$@"\n')
    python.chmod(0o755)
    status, text = shell(f'PIP=(echo pip)\ncd {ROOT}\ninstall_oracles', tmp_path)
    installed = f'pip install -qq --no-deps --upgrade --target {tmp_path}/venv/oracles {expected}'
    assert status == 0
    assert [line for line in text.splitlines() if not line.startswith('[setup]')] == [installed] * bool(expected)


def test_a_compiled_mmcv_stands_in_for_the_lite_one(tmp_path):
    """... and a fork for a stock package; another version of a fork does not stand for the one that is wanted."""
    packages = tmp_path / 'venv/lib'
    for module in ('mmcv', 'mmdet', 'mmengine'):
        (packages / module).mkdir(parents=True)
        (packages / module / '__init__.py').touch()
    metadata = packages / 'onedl_mmengine-0.10.9.dist-info'
    metadata.mkdir()
    (metadata / 'METADATA').write_text('Metadata-Version: 2.1\nName: onedl-mmengine\nVersion: 0.10.9\n')
    (tmp_path / 'venv/bin').mkdir()
    python = tmp_path / 'venv/bin/python'
    python.write_text(f'#!/bin/sh\nPYTHONPATH={packages} exec {sys.executable} -S "$@"\n')
    python.chmod(0o755)
    assert shell(f'missing_pins {ROOT}/requirements-openmmlab.txt', tmp_path) == (0, 'mmsegmentation==1.2.2\n')
    missing = shell(f'missing_pins {ROOT}/requirements-onedl.txt', tmp_path)[1].split()
    assert missing == ['onedl-mmengine==0.10.12', 'onedl-mmdetection==3.5.1', 'onedl-mmsegmentation==1.4.2',
                       'imaug==0.4.3']
