#!/usr/bin/env bash
# Train in both directions, one after the other, in the published setting (PVT-v2-b5, the query at all four stages):
#   train.sh --checkpoint ../../../../checkpoint/DCID-model-5.pt --backbone_weights pvt_v2_b5.pth
#   train.sh --preset demo            Dialled Digits scenes; run code/src/demo.sh first
# Further arguments override these; --direction trains only one direction. The published script trains one epoch, the
# AVS program that it is based on 15.
set -euo pipefail
here=$(CDPATH= cd -- "$(dirname -- "$0")" && pwd)
. "$here/../../../src/python.sh"
case " $* " in
*" --preset"*) setting=() ;;
*) setting=(--session_name S4_pvt --visual_backbone pvt --train_batch_size 4 --lr 1e-4 --max_epoches 15
            --tpavi_stages 0 1 2 3 --tpavi_va_flag) ;;
esac
case " $* " in
*" --direction"* | *" --help "* | *" -h "*) exec "$PYTHON" "$here/train.py" ${setting[@]+"${setting[@]}"} "$@" ;;
esac
for direction in at ta; do "$PYTHON" "$here/train.py" --direction $direction ${setting[@]+"${setting[@]}"} "$@"; done
