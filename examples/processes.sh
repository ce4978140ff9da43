#!/usr/bin/env bash
# Experts, distillation and evaluation on several processes of this machine: processes.sh COUNT OUT
#
# Experts and the students of a match are split over the processes. On a machine with GPUs each takes one.
set -euo pipefail
count=$1 out=$2
run() { torchrun --nproc-per-node "$count" -m mct_fast "$@"; }
run experts --dataset digits --num_experts "$count" --train_epochs 5 --depth 2 --width 16 --batch_train 64 --out "$out/experts"
run distill --trajectories "$out/experts" --students "$count" --syn_steps 5 --max_start_epoch 2 --iterations 10 --eval_it 0 \
  --epoch_eval_train 50 --out "$out/run"
run evaluate "$out/run" --num_eval "$count" --epoch_eval_train 50
