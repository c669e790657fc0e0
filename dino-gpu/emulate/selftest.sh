#!/bin/sh
# Builds the emulations with the kernels of selftest.cu and checks what they promise:  selftest.sh [asan]
set -eu
here=$(cd "$(dirname "$0")" && pwd)
out=$(mktemp -d)
trap 'rm -rf "$out"' EXIT
KERNELS=$here/selftest.cu "$here/build.sh" "$out" ${1:-}
${CXX:-g++} -O1 -std=c++17 ${1:+-DASAN} -o "$out/selftest" "$here/selftest.cpp" -ldl -pthread
run() {
  if [ "${1:-}" = asan ]; then
    LD_PRELOAD=$(${CXX:-g++} -print-file-name=libasan.so) ASAN_OPTIONS=detect_leaks=0:exitcode=99 \
      "$out/selftest" "$out/libcuda_emulated.so" "$out/libcublaslt_emulated.so"
  else
    "$out/selftest" "$out/libcuda_emulated.so" "$out/libcublaslt_emulated.so"
  fi
}
# stderr shows the refusals that the test provokes; they matter only when it fails
if ! run "${1:-}" 2> "$out/stderr"; then
  cat "$out/stderr" >&2
  exit 1
fi
