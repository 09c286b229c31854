"""The linear layers of a whole pretrained model, pruned one by one: the host of `sa-jax layers`."""

import difflib
import hashlib
import html
import importlib
import importlib.metadata
import json
import time
import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, NamedTuple, cast

import jax
import jax.numpy as jnp
import numpy as np
import safetensors.numpy
import scipy.linalg

from sa_jax import allocation, charts, data, inputs, page, patterns, reconstruction, workdirs
from sa_jax.baselines import layerwise
from sa_jax.inputs import Moments
from sa_jax.npz import npz_bytes, read_npz
from sa_jax.types import InputError, is_number
from sa_jax.weights import read_arrays

ALLOCATIONS = ("uniform", "by_error")
FIELDS = (
    "layer",
    "outputs",
    "inputs",
    "pattern",
    "kept",
    "total",
    "samples",
    "magnitude_error",
    "wanda_error",
    "annealed_error",
    "refit_error",
    "seconds",
)
# Of one draw and one input, on one core of an Intel Xeon.
SECONDS_PER_ELEMENT = 3.7e-9


@dataclass(frozen=True)
class LayersConfig:
    """Which layers of which model are pruned, and how.

    Attributes:
      weights: a .safetensors, .npz or PyTorch file with arrays LAYER.weight, `[outputs, inputs]` as in PyTorch, or
        LAYER/kernel, `[inputs, outputs]` as in Flax; other arrays stay as they are.
      grams: a .safetensors or .npz with the Gram matrix of each layer's inputs, float `[inputs, inputs]`, by
        layer; None where `forward` and `inputs` are given.
      forward: 'module:function', which shows each layer's inputs, see `inputs.collect`.
      inputs: a .safetensors or .npz with the other arguments of `forward` by name, each `[samples, ...]`.
      batch_size: samples of a call of `forward`.
      layers: names; None for all whose inputs are known.
      pattern: what may stay of each, see `patterns.parse`.
      allocation: 'uniform', or 'by_error' for densities by layer, see `allocation.allocate`.
      sequential: whether each layer sees its pruned predecessors, and is to give what it gave in the dense
        network, which takes `forward`; else it sees the dense network.
      sweeps: see `reconstruction.prune_linear`.
      damping: added to the diagonal of each Gram matrix, as a share of its mean.
      refit: whether the weights that stay are moved, see `reconstruction.refit`.
      seed: of everything random.
    """

    weights: str = ""
    grams: str | None = None
    forward: str | None = None
    inputs: str | None = None
    batch_size: int = 64
    layers: Sequence[str] | None = None
    pattern: float | str = 0.5
    allocation: str = "uniform"
    sequential: bool = False
    sweeps: float = 2.0
    damping: float = 0.01
    refit: bool = False
    seed: int = 0

    def __post_init__(self):
        if not isinstance(self.weights, str) or not self.weights:
            raise InputError(f"weights must name a file, not {self.weights!r}")
        if self.forward is None and self.inputs is None:
            if self.grams is None:
                raise InputError("what the layers see is missing: set grams, or forward and inputs")
            if self.sequential:
                raise InputError("sequential needs forward and inputs: grams are of the dense network")
        elif self.grams is not None or self.forward is None or self.inputs is None:
            raise InputError("set either grams, or both forward and inputs")
        for name in ("batch_size", "seed"):
            value, least = getattr(self, name), 1 if name == "batch_size" else 0
            if isinstance(value, bool) or not isinstance(value, int) or not least <= value < 2**32:
                raise InputError(f"{name} must be a whole number of at least {least}, not {value!r}")
        for name in ("sweeps", "damping"):
            value = getattr(self, name)
            if not is_number(value) or value < 0 or (name == "sweeps" and value == 0):
                wanted = "above 0" if name == "sweeps" else "of at least 0"
                raise InputError(f"{name} must be a number {wanted}, not {value!r}")
        for name in ("sequential", "refit"):
            if not isinstance(getattr(self, name), bool):
                raise InputError(f"{name} must be True or False, not {getattr(self, name)!r}")
        if self.allocation not in ALLOCATIONS:
            raise InputError(f"allocation must be one of {', '.join(ALLOCATIONS)}, not {self.allocation!r}")
        pattern = patterns.parse(self.pattern)
        if self.allocation == "by_error" and pattern != patterns.Pattern(density=pattern.density):
            raise InputError(f"allocation = 'by_error' chooses densities such as 0.5, not {self.pattern!r}")


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
    weights_path = data.data_file(config.weights)
    arrays = read_arrays(weights_path)
    keys = _weight_keys(arrays, weights_path)
    see = _inputs_of(config)
    dense = moments = see(arrays, None)
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
                moments = see(found, stage, arrays)
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
        workdirs.write_file(workdir / "report.html", render(config, rows))
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
    damped, inherited = reconstruction.damped(gram, config.damping), inputs.inherited(moments, weight)
    mask = reconstruction.prune_linear_sharded(key, weight, damped, pattern, config.sweeps, inherited)
    damping = max(config.damping, 1e-6)
    moved = reconstruction.refit(weight, gram, mask, damping, inherited) if config.refit else None

    def lost(pruned):
        return float(reconstruction.layer_error(weight, gram, pruned, inherited, dense_gram))

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
        "magnitude_error": lost_by(layerwise.magnitude(weight, pattern)),
        "wanda_error": lost_by(layerwise.wanda(weight, gram, pattern)),
        "annealed_error": annealed_error,
        "refit_error": None if moved is None else lost(moved),
        "seconds": round(seconds, 3),
        "deficient": deficient,
    }
    return row, np.asarray(mask), None if moved is None else np.asarray(moved)


def _inputs_of(config: LayersConfig) -> Callable[..., dict[str, Moments]]:
    """How the moments of layers' inputs are found: `(arrays, layers or None for all, dense arrays or None)`."""
    if config.grams is not None:
        path = data.data_file(config.grams)
        grams = read_arrays(path)
        known = {
            name.removesuffix(".weight"): Moments(cast(jax.Array, gram), jnp.zeros(len(gram)), jnp.float32("nan"))
            for name, gram in grams.items()
        }
        return lambda arrays, layers, dense=None: known
    assert config.forward is not None and config.inputs is not None
    forward = _function(config.forward)
    path = data.data_file(config.inputs)
    arguments = read_arrays(path)
    lengths = {len(array) if array.ndim else 0 for array in arguments.values()}
    if len(lengths) != 1 or 0 in lengths:
        raise InputError(f"{path}: its arrays must all hold equally many samples, [samples, ...]")
    (length,) = lengths

    def batches() -> Iterator[dict[str, np.ndarray]]:
        for first in range(0, length, config.batch_size):
            yield {name: array[first : first + config.batch_size] for name, array in arguments.items()}

    def see(arrays, layers, dense=None):
        params, beside = (None if some is None else jax.tree.map(jnp.asarray, some) for some in (arrays, dense))
        try:
            return inputs.collect(forward, params, batches(), layers, beside)
        except (KeyError, TypeError, ValueError) as error:
            if isinstance(error, InputError):
                raise
            said = str(error).partition("\n")[0]
            raise InputError(f"{config.forward} failed on {path}: {type(error).__name__}: {said}") from error

    return see


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
            with data.data_file(name).open("rb") as file:
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


def render(config: LayersConfig, rows: Sequence[Mapping[str, Any]]) -> str:
    """The page: how much of each layer's output is lost, by annealing, Wanda and magnitude."""
    kept, total = (sum(row[name] for row in rows) for name in ("kept", "total"))
    columns = {"magnitude": "magnitude_error", "Wanda": "wanda_error", "annealed": "annealed_error"}
    columns |= {"annealed and refitted": "refit_error"} if config.refit else {}
    means = {label: float(np.mean([row[name] for row in rows])) for label, name in columns.items()}
    lost = ", ".join(f"{label} {100 * mean:.2g} %" for label, mean in means.items())
    heading = f"{page.format_percent(kept / total)} of {total:,} weights kept in {len(rows)} linear layers"
    seen = "its pruned predecessors" if config.sequential else "the dense network"
    about = (
        f"Pattern {config.pattern}, densities {config.allocation.replace('_', ' ')}, each layer seeing {seen}. "
        f"Squared error of a layer's outputs over their square, mean over the layers: {lost}. Weights that stay "
        f"are {'moved in the last column only' if config.refit else 'not moved'}."
    )
    lines = (
        page.row_html(
            row["layer"],
            f"{row['outputs']} x {row['inputs']}",
            page.format_percent(row["kept"] / row["total"]),
            *(f"{100 * row[name]:.2f} %" for name in columns.values()),
            f"{row['seconds']:.1f}",
        )
        for row in rows
    )
    table = page.numbers_html("Each layer", ("layer", "shape", "kept", *columns, "s"), lines)
    table += page.csv_link("layers.csv", page.table_csv(rows, FIELDS))
    chart = f'<div class="columns">{_chart(rows, columns)}</div>'
    sections = [
        f"<section><h1>{heading}</h1><p>{html.escape(about)}</p>{chart}</section>",
        f"<section><h2>Each layer</h2>{table}</section>",
    ]
    return page.page_html(heading, sections)


def _chart(rows: Sequence[Mapping[str, Any]], columns: Mapping[str, str]) -> str:
    import matplotlib
    from matplotlib.ticker import MaxNLocator

    with matplotlib.rc_context(page.CHARTS):
        figure = page.new_figure(2.6)
        axes = figure.subplots()
        colors = {"magnitude": page.INK, "Wanda": page.SECOND}
        for label, name in columns.items():
            style = "--" if label == "annealed and refitted" else "-"
            values = [max(100 * row[name], 1e-4) for row in rows]
            color = colors.get(label, page.ACCENT)
            axes.plot(range(1, len(rows) + 1), values, style, marker="o", ms=3, lw=1, color=color, label=label)
        axes.set(xlabel="layer", ylabel="output lost, %")
        charts.put_ticks(axes.yaxis, charts.log_scale(axes, "y"), lambda value: f"{value:g}")
        axes.xaxis.set_major_locator(MaxNLocator("auto", integer=True))
        axes.legend(frameon=False, fontsize=9, loc="lower left", bbox_to_anchor=(0, 1), ncols=2)
        page.strip_axes(axes)
        axes.grid(alpha=0.2)
    described = "How much of each layer's output is lost, by method"
    return page.figure_html("layers", figure, described, "Share of each layer's squared output that is lost.")
