#!/usr/bin/env bash
# TOC's selection for a checkpoint's codebooks: toc.sh CHECKPOINT; further arguments override the published figure's.
set -euo pipefail
here=$(CDPATH= cd -- "$(dirname -- "$0")" && pwd)
. "$here/python.sh"
exec "$PYTHON" "$here/toc.py" --choose_channel 128 --toc_max_num 1 --toc_min_num 0 "$@"
