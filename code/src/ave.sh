#!/usr/bin/env bash
# AVE, both directions, as published; arguments pass through: --lr, --n_epoch, ... (--help).
set -euo pipefail
cd "$(dirname "$0")"
. ./python.sh
exec "$PYTHON" ave.py "$@"
