#!/usr/bin/env bash
# From a clone to a cross-modal result: set-up, demo data, pretraining, downstream tasks, table and pictures.
set -euo pipefail
here=$(CDPATH= cd -- "$(dirname -- "$0")" && pwd)
bash "$here/../setup.sh"
. "$here/python.sh"
exec "$PYTHON" "$here/demo.py" "$@"
