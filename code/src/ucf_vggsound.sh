#!/usr/bin/env bash
# UCF-101 video and VGGSound audio, both directions, as published; arguments pass through: --lr, --n_epoch, ... (--help).
set -euo pipefail
here=$(CDPATH= cd -- "$(dirname -- "$0")" && pwd)
. "$here/python.sh"
exec "$PYTHON" "$here/ucf_vggsound.py" "$@"
