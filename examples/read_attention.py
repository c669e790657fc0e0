#!/usr/bin/env python3
"""Reads what `attend` writes: the attention of every head as an array, and which part of the image it is on.

    dino-host attend --checkpoint runs/1/checkpoint.safetensors --image IMAGE --write npy --out OUT
    python3 examples/read_attention.py OUT/attention.npy

Needs numpy. Expected output, of `train --small` and a square image, # standing for numbers:

    4 heads, 8 x 8 patches; a head's attention on the patches sums to # to #
    head 0 looks most at row #, column #: #
    ...
    the mean keeps 60 % of its mass in # of 64 patches
"""
import sys

import numpy as np

attention = np.load(sys.argv[1])  # (heads, rows, columns), f32; what is missing to 1 the class token keeps for itself
heads, rows, columns = attention.shape
sums = attention.sum(axis=(1, 2))
print(f"{heads} heads, {columns} x {rows} patches;", end=" ")
print(f"a head's attention on the patches sums to {sums.min():.2f} to {sums.max():.2f}")
for h, head in enumerate(attention):
    row, column = np.unravel_index(head.argmax(), head.shape)
    print(f"head {h} looks most at row {row}, column {column}: {head.max():.3f}")
mean = np.sort(attention.mean(axis=0).ravel())[::-1]
kept = 1 + int(np.searchsorted(np.cumsum(mean) / mean.sum(), 0.6))
print(f"the mean keeps 60 % of its mass in {kept} of {rows * columns} patches")
