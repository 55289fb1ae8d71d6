#!/usr/bin/env bash
# Pretrain H-DCID on audio, video and text of VGGSound-AVEL 40K (arXiv 2403.05168); further arguments override these.
# Five epochs, the first three warm up the first level; the published checkpoint is from epoch 3.
set -euo pipefail
here=$(CDPATH= cd -- "$(dirname -- "$0")" && pwd)
. "$here/python.sh"
exec "$PYTHON" "$here/pretrain.py" --system h_dcid "$@"
