#!/bin/sh
# Builds the emulations with the kernels of selftest.cu and checks what they promise:  selftest.sh [asan]
set -eu
here=$(cd "$(dirname "$0")" && pwd)
out=$(mktemp -d)
trap 'rm -rf "$out"' EXIT
KERNELS=$here/selftest.cu "$here/build.sh" "$out" ${1:-}
for test in selftest nccl_selftest; do
  ${CXX:-g++} -O1 -std=c++17 ${1:+-DASAN} -o "$out/$test" "$here/$test.cpp" -ldl -pthread
done
run() {
  if [ "$asan" = asan ]; then
    LD_PRELOAD=$(${CXX:-g++} -print-file-name=libasan.so) ASAN_OPTIONS=detect_leaks=0:exitcode=99 "$@"
  else
    "$@"
  fi
}
asan=${1:-}
# stderr shows the refusals that the tests provoke; they matter only when one fails
for test in "selftest libcublaslt" "nccl_selftest libnccl"; do
  if ! run "$out/${test% *}" "$out/libcuda_emulated.so" "$out/${test#* }_emulated.so" 2> "$out/stderr"; then
    cat "$out/stderr" >&2
    exit 1
  fi
done
