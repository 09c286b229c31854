"""Finds the layers of a multilayer perceptron among named arrays.

Names tell which arrays are kernels and which are biases. Names and shapes tell the order of the layers and the
layout of the kernels. If names and shapes allow two readings, both are listed in an error.
"""

import itertools
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import jax.numpy as jnp

from sa_jax import checks
from sa_jax.networks import layer_order
from sa_jax.types import InputError

# The layout of a kernel: [inputs, outputs] as in Flax and Keras, or [outputs, inputs] as in PyTorch and Equinox.
LAYOUTS = ("inputs_first", "outputs_first")
MAX_LAYERS = 1_000

# The layouts that names such as 'fc1.weight' and 'Dense_0/kernel' tell. For 'W1' or 'fc1_b' only shapes do.
_KNOWN = {"kernel": "inputs_first", "weight": "outputs_first"}
_FULL_NAME = re.compile(r"_?(kernel|weight|bias)(_orig|_mask)?")
_SHORT_NAME = re.compile(r"(?:(.*?)[_-])?(kernel|weight|bias|w|b)s?[_-]?(\d*)", re.IGNORECASE)
_KERAS_NAME = re.compile(r"(?:layers\.)?(.+)\.vars\.([01])")
_NUMBER = re.compile(r"(?:arr_)?\d+")
_OTHER_LAYERS = "; only dense layers can be loaded: fold others into them, or see prune_kernels and sa-jax layers"
# What wrappers add to the names of their layers.
_WRAPPERS = re.compile(r"^(?:module\.|_orig_mod\.|model_weights\.)+|\._layer(?=\.)|:0$")


class Layer(NamedTuple):
    """The names of a layer's arrays.

    Attributes:
      name: name of the layer.
      kernel: name of the kernel's array.
      bias: name of the bias's array, if there is one.
      outputs_first: whether the kernel is stored as [outputs, inputs].
      kernel_mask: name of an array that multiplies the kernel, as `torch.nn.utils.prune` adds it, if there is one.
      bias_mask: name of an array that multiplies the bias, if there is one.
    """

    name: str
    kernel: str
    bias: str | None
    outputs_first: bool
    kernel_mask: str | None = None
    bias_mask: str | None = None


class _Part(NamedTuple):
    layer: str
    kind: str  # 'kernel', 'bias', 'kernel_mask', 'bias_mask'
    layout: str | None = None


def layers_of(
    arrays: Mapping[str, Any], order: Sequence[str] | None = None, layout: str | None = None
) -> list[Layer]:
    """Finds the layers of a multilayer perceptron among arrays, in network order.

    Args:
      arrays: anything with `shape` and `dtype`, by name.
      order: as for `load`.
      layout: as for `load`.

    Raises:
      InputError: as for `load`.
    """
    if layout is not None:
        checks.choice("layout", layout, LAYOUTS)
    found, known = _grouped(arrays)
    if len(found) > MAX_LAYERS:
        raise InputError(f"the source has {len(found):,} layers; at most {MAX_LAYERS:,} are possible")
    if order is not None and (isinstance(order, str) or sorted(map(repr, order)) != sorted(map(repr, found))):
        raise InputError(f"order must be a list that names each layer once, {list(found)}; not {order!r}")

    def laid_out(layout: str | None) -> dict[str, Layer]:
        return {n: one._replace(outputs_first=(layout or known[n]) == LAYOUTS[1]) for n, one in found.items()}

    def shapes_of(layers: Mapping[str, Layer]) -> dict[str, tuple[int, int]]:
        shapes = {name: tuple(arrays[layer.kernel].shape) for name, layer in layers.items()}
        return {name: (s[1], s[0]) if layers[name].outputs_first else (s[0], s[1]) for name, s in shapes.items()}

    def fitting(layers: Mapping[str, Layer], by_number: bool) -> list[list[str]]:
        shapes = shapes_of(layers)
        if any(layer.bias and arrays[layer.bias].shape[0] != shapes[name][1] for name, layer in layers.items()):
            return []
        if order is not None:
            return [list(order)] if layer_order.first_misfit(order, shapes) is None else []
        return (layer_order.orders_by_number if by_number else layer_order.orders_by_shape)(shapes)

    # First the reading that the names suggest. If it does not fit, the names may be wrong about layout or order.
    as_named = [laid_out(layout)] if layout or None not in known.values() else [laid_out(one) for one in LAYOUTS]
    others = [] if layout else [one for one in map(laid_out, LAYOUTS) if one not in as_named]
    readings = [(layers, names) for layers in as_named for names in fitting(layers, True)]
    if not readings:
        readings = [(layers, names) for layers in as_named for names in fitting(layers, False)]
        readings += [(layers, names) for layers in others for names in fitting(layers, True)]
    if not readings:
        shapes = shapes_of(as_named[0])
        lengths = {name: arrays[layer.bias].shape[0] for name, layer in as_named[0].items() if layer.bias}
        raise InputError(layer_order.misfit(shapes, lengths, order))
    if len(readings) > 1:
        raise InputError(_two_readings(readings[0], readings[1], shapes_of))
    layers, names = readings[0]
    if order is not None:
        return [layers[name]._replace(name=f"Dense_{number}") for number, name in enumerate(names)]
    return [layers[name] for name in names]


def _two_readings(one: Any, other: Any, shapes_of: Callable) -> str:
    def described(layers: Mapping[str, Layer], names: Sequence[str]) -> str:
        shapes = shapes_of(layers)
        parts = [f"{name} {shapes[name][0]}-{shapes[name][1]}" for name in names]
        stored = "[outputs, inputs]" if layers[names[0]].outputs_first else "[inputs, outputs]"
        return f"kernels {stored} and layers {', '.join(parts[:8])}{', ...' if len(parts) > 8 else ''}"

    differ = one[0] != other[0]
    how = f"layout={LAYOUTS[0]!r} or {LAYOUTS[1]!r}" if differ else "order=[...] (names of layers), or number them"
    return f"the weights can be read in two ways, {described(*one)}, or {described(*other)}: choose with {how}"


def _grouped(arrays: Mapping[str, Any]) -> tuple[dict[str, Layer], dict[str, str | None]]:
    """The layers by name, unordered; and the layouts that names tell, None for names that do not."""
    parts = _numbered(arrays)
    if parts is None:
        parts = {name: _part(name, len(array.shape)) for name, array in arrays.items()}
    layers: dict[str, dict[str, str]] = {}
    known: dict[str, str | None] = {}
    for name, (layer, kind, layout) in parts.items():
        array = arrays[name]
        masks = kind.endswith("_mask")
        if type_of(array).startswith("|V"):
            raise InputError(
                f"array {name!r} is of type {type_of(array)}, plain bytes: .npz does not keep types such as "
                "bfloat16; save float32, or a .safetensors file"
            )
        if len(array.shape) != (1 if kind.startswith("bias") else 2) or not (masks or is_number(array)):
            kept = f"{type_of(array)}{list(array.shape)}"
            raise InputError(f"array {name!r} is {kept}, not a matrix or a bias{_OTHER_LAYERS}")
        if kind in layers.setdefault(layer, {}):
            raise InputError(f"layer {layer!r} has two arrays for its {kind}")
        layers[layer][kind] = name
        if kind == "kernel":
            known[layer] = layout
    if not layers:
        raise InputError("the parameters hold no kernel; for a PyTorch module, pass its state_dict()")
    for layer, kinds in layers.items():
        if "kernel" not in kinds:
            raise InputError(f"layer {layer!r} has a bias and no kernel")
        for kind in ("kernel", "bias"):
            masked = kinds.get(f"{kind}_mask")
            if masked and kind not in kinds:
                raise InputError(f"layer {layer!r} has a mask for its {kind}, and no {kind}")
            if masked and arrays[masked].shape != arrays[kinds[kind]].shape:
                raise InputError(f"array {masked!r} does not have the shape of {kinds[kind]!r}")
    return {
        name: Layer(
            name, kinds["kernel"], kinds.get("bias"), False, kinds.get("kernel_mask"), kinds.get("bias_mask")
        )
        for name, kinds in layers.items()
    }, known


def _part(name: str, rank: int) -> _Part:
    """Which array of which layer a name stands for."""
    plain = _WRAPPERS.sub("", name.replace("/", "."))
    if keras := _KERAS_NAME.fullmatch(plain):
        kind = "kernel" if keras[2] == "0" else "bias"
        if rank == (2 if kind == "kernel" else 1):
            return _Part(keras[1], kind, "inputs_first")
    layer, _, last = plain.rpartition(".")
    if full := _FULL_NAME.fullmatch(last):
        kind = "bias" if full[1] == "bias" else "kernel"
        return _Part(layer, kind + "_mask" if full[2] == "_mask" else kind, _KNOWN.get(full[1]))
    if short := _SHORT_NAME.fullmatch(last):
        own = (short[1] or "") + short[3]
        return _Part(".".join(filter(None, (layer, own))), "bias" if short[2].lower()[0] == "b" else "kernel")
    raise InputError(f"array {name!r} is none of LAYER.weight, LAYER.kernel, LAYER.bias{_OTHER_LAYERS}")


def _numbered(arrays: Mapping[str, Any]) -> dict[str, _Part] | None:
    """The parts of arrays whose names are numbers, as in lists.

    Either each matrix is followed by its bias or by none; or all matrices come first and then all biases, as in
    `[*classifier.coefs_, *classifier.intercepts_]` of scikit-learn.
    """
    if not all(_NUMBER.fullmatch(part) for name in arrays for part in name.split("/")):
        return None
    names = sorted(arrays, key=layer_order.natural)
    is_bias = [len(arrays[name].shape) == 1 for name in names]
    half = len(names) // 2
    if is_bias == [False] * half + [True] * half:
        layers = [*range(half), *range(half)]
    else:
        layers = [number - 1 for number in itertools.accumulate(not one for one in is_bias)]
    parts = zip(names, layers, is_bias, strict=True)
    return {name: _Part(str(layer), "bias" if one else "kernel") for name, layer, one in parts}


def type_of(array: Any) -> str:
    """The name of the dtype of an array of any framework."""
    return str(array.dtype).removeprefix("torch.")


def is_number(array: Any) -> bool:
    """Whether an array of any framework, and of any shape, holds real numbers."""
    try:
        dtype = jnp.dtype(type_of(array))  # jnp knows bfloat16 as a float, numpy does not
    except TypeError:  # a type of PyTorch alone, such as qint8
        return False
    return jnp.issubdtype(dtype, jnp.floating) or jnp.issubdtype(dtype, jnp.integer)
