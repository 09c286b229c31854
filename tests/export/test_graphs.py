"""Exports read back by what they are made for: NumPy, PyTorch, Keras, ONNX Runtime and JAX."""

import json
import re
import shutil
import sys
from pathlib import Path

import jax.export
import numpy as np
import pytest

from sa_jax import cli, export, files
from sa_jax.export import graphs
from sa_jax.files import datasets
from sa_jax.networks import mlp
from tests.conftest import refusal
from tests.export.test_formats import close, network_of


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


PAGE = (Path(__file__).parents[2] / "sa_jax/docs/export.md").read_text()
READERS = {"npz": by_arrays, "safetensors": by_arrays, "onnx": by_onnx, "stablehlo": by_stablehlo}


def needs(form):
    if form == "onnx":
        pytest.importorskip("onnx", reason="the extra onnx is not installed")


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


def cleaned_network(activation, sizes=(20, 12, 8, 3), density=0.5):
    network = network_of(sizes)
    return export.clean(network, np.random.default_rng(1).random(network.total) < density, activation)


@pytest.mark.parametrize("form", ["onnx", "stablehlo"])
@pytest.mark.parametrize(
    ("activation", "sizes", "density"),
    [(name, (20, 12, 8, 3), 0.5) for name in mlp.ACTIVATIONS]
    + [("relu", (20, 4), 0.5), ("relu", (20, 12, 3), 0.0)],
)
def test_graphs_give_the_same_for_any_batch(form, activation, sizes, density, tmp_path):
    needs(form)
    cleaned = cleaned_network(activation, sizes, density)
    (content,) = getattr(graphs, form)(cleaned).values()
    (tmp_path / "network").write_bytes(content)
    for batch in (1, 7):
        x = np.random.default_rng(batch).normal(size=(batch, sizes[0])).astype(np.float32)
        close(READERS[form](tmp_path / "network", x), export.predict(cleaned, x))


@pytest.mark.parametrize(("activation", "opset"), [("relu", 13), ("tanh", 13), ("gelu", 20)])
def test_onnx_is_valid_and_says_what_it_takes(activation, opset):
    onnx = pytest.importorskip("onnx", reason="the extra onnx is not installed")
    model = onnx.load_from_string(graphs.onnx(cleaned_network(activation))["network.onnx"])
    onnx.checker.check_model(model, full_check=True)
    assert [(one.domain, one.version) for one in model.opset_import] == [("", opset)]
    for end, name, features in ((model.graph.input, "input", 20), (model.graph.output, "logits", 3)):
        (value,) = end
        batch, width = value.type.tensor_type.shape.dim
        assert (value.name, batch.dim_param, width.dim_value) == (name, "batch", features)
        assert value.type.tensor_type.elem_type == onnx.TensorProto.FLOAT
    assert [node.op_type for node in model.graph.node].count("Gemm") == 3


def test_stablehlo_is_for_all_platforms():
    program = jax.export.deserialize(bytearray(graphs.stablehlo(cleaned_network("relu"))["network.stablehlo"]))
    assert set(program.platforms) == {"cpu", "cuda", "tpu"}
    assert [str(shape.shape) for shape in program.in_avals] == ["(batch, 20)"]
    text = program.mlir_module()
    assert text.count("stablehlo.dot_general") == text.count("precision = [HIGHEST, HIGHEST]") > 0


def test_onnx_refuses_what_it_cannot_say(monkeypatch):
    cleaned = cleaned_network("relu")
    with refusal("activation 'sine' is not known in ONNX; relu, tanh, gelu are"):
        graphs.onnx(cleaned._replace(activation="sine"))
    monkeypatch.setitem(sys.modules, "onnx", None)
    with refusal("format 'onnx' needs the package onnx: pip install 'sa_jax[onnx]'"):
        graphs.onnx(cleaned)


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
    with refusal("is no folder"):
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
