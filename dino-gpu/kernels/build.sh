#!/usr/bin/env bash
# Compiles the kernels: build.sh [--check]
#
# NVIDIA's compilers come from PyPI, at fixed versions, into target/cuda (about 290 MB). Their output does not depend on machine or
# folder, so kernels.fatbin is committed, and --check tells whether it is what these sources give. Which compiler makes what, and
# why, is in compile.py; that no part asks for more than CUDA 12.0, or than its card's first driver, is a test of src/cuda/fatbin.rs.
set -euo pipefail
cd "$(dirname "$0")"

home=../../target/cuda
fetch() {
    local version=$1
    shift
    [ ! -e "$home/$version/complete" ] || return 0
    echo "fetching CUDA $version from PyPI"
    rm -rf "${home:?}/$version"
    mkdir -p "$home"
    python3 -m pip install --quiet --no-deps --no-compile --disable-pip-version-check --target "$home/$version" "$@"
    chmod +x "$home/$version/nvidia/cuda_nvcc/bin/ptxas"
    touch "$home/$version/complete"
}
fetch 12.0 nvidia-cuda-nvrtc-cu12==12.0.140 nvidia-cuda-nvcc-cu12==12.0.140 nvidia-cuda-runtime-cu12==12.0.146
fetch 12.8 nvidia-cuda-nvcc-cu12==12.8.93 nvidia-nvfatbin-cu12==12.8.90

built=$home/kernels.fatbin
python3 compile.py "$home" "$built"

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
