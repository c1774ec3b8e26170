#!/usr/bin/env bash
# The main cells of the grid of docs/results.md on COCO with EVA-02-L, from a dense detector: tools/experiments/coco.sh eva02_l_coco.pth 8
# --list only says what would run, and how long by estimate.
MODEL=l_coco SCALES=4 RATIO="1 0.15" SCORER=${SCORER:-upsampling_error_max} SHORT=3000 LONG=12000 HOURS_SHORT=2
. "$(dirname "${BASH_SOURCE[0]}")/real_data.sh"
