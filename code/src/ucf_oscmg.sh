#!/usr/bin/env bash
# Open-set UCF-101 clips with audio, both directions, 17 known classes; further arguments override this.
set -euo pipefail
here=$(CDPATH= cd -- "$(dirname -- "$0")" && pwd)
. "$here/python.sh"
exec "$PYTHON" "$here/ucf_oscmg.py" --source_class_num 17 "$@"
