#!/bin/sh
# Builds the emulations of the CUDA driver, of cuBLASLt and of NCCL:  build.sh OUT [asan]
#   KERNELS=file      another kernel file than ../kernels/kernels.cu
#   EXTRA_FLAGS=...   added to the compile line of the driver, as -DMUTATE_X
#   CXX=...           another compiler than g++
# Nothing is done while the outputs are newer than every source and were built with the same flags. With asan, programs
# that load the libraries must run with LD_PRELOAD="$(g++ -print-file-name=libasan.so)" ASAN_OPTIONS=detect_leaks=0.
set -eu
here=$(cd "$(dirname "$0")" && pwd)
out=${1:?usage: build.sh OUT [asan]}
mkdir -p "$out"
out=$(cd "$out" && pwd)
kernels=${KERNELS:-$here/../kernels/kernels.cu}
kernels=$(cd "$(dirname "$kernels")" && pwd)/$(basename "$kernels")
flags="-std=c++17 -shared -fPIC -fvisibility=hidden -fno-strict-aliasing -ffp-contract=off"
case ${2:-} in
  asan) flags="$flags -O1 -g -fsanitize=address --param asan-stack=0" ;;
  '') flags="$flags -O2" ;;
  *) echo "usage: build.sh OUT [asan]" >&2; exit 2 ;;
esac
cuda=$out/libcuda_emulated.so lt=$out/libcublaslt_emulated.so nccl=$out/libnccl_emulated.so stamp=$out/emulation.flags
line="${CXX:-g++} $flags ${EXTRA_FLAGS:-} $kernels"

if [ -f "$cuda" ] && [ -f "$lt" ] && [ -f "$nccl" ] && [ "$(cat "$stamp" 2>/dev/null)" = "$line" ] &&
  [ -z "$(find "$here" "$(dirname "$kernels")" -type f \( -name '*.h' -o -name '*.cpp' -o -name '*.cu' -o -name '*.cuh' -o -name build.sh \) -newer "$cuda" | head -n 1)" ]; then
  exit 0
fi
# under another name first: a program that starts meanwhile finds the old library or the new one, never half of it
trap 'rm -f "$cuda.$$" "$lt.$$" "$nccl.$$"' EXIT
# the name inside the file is how the other libraries find the first, wherever a program loaded it from
# shellcheck disable=SC2086
${CXX:-g++} $flags ${EXTRA_FLAGS:-} -Wno-unknown-pragmas -x c++ -I "$here" -I "$(dirname "$kernels")" -DKERNELS="\"$kernels\"" \
  -Wl,-soname,libcuda_emulated.so -o "$cuda.$$" "$here/driver.cpp" -x none -pthread
# shellcheck disable=SC2086
${CXX:-g++} $flags -Wl,-soname,libcublaslt_emulated.so -Wl,-rpath,'$ORIGIN' -o "$lt.$$" "$here/cublaslt.cpp" "$cuda.$$"
# shellcheck disable=SC2086
${CXX:-g++} $flags -Wl,-soname,libnccl_emulated.so -Wl,-rpath,'$ORIGIN' -o "$nccl.$$" "$here/nccl.cpp" "$cuda.$$" -pthread
mv "$lt.$$" "$lt"
mv "$nccl.$$" "$nccl"
printf '%s\n' "$line" > "$stamp"
mv "$cuda.$$" "$cuda"
