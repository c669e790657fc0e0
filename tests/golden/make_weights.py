"""Writes one small vision transformer in every dialect and format that other programs save, and what they compute with it: weights/.

    python make_weights.py --reference DIR_OF_dino_ref.py [--out weights]

All hold the same numbers (those of half and bf16 rounded). `activations.safetensors` has, for `image` (2, 3, 12, 12) and `wide` (1, 3, 12, 20),
the normalised tokens, class token first: `official` with the published position rule, `timm`, `hf` with LayerNorm epsilons 1e-6 and 1e-12
and Hugging Face's position rule. Positions are small, so that the epsilon shows. Written with torch, timm and transformers as named there.
"""
import argparse
import json
import os
import sys
from functools import partial

import timm
import torch
import transformers
from safetensors.torch import save_file
from timm.models.vision_transformer import VisionTransformer
from torch import nn
from transformers import ViTConfig, ViTModel

args = argparse.ArgumentParser()
args.add_argument("--reference", required=True)
args.add_argument("--out", default="weights")
args = args.parse_args()
sys.path.insert(0, args.reference)
from dino_ref import DinoHead, DinoViT, MultiCrop  # noqa: E402

os.makedirs(args.out, exist_ok=True)
torch.manual_seed(0)
SIZE = dict(img_size=12, patch_size=4, embed_dim=16, depth=2, num_heads=2, mlp_ratio=2)


def at(name):
    return os.path.join(args.out, name)


def disturbed(model):
    """Every tensor random, so that none can be mistaken for another."""
    with torch.no_grad():
        for name, p in model.named_parameters():
            if "weight_g" in name or "norm" in name and name.endswith("weight"):
                p.copy_(1 + 0.2 * torch.randn_like(p))
            elif "embed" in name or "token" in name:
                p.copy_(0.01 * torch.randn_like(p))
            else:
                p.copy_(0.2 * torch.randn_like(p))
    return model.eval()


official = disturbed(DinoViT(**SIZE))
state = {k: v.detach().clone() for k, v in official.state_dict().items()}
image, wide = torch.randn(2, 3, 12, 12), torch.randn(1, 3, 12, 20)
found = {"image": image, "wide": wide}
with torch.no_grad():
    found["official.image"] = official.taps(image)["normed"]
    found["official.wide"] = official.taps(wide)["normed"]

# timm
model = VisionTransformer(**SIZE, num_classes=0, norm_layer=partial(nn.LayerNorm, eps=1e-6)).eval()
model.load_state_dict(state)
with torch.no_grad():
    found["timm.image"] = model.forward_features(image)
save_file({k: v.contiguous() for k, v in model.state_dict().items()}, at("timm.safetensors"), {"format": "pt"})

# Hugging Face
names = {"cls_token": "embeddings.cls_token", "pos_embed": "embeddings.position_embeddings"}
names |= {f"patch_embed.proj.{x}": f"embeddings.patch_embeddings.projection.{x}" for x in ("weight", "bias")}
names |= {f"norm.{x}": f"layernorm.{x}" for x in ("weight", "bias")}
hf = {names[k]: v for k, v in state.items() if k in names}
for i in range(2):
    for x in ("weight", "bias"):
        for ours, theirs in (("norm1", "layernorm_before"), ("norm2", "layernorm_after"), ("attn.proj", "attention.o_proj"),
                             ("mlp.fc1", "mlp.fc1"), ("mlp.fc2", "mlp.fc2")):
            hf[f"layers.{i}.{theirs}.{x}"] = state[f"blocks.{i}.{ours}.{x}"]
        for part, third in zip("qkv", state[f"blocks.{i}.attn.qkv.{x}"].chunk(3)):
            hf[f"layers.{i}.attention.{part}_proj.{x}"] = third.clone()
for eps in (1e-6, 1e-12):
    config = ViTConfig(hidden_size=16, num_hidden_layers=2, num_attention_heads=2, intermediate_size=32, image_size=12,
                       patch_size=4, layer_norm_eps=eps)
    model = ViTModel(config, add_pooling_layer=False).eval()
    assert not model.load_state_dict(hf).missing_keys
    with torch.no_grad():
        found[f"hf.image.{eps:g}"] = model(image).last_hidden_state
        found[f"hf.wide.{eps:g}"] = model(wide, interpolate_pos_encoding=True).last_hidden_state
model.save_pretrained(at("hf"))  # 1e-12, as the port of the published weights has it
pooled = ViTModel(config).eval()
pooled.load_state_dict(hf, strict=False)
torch.save(pooled.state_dict(), at("hf-pooler.pth"))

# The published formats
torch.save(state, at("official.pth"))
torch.save(state, at("legacy.pth"), _use_new_zipfile_serialization=False)
torch.save({k: v.half() for k, v in state.items()}, at("half.pth"))
torch.save({k: v.bfloat16() for k, v in state.items()}, at("bf16.pth"))
flat = torch.cat([v.flatten() for v in state.values()]).double()
views, place = {}, 0
for k, v in state.items():  # one storage, parameters, and one tensor that lies transposed in memory
    views[k] = nn.Parameter(flat[place:place + v.numel()].view(v.shape))
    place += v.numel()
views["blocks.1.mlp.fc1.weight"] = state["blocks.1.mlp.fc1.weight"].t().contiguous().t()
for name, new in (("views.pth", True), ("views-legacy.pth", False)):
    torch.save({"state_dict": views}, at(name), _use_new_zipfile_serialization=new)

# A whole run, as the published trainer saves it.
student = nn.DataParallel(MultiCrop(disturbed(DinoViT(**SIZE)), disturbed(DinoHead(16, 32, hidden=24, bottleneck=8))))
teacher = MultiCrop(official, disturbed(DinoHead(16, 32, hidden=24, bottleneck=8)))
optimizer = torch.optim.AdamW(student.parameters())
student.module.cpu()([image]).square().mean().backward()
optimizer.step()
run = argparse.Namespace(arch="vit_small", patch_size=4, out_dim=32, norm_last_layer=True, lr=0.0005, seed=0, gpu=0,
                         global_crops_scale=(0.4, 1.0), output_dir=".", optimizer="adamw", drop_path_rate=0.1)
torch.save({"student": student.state_dict(), "teacher": teacher.state_dict(), "optimizer": optimizer.state_dict(), "epoch": 1,
            "args": run, "dino_loss": {"center": torch.zeros(1, 32)},
            "fp16_scaler": {"scale": 65536.0, "growth_factor": 2.0, "backoff_factor": 0.5, "growth_interval": 2000, "_growth_tracker": 0}},
           at("full.pth"))
found |= {f"teacher.head.{k}": v for k, v in teacher.head.state_dict().items()}
found["student.backbone.cls_token"] = student.module.backbone.cls_token.detach()


class Evil:
    def __reduce__(self):
        return os.system, ("touch executed",)


for name, new in (("evil.pth", True), ("evil-legacy.pth", False)):
    torch.save({"cls_token": state["cls_token"], "args": Evil()}, at(name), _use_new_zipfile_serialization=new)
versions = {"torch": torch.__version__, "timm": timm.__version__, "transformers": transformers.__version__}
save_file({k: v.contiguous() for k, v in found.items()}, at("activations.safetensors"), {"versions": json.dumps(versions)})
