#!/usr/bin/env bash
# Pretrain DCID; by default on audio, video and text of VGGSound-AVEL 40K, six epochs with 80 clips per step, as
# published.
set -euo pipefail
here=$(CDPATH= cd -- "$(dirname -- "$0")" && pwd)
. "$here/python.sh"
exec "$PYTHON" "$here/pretrain.py" "$@"
