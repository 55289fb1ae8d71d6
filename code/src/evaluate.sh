#!/usr/bin/env bash
# All tasks for the checkpoints given: evaluate.sh CHECKPOINT [CHECKPOINT ...]; further arguments pass through.
set -euo pipefail
CDPATH= cd -- "$(dirname -- "$0")"
. ./python.sh
exec "$PYTHON" evaluate.py "$@"
