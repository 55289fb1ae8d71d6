#!/usr/bin/env bash
# AVVP, both directions, as published; arguments pass through: --lr, --n_epoch, ... (--help).
set -euo pipefail
CDPATH= cd -- "$(dirname -- "$0")"
. ./python.sh
exec "$PYTHON" avvp.py "$@"
