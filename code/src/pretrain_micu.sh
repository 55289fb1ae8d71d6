#!/usr/bin/env bash
# Pretrain MICU on audio, video and text of VGGSound-AVEL 40K, five epochs (ICCV 2025); further arguments win over these.
set -euo pipefail
here=$(CDPATH= cd -- "$(dirname -- "$0")" && pwd)
. "$here/python.sh"
exec "$PYTHON" "$here/pretrain.py" --system micu \
    --dataset_name vggsound_AVT --n_epoch 5 --save_every_steps 200 \
    --lr 0.0004 --clip_gradient 0.5 --b 80 --test_batch_size 64 "$@"
