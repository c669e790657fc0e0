"""Fixture for the dense evaluations: label propagation, DAVIS' J and F, retrieval's AP, copy detection's GeM and whitening, Lanczos.

    python make_dense.py            # writes dense.json beside itself

Written after the published algorithms (DINO's eval_video_segmentation.py, eval_copy_detection.py, eval_image_retrieval.py;
davis2017-evaluation; revisitop) with torch, numpy, scipy and Pillow; it shares no code with the crates it judges.
"""

import json
import math
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from scipy.ndimage import binary_dilation

torch.manual_seed(0)
rng = np.random.default_rng(0)
flat = lambda t: [round(float(x), 8) for x in np.asarray(t).ravel()]


def window(h, w, radius):
    """1 where target (i, j) may look at source (p, q)."""
    y, x = np.divmod(np.arange(h * w), w)
    near = (abs(y[:, None] - y[None]) <= radius) & (abs(x[:, None] - x[None]) <= radius)
    return torch.tensor(near, dtype=torch.float32)


def propagate(target, sources, segs, near, top, temperature):
    """target (T, C); sources: list of (T, C); segs: list of (n, T). Affinity over all sources, keys down, queries across."""
    t = F.normalize(target, dim=1)
    aff = torch.cat([torch.exp(F.normalize(s, dim=1) @ t.T / temperature) * near for s in sources])
    least = torch.topk(aff, top, dim=0).values.min(dim=0).values
    aff[aff < least] = 0
    aff = aff / aff.sum(dim=0, keepdim=True)
    return torch.cat(segs, dim=1) @ aff


def masks_of(seg, h, w, patch, size):
    n = seg.shape[0]
    up = F.interpolate(seg.reshape(1, n, h, w), scale_factor=patch, mode="bilinear", align_corners=False)[0]
    for c in range(n):
        if up[c].max() > 0:
            up[c] = up[c] - up[c].min()
            up[c] = up[c] / up[c].max()
    ids = up.argmax(dim=0).numpy().astype(np.uint8)
    return np.array(Image.fromarray(ids).resize((size[1], size[0]), Image.NEAREST))


def video(h, w, c, frames, patch, size, previous, radius, top, temperature, classes):
    # Features that drift, so that likeness means something.
    base = torch.randn(h * w, c)
    feats = [base + 0.4 * i * torch.randn(h * w, c) / 3 for i in range(frames)]
    first = torch.randint(0, classes, (size[0], size[1])).numpy().astype(np.uint8)
    first[: size[0] // 2, : size[1] // 2] = 1
    first[size[0] // 2 :, size[1] // 3 :] = 0
    small = np.array(Image.fromarray(first).resize((w, h), Image.NEAREST))
    seg0 = F.one_hot(torch.tensor(small.ravel().astype(np.int64)), classes).float().T
    near = window(h, w, radius) if radius else torch.ones(h * w, h * w)
    queue, out, masks = [], [], []
    for t in range(1, frames):
        seg = propagate(feats[t], [feats[0]] + [q[0] for q in queue], [seg0] + [q[1] for q in queue], near, top, temperature)
        queue = (queue + [(feats[t], seg)])[-previous:]
        out.append(seg)
        masks.append(masks_of(seg, h, w, patch, size))
    return {
        "grid": [h, w], "width": c, "patch": patch, "size": list(size), "previous": previous, "radius": radius, "top": top,
        "temperature": temperature, "classes": classes, "features": [flat(f) for f in feats], "first": flat(first), "small": flat(small),
        "segs": [flat(s.T) for s in out], "masks": ["".join(str(x) for x in m.ravel()) for m in masks],
    }


def edge(seg):
    """seg2bmap at the mask's own size."""
    e, s, se = np.zeros_like(seg), np.zeros_like(seg), np.zeros_like(seg)
    e[:, :-1], s[:-1, :], se[:-1, :-1] = seg[:, 1:], seg[1:, :], seg[1:, 1:]
    b = (seg ^ e) | (seg ^ s) | (seg ^ se)
    b[-1, :], b[:, -1] = seg[-1, :] ^ e[-1, :], seg[:, -1] ^ s[:, -1]
    b[-1, -1] = False
    return b


def f_measure(found, exact, part=0.008):
    r = math.ceil(part * np.linalg.norm(found.shape))
    y, x = np.ogrid[-r : r + 1, -r : r + 1]
    disk = x * x + y * y <= r * r
    a, b = edge(found), edge(exact)
    if a.sum() == 0 or b.sum() == 0:
        return 1.0 if a.sum() == b.sum() else 0.0
    p = (a & binary_dilation(b, disk)).sum() / a.sum()
    q = (b & binary_dilation(a, disk)).sum() / b.sum()
    return 0.0 if p + q == 0 else 2 * p * q / (p + q)


def blob(h, w):
    noise = np.array(Image.fromarray(rng.random((5, 7)).astype(np.float32)).resize((w, h), Image.BICUBIC))
    return noise > 0.55


def pairs():
    rows = []
    for h, w in [(40, 61), (96, 170), (30, 30), (200, 300)]:
        a = blob(h, w)
        b = np.roll(a, (2, 3), (0, 1)) ^ (rng.random((h, w)) > 0.995)
        text = lambda m: "".join("1" if x else "0" for x in m.ravel())
        rows.append({"width": w, "a": text(a), "b": text(b), "j": float((a & b).sum() / (a | b).sum()), "f": float(f_measure(a, b))})
    return rows


def statistics(values):
    v = np.asarray(values)
    ids = (np.round(np.linspace(1, len(v), 5) + 1e-10) - 1).astype(int)
    bins = [v[ids[i] : ids[i + 1] + 1] for i in range(4)]
    return [float(v.mean()), float((v > 0.5).mean()), float(bins[0].mean() - bins[3].mean())]


def compute_ap(ranks, nres):
    ap = 0.0
    for j, rank in enumerate(ranks):
        p0 = 1.0 if rank == 0 else j / rank
        p1 = (j + 1) / (rank + 1)
        ap += (p0 + p1) / nres / 2
    return ap


def retrieval():
    bank, queries = rng.normal(size=(40, 6)), rng.normal(size=(5, 6))
    unit = lambda x: x / np.linalg.norm(x, axis=1, keepdims=True)
    ranking = np.argsort(-(unit(queries) @ unit(bank).T), axis=1)
    gnd, results = [], {"easy": [], "medium": [], "hard": []}
    for q in range(5):
        rows = rng.permutation(40)
        # The last query has no hard ones.
        gnd.append({"easy": rows[:4].tolist(), "hard": rows[4:7].tolist() if q < 4 else [], "junk": rows[7:12].tolist()})
    ks = [1, 5, 10]
    for protocol, (ok, junk) in {
        "easy": (["easy"], ["junk", "hard"]), "medium": (["easy", "hard"], ["junk"]), "hard": (["hard"], ["junk", "easy"]),
    }.items():
        aps, precisions = [], []
        for q in range(5):
            good, bad = sum([gnd[q][k] for k in ok], []), sum([gnd[q][k] for k in junk], [])
            if not good:
                continue
            pos = np.flatnonzero(np.isin(ranking[q], good))
            out = np.flatnonzero(np.isin(ranking[q], bad))
            pos = np.array([p - (out < p).sum() for p in pos])
            aps.append(compute_ap(pos, len(good)))
            precisions.append([(pos + 1 <= min(max(pos) + 1, k)).sum() / min(max(pos) + 1, k) for k in ks])
        results[protocol] = {"queries": len(aps), "map": float(np.mean(aps)), "precision": np.mean(precisions, axis=0).tolist()}
    return {"bank": flat(bank), "queries": flat(queries), "columns": 6, "gnd": gnd, "k": ks, "scores": results}


def copies():
    patches = torch.randn(20, 6)
    gem = F.avg_pool2d(patches.reshape(1, 4, 5, 6).clamp(min=1e-6).permute(0, 3, 1, 2).pow(4), (4, 5)).pow(0.25).reshape(6)
    learn = (rng.normal(size=(50, 5)) @ rng.normal(size=(5, 5)) + 2).astype(np.float32)
    learn[:, 4] = learn[:, 3]  # a direction without spread: the floor of the eigenvalues
    rows = (rng.normal(size=(7, 5)) + 1).astype(np.float32)
    out = {}
    for name, centred in [("centred", True), ("uncentred", False)]:
        x = learn.astype(np.float64)
        mean = x.mean(axis=0)
        x = x - mean if centred else x
        d, v = np.linalg.eigh(x.T @ x / len(x))
        d = np.maximum(d, d.max() * 1e-5)
        # Turned back to the first axes: the signs and the order of eigenvectors do not matter then.
        white = (v @ np.diag(d**-0.5) @ v.T @ (rows - mean).T).T
        white /= np.linalg.norm(white, axis=1, keepdims=True)
        out[name] = flat(white @ white.T)
    return {"patches": flat(patches), "gem": flat(gem), "learn": flat(learn), "rows": flat(rows), "columns": 5, "cosines": out}


def lanczos():
    a = rng.integers(0, 256, (23, 31, 3), dtype=np.uint8)
    rows = []
    for h, w in [(11, 15), (7, 31), (30, 40)]:
        b = np.array(Image.fromarray(a).resize((w, h), Image.LANCZOS))
        rows.append({"height": h, "width": w, "pixels": b.tobytes().hex()})
    return {"height": 23, "width": 31, "pixels": a.tobytes().hex(), "cases": rows}


def multi_scale():
    x = torch.randn(2, 13, 17)
    rows = [{"scale": s, "size": list(y.shape[1:]), "y": flat(y)} for s in (2**-0.5, 0.5)
            for y in [F.interpolate(x[None], scale_factor=s, mode="bilinear", align_corners=False)[0]]]
    return {"x": flat(x), "cases": rows}


values = [rng.random(n).tolist() for n in (1, 2, 5, 11, 68, 300)]
fixture = {
    "videos": [
        video(6, 7, 8, 6, 4, (26, 30), 3, 2, 5, 0.1, 3),
        video(9, 40, 6, 4, 2, (21, 77), 7, 3, 4, 0.2, 2),
        video(5, 6, 5, 4, 3, (15, 18), 1, 0, 3, 0.1, 4),
    ],
    "pairs": pairs(),
    "statistics": [{"values": v, "of": statistics(v)} for v in values],
    "retrieval": retrieval(),
    "copies": copies(),
    "lanczos": lanczos(),
    "multi_scale": multi_scale(),
}
path = Path(__file__).with_name("dense.json")
path.write_text(json.dumps(fixture))
print(path, path.stat().st_size, "bytes")
