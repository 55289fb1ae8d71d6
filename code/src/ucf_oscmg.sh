#!/usr/bin/env bash
# Open-set UCF-101 clips with sound, both directions, 17 known classes; further arguments win over these.
set -euo pipefail
cd "$(dirname "$0")"
. ./python.sh
exec "$PYTHON" ucf_oscmg.py --source_class_num 17 --lr 0.0004 --clip_gradient 0.5 --n_epoch 16 --b 80 "$@"
