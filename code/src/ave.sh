#!/usr/bin/env bash
# AVE, both directions, as published; arguments pass through: --lr, --n_epoch, ... (--help).
set -euo pipefail
here=$(CDPATH= cd -- "$(dirname -- "$0")" && pwd)
. "$here/python.sh"
exec "$PYTHON" "$here/ave.py" "$@"
