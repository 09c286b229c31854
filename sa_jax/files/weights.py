"""Loads the weights of a multilayer perceptron from files and objects, and puts masks and pruned weights back.

A source is a file or any pytree: Flax Linen params, an NNX module or its state, an Equinox module, a PyTorch state
dict, lists of arrays. Names tell which arrays are kernels and which are biases. Names and shapes tell the order of
the layers and the layout of the kernels. If names and shapes allow two readings, loading fails and lists both;
choose one with `layout=` or `order=`.
"""

import csv
import os
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import flax.traverse_util
import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer

from sa_jax.files import array_files, keras_files, keras_models, workdirs
from sa_jax.files.array_files import check_numbers, read_arrays
from sa_jax.files.dense_layers import Layer, is_number, layers_of, type_of
from sa_jax.files.npz import read_npz
from sa_jax.files.paths import expanded
from sa_jax.networks.trees import leaf_name
from sa_jax.types import InputError, PyTree


def load(
    source: PyTree, order: Sequence[str] | None = None, layout: str | None = None, activation: str = "relu"
) -> dict[str, Any]:
    """Loads the parameters of a multilayer perceptron, in the form that `sa_jax.prune` takes.

    Args:
      source: a path, or a pytree, see the module. Kernels are called `kernel`, `weight`, `w` or similar, biases
        `bias` or `b`; or all arrays are numbered in network order. Leaves that are not arrays are ignored.
      order: names of the layers in network order, if names and shapes do not tell the order. The layers are then
        called `Dense_0`, `Dense_1` and so on.
      layout: 'inputs_first' or 'outputs_first', if names and shapes do not tell the layout.
      activation: the activation with which the parameters will be used. A Keras file of a whole model names its
        own, and loading fails if it is another.

    Returns:
      `{layer: {"kernel": [inputs, outputs], "bias": [outputs]}}`, float32, on the host.

    Raises:
      InputError: the file cannot be read; arrays are not finite or do not belong to a multilayer perceptron; the
        layers do not follow each other, or could be read in several ways; or a Keras model has another activation,
        or layers that cannot be folded.

    >>> state_dict = {"body.weight": np.ones((3, 4)), "body.bias": np.ones(3), "head.weight": np.ones((2, 3))}
    >>> params = load(state_dict)
    >>> {layer: arrays["kernel"].shape for layer, arrays in params.items()}
    {'body': (4, 3), 'head': (3, 2)}
    """
    arrays, place = _opened(source, activation)[0], _place(source)
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
      source: as for `load`. For a path, its arrays are returned by name; for a Keras file of a whole model, with
        its other layers folded into them.
      masks: the branches to keep, in one of these forms:
        a mapping, nested or flat, with one mask per kernel, bool `[inputs, outputs]`, as
        `sa_jax.prune(key, load(source), ...)` returns them;
        masks with the names and in the layout of the source's own arrays, as `masks_like` returns them, where a
        kernel without a mask stays unpruned. If the source stores arrays called `kernel` as `[outputs, inputs]`,
        shapes or the masks of other arrays tell which of the two forms is meant;
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
      InputError: as for `load`; the masks or params cannot be read or do not fit the source; or the pruned weights
        would not be finite.

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
    out: str | os.PathLike[str],
    params: PyTree | None = None,
    order: Sequence[str] | None = None,
    layout: str | None = None,
) -> None:
    """Writes the source with its kernels pruned to a file. If it fails, nothing is written.

    Args:
      source: as for `load`.
      masks: as for `put_back`.
      out: the file to write, replaced if it exists. `.safetensors`, `.npz` and those of PyTorch, `.pt`, `.pth`,
        `.ckpt` and `.bin`, get all arrays of the source, with their names, layouts and types; but `.npz` gets
        float32 in place of types that NumPy lacks. A `.safetensors` file keeps the metadata of another. A file of
        PyTorch is a state dict alone. If the source is a Keras file, a file with the same suffix is a copy of it
        with the kernels changed, and with the biases where other layers shift the inputs of pruned branches.
        Otherwise `.weights.h5` is a new file that a `keras.Sequential` of the same number of `Dense` layers loads.
      params: as for `put_back`.
      order: as for `load`.
      layout: as for `load`.

    Raises:
      InputError: as for `put_back`; `out` has another suffix, or cannot hold the type of an array; or its folder
        cannot be written.

    >>> import tempfile
    >>> state_dict = {"fc.weight": np.array([[1.0, 2.0]])}
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     np.savez(f"{folder}/masks.npz", **{"fc/kernel": np.array([[True], [False]])})
    ...     write_pruned(state_dict, f"{folder}/masks.npz", f"{folder}/pruned.npz")
    ...     read_arrays(Path(folder, "pruned.npz"))
    {'fc.weight': array([[1., 0.]])}
    """
    out, place = expanded(out), _place(source)
    path = expanded(source) if isinstance(source, str | os.PathLike) else None
    arrays = _opened(source)[0]
    changes = _changes(arrays, masks, params, order, layout, place)
    changed = {
        name: changes[name] if name in changes else _array(array, f"{place}array {name!r}")
        for name, array in arrays.items()
    }
    if out.suffix in array_files.WRITTEN:
        metadata = None if path is None else array_files.read_metadata(path)
        workdirs.write_file(out, array_files.array_bytes(out, changed, metadata))
    elif path is not None and path.suffix == out.suffix in keras_files.SUFFIXES:
        keras_models.write_arrays(path, out, changes)
    elif out.name.endswith(".weights.h5"):
        pruned = load(changed, order, layout).values()
        kernels, biases = ([layer.get(kind) for layer in pruned] for kind in ("kernel", "bias"))
        workdirs.write_file(out, keras_files.sequential_bytes(kernels, biases))
    else:
        raise InputError(
            f"{out}: pruned weights are written to .safetensors, .npz, .pt, .pth, .ckpt, .bin or .weights.h5, or "
            "from a Keras file to one with the same suffix"
        )


def _opened(
    source: PyTree, activation: str | None = None
) -> tuple[dict[str, Any], Callable[[Mapping[str, Any]], PyTree]]:
    """A source's arrays by name, and a function that rebuilds the source with some of them changed."""
    if isinstance(source, str | os.PathLike):
        path = expanded(source)
        array_files.refuse_gguf(path)
        is_keras = path.suffix in keras_files.SUFFIXES
        arrays = keras_models.read_arrays(path, activation) if is_keras else read_arrays(path)
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


def _array(leaf: Any, what: str) -> np.ndarray:
    """A leaf as an array; `what` it is for messages."""
    if isinstance(leaf, Tracer | jax.ShapeDtypeStruct):
        raise InputError(
            "weights and masks are read outside of jit: call files.load there, and pass its result as an argument"
        )
    if not hasattr(leaf, "detach"):
        return np.asarray(leaf)
    try:  # a tensor of PyTorch
        tensor, kind = leaf.detach().cpu(), type_of(leaf)
        if kind.startswith(("bfloat16", "float8")):  # float32 holds their values
            return tensor.float().numpy().astype(getattr(jnp, kind))
        return tensor.numpy()
    except (AttributeError, RuntimeError, TypeError) as error:
        reason = str(error).partition("\n")[0]
        raise InputError(f"{what} has no plain values: pass its to_dense() or dequantize(); {reason}") from None


def _like(leaf: Any, array: np.ndarray, dtype: Any = None) -> Any:
    """An array of the same type as a leaf, and of its dtype if none is given."""
    if hasattr(leaf, "new_tensor"):
        plain = array.astype(np.float32) if type_of(leaf).startswith(("bfloat16", "float8")) else array
        made = leaf.new_tensor(plain)
        return made if dtype is None else made.bool()
    made = array.astype(leaf.dtype if dtype is None else dtype)
    return jnp.asarray(made) if isinstance(leaf, jax.Array) else made


def _finite(arrays: Mapping[str, Any], name: str, mask: str | None) -> np.ndarray:
    with np.errstate(over="ignore"):  # values beyond float32 become infinite
        array = _array(arrays[name], f"array {name!r}").astype(np.float32)
    if mask is not None:
        array = np.where(_array(arrays[mask], f"array {mask!r}").astype(bool), array, np.float32(0))
    check_numbers(name, array)
    return array


def _place(source: PyTree) -> str:
    return f"{source}: " if isinstance(source, str | os.PathLike) else ""


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
    is_named = set(found) == {layer.name for layer in layers}
    if not is_named or _lie_as_stored(arrays, layers, masks, found, place):
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


def _lie_as_stored(
    arrays: Mapping[str, Any], layers: Sequence[Layer], masks: PyTree, found: Mapping[str, Any], place: str
) -> bool:
    """Whether masks called `kernel` are of arrays that the source stores as `[outputs, inputs]`, not of layers."""
    names, kernels = set(_opened(masks)[0]), {layer.kernel for layer in layers}
    turned = [layer for layer in layers if layer.outputs_first and layer.kernel in names]
    for layer in turned:
        shape = tuple(arrays[layer.kernel].shape)
        if shape[0] != shape[1]:
            return np.shape(found[layer.name]) == shape
    if turned and not names & (set(arrays) - kernels):  # `masks_like` gives biases a mask too
        raise InputError(
            f"{place}the masks of the square kernels may be [inputs, outputs] or as the source stores them: give "
            "order=[...] (names of layers) to files.load and here, so that layers and arrays have different names"
        )
    return bool(turned)


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
    mask = _array(leaf, what)
    if mask.dtype != bool and not np.isin(mask, (0, 1)).all():
        raise InputError(f"{what} must be boolean, or hold only 0 and 1; are these weights?")
    return mask.astype(bool)


def _read_masks(
    masks: PyTree, order: Sequence[str] | None, layout: str | None
) -> tuple[PyTree, Mapping[str, Any] | None]:
    """The masks, read if they are a path; and the weights that a run moved, if the path is its folder."""
    if not isinstance(masks, str | os.PathLike):
        return masks, None
    place = expanded(masks)
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
    """The arrays that change, in their own layouts and dtypes, after a check that all arrays are finite."""
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
            kernel = _array(kernels[layer.name], f"{place}the kernel of {layer.name!r}")
            moved[layer.kernel] = kernel.T if layer.outputs_first else kernel
            if layer.bias is not None:
                moved[layer.bias] = _array(biases[layer.name], f"{place}the bias of {layer.name!r}")

    def own(name: str) -> np.ndarray:
        return _array(arrays[name], f"{place}array {name!r}")

    changes = {name: _as_of(own(name), array, f"{place}the params for {name!r}") for name, array in moved.items()}
    for layer, mask in fitted:
        kernel = changes[layer.kernel] if layer.kernel in changes else own(layer.kernel)
        changes[layer.kernel] = np.where(mask, kernel, np.zeros((), kernel.dtype))
    for name in arrays:
        check_numbers(name, changes[name] if name in changes else own(name), place)
    return changes


def _as_of(old: np.ndarray, new: np.ndarray, what: str) -> np.ndarray:
    """A moved array in the dtype of the array that it replaces."""
    if new.shape != old.shape:
        raise InputError(f"{what} have the shape {list(new.shape)}, but the array has the shape {list(old.shape)}")
    if not is_number(new):
        raise InputError(f"{what} must be numbers, not {new.dtype}")
    if not jnp.issubdtype(old.dtype, jnp.floating):
        raise InputError(f"{what} would be rounded to {old.dtype}: moved weights need a source of floats")
    with np.errstate(over="ignore"):
        made = new.astype(old.dtype)
    if not np.isfinite(made.astype(np.float32)).all():
        raise InputError(f"{what} are not finite in {old.dtype}")
    return made
