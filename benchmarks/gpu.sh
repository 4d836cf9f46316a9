#!/usr/bin/env bash
# Everything that ten minutes on a borrowed GPU can tell, in order of worth: right? how fast? where does the rest go?
#
#     benchmarks/gpu.sh FOLDER [options of benchmarks/step.py]
#
# Writes a file for each answer to FOLDER and goes on if one fails; the limits allow for compilations from cold. PYTHON names the interpreter (default python3).
set -uo pipefail
folder=${1:?"usage: benchmarks/gpu.sh FOLDER [options of benchmarks/step.py]"}
shift
cd "$(dirname "$0")/.." && mkdir -p "$folder"
python=${PYTHON:-python3}

answer() { # NAME SECONDS COMMAND...
    local name=$1 seconds=$2
    shift 2
    echo "== $name: $*"
    timeout "$seconds" "$@" 2>&1 | tee "$folder/$name.txt"
    echo "exit code ${PIPESTATUS[0]}" | tee -a "$folder/$name.txt"
}

"$python" -c 'import pytest, pytest_timeout, xdist, hypothesis, sklearn, mixmatch.training.loop' || {
    echo "first: $python -m pip install -r requirements-dev.txt (torch itself may be left out where it is there already)"
    exit 2
}
{ date -u; git rev-parse HEAD; "$python" -c 'import torch; print(torch.__version__, torch.cuda.get_device_name() if torch.cuda.is_available() else "no GPU")'; } | tee "$folder/what.txt"
answer correctness 240 "$python" -m pytest tests/test_gpu.py -n 4 -v
answer speed 200 "$python" benchmarks/step.py --variants textbook captured recorded bfloat16 compiled float32 "$@"
answer profile 60 "$python" benchmarks/profile_step.py "$@"
fastest=$("$python" -c 'import torch; print("captured" if torch.cuda.is_available() else "float32")')
answer together 90 "$python" benchmarks/step.py "$@" --variants "$fastest" --at-once 1 2 4
