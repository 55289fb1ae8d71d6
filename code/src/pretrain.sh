#!/usr/bin/env bash
# Pretrain DCID; without arguments on audio, video and text of VGGSound-AVEL 40K, six epochs of 80 clips a step, as
# published: pretrain.py's defaults.
set -euo pipefail
here=$(CDPATH= cd -- "$(dirname -- "$0")" && pwd)
. "$here/python.sh"
exec "$PYTHON" "$here/pretrain.py" "$@"
