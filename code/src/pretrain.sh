#!/usr/bin/env bash
# Pretrain DCID on audio, video and text of VGGSound-AVEL 40K, six epochs; further arguments win over these.
set -euo pipefail
here=$(CDPATH= cd -- "$(dirname -- "$0")" && pwd)
. "$here/python.sh"
exec "$PYTHON" "$here/pretrain.py" \
    --dataset_name vggsound_AVT \
    --lr 0.0004 --clip_gradient 0.5 --b 80 --test_batch_size 64 "$@"
