#!/usr/bin/env bash
# Retrieval of clips by captions and captions by clips, for all modalities with features; arguments are passed on.
set -euo pipefail
here=$(CDPATH= cd -- "$(dirname -- "$0")" && pwd)
. "$here/python.sh"
exec "$PYTHON" "$here/clip_retrieval.py" "$@"
