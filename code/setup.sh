#!/usr/bin/env bash
# Make the virtual environment .venv at the root with everything in requirements.txt and the package cmg, editable; a
# second call finds it ready. PYTHON3 chooses the interpreter (default: python3); an environment of another version is
# replaced. Where the root is read-only, the packages must be there already.
set -euo pipefail
root=$(CDPATH= cd -- "$(dirname -- "${BASH_SOURCE[0]}")/.." && pwd)
stamp=$root/.venv/.requirements
wanted=$(cat "$root/requirements.txt" "$root/code/pyproject.toml")
version() { "$1" -c 'import sys; print("%d.%d" % sys.version_info[:2])' 2>/dev/null; }
python=${PYTHON3:-python3}
present=$(version "$root/.venv/bin/python" || true)          # empty: no environment yet, or a broken one
[ -z "$present" ] || [ -z "${PYTHON3:-}" ] || [ "$present" = "$(version "$python")" ] || present=
case ${present:-$(version "$python" || echo missing)} in
3.10 | 3.11 | 3.12 | 3.13) ;;
*)
    found=$("$python" --version 2>&1 || true)
    command -v "$python" >/dev/null || found="not there"
    echo "error: Python 3.10 to 3.13 is needed, $python is $found; PYTHON3=python3.12 bash code/setup.sh names another" >&2
    exit 2 ;;
esac
if [ -n "$present" ] && [ -e "$stamp" ] && [ "$wanted" = "$(cat "$stamp")" ]; then exit 0; fi
if [ ! -w "$root" ] || { [ -e "$root/.venv" ] && [ ! -w "$root/.venv" ]; }; then     # a container's, or another user's
    echo "$root: cannot be written, so nothing is installed there; continuing with the Python that there is" >&2
    exit 0
fi
echo "setting up $root/.venv (once; PyTorch is a large download)"
[ -n "$present" ] || "$python" -m venv --clear "$root/.venv"
pip() { "$root/.venv/bin/python" -m pip install --quiet --disable-pip-version-check "$@"; }
pip -r "$root/requirements.txt"
pip --no-deps -e "$root/code"
printf '%s\n' "$wanted" >"$stamp"           # last, so that a broken installation is tried again
