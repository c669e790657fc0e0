"""Full checkpoints as the published code saves them, of a narrow ViT: bn.pth is one of --use_bn_in_head (then DistributedDataParallel
wraps the teacher too, so both have `module.`), one_layer.pth of a head of one layer, whose MLP is no list.

Usage: python make.py [FOLDER]
"""

import argparse
import sys

import torch
from torch import nn

DIM, PATCH, SIDE, HIDDEN, BOTTLENECK, K = 8, 8, 16, 6, 4, 12


def backbone():
    state = {"cls_token": torch.randn(1, 1, DIM), "pos_embed": torch.randn(1, 1 + (SIDE // PATCH) ** 2, DIM)}
    block = {"norm1": nn.LayerNorm(DIM), "attn.qkv": nn.Linear(DIM, 3 * DIM), "attn.proj": nn.Linear(DIM, DIM)}
    block |= {"norm2": nn.LayerNorm(DIM), "mlp.fc1": nn.Linear(DIM, 4 * DIM), "mlp.fc2": nn.Linear(4 * DIM, DIM)}
    modules = {"patch_embed.proj": nn.Conv2d(3, DIM, PATCH, PATCH)} | {f"blocks.0.{k}": m for k, m in block.items()}
    for name, module in (modules | {"norm": nn.LayerNorm(DIM)}).items():
        state |= {f"{name}.{k}": v for k, v in module.state_dict().items()}
    return state


def head(bn, layers):
    """DINOHead of vision_transformer.py."""
    if layers == 1:
        mlp = nn.Linear(DIM, BOTTLENECK)
    else:
        mlp = [nn.Linear(DIM, HIDDEN)] + ([nn.BatchNorm1d(HIDDEN)] if bn else []) + [nn.GELU()]
        for _ in range(layers - 2):
            mlp += [nn.Linear(HIDDEN, HIDDEN)] + ([nn.BatchNorm1d(HIDDEN)] if bn else []) + [nn.GELU()]
        mlp = nn.Sequential(*mlp, nn.Linear(HIDDEN, BOTTLENECK))
    mlp.train()(torch.randn(16, DIM))  # moves the running statistics
    last = nn.utils.weight_norm(nn.Linear(BOTTLENECK, K, bias=False))
    last.weight_g.data.fill_(1)
    return {f"mlp.{k}": v for k, v in mlp.state_dict().items()} | {f"last_layer.{k}": v for k, v in last.state_dict().items()}


def network(prefix, bn, layers):
    state = {f"backbone.{k}": v for k, v in backbone().items()} | {f"head.{k}": v for k, v in head(bn, layers).items()}
    return {prefix + k: v.detach().clone() for k, v in state.items()}


torch.manual_seed(0)
folder = sys.argv[1] if len(sys.argv) > 1 else "."
for name, bn, layers in [("bn", True, 3), ("one_layer", False, 1)]:
    args = argparse.Namespace(arch="vit_tiny", patch_size=PATCH, out_dim=K, use_bn_in_head=bn)
    teacher = network("module." if bn else "", bn, layers)
    checkpoint = {"student": network("module.", bn, layers), "teacher": teacher, "epoch": 1, "args": args}
    torch.save(checkpoint, f"{folder}/{name}.pth")
