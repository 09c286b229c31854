"""A user's own model, with odd names and biases, and data that it classifies."""

import dataclasses

import numpy as np

from sa_jax.commands.prune import host

NAMES = ("enc.block_a.proj", "the_head")
CLASSES = ("cat", "dog", "fox")
DRAWN = np.random.default_rng(0)
WEIGHTS = {
    "enc.block_a.proj.weight": np.float32(DRAWN.normal(size=(8, 4))),
    "enc.block_a.proj.bias": np.float32(DRAWN.normal(size=8)),
    "the_head.weight": np.float32(DRAWN.normal(size=(3, 8))),
    "the_head.bias": np.float32(DRAWN.normal(size=3) / 10),
}
X = np.float32(DRAWN.normal(size=(200, 4)))


def predicted(weights, x, activation=np.tanh):
    """What the model says of inputs, int `[samples]`, without any of our code."""
    first, second = ((weights[f"{name}.weight"], weights[f"{name}.bias"]) for name in NAMES)
    return (activation(x @ first[0].T + first[1]) @ second[0].T + second[1]).argmax(1)


Y = predicted(WEIGHTS, X)


def write_model(folder, name="model.npz"):
    np.savez(folder / name, **WEIGHTS)
    return folder / name


def write_table(folder, labels=True, name="data.csv"):
    rows = [[*map(str, row), *([CLASSES[y]] if labels else [])] for row, y in zip(X.tolist(), Y, strict=True)]
    (folder / name).write_text("\n".join(map(",".join, rows)))
    return folder / name


def shorten(monkeypatch, **settings):
    """Makes all runs of `sa-jax prune` short."""
    whole = host.run_settings
    few = {"num_steps": 1_000, "score_steps": 150, "num_samples": 60, "rival": None} | settings
    monkeypatch.setattr(host, "run_settings", lambda *given: dataclasses.replace(whole(*given), **few))
