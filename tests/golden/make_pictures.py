"""Principal components of patch tokens as colours, from the formulas alone: pictures.json.

    python make_pictures.py [--seed 0] [--out pictures.json]

Two images of 6 x 7 and 5 x 4 patches, 16 numbers a token: a disc in the middle and what is around it, which differ by much, and noise
of falling width along every axis. Needs NumPy alone.
"""
import argparse
import json

import numpy as np

args = argparse.ArgumentParser()
args.add_argument("--seed", type=int, default=0)
args.add_argument("--out", default="pictures.json")
args = args.parse_args()

random = np.random.default_rng(args.seed)
WIDTH = 16
turn, _ = np.linalg.qr(random.normal(size=(WIDTH, WIDTH)))
apart = random.normal(size=WIDTH) * 2


def image(rows, cols):
    y, x = np.mgrid[:rows, :cols]
    inside = (y - (rows - 1) / 2) ** 2 + (x - (cols - 1) / 2) ** 2 < 3.5
    noise = random.normal(size=(rows * cols, WIDTH)) * 0.8 ** np.arange(WIDTH) @ turn
    tokens = noise + inside.reshape(-1, 1) * apart + 5
    return {"rows": rows, "cols": cols, "tokens": tokens.astype(np.float32)}


def components(tokens):
    """Mean, variances, axes as columns; the entry largest in magnitude is positive."""
    mean = tokens.mean(0)
    _, values, axes = np.linalg.svd(tokens - mean, full_matrices=False)
    signs = np.sign(axes[np.arange(len(axes)), np.abs(axes).argmax(1)])
    return mean, values**2 / (len(tokens) - 1), (axes * signs[:, None]).T


def case(tokens, part):
    mean, variance, axes = components(tokens[part])
    found = (tokens - mean) @ axes[:, :3]
    low, high = np.percentile(found[part], [1, 99], axis=0)
    numbers = lambda x: [round(float(v), 9) for v in np.ravel(x)]
    return found[:, 0], {
        "variance": numbers(variance),
        "axes": numbers(axes[:, :3]),
        "coordinates": numbers(found),
        "colours": numbers(np.clip((found - low) / (high - low), 0, 1)),
    }


def threshold(values):
    """The split with the least variance within the parts (which is the greatest between them), tried one by one."""
    values = np.sort(values)
    within = [k * values[:k].var() + (len(values) - k) * values[k:].var() for k in range(1, len(values))]
    k = int(np.argmin(within)) + 1
    return (values[k - 1] + values[k]) / 2


images = [image(6, 7), image(5, 4)]
tokens = np.concatenate([i["tokens"] for i in images]).astype(np.float64)
first, everything = case(tokens, np.ones(len(tokens), bool))
at = threshold(first)
above = first > at
border = []
for i in images:
    inner = np.zeros((i["rows"], i["cols"]), bool)
    inner[1:-1, 1:-1] = True
    border.append(~inner.ravel())
border = np.concatenate(border)
part = above if border[above].mean() <= border[~above].mean() else ~above
_, front = case(tokens, part)
out = {
    "numpy": np.__version__,
    "width": WIDTH,
    "images": [{**i, "tokens": [float(x) for x in i["tokens"].ravel()]} for i in images],
    "all": everything,
    "threshold": float(at),
    "part": [int(p) for p in part],
    "foreground": front,
}
with open(args.out, "w") as file:
    json.dump(out, file)
