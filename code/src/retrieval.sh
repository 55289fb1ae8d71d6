#!/usr/bin/env bash
# X-to-audio retrieval, V2T and T2V, as published; arguments pass through: --lr, --n_epoch, ... (--help).
set -euo pipefail
here=$(CDPATH= cd -- "$(dirname -- "$0")" && pwd)
. "$here/python.sh"
exec "$PYTHON" "$here/retrieval.py" "$@"
