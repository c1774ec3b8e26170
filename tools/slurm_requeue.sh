#!/usr/bin/env bash
# Train as a Slurm job that continues itself: before its time is over, and after a preemption that requeues it, the
# training saves a checkpoint; the job is queued again under the same number and goes on from there.
#
#   GPUS GPUS_PER_NODE   GPUs of the job and of a machine (8 8; fewer GPUS than a machine has use that many)
#   CPUS_PER_TASK        cores for each process (5)
#   SBATCH_ARGS          more options of sbatch, separated by spaces: --time=12:00:00
#   NOTICE               seconds before the end of the time at which Slurm sends SIGUSR1 (120)
#   PYTHON               the interpreter (python)
#
# Call it on a login node: it submits itself.  The output of all runs is in WORK_DIR/slurm-JOB.out.  tools/train.py
# exits with 75 after it has stopped on a signal.  The job is queued again if SIGUSR1 came or the status is 75; not if the
# training has ended or failed, or if the job was cancelled (SIGTERM; after a preemption Slurm itself decides).
set -euo pipefail

if [ $# -lt 4 ]; then
    echo "usage: $0 PARTITION JOB_NAME CONFIG WORK_DIR [options of tools/train.py]" >&2
    exit 2
fi

submit() {
    local gpus=${GPUS:-8} root options
    local per_node=${GPUS_PER_NODE:-$((gpus < 8 ? gpus : 8))}
    root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
    read -ra options <<<"${SBATCH_ARGS:-}"
    mkdir -p "$4"
    # Slurm runs a copy of this file, so it is told where the project is.
    APT_DENSE_ROOT=$root exec sbatch \
        --partition="$1" \
        --job-name="$2" \
        --gres=gpu:"$per_node" \
        --ntasks="$gpus" \
        --ntasks-per-node="$per_node" \
        --cpus-per-task="${CPUS_PER_TASK:-5}" \
        --requeue \
        --signal=B:USR1@"${NOTICE:-120}" \
        --open-mode=append \
        --output="$4/slurm-%j.out" \
        --export=ALL \
        ${options[@]+"${options[@]}"} \
        "$root/tools/slurm_requeue.sh" "$@"
}

requeue() {
    echo "[slurm_requeue] job $SLURM_JOB_ID is queued again: $1"
    exec scontrol requeue "$SLURM_JOB_ID"
}

if [ -z "${APT_DENSE_ROOT:-}" ] || [ -z "${SLURM_JOB_ID:-}" ]; then
    submit "$@"
fi

CONFIG=$3
WORK_DIR=$4
shift 4

NOTICED='' CANCELLED='' TRAINING='' TIMER=''
# srun passes the signal on to every process.  A trap starts no process: it would change $! under the lines below.
trap 'NOTICED=1; kill -USR1 "$TRAINING" 2>/dev/null || true' USR1
trap 'CANCELLED=1; kill -TERM "$TRAINING" 2>/dev/null || true' TERM
trap 'requeue "the training has not stopped in time, and goes on from its last checkpoint"' ALRM

PYTHONPATH="$APT_DENSE_ROOT${PYTHONPATH:+:$PYTHONPATH}" srun --kill-on-bad-exit=1 \
    "${PYTHON:-python}" -u "$APT_DENSE_ROOT/tools/train.py" "$CONFIG" --work-dir "$WORK_DIR" --launcher slurm --resume \
    "$@" &
TRAINING=$!
# A signal may have come before there was anything to pass it on to.
[ -z "$NOTICED" ] || kill -USR1 "$TRAINING" 2>/dev/null || true
[ -z "$CANCELLED" ] || kill -TERM "$TRAINING" 2>/dev/null || true
# In short waits: bash notices a signal that comes just before a wait only when that ends.
while kill -0 "$TRAINING" 2>/dev/null; do
    # A validation may last longer than the notice: then the last checkpoint is what there is, and the job must be queued
    # again before its time is over.
    if [ -n "$NOTICED" ] && [ -z "$TIMER" ]; then
        { sleep $((${NOTICE:-120} * 3 / 4)) && kill -ALRM $$; } >/dev/null 2>&1 &
        TIMER=$!
    fi
    sleep 1 >/dev/null 2>&1 &
    wait $! || true
done
wait "$TRAINING" && STATUS=0 || STATUS=$?
[ -z "$TIMER" ] || kill "$TIMER" 2>/dev/null || true

if [ -n "$CANCELLED" ]; then
    exit "$STATUS"
elif [ "$STATUS" -eq 75 ] || { [ -n "$NOTICED" ] && [ "$STATUS" -ne 0 ]; }; then
    requeue "the training was stopped with status $STATUS"
fi
exit "$STATUS"
