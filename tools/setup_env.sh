#!/usr/bin/env bash
# Install what is missing into a virtual environment; `make setup` calls it.  Safe to repeat and to interrupt.
#
#   VENV             the environment, made if missing                  (.venv in the project)
#   PYTHON           the interpreter that makes it                     (python3.11, else python3)
#   OPENMMLAB        stock, or onedl for the maintained forks          (stock)
#   MMCV             lite, or compiled for mmcv's own operators        (lite)
#
# A torch that the environment already holds is kept, whatever its build: this is how a CUDA machine uses its own.
#
# With MMCV=compiled also
#   APT_DENSE_CACHE       where the compiled wheel is kept              (~/.cache/apt_dense)
#   MAX_JOBS              compiler processes                            (the number of cores)
#   FORCE_CUDA            1 for GPU operators, 0 for none, where torch is built for CUDA and sees no GPU
#   TORCH_CUDA_ARCH_LIST  architectures of GPUs                         (those that are visible, else 8.0;9.0+PTX)
#   CUDA_HOME             where nvcc is                                 (of nvcc in PATH, else /usr/local/cuda)
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

VENV=${VENV:-.venv}
OPENMMLAB=${OPENMMLAB:-stock}
MMCV=${MMCV:-lite}
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
        "python3-venv) or name one: make setup PYTHON=/path/to/python3.11"
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
# version; a fork of an OpenMMLab package and a compiled mmcv may stand in for the one that is named, so those are
# checked by their modules.  Nothing is imported.
missing_pins() {
    "$VENV/bin/python" - "$@" <<'PY'
import re, sys
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec
MODULES = {'mmengine': 'mmengine', 'mmdet': 'mmdet', 'mmsegmentation': 'mmseg', 'mmcv-lite': 'mmcv', 'torch': 'torch',
           'torchvision': 'torchvision'}
def installed(name, wanted):
    if name in MODULES:
        return find_spec(MODULES[name]) is not None
    try:
        return version(name) == wanted
    except PackageNotFoundError:
        return False
for path in sys.argv[1:]:
    for line in open(path):
        match = re.match(r'([A-Za-z0-9_.-]+)==([^\s#]+)', line)
        if match and not installed(*match.groups()):
            print('=='.join(match.groups()))
PY
}

# The names of installed distributions among those given.
present() {
    "$VENV/bin/python" - "$@" <<'PY'
import sys
from importlib.metadata import PackageNotFoundError, version
def there(name):
    try:
        return version(name)
    except PackageNotFoundError:
        return None
print(*filter(there, sys.argv[1:]))
PY
}

# Stop rather than unpack the forks over the stock packages, whose modules have the same names.
check_openmmlab() {
    local stock; stock=$(present mmengine mmdet mmsegmentation)
    [ -z "$stock" ] || die "OPENMMLAB=onedl, but $VENV has the stock packages $stock, whose files have the same" \
        "names: name another environment: make setup OPENMMLAB=onedl VENV=.venv-onedl"
}

# torch's release, the CUDA version that it is built for (or -), and the architectures of the GPUs that it sees.
torch_facts() {
    "$VENV/bin/python" - <<'PY'
import torch
seen = range(torch.cuda.device_count() if torch.cuda.is_available() else 0)
gpus = sorted({'%d.%d' % torch.cuda.get_device_capability(index) for index in seen})
print(torch.__version__, torch.version.cuda or '-', *gpus)
PY
}

# RoIAlign and NMS on GPUs are torchvision's.  Beside a torch for CPUs its wheel does not load, and is not needed.
install_torchvision() {
    local release cuda gpus minor problem
    read -r release cuda gpus < <(torch_facts)
    [ "$cuda" != - ] || return 0
    [ -n "$gpus" ] || say "torch $release is built for CUDA $cuda and sees no GPU here: it computes on the CPU"
    minor=${release#2.}; minor=${minor%%.*}
    if [ -z "$(present torchvision)" ]; then
        say "installing torchvision 0.$((minor + 15)), that of torch $release"
        "${PIP[@]}" install -qq --no-deps "torchvision==0.$((minor + 15)).*" || die "no torchvision" \
            "0.$((minor + 15)) was found: install the one of torch $release from where torch came from"
    fi
    problem=$("$VENV/bin/python" -c 'import torchvision' 2>&1) || say "WARNING: torchvision does not load beside" \
        "torch $release (${problem##*$'\n'}): detectors will not run on a GPU. Install the torchvision of this" \
        "torch from where torch came from"
}

# What tests compare with, and torchvision, in a folder that nothing else looks into: see requirements-oracles.txt.
install_oracles() {
    local missing folder=$VENV/oracles
    missing=$(PYTHONPATH=$folder missing_pins requirements-oracles.txt)
    [ -n "$missing" ] || return 0
    say "installing" $missing "into $folder"
    # shellcheck disable=SC2086  # one word a package
    "${PIP[@]}" install -qq --no-deps --upgrade --target "$folder" $missing
}

check_compiler() {
    command -v "${CXX:-g++}" >/dev/null || die "mmcv's ops must be compiled once and no C++ compiler (${CXX:-g++}) was" \
        "found. Install one (Debian: apt-get install g++) or set CXX."
    local header; header=$("$VENV/bin/python" -c 'import sysconfig; print(sysconfig.get_path("include") + "/Python.h")')
    [ -f "$header" ] || die "mmcv's ops need Python's C headers and $header is missing (Debian: apt-get install" \
        "python3-dev)."
}

# Print for what mmcv is to be compiled: cpu, or cuda and the architectures of GPUs.
compile_for() {
    local release cuda gpus
    read -r release cuda gpus < <(torch_facts)
    if [ "$cuda" = - ]; then
        [ "${FORCE_CUDA:-0}" != 1 ] || die "FORCE_CUDA=1, but torch $release is built without CUDA: install a CUDA" \
            "build of torch into $VENV first"
        echo cpu
    elif [ "${FORCE_CUDA:-}" = 0 ]; then
        echo cpu
    elif [ -z "$gpus" ] && [ "${FORCE_CUDA:-}" != 1 ]; then
        die "torch $release is built for CUDA $cuda and sees no GPU here. FORCE_CUDA=1 compiles mmcv's operators for" \
            "GPUs too (TORCH_CUDA_ARCH_LIST, 8.0;9.0+PTX unless it is set), FORCE_CUDA=0 for CPUs only; without" \
            "MMCV=compiled nothing is compiled"
    else
        gpus=${gpus:+${gpus// /;}+PTX}
        echo "cuda ${TORCH_CUDA_ARCH_LIST:-${gpus:-8.0;9.0+PTX}}"
    fi
}

# The folder of the CUDA toolkit, whose nvcc must be of the major version that torch is built for.
find_cuda_home() {
    local cuda home found remedy
    read -r _ cuda _ < <(torch_facts)
    remedy="Install it (no root needed): $VENV/bin/python -m pip install"
    remedy+=" 'cuda-toolkit[nvcc,cccl,cublas,cusparse,cusolver]==$cuda.*', and set CUDA_HOME to"
    remedy+=" $VENV/lib/python3.*/site-packages/nvidia/cu${cuda%%.*}; or set CUDA_HOME to one that is there"
    home=${CUDA_HOME:-$(dirname "$(dirname "$(command -v nvcc || echo /usr/local/cuda/bin/nvcc)")")}
    [ -x "$home/bin/nvcc" ] || die "mmcv's GPU operators need the compiler nvcc of CUDA $cuda, which is not in" \
        "$home/bin. $remedy"
    found=$("$home/bin/nvcc" --version | sed -n 's/.*release \([0-9.]*\).*/\1/p')
    [ "${found%%.*}" = "${cuda%%.*}" ] || die "torch is built for CUDA $cuda and $home/bin/nvcc is of CUDA $found:" \
        "torch compiles with one of its own major version only. $remedy"
    echo "$home"
}

# Print why the mmcv that is there has to make room for a compiled one; nothing if it has what is wanted.
lacks_operators() {
    "$VENV/bin/python" - "$1" <<'PY'
import sys
import torch  # its libraries
try:
    from mmcv._ext import get_compiling_cuda_version
except ImportError as error:
    print(error)
else:
    if sys.argv[1] == 'cuda' and get_compiling_cuda_version() == 'not available':
        print('its operators are compiled for CPUs only')
PY
}

# Install mmcv with its operators compiled, from the cached wheel if there is one for this Python, torch, kind of device
# and mmcv.  The source tree stays in the cache until the wheel is done, so that an interrupted build goes on where it
# stopped.
install_compiled_mmcv() {
    local pin=$1 device=$2 archs=${3:-} key wheels build wheel old
    old=$(present mmcv mmcv-lite onedl-mmcv)
    key=$("$VENV/bin/python" -c 'import sys, torch
print(sys.implementation.cache_tag, torch.__version__, sep="-torch")')
    key=$key-$device${archs:+-$(tr -c 'A-Za-z0-9.\n' _ <<<"$archs")}-${pin//==/}
    wheels=$CACHE/wheels/$key
    build=$CACHE/build/$key
    mkdir -p "$wheels" "$build"
    exec 9>"$build.lock"
    flock -n 9 || { say "another setup is compiling mmcv: waiting for it"; flock 9; }
    wheel=$(find "$wheels" -name '*.whl' | head -n 1)
    if [ -z "$wheel" ]; then
        compile_mmcv "$pin" "$device" "$archs" "$build"
        mv "$build"/dist/*.whl "$wheels/"
        rm -rf "$build"
        wheel=$(find "$wheels" -name '*.whl' | head -n 1)
    fi
    # shellcheck disable=SC2086  # one word a package
    [ -z "$old" ] || "${PIP[@]}" uninstall -qq -y $old
    "${PIP[@]}" install -qq --no-deps "$wheel"
    flock -u 9
    say "set APT_DENSE_OPS=compiled to use its operators"
}

compile_mmcv() {
    local pin=$1 device=$2 archs=$3 build=$4 cuda_home settings
    check_compiler
    settings=(FORCE_CUDA=0 CUDA_VISIBLE_DEVICES=)
    if [ "$device" = cuda ]; then
        cuda_home=$(find_cuda_home)
        settings=(FORCE_CUDA=1 "TORCH_CUDA_ARCH_LIST=$archs" "CUDA_HOME=$cuda_home")
    fi
    say "compiling the ops of $pin for $device${archs:+ $archs}, once: about 13 minutes of" \
        "processor time, far more with CUDA (log: $build/build.log)"
    if [ ! -f "$build/unpacked" ]; then
        "${PIP[@]}" download -qq --no-deps --no-build-isolation --no-binary mmcv -d "$build" "$pin"
        tar -xzf "$build"/mmcv-*.tar.gz -C "$build"
        touch "$build/unpacked"
    fi
    # -g0: Python's default -g makes the build half as long again and the wheel 20 times as large.
    env "${settings[@]}" CFLAGS="-O3 -DNDEBUG -fwrapv -g0" MMCV_WITH_OPS=1 MAX_JOBS="${MAX_JOBS:-$(nproc)}" \
        "${PIP[@]}" wheel -v --no-deps --no-build-isolation -w "$build/dist" "$build"/mmcv-*/ 2>&1 \
        | tee "$build/build.log" | progress \
        || { tail -n 30 "$build/build.log" >&2; die "compiling mmcv failed; the log is $build/build.log"; }
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

install_openmmlab() {
    local pin file=requirements-openmmlab.txt target reason device archs
    if [ "$OPENMMLAB" = onedl ]; then
        check_openmmlab
        file=requirements-onedl.txt
    fi
    for pin in $(missing_pins "$file"); do
        if [[ $pin != mmcv-lite==* || $MMCV = lite ]]; then
            say "installing $pin"
            "${PIP[@]}" install -qq --no-deps --no-build-isolation "$pin"
        fi
    done
    [ "$MMCV" = compiled ] || return 0
    pin=$(sed -n 's/^mmcv-lite\(==[^ ]*\).*/mmcv\1/p' "$file")
    target=$(compile_for)
    read -r device archs <<<"$target"
    reason=$(lacks_operators "$device")
    [ -z "$reason" ] || install_compiled_mmcv "$pin" "$device" "$archs"
}

main() {
    [[ $OPENMMLAB = stock || $OPENMMLAB = onedl ]] || die "OPENMMLAB=$OPENMMLAB: choose stock or onedl"
    [[ $MMCV = lite || $MMCV = compiled ]] || die "MMCV=$MMCV: choose lite or compiled"
    make_venv
    local missing
    missing=$(missing_pins requirements.txt)
    if [ -n "$missing" ]; then
        say "installing $(wc -w <<<"$missing") packages of requirements.txt (the first time: about a minute)"
        # shellcheck disable=SC2086  # one word a package
        "${PIP[@]}" install -qq $missing
    fi
    install_torchvision
    install_openmmlab
    install_oracles
    if ! "$VENV/bin/python" -c 'import importlib.metadata as m; m.version("apt-dense")' 2>/dev/null; then
        "${PIP[@]}" install -qq --no-deps --no-build-isolation --editable .
    fi
    say "ready: $VENV"
}

if [ "${BASH_SOURCE[0]}" = "$0" ]; then
    main
fi
