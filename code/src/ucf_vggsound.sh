#!/usr/bin/env bash
# UCF-101 video and VGGSound audio, both directions, as published; arguments pass through: --lr, --n_epoch, ... (--help).
set -euo pipefail
CDPATH= cd -- "$(dirname -- "$0")"
. ./python.sh
exec "$PYTHON" ucf_vggsound.py "$@"
