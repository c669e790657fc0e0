"""Writes the smallest vision transformer as other programs wrap it, with PyTorch, into the folder that it is run in.

    python make.py [--out DIR]

All hold the numbers of plain.pth, of which every tensor is a view, so that a file has one storage. Beside them are, in extras-*.pth, values of
the kinds that checkpoints are found with; some names are of classes that exist nowhere but here. hostile.pth runs a command when Python
loads it.
"""
import argparse
import collections
import datetime
import decimal
import enum
import os
import pathlib
import warnings

import numpy as np
import torch
from torch import nn

args = argparse.ArgumentParser()
args.add_argument("--out", default=".")
args = args.parse_args()
os.makedirs(args.out, exist_ok=True)
warnings.simplefilter("ignore")

DIM, PATCH, GRID = 4, 2, 2
SHAPES = {"cls_token": (1, 1, DIM), "pos_embed": (1, 1 + GRID * GRID, DIM), "patch_embed.proj.weight": (DIM, 1, PATCH, PATCH),
          "patch_embed.proj.bias": (DIM,), "blocks.0.norm1.weight": (DIM,), "blocks.0.norm1.bias": (DIM,),
          "blocks.0.attn.qkv.weight": (3 * DIM, DIM), "blocks.0.attn.qkv.bias": (3 * DIM,), "blocks.0.attn.proj.weight": (DIM, DIM),
          "blocks.0.attn.proj.bias": (DIM,), "blocks.0.norm2.weight": (DIM,), "blocks.0.norm2.bias": (DIM,),
          "blocks.0.mlp.fc1.weight": (DIM, DIM), "blocks.0.mlp.fc1.bias": (DIM,), "blocks.0.mlp.fc2.weight": (DIM, DIM),
          "blocks.0.mlp.fc2.bias": (DIM,), "norm.weight": (DIM,), "norm.bias": (DIM,)}
flat = torch.arange(sum(np.prod(s) for s in SHAPES.values())).float().mul(0.37).sin()
state, place = {}, 0
for name, shape in SHAPES.items():
    state[name] = flat[place:place + int(np.prod(shape))].view(shape)
    place += int(np.prod(shape))


def save(value, name, **options):
    torch.save(value, os.path.join(args.out, name), **options)


class Kind(enum.Enum):
    SMALL = 1


class AttributeDict(dict):
    pass


class Settings:
    def __init__(self):
        self.path, self.kind, self.self = pathlib.PurePosixPath("a/b"), Kind.SMALL, self


class Slots:
    __slots__ = ("a",)

    def __init__(self):
        self.a = 1


class Node(nn.Module):
    """A module whose parameters have the names that they have in a state dictionary."""

    def __init__(self, names):
        super().__init__()
        inner = collections.defaultdict(dict)
        for name, value in names.items():
            first, _, rest = name.partition(".")
            if rest:
                inner[first][rest] = value
            else:
                self.register_parameter(first, nn.Parameter(value))
        for first, names in inner.items():
            self.add_module(first, Node(names))


class Whole(Node):
    def forward(self, x):
        return x + self.cls_token


def attributed(value):
    value = value.detach().view(value.shape)
    value.frozen = True
    return value


def parameter(value):
    value = nn.Parameter(value)
    value.group = "slow"
    return value


extras = {
    "date": datetime.datetime(2024, 2, 29, 12), "delta": datetime.timedelta(1), "zone": datetime.timezone.utc,
    "decimal": decimal.Decimal("1.5"), "counter": collections.Counter("abca"), "default": collections.defaultdict(list, a=[1]),
    "ordered": collections.OrderedDict(a=1), "deque": collections.deque([1, 2]), "args": argparse.Namespace(lr=0.1, path=pathlib.Path("x")),
    "array": np.arange(6.0).reshape(2, 3).T, "objects": np.array([None, "a"], object), "text": np.array(["a", "bc"]),
    "scalar": np.float32(1.5), "number": np.int64(7),
    "generator": np.random.default_rng(0), "dtype": (np.dtype("f4"), torch.float32, torch.device("cpu"), torch.Size([1])),
    "kind": Kind.SMALL, "settings": Settings(), "slots": Slots(), "attributes": AttributeDict(a=1), "big": 1 << 200, "complex": 1j,
    "bytes": (b"abc", bytearray(b"abc")), "sets": ({1}, frozenset([2])), "slice": slice(1, 2), "range": range(3), "function": os.getcwd,
    "whole": torch.arange(3), "flag": torch.tensor(True), "wave": torch.ones(2, dtype=torch.complex64),
    "eight": torch.ones(2, dtype=torch.float8_e4m3fn), "unsigned": torch.ones(2, dtype=torch.uint16), "meta": torch.ones(2, device="meta"),
    "quantised": torch.quantize_per_tensor(torch.ones(2), 0.1, 0, torch.qint8), "sparse": torch.eye(2).to_sparse(),
    "module": nn.BatchNorm1d(2), "mask_token": torch.ones(1, 1, 4),
}
run = {"epoch": 3, "global_step": 7, "pytorch-lightning_version": "2.4.0", "callbacks": {"ModelCheckpoint{'monitor': None}": Settings()},
       "hyper_parameters": AttributeDict(extras), "optimizer_states": [{"state": {0: {"exp_avg": flat[:4]}}}], "lr_schedulers": []}
save(state, "plain.pth")
odd = {name: (attributed if i % 2 else parameter)(value) for i, (name, value) in enumerate(state.items())}
for protocol in (2, 5):
    save({**run, "state_dict": odd}, f"extras-{protocol}.pth", pickle_protocol=protocol)
del extras["eight"], extras["unsigned"]  # they have no storage of their own, which the older format needs
save({**run, "hyper_parameters": AttributeDict(extras), "state_dict": odd}, "extras-legacy.pth", _use_new_zipfile_serialization=False)
whole = Whole(state)
save(whole, "module.pth")
save({"epoch": 1, "net": whole}, "module-legacy.pth", _use_new_zipfile_serialization=False)
torch.jit.save(torch.jit.script(Whole(state)), os.path.join(args.out, "script.pt"))
save([state, {"epoch": 1}], "list.pth")
torch.serialization.set_crc32_options(False)
save(state, "unchecked.pth")
torch.serialization.set_crc32_options(True)
name = "blocks.0.attn.qkv.weight"
save({**state, name: torch.quantize_per_tensor(state[name], 0.1, 0, torch.qint8)}, "quantised.pth")
save({**state, name: state[name].to(torch.complex64)}, "complex.pth")
save({name: value.numpy() for name, value in state.items()}, "numpy.pth")


class Hostile:
    def __reduce__(self):
        return os.system, ("touch executed",)


save({"model": state, "args": Hostile(), Hostile(): 1}, "hostile.pth")
