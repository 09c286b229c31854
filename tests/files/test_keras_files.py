"""Keras's files: what is read, written and refused."""

import numpy as np
import pytest

from sa_jax import files
from sa_jax.files import keras_files
from tests.conftest import refusal
from tests.files.weight_files import BIASES, KERNELS, keras_file


def test_keras_files_of_other_files_and_of_more_than_they_hold_are_refused(tmp_path):
    h5py = pytest.importorskip("h5py", reason="needs h5py")
    (tmp_path / "secret").write_bytes(np.ones(4, np.float32).tobytes())
    makers = {
        "is stored in another file": lambda file: file.create_dataset(
            "layers/dense/vars/0", (2, 2), "f4", external=[(str(tmp_path / "secret"), 0, 16)]
        ),
        "larger than the file": lambda file: file.create_dataset(
            "layers/dense/vars/0", (10**6, 10**6), "f4", chunks=(9, 9)
        ),
        "hold no kernel": lambda file: file.__setitem__("layers", h5py.ExternalLink("k.weights.h5", "/layers")),
    }
    keras_file(tmp_path / "k.any")
    for problem, make in makers.items():
        with h5py.File(tmp_path / "bad.weights.h5", "w") as file:
            make(file)
        with refusal("bad.weights.h5", problem):
            files.load(tmp_path / "bad.weights.h5")
    (tmp_path / "bad.weights.h5").write_bytes((tmp_path / "k.weights.h5").read_bytes()[:500])
    with refusal("bad.weights.h5 is not a Keras file of weights"):
        files.load(tmp_path / "bad.weights.h5")
    (tmp_path / "bad.keras").write_bytes(b"PK")
    with refusal("bad.keras is not a Keras file of weights"):
        files.load(tmp_path / "bad.keras")


def test_layers_are_read_and_changed_and_all_else_stays(tmp_path):
    path = keras_file(tmp_path / "net.keras")
    arrays = keras_files.read_arrays(path)
    assert sorted(arrays) == [
        f"layers/{name}/vars/{place}" for name in ("dense", "dense_1", "dense_2") for place in "01"
    ]
    keras_files.write_arrays(path, tmp_path / "out.keras", {"layers/dense/vars/0": 2 * KERNELS[0]})
    changed = keras_files.read_arrays(tmp_path / "out.keras")
    for name, array in arrays.items():
        factor = 2 if name == "layers/dense/vars/0" else 1
        np.testing.assert_array_equal(changed[name], factor * array)
    new = tmp_path / "new.weights.h5"
    new.write_bytes(keras_files.sequential_bytes(KERNELS, [BIASES[0], None, BIASES[2]]))
    assert "layers/dense_1/vars/1" not in keras_files.read_arrays(new)
    np.testing.assert_array_equal(keras_files.read_arrays(new)["layers/dense_2/vars/1"], BIASES[2])
