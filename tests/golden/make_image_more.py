"""What Pillow and torchvision make of a small image with the box filter, and of a grey one (mode L): image_more.json.

    python make_image_more.py [--seed 0] [--out image_more.json]

Pixels are hexadecimal, `height`, `width` and `channels` beside them. Pillow 13 chooses the order of a resize's passes by
rule, earlier versions did not: `order` says which it was.
"""
import argparse
import json

import numpy as np
import PIL
from PIL import Image, ImageFilter, ImageOps
from torchvision.transforms import functional as F

args = argparse.ArgumentParser()
args.add_argument("--seed", type=int, default=0)
args.add_argument("--out", default="image_more.json")
args = args.parse_args()


def image(x):
    x = np.asarray(x)
    x = x[..., None] if x.ndim == 2 else x
    return {"height": x.shape[0], "width": x.shape[1], "channels": x.shape[2], "pixels": x.tobytes().hex()}


random = np.random.default_rng(args.seed)
colour = Image.fromarray(random.integers(0, 256, (21, 26, 3), dtype=np.uint8))
grey = Image.fromarray((random.integers(0, 120, (19, 23)) + np.arange(23) * 5).astype(np.uint8))
cases = []
for name, source in [("colour", colour), ("grey", grey)]:
    for height, width in [(7, 9), (21, 13), (40, 50), (5, 26), (30, 8), (1, 1)]:
        for filter in ["box", "bilinear", "bicubic"]:
            made = source.resize((width, height), getattr(Image.Resampling, filter.upper()))
            cases.append({"of": name, "op": "resize", "filter": filter, **image(made)})
for op in ["brightness", "contrast", "saturation", "hue"]:
    for factor in [-0.1, 0.25] if op == "hue" else [0.0, 0.7, 1.0, 1.3]:
        cases.append({"of": "grey", "op": op, "factor": factor, **image(getattr(F, "adjust_" + op)(grey, factor))})
cases.append({"of": "grey", "op": "gray", **image(F.rgb_to_grayscale(grey, 1))})
cases.append({"of": "grey", "op": "solarize", **image(ImageOps.solarize(grey, 128))})
cases.append({"of": "grey", "op": "mirror", **image(ImageOps.mirror(grey))})
for sigma in [0.1, 0.9, 2.0, 5.0]:
    cases.append({"of": "grey", "op": "blur", "factor": sigma, **image(grey.filter(ImageFilter.GaussianBlur(sigma)))})
order = "pillow13" if int(PIL.__version__.split(".")[0]) >= 13 else "pillow12"
text = ",\n".join(json.dumps(c, separators=(",", ":")) for c in cases)
with open(args.out, "w") as file:
    file.write(f'{{"pillow": "{PIL.__version__}", "order": "{order}", "seed": {args.seed},\n'
               f'"colour": {json.dumps(image(colour))},\n"grey": {json.dumps(image(grey))},\n"cases": [\n{text}\n]}}\n')
