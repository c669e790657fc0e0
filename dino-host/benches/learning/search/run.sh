#!/usr/bin/env bash
# The search for the small preset on images of 32 x 32 pixels, round by round, as it was done: run.sh DATA OUT [DINO_HOST]
# Every round starts from what the one before it showed. Settings are chosen on a tenth of the training images; what is
# finished is not run again.
set -euo pipefail
data=$1 out=$2 program=${3:-dino-host}
here=$(cd "$(dirname "$0")" && pwd)
round() { # NUMBER, then what its base has of its own
    "$program" ablate --small --config "$here/base.toml" --variants "$here/round$1.toml" --choose-on train-split \
        --seeds 1 --jobs 2 --threads 2 --data "$data" --out "$out/$1" "${@:2}"
}
sgd=(--optimizer sgd --weight-decay 0.0005 --weight-decay-end 0.0005)
half=(--widths 32 64 128 --stem-stride 2)
round 1 --epochs 6 --knn-every 4
round 2 --epochs 6 --knn-every 6 "${sgd[@]}" --lr 0.2
round 3 --epochs 6 --knn-every 6 "${sgd[@]}" --lr 0.4
round 4 --epochs 20 --knn-every 10 "${sgd[@]}" --lr 0.4 "${half[@]}"
round 5 --epochs 20 --knn-every 10 "${sgd[@]}" --lr 0.4 "${half[@]}" --momentum-teacher-end 0.99
round 6 --epochs 20 --knn-every 10 "${sgd[@]}" --lr 0.4 "${half[@]}" --momentum-teacher-end 0.99 --clip-grad 1
