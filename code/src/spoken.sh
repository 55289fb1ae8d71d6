#!/usr/bin/env bash
# Real recordings: set-up, Spoken Digits, pretraining, downstream tasks, table and report.
set -euo pipefail
CDPATH= cd -- "$(dirname -- "$0")"
bash ../setup.sh
. ./python.sh
exec "$PYTHON" spoken.py "$@"
