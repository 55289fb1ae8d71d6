# Sourced by the other scripts. PYTHON is the project's .venv if it exists, else the active Python.
PYTHON=$(CDPATH= cd -- "$(dirname -- "${BASH_SOURCE[0]}")/../.." && pwd)/.venv/bin/python
[ -x "$PYTHON" ] || PYTHON=python
if ! "$PYTHON" -c 'import importlib.util, sys; sys.exit(importlib.util.find_spec("torch") is None)' 2>/dev/null; then
    echo "error: ${PYTHON}: expected a Python with PyTorch; run \`bash code/setup.sh\` in the project's folder" >&2
    exit 2
fi
# With this variable, Python would not find `configs` and, without an installation, `cmg` next to the script.
unset PYTHONSAFEPATH
