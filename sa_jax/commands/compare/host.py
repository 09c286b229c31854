"""Runs a comparison: measures its cells in worker processes, saves each one, then writes the tables and a page."""

import contextlib
import functools
import hashlib
import itertools
import json
import math
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import asdict, replace
from pathlib import Path
from queue import SimpleQueue
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from sa_jax import baselines, files
from sa_jax.baselines import Budget, Found, Task
from sa_jax.commands.compare import significance
from sa_jax.commands.compare.settings import DENSE, SEARCHES, Cell, CompareConfig, cell_run, digest
from sa_jax.commands.hardware import processor, versions
from sa_jax.commands.messages import first_line
from sa_jax.commands.run import evaluation, runner
from sa_jax.commands.run.settings import RunConfig
from sa_jax.files import datasets, workdirs
from sa_jax.files.npz import npz_bytes, read_npz
from sa_jax.networks import masks, mlp
from sa_jax.networks.energies import cross_entropy
from sa_jax.networks.mlp import Network
from sa_jax.networks.samples import check_samples
from sa_jax.reports import comparison
from sa_jax.reports.page import table_csv
from sa_jax.types import InputError

FIELDS = (
    "dataset",
    "network",
    "weights",
    "method",
    "sparsity",
    "density",
    "kept",
    "total",
    "seed",
    "test_accuracy",
    "validation_accuracy",
    "test_loss",
    "cpu_seconds",
    "uses_labels",
    "uses_gradients",
    "moves_weights",
    "num_evaluations",
    "effective_kept",
    "effective_compression",
    "kept_per_layer",
    "total_per_layer",
    "reason",
)
PAIRED_FIELDS = (
    "dataset",
    "network",
    "weights",
    "density",
    "reference",
    "method",
    "difference",
    "standard_error",
    "p_value",
    "p_adjusted",
    "real",
    "num_seeds",
)
# Least seconds between two writings of the unfinished page, and how many times as long as writing it takes.
PAGE_SECONDS, PAGE_SHARE = 3.0, 10
# One-shot masks without any search, with which annealing is compared in the sentence on what it gained.
ONE_SHOT = (*evaluation.ONE_SHOT, "node_entropy", "node_output_norm", "node_input_norm", "obs_mask")


class Progress(NamedTuple):
    """Progress after a cell: how many of all cells are done, and the cell's row."""

    done: int
    total: int
    row: dict[str, Any]


def compare(
    config: CompareConfig,
    workdir: Path,
    jobs: int,
    command: str = "",
    operative_config: str = "",
    on_progress: Callable[[Progress], None] = lambda progress: None,
    on_message: Callable[[str], None] = lambda message: None,
) -> list[dict[str, Any]]:
    """Measures all cells that `workdir` does not hold yet, and writes the tables and the page.

    Args:
      config: the settings.
      workdir: output directory, made if missing. Gets one or two files per cell in `cells/`, the dense networks in
        `networks/`, operative.gin, results.csv after each cell, report.html every few seconds, and paired.csv and
        results.md at the end. A cell whose settings have changed is measured again.
      jobs: number of worker processes, each on one thread.
      command: command that repeats the comparison, for the page.
      operative_config: text of `operative.gin`.
      on_progress: called after each cell.
      on_message: called with messages for the user.

    Returns:
      One row per cell, in the order of `config.cells()`, with the names of `FIELDS`.

    Raises:
      InputError: bad data, weights or settings, or a workdir that cannot be used.
    """
    with workdirs.writing(workdir, on_message) as at_end:
        for name in ("cells", "networks"):
            at_end.callback(workdirs.unmake, workdirs.make(workdir / name))
        page = _Page(config, workdir, command)
        table = _measure_all(config, workdir, jobs, on_progress, on_message, at_end, page, operative_config)
        finish(config, workdir, table, command)
    return table


class _Page:
    """Writes the page on the cells measured so far, so that it fills, and stays if the comparison is stopped."""

    def __init__(self, config: CompareConfig, workdir: Path, command: str):
        self._config, self._workdir, self._command = config, workdir, command
        self._next = 0.0

    def write(self, rows: Mapping[Cell, dict[str, Any]], num_cells: int) -> None:
        """Writes the page if the last time is long enough ago."""
        begun = time.monotonic()
        if begun < self._next or len(rows) == num_cells:
            return
        made_by = _made_by(self._workdir, rows)
        rest = [], [], self._command, *made_by, names_of(self._config), num_cells
        page = comparison.render_comparison(list(rows.values()), *rest)
        workdirs.write_file(self._workdir / "report.html", page)
        ended = time.monotonic()
        self._next = ended + max(PAGE_SECONDS, PAGE_SHARE * (ended - begun))


def _measure_all(
    config, workdir, jobs, on_progress, on_message, at_end, page: _Page, operative_config: str
) -> list[dict[str, Any]]:
    cells = list(config.cells())
    rows = {cell: row for cell in cells if (row := saved_row(config, workdir, cell)) is not None}
    # Where a dense network has to be made again, the cells that pruned it have to be measured again too.
    rows = {cell: row for cell, row in rows.items() if cell._replace(method=DENSE, density=1.0) in rows}
    if rows:
        on_message(f"{len(rows)} of {len(cells)} cells have been measured already")
    waiting = [cell for cell in cells if cell not in rows]
    stages = [[cell for cell in waiting if (cell.method == DENSE) == dense] for dense in (True, False)]
    workers: SimpleQueue[Worker] = SimpleQueue()
    started = [Worker() for _ in range(min(jobs, len(waiting)))]
    for worker in started:
        workers.put(worker)
        at_end.callback(worker.stop)  # also if this process is ended by force

    def measure(cell: Cell) -> dict[str, Any]:
        worker = workers.get()
        try:
            return worker.measure(config, workdir, cell)
        finally:
            workers.put(worker)

    try:
        for stage in stages:
            _check_densities(config, rows)
            with ThreadPoolExecutor(max(jobs, 1)) as executor:
                futures = {executor.submit(measure, cell): cell for cell in stage}
                try:
                    for future in as_completed(futures):
                        rows[futures[future]] = future.result()
                        done = {cell: rows[cell] for cell in cells if cell in rows}
                        workdirs.write_file(workdir / "operative.gin", operative_config)
                        workdirs.write_file(workdir / "results.csv", table_csv(done.values(), FIELDS))
                        on_progress(Progress(len(done), len(cells), rows[futures[future]]))
                        page.write(done, len(cells))
                except BaseException:
                    executor.shutdown(wait=False, cancel_futures=True)
                    for worker in started:
                        worker.stop()
                    raise
    finally:
        for worker in started:
            worker.stop()
    return [rows[cell] for cell in cells]


def _check_densities(config: CompareConfig, rows: Mapping[Cell, Mapping[str, Any]]) -> None:
    """Refuses a density at which a network would keep no branch, as soon as the network's size is known."""
    for cell, row in rows.items():
        for density in config.densities if cell.method == DENSE else ():
            try:
                masks.num_kept(density, row["total"])
            except InputError as error:
                raise InputError(f"compare.densities, network {row['network']}: {error}") from None


def finish(config: CompareConfig, workdir: Path, rows: Sequence[dict[str, Any]], command: str) -> None:
    """Writes the tables and the page of a comparison whose cells have all been measured."""
    paired, names = paired_rows(config, workdir), names_of(config)
    worth = worth_texts(config, rows)
    found, machine = _made_by(workdir, config.cells())
    page = comparison.render_comparison(list(rows), paired, worth, command, found, machine, names)
    on = ", ".join(f"{name} {version}" for name, version in found.items())
    seeds = ", ".join(map(str, config.seeds))
    text = comparison.markdown_tables(list(rows), paired, names) + "\n" + "\n\n".join(worth)
    text += f"\n\nSeeds {seeds}; one core of {machine}; {on}.\n"
    workdirs.check_finite("paired.csv", paired)
    workdirs.write_file(workdir / "results.csv", table_csv(rows, FIELDS))
    workdirs.write_file(workdir / "paired.csv", table_csv(paired, PAIRED_FIELDS))
    workdirs.write_file(workdir / "results.md", text)
    workdirs.write_file(workdir / "report.html", page)


def _made_by(workdir: Path, cells: Iterable[Cell]) -> tuple[dict[str, str], str]:
    """The versions and the machine of cells, which may have been measured at different times."""
    made = [json.loads((workdir / "cells" / f"{cell.name}.json").read_text())["made"] for cell in cells]
    found = {name: " and ".join(dict.fromkeys(one.get(name, "-") for one in made)) for name in made[0]}
    machine = found.pop("machine")
    return found, machine


def names_of(config: CompareConfig) -> dict[str, str]:
    """Returns the name of each way to anneal, which says how it begins.

    A way whose name begins with 'anneal' is named by its settings alone, as 'Score search, then annealing', if
    no way before it is named so. Others keep their own name besides.
    """
    names: dict[str, str] = {}
    for method, own in config.annealers.items():
        run = replace(config.run, **own)
        first = run.start_method
        start = "score search" if run.start == "score_search" else first.label.lower() if first else ""
        how = f"{start}, then annealing" if start else "annealing alone"
        how += ", derivative" if run.uses_gradients and first is None else ""
        how += ", nudged weights" if run.nudge_share else ""
        plain = how[:1].upper() + how[1:]
        named = not method.startswith("anneal") or plain in names.values()
        words = method.replace("_", " ")
        names[method] = f"{words[:1].upper()}{words[1:]} ({how})" if named else plain
    return names


class Worker:
    """A process that measures cells on one thread; it starts with the first cell."""

    def __init__(self):
        self.process: subprocess.Popen | None = None
        self.stopped = False
        self._starting = threading.Lock()

    def measure(self, config: CompareConfig, workdir: Path, cell: Cell) -> dict[str, Any]:
        """Measures one cell, writes its files to the workdir, and returns its row.

        Raises:
          InputError: the worker refused its input, or the worker or the comparison has ended.
        """
        with self._starting:  # `stop` may come meanwhile, and must find the process
            if self.stopped:
                raise InputError("the comparison was stopped")
            if self.process is None:
                self.process = self._start()
        assert self.process.stdin and self.process.stdout
        request = {"config": asdict(config), "workdir": str(workdir.absolute()), "cell": cell}
        try:
            self.process.stdin.write(json.dumps(request) + "\n")
            self.process.stdin.flush()
            answer = self.process.stdout.readline()
        except OSError:
            answer = ""
        if not answer:
            code = self.process.wait()
            hint = "; it may have run out of memory" if code == -signal.SIGKILL else ""
            raise InputError(f"the process that measured {cell.name} ended with exit code {code}{hint}")
        message = json.loads(answer)
        if "error" in message:
            raise InputError(message["error"])
        return message["row"]

    def _start(self) -> subprocess.Popen:
        threads = dict.fromkeys(("NPROC", "OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"), "1")
        return subprocess.Popen(
            [sys.executable, "-c", "from sa_jax.commands.compare.host import work; work()"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env=os.environ | threads,
            start_new_session=True,  # an interrupt reaches only this process, which then stops its workers
        )

    def stop(self) -> None:
        """Ends the process, even while it is measuring a cell."""
        with self._starting:
            self.stopped = True
        if self.process is not None:
            self.process.kill()
            self.process.wait()
            for stream in (self.process.stdin, self.process.stdout):
                with contextlib.suppress(OSError):  # closing writes what is left in the buffer
                    if stream:
                        stream.close()


def work() -> None:
    """Runs a worker process: measures a cell for each line of standard input."""
    answers = os.fdopen(os.dup(sys.stdout.fileno()), "w")
    os.dup2(sys.stderr.fileno(), sys.stdout.fileno())  # nothing else that prints may be read as an answer
    for line in sys.stdin:
        message = json.loads(line)
        settings = message["config"]
        config = CompareConfig(**settings | {"run": RunConfig(**settings["run"])})
        dataset, weights, hidden, *rest = message["cell"]
        cell = Cell(dataset, weights, tuple(hidden), *rest)
        try:
            answer = {"row": measure(config, Path(message["workdir"]), cell)}
        except Exception as error:  # every error reaches the user in one line
            kind = "" if isinstance(error, InputError) else f"{type(error).__name__}: "
            answer = {"error": f"{cell.name}: {kind}{first_line(error)}"}
        answers.write(json.dumps(answer) + "\n")
        answers.flush()


_datasets: dict[tuple, datasets.Dataset] = {}  # a worker reads each data set once


def measure(config: CompareConfig, workdir: Path, cell: Cell) -> dict[str, Any]:
    """Measures one cell and writes its files, `cells/NAME.npz` and, last, `cells/NAME.json`."""
    run = cell_run(config, cell)
    source = run.dataset, run.input_mean, run.input_std
    if source not in _datasets:
        _datasets[source] = datasets.load_dataset(*source)
    dataset = _datasets[source]
    jax.clear_caches()  # each cell compiles its own programs, so that its seconds do not depend on the order
    start = time.process_time()
    extra: dict[str, Any] = {}
    arrays: dict[str, np.ndarray] = {}
    if cell.method == DENSE:
        names, network = runner.load_network(run, dataset)
        for split in (dataset.train, dataset.validation, dataset.test):
            check_samples(network, split.inputs, split.labels)
        seconds = time.process_time() - start
        workdirs.write_file(
            workdir / "networks" / f"{cell.network_name}.npz", npz_bytes(mlp.weight_arrays(names, network))
        )
        found, total, shapes = Found(jnp.ones(network.total, bool), network), network.total, network.shapes
        uses = {name: run.weights != "random" for name in ("uses_labels", "uses_gradients", "moves_weights")}
    else:
        network = mlp.network_of(files.load(workdir / "networks" / f"{cell.network_name}.npz"))[1]
        num_kept = masks.num_kept(cell.density, network.total)
        total, shapes = network.total, network.shapes
        jax.block_until_ready(network)
        start = time.process_time()
        try:
            if cell.method in config.annealers:
                found, uses, extra, arrays = _anneal(run, dataset, network, config.budget)
            else:
                found, uses, extra = _baseline(config, cell, run, dataset, network, num_kept)
        except InputError as error:
            uses = baselines.METHODS[cell.method]._asdict() if cell.method in baselines.METHODS else {}
            if cell.method != "smaller_dense":
                raise
            found, extra = None, {"reason": str(error)}
        seconds = time.process_time() - start
    row = {
        **dict.fromkeys(FIELDS),
        "dataset": cell.dataset,
        "network": "-".join(map(str, network.sizes)),
        "weights": cell.weights,
        "method": cell.method,
        "sparsity": round(1 - cell.density, 9),
        "density": cell.density,
        "total": total,
        "seed": cell.seed,
        "cpu_seconds": round(seconds, 3),
        "uses_labels": uses["uses_labels"],
        "uses_gradients": uses["uses_gradients"],
        "moves_weights": uses["moves_weights"],
        "total_per_layer": [inputs * outputs for inputs, outputs in shapes],
        "reason": "",
        **extra,
    }
    if found is not None:
        figures, arrays_found = _figures(run, dataset, found)
        row |= figures | {"effective_compression": round(total / max(figures["effective_kept"], 1), 3)}
        arrays = arrays | arrays_found
    workdirs.check_finite(cell.name, arrays | row)
    # Removed first, so that a row never lies beside the arrays of another measurement.
    (workdir / "cells" / f"{cell.name}.json").unlink(missing_ok=True)
    workdirs.write_file(workdir / "cells" / f"{cell.name}.npz", npz_bytes(arrays))
    pruned = None if cell.method == DENSE else _network_hash(workdir, cell)
    made = {"machine": processor()} | versions()
    saved = {"digest": digest(config, cell), "network": pruned, "made": made, "row": row}
    workdirs.write_file(workdir / "cells" / f"{cell.name}.json", json.dumps(saved))
    return row


def _anneal(run: RunConfig, dataset: datasets.Dataset, network: Network, budget: Budget):
    annealed, _ = runner.anneal_density(run, dataset, network, budget=budget)
    found = evaluation.network_with(network, annealed.weights)
    uses = {"uses_labels": run.uses_labels, "uses_gradients": run.uses_gradients}
    uses["moves_weights"] = run.nudge_share > 0
    num_evaluations = {"num_evaluations": annealed.num_steps * run.num_chains}
    trace = {f"trace_{name}": values for name, values in annealed.trace.items()}
    return Found(jnp.asarray(annealed.mask), found), uses, num_evaluations, trace


def _baseline(config, cell, run: RunConfig, dataset: datasets.Dataset, network: Network, num_kept: int):
    method = baselines.METHODS[cell.method]
    x, y = map(jnp.asarray, dataset.train)
    budget, energy, extra = config.budget, None, {}
    like = cell_run(config, cell._replace(method=config.searched_like))
    if method.minimises_energy:
        energy = runner.scaled_cross_entropy(like, network, x, y, num_kept)
    if cell.method in SEARCHES:
        num_samples, num_steps = like.sizes(num_kept, len(y))
        num_evaluations = config.num_evaluations or num_steps * like.num_chains
        budget, extra = budget._replace(num_evaluations=num_evaluations), {"num_evaluations": num_evaluations}
        x, y = x[:num_samples], y[:num_samples]
    key = jax.random.fold_in(jax.random.key(cell.seed), 3)
    found = method.find(Task(key, network, x, y, num_kept, run.activation, energy, budget))
    return jax.block_until_ready(found), method._asdict(), extra


def _figures(
    run: RunConfig, dataset: datasets.Dataset, found: Found
) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
    network = mlp.masked(found.network, found.mask)
    predict = jax.jit(lambda network, x: mlp.forward(network, x, run.activation))
    logits = [predict(network, split.inputs) for split in (dataset.validation, dataset.test)]
    validation, test = (
        np.asarray(of_split.argmax(-1)) == split.labels
        for of_split, split in zip(logits, (dataset.validation, dataset.test), strict=True)
    )
    mask = np.asarray(found.mask)
    loss = float(cross_entropy()(logits[1], jnp.asarray(dataset.test.labels)))
    figures = {
        "kept": int(mask.sum()),
        "test_accuracy": float(test.mean()),
        "validation_accuracy": float(validation.mean()),
        "test_loss": loss if math.isfinite(loss) else None,
        "effective_kept": int(masks.effective(found.mask, network.shapes).sum()),
        "kept_per_layer": [int(part.sum()) for part in masks.unflatten(found.mask, network.shapes)],
    }
    bits = {"correct": np.packbits(test), "num_tested": np.array(test.size), "mask": np.packbits(mask)}
    return figures, bits


def saved_row(config: CompareConfig, workdir: Path, cell: Cell) -> dict[str, Any] | None:
    """Returns the row of a cell that has been measured with the same settings, else None."""
    path = workdir / "cells" / f"{cell.name}.json"
    try:
        saved = json.loads(path.read_text())
        read_npz(path.with_suffix(".npz"))
        workdirs.check_finite(cell.name, saved["row"])
        pruned = _network_hash(workdir, cell)
        same = saved["network"] == (None if cell.method == DENSE else pruned)
        return saved["row"] if same and saved["digest"] == digest(config, cell) else None
    except (OSError, ValueError, KeyError, TypeError):  # missing or damaged
        return None


def _network_hash(workdir: Path, cell: Cell) -> str:
    """Returns the hash of the weights of the dense network that a cell prunes."""
    path = workdir / "networks" / f"{cell.network_name}.npz"
    return _weights_hash(path, path.stat().st_mtime_ns)


@functools.lru_cache(maxsize=64)
def _weights_hash(path: Path, modified: int) -> str:
    del modified  # part of the key alone
    files.load(path)  # refuses weights that no cell could prune
    digest = hashlib.sha256()
    for name, array in sorted(read_npz(path).items()):
        digest.update(name.encode() + np.ascontiguousarray(array).tobytes())
    return digest.hexdigest()


def paired_rows(config: CompareConfig, workdir: Path) -> list[dict[str, Any]]:
    """Returns paired tests of the reference against each other method, on the same test samples and seeds.

    Probabilities are adjusted for the number of tests of a network.
    """
    reference = config.reference or next((method for method in config.methods if method != DENSE), DENSE)
    paired = []
    for dataset, weights, hidden in itertools.product(config.datasets, config.weights, map(tuple, config.hidden)):
        tests = []
        for density, method in itertools.product(config.densities, config.methods):
            if method in (DENSE, reference):
                continue
            both = [
                _correct(workdir, [Cell(dataset, weights, hidden, one, density, seed) for seed in config.seeds])
                for one in (reference, method)
            ]
            if both[0] is not None and both[1] is not None:
                tests.append((density, method, significance.paired_test(both[0], both[1])))
        adjusted = significance.holm([test.p_value for *_, test in tests])
        dense = workdir / "cells" / f"{Cell(dataset, weights, hidden, DENSE, 1.0, config.seeds[0]).name}.json"
        network = json.loads(dense.read_text())["row"]["network"]
        for (density, method, test), p_adjusted in zip(tests, adjusted, strict=True):
            values = (dataset, network, weights, density, reference, method, *test, p_adjusted)
            values += (p_adjusted < significance.LEVEL, len(config.seeds))
            paired.append(dict(zip(PAIRED_FIELDS, values, strict=True)))
    return paired


def _correct(workdir: Path, cells: Sequence[Cell]) -> np.ndarray | None:
    """Returns which test samples each seed's network got right, bool `[seeds, samples]`; None if not measured."""
    saved = [read_npz(workdir / "cells" / f"{cell.name}.npz") for cell in cells]
    if not all("correct" in arrays for arrays in saved):
        return None
    return np.stack([np.unpackbits(a["correct"], count=int(a["num_tested"])).astype(bool) for a in saved])


def worth_texts(config: CompareConfig, rows: Sequence[dict[str, Any]]) -> list[str]:
    """Returns for each network what annealing gained over the best one-shot mask, and at what cost, in words."""
    reference = config.reference
    if reference is None:
        return []
    sentences = []
    for dataset, network, weights in dict.fromkeys((r["dataset"], r["network"], r["weights"]) for r in rows):
        group = [r for r in rows if (r["dataset"], r["network"], r["weights"]) == (dataset, network, weights)]

        def mean(method, density=None, name="test_accuracy", group=group):
            values = [r[name] for r in group if r["method"] == method and density in (None, r["density"])]
            return float(np.mean(values))

        gains = []
        one_shot = [method for method in config.methods if method in ONE_SHOT]
        for density in sorted(config.densities, reverse=True) if one_shot else ():
            # Chosen by validation accuracy, reported by test accuracy.
            best = max(one_shot, key=lambda method: mean(method, density, "validation_accuracy"))
            gain = mean(reference, density) - mean(best, density)
            gains.append(f"{100 * gain:+.1f} at {100 * density:g} % kept ({comparison.display_name(best)})")
        known = [method for method in config.methods if method in baselines.METHODS]
        others = [method for method in known if method not in one_shot and not baselines.METHODS[method].own]
        others = [method for method in others if not baselines.METHODS[method].moves_weights]
        rival = max(others, key=lambda method: mean(method, name="validation_accuracy"), default=None)
        seconds = [mean(reference, density, "cpu_seconds") for density in config.densities]
        least = mean(DENSE, 1.0, "validation_accuracy") - config.tolerance
        close = []  # from the highest density down to the first that loses too much
        for density in sorted(config.densities, reverse=True):
            if mean(reference, density, "validation_accuracy") < least:
                break
            close.append(density)
        kind = comparison.weights_name(weights)
        gained = [f"over the best one-shot mask: {', '.join(gains)}"] if gains else []
        if rival is not None:
            leads = ", ".join(
                f"{100 * (mean(reference, density) - mean(rival, density)):+.1f} at {100 * density:g} % kept"
                for density in sorted(config.densities, reverse=True)
            )
            spent = f"{mean(rival, name='cpu_seconds'):.0f} s"
            gained.append(f"over the best other search, {comparison.display_name(rival)} ({spent}): {leads}")
        gain = f"It gained, in points of test accuracy, {'; '.join(gained)}. " if gained else ""
        within = f"within {100 * config.tolerance:g} points on validation samples"
        where = f"down to {100 * min(close):g} % of the branches" if close else "at no density measured here"
        taken = " to ".join(dict.fromkeys(f"{value:.0f}" for value in (min(seconds), max(seconds))))
        sentences.append(
            f"Was annealing worth it on {network}, {dataset}, {kind}? {gain}It took {taken} s of CPU time. "
            f"It keeps the dense accuracy, {within}, {where}."
        )
    return sentences
