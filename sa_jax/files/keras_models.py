"""Reads Keras models that are a chain of `Dense` layers, as their config tells, and writes pruned kernels back.

A network here has only kernels, biases and one activation. So a layer that scales and shifts, such as
`BatchNormalization`, is folded into the kernel and bias of the `Dense` layer beside it. A layer that does nothing
at inference, such as `Dropout`, is passed over. Every other layer is refused by its name.
"""

import json
import math
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple, NoReturn

import jax.numpy as jnp
import numpy as np

from sa_jax.files import keras_files
from sa_jax.networks import layer_order
from sa_jax.types import InputError

# Layers that do nothing at inference.
PASSED = (
    *("InputLayer", "Identity", "Dropout", "AlphaDropout", "GaussianDropout", "GaussianNoise"),
    "ActivityRegularization",
)
# Between layers, as Keras computes them. Its gelu is the exact one, and the networks' is an approximation.
HIDDEN = ("relu", "tanh")
# After the last layer. The networks give logits, of which these are functions that keep the largest the largest.
LAST = ("softmax", "log_softmax", "sigmoid")
# The names that Keras gives to layers of these kinds.
_PLAIN = re.compile(
    r"(dense|input_layer|identity|(alpha_|gaussian_)?dropout|gaussian_noise|activity_regularization|flatten"
    r"|activation|re_lu|softmax)(_\d+)?"
)


class Affine(NamedTuple):
    """What scales and shifts values, `scale * x + shift`; float64, of shapes that broadcast with the values."""

    scale: np.ndarray = np.ones(())  # float64 [...]
    shift: np.ndarray = np.zeros(())  # float64 [...]

    @property
    def does_nothing(self) -> bool:
        """Whether it returns its inputs."""
        return bool(np.all(self.scale == 1) and not np.any(self.shift))

    def then(self, other: "Affine") -> "Affine":
        """This one, followed by another."""
        return Affine(other.scale * self.scale, other.scale * self.shift + other.shift)

    def over(self, shape: Sequence[int]) -> "Affine":
        """The same with one entry for each of the values."""
        return Affine(np.broadcast_to(self.scale, shape), np.broadcast_to(self.shift, shape))


class Dense(NamedTuple):
    """A `Dense` layer and what is folded into it.

    Attributes:
      name: its name in the model.
      kernel: path of its kernel in the file.
      bias: path of its bias in the file, or None.
      before: what its inputs go through.
      after: what its outputs go through, before the activation.
      activation: what follows; None for nothing.
    """

    name: str
    kernel: str
    bias: str | None
    before: Affine
    after: Affine = Affine()
    activation: str | None = None


def read_arrays(path: Path, activation: str | None = None) -> dict[str, np.ndarray]:
    """Reads the kernels and biases of a file, `.keras` or `.h5`, with other layers folded into them.

    Args:
      path: the file.
      activation: the activation with which the arrays will be used between layers; None if they will not be.

    Returns:
      Kernels, float `[inputs, outputs]`, and biases, float `[outputs]`, by their paths in the file if these tell
      the order of the layers; or else called `Dense_0/kernel`, `Dense_0/bias` and so on. If the file holds weights
      alone, all its arrays by their paths.

    Raises:
      InputError: as for `keras_files.read_arrays`; the model is not a chain of `Dense` layers with one activation
        when other layers are folded into them, or has another activation; or an array is not finite.
    """
    content = keras_files.read(path)
    if content.config is None:
        for name, paths in content.layers.items():
            own_name = any(not array.rpartition("/")[2].isdecimal() for array in paths)
            if not (_PLAIN.fullmatch(name) or own_name):
                raise InputError(
                    f"{path}: layer {name!r} is not Dense, and a file of weights alone does not tell what it "
                    "computes: save the whole model, model.save('model.keras')"
                )
        return content.arrays
    layers = _chain(path, content)
    found = layers[0].activation
    if len(layers) > 1 and activation not in (None, found):
        raise InputError(
            f"{path}: its layers apply {found!r}, not {activation!r}: give activation={found!r} to files.load and "
            f"to what uses the weights; for a run, set ACTIVATION = {found!r}"
        )
    arrays = {}
    for layer, names in zip(layers, _names(layers, content), strict=True):
        arrays |= dict(zip(names, _folded(path, layer, content), strict=False))
    return arrays


def write_arrays(source: Path, out: Path, changes: Mapping[str, np.ndarray]) -> None:
    """Writes a copy of a file with kernels and biases changed, so that the copy's model computes what they do.

    What was folded into the kernels and biases is taken out of them, and the file's other layers stay. A pruned
    branch is zero in the file's own kernel. If its layer's inputs are shifted, it loses its share of the shift,
    which is added to the file's own bias.

    Args:
      source: the file, as for `read_arrays`.
      out: the copy; replaced if it exists.
      changes: new arrays by their names in `read_arrays(source)`, of the same shapes.

    Raises:
      InputError: as for `read_arrays`; the model cannot hold the changes; or `out` cannot be written.
    """
    content = keras_files.read(source)
    if content.config is None:
        return keras_files.write_arrays(source, out, changes)
    layers, own = _chain(source, content), {}
    for layer, names in zip(layers, _names(layers, content), strict=True):
        own |= _unfolded(source, layer, names, content, changes)
    keras_files.write_arrays(source, out, own)


def _folded(path: Path, layer: Dense, content: keras_files.Content) -> list[np.ndarray]:
    """The kernel of a layer, and its bias if it has or needs one."""
    kernel = content.arrays[layer.kernel]
    bias = [] if layer.bias is None else [content.arrays[layer.bias]]
    if layer.before.does_nothing and layer.after.does_nothing:
        return [kernel, *bias]
    own = kernel.astype(np.float64)
    with np.errstate(over="ignore", invalid="ignore"):
        new = layer.after.scale * (layer.before.shift @ own + sum(bias)) + layer.after.shift
        folded = [array.astype(np.float32) for array in (_scale(layer) * own, new)]
    if not all(np.isfinite(array).all() for array in folded):
        _refuse(path, layer.name, "has weights beyond float32 when the layers beside it are folded into it")
    return folded if bias or new.any() else folded[:1]


def _unfolded(
    path: Path,
    layer: Dense,
    names: Sequence[str],
    content: keras_files.Content,
    changes: Mapping[str, np.ndarray],
) -> dict[str, np.ndarray]:
    """The file's own kernel and bias of a layer, by their paths, from changed ones with everything folded in."""
    folded, shift = _folded(path, layer, content), layer.before.shift
    own = content.arrays[layer.kernel].astype(np.float64)
    bias = 0 if layer.bias is None else content.arrays[layer.bias].astype(np.float64)
    old_bias = folded[1] if len(folded) > 1 else 0
    new, new_bias = changes.get(names[0], folded[0]), changes.get(names[1], old_bias)
    with np.errstate(divide="ignore", invalid="ignore"):
        # What did not change is taken from the file, to the last bit.
        kernel = np.where(new == 0, 0, np.where(new == folded[0], own, new / _scale(layer)))
        moved = (new_bias - layer.after.shift) / layer.after.scale - shift @ own
        bias = np.where(new_bias == old_bias, bias, moved) + shift @ (own - kernel)
    if layer.bias is None and bias.any():
        _refuse(
            path, layer.name, "has no bias for what the layers before it add: write .weights.h5 or .safetensors"
        )
    changed = {layer.kernel: kernel} | ({} if layer.bias is None else {layer.bias: bias})
    with np.errstate(over="ignore"):
        changed = {name: array.astype(content.arrays[name].dtype) for name, array in changed.items()}
    if not all(np.isfinite(array.astype(np.float32)).all() for array in changed.values()):
        _refuse(path, layer.name, "cannot hold the weights: a layer beside it scales them by zero or almost zero")
    return changed


def _scale(layer: Dense) -> np.ndarray:
    return layer.before.scale[:, None] * layer.after.scale


def _names(layers: Sequence[Dense], content: keras_files.Content) -> list[tuple[str, str]]:
    """The names of each layer's kernel and bias: the paths in the file, if their order is that of the layers."""
    places = [re.sub(r"/vars/0$|/[^/]+$", "", layer.kernel) for layer in layers]
    shapes = [content.arrays[layer.kernel].shape for layer in layers]
    if layer_order.orders(dict(zip(places, shapes, strict=True))) != [places]:
        return [(f"Dense_{number}/kernel", f"Dense_{number}/bias") for number in range(len(layers))]
    return [(layer.kernel, re.sub("(/vars/)0$|kernel(?=[^/]*$)", _bias, layer.kernel)) for layer in layers]


def _bias(found: re.Match[str]) -> str:
    return f"{found[1]}1" if found[1] else "bias"


def _chain(path: Path, content: keras_files.Content) -> list[Dense]:
    """The `Dense` layers of a model in their order, each with what is folded into it and with its activation."""
    try:
        layers = _walked(path, content)
    except InputError:
        raise
    except (ArithmeticError, AttributeError, LookupError, RecursionError, TypeError, ValueError) as error:
        raise InputError(f"{path}: the model's config is damaged or of an unknown form: {error!r}") from None
    if not layers:
        raise InputError(f"{path}: the model has no Dense layer")
    for layer in layers[:-1]:
        found = layer.activation
        if found == "gelu":
            _refuse(
                path, layer.name, "applies Keras's exact gelu, of which sa_jax has only the approximation by tanh"
            )
        if found not in HIDDEN or found != layers[0].activation:
            also = f", and {layers[0].name!r} {layers[0].activation!r}" if found in HIDDEN else ""
            needed = "all but the last layer must apply the same of " + ", ".join(HIDDEN)
            _refuse(
                path, layer.name, f"applies {'no activation' if found is None else repr(found)}{also}: {needed}"
            )
    if layers[-1].activation not in (None, *LAST):
        _refuse(
            path, layers[-1].name, f"applies {layers[-1].activation!r} to the logits; only {', '.join(LAST)} may"
        )
    return layers


def _walked(path: Path, content: keras_files.Content) -> list[Dense]:
    """The `Dense` layers with what is folded into them; which activations they have is not looked at."""
    layers: list[Dense] = []
    waiting, shape, affine_name = Affine(), None, ""
    row = _in_a_row(path, content.config)
    stored = _stored(content.config) if path.suffix == ".keras" else {}
    for layer in row:
        kind, config = layer.get("registered_name") or layer["class_name"], layer["config"]
        name = config["name"]
        shape = shape or _shape(config, layer)
        places = content.layers.get(stored.get(name) or name, ())
        arrays = [_array(path, content, place) for place in places]
        is_open = bool(layers) and layers[-1].activation is None
        activation = None
        if kind == "Dense":
            if shape is not None and len(shape) > 1:
                _refuse(path, name, f"takes inputs of the shape {list(shape)}: flatten them before it")
            layers.append(_dense(path, config, places, arrays, waiting))
            waiting, shape, activation = Affine(), (config["units"],), config["activation"]
        elif kind in FOLDED:
            with np.errstate(all="ignore"):
                affine = FOLDED[kind](config, arrays, shape)
                if is_open:
                    layers[-1] = layers[-1]._replace(after=layers[-1].after.then(affine).over(shape or ()))
                else:
                    waiting, affine_name = waiting.then(affine), name
            if not all(np.isfinite(part).all() for part in (*affine, *waiting)):
                _refuse(path, name, "scales or shifts by what is not finite, such as by a variance below 0")
        elif kind == "Flatten" or (kind == "Reshape" and len(config["target_shape"]) == 1):
            if config.get("data_format") == "channels_first" and (shape is None or len(shape) > 1):
                _refuse(path, name, "flattens with the channels first")
            waiting, shape = _flattened(waiting, shape, max(array.size for array in content.arrays.values()))
        elif kind in ACTIVATIONS:
            activation = ACTIVATIONS[kind](config)
        elif kind not in PASSED:
            _refuse(path, name, f"is of the kind {kind!r}, which cannot be folded into Dense layers")
        if activation not in (None, "linear"):
            if not layers or layers[-1].activation is not None:
                _refuse(path, name, f"applies {activation!r} to what no Dense layer has just given")
            layers[-1] = layers[-1]._replace(activation=activation)
    if not waiting.does_nothing:
        _refuse(path, affine_name, "comes after the last activation")
    return layers


def _in_a_row(path: Path, config: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    """The configs of a model's layers, from the inputs to the outputs."""
    kind, inner = config["class_name"], config["config"]
    if kind == "Sequential":
        return inner["layers"]
    if kind not in ("Functional", "Model") or "layers" not in inner:
        raise InputError(f"{path}: the model is a {kind!r}; only Sequential and Functional models can be read")
    by_name = {layer["name"]: layer for layer in inner["layers"]}
    ends = _sources(inner["output_layers"])
    row: list[Mapping[str, Any]] = []
    while ends:
        if len(ends) > 1:
            raise InputError(f"{path}: the model branches at the layers {', '.join(map(repr, sorted(ends)))}")
        layer = by_name.pop(ends.pop())
        nodes = layer["inbound_nodes"]
        if len(nodes) > 1 or '"training": true' in json.dumps(nodes):
            _refuse(path, layer["name"], "is used twice, or as in training")
        ends = _sources(nodes)
        row.insert(0, layer)
    if by_name:
        raise InputError(f"{path}: the model branches at the layers {', '.join(map(repr, by_name))}")
    return row


def _sources(node: Any) -> set[str]:
    """The layers whose outputs a node takes, in the words of Keras 3 or of Keras 2."""
    if isinstance(node, Mapping):
        return {node["keras_history"][0]} if "keras_history" in node else _sources(list(node.values()))
    if not isinstance(node, list):
        return set()
    if len(node) > 2 and isinstance(node[0], str) and isinstance(node[1], int):
        return {node[0]}
    return set().union(*map(_sources, node))


def _stored(config: Mapping[str, Any]) -> dict[str, str]:
    """The names of the layers in an archive, which are those of their classes, numbered."""
    counted: Counter[str] = Counter()
    stored = {}
    for layer in config["config"]["layers"]:
        kind = re.sub("(?<=[a-z])(?=[A-Z])", "_", layer["class_name"]).lower()
        stored[layer["config"]["name"]] = f"{kind}_{counted[kind]}" if counted[kind] else kind
        counted[kind] += 1
    return stored


def _shape(config: Mapping[str, Any], layer: Mapping[str, Any]) -> tuple[int, ...] | None:
    """The shape of a layer's inputs without the samples, if its config tells."""
    given = config.get("batch_shape") or config.get("batch_input_shape")
    given = given or (layer.get("build_config") or {}).get("input_shape")
    return tuple(given[1:]) if isinstance(given, list) else None


def _array(path: Path, content: keras_files.Content, name: str) -> np.ndarray:
    array = content.arrays[name]
    if not np.isfinite(array).all():
        place = [int(index) for index in np.argwhere(~np.isfinite(array))[0]]
        raise InputError(f"{path}: array {name!r} holds NaN or infinite values, first at {place}")
    return array


def _dense(
    path: Path, config: Mapping[str, Any], names: Sequence[str], arrays: Sequence[np.ndarray], before: Affine
) -> Dense:
    units, has_bias = config["units"], config["use_bias"]
    inputs = arrays[0].shape[:1] if arrays else ()
    wanted = [(*inputs, units), (units,)][: 2 if has_bias else 1]
    if [array.shape for array in arrays] != wanted or not all(
        jnp.issubdtype(array.dtype, jnp.floating) for array in arrays
    ):
        held = ", ".join(f"{array.dtype}{list(array.shape)}" for array in arrays) or "nothing"
        _refuse(path, config["name"], f"holds {held}: not the kernel and bias of a Dense layer of {units!r} units")
    return Dense(config["name"], names[0], names[1] if has_bias else None, before.over(inputs))


def _rescaling(config: Mapping[str, Any], arrays: Sequence[np.ndarray], shape: Any) -> Affine:
    return Affine(_numbers(config["scale"]), _numbers(config["offset"]))


def _normalization(config: Mapping[str, Any], arrays: Sequence[np.ndarray], shape: Any) -> Affine:
    given = arrays[:2] if config["mean"] is None else (config["mean"], config["variance"])
    axes = [] if config["axis"] is None else np.atleast_1d(config["axis"]).tolist()
    mean, variance = (_along(axes, _numbers(values), shape) for values in given)
    deviation = np.maximum(np.sqrt(variance), 1e-7)
    return Affine(deviation, mean) if config.get("invert") else Affine(1 / deviation, -mean / deviation)


def _batch_normalization(config: Mapping[str, Any], arrays: Sequence[np.ndarray], shape: Any) -> Affine:
    axes = np.atleast_1d(config["axis"]).tolist()
    given = iter([_along(axes, array.astype(np.float64), shape) for array in arrays])
    gamma = next(given) if config["scale"] else 1.0
    beta = next(given) if config["center"] else 0.0
    mean, variance = next(given), next(given)
    scale = gamma / np.sqrt(variance + config["epsilon"])
    return Affine(np.asarray(scale), np.asarray(beta - mean * scale))


def _along(axes: Sequence[int], values: np.ndarray, shape: tuple[int, ...] | None) -> np.ndarray:
    """Values along some axes of inputs, the axis of the samples being 0, in a form that broadcasts with inputs."""
    if values.size == 1:
        return values.reshape(())
    rank = 2 if shape is None else len(shape) + 1
    kept = {axis % rank for axis in axes}
    sizes = values.shape if shape is None else shape
    return values.reshape([size if place in kept else 1 for place, size in enumerate(sizes, 1)])


def _flattened(affine: Affine, shape: tuple[int, ...] | None, most: int) -> tuple[Affine, tuple[int, ...] | None]:
    """What follows flattening, and its shape; no input has more values than the largest kernel."""
    if shape is None or None in shape:
        return affine, None
    if (size := math.prod(shape)) > most:
        raise ValueError(f"inputs of the shape {list(shape)} fit no kernel")
    flat = Affine(*(part.ravel() for part in affine.over(shape)))
    return flat, (size,)


def _numbers(value: Any) -> np.ndarray:
    """Numbers of a config, or of an array, float64."""
    if isinstance(value, Mapping):  # an array in the config
        value = value["config"]["value"]
    return np.asarray(value, np.float64)


def _relu(config: Mapping[str, Any]) -> str:
    is_plain = config.get("max_value") is None and not (config.get("negative_slope") or config.get("threshold"))
    return "relu" if is_plain else "a relu with a slope, threshold or bound"


def _softmax(config: Mapping[str, Any]) -> str:
    return "softmax" if config.get("axis", -1) in (-1, 1) else "softmax over the samples"


# What is folded into Dense layers, and what gives them activations, by the names of the classes.
FOLDED = {"Rescaling": _rescaling, "Normalization": _normalization, "BatchNormalization": _batch_normalization}
ACTIVATIONS = {"Activation": lambda config: config["activation"], "ReLU": _relu, "Softmax": _softmax}


def _refuse(path: Path, name: str, why: str) -> NoReturn:
    layer = f"layer {name!r}"
    raise InputError(f"{path}: {layer} {why}")
