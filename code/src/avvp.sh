#!/usr/bin/env bash
# AVVP, both directions; further arguments win over these.
set -euo pipefail
cd "$(dirname "$0")"
. ./python.sh
exec "$PYTHON" avvp.py --lr 0.0004 --clip_gradient 0.5 --n_epoch 50 --b 80 "$@"
