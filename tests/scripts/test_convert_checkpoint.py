"""The checkpoint converter, on files written here as torch.save wrote them before version 1.6."""

import importlib.util
from pathlib import Path

import numpy as np
import pytest

from sa_jax import files
from sa_jax.networks import mlp
from tests.files.torch_pickles import Call, Name, legacy, tensor

PATH = Path(__file__).parents[2] / "scripts/convert_checkpoint.py"
spec = importlib.util.spec_from_file_location("convert_checkpoint", PATH)
assert spec and spec.loader
converter = importlib.util.module_from_spec(spec)
spec.loader.exec_module(converter)


FIRST = np.arange(12, dtype=np.float32)
SECOND = np.arange(8, dtype=np.float64) - 3.5
CONTENT = {
    "epoch": 25,
    "model_state_dict": {
        "module.fc1._layer.weight": tensor("1", (4, 3), (3, 1), 12),
        "module.fc1._weight_mask": tensor("2", (4, 3), (3, 1), 12),
        "module.fc2._layer.weight": tensor("3", (2, 3 + 1), (1, 2), 8, "torch.DoubleStorage"),
    },
    "optimizer": {
        "type": Name("torch.optim.sgd.SGD"),
        "momentum": tensor("4", (5,), (1,), 5, "torch.LongStorage"),
    },
}
STORAGES = {
    "4": np.arange(5),
    "1": FIRST,
    "2": (FIRST != 7).astype(np.float32),
    "3": SECOND,
}


def test_tensors_are_read_named_and_masked(tmp_path, capsys):
    legacy(tmp_path / "old.ckpt", CONTENT, STORAGES)
    assert converter.main([str(tmp_path / "old.ckpt"), str(tmp_path / "new.npz")]) == 0
    assert "3-4-2, 20 branches" in capsys.readouterr().out
    with np.load(tmp_path / "new.npz") as arrays:
        assert sorted(arrays.files) == ["fc1.weight", "fc2.weight"]
        np.testing.assert_array_equal(arrays["fc1.weight"], np.where(FIRST == 7, 0, FIRST).reshape(4, 3))
        # A transposed view, as its strides say.
        np.testing.assert_array_equal(arrays["fc2.weight"], SECOND.reshape(4, 2).T.astype(np.float32))
    assert mlp.network_of(files.load(tmp_path / "new.npz"))[1].sizes == [3, 4, 2]


def test_a_tilde_is_the_home_folder(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    legacy(tmp_path / "old.ckpt", CONTENT, STORAGES)
    assert converter.main(["~/old.ckpt", "~/new.npz"]) == 0
    assert mlp.network_of(files.load("~/new.npz"))[1].sizes == [3, 4, 2]
    assert converter.main(["~nobody_of_this_name/old.ckpt", "~/new.npz"]) == 2


@pytest.mark.parametrize("name", ["os.system", "builtins.eval", "torch.load", "sa_jax.files.datasets.fetch"])
def test_a_checkpoint_runs_no_code(tmp_path, capsys, name):
    """Nothing but tensors is built."""
    touched = tmp_path / "touched"
    legacy(tmp_path / "evil.ckpt", {"model_state_dict": Call(name, f"touch {touched}")}, {})
    assert converter.main([str(tmp_path / "evil.ckpt"), str(tmp_path / "new.npz")]) == 2
    assert "is not a PyTorch file of tensors" in capsys.readouterr().err
    assert {path.name for path in tmp_path.iterdir()} == {"evil.ckpt"}


def test_damaged_files_leave_nothing(tmp_path, capsys):
    legacy(tmp_path / "whole.ckpt", CONTENT, STORAGES)
    whole = (tmp_path / "whole.ckpt").read_bytes()
    legacy(tmp_path / "other.ckpt", CONTENT, STORAGES, magic=5)
    beyond = {"model_state_dict": {"fc.weight": tensor("1", (4, 3), (3, 1), 12, offset=1)}}
    legacy(tmp_path / "beyond.ckpt", beyond, {"1": FIRST})
    nothing = {"model_state_dict": {"fc.weight": 3}}
    legacy(tmp_path / "nothing.ckpt", nothing, {})
    (tmp_path / "cut.ckpt").write_bytes(whole[:-4])
    (tmp_path / "empty.ckpt").write_bytes(b"")
    files = set(tmp_path.iterdir())
    for name, message in {
        "other": "wrong magic number",
        "beyond": "reaches beyond its storage",
        "cut": "truncated",
        "empty": "is not a PyTorch file",
        "missing": "cannot be read",
        "nothing": "holds no named tensors",
    }.items():
        assert converter.main([str(tmp_path / f"{name}.ckpt"), str(tmp_path / "new.npz")]) == 2
        error = capsys.readouterr().err
        assert message in error and error.count("\n") == 1, (name, error)
    assert set(tmp_path.iterdir()) == files
    assert converter.main([str(tmp_path / "whole.ckpt"), str(tmp_path / "new.txt")]) == 2
    assert converter.main([str(tmp_path / "whole.ckpt"), str(tmp_path / "none" / "new.npz")]) == 2
