# Sourced by the scripts beside it: PYTHON is the project's .venv where it exists, else whatever python is active.
PYTHON=$(cd "$(dirname "${BASH_SOURCE[0]}")/../.." && pwd)/.venv/bin/python
[ -x "$PYTHON" ] || PYTHON=python
# CPU threads sleep while they wait for each other: spinning ones make a step ten times slower on a busy machine.
export OMP_WAIT_POLICY=${OMP_WAIT_POLICY:-PASSIVE}
