#!/usr/bin/env bash
# Measure on a borrowed GPU, in two commands that fit a quarter of an hour.
#
#     benchmarks/gpu.sh speed FOLDER [options of benchmarks/step.py]     # 8 minutes: GPU tests, and times of a step
#     benchmarks/gpu.sh train FOLDER SECONDS [key=value ...]            # FreeMatch on CIFAR-10 (JPEG), WRN-28-2
#
# Writes its output to files in FOLDER. Tests and compilations share the CPU cores; then the variants of the step are timed
# one by one, while nothing else runs. PYTHON is the interpreter (default python3), IMAGES the archive of CIFAR-10 (JPEG).
set -uo pipefail
usage="usage: benchmarks/gpu.sh speed|train FOLDER ..."
command=${1:?"$usage"}
folder=${2:?"$usage"}
shift 2
cd "$(dirname "$0")/.." && mkdir -p "$folder"
python=${PYTHON:-python3}
images=${IMAGES:-data/cifar10-jpeg.tar.xz}
export TORCHINDUCTOR_COMPILE_THREADS=${TORCHINDUCTOR_COMPILE_THREADS:-2} PYTHONUNBUFFERED=1
jpeg=(data.dataset=folder data.root=data/cifar10-jpeg data.image_size=32 data.num_validation=1000)

unpack() {
    [ -d data/cifar10-jpeg/test ] || { mkdir -p data/cifar10-jpeg && tar xf "$images" -C data/cifar10-jpeg; }
}

case $command in
speed)
    { date -u; git rev-parse HEAD; nvidia-smi -L; "$python" -c 'import torch; print(torch.__version__)'; } 2>&1 | tee "$folder/versions.txt"
    "$python" -c 'import pytest, pytest_timeout, xdist, hypothesis, sklearn, mixmatch.training.loop' || exit 2
    rm -f "$folder"/*-done
    (
        timeout 300 "$python" -m pytest tests/test_gpu.py -n 6 -v -p no:cacheprovider >"$folder/tests.txt" 2>&1
        unpack
        timeout 90 "$python" main.py --config quick --run-dir runs/short "${jpeg[@]}" train.steps=60 \
            train.eval_every=60 >"$folder/short-run.txt" 2>&1
        touch "$folder/tests-done"
    ) &
    time_steps() { # NAME AFTER options ...: compiles now, times its variants when the file of AFTER exists
        local name=$1 after=$2
        shift 2
        timeout 460 "$python" benchmarks/step.py --after "$folder/$after-done" "$@" >"$folder/$name.txt" 2>&1
        touch "$folder/$name-done"
    }
    time_steps step tests --variants textbook float32 bfloat16 compiled cuda_graph compiled_cuda_graph reduce-overhead "$@" &
    time_steps muon step --variants compiled_cuda_graph --set train.optimizer=muon mixmatch.num_views=1 &
    time_steps freematch muon --variants compiled_cuda_graph --set method=freematch train.optimizer=sgd &
    wait
    cat "$folder"/{step,muon,freematch}.txt
    tail -n 40 "$folder/tests.txt"
    cat "$folder/short-run.txt"
    ;;
train)
    seconds=$1
    shift
    unpack
    timeout --signal TERM "$seconds" "$python" main.py --config freematch --run-dir "$folder/run" "${jpeg[@]}" \
        train.compile=true "$@" 2>&1 | tee "$folder/train.txt"
    ;;
*)
    echo "$usage" >&2
    exit 2
    ;;
esac
