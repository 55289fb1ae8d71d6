#!/usr/bin/env bash
# Pretrain FCID on audio, video and text of VGGSound-AVEL 40K, four epochs (ACL 2025 Findings); further arguments win
# over these. The published checkpoints are those of steps 1400 and 2000 of 2044.
set -euo pipefail
here=$(CDPATH= cd -- "$(dirname -- "$0")" && pwd)
. "$here/python.sh"
exec "$PYTHON" "$here/pretrain.py" --system fcid \
    --dataset_name vggsound_AVT --n_epoch 4 --save_every_steps 100 \
    --lr 0.0004 --clip_gradient 0.5 --b 80 --test_batch_size 64 "$@"
