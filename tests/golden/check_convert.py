"""Checks what `dino-host convert` writes against the programs it is for: check_convert.py FILE DINO_HOST

Converts the weights in FILE to ONNX, timm and Hugging Face, runs all three on the same random pixels and compares every token; then
reads back what Hugging Face and torch save (also in the format before 1.6, and as a full checkpoint with `module.` prefixes) and wants the
same bits. Needs torch, timm, transformers, onnxruntime, safetensors.
"""
import json
import subprocess
import sys
import tempfile
from functools import partial
from pathlib import Path

import numpy as np
import onnxruntime
import timm
import torch
from safetensors.torch import load_file
from transformers import ViTModel

weights, program = sys.argv[1:]
there = Path(tempfile.mkdtemp())


def convert(source, kind, name, *flags):
    subprocess.run([program, "convert", source, "--to", kind, there / name, *flags], check=True, stdout=subprocess.DEVNULL)
    return str(there / name)


session = onnxruntime.InferenceSession(convert(weights, "onnx", "dino.onnx"))
c = json.loads(session.get_modelmeta().custom_metadata_map["config"])
side = c["global-size"]
x = torch.randn(3, c["channels"], side, side)
tokens = session.run(["tokens"], {"pixels": x.numpy()})[0]

vit = timm.models.vision_transformer.VisionTransformer(
    img_size=side, patch_size=c["patch-size"], in_chans=c["channels"], embed_dim=c["embed-dim"], depth=c["depth"], num_heads=c["heads"],
    mlp_ratio=c["mlp-ratio"], num_classes=0, norm_layer=partial(torch.nn.LayerNorm, eps=1e-6)).eval()
vit.load_state_dict(load_file(convert(weights, "timm", "timm.safetensors")), strict=True)
hf = ViTModel.from_pretrained(convert(weights, "hf", "hf"), add_pooling_layer=False).eval()
with torch.no_grad():
    for name, found in [("timm", vit.forward_features(x)), ("Hugging Face", hf(x).last_hidden_state)]:
        error = np.abs(found.numpy() - tokens).max()
        print(f"{name}: largest difference from onnxruntime {error:.1e}, values up to {np.abs(tokens).max():.1f}")
        assert error <= 1e-5

official = load_file(convert(weights, "official", "official.safetensors"))
hf.save_pretrained(there / "hf-again")
torch.save({"teacher": {"module.backbone." + k: v for k, v in official.items()}, "epoch": 3}, there / "full.pth")
torch.save(official, there / "old.pth", _use_new_zipfile_serialization=False)
for name in ["hf-again", "full.pth", "old.pth", "timm.safetensors"]:
    back = load_file(convert(there / name, "official", "back.safetensors", "--heads", str(c["heads"])))
    assert back.keys() == official.keys() and all(torch.equal(back[k], official[k]) for k in back), name
    print(f"{name}: the same bits")
