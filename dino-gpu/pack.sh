#!/bin/sh
# Builds what bench.sh needs on a machine with a card and no Rust, and puts it into one folder:  pack.sh DIR [REFERENCE]
#   REFERENCE   folder with bench_gpu.py and dino_ref.py, carried along; $DINO_REFERENCE if not given
# Then carry DIR and run DIR/bench.sh there. Nothing here needs a card.
set -eu
here=$(cd "$(dirname "$0")" && pwd)
dir=${1:?usage: pack.sh DIR [REFERENCE]}
reference=${2:-${DINO_REFERENCE:-}}
mkdir -p "$dir"
dir=$(cd "$dir" && pwd)
cd "$here/.."

cargo build --release -p dino-gpu --bins --examples
target=${CARGO_TARGET_DIR:-target}/release
cp "$target/dino-gpu" "$target/examples/step_time" "$here/bench.sh" "$dir"
# the tests that use the GPU, by the programs that cargo names, and what they compare with
rm -rf "$dir/tests" "$dir/golden"
mkdir "$dir/tests"
for source in tests/tests/*; do # a program is a file, or a folder of them
  grep -rq 'tests::gpu' "$source" || continue
  name=$(basename "$source" .rs)
  program=$(cargo test --release -p tests --test "$name" --no-run 2>&1 | sed -n 's/.*(\(.*\))$/\1/p' | tail -n 1)
  [ -n "$program" ] || { echo "pack.sh: cargo names no program for $source" >&2; exit 1; }
  cp "$program" "$dir/tests/$name"
done
cp -r tests/golden "$dir/golden"
strip "$dir/dino-gpu" "$dir/step_time" "$dir"/tests/*
{ git rev-parse --short HEAD 2>/dev/null || echo unknown; git status --porcelain --untracked-files=no 2>/dev/null | sed -n '1s/.*/ (changed)/p'; } | tr -d '\n' > "$dir/COMMIT"
if [ -n "$reference" ]; then
  mkdir -p "$dir/reference"
  cp "$reference/bench_gpu.py" "$reference/dino_ref.py" "$dir/reference"
else
  echo "pack.sh: no REFERENCE, so bench.sh will skip PyTorch" >&2
fi
du -sh "$dir"
