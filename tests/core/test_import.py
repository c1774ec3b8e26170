import ast
import os
import subprocess
import sys
from pathlib import Path

import apt_dense

PACKAGE = Path(apt_dense.__file__).parent
# Only inside functions: they may be missing.
OPTIONAL = {'attention.py': 'flash_attn', 'checkpoint_files.py': 'safetensors', '__init__.py': 'apt_dense',
            'pretrained.py': 'huggingface_hub'}
UNWANTED = {'mmengine', 'mmcv', 'mmdet', 'mmseg', 'timm', 'cv2', 'torchvision', 'detectron2', 'flash_attn',
            'safetensors', 'huggingface_hub', 'transformers'}


def test_importing_the_package_loads_torch_only():
    script = f'import sys, apt_dense; print(sorted({UNWANTED | {"torch"}} & sys.modules.keys()))'
    run = subprocess.run([sys.executable, '-c', script], capture_output=True, text=True, timeout=120,
                         env={**os.environ, 'PYTHONPATH': str(PACKAGE.parent)})
    assert run.returncode == 0, run.stderr
    assert run.stdout.strip() == "['torch']"


def test_the_core_names_torch_and_the_standard_library_only():
    """Imports inside functions count, too."""
    sources = sorted((PACKAGE / 'core').rglob('*.py'))
    assert len(sources) > 8
    for source in [*sources, PACKAGE / '__init__.py', PACKAGE / 'extras.py']:
        tree = ast.parse(source.read_text())
        in_functions = {node for function in ast.walk(tree) if isinstance(function, ast.FunctionDef)
                        for node in ast.walk(function)}
        for node in ast.walk(tree):
            for name in imported_names(node):
                package = name.partition('.')[0]
                known = package in {'torch', *sys.stdlib_module_names} or name.startswith(('apt_dense.core',
                                                                                           'apt_dense.extras'))
                optional = OPTIONAL.get(source.name) == package and node in in_functions
                assert known or optional, f'{source.name} imports {name}'


def imported_names(node: ast.AST) -> list[str]:
    if isinstance(node, ast.ImportFrom):
        assert node.level == 0, 'relative import'
        return [node.module]
    return [alias.name for alias in node.names] if isinstance(node, ast.Import) else []


def test_public_names():
    assert all(hasattr(apt_dense, name) for name in apt_dense.__all__)
    assert {'APTEVA02', 'PatchChooser', 'TokenLayout'} <= set(apt_dense.__all__)
