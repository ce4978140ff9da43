#!/usr/bin/env bash
# From MTT's buffers to a distilled set: from_mtt.sh BUFFERS DATASET DATA OUT
#
# BUFFERS holds the replay_buffer_*.pt that MTT's buffer.py wrote, DATA the dataset. Options after OUT go to `distill`.
set -euo pipefail
buffers=$1 dataset=$2 data=$3 out=$4
shift 4
mct-fast compress "$buffers" --dataset "$dataset" --data_path "$data" --encoding int8 --out "$out/store"
mct-fast inspect "$out/store" --no-accuracy
mct-fast distill --trajectories "$out/store" --out "$out/run" "$@"
mct-fast export "$out/run" --to mtt --out "$out/mtt"
