#!/usr/bin/env python
"""The backbone's benchmark, as ``python -m apt_dense.benchmark``; see its --help."""
import sys

from apt_dense.benchmark.__main__ import main

if __name__ == '__main__':
    sys.exit(main())
