"""A pruned network as arrays that other frameworks load: zeros in dense matrices."""

from collections.abc import Mapping

import numpy as np
from safetensors.numpy import save

from sa_jax.export.cleanup import Cleaned
from sa_jax.npz import npz_bytes


def npz(cleaned: Cleaned) -> Mapping[str, bytes]:
    """LAYER/kernel `[inputs, outputs]` and LAYER/bias, as Keras and Flax have them, float32."""
    arrays = {}
    for layer, (kernel, bias) in enumerate(zip(cleaned.kernels, cleaned.biases, strict=True)):
        arrays |= {f"Dense_{layer}/kernel": kernel, f"Dense_{layer}/bias": bias}
    return {"network.npz": npz_bytes(arrays)}


def safetensors(cleaned: Cleaned) -> Mapping[str, bytes]:
    """LAYER.weight `[outputs, inputs]` and LAYER.bias, as PyTorch's `nn.Linear` has them, float32."""
    arrays = {}
    for layer, (kernel, bias) in enumerate(zip(cleaned.kernels, cleaned.biases, strict=True)):
        arrays |= {f"layers.{layer}.weight": np.ascontiguousarray(kernel.T), f"layers.{layer}.bias": bias}
    return {"network.safetensors": save(arrays)}
