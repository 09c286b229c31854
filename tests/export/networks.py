"""Networks to export, and what their exports are compared with."""

import itertools

import jax.export
import numpy as np
import pytest

from sa_jax import export, files
from sa_jax.networks import mlp
from sa_jax.networks.mlp import Network


def network_of(sizes, seed=0, biases=True):
    random = np.random.default_rng(seed)
    pairs = list(itertools.pairwise(sizes))
    kernels = tuple(random.normal(0, n**-0.5, (n, m)).astype(np.float32) for n, m in pairs)
    return Network(
        kernels, tuple(random.normal(0, 0.3, m).astype(np.float32) if biases else None for _, m in pairs)
    )


def masked_logits(network, mask, x, activation):
    return np.asarray(mlp.forward(mlp.masked(network, mask), x, activation))


def close(found, expected):
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-5 * np.abs(expected).max())


def assert_equal(one, other):
    assert one.activation == other.activation and len(one.layers) == len(other.layers)
    for first, second in zip(one.layers, other.layers, strict=True):
        for a, b in zip(first, second, strict=True):
            np.testing.assert_array_equal(a, b)


def by_onnx(path, x):
    return pytest.importorskip("onnxruntime").InferenceSession(path).run(["logits"], {"input": x})[0]


def by_stablehlo(path, x):
    return np.asarray(jax.export.deserialize(bytearray(path.read_bytes())).call(x))


def by_arrays(path, x):
    return np.asarray(mlp.forward(mlp.network_of(files.load(path))[1], x))


def logits_of(workdir, x):
    """Of a run's masked network as it was before any export."""
    names, network = mlp.network_of(files.load(workdir / "weights.npz"))
    with np.load(workdir / "masks.npz") as masks:
        mask = np.concatenate([masks[f"{name}/kernel"].ravel() for name in names])
    return np.asarray(mlp.forward(mlp.masked(network, mask), x))


READERS = {"npz": by_arrays, "safetensors": by_arrays, "onnx": by_onnx, "stablehlo": by_stablehlo}


def needs(form):
    if form == "onnx":
        pytest.importorskip("onnx", reason="the extra onnx is not installed")


def cleaned_network(activation, sizes=(20, 12, 8, 3), density=0.5):
    network = network_of(sizes)
    return export.clean(network, np.random.default_rng(1).random(network.total) < density, activation)
