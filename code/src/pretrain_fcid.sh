#!/usr/bin/env bash
# Pretrain FCID on audio, video and text of VGGSound-AVEL 40K, four epochs (ACL 2025 Findings); further arguments
# override these. The published checkpoints are those of steps 1400 and 2000 of 2044.
set -euo pipefail
here=$(CDPATH= cd -- "$(dirname -- "$0")" && pwd)
. "$here/python.sh"
exec "$PYTHON" "$here/pretrain.py" --system fcid --save_every_steps 100 "$@"
