"""Checks ONNX models that `dino-host convert --to onnx` writes: check_onnx.py MODEL CASE...

A case is a safetensors file with `pixels`, and what this project computes for them: `features` and `tokens`, or `map` of a ResNet. Needs onnx, onnxruntime,
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
    names = sorted(set(tensors) - {"pixels"})
    assert names == sorted(output.name for output in session.get_outputs()), names
    error = 0.0
    for name, found in zip(names, session.run(names, {"pixels": tensors["pixels"]})):
        assert found.shape == tensors[name].shape, (name, found.shape, tensors[name].shape)
        error = max(error, float(np.abs(found - tensors[name]).max()))
    print(f"{tensors['pixels'].shape}: largest error {error:.2e}")
    bad += not error <= 1e-5
sys.exit(bad)
