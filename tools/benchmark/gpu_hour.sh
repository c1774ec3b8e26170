#!/usr/bin/env bash
# The first hour on a GPU: checks, tests, benchmarks, one folder of figures.  See gpu_hour.py, which has the options.
#   tools/benchmark/gpu_hour.sh --out work_dirs/gpu_hour
# PYTHON: the interpreter (default: .venv/bin/python where it is, else python3).
set -euo pipefail
cd "$(dirname "$0")/../.."
if [ -z "${PYTHON:-}" ]; then
    PYTHON=python3
    if [ -x .venv/bin/python ]; then PYTHON=.venv/bin/python; fi
fi
PYTHONPATH="$PWD${PYTHONPATH:+:$PYTHONPATH}" exec "$PYTHON" tools/benchmark/gpu_hour.py "$@"
