"""Arrays for other frameworks, read back by their readers."""

import numpy as np
import pytest
from safetensors.numpy import load_file

from sa_jax import export, files
from sa_jax.export import arrays
from sa_jax.networks import mlp
from tests.conftest import refusal
from tests.export.networks import assert_equal


@pytest.mark.parametrize("form", ["npz", "safetensors"])
def test_dense_arrays_are_those_of_the_network(form, mixed, tmp_path):
    cleaned = export.simulate(mixed)
    (content,) = getattr(arrays, form)(cleaned).values()
    path = tmp_path / f"network.{form}"
    path.write_bytes(content)
    _, network = mlp.network_of(files.load(path))
    for found, expected in zip((*network.kernels, *network.biases), cleaned.kernels + cleaned.biases, strict=True):
        np.testing.assert_array_equal(found, expected)
    if form == "safetensors":
        assert load_file(path)["layers.0.weight"].shape == cleaned.kernels[0].T.shape


def test_packed_safetensors_are_read_back(mixed, tmp_path):
    path = tmp_path / "network.safetensors"
    (content,) = arrays.safetensors_packed(mixed).values()
    path.write_bytes(content)
    assert_equal(arrays.read_safetensors_packed(path), mixed)
    path.write_bytes(content[:-1])
    with refusal("network.safetensors is not a packed network"):
        arrays.read_safetensors_packed(path)
    (dense,) = arrays.safetensors(export.simulate(mixed)).values()
    path.write_bytes(dense)
    with refusal("network.safetensors is not a packed network"):
        arrays.read_safetensors_packed(path)
    with refusal("cannot be read"):
        arrays.read_safetensors_packed(tmp_path / "missing")
