#!/usr/bin/env bash
# All tasks for the checkpoints given: evaluate.sh CHECKPOINT [CHECKPOINT ...]; further arguments pass through.
set -euo pipefail
here=$(CDPATH= cd -- "$(dirname -- "$0")" && pwd)
. "$here/python.sh"
exec "$PYTHON" "$here/evaluate.py" "$@"
