"""Finished runs in every format, read back by NumPy, PyTorch, Keras, ONNX Runtime and JAX."""

import json
import re
import shutil
from pathlib import Path

import jax
import numpy as np
import pytest
from safetensors.numpy import load_file

from sa_jax import cli, export, files
from sa_jax.files import datasets
from sa_jax.networks import mlp
from tests.conftest import refusal
from tests.export.networks import READERS, close, logits_of, needs

PAGE = (Path(__file__).parents[2] / "sa_jax/docs/export.md").read_text()


@pytest.mark.parametrize("form", READERS)
def test_all_test_samples_get_the_logits_of_the_masked_network(form, finished, tmp_path):
    needs(form)
    path = tmp_path / f"network.{form}"
    assert cli.main(["export", str(finished), f"--format={form}", f"--out={path}"]) == 0
    test = datasets.load_dataset("digits").test
    expected = logits_of(finished, test.inputs)
    found = READERS[form](path, test.inputs)
    close(found, expected)
    np.testing.assert_array_equal(found.argmax(-1), expected.argmax(-1))
    accuracy = json.loads((finished / "result.json").read_text())["test_accuracy"]
    assert (found.argmax(-1) == test.labels).mean() == pytest.approx(accuracy)


def test_a_run_is_exported_by_the_command(finished, tmp_path, capsys):
    x = jax.random.normal(jax.random.key(0), (20, 64))
    with np.load(finished / "weights.npz") as weights:
        assert len(weights) == 6
    expected = logits_of(finished, x)
    for form in ("npz", "safetensors"):
        out = tmp_path / f"network.{form}"
        assert cli.main(["export", str(finished), f"--format={form}", f"--out={out}"]) == 0
        _, loaded = mlp.network_of(files.load(out))
        close(np.asarray(mlp.forward(loaded, x)), expected)
    assert load_file(tmp_path / "network.safetensors")["layers.0.weight"].shape[1] == 64
    assert cli.main(["export", str(finished), "--format=c", f"--out={tmp_path / 'c'}"]) == 0
    written = {path.name for path in (tmp_path / "c").iterdir()}
    assert written == {"network.h", "network.c", "test.c", "classify.c", "example.pgm"}
    assert "network.c" in capsys.readouterr().out


@pytest.mark.slow
def test_bits_are_chosen_for_a_budget(finished, tmp_path):
    for form in ("packed", "c_packed", "c"):
        export.export(finished, form, tmp_path / f"{form}_8", bits=8)
    export.export(finished, "packed", tmp_path / "all_1", bits=1)
    most = ((tmp_path / "packed_8").stat().st_size + (tmp_path / "all_1").stat().st_size) // 2
    (path,) = export.export(finished, "packed", tmp_path / "fits", max_bytes=most)
    assert path.stat().st_size <= most
    widths = {layer.bits for layer in export.read_packed(path).layers}
    assert widths != {1} and widths != {8}
    with refusal("more than max_bytes = 50"):
        export.export(finished, "packed", tmp_path / "out", max_bytes=50)
    with refusal("bits must be one of 1, 2, 3, 4, 8, 32, not 5"):
        export.export(finished, "packed", tmp_path / "out", bits=5)
    with refusal("max_bytes is for the formats c, c_packed, packed, not 'npz'"):
        export.export(finished, "npz", tmp_path / "out", max_bytes=5_000)
    with refusal("max_bytes must be a whole number of at least 1, not 0"):
        export.export(finished, "packed", tmp_path / "out", max_bytes=0)
    with refusal("give bits or max_bytes, not both"):
        export.export(finished, "packed", tmp_path / "out", bits=4, max_bytes=5_000)
    with refusal("--out must be a file: format 'packed' writes one file", "is a directory"):
        export.export(finished, "packed", tmp_path, overwrite=True)
    with refusal("--out must be a directory: format 'c' writes several files", "is a file"):
        export.export(finished, "c", path, overwrite=True)
    assert not (tmp_path / "out").exists() and not list(tmp_path.glob(".*"))


def test_what_cannot_be_exported_is_refused(finished, tmp_path):
    with refusal("format must be one of c, c_packed, packed, npz", "'onyx'"):
        export.export(finished, "onyx", tmp_path / "out")
    with refusal("holds no finished run"):
        export.export(tmp_path, "c", tmp_path / "out")
    (tmp_path / "checkpoints").mkdir()
    with refusal("holds an unfinished run: finish it first"):
        export.export(tmp_path, "c", tmp_path / "out")
    (tmp_path / "there.npz").write_bytes(b"mine")
    with refusal("there.npz exists"):
        export.export(finished, "npz", tmp_path / "there.npz")
    assert (tmp_path / "there.npz").read_bytes() == b"mine"
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("form", READERS)
def test_refusals_leave_no_file(form, finished, tmp_path):
    needs(form)
    out, damaged = tmp_path / "network", tmp_path / "damaged"
    with refusal("holds no finished run"):
        export.export(tmp_path, form, out)
    with refusal("masks.npz cannot be read"):
        damaged.mkdir()
        for name in ("result.json", "weights.npz"):
            shutil.copy(finished / name, damaged)
        export.export(damaged, form, out)
    with refusal("NaN or infinite"):
        shutil.copy(finished / "masks.npz", damaged)
        with np.load(finished / "weights.npz") as weights:
            arrays = dict(weights)
        arrays["Dense_0/kernel"][0, 0] = np.nan
        np.savez(damaged / "weights.npz", **arrays)
        export.export(damaged, form, out)
    with refusal("--out must be in a folder that exists"):
        export.export(finished, form, tmp_path / "missing" / "network")
    assert [path.name for path in tmp_path.iterdir()] == ["damaged"]
    out.write_bytes(b"mine")
    with refusal("network exists; name another, or add --overwrite"):
        export.export(finished, form, out)
    assert out.read_bytes() == b"mine"
    export.export(finished, form, out, overwrite=True)
    assert out.read_bytes() != b"mine"


@pytest.mark.parametrize(
    "code",
    re.findall(r"^```python\n(.*?)^```$", PAGE, re.MULTILINE | re.DOTALL),
    ids=lambda code: re.findall(r'"network\.(\w+)"', code)[0],
)
def test_exports_are_read_as_the_page_shows(code, finished, tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("KERAS_BACKEND", "jax")
    for package in ("keras", "onnx", "onnxruntime", "torch"):
        if package in code:
            pytest.importorskip(package, reason=f"{package} is not installed")
    (path,) = re.findall(r'"(network\.\w+)"', code)
    monkeypatch.chdir(tmp_path)
    export.export(finished, path.partition(".")[2], Path(path))
    names = {}
    exec(compile(code, "export.md", "exec"), names)
    close(np.asarray(names["logits"]), logits_of(finished, datasets.load_dataset("digits").test.inputs))
    accuracy = json.loads((finished / "result.json").read_text())["test_accuracy"]
    assert float(capsys.readouterr().out) == pytest.approx(accuracy)
