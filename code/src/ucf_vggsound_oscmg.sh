#!/usr/bin/env bash
# Open-set UCF-101 video and VGGSound audio, both directions, 8 known classes; further arguments override this.
set -euo pipefail
here=$(CDPATH= cd -- "$(dirname -- "$0")" && pwd)
. "$here/python.sh"
exec "$PYTHON" "$here/ucf_vggsound_oscmg.py" --source_class_num 8 "$@"
