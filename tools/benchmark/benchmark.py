#!/usr/bin/env python
"""The backbone's benchmark, as ``python -m apt_dense.benchmark``; see its --help.

Where OpenMMLab's packages are installed, --checkpoint also reads the checkpoints that training writes.
"""
import sys
from contextlib import suppress

from apt_dense.benchmark.__main__ import main

if __name__ == '__main__':
    with suppress(ImportError):
        import apt_dense.mm.compat  # noqa: F401  lets torch load mmengine's types
    sys.exit(main(program='python tools/benchmark/benchmark.py'))
