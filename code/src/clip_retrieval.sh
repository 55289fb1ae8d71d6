#!/usr/bin/env bash
# Retrieval of whole clips by captions and back, of all modalities that are there; arguments are passed on.
set -euo pipefail
here=$(CDPATH= cd -- "$(dirname -- "$0")" && pwd)
. "$here/python.sh"
exec "$PYTHON" "$here/clip_retrieval.py" "$@"
