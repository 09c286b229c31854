"""Runs `sa-jax bench export`: size, latency and accuracy of exported networks, each compiled and run here.

The pruned networks are measured beside four programs of the dense network: a plain loop in C with the same
compiler flags, the same loop with full vectorization, onnxruntime, and onnxruntime with 8-bit weights. The pruned
network is also measured in scipy's CSR matrices. The programs take turns, round by round, on one core; figures are
medians over rounds.
"""

import contextlib
import dataclasses
import json
import os
import re
import shutil
import statistics
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from sa_jax import files
from sa_jax.commands import interrupts
from sa_jax.commands.hardware import machine
from sa_jax.commands.run import runner
from sa_jax.commands.run.settings import RunConfig
from sa_jax.export import c, packed, read_run
from sa_jax.export.cleanup import Cleaned, clean, predict
from sa_jax.export.quantization import Quantized, quantize, simulate
from sa_jax.files import datasets, workdirs
from sa_jax.networks.mlp import network_of
from sa_jax.reports import charts, page
from sa_jax.reports.charts import Look, Point
from sa_jax.types import InputError

DENSITIES = (0.5, 0.2, 0.1, 0.05, 0.02, 0.01)
CONFIG = RunConfig(
    dataset="mnist",
    input_mean=0.1307,
    input_std=0.3081,
    weights="pretrain",
    hidden=(300, 100),
    num_steps=200_000,
    num_chains=1,
    num_samples=5_000,
)
QUICK = RunConfig(weights="pretrain", hidden=(32,), num_steps=2_000, num_chains=1, num_samples=200)
ROUNDS, TIMED_SAMPLES, TIMED_SECONDS, BATCH = 7, 200, 0.05, 256
FLAGS = ("-std=c99", "-O2")
VECTORIZED = ("-std=c99", "-O3", "-march=native", "-ffast-math")
# Bits with which every form is measured, and bits with which the smallest form is measured.
FORM_BITS, SMALLEST_BITS = (32, 4), (32, 8, 4, 2)

TIMER = """#include "network.h"

#include <stdio.h>
#include <stdlib.h>
#include <time.h>

/* timer SAMPLES COUNT SECONDS LOGITS: nanoseconds a sample, over as many passes as take so many seconds. */
int main(int count, char **words) {
    long samples = count == 5 ? atol(words[2]) : 0, passes = 0;
    float *x = malloc(sizeof(float) * NETWORK_INPUTS * (size_t)samples);
    float *y = malloc(sizeof(float) * NETWORK_OUTPUTS * (size_t)samples);
    FILE *file = samples ? fopen(words[1], "rb") : NULL;
    struct timespec begin, now;
    double seconds = 0.0;
    if (!file || fread(x, sizeof(float) * NETWORK_INPUTS, (size_t)samples, file) != (size_t)samples) return 1;
    fclose(file);
    for (long i = 0; i < samples; i++) network_predict(x + i * NETWORK_INPUTS, y + i * NETWORK_OUTPUTS);
    clock_gettime(CLOCK_MONOTONIC, &begin);
    do {
        for (long i = 0; i < samples; i++) network_predict(x + i * NETWORK_INPUTS, y + i * NETWORK_OUTPUTS);
        passes++;
        clock_gettime(CLOCK_MONOTONIC, &now);
        seconds = (double)(now.tv_sec - begin.tv_sec) + 1e-9 * (double)(now.tv_nsec - begin.tv_nsec);
    } while (seconds < atof(words[3]));
    printf("%.17g\\n", seconds / (double)passes / (double)samples);
    file = fopen(words[4], "wb");
    if (!file || fwrite(y, sizeof(float) * NETWORK_OUTPUTS, (size_t)samples, file) != (size_t)samples) return 1;
    return fclose(file) != 0;
}
"""


class Program(NamedTuple):
    """One way to run a network.

    Attributes:
      about: the fields of its row that are not measured: density, engine, form, bits, bytes, ram_bytes.
      expected: logits that it must give on the test split, float32 `[samples, classes]`.
      logits: `(inputs) -> logits`, by running it.
      seconds: `(batch size) -> seconds per sample`; None for a batch size that it does not support.
    """

    about: dict[str, Any]
    expected: np.ndarray  # float32 [samples, classes]
    logits: Callable[[np.ndarray], np.ndarray]
    seconds: Callable[[int], float | None]


def run_all(folder: Path, quick: bool, tell: Callable[[str], None]) -> list[Path]:
    """Anneals a network at each of `DENSITIES`, if that has not been done yet; returns the runs' folders.

    Args:
      folder: directory that gets one folder per run.
      quick: whether to use digits and a small network, at two densities.
      tell: called with messages for the user.
    """
    config, densities = (QUICK, (0.2, 0.05)) if quick else (CONFIG, DENSITIES)
    found = []
    for density in densities:
        workdir = folder / f"density_{density:g}"
        if not (workdir / "result.json").is_file():
            tell(f"annealing at density {density:g}")
            runner.run(dataclasses.replace(config, density=density), workdir, stop=interrupts.requested)
            interrupts.defer(None)
        found.append(workdir)
    return found


def measure(
    runs: Sequence[Path], quick: bool = False, tell: Callable[[str], None] = lambda message: None
) -> dict[str, Any]:
    """Compiles and times every form of finished runs' networks, and of the dense network of the first.

    Args:
      runs: work directories of finished runs, of one data set and one dense network.
      quick: whether to measure only the smallest forms, in two rounds.
      tell: called with messages for the user.

    Returns:
      JSON values: `machine`, `compiler`, `rows` and others.

    Raises:
      InputError: no C compiler, no run, runs of different networks, or data that cannot be loaded.
    """
    for tool in ("cc", "size"):
        if shutil.which(tool) is None:
            raise InputError(f"`{tool}` is missing: install a C compiler and its tools")
    networks = [read_run(workdir) for workdir in runs]
    first = networks[0][1]
    for workdir, (_, result) in zip(runs, networks, strict=True):
        if any(result.get(name) != first.get(name) for name in ("data", "sizes", "activation")):
            raise InputError(f"{workdir} and {runs[0]} are runs of different networks")
        if "data" not in result:
            raise InputError(f"{workdir} was made by an earlier version: repeat the run")
    dataset = datasets.load_dataset(first["data"], first["input_mean"], first["input_std"])
    inputs = np.ascontiguousarray(dataset.test.inputs, np.float32)
    _, network = network_of(files.load(runs[0] / "weights.npz"))
    dense = clean(network, np.ones(network.total, bool), first["activation"])
    with tempfile.TemporaryDirectory() as folder, one_core():
        programs = [*_dense_programs(dense, inputs, Path(folder), tell)]
        for workdir, (cleaned, result) in zip(runs, networks, strict=True):
            programs += _pruned_programs(cleaned, result["density"], inputs, Path(folder), quick, tell)
            tell(f"{workdir}: compiled")
        timed: list[dict[int, list[float]]] = [{1: [], BATCH: []} for _ in programs]
        for number in range(2 if quick else ROUNDS):
            for program, found in zip(programs, timed, strict=True):
                for at_once, seconds in found.items():
                    taken = program.seconds(at_once)
                    seconds += [] if taken is None else [taken]
            tell(f"round {number + 1} of {2 if quick else ROUNDS}")
        rows = [
            _row(program, found, dataset.test.labels, inputs)
            for program, found in zip(programs, timed, strict=True)
        ]
    compiler = subprocess.run(["cc", "--version"], capture_output=True, text=True, check=True).stdout.splitlines()[
        0
    ]
    return {
        "machine": machine(),
        "compiler": f"{compiler}, {' '.join(FLAGS)}",
        "vectorized": " ".join(VECTORIZED),
        "sizes": first["sizes"],
        "dataset": first["dataset"],
        "seed": first["seed"],
        "rows": rows,
    }


def _row(
    program: Program, found: Mapping[int, list[float]], labels: np.ndarray, inputs: np.ndarray
) -> dict[str, Any]:
    logits = program.logits(inputs)
    off = np.abs(logits - program.expected).max() / np.abs(program.expected).max()
    batch = found[BATCH] or found[1]
    return program.about | {
        "test_accuracy": float((logits.argmax(1) == labels).mean()),
        "other_predictions": int((logits.argmax(1) != program.expected.argmax(1)).sum()),
        "largest_relative_error": float(off),
        "microseconds": 1e6 * statistics.median(found[1]),
        "microseconds_of_rounds": [1e6 * seconds for seconds in found[1]],
        "samples_per_second": 1 / statistics.median(batch),
    }


@contextlib.contextmanager
def one_core() -> Iterator[None]:
    """Binds this thread, and the processes that it starts, to one core if the system allows it."""
    if not hasattr(os, "sched_setaffinity"):
        yield
        return
    before = os.sched_getaffinity(0)
    os.sched_setaffinity(0, {max(before)})
    try:
        yield
    finally:
        os.sched_setaffinity(0, before)


def _dense_programs(
    dense: Cleaned, inputs: np.ndarray, folder: Path, tell: Callable[[str], None]
) -> Iterator[Program]:
    about = {"density": 1.0, "form": "dense", "bits": 32}
    quantized, expected = quantize(dense, 32), predict(dense, inputs)
    for engine, flags in (("C", FLAGS), ("C, vectorized", VECTORIZED)):
        yield c_program(quantized, ("dense",), flags, about | {"engine": engine}, expected, inputs, folder)
    try:
        import onnxruntime  # noqa: F401  # pyright: ignore[reportMissingImports]

        from sa_jax.export.graphs import onnx
    except ImportError:
        tell("onnxruntime is left out, as it is not installed: pip install 'sa_jax[dev]'")
        return
    (content,) = onnx(dense).values()
    (folder / "dense.onnx").write_bytes(content)
    yield onnx_program(folder / "dense.onnx", about | {"engine": "onnxruntime"}, expected)
    eight = folder / "dense_int8.onnx"
    from onnxruntime.quantization import QuantType, quantize_dynamic  # pyright: ignore[reportMissingImports]

    quantize_dynamic(folder / "dense.onnx", eight, weight_type=QuantType.QInt8)
    yield onnx_program(eight, about | {"engine": "onnxruntime", "bits": 8}, expected)


def _pruned_programs(
    cleaned: Cleaned, density: float, inputs: np.ndarray, folder: Path, quick: bool, tell: Callable[[str], None]
) -> Iterator[Program]:
    forms = [] if quick else [(form, bits) for form in c.FUNCTIONS for bits in FORM_BITS]
    for form, bits in [*(("smallest", bits) for bits in SMALLEST_BITS), ("rice", 2), *forms]:
        quantized = quantize(cleaned, bits)
        wanted = c.FORMS if form == "smallest" else (form,)
        if any(all(c.stored(layer, name) is None for name in wanted) for layer in quantized.layers):
            continue
        stored = [c.smallest(layer, wanted).form for layer in quantized.layers]
        about = {"density": density, "engine": "C", "form": form, "forms": stored, "bits": bits}
        about["packed_bytes"] = len(packed.pack(quantized))
        about["mask_bytes"] = sum(len(packed.rice(layer.mask).content) for layer in quantized.layers)
        about["mask_entropy_bytes"] = sum(packed.entropy_bits(layer.mask) for layer in quantized.layers) / 8
        expected = predict(simulate(quantized), inputs)
        yield c_program(quantized, wanted, FLAGS, about, expected, inputs, folder)
    if cleaned.activation == "relu":
        yield scipy_program(cleaned, {"density": density, "engine": "scipy", "form": "CSR", "bits": 32}, inputs)
    else:
        tell(f"scipy is left out: it is measured with relu only, not {cleaned.activation}")


def c_program(
    quantized: Quantized,
    forms: Sequence[str],
    flags: Sequence[str],
    about: dict[str, Any],
    expected: np.ndarray,
    inputs: np.ndarray,
    folder: Path,
) -> Program:
    """Compiles a network's C code with a timer.

    Args:
      quantized: the network.
      forms: forms that a layer may take, see `c.files`.
      flags: flags of the compiler.
      about: see `Program`.
      expected: see `Program`, `[samples, classes]`.
      inputs: inputs of the test split, float32 `[samples, features]`.
      folder: directory in which the program gets a folder of its own.
    """
    own = Path(tempfile.mkdtemp(dir=folder))
    for name, content in {**c.files(quantized, forms), "timer.c": TIMER.encode()}.items():
        (own / name).write_bytes(content)
    compile_ = ["cc", *flags, "-D_POSIX_C_SOURCE=199309L"]
    subprocess.run([*compile_, "-c", "network.c", "-o", "network.o"], cwd=own, check=True)
    subprocess.run([*compile_, "timer.c", "network.o", "-lm", "-o", "timer"], cwd=own, check=True)
    inputs.tofile(own / "all.f32")
    inputs[:TIMED_SAMPLES].tofile(own / "timed.f32")
    timed = min(TIMED_SAMPLES, len(inputs))

    def go(file: str, samples: int, seconds: float) -> float:
        command = [str(own / "timer"), str(own / file), str(samples), str(seconds), str(own / "logits.f32")]
        return float(subprocess.run(command, capture_output=True, text=True, check=True).stdout)

    def logits(x: np.ndarray) -> np.ndarray:
        go("all.f32", len(x), 0.0)
        return np.fromfile(own / "logits.f32", np.float32).reshape(len(x), -1)

    def seconds(at_once: int) -> float | None:
        return go("timed.f32", timed, TIMED_SECONDS) if at_once == 1 else None

    sizes = {"bytes": flash_bytes(own / "network.o"), "ram_bytes": buffer_bytes(quantized)}
    return Program(about | sizes, expected, logits, seconds)


def flash_bytes(path: Path) -> int:
    """Returns the bytes of a compiled network: its tables and its code."""
    printed = subprocess.run(["size", str(path)], capture_output=True, text=True, check=True).stdout
    text, initialized = map(int, re.findall(r"\d+", printed.splitlines()[1])[:2])
    return text + initialized


def buffer_bytes(quantized: Quantized) -> int:
    """Returns the bytes of the units and logits that a network's C code holds while it runs, without its input."""
    return c.stack_bytes(quantized) + 4 * quantized.layers[-1].mask.shape[1]


def onnx_program(path: Path, about: dict[str, Any], expected: np.ndarray) -> Program:
    """Returns the program of a network in onnxruntime, on one thread; logits `[samples, classes]`."""
    import onnxruntime  # pyright: ignore[reportMissingImports]

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    (given,) = session.get_inputs()

    def logits(x: np.ndarray) -> np.ndarray:
        return np.asarray(session.run(None, {given.name: x})[0])

    return Program(
        about | {"bytes": path.stat().st_size, "ram_bytes": None}, expected, logits, _timer(logits, given)
    )


def scipy_program(cleaned: Cleaned, about: dict[str, Any], inputs: np.ndarray) -> Program:
    """Returns the program of a pruned relu network in scipy's CSR matrices; inputs `[samples, features]`."""
    import scipy.sparse

    rows = [scipy.sparse.csr_matrix(kernel.T) for kernel in cleaned.kernels]
    expected = predict(cleaned, inputs)

    def logits(x: np.ndarray) -> np.ndarray:
        values = x.T
        for layer, (row, bias) in enumerate(zip(rows, cleaned.biases, strict=True)):
            values = row @ (np.maximum(values, 0) if layer else values) + bias[:, None]
        return values.T

    size = sum(row.data.nbytes + row.indices.nbytes + row.indptr.nbytes for row in rows)
    size += sum(bias.nbytes for bias in cleaned.biases)
    return Program(about | {"bytes": size, "ram_bytes": None}, expected, logits, _timer(logits, inputs))


def _timer(logits: Callable[[np.ndarray], np.ndarray], inputs: Any) -> Callable[[int], float | None]:
    features = inputs.shape[1]
    x = np.random.default_rng(0).normal(size=(TIMED_SAMPLES + BATCH, features)).astype(np.float32)

    def seconds(at_once: int) -> float:
        parts = [x[start : start + at_once] for start in range(0, TIMED_SAMPLES, at_once)]
        logits(parts[0])
        begin, passes = time.perf_counter(), 0
        while (taken := time.perf_counter() - begin) < TIMED_SECONDS or not passes:
            for part in parts:
                logits(part)
            passes += 1
        taken = time.perf_counter() - begin
        return taken / passes / sum(map(len, parts))

    return seconds


def name_of(row: Mapping[str, Any]) -> str:
    """Returns the name of a row's program."""
    bits = f"{row['bits']} bits"
    if row["engine"] != "C":
        return f"{row['engine']}, {'dense' if row['form'] == 'dense' else row['form']}, {bits}"
    return f"C, {row['form']}, {bits}"


def table(result: Mapping[str, Any]) -> str:
    """Returns the rows as a Markdown table."""
    lines = [
        "| kept | program | bytes | RAM | us per sample | samples per second | accuracy, % | packed file, bytes |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for row in result["rows"]:
        cells = (
            f"{100 * row['density']:g} %",
            name_of(row) if row["engine"] != "C, vectorized" else "C, dense, vectorized, 32 bits",
            f"{row['bytes']:,}",
            "-" if row["ram_bytes"] is None else f"{row['ram_bytes']:,}",
            f"{row['microseconds']:,.1f}",
            f"{row['samples_per_second']:,.0f}",
            f"{100 * row['test_accuracy']:.2f}",
            f"{row['packed_bytes']:,}" if "packed_bytes" in row else "-",
        )
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def honest_line(result: Mapping[str, Any]) -> str:
    """Returns a few sentences on where the pruned network is not faster or smaller than the dense one."""
    rows = result["rows"]
    dense = {(row["engine"], row["bits"]): row for row in rows if row["density"] == 1}
    fastest = min(dense.values(), key=lambda row: row["microseconds"])
    least = min(dense.values(), key=lambda row: row["bytes"])
    by_density: dict[float, list[Mapping[str, Any]]] = {}
    for row in rows:
        if row["density"] < 1 and row["engine"] == "C":
            by_density.setdefault(row["density"], []).append(row)

    def claim(field: str, limit: float, better: str) -> str:
        lost = [density for density, of in by_density.items() if min(row[field] for row in of) >= limit]
        shares = ", ".join(f"{100 * density:g} %" for density in lost)
        if lost:
            return f"No pruned program is {better} with {shares} of the branches kept."
        return f"At every density measured here a pruned program is {better}."

    return (
        f"Does it pay? The fastest dense program is {fastest['engine']}, {fastest['bits']} bits, "
        f"{fastest['microseconds']:.0f} us per sample. {claim('microseconds', fastest['microseconds'], 'faster')} "
        f"The smallest dense program is {least['engine']}, {least['bits']} bits, {least['bytes']:,} bytes. "
        f"{claim('bytes', least['bytes'], 'smaller')}"
    )


def render(result: Mapping[str, Any]) -> str:
    """Returns a self-contained HTML page: charts of accuracy against size and latency, and all rows."""
    import matplotlib

    sizes = "-".join(map(str, result["sizes"]))
    fields = {"bytes": "bytes of flash, or of the model file", "microseconds": "microseconds per sample"}
    figures = []
    with matplotlib.rc_context(page.CHARTS):
        for field, label in fields.items():
            figure = page.new_figure(3.8)
            _draw_front(figure.subplots(), result["rows"], field, label)
            description = f"Test accuracy against {label}, one point per program"
            caption = (
                f"Test accuracy against {label}. Each line joins the densities; points to the left keep fewer."
            )
            figures.append(page.figure_html(field, figure, description, caption))
    heads = (
        "kept, program",
        "bytes",
        "RAM",
        "us per sample",
        "samples per second",
        "accuracy, %",
        "other predictions",
    )
    lines = (
        page.row_html(
            f"{100 * row['density']:g} %: {name_of(row)}",
            f"{row['bytes']:,}",
            "-" if row["ram_bytes"] is None else f"{row['ram_bytes']:,}",
            f"{row['microseconds']:,.1f}",
            f"{row['samples_per_second']:,.0f}",
            f"{100 * row['test_accuracy']:.2f}",
            str(row["other_predictions"]),
        )
        for row in result["rows"]
    )
    table = page.numbers_html("Every program", heads, lines)
    table += page.csv_link("programs.csv", page.table_csv(result["rows"], list(result["rows"][0])))
    machine = result["machine"]
    sections = [
        f"<section><h1>{sizes} on {result['dataset']}, exported</h1><p>{honest_line(result)}</p>"
        f'<div class="columns">{"".join(figures)}</div></section>',
        f"<section><h2>Every program</h2>{table}"
        '<p class="soft">Bytes are those of the tables and the code of a compiled network, or of a model file. '
        "RAM is that of units and logits. Latency is measured one sample at a time, as the median over rounds in "
        "which the programs took turns on one core. onnxruntime and scipy are called from Python. Samples per "
        f"second are measured with batches of {BATCH} for onnxruntime and scipy, and of one for C. Other "
        "predictions: test samples for which the program predicts another class than the same weights in JAX; for "
        "onnxruntime with 8 bits, than the float32 weights.</p>"
        f'<p class="soft">{machine["processor"]}; {result["compiler"]}; vectorized: {result["vectorized"]}; '
        f"jax {machine['versions']['jax']}; seed {result['seed']}.</p></section>",
    ]
    return page.page_html(f"{sizes} on {result['dataset']}, exported", sections)


def _draw_front(axes: Any, rows: Sequence[Mapping[str, Any]], field: str, label: str) -> None:
    looks = {32: Look(page.ACCENT, 1.0, "-", "o", True), 8: Look(page.ACCENT, 0.6, "--", "s", True)}
    looks |= {4: Look(page.SECOND, 1.0, "-", "o", True), 2: Look(page.SECOND, 0.6, "--", "s", True)}
    dense_look = Look(page.INK, 0.75, "", "D", True)
    for bits, look in looks.items():
        line = [row for row in rows if row["form"] == "smallest" and row["bits"] == bits]
        line.sort(key=lambda row: row["density"])
        errors = [charts.error_of(row["test_accuracy"]) for row in line]
        charts.draw_line(axes, [row[field] for row in line], errors, look)
    points = []
    for row in rows:
        if row["density"] == 1:
            x, y = row[field], charts.error_of(row["test_accuracy"])
            axes.plot([x], [y], marker="D", color=page.INK, alpha=0.75, markersize=4)
            points.append(Point(f"{row['engine']}{', int8' if row['bits'] == 8 else ''}", x, y, dense_look))
    for bits, look in looks.items():
        line = [row for row in rows if row["form"] == "smallest" and row["bits"] == bits]
        if line:
            sparsest = min(line, key=lambda row: row["density"])
            at = sparsest[field], charts.error_of(sparsest["test_accuracy"])
            points.append(Point(f"{bits} bits", *at, look))
    charts.put_ticks(axes.xaxis, charts.log_scale(axes, "x", 0.12), lambda value: f"{value:,.7g}", apart=0.12)
    charts.error_axis(axes)
    axes.set_xlabel(label)
    axes.set_ylabel("test accuracy, %")
    charts.finish(axes)
    charts.name_points(axes, points)


def write(result: Mapping[str, Any], folder: Path) -> None:
    """Writes results.json, results.md and report.html."""
    workdirs.check_finite("results.json", result)
    workdirs.write_file(folder / "results.json", json.dumps(result, indent=1) + "\n")
    workdirs.write_file(folder / "results.md", table(result) + "\n\n" + honest_line(result) + "\n")
    workdirs.write_file(folder / "report.html", render(result))
