"""Fixtures of the linear probe and of logistic regression: probes.safetensors.

    python tests/golden/make_probes.py        # numpy, torch, scikit-learn, safetensors

linear.*: torch.optim.SGD(momentum 0.9, no weight decay) with CosineAnnealingLR stepped once an epoch, as the official
eval_linear.py has them, for two learning rates from the same weights over the same batches, the last batch of an epoch a short one.
logistic.*: scikit-learn's LogisticRegression at its optimum, C = 1 / (l2 n).
"""

from pathlib import Path

import numpy as np
import torch
from safetensors.numpy import save_file
from sklearn.linear_model import LogisticRegression

HERE = Path(__file__).parent
rng = np.random.default_rng(7)
out = {}


def clouds(n, width, classes, spread):
    centres = rng.normal(size=(classes, width))
    labels = rng.integers(0, classes, n)
    labels[:classes] = np.arange(classes)
    rows = centres[labels] + spread * rng.normal(size=(n, width))
    return rows.astype(np.float32), labels.astype(np.int32)


# Linear probe
x, y = clouds(48, 10, 4, 1.0)
first = rng.normal(scale=0.01, size=(4, 10)).astype(np.float32)
epochs, batch, rates = 6, 20, [0.2, 3.0]
orders = np.stack([rng.permutation(48) for _ in range(epochs)]).astype(np.int32)
out |= {"linear.x": x, "linear.labels": y, "linear.first": first, "linear.orders": orders}
out["linear.rates"] = np.array(rates, np.float64)
for h, rate in enumerate(rates):
    layer = torch.nn.Linear(10, 4)
    layer.weight.data = torch.from_numpy(first.copy())
    layer.bias.data.zero_()
    optimizer = torch.optim.SGD(layer.parameters(), rate * batch / 256.0, momentum=0.9, weight_decay=0)
    scheduler = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, epochs, eta_min=0)
    for order in orders:
        for at in range(0, 48, batch):
            images = order[at : at + batch]
            output = layer(torch.from_numpy(x[images]))
            loss = torch.nn.functional.cross_entropy(output, torch.from_numpy(y[images]).long())
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        scheduler.step()
    with torch.no_grad():
        output = layer(torch.from_numpy(x))
        loss = torch.nn.functional.cross_entropy(output, torch.from_numpy(y).long())
    out[f"linear.weight{h}"] = layer.weight.detach().numpy()
    out[f"linear.bias{h}"] = layer.bias.detach().numpy()
    out[f"linear.loss{h}"] = np.array([loss.item()], np.float64)

# Logistic regression
x, y = clouds(60, 6, 3, 1.5)
strengths = [1e-3, 1e-2, 1e-1]
out |= {"logistic.x": x, "logistic.labels": y, "logistic.l2": np.array(strengths, np.float64)}
for k, l2 in enumerate(strengths):
    model = LogisticRegression(C=1.0 / (l2 * len(y)), tol=1e-10, max_iter=100_000).fit(x.astype(np.float64), y)
    logits = x.astype(np.float64) @ model.coef_.T + model.intercept_
    logits -= logits.max(1, keepdims=True)
    own = logits[np.arange(len(y)), y] - np.log(np.exp(logits).sum(1))
    loss = -own.mean() + l2 / 2 * (model.coef_**2).sum()
    out[f"logistic.weight{k}"] = model.coef_
    out[f"logistic.bias{k}"] = model.intercept_
    out[f"logistic.loss{k}"] = np.array([loss], np.float64)
    gradient = np.exp(logits) / np.exp(logits).sum(1, keepdims=True)
    gradient[np.arange(len(y)), y] -= 1
    gradient = gradient.T @ x / len(y) + l2 * model.coef_
    print(f"l2 {l2}: loss {loss:.6f}, largest gradient {np.abs(gradient).max():.1e}")

save_file({k: np.ascontiguousarray(v) for k, v in out.items()}, HERE / "probes.safetensors")
