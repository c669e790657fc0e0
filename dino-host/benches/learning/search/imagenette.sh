#!/usr/bin/env bash
# The look around the small preset on images of 160 pixels, as it was done: imagenette.sh DATA OUT [DINO_HOST]
# Chosen on a tenth of the training images; what is finished is not run again.
set -euo pipefail
data=$1 out=$2 program=${3:-dino-host}
here=$(cd "$(dirname "$0")" && pwd)
"$program" ablate --small --epochs 40 --knn-every 10 --min-lr 0.000001 --variants "$here/imagenette.toml" --choose-on train-split \
    --seeds 1 --jobs 1 --threads 1 --data "$data" --out "$out"
