# The grid of docs/results.md on real data; coco.sh and ade20k.sh set what differs, and source this.
#
#   MODEL      config names: eva02_${MODEL}, apt_eva02_${MODEL} and apt_eva02_${MODEL}_entire
#   SCALES     sizes of patches        RATIO  of each threshold over that of the next finer size, for entropy
#   SCORER     the other scorer        SHORT, LONG  iterations: 5 % and 20 % of the dense model's
#   HOURS_SHORT  estimated hours of a short training on 8 GPUs
#
# Everything goes to WORK (work_dirs/real/$MODEL): a config, a log and a folder for each run.  A run that has ended is
# not run again; one that was stopped goes on.
set -euo pipefail

[ $# -ge 1 ] || { echo "usage: $0 DENSE_CHECKPOINT [GPUS] [--list]" >&2; exit 2; }
WEIGHTS=$(realpath "$1")
GPUS=8
LIST=
for argument in "${@:2}"; do
    case $argument in
        --list) LIST=1 ;;
        [0-9]*) GPUS=$argument ;;
        *) echo "error: $argument is neither a number of GPUs nor --list" >&2; exit 2 ;;
    esac
done
[ -f "$WEIGHTS" ] || { echo "error: checkpoint $1 does not exist" >&2; exit 2; }
ROOT=$(cd "$(dirname "${BASH_SOURCE[0]}")/../.." && pwd)
WORK=${WORK:-work_dirs/real/$MODEL}
PYTHON=${PYTHON:-python}
export PYTHON
TOTAL=0

# Find thresholds for a share of the training images' content, once; print them.
thresholds() { # SCORER KEPT RATIO...
    local folder=$WORK/thresholds/$1-$2
    if [ ! -f "$folder/thresholds.py" ]; then
        "$PYTHON" "$ROOT/tools/analysis_tools/calibrate_thresholds.py" --config "$ROOT/configs/apt_eva02_$MODEL.py" \
            --cfg-options "model.backbone.scorer=$1" --split train --pipeline test --num-images 5000 --content \
            --num-scales "$SCALES" --kept "$2" --ratio "${@:3}" --out-dir "$folder" >&2
    fi
    "$PYTHON" -c 'import runpy, sys
print(tuple(runpy.run_path(sys.argv[1])["model"]["backbone"]["thresholds"]))' "$folder/thresholds.py"
}

ratio() { [ "$1" = entropy ] && echo "$RATIO" || echo 1; }

# Train and test, or only test, one config.
run() { # NAME BASE_CONFIG train|test HOURS LINE...
    local name=$1 base=$2 kind=$3 hours=$4
    TOTAL=$(awk "BEGIN { print $TOTAL + $hours }")
    if [ -n "$LIST" ]; then
        printf '%-5s %6s h  %s\n' "$([ -f "$WORK/$name/done" ] && echo done || echo open)" "$hours" "$name"
        return
    fi
    [ ! -f "$WORK/$name/done" ] || return 0
    mkdir -p "$WORK/$name"
    { printf "_base_ = '%s/configs/%s.py'\n" "$ROOT" "$base"; printf '%s\n' "${@:5}"; } > "$WORK/$name.py"
    echo "$name: started $(date +%H:%M), log $WORK/$name/log.txt"
    if [ "$kind" = train ]; then
        "$ROOT/tools/dist_train.sh" "$WORK/$name.py" "$GPUS" --work-dir "$WORK/$name" --amp --auto-scale-lr \
            --resume auto --cfg-options load_from="$WEIGHTS" >> "$WORK/$name/log.txt" 2>&1
    else
        "$ROOT/tools/dist_test.sh" "$WORK/$name.py" "$WEIGHTS" "$GPUS" --work-dir "$WORK/$name" \
            >> "$WORK/$name/log.txt" 2>&1
    fi
    touch "$WORK/$name/done"
}

short() { echo "train_cfg = dict(max_iters=$SHORT)"; }
# Five times the iterations of the configs' own schedule, its corners in proportion.
long() {
    echo "max_iters = $LONG"
    echo "train_cfg = dict(max_iters=max_iters)"
    echo "param_scheduler = [dict(step, **{key: value * $LONG // $SHORT if isinstance(value, int) else"
    echo "                   [corner * $LONG // $SHORT for corner in value] for key, value in step.items()"
    echo "                   if key in ('begin', 'end', 'milestones')}) for step in _base_.param_scheduler]"
}

HOURS_LONG=$((HOURS_SHORT * LONG / SHORT))
DENSE='model = dict(backbone=dict(num_scales=1, thresholds=()))'
run dense-test "eva02_$MODEL" test 0.3
run dense-entire "apt_eva02_${MODEL}_entire" train "$HOURS_SHORT" "$DENSE"
run dense-entire-long "apt_eva02_${MODEL}_entire" train "$HOURS_LONG" "$DENSE" "$(long)"
for kept in 0.7 0.5 0.9 0.35; do
    for scorer in entropy "$SCORER"; do
        found='()'
        [ -n "$LIST" ] || found=$(thresholds "$scorer" "$kept" $(ratio "$scorer"))
        patches="model = dict(backbone=dict(scorer='$scorer', num_scales=$SCALES, thresholds=$found,"
        plain="$patches proportional_attention=False))"
        run "$scorer-$kept-resizing" "apt_eva02_$MODEL" test 0.3 "$plain"
        if [ "$scorer" = entropy ]; then
            patches=$plain  # as in the paper
        else
            patches="$patches proportional_attention=True))"  # merged patches count by their cells
            run "$scorer-$kept-untrained" "apt_eva02_$MODEL" test 0.3 "$patches"
        fi
        run "$scorer-$kept-added" "apt_eva02_$MODEL" train "$HOURS_SHORT" "$patches"
        run "$scorer-$kept-entire" "apt_eva02_${MODEL}_entire" train "$HOURS_SHORT" "$patches"
        if [ $kept = 0.7 ] || [ $kept = 0.5 ]; then
            run "$scorer-$kept-entire-long" "apt_eva02_${MODEL}_entire" train "$HOURS_LONG" "$patches" "$(long)"
        fi
    done
done
[ -z "$LIST" ] || echo "about ${TOTAL%.*} hours of 8 H100, estimated from multiply-adds, not measured"
