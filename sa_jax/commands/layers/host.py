"""The linear layers of a whole pretrained model, pruned one by one: the host of `sa-jax layers`."""

import difflib
import hashlib
import importlib
import importlib.metadata
import json
import time
import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any, NamedTuple, cast

import jax
import jax.numpy as jnp
import numpy as np
import safetensors.numpy
import scipy.linalg

from sa_jax.baselines import linear
from sa_jax.commands.layers.settings import LayersConfig
from sa_jax.files import datasets, workdirs
from sa_jax.files.npz import npz_bytes, read_npz
from sa_jax.files.weights import read_arrays
from sa_jax.networks import patterns
from sa_jax.pruning import allocation, moments
from sa_jax.pruning import linear as reconstruction
from sa_jax.pruning.moments import Moments
from sa_jax.reports import page
from sa_jax.reports.layers import FIELDS, render_layers
from sa_jax.types import InputError

# Of one draw and one input, on one core of an Intel Xeon.
SECONDS_PER_ELEMENT = 3.7e-9


class Progress(NamedTuple):
    """What is told after each layer: how many of how many are done, and its row."""

    done: int
    total: int
    row: dict[str, Any]


def prune_layers(
    config: LayersConfig,
    workdir: Path,
    operative_config: str = "",
    on_progress: Callable[[Progress], None] = lambda progress: None,
    on_message: Callable[[str], None] = lambda message: None,
) -> list[dict[str, Any]]:
    """Prunes the layers that `workdir` does not hold yet, and writes the pruned model, its masks and a report.

    Args:
      config: what is pruned.
      workdir: made if missing. Gets a file per layer in `layers/`, and, when all are done, pruned.safetensors,
        masks.safetensors, layers.csv, report.html and operative.gin.
      operative_config: text of `operative.gin`.
      on_progress: called after each layer.
      on_message: called with what a user should know.

    Returns:
      One row per layer, with the names of `FIELDS`.

    Raises:
      InputError: bad files or settings, or a workdir that cannot be used.
    """
    weights_path = datasets.data_file(config.weights)
    arrays = read_arrays(weights_path)
    keys = _weight_keys(arrays, weights_path)
    record = _inputs_of(config)
    dense = moments = record(arrays, None)
    names = _chosen(config, keys, moments)
    weights = {name: _outputs_first(keys[name], arrays[keys[name]]) for name in names}
    wanted = _patterns(config, weights, moments)
    on_message(_forecast(config, weights))
    workdirs.make(workdir / "layers")
    with workdirs.only_one(workdir):
        found, masks, rows = dict(arrays), {}, []
        settings = _digest(config)
        stages = _stages(names, moments) if config.sequential else [names]
        for stage in stages:
            paths = {name: workdir / "layers" / f"{_file_name(name)}.npz" for name in stage}
            saved = {name: _saved(paths[name], f"{settings} {name} {wanted[name]}") for name in stage}
            if config.sequential and stage is not stages[0] and not all(saved.values()):
                moments = record(found, stage, arrays)
            for name in stage:
                result = saved[name]
                if result is None:
                    # By its name, so that which others are pruned changes nothing.
                    key = jax.random.fold_in(jax.random.key(config.seed), zlib.crc32(name.encode()))
                    seen = moments[name], jnp.asarray(dense[name].gram, jnp.float32)
                    row, mask, moved = _prune(config, key, name, weights[name], *seen, wanted[name])
                    if row["deficient"]:
                        on_message(
                            f"{name}: {row['deficient']} of {row['inputs']} inputs are mixtures of others "
                            "as far as these samples tell; more samples would tell more"
                        )
                    result = {"mask": np.packbits(mask), "row": _text(json.dumps(row))}
                    result |= {} if moved is None else {"weight": moved}
                    digest = {"digest": _text(f"{settings} {name} {wanted[name]}")}
                    workdirs.write_file(paths[name], npz_bytes(result | digest))
                shape = weights[name].shape
                mask = np.unpackbits(result["mask"], count=weights[name].size).astype(bool).reshape(shape)
                found[keys[name]], masks[keys[name]] = _pruned(
                    keys[name], arrays[keys[name]], mask, result.get("weight")
                )
                rows.append(json.loads(bytes(result["row"])))
                on_progress(Progress(len(rows), len(names), rows[-1]))
        workdirs.write_file(workdir / "pruned.safetensors", safetensors.numpy.save(_contiguous(found)))
        workdirs.write_file(workdir / "masks.safetensors", safetensors.numpy.save(_contiguous(masks)))
        workdirs.write_file(workdir / "layers.csv", page.table_csv(rows, FIELDS))
        workdirs.write_file(workdir / "operative.gin", operative_config)
        workdirs.write_file(workdir / "report.html", render_layers(rows, asdict(config)))
    return rows


def _prune(
    config, key, name, weight, moments, dense_gram, pattern
) -> tuple[dict[str, Any], np.ndarray, np.ndarray | None]:
    """Prunes one layer: its row, its mask, and its weights where they were moved."""
    start = time.perf_counter()
    try:
        reconstruction.check_layer(weight, moments.gram)
    except InputError as error:
        raise InputError(f"{name}: {error}") from None
    gram = jnp.asarray(moments.gram, jnp.float32)
    deficient = _deficient(np.asarray(gram))
    damped, dense_correction = (
        reconstruction.damped(gram, config.damping),
        moments.dense_correction(moments, weight),
    )
    mask = reconstruction.prune_linear_sharded(key, weight, damped, pattern, config.sweeps, dense_correction)
    damping = max(config.damping, 1e-6)
    moved = reconstruction.refit(weight, gram, mask, damping, dense_correction) if config.refit else None

    def lost(pruned):
        return float(reconstruction.layer_error(weight, gram, pruned, dense_correction, dense_gram))

    def lost_by(mask):
        return lost(jnp.where(mask, weight, 0.0))

    annealed_error = lost_by(mask)
    seconds = time.perf_counter() - start
    row = {
        "layer": name,
        "outputs": weight.shape[0],
        "inputs": weight.shape[1],
        "pattern": pattern,
        "kept": int(mask.sum()),
        "total": weight.size,
        "samples": None if np.isnan(moments.count) else int(moments.count),
        "magnitude_error": lost_by(linear.magnitude(weight, pattern)),
        "wanda_error": lost_by(linear.wanda(weight, gram, pattern)),
        "annealed_error": annealed_error,
        "refit_error": None if moved is None else lost(moved),
        "seconds": round(seconds, 3),
        "deficient": deficient,
    }
    return row, np.asarray(mask), None if moved is None else np.asarray(moved)


def _inputs_of(config: LayersConfig) -> Callable[..., dict[str, Moments]]:
    """How the moments of layers' inputs are found: `(arrays, layers or None for all, dense arrays or None)`."""
    if config.grams is not None:
        path = datasets.data_file(config.grams)
        grams = read_arrays(path)
        known = {
            name.removesuffix(".weight"): Moments(cast(jax.Array, gram), jnp.zeros(len(gram)), jnp.float32("nan"))
            for name, gram in grams.items()
        }
        return lambda arrays, layers, dense=None: known
    assert config.forward is not None and config.inputs is not None
    forward = _function(config.forward)
    path = datasets.data_file(config.inputs)
    arguments = read_arrays(path)
    lengths = {len(array) if array.ndim else 0 for array in arguments.values()}
    if len(lengths) != 1 or 0 in lengths:
        raise InputError(f"{path}: its arrays must all hold equally many samples, [samples, ...]")
    (length,) = lengths

    def batches() -> Iterator[dict[str, np.ndarray]]:
        for first in range(0, length, config.batch_size):
            yield {name: array[first : first + config.batch_size] for name, array in arguments.items()}

    def record(arrays, layers, dense=None):
        params, beside = (None if some is None else jax.tree.map(jnp.asarray, some) for some in (arrays, dense))
        try:
            return moments.collect_recorded(forward, params, batches(), layers, beside)
        except (KeyError, TypeError, ValueError) as error:
            if isinstance(error, InputError):
                raise
            said = str(error).partition("\n")[0]
            raise InputError(f"{config.forward} failed on {path}: {type(error).__name__}: {said}") from error

    return record


def _function(place: str) -> Callable[..., Any]:
    module, _, name = place.partition(":")
    try:
        found = getattr(importlib.import_module(module), name)
    except (ImportError, AttributeError, ValueError) as error:
        raise InputError(
            f"forward = {place!r}: {error}; it must be 'module:function' of a module that Python finds"
        ) from None
    if not callable(found):
        raise InputError(f"forward = {place!r} is no function")
    return found


def _weight_keys(arrays: Mapping[str, np.ndarray], path: Path) -> dict[str, str]:
    """The array of each layer, by the layer's name."""
    keys: dict[str, str] = {}
    for key, array in arrays.items():
        name, kind = key[: -len("weight") - 1], key[-len("weight") :]
        if array.ndim == 2 and kind in ("weight", "kernel") and name and key[-len("weight") - 1] in "./":
            if name in keys:
                raise InputError(f"{path}: layer {name!r} has two weights, {keys[name]} and {key}")
            keys[name] = key
    if not keys:
        raise InputError(f"{path} holds no matrix LAYER.weight or LAYER/kernel; it holds {_some(arrays)}")
    return keys


def _chosen(config: LayersConfig, keys: Mapping[str, str], moments: Mapping[str, Moments]) -> list[str]:
    """The layers to be pruned, in the order their inputs were shown."""
    if config.layers is None:
        if not (names := [name for name in moments if name in keys]):
            raise InputError(f"no layer's inputs are known: weights of {_some(keys)}, inputs of {_some(moments)}")
        return names
    for known, what in ((keys, "weight"), (moments, "inputs")):
        for name in config.layers:
            if name not in known:
                close = difflib.get_close_matches(str(name), known, 1)
                hint = f"did you mean {close[0]}?" if close else f"known: {_some(known)}"
                raise InputError(f"layers: the {what} of {name!r} cannot be found; {hint}")
    return [name for name in moments if name in config.layers]


def _some(names: Mapping[str, Any]) -> str:
    return ", ".join(list(names)[:5]) + (f" and {len(names) - 5} more" if len(names) > 5 else "")


def _patterns(
    config: LayersConfig, weights: Mapping[str, np.ndarray], moments: Mapping[str, Moments]
) -> dict[str, float | str]:
    """The pattern of each layer, checked before the first is pruned."""
    wanted: dict[str, float | str] = dict.fromkeys(weights, config.pattern)
    for name, weight in weights.items():
        if moments[name].gram.shape != (weight.shape[1],) * 2:
            shape = list(moments[name].gram.shape)
            raise InputError(
                f"{name}: the Gram matrix must be {[weight.shape[1]] * 2} for its weight, not {shape}"
            )
        try:
            patterns.parse(config.pattern).units((weight.shape[0], weight.shape[1]))
        except InputError as error:
            raise InputError(f"{name}: {error}") from None
    if config.allocation == "by_error":
        grams = {name: jnp.asarray(moments[name].gram) for name in weights}
        density = patterns.parse(config.pattern).density
        assert density is not None
        wanted |= allocation.allocate(
            {name: jnp.asarray(weight) for name, weight in weights.items()}, grams, density
        )
    return wanted


def _stages(names: Sequence[str], moments: Mapping[str, Moments]) -> list[list[str]]:
    """Layers that see the very same inputs are pruned side by side."""
    stages: list[list[str]] = []
    for name in names:
        if stages and moments[stages[-1][0]].gram is moments[name].gram:
            stages[-1].append(name)
        else:
            stages.append([name])
    return stages


def _forecast(config: LayersConfig, weights: Mapping[str, np.ndarray]) -> str:
    """What the run will take, before it starts."""
    columns = {name: patterns.parse(config.pattern).units(weight.shape) for name, weight in weights.items()}
    seconds = sum(rows * config.sweeps * size * size for rows, size in columns.values()) * SECONDS_PER_ELEMENT
    largest = max(weight.shape[1] for weight in weights.values())
    grams = 4 * sum(weight.shape[1] ** 2 for weight in weights.values())
    return (
        f"{len(weights)} layers, {sum(weight.size for weight in weights.values()):,} weights; about "
        f"{max(seconds / 60, 0.1):,.1f} minutes of one core; Gram matrices up to {grams / 2**20:,.0f} MiB, "
        f"the largest {4 * largest**2 / 2**20:,.1f} MiB"
    )


def _deficient(gram: np.ndarray) -> int:
    """How many inputs are mixtures of others, up to the rounding of float32, by a pivoted Cholesky factor."""
    least = float(np.diag(gram).max(initial=0)) * len(gram) * float(np.finfo(np.float32).eps)
    gram = gram.astype(np.float64)
    (factor,) = scipy.linalg.get_lapack_funcs(("pstrf",), (gram,))
    _, _, rank, _ = factor(gram, tol=least)
    return len(gram) - int(rank)


def _outputs_first(key: str, array: np.ndarray) -> np.ndarray:
    return np.asarray(array.T if key.endswith("kernel") else array).astype(np.float32)


def _pruned(
    key: str, array: np.ndarray, mask: np.ndarray, moved: np.ndarray | None
) -> tuple[np.ndarray, np.ndarray]:
    """A layer's array with zeros, in its own type and layout, and its mask in that layout."""
    if key.endswith("kernel"):
        mask, moved = mask.T, None if moved is None else moved.T
    kept = array if moved is None else moved.astype(array.dtype)
    return np.where(mask, kept, np.zeros((), array.dtype)), mask


def _contiguous(arrays: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    return {name: np.ascontiguousarray(array) for name, array in arrays.items()}


def _file_name(layer: str) -> str:
    """A layer's name as that of a file, which no other layer's becomes."""
    plain = "".join(letter if letter.isalnum() or letter in "._-" else "-" for letter in layer)
    return plain if plain == layer else f"{plain}-{hashlib.sha256(layer.encode()).hexdigest()[:8]}"


def _digest(config: LayersConfig) -> str:
    """Of all that a layer's result depends on."""
    told = asdict(config) | {"layers": None, "jax": importlib.metadata.version("jax")}
    if config.sequential:
        told["layers"] = None if config.layers is None else list(config.layers)
    digest = hashlib.sha256(json.dumps(told, sort_keys=True).encode())
    for name in (config.weights, config.grams, config.inputs):
        if name is not None:
            with datasets.data_file(name).open("rb") as file:
                digest.update(hashlib.file_digest(file, "sha256").digest())
    return digest.hexdigest()[:16]


def _saved(path: Path, digest: str) -> dict[str, np.ndarray] | None:
    """A layer's earlier result, where it is there, whole, and of the same settings."""
    if not path.is_file():
        return None
    try:
        saved = read_npz(path)
    except InputError:
        return None
    return saved if bytes(saved.get("digest", _text(""))) == digest.encode() else None


def _text(text: str) -> np.ndarray:
    return np.frombuffer(text.encode(), np.uint8)
