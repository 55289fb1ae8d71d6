#!/usr/bin/env bash
# Pretrain CoDAAR on audio, video and text of VGGSound-AVEL 40K (arXiv 2605.12145), six epochs; further arguments
# override these: --dataset_name vggsound_AV_40k, vggsound_AVT_90k. Prompts as word pieces: prepare.py text --pieces.
set -euo pipefail
here=$(CDPATH= cd -- "$(dirname -- "$0")" && pwd)
. "$here/python.sh"
exec "$PYTHON" "$here/pretrain.py" --system codaar --pieces --dataset_name vggsound_AVT_40k "$@"
