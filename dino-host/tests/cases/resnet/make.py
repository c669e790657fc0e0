"""Writes residual networks in the formats that other programs save, and the features that they compute, beside this script:

    python make.py [--out DIR] [--full]

The networks are torchvision's own class with few channels. Every tensor is random, running means and variances too.

- `pretrain.pth`: bottleneck blocks under torchvision's bare names, as dino_resnet50_pretrain.pth.
- `full.pth`: basic blocks in a whole run as the published trainer saves it, as dino_resnet50_pretrain_full_checkpoint.pth.
- `linearweights.pth`: a classifier of the features of `pretrain.pth`, as dino_resnet50_linearweights.pth.
- `hf`: the network of `pretrain.pth` as transformers' ResNetModel saves it.
- `activations.safetensors`: pixels (`square`, `small`, `wide`), and of every file and each of them `FILE:PIXELS`, the average over the
  last map (images, C); of `full.pth:student` the student. `tall:cam` and `flat:cam` are NumPy's projections of the rows of `tall` and
  `flat`, which are not negative, on their first right singular vectors.

With --full, instead: `resnet18.pth` and `resnet50.pth`, torchvision's with a classifier, at 224 x 224, 96 x 96 and 224 x 160 pixels. The
tests read another folder `resnet` where $DINO_FIXTURES has one.

Written with torch, torchvision and transformers as named in the last file.
"""
import argparse
import json
import os

import numpy as np
import torch
import torchvision
from safetensors.torch import save_file
from torch import nn
from torchvision.models.resnet import BasicBlock, Bottleneck, ResNet

args = argparse.ArgumentParser()
args.add_argument("--out", default=os.path.dirname(os.path.abspath(__file__)))
args.add_argument("--full", action="store_true")
args = args.parse_args()
os.makedirs(args.out, exist_ok=True)
torch.set_num_threads(1)
torch.manual_seed(0)
found = {}


def at(name):
    return os.path.join(args.out, name)


def disturbed(model):
    """Every tensor random, at a size that keeps that of what passes through."""
    with torch.no_grad():
        for name, x in [*model.named_parameters(), *model.named_buffers()]:
            if name.endswith("num_batches_tracked"):
                x.fill_(7)
            elif name.endswith("running_var"):
                x.copy_(0.5 + torch.rand_like(x))
            elif name.endswith("running_mean") or name.endswith("bias"):
                x.copy_(0.2 * torch.randn_like(x))
            elif x.ndim == 1:
                x.copy_(1 + 0.2 * torch.randn_like(x))
            else:
                x.copy_(torch.randn_like(x) * x[0].numel() ** -0.5)
    return model.eval()


class Narrow(ResNet):
    """torchvision's network with other numbers of channels."""

    def __init__(self, block, blocks, widths):
        nn.Module.__init__(self)
        self._norm_layer, self.inplanes, self.dilation, self.groups, self.base_width = nn.BatchNorm2d, widths[0], 1, 1, 64
        self.conv1 = nn.Conv2d(3, widths[0], 7, 2, 3, bias=False)
        self.bn1 = nn.BatchNorm2d(widths[0])
        self.relu = nn.ReLU(inplace=True)
        self.maxpool = nn.MaxPool2d(3, 2, 1)
        for i, (width, n) in enumerate(zip(widths, blocks)):
            setattr(self, f"layer{i + 1}", self._make_layer(block, width, n, stride=1 if i == 0 else 2))
        self.avgpool = nn.AdaptiveAvgPool2d((1, 1))
        self.fc = nn.Identity()


def record(name, model, pixels):
    fc, model.fc = model.fc, nn.Identity()
    with torch.no_grad():
        for size, x in pixels.items():
            found[f"{name}:{size}"] = model(x)
    model.fc = fc


def save_found():
    versions = {"torch": torch.__version__, "torchvision": torchvision.__version__}
    if not args.full:
        versions["transformers"] = transformers.__version__
    tensors = {k: v.contiguous().clone() for k, v in found.items()}
    save_file(tensors, at("activations.safetensors"), {"versions": json.dumps(versions)})


if args.full:
    pixels = {"square": torch.randn(2, 3, 224, 224), "small": torch.randn(2, 3, 96, 96), "wide": torch.randn(1, 3, 160, 224)}
    found |= pixels
    for name in ("resnet18", "resnet50"):
        model = disturbed(getattr(torchvision.models, name)())
        torch.save(model.state_dict(), at(f"{name}.pth"))
        record(f"{name}.pth", model, pixels)
    save_found()
    raise SystemExit

import transformers  # noqa: E402
from transformers import ResNetConfig, ResNetModel  # noqa: E402

pixels = {"square": torch.randn(1, 3, 32, 32), "small": torch.randn(2, 3, 20, 20), "wide": torch.randn(1, 3, 24, 40)}
found |= pixels
for name, shape in (("tall", (12, 5)), ("flat", (5, 12))):
    rows = torch.randn(shape).relu()
    along = rows.double().numpy() @ np.linalg.svd(rows.double().numpy(), full_matrices=False)[2][0]
    found |= {name: rows, f"{name}:cam": torch.from_numpy(along * np.sign(along.sum())).float()}

# The published formats
WIDTHS, BLOCKS = (4, 4, 4, 8), (1, 1, 2, 1)
bottleneck = disturbed(Narrow(Bottleneck, BLOCKS, WIDTHS))
state = bottleneck.state_dict()
torch.save(state, at("pretrain.pth"))
record("pretrain.pth", bottleneck, pixels)
torch.save({"epoch": 100, "state_dict": {"module.linear.weight": torch.randn(3, 32), "module.linear.bias": torch.randn(3)},
            "best_acc": 0.0}, at("linearweights.pth"))


class Head(nn.Module):
    """The published projection head."""

    def __init__(self, dim):
        super().__init__()
        self.mlp = nn.Sequential(nn.Linear(dim, 12), nn.GELU(), nn.Linear(12, 12), nn.GELU(), nn.Linear(12, 8))
        self.last_layer = nn.utils.weight_norm(nn.Linear(8, 16, bias=False))


class MultiCrop(nn.Module):
    def __init__(self):
        super().__init__()
        self.backbone = disturbed(Narrow(BasicBlock, (1, 1, 1, 1), (4, 4, 4, 8)))
        self.head = disturbed(Head(8))


student, teacher = nn.DataParallel(MultiCrop()), MultiCrop()
optimizer = torch.optim.SGD(student.parameters(), lr=0.03, momentum=0.9)
run = argparse.Namespace(arch="resnet50", out_dim=16, optimizer="sgd", lr=0.03, momentum_teacher=0.996, output_dir=".")
torch.save({"student": student.state_dict(), "teacher": teacher.state_dict(), "optimizer": optimizer.state_dict(), "epoch": 1,
            "args": run, "dino_loss": {"center": torch.zeros(1, 16)}, "fp16_scaler": None}, at("full.pth"))
record("full.pth", teacher.backbone, pixels)
record("full.pth:student", student.module.cpu().backbone, {"square": pixels["square"]})

# Hugging Face
config = ResNetConfig(embedding_size=4, hidden_sizes=[4 * w for w in WIDTHS], depths=BLOCKS, layer_type="bottleneck")


def to_hf(name):
    parts = name.split(".")
    kind = "convolution" if parts[-2].startswith("conv") or parts[-2] == "0" else "normalization"
    if len(parts) == 2:
        return f"embedder.embedder.{kind}.{parts[-1]}"
    layer = f"encoder.stages.{int(parts[0][5:]) - 1}.layers.{parts[1]}"
    inside = "shortcut" if parts[2] == "downsample" else f"layer.{int(parts[2].strip('convbn')) - 1}"
    return f"{layer}.{inside}.{kind}.{parts[-1]}"


hf = {to_hf(k): v for k, v in state.items()}
model = ResNetModel(config).eval()
model.load_state_dict(hf)
model.save_pretrained(at("hf"))
with torch.no_grad():
    for size, x in pixels.items():
        found[f"hf:{size}"] = model(x).pooler_output.flatten(1)
save_found()
