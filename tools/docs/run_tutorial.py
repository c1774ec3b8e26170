#!/usr/bin/env python
"""Execute docs/tutorial.ipynb, on the CPU; `make tutorial` calls it.

    python tools/docs/run_tutorial.py

Written: build/tutorial/tutorial.ipynb with its results, and each picture as a file beside it, to be looked at.  The
notebook itself stays without results.  A cell that fails is an error with its traceback.
"""
import argparse
import base64
import os
import time
from pathlib import Path

import nbformat
from nbclient import NotebookClient
from traitlets.config import Config

ROOT = Path(__file__).parents[2]


def write_pictures(notebook: nbformat.NotebookNode, folder: Path) -> int:
    """Each PNG among the results, as picture_NUMBER.png; how many there are."""
    pictures = [output.data['image/png'] for cell in notebook.cells for output in cell.get('outputs', ())
                if 'image/png' in output.get('data', {})]
    for number, picture in enumerate(pictures, start=1):
        (folder / f'picture_{number}.png').write_bytes(base64.b64decode(picture))
    return len(pictures)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--out-dir', type=Path, default=ROOT / 'build/tutorial')
    args = parser.parse_args()
    args.out_dir.mkdir(parents=True, exist_ok=True)
    os.environ['CUDA_VISIBLE_DEVICES'] = ''
    start = time.perf_counter()
    notebook = nbformat.read(ROOT / 'docs/tutorial.ipynb', as_version=4)
    NotebookClient(notebook, timeout=600, resources=dict(metadata=dict(path=str(ROOT))),
                   config=Config(KernelManager=dict(transport='ipc'))).execute()
    nbformat.write(notebook, args.out_dir / 'tutorial.ipynb')
    count = write_pictures(notebook, args.out_dir)
    print(f'{len(notebook.cells)} cells in {time.perf_counter() - start:.0f} s, {count} pictures -> {args.out_dir}')


if __name__ == '__main__':
    main()
