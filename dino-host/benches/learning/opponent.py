"""Learning per minute: PyTorch's side, DINO on records in CIFAR's format with a small ViT or a small ResNet.

  python opponent.py DATA --reference DIR [--net resnet|vit] [--minutes 10] [--threads 2] [--seed 0] [settings]

DATA holds train.bin and test.bin, or data_batch_*.bin and test_batch.bin; DIR has dino_ref.py, the reference's head, loss and step. With
--choose-on train-split every tenth training image is left out of training and stands for the test images.

The defaults are those of our small preset, where the script has the same setting; --lr is that of the batch.

Prints the weighted k-NN vote (k 20, T 0.07) of normalized pixels and of the random trunk, then of teacher and student at each of --marks
(minutes). Evaluation is not counted as time. Crops are bilinear, of a whole batch at once: flip, brightness, contrast, saturation, gray.
"""
import argparse, glob, math, os, sys, time

import numpy as np
import torch
import torch.nn as nn
import torch.nn.functional as F

parser = argparse.ArgumentParser()
parser.add_argument("data")
parser.add_argument("--reference", required=True)
parser.add_argument("--net", default="resnet", choices=["resnet", "vit"])
parser.add_argument("--choose-on", default="test", choices=["test", "train-split"])
parser.add_argument("--marks", type=float, nargs="*", default=[2, 5, 10, 30, 60])
parser.add_argument("--optimizer", default="sgd", choices=["sgd", "adamw"])
parser.add_argument("--widths", type=int, nargs="*", default=[32, 64, 128])
SETTINGS = dict(minutes=10.0, threads=2, seed=0, blocks=1, stride=2, dim=96, depth=4, heads=3, patch=8, batch=64, locals=0, local=16, k=1024,
                hidden=256, bottleneck=64, bn_in_head=1, lr=0.1, warmup=0.02, momentum=0.98, momentum_end=0.99, temp=0.04, clip=1.0, wd=5e-4,
                freeze=0.0, global_min=0.25, local_min=0.1, jitter=0.4, saturation=0.2)
for name, default in SETTINGS.items():
    parser.add_argument("--" + name.replace("_", "-"), type=type(default), default=default)
A = parser.parse_args()
sys.path.insert(0, A.reference)
import dino_ref as R

torch.set_num_threads(A.threads)
torch.manual_seed(A.seed)
MEAN, STD = torch.tensor([.4914, .4822, .4465]).view(1, 3, 1, 1), torch.tensor([.2470, .2435, .2616]).view(1, 3, 1, 1)


def records(*names):
    files = sorted(file for name in names for file in glob.glob(os.path.join(A.data, name)))
    rows = np.concatenate([np.fromfile(file, np.uint8).reshape(-1, 3073) for file in files])
    return torch.tensor(rows[:, 1:].reshape(-1, 3, 32, 32)), torch.tensor(rows[:, 0].astype(int))


xtr, ytr = records("train.bin", "data_batch_*.bin")
if A.choose_on == "train-split":
    held = torch.arange(len(xtr)) % 10 == 0
    (xte, yte), (xtr, ytr) = (xtr[held], ytr[held]), (xtr[~held], ytr[~held])
else:
    xte, yte = records("test.bin", "test_batch.bin")


def normalized(x):
    return (x.float() / 255 - MEAN) / STD


def crops(x, size, least, most):
    b = len(x)
    area, ratio = torch.empty(b).uniform_(least, most), torch.exp(torch.empty(b).uniform_(math.log(3 / 4), math.log(4 / 3)))
    w, h = torch.sqrt(area * ratio).clamp(max=1), torch.sqrt(area / ratio).clamp(max=1)
    theta = torch.zeros(b, 2, 3)
    theta[:, 0, 0] = w * ((torch.rand(b) < .5).float() * 2 - 1)
    theta[:, 1, 1] = h
    theta[:, 0, 2], theta[:, 1, 2] = (torch.rand(b) * 2 - 1) * (1 - w), (torch.rand(b) * 2 - 1) * (1 - h)
    y = F.grid_sample(x, F.affine_grid(theta, (b, 3, size, size), align_corners=False), align_corners=False, padding_mode="reflection")
    on = (torch.rand(b, 1, 1, 1) < .8).float()
    strength = lambda by: 1 + on * torch.empty(b, 1, 1, 1).uniform_(-by, by)
    y = y * strength(A.jitter)
    mean = y.mean((1, 2, 3), keepdim=True)
    y = (y - mean) * strength(A.jitter) + mean
    gray = (y * torch.tensor([.299, .587, .114]).view(1, 3, 1, 1)).sum(1, keepdim=True)
    keep = strength(A.saturation) * (torch.rand(b, 1, 1, 1) >= .2).float()
    return (((y - gray) * keep + gray).clamp(0, 1) - MEAN) / STD


class Block(nn.Module):
    def __init__(self, inp, out, stride):
        super().__init__()
        conv = lambda i, kernel, stride: nn.Conv2d(i, out, kernel, stride, kernel // 2, bias=False)
        self.conv1, self.bn1, self.conv2, self.bn2 = conv(inp, 3, stride), nn.BatchNorm2d(out), conv(out, 3, 1), nn.BatchNorm2d(out)
        same = stride == 1 and inp == out
        self.shortcut = nn.Identity() if same else nn.Sequential(conv(inp, 1, stride), nn.BatchNorm2d(out))

    def forward(self, x):
        return F.relu(self.bn2(self.conv2(F.relu(self.bn1(self.conv1(x))))) + self.shortcut(x))


class ResNet(nn.Module):
    def __init__(self, widths, blocks, stride):
        super().__init__()
        layers, inp = [nn.Conv2d(3, widths[0], 3, stride, 1, bias=False), nn.BatchNorm2d(widths[0]), nn.ReLU()], widths[0]
        for stage, out in enumerate(widths):
            for block in range(blocks):
                layers.append(Block(inp, out, 2 if stage and not block else 1))
                inp = out
        self.body = nn.Sequential(*layers)
        for m in self.modules():
            if isinstance(m, nn.Conv2d):
                nn.init.kaiming_normal_(m.weight, mode="fan_out", nonlinearity="relu")
        self.to(memory_format=torch.channels_last)

    def forward(self, x):
        return self.body(x.contiguous(memory_format=torch.channels_last)).mean((2, 3))


def network():
    if A.net == "resnet":
        trunk, dim = ResNet(A.widths, A.blocks, A.stride), A.widths[-1]
    else:
        trunk, dim = R.DinoViT(32, A.patch, A.dim, A.depth, A.heads, fused_attn=True), A.dim
    return R.MultiCrop(trunk, R.DinoHead(dim, A.k, A.hidden, A.bottleneck, use_bn=bool(A.bn_in_head)))


@torch.no_grad()
def knn(features):
    bank, queries = F.normalize(features(xtr), dim=1), F.normalize(features(xte), dim=1)
    similar, at = (queries @ bank.T).topk(20, 1)
    votes = torch.zeros(len(queries), 1 + int(ytr.max())).scatter_add_(1, ytr[at], (similar / .07).exp())
    return 100 * (votes.argmax(1) == yte).float().mean().item()


def trunk(net):
    def features(x):
        net.eval()  # running statistics
        rows = torch.cat([net.backbone(normalized(part)) for part in x.split(1000)])
        net.train()
        return rows
    return features


student, teacher = network(), network()
teacher.load_state_dict(student.state_dict())
for p in teacher.parameters():
    p.requires_grad_(False)
criterion = R.DinoLoss(A.k, 2 + A.locals)
groups = R.param_groups(student)
optimizer = torch.optim.AdamW(groups, lr=A.lr, fused=True) if A.optimizer == "adamw" else torch.optim.SGD(groups, lr=A.lr, momentum=0.9, foreach=True)
print(f"pixels {knn(lambda x: normalized(x).flatten(1)):.2f}  random {knn(trunk(teacher)):.2f}", flush=True)
marks = sorted({m for m in A.marks if m < A.minutes} | {A.minutes})
spent, step, order, at = 0.0, 0, torch.randperm(len(xtr)), 0
while marks:
    begun, f = time.perf_counter(), min(1.0, spent / (60 * A.minutes))
    if at + A.batch > len(order):
        order, at = torch.randperm(len(xtr)), 0
    x = xtr[order[at:at + A.batch]].float() / 255
    at += A.batch
    views = [crops(x, 32, A.global_min, 1.0) for _ in range(2)] + [crops(x, A.local, A.local_min, A.global_min) for _ in range(A.locals)]
    lr = A.lr * f / A.warmup if f < A.warmup else A.lr * .5 * (1 + math.cos(math.pi * (f - A.warmup) / (1 - A.warmup)))
    momentum = A.momentum_end - (A.momentum_end - A.momentum) * .5 * (1 + math.cos(math.pi * f))
    loss = R.train_step(student, teacher, criterion, optimizer, views, lr=lr, wd=A.wd, momentum=momentum, temp=A.temp, clip=A.clip,
                        freeze_last=f < A.freeze)["loss"]
    spent += time.perf_counter() - begun
    step += 1
    while marks and spent >= marks[0] * 60:
        print(f"{marks.pop(0):g} min  step {step}  images {step * A.batch}  k-NN teacher {knn(trunk(teacher)):.2f}  "
              f"student {knn(trunk(student)):.2f}  loss {float(loss):.3f} (ln K {math.log(A.k):.3f})", flush=True)
