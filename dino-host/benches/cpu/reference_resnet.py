"""PyTorch's side of the ResNet cases: a training step of DINO, timed.

  python reference_resnet.py resnet50|resnet_small [--threads N] [--steps S] [--mode plain|tuned|compile]

  plain    the official style: loops over tensors for the clip, AdamW and the teacher
  tuned    maps in channels_last, fused AdamW, foreach operations for the clip and the teacher
  compile  tuned, and both backbones through torch.compile

A line of JSON: medians of wall and processor time, and what memory the process had after the imports and at most.
One case a process, so that the peak is the case's own.
"""
import argparse, json, os, resource, statistics, time

parser = argparse.ArgumentParser()
parser.add_argument("case", choices=["resnet50", "resnet_small"])
parser.add_argument("--threads", type=int, default=2)
parser.add_argument("--steps", type=int, default=5)
parser.add_argument("--mode", default="tuned", choices=["plain", "tuned", "compile"])
parser.add_argument("--limit", help="is taken and not used: bench_step.py has it")
ARGS = parser.parse_args()
for library in ("OMP", "MKL", "OPENBLAS"):
    os.environ[library + "_NUM_THREADS"] = str(ARGS.threads)

import torch
import torch.nn as nn
import torch.nn.functional as F
import torchvision
import torch._dynamo, torch._inductor  # what importing takes is not the step's

torch.set_num_threads(ARGS.threads)
torch.manual_seed(0)


def resident():
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


IMPORTED, TUNED = resident(), ARGS.mode != "plain"


def small():
    """32, 64 and 128 channels, two basic blocks each; a 3 x 3 stem without max pool."""
    net = torchvision.models.ResNet(torchvision.models.resnet.BasicBlock, [2, 2, 2, 2])
    block = lambda inp, out, stride: torchvision.models.resnet.BasicBlock(
        inp, out, stride, nn.Sequential(nn.Conv2d(inp, out, 1, stride, bias=False), nn.BatchNorm2d(out)) if inp != out else None)
    stage = lambda inp, out: nn.Sequential(block(inp, out, 1 if inp == out else 2), block(out, out, 1))
    net.conv1, net.bn1, net.maxpool = nn.Conv2d(3, 32, 3, 1, 1, bias=False), nn.BatchNorm2d(32), nn.Identity()
    net.layer1, net.layer2, net.layer3, net.layer4 = stage(32, 32), stage(32, 64), stage(64, 128), nn.Identity()
    return net


class Head(nn.Module):
    def __init__(self, dim, hidden, bottleneck, prototypes):
        super().__init__()
        linear = nn.Linear
        self.mlp = nn.Sequential(linear(dim, hidden), nn.GELU(), linear(hidden, hidden), nn.GELU(), linear(hidden, bottleneck))
        self.last = nn.utils.parametrizations.weight_norm(linear(bottleneck, prototypes, bias=False))
        self.last.parametrizations.weight.original0.data.fill_(1)
        self.last.parametrizations.weight.original0.requires_grad_(False)

    def forward(self, x):
        return self.last(F.normalize(self.mlp(x), dim=-1))


# backbone, its width, sides of global and local crops, local crops, batch, hidden, bottleneck, prototypes
make, DIM, GLOBAL, LOCAL, LOCALS, BATCH, HIDDEN, BOTTLENECK, K = {
    "resnet50": (torchvision.models.resnet50, 2048, 224, 96, 8, 4, 2048, 256, 65536),
    "resnet_small": (small, 128, 32, 16, 4, 64, 512, 128, 4096),
}[ARGS.case]


class Model(nn.Module):
    def __init__(self):
        super().__init__()
        self.backbone, self.head = make(), Head(DIM, HIDDEN, BOTTLENECK, K)
        self.backbone.fc = nn.Identity()
        if TUNED:
            self.backbone = self.backbone.to(memory_format=torch.channels_last)
        if ARGS.mode == "compile":
            self.backbone.forward = torch.compile(self.backbone.forward, dynamic=False)

    def forward(self, sizes):
        layout = torch.channels_last if TUNED else torch.contiguous_format
        maps = [torch.cat(crops).contiguous(memory_format=layout) for crops in sizes]
        return self.head(torch.cat([self.backbone(x) for x in maps]))


def loss_of(student, teacher, center):
    targets = F.softmax((teacher - center) / 0.04, -1).view(2, BATCH, K)
    logs = F.log_softmax(student / 0.1, -1).view(2 + LOCALS, BATCH, K)
    all_pairs = (targets.sum(0) * logs.sum(0)).sum() - (targets * logs[:2]).sum()
    return -all_pairs / (2 * (1 + LOCALS) * BATCH)


student, teacher = Model(), Model()
teacher.load_state_dict(student.state_dict())
theirs, ours = list(teacher.parameters()), list(student.parameters())
trained = [w for w in ours if w.requires_grad]
groups = [{"params": [w for w in trained if w.ndim > 1]}, {"params": [w for w in trained if w.ndim == 1], "weight_decay": 0.0}]
optimizer = torch.optim.AdamW(groups, lr=1e-4, weight_decay=0.04, **({"fused": True} if TUNED else {"foreach": False}))
center = torch.zeros(1, K)


@torch.no_grad()
def clip(limit=3.0):
    grads = [w.grad for w in trained]
    if not TUNED:
        for g in grads:
            g.mul_(torch.clamp(limit / (g.norm() + 1e-6), max=1.0))
        return
    for g, norm in zip(grads, torch._foreach_norm(grads)):
        if norm > limit:
            g.mul_(limit / (norm + 1e-6))


@torch.no_grad()
def average(momentum=0.996):
    if TUNED:
        return torch._foreach_lerp_(theirs, ours, 1 - momentum)
    for t, s in zip(theirs, ours):
        t.mul_(momentum).add_((1 - momentum) * s)


def step():
    global center
    with torch.no_grad():
        of_teacher = teacher([crops[:2]])
    of_student = student([crops[:2], crops[2:]])
    loss = loss_of(of_student, of_teacher, center)
    center = 0.9 * center + 0.1 * of_teacher.mean(0, keepdim=True)
    optimizer.zero_grad(set_to_none=True)
    loss.backward()
    clip()
    optimizer.step()
    average()
    return loss.item()


crops = [torch.randn(BATCH, 3, side, side) for side in [GLOBAL] * 2 + [LOCAL] * LOCALS]
wall, processor = [], []
for i in range(ARGS.steps + 2):
    start, busy = time.perf_counter(), time.process_time()
    loss = step()
    wall.append(1e3 * (time.perf_counter() - start))
    processor.append(1e3 * (time.process_time() - busy))
found = {"case": ARGS.case, "mode": ARGS.mode, "threads": ARGS.threads, "loss": round(loss, 4)}
found |= {"median_ms": statistics.median(wall[2:]), "processor_ms": statistics.median(processor[2:])}
print(json.dumps(found | {"rss_import_mib": IMPORTED, "rss_peak_mib": resident()}))
