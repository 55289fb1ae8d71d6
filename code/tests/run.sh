#!/usr/bin/env bash
# Set up as demo.sh does and run all tests, file by file on up to four cores with one thread each; further arguments go
# to pytest (-n 0: in one process, as a debugger wants it).
set -euo pipefail
CDPATH= cd -- "$(dirname -- "$0")/../.."
bash code/setup.sh
. code/src/python.sh
export OMP_NUM_THREADS=${OMP_NUM_THREADS:-1}
exec "$PYTHON" -m pytest code/tests -q --durations=10 -n auto --maxprocesses 4 --dist loadfile \
    --no-loadscope-reorder "$@"
