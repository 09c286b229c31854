"""Loads the weights of a multilayer perceptron from files and objects, and puts masks and pruned weights back.

A source is a file or any pytree: Flax Linen params, an NNX module or its state, an Equinox module, a PyTorch state
dict, lists of arrays. Names tell which arrays are kernels and which are biases. Names and shapes tell the order of
the layers and the layout of the kernels. If names and shapes allow two readings, loading fails and lists both;
choose one with `layout=` or `order=`.
"""

import csv
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

from sa_jax import checks
from sa_jax.files import keras_files, torch_files, workdirs
from sa_jax.files.npz import npz_bytes, read_npz
from sa_jax.networks import layer_order
from sa_jax.networks.trees import leaf_name
from sa_jax.types import InputError, PyTree

TORCH_SUFFIXES = (".pt", ".pth", ".ckpt", ".bin")
SUFFIXES = (".npz", ".safetensors", *TORCH_SUFFIXES, *keras_files.SUFFIXES)
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


def read_arrays(path: Path) -> dict[str, np.ndarray]:
    """Reads all arrays, of any shape, of a file with one of `SUFFIXES`, by their names in the file.

    Raises:
      InputError: the file cannot be read, is damaged, has another format, or holds other objects than plain
        arrays.
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
    except Exception as error:  # safetensors does not document its errors
        raise InputError(f"{path} is damaged or not a .safetensors file: {error}") from None


def load(source: PyTree, order: Sequence[str] | None = None, layout: str | None = None) -> dict[str, Any]:
    """Loads the parameters of a multilayer perceptron, in the form that `sa_jax.prune` takes.

    Args:
      source: a path, or a pytree, see the module. Kernels are called `kernel`, `weight`, `w` or similar, biases
        `bias` or `b`; or all arrays are numbered in network order. Leaves that are not arrays are ignored.
      order: names of the layers in network order, if names and shapes do not tell the order. The layers are then
        called `Dense_0`, `Dense_1` and so on.
      layout: one of `LAYOUTS`, if names and shapes do not tell the layout.

    Returns:
      `{layer: {"kernel": [inputs, outputs], "bias": [outputs]}}`, float32, on the host.

    Raises:
      InputError: the file cannot be read; arrays are not finite or do not belong to a multilayer perceptron; the
        layers do not follow each other, or could be read in several ways.

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
    """Returns the source with its kernels pruned; everything else stays unchanged.

    Args:
      source: as for `load`. For a path, its arrays are returned by name.
      masks: the branches to keep, in one of these forms:
        a mapping, nested or flat, with one mask per kernel, bool `[inputs, outputs]`, as
        `sa_jax.prune(key, load(source), ...)` returns them;
        masks with the names and in the layout of the source's own arrays, as `masks_like` returns them, where a
        kernel without a mask stays unpruned. Masks called `kernel` are always read as `[inputs, outputs]`, so a
        source that stores arrays of this name as `[outputs, inputs]` needs the masks of `prune`;
        the path of a file `.npz` or `.safetensors` that holds either of these;
        the folder of a finished `sa-jax run` (its `masks.npz`) or `sa-jax layers` (its `masks.safetensors`).
      params: weights to put in place of the source's own, nested like `load(source)`, or flat. If None and `masks`
        is the folder of a run that moved weights, these are used: those in `weights.npz` of a run with
        `run.nudge_share` above 0, or in `pruned.safetensors` of `sa-jax layers` with `layers.refit`. Otherwise,
        and with `params=load(source)`, the weights of the source stay.
      order: as for `load`.
      layout: as for `load`.

    Returns:
      A pytree with the structure, types and layouts of the source.

    Raises:
      InputError: as for `load`; or the masks or params cannot be read or do not fit the source.

    >>> state_dict = {"fc.weight": np.array([[1.0, 2.0]]), "fc.bias": np.array([3.0])}
    >>> put_back(state_dict, {"fc": {"kernel": np.array([[True], [False]])}})["fc.weight"]
    array([[1., 0.]])
    >>> put_back(state_dict, {"fc/kernel": np.array([[False], [True]])})["fc.weight"]
    array([[0., 2.]])
    """
    arrays, rebuild = _opened(source)
    changes = _changes(arrays, masks, params, order, layout, _place(source))
    return rebuild({name: _like(arrays[name], array) for name, array in changes.items()})


def masks_like(
    source: PyTree, masks: PyTree, order: Sequence[str] | None = None, layout: str | None = None
) -> PyTree:
    """Returns masks in the structure and layout of the source.

    Args:
      source: as for `load`.
      masks: as for `put_back`; weights that a run moved are not looked at.
      order: as for `load`.
      layout: as for `load`.

    Returns:
      The source with a boolean array in place of each array: a kernel's mask, or all True for other arrays.

    Raises:
      InputError: as for `put_back`.

    >>> state_dict = {"fc.weight": np.array([[1.0, 2.0]]), "fc.bias": np.array([3.0])}
    >>> masks_like(state_dict, {"fc": {"kernel": np.array([[True], [False]])}})
    {'fc.bias': array([ True]), 'fc.weight': array([[ True, False]])}
    """
    arrays, rebuild = _opened(source)
    everything = {name: np.ones(array.shape, bool) for name, array in arrays.items()}
    found, _ = _read_masks(masks, order, layout)
    fitted = {layer.kernel: mask for layer, mask in _fitted(arrays, found, order, layout, _place(source))}
    return rebuild({name: _like(arrays[name], mask, bool) for name, mask in (everything | fitted).items()})


def write_pruned(
    source: PyTree,
    masks: PyTree,
    out: Path | str,
    params: PyTree | None = None,
    order: Sequence[str] | None = None,
    layout: str | None = None,
) -> None:
    """Writes the source with its kernels pruned to a file. If it fails, nothing is written.

    Args:
      source: as for `load`.
      masks: as for `put_back`.
      out: the file to write, replaced if it exists. `.safetensors` and `.npz` get all arrays of the source, with
        their names and layouts. If the source is a Keras file, a file with the same suffix is a copy of it with
        the kernels changed. Otherwise `.weights.h5` is a new file that a `keras.Sequential` of the same number of
        `Dense` layers loads.
      params: as for `put_back`.
      order: as for `load`.
      layout: as for `load`.

    Raises:
      InputError: as for `put_back`; `out` has another suffix; or its folder cannot be written.

    >>> import tempfile
    >>> state_dict = {"fc.weight": np.array([[1.0, 2.0]])}
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     np.savez(f"{folder}/masks.npz", **{"fc/kernel": np.array([[True], [False]])})
    ...     write_pruned(state_dict, f"{folder}/masks.npz", f"{folder}/pruned.npz")
    ...     read_arrays(Path(folder, "pruned.npz"))
    {'fc.weight': array([[1., 0.]])}
    """
    out = Path(out)
    arrays, place = _opened(source)[0], _place(source)
    changes = _changes(arrays, masks, params, order, layout, place)
    changed = {name: np.asarray(changes.get(name, _array(array))) for name, array in arrays.items()}
    if out.suffix == ".safetensors":
        whole = {name: np.ascontiguousarray(array) for name, array in changed.items()}
        workdirs.write_file(out, safetensors.numpy.save(whole))
    elif out.suffix == ".npz":
        # numpy would read bfloat16 back as bytes.
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
            f"{out}: pruned weights are written to .safetensors, .npz or .weights.h5, or from a Keras file to one "
            "with the same suffix"
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
        if len(array.shape) != (1 if kind.startswith("bias") else 2) or not (masks or _is_number(array)):
            kept = f"{_dtype(array)}{list(array.shape)}"
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
    """The parts of arrays whose names are numbers, as in lists: matrices, each followed by its bias or not."""
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
    """A source's arrays by name, and a function that rebuilds the source with some of them changed."""
    if isinstance(source, str | Path):
        arrays = read_arrays(Path(source))
        return arrays, lambda changed: arrays | dict(changed)
    nnx = sys.modules.get("flax.nnx")  # unless it was imported, no module can be of NNX
    if nnx is not None and isinstance(source, nnx.Module):
        graph, params, rest = nnx.split(source, nnx.Param, ...)
        arrays, rebuild = _opened(params)
        return arrays, lambda changed: nnx.merge(graph, rebuild(changed), rest)
    try:
        leaves, structure = jax.tree_util.tree_flatten_with_path(source)
    except (TypeError, ValueError) as error:
        raise InputError(f"the source is not a tree of arrays: {str(error).partition(chr(10))[0]}") from None
    names = [leaf_name(path) for path, _ in leaves]
    if len(set(names)) < len(names):
        twice = next(name for name in names if names.count(name) > 1)
        raise InputError(f"two arrays are called {twice!r}")
    whole = isinstance(source, Mapping) and "params" in source  # the variables of a Flax model
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
    """Whether a leaf is an array of weights, not a function, a counter or a key."""
    if not hasattr(leaf, "shape") or not hasattr(leaf, "dtype"):
        return False
    return len(leaf.shape) > 0 or "float" in str(leaf.dtype)


def _array(leaf: Any) -> np.ndarray:
    if isinstance(leaf, Tracer | jax.ShapeDtypeStruct):
        raise InputError(
            "weights and masks are read outside of jit: call files.load there, and pass its result as an argument"
        )
    if hasattr(leaf, "detach"):  # a PyTorch tensor; numpy does not take its bfloat16
        tensor = leaf.detach().cpu()
        return (tensor.float() if "bfloat16" in str(tensor.dtype) else tensor).numpy()
    return np.asarray(leaf)


def _like(leaf: Any, array: np.ndarray, dtype: Any = None) -> Any:
    """An array of the same type as a leaf, and of its dtype if none is given."""
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
    with np.errstate(over="ignore"):  # values beyond float32 become infinite
        array = _array(arrays[name]).astype(np.float32)
    if mask is not None:
        array = np.where(_array(arrays[mask]).astype(bool), array, np.float32(0))
    if not np.isfinite(array).all():
        raise InputError(f"array {name!r} holds NaN or infinite values")
    return array


def _place(source: PyTree) -> str:
    return f"{source}: " if isinstance(source, str | Path) else ""


def _by_layer(tree: Mapping[str, Any], kind: str) -> dict[str, Any]:
    """The leaves called `kind` of nested or flat mappings, by layer. Parts of names are joined by '/' or '.'."""
    flat: Any = flax.traverse_util.flatten_dict(dict(tree))
    names = {".".join(map(str, path)).replace("/", "."): leaf for path, leaf in flat.items()}
    parts = {name: name.rpartition(".") for name in names}
    return {parts[name][0]: leaf for name, leaf in names.items() if parts[name][2] == kind}


def _fitted(
    arrays: Mapping[str, Any], masks: PyTree, order: Any, layout: Any, place: str
) -> list[tuple[Layer, np.ndarray]]:
    """Each layer and its mask, bool, in the layout of the kernel."""
    try:
        layers = layers_of(arrays, order, layout)
    except InputError as error:
        raise InputError(f"{place}{error}") from None
    found = _by_layer(masks, "kernel") if isinstance(masks, Mapping) else {}
    if set(found) != {layer.name for layer in layers}:
        return _fitted_by_array(arrays, layers, masks, list(found), place)
    fitted = []
    for layer in layers:
        mask = _mask(found[layer.name], f"{place}the mask of {layer.name!r}")
        mask = mask.T if layer.outputs_first else mask
        if mask.shape != (shape := tuple(arrays[layer.kernel].shape)):
            given, wanted = ((s[::-1] if layer.outputs_first else s) for s in (mask.shape, shape))
            raise InputError(
                f"{place}the mask of {layer.name!r} must be [inputs, outputs], {list(wanted)}, not {list(given)}"
            )
        fitted.append((layer, mask))
    return fitted


def _fitted_by_array(
    arrays: Mapping[str, Any], layers: Sequence[Layer], masks: PyTree, given: Sequence[str], place: str
) -> list[tuple[Layer, np.ndarray]]:
    """Each layer and its mask, from masks that have the names and layouts of the arrays themselves."""
    found = _opened(masks)[0]
    kernels = {layer.kernel for layer in layers}
    if not kernels & set(found) or not set(found) <= set(arrays):
        raise InputError(
            f"{place}the masks are for the layers {', '.join(given or found) or 'none'}, but the weights have the "
            f"layers {', '.join(layer.name for layer in layers)}"
        )
    all_kept = {name: np.ones(tuple(array.shape), bool) for name, array in arrays.items()}
    kernels_first = sorted(found, key=lambda name: name not in kernels)
    read = {name: _mask(found[name], f"{place}the mask of {name!r}") for name in kernels_first}
    for name, mask in read.items():
        if mask.shape != all_kept[name].shape:
            shapes = list(all_kept[name].shape), list(mask.shape)
            raise InputError(f"{place}the mask of {name!r} must have its shape, {shapes[0]}, not {shapes[1]}")
        if name not in kernels and not mask.all():
            raise InputError(f"{place}the mask of {name!r} prunes an array that is not a kernel")
    return [(layer, (all_kept | read)[layer.kernel]) for layer in layers]


def _mask(leaf: Any, what: str) -> np.ndarray:
    """A mask as a boolean array; weights given in its place are refused."""
    mask = _array(leaf)
    if mask.dtype != bool and not np.isin(mask, (0, 1)).all():
        raise InputError(f"{what} must be boolean, or hold only 0 and 1; are these weights?")
    return mask.astype(bool)


def _read_masks(
    masks: PyTree, order: Sequence[str] | None, layout: str | None
) -> tuple[PyTree, Mapping[str, Any] | None]:
    """The masks, read if they are a path; and the weights that a run moved, if the path is its folder."""
    if not isinstance(masks, str | Path):
        return masks, None
    place = Path(masks)
    if not place.is_dir():
        if place.suffix not in (".npz", ".safetensors"):
            raise InputError(
                f"{place}: masks must be a file .npz or .safetensors, or the folder of a finished run"
            )
        return read_arrays(place), None
    if (place / "masks.safetensors").is_file() and not (place / "result.json").is_file():  # of `sa-jax layers`
        moved = load(place / "pruned.safetensors", order, layout) if _is_refitted(place / "layers.csv") else None
        return read_arrays(place / "masks.safetensors"), moved
    result = workdirs.read_result(place)
    moved = read_npz(place / "weights.npz") if result.get("moves_weights") else None
    return read_npz(place / "masks.npz"), moved


def _is_refitted(table: Path) -> bool:
    """Whether the layers of a table of `sa-jax layers` have an error after a refit of their weights."""
    try:
        rows = csv.DictReader(table.read_text().splitlines())
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"{table} cannot be read: {getattr(error, 'strerror', None) or error}") from None
    return any(row.get("refit_error") for row in rows)


def _changes(arrays: Mapping[str, Any], masks, params, order, layout, place) -> dict[str, np.ndarray]:
    """The arrays that change, in their own layouts and dtypes."""
    masks, moved_by_run = _read_masks(masks, order, layout)
    params = moved_by_run if params is None else params
    fitted = _fitted(arrays, masks, order, layout, place)
    moved = {}
    if params is not None:
        if not isinstance(params, Mapping):
            raise InputError(f"params must be a mapping of arrays, nested or flat, not {type(params).__name__}")
        kernels, biases = (_by_layer(params, kind) for kind in ("kernel", "bias"))
        wanted = {layer.name for layer, _ in fitted}, {layer.name for layer, _ in fitted if layer.bias is not None}
        for kind, found, names in zip(("kernels", "biases"), (kernels, biases), wanted, strict=True):
            if set(found) != names:
                raise InputError(
                    f"{place}the params have {kind} of the layers {', '.join(found) or 'none'}, but the weights "
                    f"have {kind} of {', '.join(sorted(names)) or 'none'}"
                )
        for layer, _ in fitted:
            kernel = _array(kernels[layer.name])
            moved[layer.kernel] = kernel.T if layer.outputs_first else kernel
            if layer.bias is not None:
                moved[layer.bias] = _array(biases[layer.name])
    changes = {
        name: _as_of(_array(arrays[name]), array, f"{place}the params for {name!r}")
        for name, array in moved.items()
    }
    for layer, mask in fitted:
        kernel = changes.get(layer.kernel, _array(arrays[layer.kernel]))
        changes[layer.kernel] = np.where(mask, kernel, np.zeros((), kernel.dtype))
    return changes


def _as_of(old: np.ndarray, new: np.ndarray, what: str) -> np.ndarray:
    """A moved array in the dtype of the array that it replaces."""
    if new.shape != old.shape:
        raise InputError(f"{what} have the shape {list(new.shape)}, but the array has the shape {list(old.shape)}")
    if not jnp.issubdtype(old.dtype, jnp.floating):
        raise InputError(f"{what} would be rounded to {old.dtype}: moved weights need a source of floats")
    with np.errstate(over="ignore"):
        made = new.astype(old.dtype)
    if not np.isfinite(made.astype(np.float32)).all():
        raise InputError(f"{what} are not finite in {old.dtype}")
    return made
