#!/usr/bin/env bash
# The rows of the paper's Table 3 on the demo data, five epochs each (about 10 minutes on 2 cores); further arguments
# pass through, for example --study sizes.
set -euo pipefail
here=$(CDPATH= cd -- "$(dirname -- "$0")" && pwd)
. "$here/python.sh"
exec "$PYTHON" "$here/ablation.py" --preset demo --n_epoch 5 "$@"
