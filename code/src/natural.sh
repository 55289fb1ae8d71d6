#!/usr/bin/env bash
# Field recordings and photographs: set-up, clips and features, pretraining, downstream tasks, table and report.
set -euo pipefail
here=$(CDPATH= cd -- "$(dirname -- "$0")" && pwd)
bash "$here/../setup.sh"
. "$here/python.sh"
exec "$PYTHON" "$here/natural.py" "$@"
