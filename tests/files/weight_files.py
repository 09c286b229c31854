"""A small multilayer perceptron, as arrays and in the files of other frameworks."""

import io
import itertools
import json
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
    """Writes Dense layers with relu between, to net.keras or, without a config, to net.weights.h5."""
    pairs = zip(kernels, biases, strict=True)
    arrays = {f"dense_{layer}" if layer else "dense": [*pair] for layer, pair in enumerate(pairs)}
    content = keras_arrays(arrays)
    if path.suffix != ".keras":
        path.with_suffix(".weights.h5").write_bytes(content)
        return path.with_suffix(".weights.h5")
    layers = [dense(name, bias.size, "relu") for name, (_, bias) in arrays.items()]
    layers[-1]["config"]["activation"] = "softmax"
    return keras_archive(path, layers, arrays)


def keras_arrays(arrays):
    """The content of Keras's file of weights, with each layer's arrays under the name of its class."""
    h5py = pytest.importorskip("h5py", reason="needs h5py")
    buffer = io.BytesIO()
    with h5py.File(buffer, "w") as file:
        file["optimizer/vars/0"] = np.ones((2, 2))
        file["layers/dropout/seed_generator/vars/0"] = np.ones(2)
        for layer, parts in arrays.items():
            file.create_group(f"layers/{layer}/vars")
            for number, part in enumerate(parts):
                file[f"layers/{layer}/vars/{number}"] = part
    return buffer.getvalue()


def keras_layer(kind, name, **config):
    """A layer in the config of a Keras model."""
    return {"class_name": kind, "config": {"name": name} | config, "registered_name": None}


def dense(name, units, activation="linear", use_bias=True):
    return keras_layer("Dense", name, units=units, activation=activation, use_bias=use_bias)


def keras_archive(path, layers, arrays, kind="Sequential", **config):
    """Writes a .keras archive of a model of these layers, or of one that lists none."""
    listed = {} if layers is None else {"layers": layers}
    model = {"class_name": kind, "config": {"name": "model"} | listed | config, "registered_name": None}
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("config.json", json.dumps(model))
        archive.writestr("model.weights.h5", keras_arrays(arrays))
    return path
