#!/usr/bin/env bash
# Open-set AVE, both directions, 14 known classes; further arguments win over this.
set -euo pipefail
CDPATH= cd -- "$(dirname -- "$0")"
. ./python.sh
exec "$PYTHON" ave_oscmg.py --source_class_num 14 "$@"
