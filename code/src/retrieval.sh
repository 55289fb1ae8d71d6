#!/usr/bin/env bash
# X-to-audio retrieval, V2T and T2V, as published; arguments pass through: --lr, --n_epoch, ... (--help).
set -euo pipefail
CDPATH= cd -- "$(dirname -- "$0")"
. ./python.sh
exec "$PYTHON" retrieval.py "$@"
