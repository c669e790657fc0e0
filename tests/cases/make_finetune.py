"""Two steps of fine-tuning by PyTorch and timm, in float64: MixUp, then CutMix, targets with label smoothing, AdamW with layer-wise decay.

    python make_finetune.py FOLDER

writes finetune.safetensors and finetune.json, which states the pass rule of every tensor.
"""

import json
import sys

import numpy as np
import timm
import torch
from safetensors.numpy import save_file
from timm.data.mixup import mixup_target
from timm.loss import SoftTargetCrossEntropy

IMAGE, PATCH, DIM, DEPTH, HEADS, MLP, CLASSES, BATCH = 8, 4, 8, 3, 2, 12, 5, 5
LR, DECAY, WEIGHT_DECAY, SMOOTHING = 0.01, 0.65, 0.05, 0.1
SHARE, BOX = 0.3, (1, 3, 4, 5)  # top, left, height, width

torch.set_num_threads(1)
torch.manual_seed(3)
torch.set_default_dtype(torch.float64)
model = timm.models.VisionTransformer(
    img_size=IMAGE, patch_size=PATCH, embed_dim=DIM, depth=DEPTH, num_heads=HEADS, mlp_ratio=MLP / DIM, num_classes=CLASSES
)
for p in model.parameters():  # nothing near zero, and every number one of float32
    p.data = (torch.randn_like(p) * 0.4 + (p.data if p.ndim == 1 else 0)).float().double()
model.train()

tensors, notes = {}, {}


def put(name, x, **note):
    x = x.detach() if isinstance(x, torch.Tensor) else torch.tensor(x)
    tensors[name] = x.numpy().astype(np.int32 if x.dtype in (torch.int64, torch.int32) else np.float32)
    notes[name] = {"shape": list(x.shape), "dtype": str(tensors[name].dtype), **note}


def golden(name, x, **note):
    put(name, x, atol=float(4e-6 * max(1.0, x.detach().abs().max().item())), **note)


def after(name, x):
    """Relative error of the update; the key third of a qkv bias has no true gradient."""
    keys = {"key_bias_rows": [DIM, 2 * DIM], "key_bias_atol": 0.03} if name.endswith("qkv.bias") else {}
    put(name, x, atol=1e-3, update_rel_l2=2e-3, **keys)


names = dict(model.named_parameters())


def layer(name):
    """get_num_layer_for_vit of BEiT (and MAE). timm's own grouping puts the final norm beside the last block instead."""
    if name in ("cls_token", "pos_embed") or name.startswith("patch_embed"):
        return 0
    return int(name.split(".")[1]) + 1 if name.startswith("blocks") else DEPTH + 1


groups, scale, decayed = [], {}, {}
for name, p in names.items():
    scale[name] = DECAY ** (DEPTH + 1 - layer(name))
    decayed[name] = p.ndim > 1 and name not in model.no_weight_decay()
    groups.append({"params": [p], "lr": LR * scale[name], "weight_decay": WEIGHT_DECAY * decayed[name]})
for name, p in names.items():
    put(f"init.{name}", p, scale=scale[name], decayed=int(decayed[name]))
optimizer = torch.optim.AdamW(groups, lr=LR, betas=(0.9, 0.999), eps=1e-8)
criterion = SoftTargetCrossEntropy()

top, left, height, width = BOX
for step in range(2):
    x = torch.randn(BATCH, 3, IMAGE, IMAGE).float().double()
    labels = torch.randint(CLASSES, (BATCH,))
    put(f"{step}.pixels", x)
    put(f"{step}.labels", labels)
    if step == 0:
        share = SHARE
        mixed = x * share + x.flip(0) * (1 - share)
    else:
        share = 1 - height * width / IMAGE**2
        mixed = x.clone()
        box = (..., slice(top, top + height), slice(left, left + width))
        mixed[box] = x.flip(0)[box]
    targets = mixup_target(labels, CLASSES, share, SMOOTHING).double()
    logits = model(mixed)
    loss = criterion(logits, targets)
    optimizer.zero_grad()
    loss.backward()
    golden(f"{step}.mixed", mixed)
    golden(f"{step}.targets", targets)
    golden(f"{step}.logits", logits)
    golden(f"{step}.loss", loss.reshape(1))
    if step == 0:
        for name, p in names.items():
            golden(f"grad.{name}", p.grad)
    optimizer.step()
for name, p in names.items():
    after(f"after.{name}", p)

meta = {
    "image": IMAGE, "patch": PATCH, "dim": DIM, "depth": DEPTH, "heads": HEADS, "mlp": MLP, "classes": CLASSES,
    "batch": BATCH, "lr": LR, "layer_decay": DECAY, "weight_decay": WEIGHT_DECAY, "smoothing": SMOOTHING,
    "share": SHARE, "box": BOX, "eps": model.norm.eps,
}
folder = sys.argv[1]
save_file(tensors, f"{folder}/finetune.safetensors")
with open(f"{folder}/finetune.json", "w") as f:
    rows = ",\n".join(f"{json.dumps(name)}: {json.dumps(note)}" for name, note in notes.items())
    title = "two steps of fine-tuning a small vision transformer (timm, torch, float64)"
    f.write(f'{{"title": {json.dumps(title)}, "seed": 3, "meta": {json.dumps(meta)}, "tensors": {{\n{rows}\n}}}}\n')
