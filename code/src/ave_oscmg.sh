#!/usr/bin/env bash
# Open-set AVE, both directions, 14 known classes; further arguments win over these.
set -euo pipefail
cd "$(dirname "$0")"
. ./python.sh
exec "$PYTHON" ave_oscmg.py --source_class_num 14 --lr 0.0004 --clip_gradient 0.5 --n_epoch 25 --b 80 "$@"
