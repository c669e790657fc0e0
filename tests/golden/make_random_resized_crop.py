"""Records what torchvision's RandomResizedCrop draws and which rectangle it makes of it: random_resized_crop.json.

    python make_random_resized_crop.py [--seed 0] [--out random_resized_crop.json]

`draws` holds the values of uniform_ in pairs (part of the area, logarithm of the ratio, both f32), then, where one fitted,
the two of randint; without those, none of the ten fitted.
"""
import argparse
import json

import numpy as np
import torch
import torchvision
from PIL import Image
from torchvision.transforms import RandomResizedCrop

args = argparse.ArgumentParser()
args.add_argument("--seed", type=int, default=0)
args.add_argument("--out", default="random_resized_crop.json")
args = args.parse_args()

uniforms, integers = [], []
uniform, randint = torch.Tensor.uniform_, torch.randint


def recorded_uniform(self, low, high):
    value = uniform(self, low, high)
    uniforms.append(value.item())
    return value


def recorded_randint(*a, **k):
    value = randint(*a, **k)
    integers.append(value.item())
    return value


torch.Tensor.uniform_, torch.randint = recorded_uniform, recorded_randint
torch.manual_seed(args.seed)
SIZES = [(375, 500), (500, 375), (224, 224), (32, 32), (33, 47), (1, 1), (1, 2), (2, 1), (3, 2), (1, 300), (300, 1),
         (7, 90), (90, 7), (2000, 30), (30, 2000), (4000, 3001)]
RANGES = [((0.4, 1.0), (3 / 4, 4 / 3)), ((0.05, 0.4), (3 / 4, 4 / 3)), ((0.9, 1.0), (3 / 4, 4 / 3)),
          ((0.001, 1.0), (0.1, 10.0)), ((1.0, 1.0), (1.0, 1.0)), ((0.5, 0.8), (2.0, 3.0))]
cases = []
for height, width in SIZES:
    image = Image.fromarray(np.zeros((height, width, 3), np.uint8))
    for scale, ratio in RANGES:
        for _ in range(3):
            uniforms.clear(), integers.clear()
            box = RandomResizedCrop.get_params(image, list(scale), list(ratio))
            cases.append({"size": [height, width], "scale": scale, "ratio": ratio, "uniform": list(uniforms),
                          "randint": list(integers), "box": list(map(int, box))})
text = ",\n".join(json.dumps(c, separators=(",", ":")) for c in cases)
with open(args.out, "w") as file:
    file.write(f'{{"torchvision": "{torchvision.__version__}", "seed": {args.seed}, "cases": [\n{text}\n]}}\n')
