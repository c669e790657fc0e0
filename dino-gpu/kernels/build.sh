#!/usr/bin/env bash
# Compiles the kernels: build.sh [--check]
#
# NVIDIA's compiler comes from PyPI, at fixed versions, into target/cuda (about 270 MB; gcc is needed too). Its output does not depend
# on machine or folder, so kernels.fatbin is committed, and --check tells whether it is what these sources give.
set -euo pipefail
cd "$(dirname "$0")"

home=../../target/cuda
nvcc=$home/13.0.88/nvidia/cu13/bin/nvcc
if [ ! -x "$nvcc" ]; then
    echo "fetching the CUDA 13.0 compiler from PyPI"
    rm -rf "$home"
    mkdir -p "$home"
    python3 -m pip install --quiet --no-deps --no-compile --disable-pip-version-check --target "$home/new" \
        nvidia-cuda-nvcc==13.0.88 nvidia-nvvm==13.0.88 nvidia-cuda-crt==13.0.88 nvidia-cuda-runtime==13.0.96 \
        nvidia-cuda-cccl==13.0.85
    mv "$home/new" "$home/13.0.88"
fi

built=$home/kernels.fatbin
"$nvcc" -fatbin -O3 -std=c++17 -compress-mode=size \
    -gencode=arch=compute_80,code=sm_80 -gencode=arch=compute_90a,code=sm_90a -gencode=arch=compute_120,code=sm_120 \
    -gencode=arch=compute_80,code=compute_80 \
    -o "$built" kernels.cu

if [ "${1:-}" = --check ]; then
    cmp "$built" kernels.fatbin || {
        echo "kernels.fatbin is not what the sources give: run dino-gpu/kernels/build.sh and commit the result"
        exit 1
    }
    echo "kernels.fatbin is what the sources give, $(stat -c %s kernels.fatbin) bytes"
else
    mv "$built" kernels.fatbin
    echo "built kernels.fatbin, $(stat -c %s kernels.fatbin) bytes"
fi
