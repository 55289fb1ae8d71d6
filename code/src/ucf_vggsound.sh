#!/usr/bin/env bash
# UCF-101 video and VGGSound audio, both directions; further arguments win over these.
set -euo pipefail
cd "$(dirname "$0")"
. ./python.sh
exec "$PYTHON" ucf_vggsound.py --lr 0.0004 --clip_gradient 0.5 --n_epoch 30 --b 80 "$@"
