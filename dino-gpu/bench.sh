#!/bin/bash
# Checks and measures dino-gpu on a machine with a card; pack.sh makes the folder it takes. Needs no Rust; PyTorch only for the comparison.
#
#   bench.sh [OPTIONS] BINARIES OUT
#     --reference DIR   folder with bench_gpu.py and dino_ref.py; else $DINO_REFERENCE, else BINARIES/reference
#     --data DIR        CIFAR-10 in its binary format: also a training run, with its k-NN curve
#     --epochs N        epochs of that run, instead of the preset's
#     --only LIST       some of: driver tests sanitizer cifar steps ops (comma between); all by default
#     --case NAME       small16 (default), tiny16, base16 or cifar12, as in bench_gpu.py; resnet50 or resnet_small (on CIFAR's crops); or
#                       emulation: a model for --driver
#     --batch N         64 by default
#     --rounds N        3 by default: how often each program of `steps` is run, one after another
#     --steps N         20 by default: what each of them times, after 5 that it does not
#     --tests GLOB      the test programs, 'BINARIES/tests/*' by default
#     --minutes N       nothing more is started after this long; 60 by default
#     --driver FILE     an emulation of libcuda.so.1
#
# What it cannot do it skips, and reports that. It writes four or five files into OUT: BENCHMARKS.generated.md (the tables), bench.log (what every
# program printed), steps.jsonl, pytorch.jsonl, cifar.jsonl. Exit: 0, or 1 if something that ran failed, 2 for a wrong command line.
set -uo pipefail

usage() { sed -n '2,/^set /{/^#/s/^# \{0,1\}//p}' "$0" >&2; exit 2; }
command_line="bench.sh $*"
reference=${DINO_REFERENCE:-} data='' epochs='' only=driver,tests,sanitizer,cifar,steps,ops case=small16 batch='' rounds=3 steps=20 tests='' minutes=60 driver=''
while [ $# -gt 0 ]; do
  case $1 in
    --reference | --data | --epochs | --only | --case | --batch | --rounds | --steps | --tests | --minutes | --driver)
      [ $# -ge 2 ] || usage
      declare "${1#--}=$2"; shift 2 ;;
    -*) usage ;;
    *) break ;;
  esac
done
only=${only/words/ops} # its former name
[ $# -eq 2 ] && [ -x "$1/step_time" ] && [ -x "$1/dino-gpu" ] || usage
mkdir -p "$2" || exit 2
binaries=$(cd "$1" && pwd) out=$(cd "$2" && pwd)
[ -n "$reference" ] || reference=$binaries/reference
scratch=$(mktemp -d)
trap 'rm -rf "$scratch"' EXIT
export TORCHINDUCTOR_CACHE_DIR=$scratch/inductor # what PyTorch compiles in the first round, the others find
# A variable left over from a test must not have the emulation measured.
unset DINO_LIBCUDA
[ -z "$driver" ] || export DINO_LIBCUDA=$driver

case $case in
  small16) model=(--arch vit_small) ;;
  tiny16) model=(--arch vit_tiny) ;;
  base16) model=(--arch vit_base) ;;
  cifar12) model=(--patch-size 4 --embed-dim 192 --depth 12 --heads 3 --global-size 32 --local-size 16 --local-crops-number 4
    --hidden 512 --bottleneck 128 --out-dim 4096) ;;
  resnet50) model=(--arch resnet50) ;;
  resnet_small) model=(--arch resnet_small --global-size 32 --local-size 16 --local-crops-number 4 --hidden 512 --bottleneck 128
    --out-dim 4096) ;;
  emulation) model=(--tiny) ;;
  *) usage ;;
esac
if [ "$case" = emulation ]; then batch=${batch:-4}; else batch=${batch:-64}; fi

log=$out/bench.log report=$out/BENCHMARKS.generated.md ours=$out/steps.jsonl pytorch=$out/pytorch.jsonl
rm -f "$log" "$report" "$ours" "$pytorch" "$out/cifar.jsonl"
outcomes=$scratch/outcomes
touch "$outcomes"
failed=0
report() { printf '%s\n' "$*" | tee -a "$log"; }
outcome() { report "$1: $2"; printf '| %s | %s |\n' "$1" "$2" >> "$outcomes"; }
skip() { outcome "$1" "SKIPPED: $2"; }
wanted() { [[ ,$only, == *,$1,* ]]; }

# run NAME SECONDS COMMAND...: what it prints goes to the log, how it ended to the table.
run() {
  local name=$1 limit=$2 start=$SECONDS code
  shift 2
  local left=$((60 * minutes - SECONDS))
  if [ "$left" -le 0 ]; then skip "$name" "the $minutes minutes of --minutes are over"; return 0; fi
  local cut="FAILED: not done after $limit s"
  if [ "$left" -lt "$limit" ]; then limit=$left cut="SKIPPED: cut off after $left s by --minutes"; fi
  report "--- $name: $*"
  timeout "$limit" "$@" > "$scratch/printed" 2>&1
  code=$?
  cat "$scratch/printed" >> "$log"
  # bench_gpu.py reports an error as a line and exits with 0.
  if grep -q '^{.*"error": ' "$scratch/printed"; then code=9; fi
  case $code in
    0) outcome "$name" "passed ($((SECONDS - start)) s)" ;;
    124) outcome "$name" "$cut" ;;
    *) outcome "$name" "FAILED: exit $code; $(tail -n 1 "$scratch/printed" | tr '|' '/' | cut -c 1-200)" ;;
  esac
  if [ $code -ne 0 ] && [[ $code -ne 124 || $cut == FAILED* ]]; then failed=1; fi
  return $code
}

# 1. The machine.
report "$command_line"
commit=$(cat "$binaries/COMMIT" 2> /dev/null || echo unknown)
if [ -n "$driver" ]; then
  card="none: $driver"
elif card=$(nvidia-smi --query-gpu=name,driver_version,memory.total --format=csv,noheader 2>> "$log"); then
  nvidia-smi >> "$log" 2>&1
else
  card='' # the driver check shows whether there is one
  skip nvidia-smi "it is not there, or does not work"
fi

# 2. Is there a card, and does its driver do what is asked of it? The small model of --check-driver takes a second.
"$binaries/step_time" --tiny --check-driver > "$scratch/check" 2>&1
code=$?
cat "$scratch/check" | tee -a "$log"
if [ $code -eq 2 ] && [ -z "$card" ]; then
  skip "everything on a card" "$(head -n 1 "$scratch/check" | tr '|' '/')"
  only=''
elif [ $code -ne 0 ]; then
  outcome "driver check, small model" "FAILED: exit $code, see bench.log"
  failed=1
else
  outcome "driver check, small model" passed
fi
[ -n "$card" ] || card=$(sed -n 's/^ok    kernels load: //p' "$scratch/check")
# Own matmul kernels, and cuBLASLt's where this build has them; PyTorch brings the library, perhaps where only its own python looks.
if [ -z "$driver" ] && [ -z "${DINO_CUBLASLT:-}" ]; then
  for folder in $(python3 -c 'import nvidia; print(*nvidia.__path__)' 2> /dev/null); do
    DINO_CUBLASLT=$(find "$folder" -name 'libcublasLt.so.1[23]' | sort | tail -n 1)
  done
  if [ -n "${DINO_CUBLASLT:-}" ]; then export DINO_CUBLASLT; fi
fi
one=(--launch direct --warmup 0 --steps 1)
gemms=('')
if [ -z "$only" ]; then :
elif ! "$binaries/step_time" --help | grep -q -- '--gemm'; then skip cuBLASLt "this build has no --gemm"
elif "$binaries/step_time" --tiny --gemm cublaslt "${one[@]}" > "$scratch/printed" 2>&1; then gemms=('--gemm own' '--gemm cublaslt')
else
  gemms=('--gemm own')
  if grep -q 'no cuBLASLt' "$scratch/printed"; then
    skip cuBLASLt "$(grep -m 1 'no cuBLASLt' "$scratch/printed" | tr '|' '/')"
  else
    cat "$scratch/printed" >> "$log"
    outcome cuBLASLt "FAILED: $(tail -n 1 "$scratch/printed" | tr '|' '/')"
    failed=1
  fi
fi
if wanted driver; then
  run "driver check, $case, batch $batch, f32" 300 "$binaries/step_time" "${model[@]}" --batch "$batch" --precision f32 --check-driver
  # shellcheck disable=SC2086 # flags are separate arguments
  for gemm in "${gemms[@]}"; do
    run "driver check, $case, batch $batch, bf16${gemm:+, ${gemm#--}}" 300 "$binaries/step_time" "${model[@]}" --batch "$batch" $gemm --check-driver
  done
fi

# 3. The tests that compare every op with the CPU's.
if wanted tests; then
  [ -n "$tests" ] || tests="$binaries/tests/*"
  found=0
  for test in $tests; do
    [ -f "$test" ] && [ -x "$test" ] || continue
    found=1
    # Where there is no device file they would take the emulation, so they are told of the driver.
    named=()
    if [ -z "$driver" ] && [ ! -e /dev/nvidiactl ]; then named=(DINO_LIBCUDA=libcuda.so.1); fi
    run "tests $(basename "$test")" 1200 env DINO_FIXTURES="$binaries/golden" "${named[@]}" "$test" --nocapture
  done
  [ $found = 1 ] || skip tests "no program matches $tests"
fi

# 4. The sanitizer, over kernels launched one by one.
if wanted sanitizer; then
  sanitizer=$(command -v compute-sanitizer || ls /usr/local/cuda/bin/compute-sanitizer 2> /dev/null)
  if [ -z "$sanitizer" ]; then
    for folder in $(python3 -c 'import nvidia; print(*nvidia.__path__)' 2> /dev/null); do
      sanitizer=$(find "$folder" -name compute-sanitizer -type f | head -n 1)
    done
  fi
  if [ -z "$sanitizer" ]; then
    skip sanitizer "compute-sanitizer is neither on the PATH nor in python's nvidia folder"
  else
    for tool in memcheck racecheck synccheck; do
      check=("$sanitizer" --tool "$tool" --error-exitcode 9)
      # The program asks for a kernel's parameters until the driver refuses: memcheck shall report errors of memory alone, not of calls.
      [ "$tool" != memcheck ] || check+=(--report-api-errors no)
      for precision in bf16 f32; do
        run "$tool, small model, $precision" 300 "${check[@]}" "$binaries/step_time" --tiny "${one[@]}" --precision $precision
      done
      # Eight images of the published model are the fewest that take the large tiles.
      [ "$case" = emulation ] || run "$tool, $case, batch 8" 600 "${check[@]}" "$binaries/step_time" "${model[@]}" --batch 8 --micro-batch 8 "${one[@]}"
    done
  fi
fi

# 5. Entire steps, against PyTorch: both alternate, several times over, so that a card that warms up or is shared favors neither.
if wanted steps; then
  python=''
  if [ "$case" = emulation ] || [[ $case == resnet* ]]; then skip PyTorch "it has no case of that name"
  elif [ ! -f "$reference/bench_gpu.py" ]; then skip PyTorch "no bench_gpu.py in $reference"
  elif ! python3 -c 'import torch, timm' 2>> "$log"; then skip PyTorch "python3 has no torch and timm"
  else python=python3; fi
  # All at once, as PyTorch does it and the trainer if not told; in parts, which takes a quarter of the memory; and, with about as
  # little, all images with their crops in several passes.
  micro=("--micro-batch $batch" "--micro-batch $(((batch + 3) / 4))" "--micro-batch $batch --stream-crops")
  # A batch norm's group, the batch, may not be cut.
  [[ $case != resnet* ]] || micro=("--micro-batch $batch" "--micro-batch $batch --stream-crops")
  for round in $(seq "$rounds"); do
    # shellcheck disable=SC2086 # flags are separate arguments
    for gemm in "${gemms[@]}"; do
      for size in "${micro[@]}"; do
        for launch in graph direct; do
          label="dino-gpu ${size#--}, $launch${gemm:+, ${gemm#--}}"
          run "$label, round $round" 300 "$binaries/step_time" "${model[@]}" --batch "$batch" $size $gemm --launch $launch \
            --steps "$steps" --label "$label" --json "$ours"
        done
      done
    done
    [ -n "$python" ] || continue
    for mode in eager tuned compile graphs; do
      run "PyTorch $mode, round $round" 600 "$python" "$reference/bench_gpu.py" --case "$case" --batch "$batch" --modes "$mode" --steps "$steps" --json "$pytorch"
    done
  done
fi

# 6. Where a step goes.
ops=$scratch/ops
if wanted ops; then
  # shellcheck disable=SC2086 # flags are separate arguments
  for gemm in "${gemms[@]}"; do
    run "ops${gemm:+, ${gemm#--}}" 300 "$binaries/step_time" "${model[@]}" --batch "$batch" --micro-batch "$batch" $gemm --launch direct --steps "$steps" --ops &&
      cat "$scratch/printed" >> "$ops"
  done
fi

# 7. Learning on real images.
if wanted cifar; then
  if [ -z "$data" ]; then
    skip cifar "no --data"
  else
    start=$SECONDS
    # shellcheck disable=SC2086 # a flag and its value, or nothing
    run cifar 3600 "$binaries/dino-gpu" train --small --data "$data" ${epochs:+--epochs $epochs} --out "$scratch/cifar"
    cifar_seconds=$((SECONDS - start))
    cp "$scratch/cifar/log.jsonl" "$out/cifar.jsonl" 2> /dev/null
  fi
fi

# 8. The tables.
# Python makes a table of JSON lines: the median over the rounds of each program's median step, and the spread of those medians.
table() {
  python3 - "$@" << 'PYTHON'
import json, os, statistics, sys
rows = {}
for path, whose in zip(sys.argv[1:], ("", "PyTorch ")):
    for line in open(path) if os.path.exists(path) else ():
        r = json.loads(line)
        if "error" not in r:
            rows.setdefault(whose + r["mode"], []).append(r)
print("| program | images/s | ms a step, median | least of the rounds' medians | greatest | least step | ops alone, ms | TFLOP/s | GiB | rounds |")
print("| --- | --- | --- | --- | --- | --- | --- | --- | --- | --- |")
for name, rs in rows.items():
    ms = [r["median_ms"] for r in rs]
    m = statistics.median(ms)
    ops = f"{statistics.median(r['words_ms'] for r in rs):.3f}" if "words_ms" in rs[0] else ""
    print(f"| {name} | {rs[0]['batch'] * 1e3 / m:.1f} | {m:.3f} | {min(ms):.3f} | {max(ms):.3f} | {min(r['min_ms'] for r in rs):.3f} | {ops} |"
          f" {rs[0]['tflops'] * rs[0]['median_ms'] / m:.2f} | {max(r['peak_gib'] or 0 for r in rs):.2f} | {len(rs)} |")
PYTHON
}
knn() {
  python3 - "$1" << 'PYTHON'
import json, sys
rows = [r for r in map(json.loads, open(sys.argv[1])) if r["kind"] == "epoch"]
print("| epoch | k-NN | loss | feature rank |\n| --- | --- | --- | --- |")
for r in rows:
    print(f"| {r['epoch'] + 1} | {r.get('knn_top1')} | {r['train_loss']} | {r.get('feature_rank')} |")
PYTHON
}
{
  echo "# dino-gpu, measured"
  echo
  echo "- command: \`$command_line\`"
  echo "- date: $(date -u '+%Y-%m-%d %H:%M UTC')"
  echo "- card, driver, memory: ${card:-none}"
  echo "- commit: $commit"
  [ -z "$driver" ] || echo "- THIS IS THE EMULATION: its times do not tell those of a card"
  printf '\n## What ran\n\n| what | outcome |\n| --- | --- |\n'
  cat "$outcomes"
  if [ -f "$ours" ] || [ -f "$pytorch" ]; then
    printf '\n## Steps: %s, batch %s\n\n' "$case" "$batch"
    echo "\`dino-gpu\`: host clock between the reports of consecutive steps, the upload of the pixels included, as in training. \`ops alone\`:"
    echo "the same step without the upload, launched one by one. PyTorch: device events, its pixels are already on the card. So \`ops alone\` is what"
    echo "compares with PyTorch's modes on work, and \`images/s\` is what a trainer gets."
    echo
    table "$ours" "$pytorch" || cat "$ours" "$pytorch" 2> /dev/null
  fi
  if [ -f "$ops" ]; then
    printf '\n## By op\n\n```\n'
    cat "$ops"
    echo '```'
  fi
  if [ -f "$out/cifar.jsonl" ]; then
    printf '\n## CIFAR-10: %s s of wall time, k-NN and saving included\n\n' "$cifar_seconds"
    knn "$out/cifar.jsonl" || grep '"kind":"epoch"' "$out/cifar.jsonl"
  fi
} > "$report"
cat "$outcomes"
echo "tables: $report"
exit $failed
