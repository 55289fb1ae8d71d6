#!/usr/bin/env bash
# Retrieval of whole clips by captions and back, of all modalities that are there; arguments are passed on.
set -euo pipefail
CDPATH= cd -- "$(dirname -- "$0")"
. ./python.sh
exec "$PYTHON" clip_retrieval.py "$@"
