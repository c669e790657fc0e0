"""Golden tensors of projection heads that differ from the published one, made with PyTorch: heads.safetensors and heads.json.

Usage: python make_heads.py [FOLDER]. Every variant is a student and a teacher head with parameters of their own, their rows, the DINO
loss, and the gradients of the student's parameters and rows. Values are those of float64; a tolerance is eight times what float32 is
off by, and at least 2e-6 of the tensor's largest value. `V.cfg` is (images, views, teacher views), `V.shape` what shapes do not tell:
(layers, hidden, bottleneck, whether ReLU, whether l2-normalized, whether gains are trained).
"""

import json
import math
import sys

import torch
from safetensors.torch import save_file
from torch import nn
from torch.nn.functional import normalize

torch.set_num_threads(1)
IMAGES, VIEWS, TEACHERS, INP, K = 3, 3, 2, 7, 11
TEACHER_TEMP, STUDENT_TEMP = 0.3, 0.5


class DINOHead(nn.Module):
    """The published head, with what it has no argument for."""

    def __init__(self, layers=3, hidden=9, bottleneck=6, relu=False, bn=False, l2=True, weight_norm=True, gain=False, predictor=0):
        super().__init__()
        self.l2 = l2
        activation = nn.ReLU if relu else nn.GELU

        def block(inp, out):
            return [nn.Linear(inp, out)] + ([nn.BatchNorm1d(out)] if bn else []) + [activation()]

        mlp, inp = [], INP
        for _ in range(layers - 1):
            mlp += block(inp, hidden)
            inp = hidden
        if bottleneck:
            mlp.append(nn.Linear(inp, bottleneck))
            inp = bottleneck
        self.mlp = nn.Sequential(*mlp)
        last = nn.Linear(inp, K, bias=False)
        self.last_layer = nn.utils.weight_norm(last) if weight_norm else last
        if weight_norm:
            self.last_layer.weight_g.requires_grad = gain
        self.predictor = nn.Sequential(*block(inp, predictor), nn.Linear(predictor, inp)) if predictor else None

    def forward(self, x):
        x = self.mlp(x)
        if self.predictor is not None:
            x = self.predictor(x)
        z = normalize(x, dim=-1, p=2) if self.l2 else x
        return z, self.last_layer(z)


VARIANTS = {
    "relu": dict(relu=True),
    "bn": dict(bn=True),
    "bn_relu_one_layer": dict(bn=True, relu=True, layers=1, predictor=8),
    "no_bottleneck": dict(bottleneck=0, l2=False, weight_norm=False),
    "no_bottleneck_bn": dict(bottleneck=0, l2=False, weight_norm=False, bn=True, layers=2),
    "no_layer": dict(bottleneck=0, layers=1, l2=False, weight_norm=False),
    "no_bottleneck_normalized": dict(bottleneck=0, layers=2, gain=True),
    "no_l2": dict(l2=False, gain=True),
    "no_weight_norm": dict(weight_norm=False, layers=2),
    "predictor": dict(predictor=10, layers=4),
    "predictor_bn_relu": dict(predictor=10, relu=True, bn=True, gain=True, layers=2),
}


def loss_of(student, teacher, center):
    p = torch.softmax((teacher.detach() - center) / TEACHER_TEMP, -1).chunk(TEACHERS)
    log_q = torch.log_softmax(student / STUDENT_TEMP, -1).chunk(VIEWS)
    terms = [-(p[i] * log_q[v]).sum(-1).mean() for i in range(TEACHERS) for v in range(VIEWS) if v != i]
    return sum(terms) / len(terms)


def results(dtype, arguments, seed):
    """Inputs of float32, and everything made of them in `dtype`."""
    torch.manual_seed(seed)
    student, teacher = DINOHead(**arguments), DINOHead(**{**arguments, "predictor": 0})
    inputs = {"cfg": torch.tensor([IMAGES, VIEWS, TEACHERS], dtype=torch.int32)}
    for part, net in [("student", student), ("teacher", teacher)]:
        for name, value in net.state_dict().items():
            if "num_batches_tracked" in name:
                continue
            drawn = torch.randn(value.shape) * (0.7 if value.dim() > 1 else 0.3)
            if name.endswith("weight_g") or (value.dim() == 1 and name.endswith("weight")):
                drawn = 1 + 0.3 * drawn if arguments.get("gain") or "last_layer" not in name else torch.ones_like(value)
            if name.endswith("running_var"):
                drawn = 0.5 + drawn.abs()
            value.copy_(drawn)
            inputs[f"{part}.{name}"] = drawn.clone()
    inputs["x_student"] = torch.randn(VIEWS * IMAGES, INP)
    inputs["x_teacher"] = torch.randn(TEACHERS * IMAGES, INP)
    inputs["center"] = 0.3 * torch.randn(1, K)
    student, teacher = student.to(dtype), teacher.to(dtype)
    x = inputs["x_student"].to(dtype).requires_grad_()
    z, student_logits = student(x)
    with torch.no_grad():
        z_teacher, teacher_logits = teacher(inputs["x_teacher"].to(dtype))
    loss = loss_of(student_logits, teacher_logits, inputs["center"].to(dtype))
    loss.backward()
    found = {"z_student": z, "z_teacher": z_teacher, "student_logits": student_logits, "teacher_logits": teacher_logits}
    found |= {"loss": loss[None], "dx": x.grad}
    for name, value in student.named_parameters():
        if value.requires_grad:
            found[f"grad.{name}"] = value.grad
    for part, net in [("student", student), ("teacher", teacher)]:
        for name, value in net.named_buffers():
            if "num_batches_tracked" not in name:
                found[f"after.{part}.{name}"] = value
    return inputs, {name: value.detach().double() for name, value in found.items()}


def main():
    folder = sys.argv[1] if len(sys.argv) > 1 else "."
    tensors, info = {}, {}
    for seed, (variant, arguments) in enumerate(VARIANTS.items()):
        inputs, exact = results(torch.float64, arguments, seed)
        _, rounded = results(torch.float32, arguments, seed)
        head = {"layers": 3, "hidden": 9, "bottleneck": 6, "relu": False, "l2": True, "gain": False, **arguments}
        shape = [head[key] for key in ["layers", "hidden", "bottleneck", "relu", "l2", "gain"]]
        inputs["shape"] = torch.tensor(shape, dtype=torch.int32)
        largest = max(float(v.abs().max()) for k, v in exact.items() if k.startswith("grad."))
        for name, value in inputs.items():
            tensors[f"{variant}.{name}"] = value.contiguous()
        for name, value in exact.items():
            # A bias in front of a batch norm has no gradient but what rounding leaves.
            of = max(float(value.abs().max()), largest / 100 if name.startswith("grad.") else 0.0)
            atol = max(8 * float((value - rounded[name]).abs().max()), 2e-6 * of)
            digits = 10.0 ** math.floor(math.log10(atol))
            tensors[f"{variant}.{name}"] = value.float().contiguous()
            info[f"{variant}.{name}"] = {"atol": float(f"{math.ceil(atol / digits) * digits:.0e}")}
    meta = {"torch": torch.__version__, "teacher_temp": TEACHER_TEMP, "student_temp": STUDENT_TEMP}
    save_file(tensors, f"{folder}/heads.safetensors")
    with open(f"{folder}/heads.json", "w") as f:
        json.dump({"title": "projection heads", "meta": meta, "tensors": info}, f, indent=0, sort_keys=True)
        f.write("\n")


main()
