#!/bin/sh
# Test the newest runs of train.sh in both directions; masks are saved.
#   ./test.sh --checkpoint ../../../../checkpoint/DCID-model-5.pt
#   ./test.sh --preset demo
# Any flag of test.py may follow and wins; --direction or --weights tests one run only.
cd "$(dirname "$0")" || exit 1
case " $* " in
*" --preset "*|*" --preset="*) set -- --save_pred_mask "$@" ;;
*) set -- --session_name S4_pvt --test_batch_size 4 --save_pred_mask "$@" ;;
esac
case " $* " in
*" --direction "*|*" --direction="*|*" --weights "*|*" --weights="*|*" --help "*|*" -h "*)
    exec "${PYTHON:-python}" test.py "$@" ;;
esac
for direction in at ta; do "${PYTHON:-python}" test.py --direction $direction "$@" || exit $?; done
