"""Checks ONNX models that `dino-host convert --to onnx` writes: check_onnx.py MODEL CASE...

A case is a safetensors file with `pixels`, and what this project computes for them: `features` and `tokens`. Needs onnx, onnxruntime,
numpy and safetensors. Prints the largest absolute error of every case; fails where one is above 1e-5.
"""
import sys

import numpy as np
import onnx
import onnxruntime
from safetensors.numpy import load_file

model, *cases = sys.argv[1:]
onnx.checker.check_model(model, full_check=True)
session = onnxruntime.InferenceSession(model, providers=["CPUExecutionProvider"])
bad = 0
for case in cases:
    tensors = load_file(case)
    features, tokens = session.run(["features", "tokens"], {"pixels": tensors["pixels"]})
    assert features.shape == tensors["features"].shape, (features.shape, tensors["features"].shape)
    assert tokens.shape == tensors["tokens"].shape, (tokens.shape, tensors["tokens"].shape)
    error = max(float(np.abs(a - tensors[k]).max()) for a, k in [(features, "features"), (tokens, "tokens")])
    print(f"{tensors['pixels'].shape}: largest error {error:.2e}")
    bad += not error <= 1e-5
sys.exit(bad)
