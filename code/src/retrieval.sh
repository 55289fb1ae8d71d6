#!/usr/bin/env bash
# X-to-audio retrieval, V2T and T2V; further arguments win over these.
set -euo pipefail
cd "$(dirname "$0")"
. ./python.sh
exec "$PYTHON" retrieval.py --lr 0.0004 --clip_gradient 0.5 --n_epoch 30 --b 80 "$@"
