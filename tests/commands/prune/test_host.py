"""One's own model pruned: the file that is written, and what a stop leaves."""

import tempfile

import numpy as np
import pytest

from sa_jax import InputError, files, prune_file
from sa_jax.commands.prune import host
from sa_jax.commands.prune.inputs import open_inputs
from sa_jax.commands.prune.settings import PruneConfig
from sa_jax.commands.run.records import Stopped
from sa_jax.files.array_files import array_bytes, read_arrays
from tests.commands.prune.models import NAMES, WEIGHTS, X, Y, predicted, shorten, write_model, write_table
from tests.commands.run.runs import stop_after


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "temporary").mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "temporary"))
    shorten(monkeypatch)
    write_model(tmp_path)
    write_table(tmp_path)
    return tmp_path


@pytest.mark.parametrize("suffix", [pytest.param(".pt", marks=pytest.mark.slow), ".safetensors"])
def test_the_file_is_the_model_with_zeros(folder, suffix):
    model = folder / f"model{suffix}"
    others = {"the_head.bias": np.float16(WEIGHTS["the_head.bias"])}
    model.write_bytes(array_bytes(model, WEIGHTS | others))
    found = prune_file(model, "data.csv", f"out{suffix}", 0.4, activation="tanh", masks="masks.npz")
    read, masks = read_arrays(folder / f"out{suffix}"), read_arrays(folder / "masks.npz")
    assert set(read) == set(masks) == set(WEIGHTS)
    for name, array in (WEIGHTS | others).items():
        np.testing.assert_array_equal(read[name], np.where(masks[name], array, 0), strict=True)
    kept = sum(int(masks[f"{name}.weight"].sum()) for name in NAMES)
    assert found.kept == kept == 22 and found.total == 56 and found.labelled
    test = files.load_dataset("data.csv").test
    labels = test.labels
    assert found.accuracy == np.mean(predicted(read, test.inputs) == labels)
    assert found.dense_accuracy == np.mean(predicted(read_arrays(model), test.inputs) == labels)
    assert found.bytes_before == model.stat().st_size and 0 < found.packed_bytes < found.bytes_after
    names = sorted(path.name for path in folder.iterdir())
    assert names == sorted(["model.npz", "data.csv", model.name, f"out{suffix}", "masks.npz", "temporary"])
    assert not list((folder / "temporary").iterdir())


def test_torch_reads_the_file(folder):
    torch = pytest.importorskip("torch")
    torch.save({name: torch.from_numpy(array) for name, array in WEIGHTS.items()}, "model.pt")
    found = prune_file("model.pt", "data.csv", "out.pt", 0.4, activation="tanh")
    state = torch.load("out.pt", weights_only=True)
    test = files.load_dataset("data.csv").test
    right = predicted({name: tensor.numpy() for name, tensor in state.items()}, test.inputs) == test.labels
    assert found.accuracy == right.mean()


@pytest.mark.slow
def test_without_labels_the_outputs_are_kept(folder):
    np.savez("plain.npz", x=X)
    found = prune_file("model.npz", "plain.npz", "out.npz", 0.4, activation="tanh", workdir="run")
    assert not found.labelled and found.dense_accuracy == 1
    stored = files.load_dataset("run/data.npz")
    agreeing = predicted(read_arrays(folder / "out.npz"), stored.test.inputs) == stored.test.labels
    assert found.accuracy == agreeing.mean()
    np.testing.assert_array_equal(read_arrays(folder / "run/data.npz")["y"], Y)
    assert "kl_to_teacher" in (folder / "run/operative.gin").read_text()
    with pytest.raises(InputError, match="already holds a run's result"):
        prune_file("model.npz", "plain.npz", "again.npz", activation="tanh", workdir="run")
    before = (folder / "run/data.npz").read_bytes()
    np.savez("other.npz", x=X[::-1])
    with pytest.raises(InputError, match="run holds a run on other data"):
        prune_file("model.npz", "other.npz", "again.npz", 0.4, activation="tanh", workdir="run")
    assert (folder / "run/data.npz").read_bytes() == before


@pytest.mark.slow
def test_a_stopped_command_resumes_to_the_same_bits(folder, monkeypatch):
    """With a pattern, without which runs have tests of their own."""
    shorten(monkeypatch, num_steps=30_000)
    given = {"pattern": "1:2", "activation": "tanh"}
    whole = prune_file("model.npz", "data.csv", "whole.npz", **given)
    config = PruneConfig(folder / "model.npz", "data.csv", folder / "out.npz", **given, workdir=folder / "run")
    with pytest.raises(Stopped):
        host.prune(config, open_inputs(config), stop=stop_after(1))
    assert not (folder / "out.npz").exists() and (folder / "run/checkpoints").is_dir()
    found = host.prune(config, open_inputs(config))
    assert found.kept == whole.kept == 28
    read = [read_arrays(folder / name) for name in ("whole.npz", "out.npz")]
    for name in WEIGHTS:
        np.testing.assert_array_equal(*(arrays[name] for arrays in read))
    for name in NAMES:
        kernel = read[0][f"{name}.weight"]
        assert (np.count_nonzero(kernel.reshape(len(kernel), -1, 2), axis=2) == 1).all()


def test_a_run_that_fails_leaves_nothing(folder, monkeypatch):
    np.savez("plain.npz", x=X)

    def fail(*given, **more):
        raise InputError("no")

    monkeypatch.setattr(host.runner, "run", fail)
    for workdir in (None, "run/deep"):
        with pytest.raises(InputError, match="no"):
            prune_file("model.npz", "plain.npz", "out.npz", activation="tanh", workdir=workdir)
    assert sorted(path.name for path in folder.iterdir()) == ["data.csv", "model.npz", "plain.npz", "temporary"]
    assert not list((folder / "temporary").iterdir())


def test_the_settings_of_the_run_can_be_read_again(folder):
    config = PruneConfig(
        folder / "model.npz", "data.csv", folder / "out.npz", pattern="unit:0.5", activation="tanh"
    )
    made = host.run_settings(config, open_inputs(config))
    text = host.operative_config(made)
    assert "run.pattern = 'unit:0.5'\n" in text and "run.hidden = [8]\n" in text and "run.seed" not in text
    from sa_jax import cli

    (folder / "own.gin").write_text(text)
    assert cli.load_config(str(folder / "own.gin"), [], cli.gin_run, cli.MACROS) == made
