#!/usr/bin/env bash
# The rows of the paper's Table 3 on the demo data, five epochs each (about 10 minutes on 2 cores); further arguments
# pass through, for example --study sizes.
set -euo pipefail
CDPATH= cd -- "$(dirname -- "$0")"
. ./python.sh
exec "$PYTHON" ablation.py --preset demo --n_epoch 5 "$@"
