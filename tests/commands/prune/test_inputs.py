"""What `sa-jax prune` opens and checks before it runs."""

import os
from pathlib import Path

import numpy as np
import pytest

from sa_jax.commands.prune.inputs import dense_accuracy, open_inputs
from sa_jax.commands.prune.settings import PruneConfig
from tests.commands.prune.models import CLASSES, NAMES, WEIGHTS, X, Y, write_model, write_table
from tests.conftest import refusal
from tests.files.weight_files import dense, keras_archive


def opened(folder, model="model.npz", data="data.csv", out="out.npz", **settings):
    given = {"activation": "tanh"} | settings
    return open_inputs(PruneConfig(folder / model, os.fspath(data), folder / out, **given))


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    write_model(tmp_path)
    write_table(tmp_path)
    return tmp_path


def test_a_model_and_a_table_are_opened(folder):
    found = opened(folder)
    assert tuple(found.names) == NAMES and found.network.sizes == [4, 8, 3] and found.activation == "tanh"
    assert found.labelled and found.as_in_file and found.cut == "cut 60:20:20"
    assert [len(split.labels) for split in found.dataset[1:4]] == [120, 40, 40]
    assert dense_accuracy(found.network, found.dataset.train, "tanh") == 1
    assert found.notes == ("classes: 0 = cat, 1 = dog, 2 = fox",)
    assert sorted(path.name for path in folder.iterdir()) == ["data.csv", "model.npz"]


@pytest.mark.parametrize("kind", ["table", "npz", "named"])
def test_without_labels_the_predictions_take_their_place(folder, kind):
    write_table(folder, labels=False, name="plain.csv")
    np.savez("plain.npz", x=X)
    data = {"table": "plain.csv", "npz": "plain.npz", "named": "plain.csv#none"}[kind]
    found = opened(folder, data=data)
    assert not found.labelled and not found.as_in_file
    np.testing.assert_array_equal(found.samples.arrays["y"], Y)
    assert dense_accuracy(found.network, found.dataset.test, "tanh") == 1
    assert found.dataset.num_classes == 3 and "holds no labels: annealing keeps the outputs" in found.notes[0]


def test_classes_may_be_absent_if_labels_are_numbers(folder):
    np.savez("two.npz", x=X[Y < 2], y=Y[Y < 2])
    found = opened(folder, data="two.npz")
    assert found.dataset.num_classes == 3 and found.labelled and not found.as_in_file
    np.savez("names.npz", x=X[Y < 2], y=np.array(CLASSES)[Y[Y < 2]])
    with refusal("names.npz has 2 classes, cat, dog, but", "model.npz has 3 outputs"):
        opened(folder, data="names.npz")
    np.savez("names.npz", x=X[Y < 2], y=np.array(CLASSES)[Y[Y < 2]], classes=np.array(CLASSES))
    assert opened(folder, data="names.npz").as_in_file


def test_a_wrong_activation_or_scaling_is_doubted(folder):
    np.savez("shifted.npz", x=100 + 50 * X, y=Y)
    (note,) = opened(folder, data="shifted.npz", activation="tanh").notes
    assert "right on only" in note and "--input-mean and --input-std" in note
    assert not opened(folder, data="shifted.npz", input_mean=100, input_std=50).notes
    np.savez("plain.npz", x=X, y=Y)
    assert not opened(folder, data="plain.npz").notes
    weights = {name: array * (3 if name.endswith("weight") else -3) for name, array in WEIGHTS.items()}
    np.savez("bent.npz", **weights)
    labels = (np.tanh(X @ weights["enc.block_a.proj.weight"].T + weights["enc.block_a.proj.bias"])
              @ weights["the_head.weight"].T + weights["the_head.bias"]).argmax(1)  # fmt: skip
    np.savez("bent_data.npz", x=X, y=labels)
    (note,) = opened(folder, "bent.npz", "bent_data.npz", activation=None).notes
    assert "with activation 'relu', but on 100.0% with 'tanh': add --activation tanh" in note


def test_a_keras_file_tells_its_activation(folder):
    pytest.importorskip("h5py")
    kernels = [WEIGHTS[f"{name}.weight"].T for name in NAMES]
    arrays = {"dense": [kernels[0], WEIGHTS[f"{NAMES[0]}.bias"]], "dense_1": [kernels[1]]}
    layers = [dense("dense", 8, "tanh"), dense("dense_1", 3, "softmax", use_bias=False)]
    keras_archive(folder / "model.keras", layers, arrays)
    found = opened(folder, "model.keras", out="out.keras", activation=None)
    assert found.activation == "tanh"
    with refusal("its layers apply 'tanh', not 'relu'"):
        opened(folder, "model.keras", out="out.keras", activation="relu")


@pytest.mark.parametrize(
    ("settings", "parts"),
    [
        ({"model": "missing.pt"}, ["missing.pt is not there"]),
        ({"model": "data.csv"}, ["weights must be a file"]),
        ({"data": "missing.csv"}, ["missing.csv is not there"]),
        ({"data": "cifar"}, ["unknown dataset 'cifar'"]),
        ({"data": "digits"}, ["digits has 64 features, but", "model.npz takes 4"]),
        ({"data": "data.csv#kind"}, ["has no header"]),
        ({"data": "own.npz", "label": "kind"}, ["label names a column of a .csv file, and own.npz is not one"]),
        ({"out": "model.npz", "overwrite": True}, ["model.npz is the model itself"]),
        ({"out": "data.csv"}, ["data.csv is the data set itself: name another file"]),
        ({"out": "old.npz"}, ["old.npz exists; name another, or add --overwrite"]),
        ({"out": "no/such/out.npz"}, ["the folder of", "does not exist: make it first"]),
        ({"out": "out.xyz"}, ["out.xyz: pruned weights are written to"]),
        ({"out": "runs"}, ["runs is a folder: name a file"]),
        ({"masks": Path("out.npz")}, ["cannot hold both the pruned weights and the masks"]),
        ({"workdir": Path("data.csv/run")}, ["cannot be made:", "data.csv is a file"]),
        ({"density": 0.001}, ["density 0.001 keeps 0 of 56 branches"]),
        ({"pattern": "3:5"}, ["layer 1, 4 inputs and 8 outputs: 3:5 needs a multiple of 5 inputs, not 4"]),
        ({"model": "one.npz"}, ["has one output: sa-jax prunes networks with one output for each class"]),
        (
            {"data": "many.npz"},
            ["many.npz has the label 5, but", "has 3 outputs: labels are numbered from 0 to 2"],
        ),
    ],
)
def test_what_does_not_fit_is_refused_and_nothing_is_left(folder, settings, parts):
    (folder / "runs").mkdir()
    np.savez("old.npz", x=X)
    np.savez("one.npz", **{"fc.weight": np.ones((1, 4))})
    np.savez("many.npz", x=X, y=np.arange(200) % 6)
    before = {path.name: path.read_bytes() for path in folder.iterdir() if path.is_file()}
    with refusal(*parts):
        opened(folder, **settings)
    assert {path.name: path.read_bytes() for path in folder.iterdir() if path.is_file()} == before
