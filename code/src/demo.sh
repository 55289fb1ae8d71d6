#!/usr/bin/env bash
# From a clone to a cross-modal result: set-up, demo data, pretraining, downstream tasks, table and pictures.
set -euo pipefail
CDPATH= cd -- "$(dirname -- "$0")"
bash ../setup.sh
. ./python.sh
exec "$PYTHON" demo.py "$@"
