"""A small multilayer perceptron, as arrays and in the files of other frameworks."""

import itertools
import zipfile

import numpy as np
import pytest

from sa_jax.networks import mlp

WIDTHS = (6, 5, 4, 3)


def drawn(widths=WIDTHS, bias=True):
    numbers = np.random.default_rng(0)
    kernels = [numbers.normal(size=shape).astype(np.float32) for shape in itertools.pairwise(widths)]
    return kernels, [numbers.normal(size=width).astype(np.float32) if bias else None for width in widths[1:]]


KERNELS, BIASES = drawn()


STATE_DICT = {f"net.{2 * i}.weight": kernel.T for i, kernel in enumerate(KERNELS)}
STATE_DICT |= {f"net.{2 * i}.bias": bias for i, bias in enumerate(BIASES)}


def same(params, kernels=KERNELS, biases=BIASES):
    _, network = mlp.network_of(params)
    for found, wanted in zip(network.kernels + network.biases, (*kernels, *biases), strict=True):
        np.testing.assert_array_equal(found, wanted)


def keras_file(path, kernels=KERNELS, biases=BIASES):
    h5py = pytest.importorskip("h5py", reason="needs h5py")
    archived = path.suffix == ".keras"
    with h5py.File(path.with_suffix(".weights.h5"), "w") as file:
        file["optimizer/vars/0"] = np.ones((2, 2))
        file["layers/dropout/seed_generator/vars/0"] = np.ones(2)
        for layer, (kernel, bias) in enumerate(zip(kernels, biases, strict=True)):
            group = file.create_group(f"layers/dense{f'_{layer}' if layer else ''}/vars")
            group["0"], group["1"] = kernel, bias
    if archived:
        with zipfile.ZipFile(path, "w") as archive:
            archive.writestr("config.json", "{}")
            archive.write(path.with_suffix(".weights.h5"), "model.weights.h5")
    return path if archived else path.with_suffix(".weights.h5")
