#!/usr/bin/env bash
# The search for the small preset on the built-in set, as it was done: builtin.sh OUT [DINO_HOST]
# Settings are chosen on a tenth of the training images; what is finished is not run again. The keys name what was the preset then.
set -euo pipefail
out=$1 program=${2:-dino-host}
here=$(cd "$(dirname "$0")" && pwd)
round() { # NUMBER, then what its base has of its own
    "$program" ablate --small --epochs 24 --knn-every 6 --momentum-teacher-end 0.995 --variants "$here/builtin$1.toml" \
        --choose-on train-split --seeds 3 --jobs 1 --threads 1 --data builtin --out "$out/$1" "${@:2}"
}
round 1 --lr 0.016 --min-lr 0.000001
round 2 --lr 0.008 --min-lr 0.0003
