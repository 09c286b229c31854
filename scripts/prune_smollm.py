"""Prunes the 210 linear layers of SmolLM2-135M-Instruct by several methods, and measures perplexities.

    python scripts/prune_smollm.py FOLDER --jobs=2   # tables in scripts/results/smollm.md; hours; resumes

FOLDER holds the model: see `smollm.py`, which also says on what texts it is calibrated and measured, and that
these are not C4 and WikiText-2. Where you have those, give them as files of plain text:

    python scripts/prune_smollm.py FOLDER --calibration=c4.txt --evaluation=wikitext2.txt   # tables in FOLDER

A perplexity is that of windows of 512 tokens without padding; each is seen alone, and its first token does not
count. Blocks are pruned in their order, each on the inputs that the pruned blocks before it make, as SparseGPT and
Wanda do. With `--dense_inputs` all methods have the very same Gram matrices, those of the dense network.

Each row of a weight keeps the same share, as in Wanda; SparseGPT shares among all rows of 128 columns, as it does.
The layer error is the squared error of a layer's outputs on its own inputs, relative to their square. The
embedding, which is the head too, is not pruned.
"""

import argparse
import functools
import hashlib
import json
import multiprocessing
import os
import resource
import statistics
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import llama
import numpy as np
import smollm

from sa_jax.baselines import linear, relaxed, swaps
from sa_jax.commands.bench import proposals
from sa_jax.commands.hardware import available_cores
from sa_jax.commands.layers.settings import parse
from sa_jax.files.npz import npz_bytes, read_npz
from sa_jax.networks.patterns import Pattern, Unit
from sa_jax.pruning import prune_linear, refit
from sa_jax.pruning.gram import damped, layer_error
from sa_jax.pruning.layers import layer_key
from sa_jax.pruning.moments import Moments, dense_correction

RESULTS = Path(__file__).resolve().parent / "results"
PATTERNS = ("unit:0.5", "unit:0.4", "unit:0.3", "2:4", "4:8")
SEEDS = (0, 1, 2)
# A draw within four or eight neighbours takes a quarter of the time of a draw within a row.
SWEEPS, SWEEPS_IN_GROUPS, DAMPING = 1.0, 4.0, 0.01
DENSE = "dense"


class Layer(NamedTuple):
    """What a method gets: a key, the weight, float32 `[outputs, inputs]`, its inputs' moments, the pattern."""

    key: jax.Array  # key []
    weight: jax.Array  # float32 [outputs, inputs]
    moments: Moments
    pattern: Pattern


class Method(NamedTuple):
    """A way to prune a layer.

    Attributes:
      label: its name in the tables.
      prune: returns the pruned weight, float32 `[outputs, inputs]`.
      moved: whether kept weights change.
      corrected: whether it aims at the outputs of the dense network, by `dense_correction`.
      seeds: the draws of calibration windows it is measured on.
    """

    label: str
    prune: Callable[[Layer], jax.Array]
    moved: bool = False
    corrected: bool = False
    seeds: Sequence[int] = SEEDS


class Cell(NamedTuple):
    """One measurement: the name of a method, the text of a pattern, and the seed of a calibration draw."""

    method: str
    pattern: str
    seed: int

    @property
    def file(self) -> str:
        """The name of its file."""
        return f"{self.method} {self.pattern.replace(':', '-')} {self.seed}.json"


def masked(choose: Callable[[Layer], jax.Array]) -> Callable[[Layer], jax.Array]:
    """Makes a method of a function that returns a mask; the weights stay as they are."""
    return lambda layer: jnp.where(choose(layer), layer.weight, 0.0)


def sparsegpt(layer: Layer) -> tuple[jax.Array, jax.Array]:
    """SparseGPT's mask and its weights."""
    share_or_groups = layer.pattern.density if isinstance(layer.pattern, Unit) else layer.pattern
    return linear.sparsegpt(layer.weight, layer.moments.gram, share_or_groups, DAMPING)


def annealed(layer: Layer) -> jax.Array:
    """The annealed mask of fixed weights."""
    sweeps = SWEEPS if isinstance(layer.pattern, Unit) else SWEEPS_IN_GROUPS
    correction = dense_correction(layer.moments, layer.weight)
    gram = damped(layer.moments.gram, DAMPING)
    return prune_linear(layer.key, layer.weight, gram, layer.pattern, sweeps, dense_correction=correction)


def refitted(layer: Layer) -> jax.Array:
    """The weights of the annealed mask, refitted."""
    correction = dense_correction(layer.moments, layer.weight)
    return refit(layer.weight, layer.moments.gram, annealed(layer), DAMPING, correction)


def of_layer(choose: Callable[[jax.Array, jax.Array, Pattern], Any]) -> Callable[[Layer], Any]:
    """Makes a function of a layer of one of its weight, the Gram matrix of its inputs, and the pattern."""
    return lambda layer: choose(layer.weight, layer.moments.gram, layer.pattern)


METHODS = {
    "magnitude": Method(
        "magnitude", masked(lambda layer: linear.magnitude(layer.weight, layer.pattern)), seeds=SEEDS[:1]
    ),
    "wanda": Method("Wanda", masked(of_layer(linear.wanda))),
    "ria": Method("RIA", masked(of_layer(linear.ria))),
    "dsnot": Method("DSnoT", masked(lambda layer: linear.dsnot(layer.weight, *layer.moments[:2], layer.pattern))),
    "sparsegpt_mask": Method("SparseGPT, mask alone", masked(lambda layer: sparsegpt(layer)[0])),
    "sparse_swaps": Method("SparseSwaps", masked(of_layer(swaps.sparse_swaps))),
    "sparse_fw": Method("SparseFW", masked(of_layer(relaxed.sparse_fw))),
    "anneal": Method("annealed", masked(annealed)),
    "sparsegpt": Method("SparseGPT, weights updated", lambda layer: sparsegpt(layer)[1], moved=True),
    "alps": Method("ALPS", lambda layer: of_layer(relaxed.alps)(layer)[1], moved=True),
    "anneal_refit": Method("annealed and refitted", refitted, moved=True),
    "anneal_refit_corrected": Method(
        "annealed and refitted to the dense network", refitted, moved=True, corrected=True, seeds=SEEDS[:1]
    ),
}


def all_cells() -> Iterator[Cell]:
    """Yields the cells of the tables, those of the first draw first."""
    yield Cell(DENSE, "unit:1", SEEDS[0])
    for seed in SEEDS:
        for pattern in PATTERNS:
            for name, method in METHODS.items():
                if seed in method.seeds:
                    yield Cell(name, pattern, seed)


def measure(
    model: smollm.Model, tokens: Mapping[str, np.ndarray], cell: Cell, dense_inputs: bool
) -> dict[str, Any]:
    """Returns the row of a cell: perplexities, errors of the layers, and the time.

    Args:
      model: the model.
      tokens: the tokens of the calibration text, int32 `[tokens]`, under the name `calibration`; and windows of
        each text to measure on, int32 `[windows, length]`.
      cell: what is measured.
      dense_inputs: whether all layers are pruned on the inputs of the dense network.
    """
    wall, spent, errors, kept = time.perf_counter(), 0.0, {}, [0, 0]
    pruned: dict[str, jax.Array] = {}

    def prune(name: str, weight: jax.Array, moments: Moments) -> jax.Array:
        nonlocal spent
        layer = Layer(layer_key(jax.random.key(cell.seed), name), weight, moments, parse(cell.pattern))
        jax.block_until_ready(layer)  # the moments are no part of the method's time
        start = time.process_time()
        found = jax.block_until_ready(METHODS[cell.method].prune(layer))
        spent += time.process_time() - start
        errors[name] = float(layer_error(weight, moments.gram, found))
        kept[0], kept[1] = kept[0] + int((found != 0).sum()), kept[1] + weight.size
        return found

    if cell.method != DENSE:
        windows = smollm.drawn_windows(tokens["calibration"], cell.seed, smollm.CALIBRATED, smollm.LENGTH)
        corrected = METHODS[cell.method].corrected and not dense_inputs
        pruned = llama.prune_blocks(model.config, model.params, windows, prune, not dense_inputs, corrected)
    params = {**model.params, **pruned}
    perplexities = {
        name: llama.perplexity(model.config, params, windows)
        for name, windows in tokens.items()
        if name != "calibration"
    }
    return cell._asdict() | {
        "perplexity": perplexities,
        "layer_error": statistics.mean(errors.values()) if errors else 0.0,
        "layer_errors": errors,
        "kept": kept[0] / kept[1] if kept[1] else 1.0,
        "cpu_seconds": round(spent, 1),
        "seconds": round(time.perf_counter() - wall, 1),
        "mebibytes": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024,
    }


_load = functools.cache(smollm.load)


def measure_into(folder: Path, cells: Path, dense_inputs: bool, cell: Cell) -> None:
    """Measures a cell and writes its file in `cells`, which holds the tokens; in a process of its own."""
    row = measure(_load(folder), read_npz(cells / "tokens.npz"), cell, dense_inputs)
    aside = cells / f".{cell.file}"
    aside.write_text(json.dumps(row))
    aside.replace(cells / cell.file)
    figures = ", ".join(f"{name} {value:.2f}" for name, value in row["perplexity"].items())
    print(f"{cell.method} {cell.pattern} seed {cell.seed}: {figures}, {row['seconds']:.0f} s", flush=True)


def tokens_for(folder: Path, calibration: Path | None, evaluation: Sequence[Path]) -> dict[str, np.ndarray]:
    """Returns the tokens that `measure` takes, of files, or of the texts of `smollm`."""
    tokenizer = llama.tokenizer_of(smollm.read(folder).metadata)
    others = [name for name in smollm.SOURCES if name != smollm.CALIBRATION]

    def tokens(text: str, name: str, windows: int) -> np.ndarray:
        found = smollm.tokens_of(tokenizer, text)
        if len(found) < windows * smollm.LENGTH:
            raise SystemExit(f"{name} has {len(found):,} tokens; at least {windows * smollm.LENGTH:,} are needed")
        return found

    def windows_of(text: str, name: str) -> np.ndarray:
        found = tokens(text, name, smollm.EVALUATED)
        return smollm.spread_windows(found, smollm.EVALUATED, smollm.LENGTH)

    first = smollm.text_of(smollm.CALIBRATION, folder) if calibration is None else calibration.read_text()
    texts = {path.stem: path.read_text() for path in evaluation} or {
        name: smollm.text_of(name, folder) for name in others
    }
    return {
        "calibration": tokens(first, "the calibration text", smollm.CALIBRATED),
        **{name: windows_of(text, name) for name, text in texts.items()},
    }


def tables(rows: Sequence[Mapping[str, Any]]) -> str:
    """Returns a table of perplexities for each text, and one of layer errors; the best means are in bold."""
    (dense,) = (row for row in rows if row["method"] == DENSE)
    parts = [
        table(rows, f"perplexity, {name}", lambda row, name=name: row["perplexity"][name], 2, value)
        for name, value in dense["perplexity"].items()
    ]
    return "\n\n".join([*parts, table(rows, "mean layer error", lambda row: row["layer_error"], 4)])


def caption(settings: Mapping[str, Any]) -> str:
    """Returns a sentence on the texts behind the tables."""
    others = ", ".join(name for name in settings["tokens"] if name != "calibration")
    length, seeds = settings["length"], ", ".join(map(str, SEEDS))
    return (
        f"Calibrated on {settings['calibrated']} windows of {length} tokens, drawn with the seeds {seeds} from "
        f"{settings['tokens']['calibration']:,} tokens; measured on {settings['evaluated']} windows of {length} "
        f"tokens of each other text: {others}. Means over the seeds, with the largest deviation."
    )


def table(
    rows: Sequence[Mapping[str, Any]],
    title: str,
    value_of: Callable[[Mapping[str, Any]], float],
    digits: int,
    dense: float | None = None,
) -> str:
    """Returns a table of means over the seeds, with the largest deviation; the best of its kind is in bold."""
    patterns = [parse(pattern) for pattern in PATTERNS]
    heads = [f"{1 - one.density:.0%} pruned" if isinstance(one, Unit) else str(one) for one in patterns]
    lines = ["| " + " | ".join([title, *heads, "CPU s"]) + " |", "|---" * (len(heads) + 2) + "|"]
    if dense is not None:
        lines.append(f"| dense | {dense:.{digits}f}" + " |" * (len(heads) + 1))
    for moved, kind in ((False, "weights as they were"), (True, "weights moved")):
        lines.append(f"| *{kind}* |" + " |" * (len(heads) + 1))
        methods = [name for name, method in METHODS.items() if method.moved == moved]
        values = {
            (name, pattern): [value_of(row) for row in rows if (row["method"], row["pattern"]) == (name, pattern)]
            for name in methods
            for pattern in PATTERNS
        }
        for name in methods:
            cells = []
            for pattern in PATTERNS:
                mean = statistics.mean(values[name, pattern])
                best = min(statistics.mean(values[other, pattern]) for other in methods)
                mark = "**" if mean == best else ""
                spread = max(abs(value - mean) for value in values[name, pattern])
                cells.append(f"{mark}{mean:.{digits}f}{mark} ±{spread:.{digits}f}")
            seconds = statistics.median(row["cpu_seconds"] for row in rows if row["method"] == name)
            lines.append(f"| {METHODS[name].label} | " + " | ".join([*cells, f"{seconds:.0f}"]) + " |")
    return "\n".join(lines)


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, metavar="FOLDER")
    parser.add_argument("--jobs", type=int, default=1, help="number of cells measured at once")
    parser.add_argument("--calibration", type=Path, metavar="FILE", help="a text to calibrate on")
    parser.add_argument(
        "--evaluation", type=Path, metavar="FILE", action="append", default=[], help="texts to measure"
    )
    parser.add_argument("--dense_inputs", action="store_true", help="the same Gram matrices for all methods")
    parser.add_argument("--cell", help="measure only this one, such as anneal,2:4,0")
    arguments = parser.parse_args()
    for path in filter(None, [arguments.calibration, *arguments.evaluation]):
        if not path.is_file():
            parser.error(f"there is no file {path}")
    if arguments.calibration in arguments.evaluation:
        parser.error(f"{arguments.calibration} is to calibrate on and to measure: it must not be both")
    tokens = tokens_for(arguments.folder, arguments.calibration, arguments.evaluation)
    settings = {
        "calibrated": smollm.CALIBRATED,
        "evaluated": smollm.EVALUATED,
        "length": smollm.LENGTH,
        "tokens": {name: int(array.size) for name, array in tokens.items()},
        "sweeps": SWEEPS,
        "sweeps_in_groups": SWEEPS_IN_GROUPS,
        "damping": DAMPING,
        "dense_inputs": arguments.dense_inputs,
    }
    digest = hashlib.sha256(json.dumps(settings).encode())
    for array in tokens.values():
        digest.update(np.ascontiguousarray(array).tobytes())
    cells = arguments.folder / "cells" / digest.hexdigest()[:8]
    cells.mkdir(parents=True, exist_ok=True)
    (cells / "tokens.npz").write_bytes(npz_bytes(tokens))
    wanted = list(all_cells())
    if arguments.cell is not None:
        method, pattern, seed = arguments.cell.split(",")
        wanted = [Cell(method, pattern, int(seed))]
    missing = [cell for cell in wanted if not (cells / cell.file).is_file()]
    # Of each process. On a busy machine the threads of OpenBLAS wait for each other: 200 times the CPU time.
    os.environ |= dict.fromkeys(("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS"), "1")
    os.environ["NPROC"] = str(max(available_cores() // arguments.jobs, 1))
    one = functools.partial(measure_into, arguments.folder, cells, arguments.dense_inputs)
    with ProcessPoolExecutor(arguments.jobs, multiprocessing.get_context("spawn")) as executor:
        for _ in executor.map(one, missing):
            pass
    if arguments.cell is not None:
        return
    rows = [json.loads((cells / cell.file).read_text()) for cell in wanted]
    results = settings | {"machine": proposals.machine(), "jobs": arguments.jobs, "rows": rows}
    own = arguments.calibration is not None or arguments.evaluation
    name = "smollm_dense_inputs" if arguments.dense_inputs else "smollm"
    path = (arguments.folder if own else RESULTS) / name
    path.with_suffix(".json").write_text(json.dumps(results, indent=1) + "\n")
    text = f"{tables(rows)}\n\n{caption(settings)}\n"
    path.with_suffix(".md").write_text(text)
    print(text)


if __name__ == "__main__":
    main()
