#!/usr/bin/env bash
# Test the newest runs of train.sh in both directions and save the predicted masks:
#   test.sh --checkpoint ../../../../checkpoint/DCID-model-5.pt
#   test.sh --preset demo
# Further arguments override these; --direction or --weights tests only one run.
set -euo pipefail
here=$(CDPATH= cd -- "$(dirname -- "$0")" && pwd)
. "$here/../../../src/python.sh"
case " $* " in
*" --preset"*) setting=(--save_pred_mask) ;;
*) setting=(--session_name S4_pvt --test_batch_size 4 --save_pred_mask) ;;
esac
case " $* " in
*" --direction"* | *" --weights"* | *" --help "* | *" -h "*) exec "$PYTHON" "$here/test.py" "${setting[@]}" "$@" ;;
esac
for direction in at ta; do "$PYTHON" "$here/test.py" --direction $direction "${setting[@]}" "$@"; done
