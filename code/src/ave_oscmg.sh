#!/usr/bin/env bash
# Open-set AVE, both directions, 14 known classes; further arguments override this.
set -euo pipefail
here=$(CDPATH= cd -- "$(dirname -- "$0")" && pwd)
. "$here/python.sh"
exec "$PYTHON" "$here/ave_oscmg.py" --source_class_num 14 "$@"
