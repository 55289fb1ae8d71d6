#!/usr/bin/env bash
# All measurements of a GPU in one call: bash code/benchmarks/gpu.sh [FOLDER]
# Logs, JSON and traces go to FOLDER (default: gpu-figures). The most important come first; --compile, which needs a C
# compiler, is last.
set -euo pipefail
out=$(mkdir -p "${1:-gpu-figures}" && cd "${1:-gpu-figures}" && pwd)
cd "$(dirname "${BASH_SOURCE[0]}")"
source ../src/python.sh

step() {    # name of the figures, arguments of pretrain_step.py
    "$PYTHON" pretrain_step.py --json "$out/$1.json" "${@:2}" 2>&1 | tee "$out/$1.log"
}

step run-bf16 -b 80 --precision bf16 --clips 40801 --epochs 6 --steps 20 --trace "$out/bf16.json.gz"
step float32 -b 80 --precision float32 --steps 10 --trace "$out/float32.json.gz"
TORCH_ALLOW_TF32_CUBLAS_OVERRIDE=1 step tf32 -b 80 --precision float32 --steps 10
step recompute -b 80 --precision bf16 --steps 10 --recompute
for system in h_dcid fcid micu codaar; do
    step "$system" --system "$system" -b 80 --precision bf16 --steps 10
done
"$PYTHON" evaluate_all.py --json "$out/evaluate.json" 2>&1 | tee "$out/evaluate.log"
"$PYTHON" -m pytest ../tests/training/test_devices.py ../tests/systems/test_systems.py -q -k "cuda or waits" 2>&1 | tee "$out/tests.log"
"$PYTHON" growth.py --parts step --widths published --precision bf16 --json "$out/growth.json" 2>&1 | tee "$out/growth.log"
step compile -b 80 --precision bf16 --steps 10 --compile
