#!/usr/bin/env bash
# Open-set UCF-101 video and VGGSound audio, both directions, 8 known classes; further arguments win over this.
set -euo pipefail
CDPATH= cd -- "$(dirname -- "$0")"
. ./python.sh
exec "$PYTHON" ucf_vggsound_oscmg.py --source_class_num 8 "$@"
