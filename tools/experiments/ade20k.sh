#!/usr/bin/env bash
# The main cells of the grid of docs/results.md on ADE20K with EVA-02-L at 512 px, from a dense segmentor:
# tools/experiments/ade20k.sh eva02_l_ade20k_512.pth 8
# --list only says what would run, and how long by estimate.
MODEL=l_ade20k_512 SCALES=3 RATIO=0.695652 SCORER=${SCORER:-upsampling_error_max} SHORT=4000 LONG=16000 HOURS_SHORT=1
. "$(dirname "${BASH_SOURCE[0]}")/real_data.sh"
