#!/usr/bin/env bash
# The search for the small preset on images of 32 x 32 pixels, round by round, as it was done: run.sh DATA OUT [DINO_HOST]
# Every round starts from what the one before it showed. Settings are chosen on a tenth of the training images; what is
# finished is not run again.
set -euo pipefail
data=$1 out=$2 program=${3:-dino-host}
here=$(cd "$(dirname "$0")" && pwd)
epochs=(6 6 6 20 20 20 20)
for round in 1 2 3 4 5 6 7; do
    "$program" ablate --small --config "$here/$round.base.toml" --variants "$here/$round.variants.toml" \
        --epochs "${epochs[round - 1]}" --seeds 1 --jobs 2 --threads 2 --data "$data" --out "$out/$round"
done
