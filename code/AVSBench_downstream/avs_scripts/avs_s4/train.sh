#!/bin/sh
# The released setting (PVT-v2-b5, TPAVI with the query at all stages), both directions one after the other:
#   ./train.sh --checkpoint ../../../../checkpoint/DCID-model-5.pt --backbone_weights pvt_v2_b5.pth
#   ./train.sh --preset demo            (Dialled Digits scenes; run code/src/pretrain.sh --preset demo first)
# Any flag of train.py may follow and wins; --direction trains one direction only.
cd "$(dirname "$0")" || exit 1
case " $* " in
*" --preset "*|*" --preset="*) set -- "$@" ;;
*) set -- --session_name S4_pvt --visual_backbone pvt --train_batch_size 4 --lr 1e-4 --max_epoches 15 \
       --tpavi_stages 0 1 2 3 --tpavi_va_flag "$@" ;;
esac
case " $* " in
*" --direction "*|*" --direction="*|*" --help "*|*" -h "*) exec "${PYTHON:-python}" train.py "$@" ;;
esac
for direction in at ta; do "${PYTHON:-python}" train.py --direction $direction "$@" || exit $?; done
