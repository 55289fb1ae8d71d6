#!/usr/bin/env bash
# Real recordings: set-up, Spoken Digits, pretraining, downstream tasks, table and report.
set -euo pipefail
here=$(CDPATH= cd -- "$(dirname -- "$0")" && pwd)
bash "$here/../setup.sh"
. "$here/python.sh"
exec "$PYTHON" "$here/spoken.py" "$@"
