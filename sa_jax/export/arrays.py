"""Exports arrays that other frameworks load: dense matrices with zeros, or packed masks and codes."""

import json
from collections.abc import Mapping
from pathlib import Path

import numpy as np
from safetensors import safe_open
from safetensors.numpy import save

from sa_jax.export.cleanup import Cleaned, check_finite
from sa_jax.export.packed import MAX_BRANCHES, pack_codes, unpack_codes
from sa_jax.export.quantization import Quantized, QuantizedLayer, check
from sa_jax.files.npz import npz_bytes
from sa_jax.types import InputError


def npz(cleaned: Cleaned) -> Mapping[str, bytes]:
    """Returns an .npz of LAYER/kernel `[inputs, outputs]` and LAYER/bias, as in Keras and Flax, float32.

    Raises:
      InputError: a weight that is not finite.
    """
    arrays, cleaned = {}, check_finite(cleaned)
    for layer, (kernel, bias) in enumerate(zip(cleaned.kernels, cleaned.biases, strict=True)):
        arrays |= {f"Dense_{layer}/kernel": kernel, f"Dense_{layer}/bias": bias}
    return {"network.npz": npz_bytes(arrays)}


def safetensors(cleaned: Cleaned) -> Mapping[str, bytes]:
    """Returns safetensors of LAYER.weight `[outputs, inputs]` and LAYER.bias, as in PyTorch, float32.

    Raises:
      InputError: a weight that is not finite.
    """
    arrays, cleaned = {}, check_finite(cleaned)
    for layer, (kernel, bias) in enumerate(zip(cleaned.kernels, cleaned.biases, strict=True)):
        arrays |= {f"layers.{layer}.weight": np.ascontiguousarray(kernel.T), f"layers.{layer}.bias": bias}
    return {"network.safetensors": save(arrays)}


def safetensors_packed(quantized: Quantized) -> Mapping[str, bytes]:
    """Returns safetensors of masks as bits and kept weights as codes.

    The arrays of each layer are LAYER.mask, uint8, one bit per branch, output by output, lowest bit of a byte
    first; LAYER.codes, uint8, packed codes, or float32 weights at 32 bits; LAYER.scales, float32 `[groups, ...]`
    as in `QuantizedLayer`; and LAYER.bias. The metadata `sa_jax` is JSON: the activation, and the units and bits
    of each layer.

    Raises:
      InputError: arrays that do not fit each other, or are not finite.
    """
    arrays, about = {}, {"activation": quantized.activation, "shapes": [], "bits": []}
    for number, layer in enumerate(check(quantized).layers):
        codes = layer.codes if layer.bits == 32 else np.frombuffer(pack_codes(layer.codes, layer.bits), np.uint8)
        arrays |= {
            f"layers.{number}.mask": np.packbits(layer.mask.T.ravel(), bitorder="little"),
            f"layers.{number}.codes": codes,
            f"layers.{number}.scales": layer.scales,
            f"layers.{number}.bias": layer.bias,
        }
        about["shapes"].append(layer.mask.shape)
        about["bits"].append(layer.bits)
    return {"network.safetensors": save(arrays, {"sa_jax": json.dumps(about)})}


def read_safetensors_packed(path: Path) -> Quantized:
    """Reads a file of `safetensors_packed`; `simulate` turns the result into float32 kernels.

    Raises:
      InputError: the file cannot be read, or has another format.
    """
    try:
        with safe_open(str(path), "numpy") as file:
            about = json.loads(file.metadata()["sa_jax"])
            layers = []
            for number, ((inputs, outputs), bits) in enumerate(zip(about["shapes"], about["bits"], strict=True)):
                arrays = (
                    file.get_tensor(f"layers.{number}.{name}") for name in ("mask", "codes", "scales", "bias")
                )
                mask, codes, scales, bias = arrays
                if inputs * outputs > MAX_BRANCHES or mask.shape != (-(-inputs * outputs // 8),):
                    raise ValueError("a mask does not have the length of its layer")
                flat = np.unpackbits(mask, count=inputs * outputs, bitorder="little").astype(bool)
                kept = np.ascontiguousarray(flat.reshape(outputs, inputs).T)
                codes = codes if bits == 32 else unpack_codes(codes.tobytes(), int(kept.sum()), bits)
                layers.append(QuantizedLayer(kept, bits, codes, scales, bias))
            return check(Quantized(tuple(layers), about["activation"]))
    except OSError as error:
        raise InputError(f"{path} cannot be read: {error.strerror or error}") from None
    except Exception as error:  # safetensors, json and numpy each raise their own errors
        raise InputError(f"{path} is not a packed network of sa_jax: {error}") from None
