#!/usr/bin/env bash
# AVE to AVVP, both directions, as published; arguments pass through: --lr, --n_epoch, ... (--help).
set -euo pipefail
CDPATH= cd -- "$(dirname -- "$0")"
. ./python.sh
exec "$PYTHON" ave_avvp.py "$@"
