"""Keras's files: what is read, written and refused."""

import zipfile

import jax.numpy as jnp
import numpy as np
import pytest

from sa_jax import files
from sa_jax.files import keras_files
from tests.conftest import refusal
from tests.files.weight_files import BIASES, KERNELS, dense, keras_archive, keras_file, keras_layer


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


def test_bfloat16_is_read_and_written(tmp_path):
    # As Keras writes it: two bytes without a type.
    arrays = {"dense": [KERNELS[0].astype(jnp.bfloat16).view("V2"), BIASES[0].astype(jnp.bfloat16).view("V2")]}
    path = keras_archive(tmp_path / "net.keras", [dense("a", 5)], arrays)
    params = files.load(path)
    np.testing.assert_array_equal(params["dense"]["kernel"], np.float32(KERNELS[0].astype(jnp.bfloat16)))
    mask = KERNELS[0] > 0
    files.write_pruned(path, {"dense": {"kernel": mask}}, tmp_path / "out.keras")
    found = files.load(tmp_path / "out.keras")["dense"]
    np.testing.assert_array_equal(found["kernel"], np.where(mask, params["dense"]["kernel"], 0))
    np.testing.assert_array_equal(found["bias"], params["dense"]["bias"])


def test_any_byte_order_and_memory_layout_is_read_and_written(tmp_path):
    kernel = np.asfortranarray(KERNELS[0].astype(">f8"))
    layers = [keras_layer("Rescaling", "r", scale=2.0, offset=0.0), dense("a", 5)]
    path = keras_archive(tmp_path / "net.keras", layers, {"dense": [kernel, BIASES[0].astype(">f4")]})
    params = files.load(path)
    np.testing.assert_array_equal(params["dense"]["kernel"], 2 * KERNELS[0])
    np.testing.assert_array_equal(params["dense"]["bias"], BIASES[0])
    assert {array.dtype for array in params["dense"].values()} == {np.dtype(np.float32)}
    files.write_pruned(path, {"dense": {"kernel": KERNELS[0] > 0}}, tmp_path / "out.keras")
    found = keras_files.read_arrays(tmp_path / "out.keras")["layers/dense/vars/0"]
    np.testing.assert_array_equal(found, np.where(KERNELS[0] > 0, kernel, 0))
    assert found.dtype == kernel.dtype


def test_configs_are_read_to_a_bound(tmp_path, monkeypatch):
    path = keras_file(tmp_path / "net.keras")
    monkeypatch.setattr(keras_files, "MAX_CONFIG", 100)
    with refusal("net.keras is not a Keras file of weights: config.json in it is longer than 100 bytes"):
        files.load(path)
    monkeypatch.undo()
    for content, problem in {"[" * 10**5: "", "{": "Expecting", '"\n"': "Invalid control character"}.items():
        with zipfile.ZipFile(path) as archive, zipfile.ZipFile(tmp_path / "bad.keras", "w") as bad:
            bad.writestr("config.json", content)
            bad.writestr("model.weights.h5", archive.read("model.weights.h5"))
        with refusal("bad.keras is not a Keras file of weights: ", problem):
            files.load(tmp_path / "bad.keras")
