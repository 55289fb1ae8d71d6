#!/usr/bin/env bash
# Open-set UCF-101 clips with sound, both directions, 17 known classes; further arguments win over this.
set -euo pipefail
CDPATH= cd -- "$(dirname -- "$0")"
. ./python.sh
exec "$PYTHON" ucf_oscmg.py --source_class_num 17 "$@"
