# Sourced by the scripts beside it. PYTHON is the project's .venv where it exists, else whatever Python is active.
PYTHON=$(CDPATH= cd -- "$(dirname -- "${BASH_SOURCE[0]}")/../.." && pwd)/.venv/bin/python
[ -x "$PYTHON" ] || PYTHON=python
if ! "$PYTHON" -c 'import importlib.util, sys; sys.exit(importlib.util.find_spec("torch") is None)' 2>/dev/null; then
    echo "error: ${PYTHON}: no Python with PyTorch; one is expected; run \`bash code/setup.sh\` in the project's folder" >&2
    exit 2
fi
# Python finds `configs` and, without an installation, `cmg` beside the script; this variable would keep it from that.
unset PYTHONSAFEPATH
