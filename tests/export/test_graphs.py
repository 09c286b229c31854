"""ONNX and StableHLO, read back by ONNX Runtime and JAX."""

import sys

import jax.export
import numpy as np
import pytest

from sa_jax import export
from sa_jax.export import graphs
from sa_jax.networks import mlp
from tests.conftest import refusal
from tests.export.networks import READERS, cleaned_network, close, needs


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
    with refusal("activation 'sine' is not known in ONNX; known: relu, tanh, gelu"):
        graphs.onnx(cleaned._replace(activation="sine"))
    monkeypatch.setitem(sys.modules, "onnx", None)
    with refusal("format 'onnx' needs the package onnx: pip install 'sa_jax[onnx]'"):
        graphs.onnx(cleaned)
