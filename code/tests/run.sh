#!/usr/bin/env bash
# Set up as demo.sh does and run all tests; further arguments go to pytest.
set -euo pipefail
cd "$(dirname "$0")/../.."
bash code/setup.sh
. code/src/python.sh
exec "$PYTHON" -m pytest code/tests -q --durations=10 "$@"
