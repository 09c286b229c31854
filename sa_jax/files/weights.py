"""The weights of a multilayer perceptron from anywhere, and its masks and pruned weights back there.

A source is a file, or any pytree: Flax Linen params, an NNX module or its state, an Equinox module, a state dict
of PyTorch, lists of arrays. Which arrays are kernels and biases is read from their names; how kernels lie and what
their order is, from names and shapes. What could be read in two ways is refused, with both of them named.
"""

import re
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import flax.traverse_util
import jax
import jax.numpy as jnp
import numpy as np
import safetensors.numpy
from jax.core import Tracer

from sa_jax.files import keras_files, torch_files, workdirs
from sa_jax.files.npz import npz_bytes, read_npz
from sa_jax.networks import layer_order
from sa_jax.networks.trees import leaf_name
from sa_jax.types import InputError, PyTree

TORCH_SUFFIXES = (".pt", ".pth", ".ckpt", ".bin")
SUFFIXES = (".npz", ".safetensors", *TORCH_SUFFIXES, *keras_files.SUFFIXES)
# How a kernel lies: [inputs, outputs] as in Flax and Keras, or [outputs, inputs] as in PyTorch and Equinox.
LAYOUTS = ("inputs_first", "outputs_first")
MOST_LAYERS = 1_000

# Which the names 'fc1.weight', 'Dense_0/kernel' say; of 'W1', 'fc1_b' and their kind only the shapes tell.
_KNOWN = {"kernel": "inputs_first", "weight": "outputs_first"}
_FULL_NAME = re.compile(r"_?(kernel|weight|bias)(_orig|_mask)?")
_SHORT_NAME = re.compile(r"(?:(.*?)[_-])?(kernel|weight|bias|w|b)s?[_-]?(\d*)", re.IGNORECASE)
_KERAS_NAME = re.compile(r"(?:layers\.)?(.+)\.vars\.([01])")
_NUMBER = re.compile(r"(?:arr_)?\d+")
_OTHER_LAYERS = (
    "; other layers than dense ones: fold them into these, or see kernels.prune_kernels and sa-jax layers"
)
# What wrappers add to the names of the layers in them.
_WRAPPERS = re.compile(r"^(?:module\.|_orig_mod\.|model_weights\.)+|\._layer(?=\.)|:0$")


class Layer(NamedTuple):
    """Where a layer's arrays are.

    Attributes:
      name: of the layer.
      kernel: name of the array.
      bias: name of the array, if there is one.
      outputs_first: whether the kernel lies as [outputs, inputs].
      kernel_mask: name of an array that multiplies the kernel, as of `torch.nn.utils.prune`, if there is one.
      bias_mask: likewise.
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


def read_arrays(path: Path) -> dict[str, np.ndarray]:
    """Reads all arrays, of any shape, of a file with one of `SUFFIXES`, by their names in it.

    Raises:
      InputError: the file cannot be read, is damaged or of another kind, or holds more than plain arrays.
    """
    if path.suffix == ".npz":
        return read_npz(path)
    if path.suffix in TORCH_SUFFIXES:
        return torch_files.read_tensors(path)
    if path.suffix in keras_files.SUFFIXES:
        return keras_files.read_arrays(path)
    if path.suffix != ".safetensors":
        raise InputError(f"{path}: weights must be a file {', '.join(SUFFIXES[:-1])} or {SUFFIXES[-1]}")
    try:
        return safetensors.numpy.load_file(path)
    except OSError as error:
        raise InputError(f"{path} cannot be read: {error.strerror or error}") from None
    except Exception as error:  # of kinds that safetensors does not document
        raise InputError(f"{path} is damaged or not a .safetensors file: {error}") from None


def load(source: PyTree, order: Sequence[str] | None = None, layout: str | None = None) -> dict[str, Any]:
    """The parameters of a multilayer perceptron, as `sa_jax.prune` takes them.

    Args:
      source: a path, or a pytree, see the module. Kernels are called `kernel`, `weight`, `w` or the like, biases
        `bias` or `b`, or all are numbered in network order. Leaves that are no arrays are passed over.
      order: names of the layers in network order, where names and shapes do not tell; these are then called
        `Dense_0`, `Dense_1` and so on.
      layout: one of `LAYOUTS`, where names and shapes do not tell.

    Returns:
      `{layer: {"kernel": [inputs, outputs], "bias": [outputs]}}`, float32, on the host.

    Raises:
      InputError: a file that cannot be read; arrays that belong to no multilayer perceptron or are not finite;
        layers that do not follow each other; or that could be read in several ways.

    >>> state_dict = {"body.weight": np.ones((3, 4)), "body.bias": np.ones(3), "head.weight": np.ones((2, 3))}
    >>> params = load(state_dict)
    >>> {layer: arrays["kernel"].shape for layer, arrays in params.items()}
    {'body': (4, 3), 'head': (3, 2)}
    """
    arrays, place = _opened(source)[0], _place(source)
    params: dict[str, Any] = {}
    try:
        for layer in layers_of(arrays, order, layout):
            kernel = _finite(arrays, layer.kernel, layer.kernel_mask)
            params[layer.name] = {"kernel": kernel.T if layer.outputs_first else kernel}
            if layer.bias is not None:
                params[layer.name]["bias"] = _finite(arrays, layer.bias, layer.bias_mask)
    except InputError as error:
        raise InputError(f"{place}{error}") from None
    return params


def put_back(
    source: PyTree,
    masks: PyTree,
    params: PyTree | None = None,
    order: Sequence[str] | None = None,
    layout: str | None = None,
) -> PyTree:
    """The source with its kernels pruned, and all else as it was.

    Args:
      source: as for `load`. Of a path, its arrays.
      masks: one per kernel, bool `[inputs, outputs]`, as `sa_jax.prune(key, load(source), ...)` returns them,
        or by the names in a run's `masks.npz`.
      params: nested like `load(source)`, where weights moved.
      order: as for `load`.
      layout: as for `load`.

    Returns:
      Of the source's structure, types and layouts.

    Raises:
      InputError: as for `load`; or masks that do not fit.

    >>> state_dict = {"fc.weight": np.array([[1.0, 2.0]]), "fc.bias": np.array([3.0])}
    >>> put_back(state_dict, {"fc": {"kernel": np.array([[True], [False]])}})["fc.weight"]
    array([[1., 0.]])
    """
    arrays, rebuild = _opened(source)
    changes = _pruned(arrays, masks, params, order, layout, _place(source))
    return rebuild({name: _like(arrays[name], array) for name, array in changes.items()})


def masks_like(
    source: PyTree, masks: PyTree, order: Sequence[str] | None = None, layout: str | None = None
) -> PyTree:
    """Masks in the structure and layout of the source.

    Args:
      source: as for `load`.
      masks: as for `put_back`.
      order: as for `load`.
      layout: as for `load`.

    Returns:
      The source with a boolean array in place of each array: the mask of a kernel, True throughout for all else.

    Raises:
      InputError: as for `put_back`.

    >>> state_dict = {"fc.weight": np.array([[1.0, 2.0]]), "fc.bias": np.array([3.0])}
    >>> masks_like(state_dict, {"fc": {"kernel": np.array([[True], [False]])}})
    {'fc.bias': array([ True]), 'fc.weight': array([[ True, False]])}
    """
    arrays, rebuild = _opened(source)
    everything = {name: np.ones(array.shape, bool) for name, array in arrays.items()}
    fitted = {layer.kernel: mask for layer, mask in _fitted(arrays, masks, order, layout, _place(source))}
    return rebuild({name: _like(arrays[name], mask, bool) for name, mask in (everything | fitted).items()})


def write_pruned(
    source: PyTree,
    masks: PyTree,
    out: Path | str,
    params: PyTree | None = None,
    order: Sequence[str] | None = None,
    layout: str | None = None,
) -> None:
    """Writes the source with its kernels pruned to a file, or nothing.

    Args:
      source: as for `load`.
      masks: as for `put_back`.
      out: `.safetensors` or `.npz`, with all arrays of the source under their names and in their layouts; a Keras
        file of the source's kind, all else in it as it was; or a new `.weights.h5`, which `keras.Sequential` of as
        many `Dense` layers loads. Replaced if it exists.
      params: as for `put_back`.
      order: as for `load`.
      layout: as for `load`.

    Raises:
      InputError: as for `put_back`; another kind of file; or a folder that cannot be written.
    """
    out = Path(out)
    arrays, place = _opened(source)[0], _place(source)
    changes = _pruned(arrays, masks, params, order, layout, place)
    changed = {name: np.asarray(changes.get(name, _array(array))) for name, array in arrays.items()}
    if out.suffix == ".safetensors":
        whole = {name: np.ascontiguousarray(array) for name, array in changed.items()}
        workdirs.write_file(out, safetensors.numpy.save(whole))
    elif out.suffix == ".npz":
        # Of bfloat16 numpy would read back bytes.
        plain = {name: a if a.dtype.isbuiltin == 1 else a.astype(np.float32) for name, a in changed.items()}
        workdirs.write_file(out, npz_bytes(plain))
    elif isinstance(source, Path | str) and Path(source).suffix == out.suffix in keras_files.SUFFIXES:
        keras_files.write_arrays(Path(source), out, changes)
    elif out.name.endswith(".weights.h5"):
        pruned = load(changed, order, layout).values()
        kernels, biases = ([layer.get(kind) for layer in pruned] for kind in ("kernel", "bias"))
        workdirs.write_file(out, keras_files.sequential_bytes(kernels, biases))
    else:
        raise InputError(
            f"{out}: pruned weights go to .safetensors, .npz or .weights.h5, or from a Keras file to its own kind"
        )


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
    if layout not in (None, *LAYOUTS):
        raise InputError(f"layout must be {' or '.join(map(repr, LAYOUTS))}, not {layout!r}")
    found, known = _grouped(arrays)
    if len(found) > MOST_LAYERS:
        raise InputError(f"{len(found):,} layers; at most {MOST_LAYERS:,} are possible")
    if order is not None and (isinstance(order, str) or sorted(map(repr, order)) != sorted(map(repr, found))):
        raise InputError(f"order must be a list that names each layer once, {list(found)}; not {order!r}")

    def lying(layout: str | None) -> dict[str, Layer]:
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

    # First as names have it. Where that does not fit, they may be wrong of the layout, or of the order.
    as_named = [lying(layout)] if layout or None not in known.values() else [lying(one) for one in LAYOUTS]
    others = [] if layout else [one for one in map(lying, LAYOUTS) if one not in as_named]
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
    def said(layers: Mapping[str, Layer], names: Sequence[str]) -> str:
        shapes = shapes_of(layers)
        parts = [f"{name} {shapes[name][0]}-{shapes[name][1]}" for name in names]
        lies = "[outputs, inputs]" if layers[names[0]].outputs_first else "[inputs, outputs]"
        return f"kernels {lies} and layers {', '.join(parts[:8])}{', ...' if len(parts) > 8 else ''}"

    differ = one[0] != other[0]
    how = (
        f"layout={LAYOUTS[0]!r} or {LAYOUTS[1]!r}" if differ else "order=[...], the layers' names, or number them"
    )
    return f"the weights can be read in two ways, {said(*one)}, or {said(*other)}: say which by {how}"


def _grouped(arrays: Mapping[str, Any]) -> tuple[dict[str, Layer], dict[str, str | None]]:
    """The layers by name, in no order; and the layouts that names tell, None where they do not."""
    parts = _numbered(arrays)
    if parts is None:
        parts = {name: _part(name, len(array.shape)) for name, array in arrays.items()}
    layers: dict[str, dict[str, str]] = {}
    known: dict[str, str | None] = {}
    for name, (layer, kind, layout) in parts.items():
        array = arrays[name]
        masks = kind.endswith("_mask")
        if len(array.shape) != (1 if kind.startswith("bias") else 2) or not (masks or _is_number(array)):
            kept = f"{_dtype(array)}{list(array.shape)}"
            raise InputError(f"array {name!r} is {kept}, not a matrix or a bias{_OTHER_LAYERS}")
        if kind in layers.setdefault(layer, {}):
            raise InputError(f"layer {layer!r} has two arrays for its {kind}")
        layers[layer][kind] = name
        if kind == "kernel":
            known[layer] = layout
    if not layers:
        raise InputError("the parameters hold no kernel: of a PyTorch module give its state_dict()")
    for layer, kinds in layers.items():
        if "kernel" not in kinds:
            raise InputError(f"layer {layer!r} has a bias and no kernel")
        for kind in ("kernel", "bias"):
            masked = kinds.get(f"{kind}_mask")
            if masked and arrays[masked].shape != arrays[kinds[kind]].shape:
                raise InputError(f"array {masked!r} does not fit {kinds[kind]!r}")
    return {
        name: Layer(
            name, kinds["kernel"], kinds.get("bias"), False, kinds.get("kernel_mask"), kinds.get("bias_mask")
        )
        for name, kinds in layers.items()
    }, known


def _part(name: str, rank: int) -> _Part:
    """What an array is, by its name."""
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
    """What arrays are that have numbers for names, as lists do: matrices, each with the bias that follows it."""
    if not all(_NUMBER.fullmatch(part) for name in arrays for part in name.split("/")):
        return None
    parts: dict[str, _Part] = {}
    layer = -1
    for name in sorted(arrays, key=layer_order.natural):
        is_bias = len(arrays[name].shape) == 1
        layer += not is_bias
        parts[name] = _Part(str(layer), "bias" if is_bias else "kernel")
    return parts


def _opened(source: PyTree) -> tuple[dict[str, Any], Callable[[Mapping[str, Any]], PyTree]]:
    """A source's arrays by name, and what makes the source with some of them changed."""
    if isinstance(source, str | Path):
        arrays = read_arrays(Path(source))
        return arrays, lambda changed: arrays | dict(changed)
    nnx = sys.modules.get("flax.nnx")  # only where it was imported can there be a module of it
    if nnx is not None and isinstance(source, nnx.Module):
        graph, params, rest = nnx.split(source, nnx.Param, ...)
        arrays, rebuild = _opened(params)
        return arrays, lambda changed: nnx.merge(graph, rebuild(changed), rest)
    try:
        leaves, structure = jax.tree_util.tree_flatten_with_path(source)
    except (TypeError, ValueError) as error:
        raise InputError(f"the source is no tree of arrays: {str(error).partition(chr(10))[0]}") from None
    names = [leaf_name(path) for path, _ in leaves]
    if len(set(names)) < len(names):
        twice = next(name for name in names if names.count(name) > 1)
        raise InputError(f"two arrays are called {twice!r}")
    whole = isinstance(source, Mapping) and "params" in source  # all variables of a Flax model
    arrays = {
        name: leaf
        for name, (_, leaf) in zip(names, leaves, strict=True)
        if _is_array(leaf) and (not whole or name.split("/")[0] == "params")
    }

    def rebuild(changed: Mapping[str, Any], /) -> PyTree:
        pairs = zip(names, leaves, strict=True)
        return jax.tree.unflatten(structure, [changed.get(name, leaf) for name, (_, leaf) in pairs])

    return arrays, rebuild


def _is_array(leaf: Any) -> bool:
    """Whether a leaf is an array of weights: no function, count or key."""
    if not hasattr(leaf, "shape") or not hasattr(leaf, "dtype"):
        return False
    return len(leaf.shape) > 0 or "float" in str(leaf.dtype)


def _array(leaf: Any) -> np.ndarray:
    if isinstance(leaf, Tracer | jax.ShapeDtypeStruct):
        raise InputError(
            "weights are read on the host, where their values are: do so outside of jit, and pass them in"
        )
    if hasattr(leaf, "detach"):  # of PyTorch, whose bfloat16 numpy does not take
        tensor = leaf.detach().cpu()
        return (tensor.float() if "bfloat16" in str(tensor.dtype) else tensor).numpy()
    return np.asarray(leaf)


def _like(leaf: Any, array: np.ndarray, dtype: Any = None) -> Any:
    """An array of the kind of a leaf, and of its dtype if none is given."""
    if hasattr(leaf, "new_tensor"):
        made = leaf.new_tensor(array)
        return made if dtype is None else made.bool()
    made = array.astype(leaf.dtype if dtype is None else dtype)
    return jnp.asarray(made) if isinstance(leaf, jax.Array) else made


def _dtype(array: Any) -> str:
    return str(array.dtype).removeprefix("torch.")


def _is_number(array: Any) -> bool:
    dtype = jnp.dtype(_dtype(array))  # jnp knows bfloat16 as a float, numpy does not
    return jnp.issubdtype(dtype, jnp.floating) or jnp.issubdtype(dtype, jnp.integer)


def _finite(arrays: Mapping[str, Any], name: str, mask: str | None) -> np.ndarray:
    with np.errstate(over="ignore"):  # what float32 cannot hold becomes infinite
        array = _array(arrays[name]).astype(np.float32)
    if mask is not None:
        array = np.where(_array(arrays[mask]).astype(bool), array, np.float32(0))
    if not np.isfinite(array).all():
        raise InputError(f"array {name!r} holds NaN or infinite values")
    return array


def _place(source: PyTree) -> str:
    return f"{source}: " if isinstance(source, str | Path) else ""


def _by_layer(tree: PyTree, kind: str) -> dict[str, Any]:
    """The leaves called `kind` of nested or flat mappings, by layer, whatever stands between its parts."""
    if not isinstance(tree, Mapping):
        raise InputError(f"masks and params must be nested mappings of arrays, not {type(tree).__name__}")
    flat: Any = flax.traverse_util.flatten_dict(dict(tree))
    names = {".".join(map(str, path)).replace("/", "."): leaf for path, leaf in flat.items()}
    parts = {name: name.rpartition(".") for name in names}
    return {parts[name][0]: leaf for name, leaf in names.items() if parts[name][2] == kind}


def _fitted(
    arrays: Mapping[str, Any], masks: PyTree, order: Any, layout: Any, place: str
) -> list[tuple[Layer, np.ndarray]]:
    """Each layer and its mask, bool, as the kernel lies."""
    try:
        layers = layers_of(arrays, order, layout)
    except InputError as error:
        raise InputError(f"{place}{error}") from None
    found = _by_layer(masks, "kernel")
    if set(found) != {layer.name for layer in layers}:
        wanted = ", ".join(layer.name for layer in layers)
        raise InputError(f"{place}the masks are of layers {', '.join(found)}; the weights of {wanted}")
    fitted = []
    for layer in layers:
        mask = np.asarray(found[layer.name]).astype(bool)
        mask = mask.T if layer.outputs_first else mask
        if mask.shape != (shape := tuple(arrays[layer.kernel].shape)):
            given, wanted = ((s[::-1] if layer.outputs_first else s) for s in (mask.shape, shape))
            raise InputError(
                f"{place}the mask of {layer.name!r} must be [inputs, outputs], {list(wanted)}, not {list(given)}"
            )
        fitted.append((layer, mask))
    return fitted


def _pruned(arrays: Mapping[str, Any], masks, params, order, layout, place) -> dict[str, np.ndarray]:
    """The arrays that change, in their own layouts and dtypes."""
    fitted = _fitted(arrays, masks, order, layout, place)
    moved = {}
    if params is not None:
        kernels, biases = (_by_layer(params, kind) for kind in ("kernel", "bias"))
        wanted = {layer.name for layer, _ in fitted}, {layer.name for layer, _ in fitted if layer.bias is not None}
        for kind, found, names in zip(("kernels", "biases"), (kernels, biases), wanted, strict=True):
            if set(found) != names:
                raise InputError(
                    f"{place}the params have {kind} of {', '.join(found) or 'no layer'}; the weights "
                    f"of {', '.join(sorted(names)) or 'none'}"
                )
        for layer, _ in fitted:
            kernel = np.asarray(kernels[layer.name])
            moved[layer.kernel] = kernel.T if layer.outputs_first else kernel
            if layer.bias is not None:
                moved[layer.bias] = np.asarray(biases[layer.name])
    changes = {
        name: _as_of(_array(arrays[name]), array, f"{place}the params for {name!r}")
        for name, array in moved.items()
    }
    for layer, mask in fitted:
        kernel = changes.get(layer.kernel, _array(arrays[layer.kernel]))
        changes[layer.kernel] = np.where(mask, kernel, np.zeros((), kernel.dtype))
    return changes


def _as_of(old: np.ndarray, new: np.ndarray, what: str) -> np.ndarray:
    """A moved array in the dtype of the one it takes the place of."""
    if new.shape != old.shape:
        raise InputError(f"{what} are {list(new.shape)}, and its own shape is {list(old.shape)}, as it lies there")
    if not jnp.issubdtype(old.dtype, jnp.floating):
        raise InputError(f"{what} would be rounded to {old.dtype}: weights that moved need floats")
    with np.errstate(over="ignore"):
        made = new.astype(old.dtype)
    if not np.isfinite(made.astype(np.float32)).all():
        raise InputError(f"{what} are not finite in {old.dtype}")
    return made
