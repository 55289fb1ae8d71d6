#!/usr/bin/env bash
# Make the virtual environment .venv at the root with everything in requirements.txt and the package cmg, editable; a
# second call finds it ready. PYTHON3 chooses the interpreter (default: python3). Where the root is read-only, the packages
# must be there already.
set -euo pipefail
root=$(CDPATH= cd -- "$(dirname -- "${BASH_SOURCE[0]}")/.." && pwd)
stamp=$root/.venv/.requirements
wanted=$(cat "$root/requirements.txt" "$root/code/pyproject.toml")
if [ -e "$stamp" ] && [ "$wanted" = "$(cat "$stamp")" ]; then exit 0; fi
if [ ! -w "$root" ] || { [ -e "$root/.venv" ] && [ ! -w "$root/.venv" ]; }; then     # a container's, or another user's
    echo "$root: cannot be written, so nothing is installed there; continuing with the Python that there is" >&2
    exit 0
fi
echo "setting up $root/.venv (once; PyTorch is a large download)"
[ -x "$root/.venv/bin/python" ] || "${PYTHON3:-python3}" -m venv "$root/.venv"
pip() { "$root/.venv/bin/python" -m pip install --quiet --disable-pip-version-check "$@"; }
pip -r "$root/requirements.txt"
pip --no-deps -e "$root/code"
printf '%s\n' "$wanted" >"$stamp"           # last, so that a broken installation is tried again
