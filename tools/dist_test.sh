#!/usr/bin/env bash
# Test with several processes on this machine, or on one of several machines (then run it on each).
#
#   NNODES NODE_RANK MASTER_ADDR PORT   the machines; one machine by default (1 0 127.0.0.1 29500)
#   PYTHON                              the interpreter (python)
#
# Without a GPU the GPUS processes run on the CPU; where a GPU should be and cannot be used, they stop and say why.
set -euo pipefail

if [ $# -lt 3 ]; then
    echo "usage: $0 CONFIG CHECKPOINT GPUS [options of tools/test.py]" >&2
    exit 2
fi
CONFIG=$1
CHECKPOINT=$2
GPUS=$3
shift 3

ROOT=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
# torchrun says this in screens of traceback.
if [ "${NODE_RANK:-0}" = 0 ] && (exec 3<>"/dev/tcp/127.0.0.1/${PORT:-29500}") 2>/dev/null; then
    echo "error: port ${PORT:-29500} is in use, perhaps by another training: choose another, PORT=NUMBER $0 ..." >&2
    exit 2
fi
PYTHONPATH="$ROOT${PYTHONPATH:+:$PYTHONPATH}" exec "${PYTHON:-python}" -m torch.distributed.run \
    --nnodes="${NNODES:-1}" \
    --node_rank="${NODE_RANK:-0}" \
    --master_addr="${MASTER_ADDR:-127.0.0.1}" \
    --master_port="${PORT:-29500}" \
    --nproc_per_node="$GPUS" \
    "$ROOT/tools/test.py" "$CONFIG" "$CHECKPOINT" --launcher pytorch "$@"
