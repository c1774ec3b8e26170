#!/usr/bin/env bash
# Install what is missing into a virtual environment; `make setup` calls it.  Safe to repeat and to interrupt.
#
#   VENV             the environment, made if missing                  (.venv in the project)
#   PYTHON           the interpreter that makes it                     (python3.11, else python3)
#   APT_DENSE_CACHE  where the compiled mmcv wheel is kept             (~/.cache/apt_dense)
#   MAX_JOBS         compiler processes for mmcv's ops                 (the number of cores)
#
# A torch that the environment already holds is kept, whatever its build: this is how a CUDA machine uses its own.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

VENV=${VENV:-.venv}
CACHE=${APT_DENSE_CACHE:-${XDG_CACHE_HOME:-$HOME/.cache}/apt_dense}
PIP=("$VENV/bin/python" -m pip --disable-pip-version-check)

say() { printf '[setup] %s\n' "$*"; }
die() { printf '[setup] ERROR: %s\n' "$*" >&2; exit 1; }

find_python() {
    local candidate
    for candidate in ${PYTHON:-python3.11 python3}; do
        command -v "$candidate" >/dev/null || continue
        "$candidate" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null && { echo "$candidate"; return; }
    done
    die "no Python >= 3.11 found (tried: ${PYTHON:-python3.11 python3}). Install it (Debian: apt-get install python3" \
        "python3-venv python3-dev) or name one: make setup PYTHON=/path/to/python3.11"
}

# Make the environment, or complete one that an interruption left; never empty a directory.
make_venv() {
    if [ -x "$VENV/bin/python" ]; then
        "${PIP[@]}" --version >/dev/null 2>&1 && return
        say "adding pip to $VENV"
        "$VENV/bin/python" -m ensurepip >/dev/null || die "$VENV has no pip and ensurepip failed: install pip into it," \
            "or name another environment: make setup VENV=/path"
        return
    fi
    if [ -e "$VENV" ] && [ ! -f "$VENV/pyvenv.cfg" ] && [ -n "$(ls -A "$VENV" 2>/dev/null)" ]; then
        die "VENV=$VENV exists and is no virtual environment: name a new or empty directory"
    fi
    local python; python=$(find_python)
    say "making $VENV with $("$python" --version 2>&1)"
    "$python" -m venv "$VENV" || die "'$python -m venv $VENV' failed (Debian: apt-get install python3-venv)"
}

# Print the pins of the given requirement files that the environment does not meet.  A kept torch may be of another
# version; a fork of an OpenMMLab package may stand in for it, so those are checked by their modules.  Nothing is imported.
missing_pins() {
    "$VENV/bin/python" - "$@" <<'PY'
import re, sys
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec
from pathlib import Path
MODULES = {'mmengine': 'mmengine', 'mmdet': 'mmdet', 'mmsegmentation': 'mmseg', 'mmcv': 'mmcv', 'torch': 'torch'}
def installed(name, wanted):
    if name not in MODULES:
        try:
            return version(name) == wanted
        except PackageNotFoundError:
            return False
    spec = find_spec(MODULES[name])
    return spec is not None and (name != 'mmcv' or any(Path(spec.origin).parent.glob('_ext*')))
for path in sys.argv[1:]:
    for line in open(path):
        match = re.match(r'([A-Za-z0-9_.-]+)==([^\s#]+)', line)
        if match and not installed(*match.groups()):
            print('=='.join(match.groups()))
PY
}

check_compiler() {
    command -v "${CXX:-g++}" >/dev/null || die "mmcv's ops must be compiled once and no C++ compiler (${CXX:-g++}) was" \
        "found. Install one (Debian: apt-get install g++) or set CXX."
    local header; header=$("$VENV/bin/python" -c 'import sysconfig; print(sysconfig.get_path("include") + "/Python.h")')
    [ -f "$header" ] || die "mmcv's ops need Python's C headers and $header is missing (Debian: apt-get install" \
        "python3-dev)."
}

# Install mmcv from the cached wheel; compile the wheel first if there is none for this Python, torch and mmcv.  The
# source tree stays in the cache until the wheel is done, so that an interrupted build goes on where it stopped.
install_mmcv() {
    local pin=$1 key wheels build wheel
    key=$("$VENV/bin/python" -c 'import os, sys, torch
device = "cuda" if torch.cuda.is_available() or os.getenv("FORCE_CUDA") == "1" else "cpu"
print("-".join([sys.implementation.cache_tag, "torch" + torch.__version__, device]))')-${pin//==/}
    wheels=$CACHE/wheels/$key
    build=$CACHE/build/$key
    mkdir -p "$wheels" "$build"
    exec 9>"$build.lock"
    flock -n 9 || { say "another setup is compiling mmcv: waiting for it"; flock 9; }
    wheel=$(find "$wheels" -name '*.whl' | head -n 1)
    if [ -z "$wheel" ]; then
        check_compiler
        [[ $key != *-cuda-* ]] || command -v nvcc >/dev/null || [ -x "${CUDA_HOME:-/usr/local/cuda}/bin/nvcc" ] || die \
            "a GPU is visible (or FORCE_CUDA=1) and mmcv's CUDA operators need the CUDA toolkit of torch's version:" \
            "nvcc was not found. Install it, or set CUDA_HOME"
        say "compiling the ops of $pin, once: about 5 minutes on 2 cores (log: $build/build.log)"
        if [ ! -f "$build/unpacked" ]; then
            "${PIP[@]}" download -qq --no-deps --no-build-isolation --no-binary mmcv -d "$build" "$pin"
            tar -xzf "$build"/mmcv-*.tar.gz -C "$build"
            touch "$build/unpacked"
        fi
        # -g0: Python's default -g makes the build half as long again and the wheel 20 times as large.
        CFLAGS="-O3 -DNDEBUG -fwrapv -g0" MMCV_WITH_OPS=1 MAX_JOBS=${MAX_JOBS:-$(nproc)} \
            "${PIP[@]}" wheel -v --no-deps --no-build-isolation -w "$build/dist" "$build"/mmcv-*/ 2>&1 \
            | tee "$build/build.log" | progress \
            || { tail -n 30 "$build/build.log" >&2; die "compiling mmcv failed; the log is $build/build.log"; }
        mv "$build"/dist/*.whl "$wheels/"
        rm -rf "$build"
        wheel=$(find "$wheels" -name '*.whl' | head -n 1)
    fi
    "${PIP[@]}" install -qq --no-deps "$wheel"
    flock -u 9
}

# Show ninja's "[n/N]" steps: in place on a terminal, every tenth in a log.
progress() {
    awk -v tty="$([ -t 1 ] && echo 1 || echo 0)" '
        match($0, /^ *\[[0-9]+\/[0-9]+\]/) {
            step = substr($0, RSTART, RLENGTH); gsub(/[^0-9\/]/, "", step); split(step, n, "/")
            if (tty) printf "\r[setup] mmcv: %d of %d files compiled", n[1], n[2]
            else if (n[1] % 10 == 0 || n[1] == n[2]) printf "[setup] mmcv: %d of %d files compiled\n", n[1], n[2]
            fflush()
        }
        END { if (tty) print "" }'
}

main() {
    make_venv
    local missing pin
    missing=$(missing_pins requirements.txt)
    if [ -n "$missing" ]; then
        say "installing $(wc -w <<<"$missing") packages of requirements.txt (the first time: about a minute)"
        # shellcheck disable=SC2086  # one word a package
        "${PIP[@]}" install -qq $missing
    fi
    missing=$(missing_pins requirements-openmmlab.txt)
    for pin in $missing; do
        say "installing $pin"
        case $pin in
            mmcv==*) install_mmcv "$pin" ;;
            *) "${PIP[@]}" install -qq --no-deps "$pin" ;;
        esac
    done
    if ! "$VENV/bin/python" -c 'import importlib.metadata as m; m.version("apt-dense")' 2>/dev/null; then
        "${PIP[@]}" install -qq --no-deps --no-build-isolation --editable .
    fi
    say "ready: $VENV"
}
main
