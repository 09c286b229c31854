"""Runs `sa-jax bench`: proposals per second of four implementations of annealing, beside the machine's limits.

`naive` evaluates the whole masked network for each proposal, `compiled` is the incremental algorithm as a compiled
loop on one core, `incremental` is `landscapes.mlp.masked_mlp` evaluated by XLA, and `native` is the same landscape
evaluated by C code. They take turns, round by round, and each round starts from the same mask. Walks are too short
for the full evaluation that a run makes every `refresh_steps` steps.
"""

import contextlib
import gc
import io
import itertools
import json
import operator
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import jax

from sa_jax.annealing.chain import anneal
from sa_jax.commands.bench.ceilings import bound_seconds, count, measure_ceilings
from sa_jax.commands.bench.methods import (
    compiled_method,
    compiled_seconds,
    has_native,
    has_numba,
    incremental,
    jax_method,
)
from sa_jax.commands.bench.problems import NETWORKS, WIDTHS, WIDTHS_FAN_OUT, Case, cases, synthesize
from sa_jax.commands.hardware import available_cores, machine, program_bytes
from sa_jax.files import workdirs
from sa_jax.landscapes import native
from sa_jax.types import InputError

ROUNDS, ROUND_SECONDS = 5, 0.3
# A chain walks at most so many steps before it starts again, because the cost of a proposal changes along the
# walk.
MAX_STEPS = 500
# Names for people and colours of the methods, in the order of the rows.
LABELS = {"naive": "naive", "compiled": "compiled", "incremental": "incremental (XLA)", "native": "native (C)"}
COLORS = {"naive": "#9aa3ab", "compiled": "#d55e00", "incremental": "#0072b2", "native": "#009e73"}


def measure(
    case: Case, ceilings: dict[str, Any], rounds: int = ROUNDS, seconds: float = ROUND_SECONDS
) -> list[dict[str, Any]]:
    """Measures all methods of a case in this process, in turns, and returns their rows.

    A round consists of walks from the same mask that together take about `seconds`. Each walk has `MAX_STEPS`
    steps, or fewer if that takes longer; `compiled` and `native` make as many steps as `incremental`. Figures are
    medians over rounds.

    Args:
      case: what to measure.
      ceilings: the result of `measure_ceilings`.
      rounds: number of rounds.
      seconds: time of a round of each method.
    """
    jax.clear_caches()
    gc.collect()
    if case.cores == 1 and has_numba():
        compiled_seconds()
    counted = count(case.sizes, case.density, case.fan_out)
    problem = synthesize(case.sizes, case.density, case.samples, case.fan_out)
    methods = {"incremental": jax_method("incremental", case, problem, counted)}
    if has_native():
        methods["native"] = jax_method("native", case, problem, counted)
    if case.cores == 1 and has_numba():
        methods["compiled"] = compiled_method(case, problem, counted)
    if case.naive:
        methods["naive"] = jax_method("naive", case, problem, counted)
    steps: dict[str, int] = {}
    repeats: dict[str, int] = {}
    for name, method in methods.items():
        at_once = method.steps_at_once
        method.walk(at_once)
        per_step = method.walk(at_once)[0] / (at_once * case.chains)
        fitting = min(int(seconds / per_step), MAX_STEPS) // at_once * at_once
        steps[name] = steps["incremental"] if name in ("compiled", "native") else max(fitting, at_once)
        repeats[name] = max(round(seconds / (per_step * steps[name] * case.chains)), 1)
    results = {name: [] for name in methods}
    for _ in range(rounds):
        for name, method in methods.items():
            walks = [method.walk(steps[name]) for _ in range(repeats[name])]
            results[name].append((sum(taken for taken, _ in walks), walks[0][1]))
    acceptance = statistics.median(share for _, share in results["incremental"])
    flops = counted.flops * case.samples
    moved = (counted.read + acceptance * counted.written) * case.samples
    working_set = 4 * case.samples * sum(case.sizes)
    bound = bound_seconds(flops, moved, working_set, ceilings)
    rows = []
    for name in (name for name in LABELS if name in methods):
        proposals = repeats[name] * steps[name] * case.chains
        times = [taken / proposals for taken, _ in results[name]]
        rows.append(
            {
                "network": "-".join(map(str, case.sizes)),
                "density": float(problem.mask.mean()) if case.fan_out else case.density,
                "samples": case.samples,
                "chains": case.chains,
                "cores": case.cores,
                "method": name,
                "mask": f"random, fan-out {case.fan_out}" if case.fan_out else "largest weights",
                "proposals_per_second": 1 / statistics.median(times),
                "microseconds": 1e6 * statistics.median(times),
                "microseconds_range": [1e6 * min(times), 1e6 * max(times)],
                "seconds": [taken for taken, _ in results[name]],
                "steps": steps[name],
                "walks": repeats[name],
                "acceptance": statistics.median(share for _, share in results[name]),
                "temperature": counted.temperature,
                "compile_seconds": methods[name].compile_seconds,
                "peak_bytes": methods[name].peak_bytes,
                "arrays_bytes": methods[name].arrays_bytes,
                "flops": flops,
                "bytes": moved,
                "ceiling_fraction": bound / (statistics.median(times) * case.cores),
            }
        )
    return rows


def measure_memory() -> dict[str, int]:
    """Returns the bytes of a compiled program that anneals MLPNet at 2,000 samples, by its number of steps."""
    problem = synthesize(NETWORKS[0], 0.05, 2_000)

    def program(steps):
        def best(key, network, mask, data):
            return anneal(key, incremental(network), mask, 1e-3, steps, data).best

        data = (problem.inputs, problem.labels)
        return jax.jit(best).lower(jax.random.key(0), problem.network, problem.mask, data).compile()

    return {str(steps): program_bytes(program(steps)) for steps in (1_000, 100_000)}


def bench(quick: bool, save: Callable[[dict[str, Any]], None] = lambda result: None) -> dict[str, Any]:
    """Measures all cases, one after the other, each in a process bound to its number of cores.

    Args:
      quick: whether to measure a few cases only.
      save: called with the result so far after each case.
    """
    chosen, available = cases(quick), available_cores()
    if available < 2:
        print("bench: cases with two cores are left out: only one core is available", file=sys.stderr)
        chosen = [case for case in chosen if case.cores <= available]
    if not has_numba():
        print("bench: 'compiled' is left out: numba is missing; pip install 'sa_jax[dev]'", file=sys.stderr)
    result: dict[str, Any] = {"machine": machine()}
    try:
        result["machine"]["native"] = native.ready().description
    except native.Unavailable as reason:
        print(f"bench: 'native' is left out: {reason}", file=sys.stderr)
    with contextlib.ExitStack() as stack:
        workers = {cores: stack.enter_context(_worker(cores)) for cores in {case.cores for case in chosen}}
        result["ceilings"] = workers[1].submit(measure_ceilings).result()
        result["peak_bytes_by_steps"] = workers[1].submit(measure_memory).result()
        result["rows"] = []
        for done, case in enumerate(chosen):
            begin = time.perf_counter()
            result["rows"] += workers[case.cores].submit(measure, case, result["ceilings"]).result()
            save(result)
            name = "-".join(map(str, case.sizes))
            what = f"{name}, density {case.density:g}, {case.samples:,} samples, {case.chains} x {case.cores}"
            seconds = time.perf_counter() - begin
            print(f"{done + 1}/{len(chosen)}  {what}: {seconds:.0f} s", file=sys.stderr, flush=True)
    return result


@contextlib.contextmanager
def _worker(cores: int) -> Iterator[ProcessPoolExecutor]:
    # Threads inherit the cores of the thread that starts them, so the process must be bound when it starts.
    executor = ProcessPoolExecutor(1, get_context("spawn"), _use_devices, (cores,))
    if hasattr(os, "sched_setaffinity"):
        before = os.sched_getaffinity(0)
        os.sched_setaffinity(0, sorted(before)[-cores:])
        try:
            executor.submit(os.getpid).result()
        finally:
            os.sched_setaffinity(0, before)
    with executor:
        yield executor


def _use_devices(cores: int) -> None:
    jax.config.update("jax_num_cpu_devices", cores)


def table(result: dict[str, Any]) -> str:
    """Returns the machine, its ceilings and the rows as text, and how fast `native` is beside the others."""
    ceilings, versions = result["ceilings"], result["machine"]["versions"]
    copies = ", ".join(
        f"{rate / 1e9:.0f} ({int(size) // 1024:,} KiB)" for size, rate in ceilings["copy_bytes_per_second"].items()
    )
    lines = [
        f"{result['machine']['processor']}, jax {versions['jax']}; one core: "
        f"{ceilings['flops_per_second'] / 1e9:.0f} GFLOP/s, copies {copies} GB/s",
        f"{'network':<29}{'density':>8}{'samples':>8}{'chains':>7}{'cores':>6}  {'method':<18}{'us':>10}"
        f"{'least':>10}{'most':>10}{'per s':>9}{'compile s':>10}{'MB':>8}{'accepted':>9}{'ceiling':>8}",
    ]
    for row in result["rows"]:
        least, most = row["microseconds_range"]
        lines.append(
            f"{row['network']:<29}{row['density']:>8.3g}{row['samples']:>8}{row['chains']:>7}{row['cores']:>6}  "
            f"{LABELS[row['method']]:<18}{row['microseconds']:>10.1f}{least:>10.1f}{most:>10.1f}"
            f"{row['proposals_per_second']:>9.0f}{row['compile_seconds']:>10.1f}{row['peak_bytes'] / 1e6:>8.1f}"
            f"{row['acceptance']:>9.1%}{row['ceiling_fraction']:>8.1%}"
        )
    return "\n".join(lines + _native_ratios(result))


def _native_ratios(result: dict[str, Any]) -> list[str]:
    """A line per case: the proposals per second of `native` as a multiple of those of two other methods."""
    case_of = operator.itemgetter("network", "density", "samples", "chains", "cores", "mask")
    lines = []
    for case, rows in itertools.groupby(result["rows"], case_of):
        speeds = {row["method"]: row["proposals_per_second"] for row in rows}
        if "native" in speeds:
            network, density, samples, chains, cores, _ = case
            ratios = " and ".join(
                f"{speeds['native'] / speeds[other]:.2f} times as fast as {LABELS[other]}"
                for other in ("incremental", "compiled")
                if other in speeds
            )
            name = f"{network}, density {density:.3g}, samples {samples:,}, chains {chains}, cores {cores}"
            lines.append(f"{name}: {LABELS['native']} is {ratios}")
    if lines:
        forms = f"{LABELS['incremental']} and {LABELS['native']} are two forms of the same landscape"
        lines.append(f"{forms}; the C code: {result['machine']['native']}")
    return lines


def draw(result: dict[str, Any]) -> bytes:
    """Returns a PNG: proposals per second against samples for each network, and cost against width."""
    from matplotlib.figure import Figure

    styles = {0.5: ":", 0.05: "-", 0.02: "--"}
    single = [row for row in result["rows"] if row["chains"] == row["cores"] == 1]
    measured = {row["method"] for row in single}
    colors = {method: color for method, color in COLORS.items() if method in measured}
    by_samples = [row for row in single if row["mask"] == "largest weights"]
    by_width = [row for row in single if row["mask"] != "largest weights"]
    networks = list(dict.fromkeys(row["network"] for row in by_samples))
    figure = Figure((12, 7), layout="constrained", dpi=120)
    panels = figure.subplots(2, 3).flat
    for axes, network in zip(panels, networks, strict=False):
        for method, color in colors.items():
            for density, style in styles.items():
                rows = [row for row in by_samples if (row["network"], row["method"]) == (network, method)]
                points = sorted(
                    (row["samples"], row["proposals_per_second"]) for row in rows if row["density"] == density
                )
                if points:
                    axes.plot(*zip(*points, strict=True), style, color=color, marker=".")
        axes.set(title=network, xscale="log", yscale="log", xlabel="samples", ylabel="proposals per second")
    *_, widths, legend = figure.axes
    for method, color in colors.items():
        points = sorted(
            (int(row["network"].split("-")[1]), row["microseconds"]) for row in by_width if row["method"] == method
        )
        if points:
            widths.plot(*zip(*points, strict=True), color=color, marker=".")
        legend.plot([], [], color=color, label=LABELS[method])
    for density, style in styles.items():
        legend.plot([], [], style, color="black", label=f"density {density:g}")
    title = f"784-W-W-10, {WIDTHS_FAN_OUT} kept per unit, 2,000 samples"
    widths.set(title=title, xscale="log", yscale="log", xlabel="W", ylabel="microseconds per proposal")
    widths.set_xticks(WIDTHS, labels=[f"{width:,}" for width in WIDTHS])
    widths.minorticks_off()
    widths.set_visible(bool(by_width))
    legend.legend(loc="center", frameon=False)
    legend.axis("off")
    image = io.BytesIO()
    figure.savefig(image, format="png", metadata={"Software": None})
    return image.getvalue()


def check_out(path: Path) -> None:
    """Raises `InputError` if a result cannot be written."""
    if path.suffix != ".json":
        raise InputError(f"--out={path} must end in .json; the picture is written beside it as .png")
    if not path.parent.is_dir():
        raise InputError(f"--out={path} cannot be written: the folder {path.parent} is not there")
    if path.is_dir() or path.with_suffix(".png").is_dir():
        raise InputError(f"--out={path} cannot be written: a folder has that name")
    try:
        tempfile.TemporaryFile(dir=path.parent).close()
    except OSError as error:
        raise InputError(f"--out={path} cannot be written: {error.strerror}") from None


def write(result: dict[str, Any], path: Path) -> None:
    """Writes a result to FILE.json."""
    workdirs.check_finite(path.name, result)
    workdirs.write_file(path, json.dumps(result, indent=1) + "\n")


def write_picture(result: dict[str, Any], path: Path) -> None:
    """Draws a result into FILE.png, beside FILE.json."""
    workdirs.write_file(path.with_suffix(".png"), draw(result))
