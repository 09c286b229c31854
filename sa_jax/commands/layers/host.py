"""Prunes the linear layers of a whole pretrained model in files, one by one: the host of `sa-jax layers`."""

import difflib
import hashlib
import importlib
import importlib.metadata
import json
import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any, NamedTuple, cast

import jax
import jax.numpy as jnp
import numpy as np
import scipy.linalg

from sa_jax.baselines import linear
from sa_jax.commands.layers.settings import LayersConfig, parse
from sa_jax.commands.messages import first_line
from sa_jax.files import datasets, gguf_files, gguf_models, workdirs
from sa_jax.files.array_files import SUFFIXES, array_bytes, read_arrays, read_metadata, refuse_gguf
from sa_jax.files.npz import npz_bytes, read_npz
from sa_jax.networks import patterns
from sa_jax.networks.patterns import Channels, Kernels, Pattern, Unit
from sa_jax.pruning import convolutions
from sa_jax.pruning.allocation import allocate
from sa_jax.pruning.gram import check_layer, damped, layer_error
from sa_jax.pruning.layers import layer_key
from sa_jax.pruning.linear import prune_linear_sharded
from sa_jax.pruning.moments import Moments, collect_recorded, dense_correction
from sa_jax.pruning.refitting import refit_layer
from sa_jax.reports import page
from sa_jax.reports.layers import FIELDS, render_layers
from sa_jax.types import InputError

# Time of one draw, divided by the number of inputs, on one core of an Intel Xeon.
SECONDS_PER_ELEMENT = 3.7e-9
GGUF = ".gguf"


class Model(NamedTuple):
    """What `layers.weights` holds.

    Attributes:
      path: the file.
      arrays: its arrays by name; those of a GGUF file by the names of transformers.
      metadata: the text that goes into pruned.safetensors beside the arrays.
      config: what transformers keeps in config.json, for the model of a GGUF file; else None.
    """

    path: Path
    arrays: dict[str, np.ndarray]
    metadata: dict[str, str]
    config: dict[str, Any] | None = None


class Progress(NamedTuple):
    """What is reported after each layer: the number of finished layers, the number of all layers, and the row."""

    done: int
    total: int
    row: dict[str, Any]


def prune_model_files(
    config: LayersConfig,
    workdir: Path,
    operative_config: str = "",
    on_progress: Callable[[Progress], None] = lambda progress: None,
    on_message: Callable[[str], None] = lambda message: None,
) -> list[dict[str, Any]]:
    """Prunes the layers that `workdir` does not hold yet; writes the pruned model, its masks and a report.

    Args:
      config: the settings.
      workdir: created if it does not exist. Gets a file per layer in `layers/`, and, when all layers are finished,
        pruned.safetensors, masks.safetensors, layers.csv, report.html and operative.gin; for weights in a GGUF
        file, config.json too.
      operative_config: text of `operative.gin`.
      on_progress: called after each layer.
      on_message: called with messages for the user.

    Returns:
      One row per layer, with the names of `FIELDS`.

    Raises:
      InputError: bad files or settings, or a workdir that cannot be used.
    """
    model = _model(config.weights)
    arrays, keys = model.arrays, _weight_keys(model.arrays, model.path)
    moments_of = _moments_of(config)
    dense = moments = moments_of(arrays, None)
    names = _chosen(config, keys, moments)
    weights = {name: _outputs_first(keys[name], arrays[keys[name]]) for name in names}
    wanted = _patterns(config, weights, moments)
    on_message(_forecast(config, weights, moments))
    with workdirs.writing(workdir, on_message) as at_end:
        at_end.callback(workdirs.unmake, workdirs.make(workdir / "layers"))
        pruned, masks, rows = dict(arrays), {}, []
        settings = _digest(config)
        for stage in _stages(names, moments) if config.sequential else [names]:
            digests = {name: f"{settings} {name} {wanted[name]}" for name in stage}
            saved = {name: _saved(_path(workdir, name), digests[name]) for name in stage}
            if config.sequential and rows and not all(saved.values()):
                moments = moments_of(pruned, stage, arrays)
            for name in stage:
                result = saved[name]
                if result is None:
                    result = _prune(config, name, weights[name], moments[name], dense[name].gram, wanted[name])
                    path = _path(workdir, name)
                    workdirs.check_finite(path.name, result | json.loads(bytes(result["row"])))
                    workdirs.write_file(path, npz_bytes(result | {"digest": _text(digests[name])}))
                    _tell_of_inputs(json.loads(bytes(result["row"])), on_message)
                key, shape = keys[name], weights[name].shape
                mask = np.unpackbits(result["mask"], count=weights[name].size).astype(bool).reshape(shape)
                pruned[key], masks[key] = _pruned(key, arrays[key], mask, result.get("weight"))
                workdirs.check_finite("pruned.safetensors", {key: pruned[key]})
                rows.append(json.loads(bytes(result["row"])))
                on_progress(Progress(len(rows), len(names), rows[-1]))
        for path, content in ((workdir / "pruned.safetensors", pruned), (workdir / "masks.safetensors", masks)):
            workdirs.write_file(path, array_bytes(path, content, model.metadata if content is pruned else None))
        if model.config is not None:
            workdirs.write_file(workdir / "config.json", json.dumps(model.config, indent=2) + "\n")
        workdirs.write_file(workdir / "layers.csv", page.table_csv(rows, FIELDS))
        workdirs.write_file(workdir / "operative.gin", operative_config)
        workdirs.write_file(workdir / "report.html", render_layers(rows, asdict(config)))
    return rows


def _prune(
    config: LayersConfig, name: str, array: np.ndarray, moments: Moments, dense_gram: jax.Array, pattern: Pattern
) -> dict[str, np.ndarray]:
    """Prunes one layer: its mask in bits, its row as text, and its weights where they were refitted."""
    start = time.perf_counter()
    try:
        (check_layer if array.ndim == 2 else convolutions.check_convolution)(array, moments.gram)
    except InputError as error:
        raise InputError(f"{name}: {error}") from None
    weight, gram, dense_gram = (jnp.asarray(one, jnp.float32) for one in (array, moments.gram, dense_gram))
    outputs, inputs = _outputs_and_inputs(weight)
    dependent = sum(map(_num_dependent, np.asarray(gram).reshape(-1, inputs, inputs)))
    key, damping = layer_key(jax.random.key(config.seed), name), max(config.damping, 1e-6)
    if weight.ndim == 2:
        correction = dense_correction(moments, weight)
        mask = prune_linear_sharded(key, weight, damped(gram, config.damping), pattern, config.sweeps, correction)
        found = refit_layer(weight, gram, mask, damping, correction) if config.refit else None
        others = {"magnitude": linear.magnitude(weight, pattern), "wanda": linear.wanda(weight, gram, pattern)}
    else:
        matrices, grams = convolutions.check_convolution(weight, gram)
        correction = dense_correction(moments, matrices if gram.ndim == 3 else matrices[0])
        grams = jax.vmap(damped, (0, None))(grams, config.damping)
        mask = convolutions.prune_convolution(key, weight, grams, pattern, config.sweeps, correction)
        found = convolutions.refit_convolution(weight, gram, mask, damping, correction) if config.refit else None
        others = {
            name: convolutions.choose_mask(choose, weight, gram, pattern)
            for name, choose in (
                ("magnitude", lambda weight, _, pattern: linear.magnitude(weight, pattern)),
                ("wanda", linear.wanda),
            )
        }
    refitted = None if found is None else found.weight

    def error_of(pruned):
        measured = layer_error if weight.ndim == 2 else convolutions.error_of
        return float(measured(weight, gram, pruned, correction, dense_gram))

    def error_of_mask(mask):
        return error_of(jnp.where(mask, weight, 0.0))

    annealed_error = error_of_mask(mask)
    seconds = time.perf_counter() - start
    row = {
        "layer": name,
        "outputs": outputs,
        "inputs": inputs,
        "pattern": str(pattern),
        "kept": int(mask.sum()),
        "total": weight.size,
        "samples": None if np.isnan(moments.count) else int(moments.count),
        "magnitude_error": error_of_mask(others["magnitude"]),
        "wanda_error": error_of_mask(others["wanda"]),
        "annealed_error": annealed_error,
        "refit_error": None if refitted is None else error_of(refitted),
        "seconds": round(seconds, 3),
        "deficient": dependent,
        "not_refitted": 0 if found is None else int((~found.solved).sum()),
    }
    result = {"mask": np.packbits(np.asarray(mask)), "row": _text(json.dumps(row))}
    return result if refitted is None else result | {"weight": np.asarray(refitted)}


def _tell_of_inputs(row: Mapping[str, Any], on_message: Callable[[str], None]) -> None:
    """Tells the user what the inputs of a layer were too few for."""
    if row["deficient"]:
        on_message(
            f"{row['layer']}: in these samples {row['deficient']} of {row['inputs']} inputs are linear "
            "combinations of others; use more samples"
        )
    if row["not_refitted"]:
        on_message(
            f"{row['layer']}: {row['not_refitted']} of {row['outputs']} outputs were not refitted, because their "
            "inputs are 0 or too few; use more samples or a higher layers.damping"
        )


def _model(name: str) -> Model:
    """The file `layers.weights`."""
    path = datasets.data_file(name)
    if path.suffix == GGUF:
        content = gguf_files.read(path)
        config = gguf_models.hugging_face_config(content)
        return Model(path, dict(gguf_models.hugging_face_arrays(content)), {"format": "pt"}, config)
    _, arrays = _arrays("weights", name, GGUF)
    return Model(path, arrays, read_metadata(path))


def _arrays(setting: str, name: str, *more: str) -> tuple[Path, dict[str, np.ndarray]]:
    """The file that a setting names, and its arrays."""
    path = datasets.data_file(name)
    refuse_gguf(path)
    if path.suffix not in SUFFIXES:
        *others, last = *SUFFIXES, *more
        raise InputError(f"layers.{setting} must be a file {', '.join(others)} or {last}, not {path}")
    return path, read_arrays(path)


def _moments_of(config: LayersConfig) -> Callable[..., dict[str, Moments]]:
    """A function `(arrays, layers or None for all, dense arrays or None)` that collects the layers' moments."""
    if config.grams is not None:
        _, grams = _arrays("grams", config.grams)
        known = {
            name.removesuffix(".weight"): Moments(
                cast(jax.Array, gram), jnp.zeros(gram.shape[:-1]), jnp.float32("nan")
            )
            for name, gram in grams.items()
        }
        return lambda arrays, layers, dense=None: known
    assert config.forward is not None and config.inputs is not None
    forward = _function(config.forward)
    path, arguments = _arrays("inputs", config.inputs)
    lengths = {len(array) if array.ndim else 0 for array in arguments.values()}
    if len(lengths) != 1 or 0 in lengths:
        raise InputError(f"{path}: its arrays must all have the same number of samples, [samples, ...]")
    (length,) = lengths

    def batches() -> Iterator[dict[str, np.ndarray]]:
        for first in range(0, length, config.batch_size):
            yield {name: array[first : first + config.batch_size] for name, array in arguments.items()}

    def collect(arrays, layers, dense=None):
        params, dense_params = (
            None if some is None else jax.tree.map(jnp.asarray, some) for some in (arrays, dense)
        )
        try:
            return collect_recorded(forward, params, batches(), layers, dense_params)
        except (KeyError, TypeError, ValueError) as error:
            if isinstance(error, InputError):
                raise
            what = f"{type(error).__name__}: {first_line(error)}"
            raise InputError(f"{config.forward} failed on {path}: {what}") from error

    return collect


def _function(place: str) -> Callable[..., Any]:
    module, _, name = place.partition(":")
    try:
        found = getattr(importlib.import_module(module), name)
    except (ImportError, AttributeError, ValueError) as error:
        raise InputError(
            f"layers.forward = {place!r}: {first_line(error)}; it must be 'module:function', of a module "
            "that Python can import"
        ) from None
    if not callable(found):
        raise InputError(f"layers.forward = {place!r} is not a function")
    return found


def _weight_keys(arrays: Mapping[str, np.ndarray], path: Path) -> dict[str, str]:
    """The array of each layer, by the layer's name."""
    keys: dict[str, str] = {}
    for key, array in arrays.items():
        name, kind = key[: -len("weight") - 1], key[-len("weight") :]
        if array.ndim >= 2 and kind in ("weight", "kernel") and name and key[-len("weight") - 1] in "./":
            if name in keys:
                raise InputError(f"{path}: layer {name!r} has two weights, {keys[name]} and {key}")
            keys[name] = key
    if not keys:
        raise InputError(
            f"{path} holds no matrix or convolution LAYER.weight or LAYER/kernel; it holds {_some(arrays)}"
        )
    return keys


def _chosen(config: LayersConfig, keys: Mapping[str, str], moments: Mapping[str, Moments]) -> list[str]:
    """The layers to be pruned, in the order in which their inputs were recorded."""
    if config.layers is None:
        if not (names := [name for name in moments if name in keys]):
            raise InputError(
                f"no layer occurs in both files: weights has {_some(keys)}, inputs has {_some(moments)}"
            )
        return names
    for known, what in ((keys, "weight"), (moments, "inputs")):
        for name in config.layers:
            if name not in known:
                close = difflib.get_close_matches(str(name), known, 1)
                hint = f"did you mean {close[0]}?" if close else f"known: {_some(known)}"
                raise InputError(f"layers.layers: the {what} of {name!r} cannot be found; {hint}")
    return [name for name in moments if name in config.layers]


def _some(names: Mapping[str, Any]) -> str:
    return ", ".join(list(names)[:5]) + (f" and {len(names) - 5} more" if len(names) > 5 else "")


def _patterns(
    config: LayersConfig, weights: Mapping[str, np.ndarray], moments: Mapping[str, Moments]
) -> dict[str, Pattern]:
    """The pattern of each layer, checked before the first layer is pruned."""
    pattern = parse(config.pattern)
    for name, weight in weights.items():
        gram = moments[name].gram
        outputs, inputs = _outputs_and_inputs(weight)
        if gram.ndim not in (2, min(weight.ndim, 3)) or gram.shape[-2:] != (inputs, inputs):
            shape = f"{list(gram.shape)}{_other_layout(weight, gram)}"
            raise InputError(f"{name}: the Gram matrix must be {[inputs] * 2} for its weight, not {shape}")
        groups = len(gram) if gram.ndim == 3 else 1
        columns = weight.shape[-2] if weight.ndim > 2 and isinstance(pattern, Kernels | Channels) else inputs
        try:
            patterns.rule_of(pattern).blocks((outputs // groups, columns))
        except InputError as error:
            raise InputError(f"{name}: {error}") from None
    if config.allocation == "uniform":
        return dict.fromkeys(weights, pattern)
    assert isinstance(pattern, Unit)
    grams = {name: jnp.asarray(moments[name].gram) for name in weights}
    if grouped := [name for name, gram in grams.items() if gram.ndim == 3]:
        raise InputError(
            f"layers.allocation = 'by_error' is not for convolutions with groups, such as {grouped[0]}: name the "
            "other layers in layers.layers"
        )
    arrays = {
        name: jnp.asarray(weight) if weight.ndim == 2 else convolutions.as_matrices(jnp.asarray(weight))[0]
        for name, weight in weights.items()
    }
    return {name: Unit(density) for name, density in allocate(arrays, grams, pattern.density).items()}


def _stages(names: Sequence[str], moments: Mapping[str, Moments]) -> list[list[str]]:
    """The layers in groups with the very same inputs; the layers of a group are pruned on the same moments."""
    stages: list[list[str]] = []
    for name in names:
        if stages and moments[stages[-1][0]].gram is moments[name].gram:
            stages[-1].append(name)
        else:
            stages.append([name])
    return stages


def _forecast(config: LayersConfig, weights: Mapping[str, np.ndarray], moments: Mapping[str, Moments]) -> str:
    """The time and memory that the run will need."""
    rule = patterns.rule_of(parse(config.pattern))
    places = [1 if weight.ndim == 2 else math.prod(weight.shape[:-2]) for weight in weights.values()]
    by_channel = isinstance(parse(config.pattern), Kernels | Channels)
    draws = 0.0
    for weight, place in zip(weights.values(), places, strict=True):
        outputs, inputs = _outputs_and_inputs(weight)
        rows, columns = rule.blocks((outputs, inputs // place if by_channel else inputs))
        draws += rows * config.sweeps * columns * columns
    minutes = max(draws * SECONDS_PER_ELEMENT / 60, 0.1)
    largest = max(_outputs_and_inputs(weight)[1] for weight in weights.values())
    grams = sum(gram.nbytes for gram in {id(moments[name].gram): moments[name].gram for name in weights}.values())
    return (
        f"{len(weights)} layers, {sum(weight.size for weight in weights.values()):,} weights; about "
        f"{minutes:,.1f} minutes on one core; Gram matrices {grams / 2**20:,.0f} MiB, "
        f"the largest {4 * largest**2 / 2**20:,.1f} MiB"
    )


def _num_dependent(gram: np.ndarray) -> int:
    """The number of inputs that are linear combinations of others, up to the rounding of float32.

    By a pivoted Cholesky factor.
    """
    least = float(np.diag(gram).max(initial=0)) * len(gram) * float(np.finfo(np.float32).eps)
    gram = gram.astype(np.float64)
    (factor,) = scipy.linalg.get_lapack_funcs(("pstrf",), (gram,))
    _, _, rank, _ = factor(gram, tol=least)
    return len(gram) - int(rank)


def _outputs_first(key: str, array: np.ndarray) -> np.ndarray:
    """A weight as it is pruned: `[outputs, inputs]`; that of a convolution `[*sizes, channels, outputs]`."""
    if key.endswith("kernel"):
        found = array.T if array.ndim == 2 else array
    else:
        found = array if array.ndim == 2 else np.moveaxis(array, (0, 1), (-1, -2))
    return np.asarray(found).astype(np.float32)


def _outputs_and_inputs(weight: Any) -> tuple[int, int]:
    """The number of outputs, and of inputs of each output."""
    if weight.ndim == 2:
        return weight.shape
    return weight.shape[-1], math.prod(weight.shape[:-1])


def _other_layout(weight: np.ndarray, gram: Any) -> str:
    """What to say where the Gram matrix fits the weight of a convolution in the layout that it does not have."""
    by_torch = np.moveaxis(weight, (-1, -2), (0, 1)).shape
    if weight.ndim == 2 or gram.shape[-1] not in (math.prod(by_torch[:-1]), math.prod(weight.shape[1:])):
        return ""
    return "; LAYER.weight must be [outputs, channels, *sizes], and LAYER/kernel [*sizes, channels, outputs]"


def _pruned(
    key: str, array: np.ndarray, mask: np.ndarray, refitted: np.ndarray | None
) -> tuple[np.ndarray, np.ndarray]:
    """A layer's array with zeros, in its own type and layout, and its mask in that layout."""

    def in_layout(found: np.ndarray) -> np.ndarray:
        if key.endswith("kernel"):
            return found.T if array.ndim == 2 else found
        return found if array.ndim == 2 else np.moveaxis(found, (-1, -2), (0, 1))

    mask, refitted = in_layout(mask), None if refitted is None else in_layout(refitted)
    with np.errstate(over="ignore"):  # what the type cannot hold is refused before it is written
        values = array if refitted is None else refitted.astype(array.dtype)
    return np.where(mask, values, np.zeros((), array.dtype)), mask


def _path(workdir: Path, layer: str) -> Path:
    """The file of a layer's result; different layers have different files."""
    plain = "".join(letter if letter.isalnum() or letter in "._-" else "-" for letter in layer)
    name = plain if plain == layer else f"{plain}-{hashlib.sha256(layer.encode()).hexdigest()[:8]}"
    return workdir / "layers" / f"{name}.npz"


def _digest(config: LayersConfig) -> str:
    """A digest of everything that a layer's result depends on, but its name and its pattern."""
    inputs = asdict(config) | {"layers": None, "jax": importlib.metadata.version("jax")}
    if config.sequential:
        inputs["layers"] = None if config.layers is None else list(config.layers)
    digest = hashlib.sha256(json.dumps(inputs, sort_keys=True).encode())
    for name in (config.weights, config.grams, config.inputs):
        if name is not None:
            with datasets.data_file(name).open("rb") as file:
                digest.update(hashlib.file_digest(file, "sha256").digest())
    return digest.hexdigest()[:16]


def _saved(path: Path, digest: str) -> dict[str, np.ndarray] | None:
    """A layer's earlier result; None where it is missing, damaged, or of other settings."""
    if not path.is_file():
        return None
    try:
        saved = read_npz(path)
        workdirs.check_finite(path.name, saved)
    except InputError:
        return None
    return saved if bytes(saved.get("digest", _text(""))) == digest.encode() else None


def _text(text: str) -> np.ndarray:
    return np.frombuffer(text.encode(), np.uint8)
