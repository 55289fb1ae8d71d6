#!/usr/bin/env bash
# Your own clips, every direction: custom.sh --manifest CSV --features audio=PATH --features video=PATH; see
# docs/your-data.md.
set -euo pipefail
here=$(CDPATH= cd -- "$(dirname -- "$0")" && pwd)
. "$here/python.sh"
exec "$PYTHON" "$here/custom.py" "$@"
