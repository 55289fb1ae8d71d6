#!/usr/bin/env bash
# Pretrain MICU on audio, video and text of VGGSound-AVEL 40K, five epochs (ICCV 2025); further arguments override these.
set -euo pipefail
here=$(CDPATH= cd -- "$(dirname -- "$0")" && pwd)
. "$here/python.sh"
exec "$PYTHON" "$here/pretrain.py" --system micu --save_every_steps 200 "$@"
