#!/usr/bin/env bash
# Your own clips, every direction: custom.sh --manifest CSV --features audio=PATH --features video=PATH; see
# docs/your-data.md. Further arguments win over these.
set -euo pipefail
cd "$(dirname "$0")"
. ./python.sh
exec "$PYTHON" custom.py --lr 0.0004 --clip_gradient 0.5 --b 80 "$@"
