"""What a cell's result depends on, as hashes: its config, the code, the dataset, the weights that it starts from."""
import ast
import hashlib
import json
from dataclasses import asdict
from functools import cache
from pathlib import Path
from typing import Any

from cell_config import build_config
from cells import Cell
from grids import DATASETS

ROOT = Path(__file__).parents[2]
# What a figure depends on.  Not here: what only reports, launches, times or saves.
CODE = tuple(f'apt_dense/core/{name}.py' for name in (
    'attention', 'block', 'chooser', 'derived', 'embed', 'eva02', 'graphs', 'importance', 'layers', 'layout', 'order',
    'position', 'pyramid',
    'quadtree', 'resizing', 'rope', 'runs', 'scorers', 'variance')) + (
    'apt_dense/calibration/thresholds.py',
    'apt_dense/mm/data/checked_coco.py', 'apt_dense/mm/data/inputs.py', 'apt_dense/mm/data/label_maps.py',
    'apt_dense/mm/data/transforms.py',
    'apt_dense/mm/fault_tolerance/resumable_data.py',
    'apt_dense/mm/models/*.py',
    'apt_dense/mm/training/hooks.py', 'apt_dense/mm/training/warm_thresholds.py',
    'tools/demo/*.py',
    *(f'tools/experiments/{name}.py' for name in ('boundary_iou', 'cell_thresholds', 'expansion', 'input_sizes')))
DEMO_TOOLS = ('run_demo.py',)  # of tools/demo, makes no data
# Of a config: all that changes weights or figures.
HASHED = ('model', 'train_dataloader', 'test_dataloader', 'test_evaluator', 'optim_wrapper', 'param_scheduler',
          'train_cfg', 'randomness')
DATA = Path('DATA')  # stands for the dataset's folder


def code_hash(root: Path = ROOT) -> str:
    """Of the files in ``CODE``, without comments, docstrings and layout of the text: what does not run.

    Raises:
        FileNotFoundError: if a file is not there, or a pattern has none: then ``CODE`` must be brought up to date.
    """
    digest = hashlib.sha256()
    for pattern in CODE:
        paths = [path for path in sorted(root.glob(pattern)) if path.name not in DEMO_TOOLS]
        if not paths:
            raise FileNotFoundError(f'{root / pattern} is not there, and results depend on it: if it was moved, name '
                                    f'its new place in CODE in {__file__}')
        for path in paths:
            digest.update(f'{path.relative_to(root)}\n{_what_runs(path.read_text(encoding="utf-8"))}\n'.encode())
    return digest.hexdigest()[:16]


def _what_runs(source: str) -> str:
    """A module's syntax tree without docstrings."""
    tree = ast.parse(source)
    for node in ast.walk(tree):
        if isinstance(node, (ast.Module, ast.ClassDef, ast.FunctionDef)) and ast.get_docstring(node) is not None:
            node.body = node.body[1:] or [ast.Pass()]
    return ast.dump(tree)


@cache
def cell_hash(cell: Cell, configs: Path, code: str) -> str:
    """Tells results apart that must not be taken for each other.

    Args:
        configs: the folder of det.py and seg.py.
        code: ``code_hash()``.
    """
    cfg = build_config(cell, DATASETS[cell.dataset], configs, DATA).to_dict()
    content: dict[str, Any] = {
        'cell': cell.to_json(),
        'config': {key: cfg.get(key) for key in HASHED},
        'dataset': asdict(DATASETS[cell.dataset]),
        'code': code,
        'parent': cell.parent and cell_hash(cell.parent, configs, code)}
    text = json.dumps(content, sort_keys=True, default=str)
    return hashlib.sha256(text.encode()).hexdigest()[:16]
