# Sourced by the scripts beside it: PYTHON is the project's .venv where it exists, else whatever python is active.
PYTHON=$(cd "$(dirname "${BASH_SOURCE[0]}")/../.." && pwd)/.venv/bin/python
[ -x "$PYTHON" ] || PYTHON=python
