"""Exports computation graphs with the weights as constants: ONNX and StableHLO."""

from collections.abc import Mapping
from typing import Any

import jax
import jax.export
import jax.numpy as jnp

from sa_jax.export.cleanup import Cleaned, check_finite
from sa_jax.networks.mlp import Network, forward
from sa_jax.types import InputError

# For each activation in ONNX: its node, the node's attributes, and the operator set of the model. This is the
# oldest that has the node, but at least 13, so that old runtimes can read the model.
NODES: dict[str, tuple[str, dict[str, Any], int]] = {
    "relu": ("Relu", {}, 13),
    "tanh": ("Tanh", {}, 13),
    "gelu": ("Gelu", {"approximate": "tanh"}, 20),
}
PLATFORMS = ("cpu", "cuda", "tpu")


def onnx(cleaned: Cleaned) -> Mapping[str, bytes]:
    """Returns an ONNX model from `input`, float32 `[batch, features]`, to `logits`, float32 `[batch, classes]`.

    The batch can have any size.

    Raises:
      InputError: the package onnx is missing, ONNX does not have the activation, or a weight is not finite.
    """
    check_finite(cleaned)
    if cleaned.activation not in NODES:
        raise InputError(f"activation {cleaned.activation!r} is not known in ONNX; known: {', '.join(NODES)}")
    try:
        from onnx import TensorProto, helper, numpy_helper
    except ImportError:
        raise InputError("format 'onnx' needs the package onnx: pip install 'sa_jax[onnx]'") from None
    operator, attributes, opset = NODES[cleaned.activation]
    nodes, constants, entering = [], [], "input"
    last = len(cleaned.kernels) - 1
    for layer, (kernel, bias) in enumerate(zip(cleaned.kernels, cleaned.biases, strict=True)):
        names = [f"layers.{layer}.kernel", f"layers.{layer}.bias"]
        constants += map(numpy_helper.from_array, (kernel, bias), names)
        leaving = "logits" if layer == last else f"layers.{layer}.sums"
        nodes.append(helper.make_node("Gemm", [entering, *names], [leaving]))
        if layer < last:
            entering = f"layers.{layer}.units"
            nodes.append(helper.make_node(operator, [leaving], [entering], **attributes))
    shapes = {"input": cleaned.kernels[0].shape[0], "logits": cleaned.kernels[-1].shape[1]}
    ends = [helper.make_tensor_value_info(name, TensorProto.FLOAT, ["batch", n]) for name, n in shapes.items()]
    graph = helper.make_graph(nodes, "network", ends[:1], ends[1:], constants)
    operators = [helper.make_opsetid("", opset)]
    oldest = helper.find_min_ir_version_for(operators)
    model = helper.make_model(graph, opset_imports=operators, ir_version=oldest, producer_name="sa_jax")
    return {"network.onnx": model.SerializeToString()}


def stablehlo(cleaned: Cleaned) -> Mapping[str, bytes]:
    """Returns a StableHLO program for `jax.export.deserialize`, for CPU, CUDA and TPU.

    Its `call` maps float32 `[batch, features]`, with any batch size, to logits, float32 `[batch, classes]`. The
    JAX version that wrote it and later versions can read it; earlier versions may not.

    Raises:
      InputError: a weight that is not finite.
    """
    check_finite(cleaned)
    network = Network(tuple(map(jnp.asarray, cleaned.kernels)), tuple(map(jnp.asarray, cleaned.biases)))
    shape = jax.export.symbolic_shape(f"batch, {network.sizes[0]}")

    @jax.jit
    def logits(x: jax.Array) -> jax.Array:
        return forward(network, x, cleaned.activation)

    with jax.default_matmul_precision("highest"):  # not the default on a TPU
        program = jax.export.export(logits, platforms=PLATFORMS)(jax.ShapeDtypeStruct(shape, jnp.float32))
    return {"network.stablehlo": bytes(program.serialize())}
