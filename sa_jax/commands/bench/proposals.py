"""Runs `sa-jax bench`: proposals per second of three implementations of annealing, beside the machine's limits.

`naive` evaluates the whole masked network for each proposal, `compiled` is the incremental algorithm as a compiled
loop on one core, and `incremental` is `landscapes.mlp.masked_mlp`. They take turns, round by round, and each round
starts from the same mask. Everything is made from fixed seeds: inputs like those of MNIST, He-scaled weights, and
the dense network's answers as labels. The first mask keeps the largest weights of the whole network, and so a
larger share of the later layers. Walks are too short for the full evaluation that a run makes every
`refresh_steps` steps.
"""

import contextlib
import functools
import gc
import importlib.util
import io
import itertools
import json
import math
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import AxisType, NamedSharding, PartitionSpec

from sa_jax.annealing.chain import BLOCK_STEPS, anneal, init
from sa_jax.annealing.chain import run as run_steps
from sa_jax.annealing.landscape import from_energy
from sa_jax.annealing.schedules import END_SHARE, START_SHARE, constant_schedule
from sa_jax.commands.hardware import available_cores, machine, program_bytes
from sa_jax.files import workdirs
from sa_jax.landscapes.mlp import masked_mlp
from sa_jax.moves.base import move_fn
from sa_jax.moves.uniform import uniform_swap
from sa_jax.networks import masks, mlp
from sa_jax.networks.energies import cross_entropy
from sa_jax.networks.mlp import Network
from sa_jax.types import InputError, Landscape

LOGIT_SCALE = 4.0
ROUNDS, ROUND_SECONDS = 5, 0.3
# A chain walks at most so many steps before it starts again, because the cost of a proposal changes along the
# walk.
MAX_STEPS = 500
# Most floating-point operations that a compiled program makes between two checks of the round's length.
FLOPS_AT_ONCE = 2e9
COUNTED_PROPOSALS, COUNTED_SAMPLES = 500, 256
# Operations of `compiled`: of an exponential, and of the rest of the cross-entropy per sample.
EXP_FLOPS, LOG_FLOPS = 24, 4
COPY_KIB = (128, 1024, 8 * 1024, 256 * 1024)

NETWORKS = ((784, 40, 20, 10), (784, 300, 100, 10), (784, 1000, 1000, 10), (784, 512, 512, 512, 512, 512, 10))
WIDTHS, WIDTHS_FAN_OUT = (300, 1000, 3000), 15


class Case(NamedTuple):
    """A case to measure; `fan_out` above 0 means a random mask with so many kept branches per unit."""

    sizes: tuple[int, ...]
    density: float
    samples: int
    chains: int = 1
    cores: int = 1
    fan_out: int = 0
    naive: bool = False


class Synthetic(NamedTuple):
    """A network, its mask, bool `[total]`, inputs, float32 `[features, samples]`, and labels, int32."""

    network: Network
    mask: np.ndarray  # bool [total]
    inputs: np.ndarray  # float32 [features, samples]
    labels: np.ndarray  # int32 [samples]


class Count(NamedTuple):
    """Means over proposals, per sample: operations, bytes read, bytes written on acceptance; and a temperature."""

    flops: float
    read: float
    written: float
    temperature: float


def cases(quick: bool) -> list[Case]:
    """Returns the cases to measure."""
    if quick:
        single = [Case(sizes, 0.05, 2_000, naive=True) for sizes in NETWORKS]
        many = [Case(NETWORKS[0], 0.05, 2_000, chains, cores) for chains, cores in ((2, 1), (2, 2), (64, 1))]
        return single + many
    single = [
        # Full evaluation of 60,000 samples takes seconds: once per network is enough.
        Case(sizes, density, samples, naive=samples <= 10_000 or density == 0.05)
        for sizes in NETWORKS
        for density in (0.5, 0.05, 0.02)
        for samples in (1_000, 2_000, 10_000, 60_000)
    ]
    widths = [Case((784, width, width, 10), 0.0, 2_000, fan_out=WIDTHS_FAN_OUT, naive=True) for width in WIDTHS]
    many = [
        Case(sizes, 0.05, 2_000, chains, cores)
        for sizes in NETWORKS[:2]
        for chains, cores in ((2, 1), (2, 2), (8, 1), (8, 2), (64, 1), (64, 2))
    ]
    many += [Case(sizes, 0.05, 2_000, 2, cores) for sizes in NETWORKS[2:] for cores in (1, 2)]
    return single + widths + many


@functools.lru_cache(maxsize=1)
def synthesize(sizes: tuple[int, ...], density: float, samples: int, fan_out: int = 0) -> Synthetic:
    """Makes a problem from fixed seeds; with another number of samples, all samples differ.

    A fifth of the pixels are nonzero before they are standardised like MNIST. A tenth of the labels are random.
    With `fan_out`, each input and each unit of all layers but the last keeps so many branches, chosen at random.
    """
    random = np.random.default_rng(0)
    kernels = tuple(
        random.normal(0, math.sqrt(2 / inputs), (inputs, outputs)).astype(np.float32)
        for inputs, outputs in itertools.pairwise(sizes)
    )
    network = Network(kernels, (None,) * len(kernels))  # type: ignore[arg-type]
    pixels = random.random((sizes[0], samples), np.float32)
    pixels *= random.random((sizes[0], samples), np.float32) < 0.2
    inputs = (pixels - np.float32(0.1307)) / np.float32(0.3081)
    logits = np.asarray(mlp.forward(network, jnp.asarray(inputs.T)))
    noisy = random.random(samples) < 0.1
    labels = np.where(noisy, random.integers(0, sizes[-1], samples), logits.argmax(1)).astype(np.int32)
    if fan_out:
        layers = [random.random(kernel.shape).argsort(1).argsort(1) < fan_out for kernel in kernels]
        mask = np.concatenate([np.ravel(layer) for layer in layers])
    else:
        weights = jnp.abs(masks.flatten(network.kernels))
        mask = np.asarray(masks.by_score(weights, masks.num_kept(density, network.total)))
    return Synthetic(network, mask, inputs, labels)


@functools.cache
def count(sizes: tuple[int, ...], density: float, fan_out: int = 0) -> Count:
    """Counts what a proposal from the first mask must compute and move, by following sampled proposals.

    Operations per sample: a multiply-add is 2. Each end of a swap is a multiply-add, and so is every kept branch
    of a unit whose activation changes. A changed hidden unit is 3 (new activation, old activation, their
    difference). An exponential is `EXP_FLOPS`; beside it there are 5 per class (largest logit, difference, scale,
    sum, label) and `LOG_FLOPS` per sample. Bytes read, 4 per sample and value, each value once: the inputs of the
    swap's ends, the old row of every changed unit, all logits and the labels; everything in between can stay in
    registers. Bytes written on acceptance: the rows of the changed units. Units whose row does not change on any
    of the `COUNTED_SAMPLES` samples are not counted, nor is the cross-entropy where no logit changes. Index lists
    do not grow with the samples and are left out.

    The temperature is that of the middle of a run: the geometric mean of the two temperatures of `calibrate`.
    """
    problem = synthesize(sizes, density, COUNTED_SAMPLES, fan_out)
    kernels = [np.asarray(kernel) for kernel in problem.network.kernels]
    kept = np.split(problem.mask, np.cumsum([kernel.size for kernel in kernels])[:-1])
    kept = [mask.reshape(kernel.shape) for mask, kernel in zip(kept, kernels, strict=True)]
    entering, outputs = [problem.inputs], []
    for mask, kernel in zip(kept, kernels, strict=True):
        outputs.append(np.where(mask, kernel, 0).T @ entering[-1])
        entering.append(np.maximum(outputs[-1], 0))

    def energy(logits):
        scaled = LOGIT_SCALE * (logits - logits.max(0))
        return float(np.mean(np.log(np.exp(scaled).sum(0)) - scaled[problem.labels, np.arange(logits.shape[1])]))

    random = np.random.default_rng(1)
    branches = [np.flatnonzero(problem.mask), np.flatnonzero(~problem.mask)]
    starts = np.cumsum([0, *(kernel.size for kernel in kernels)])
    flops = read = written = 0
    start_energy, energy_changes = energy(outputs[-1]), []
    for _ in range(COUNTED_PROPOSALS):
        ends = []
        for sign, choice in zip((-1, 1), branches, strict=True):
            branch = random.choice(choice)
            layer = int(np.searchsorted(starts, branch, side="right")) - 1
            ends.append((sign, layer, *divmod(int(branch - starts[layer]), sizes[layer + 1])))
        units, changes = np.zeros(0, int), np.zeros((0, COUNTED_SAMPLES), np.float32)
        for layer, (mask, kernel) in enumerate(zip(kept, kernels, strict=True)):
            fan_out_kept = mask[units]
            for sign, end_layer, source, target in ends:
                if sign < 0 and end_layer == layer:
                    fan_out_kept[units == source, target] = False
            change = np.where(fan_out_kept, kernel[units], 0).T @ changes
            flops += 2 * int(fan_out_kept.sum())
            for sign, end_layer, source, target in ends:
                if end_layer == layer:
                    row = entering[layer][source]
                    if sign > 0:
                        row = row + changes[units == source].sum(0)
                    if row.any():
                        change[target] += sign * kernel[source, target] * row
                        flops += 2
                        read += 4 * (source not in units)
            changed = np.flatnonzero(change.any(1))
            read, written = read + 4 * len(changed), written + 4 * len(changed)
            if layer < len(kernels) - 1:
                flops += 3 * len(changed)
                changes = np.maximum(outputs[layer][changed] + change[changed], 0) - entering[layer + 1][changed]
                units, changes = changed[changes.any(1)], changes[changes.any(1)]
            elif len(changed):
                flops += sizes[-1] * (EXP_FLOPS + 5) + LOG_FLOPS
                read += 4 * (sizes[-1] - len(changed)) + 4
                energy_changes.append(abs(energy(outputs[-1] + change) - start_energy))
    flops, read, written = (total / COUNTED_PROPOSALS for total in (flops, read, written))
    return Count(flops, read, written, math.sqrt(START_SHARE * END_SHARE) * float(np.median(energy_changes)))


def measure_ceilings() -> dict[str, Any]:
    """Measures the fastest of some copies and matrix products on one core.

    Returns:
      `copy_bytes_per_second` by size of the working set in bytes, both counting source and copy; and
      `flops_per_second` of a float32 product.
    """

    def fastest(call: Callable[[], Any], repeats: int) -> float:
        times = []
        for _ in range(7):
            start = time.perf_counter()
            for _ in range(repeats):
                call()
            times.append((time.perf_counter() - start) / repeats)
        return min(times)

    copies = {}
    for kib in COPY_KIB:
        source = np.ones(kib * 1024 // 8, np.float32)
        target = np.zeros_like(source)
        seconds = fastest(functools.partial(np.copyto, target, source), max(1, 64 * 1024 // kib))
        copies[str(kib * 1024)] = kib * 1024 / seconds
    product = jax.jit(jnp.matmul)
    rates = []
    for size in (256, 512):
        matrix = jnp.ones((size, size), jnp.float32)
        product(matrix, matrix).block_until_ready()
        seconds = fastest(lambda of=matrix: product(of, of).block_until_ready(), 10)
        rates.append(2 * size**3 / seconds)
    return {"copy_bytes_per_second": copies, "flops_per_second": max(rates)}


def bound_seconds(flops: float, moved: float, working_set: float, ceilings: dict[str, Any]) -> float:
    """Returns the time to compute at the measured rate, or to move at that of the next larger copy, if longer.

    Args:
      flops: floating-point operations.
      moved: bytes read and written.
      working_set: bytes that are in use at a time.
      ceilings: the result of `measure_ceilings`.
    """
    copies = {int(size): rate for size, rate in ceilings["copy_bytes_per_second"].items()}
    fitting = [size for size in sorted(copies) if size >= working_set]
    bandwidth = copies[fitting[0] if fitting else max(copies)]
    return max(flops / ceilings["flops_per_second"], moved / bandwidth)


def naive(network: Network) -> Landscape:
    """Returns the fastest form of full evaluation: samples first, the index lists of swaps in the position."""
    energy = cross_entropy(LOGIT_SCALE)

    def energy_fn(position, x, y):
        return energy(mlp.forward(mlp.masked(network, position[0]), x), y)

    return from_energy(energy_fn, move_fn(uniform_swap()))


def incremental(network: Network) -> Landscape:
    """Returns the landscape of `sa_jax.landscapes.mlp`."""
    return masked_mlp(network, uniform_swap(), cross_entropy(LOGIT_SCALE))


class Method(NamedTuple):
    """A method to time; each `walk(steps)` starts again and returns its seconds and its acceptance."""

    walk: Callable[[int], tuple[float, float]]
    steps_at_once: int
    compile_seconds: float
    peak_bytes: int
    arrays_bytes: int


def steps_at_once(flops: float) -> int:
    """Returns the number of proposals between two checks of a round's length, from the operations of one."""
    return int(np.clip(FLOPS_AT_ONCE // flops, 2, BLOCK_STEPS))


def jax_method(name: str, case: Case, problem: Synthetic, counted: Count) -> Method:
    """Compiles `naive` or `incremental`; chains are spread over cores and run one after the other on each core."""
    is_naive = name == "naive"
    landscape_of = naive if is_naive else incremental
    network: Network = jax.tree.map(jnp.asarray, problem.network)
    mask = jnp.asarray(problem.mask)
    x = jnp.asarray(problem.inputs.T if is_naive else problem.inputs)
    data = (x, jnp.asarray(problem.labels))
    flops = case.samples * (2 * network.total if is_naive else counted.flops)
    steps = steps_at_once(flops)
    mesh = jax.make_mesh(
        (case.cores,), ("chains",), axis_types=(AxisType.Auto,), devices=jax.local_devices()[: case.cores]
    )
    over_chains, everywhere = PartitionSpec("chains"), PartitionSpec()

    def walk_chains(keys, states, blocks, network, data, temperature):
        landscape = landscape_of(network)

        def one_chain(chain):
            key, start = chain

            def one_block(index, state):
                schedule = constant_schedule(temperature)
                return run_steps(key, landscape, state, schedule, index * BLOCK_STEPS, steps, data)[0]

            return jax.lax.fori_loop(0, blocks, one_block, start)

        return jax.lax.map(one_chain, (keys, states))

    def start(network, mask, data):
        position = (mask, uniform_swap().init(mask)) if is_naive else mask
        state = init(landscape_of(network), position, data)
        return jax.tree.map(lambda leaf: jnp.broadcast_to(leaf, (case.chains, *leaf.shape)), state)

    sharded = jax.shard_map(
        walk_chains,
        mesh=mesh,
        in_specs=(over_chains, over_chains, everywhere, everywhere, everywhere, everywhere),
        out_specs=over_chains,
        check_vma=False,
    )
    shared = NamedSharding(mesh, everywhere)
    network, mask, data, temperature = jax.device_put((network, mask, data, counted.temperature), shared)
    keys = jax.device_put(jax.random.split(jax.random.key(0), case.chains), NamedSharding(mesh, over_chains))
    begin = time.perf_counter()
    started = jax.jit(start, out_shardings=NamedSharding(mesh, over_chains)).lower(network, mask, data).compile()
    compile_seconds = time.perf_counter() - begin
    states = jax.block_until_ready(started(network, mask, data))
    begin = time.perf_counter()
    jitted = jax.jit(sharded, donate_argnums=1)
    program = jitted.lower(keys, states, jnp.int32(1), network, data, temperature).compile()
    compile_seconds += time.perf_counter() - begin
    arrays = jax.tree.leaves((states, network, data))

    def walk(num_steps: int) -> tuple[float, float]:
        states = jax.block_until_ready(started(network, mask, data))
        blocks = jnp.int32(num_steps // steps)
        begin = time.perf_counter()
        states = jax.block_until_ready(program(keys, states, blocks, network, data, temperature))
        return time.perf_counter() - begin, float(states.num_accepted.mean()) / num_steps

    peak_bytes = case.cores * program_bytes(program)
    return Method(walk, steps, compile_seconds, peak_bytes, sum(leaf.nbytes for leaf in arrays))


def compiled_method(case: Case, problem: Synthetic, counted: Count) -> Method:
    """Prepares the compiled loop; chains run one after the other."""
    from sa_jax.commands.bench import compiled

    fixed, start, scratch = compiled.prepare(*problem, logit_scale=LOGIT_SCALE, seed=0)
    per_chain = sum(field.nbytes for field in start)
    once = sum(field.nbytes for field in (*fixed, *scratch) if isinstance(field, np.ndarray))
    arrays = sum(field.nbytes for field in fixed if isinstance(field, np.ndarray)) + case.chains * per_chain

    def walk(num_steps: int) -> tuple[float, float]:
        chains = [compiled.Chain(*(field.copy() for field in start)) for _ in range(case.chains)]
        for index, chain in enumerate(chains):
            chain.bits[0] += np.uint64(2 * index)
        begin = time.perf_counter()
        accepted = [compiled.walk(fixed, chain, scratch, counted.temperature, num_steps) for chain in chains]
        return time.perf_counter() - begin, statistics.mean(accepted) / num_steps

    at_once = steps_at_once(case.samples * counted.flops)
    return Method(walk, at_once, compiled_seconds(), once + (case.chains + 1) * per_chain, arrays)


@functools.cache
def compiled_seconds() -> float:
    """Returns the compile time of the loop; one compilation serves all networks."""
    from sa_jax.commands.bench import compiled

    times = []
    for _ in range(2):
        begin = time.perf_counter()
        problem = compiled.prepare(*synthesize((8, 4, 3), 0.5, 8), logit_scale=LOGIT_SCALE, seed=0)
        compiled.walk(*problem, 1.0, 1)
        times.append(time.perf_counter() - begin)
    return times[0] - times[1]


def measure(
    case: Case, ceilings: dict[str, Any], rounds: int = ROUNDS, seconds: float = ROUND_SECONDS
) -> list[dict[str, Any]]:
    """Measures all methods of a case in this process, in turns, and returns their rows.

    A round consists of walks from the same mask that together take about `seconds`. Each walk has `MAX_STEPS`
    steps, or fewer if that takes longer; `compiled` makes as many steps as `incremental`. Figures are medians over
    rounds.

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
        steps[name] = steps["incremental"] if name == "compiled" else max(fitting, at_once)
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
    for name in sorted(methods, key=("naive", "compiled", "incremental").index):
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


def has_numba() -> bool:
    """Returns whether `compiled` can be measured."""
    return importlib.util.find_spec("numba") is not None


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
    """Returns the machine, its ceilings and the rows as text."""
    ceilings, versions = result["ceilings"], result["machine"]["versions"]
    copies = ", ".join(
        f"{rate / 1e9:.0f} ({int(size) // 1024:,} KiB)" for size, rate in ceilings["copy_bytes_per_second"].items()
    )
    lines = [
        f"{result['machine']['processor']}, jax {versions['jax']}; one core: "
        f"{ceilings['flops_per_second'] / 1e9:.0f} GFLOP/s, copies {copies} GB/s",
        f"{'network':<29}{'density':>8}{'samples':>8}{'chains':>7}{'cores':>6}  {'method':<12}{'us':>10}"
        f"{'least':>10}{'most':>10}{'per s':>9}{'compile s':>10}{'MB':>8}{'accepted':>9}{'ceiling':>8}",
    ]
    for row in result["rows"]:
        least, most = row["microseconds_range"]
        lines.append(
            f"{row['network']:<29}{row['density']:>8.3g}{row['samples']:>8}{row['chains']:>7}{row['cores']:>6}  "
            f"{row['method']:<12}{row['microseconds']:>10.1f}{least:>10.1f}{most:>10.1f}"
            f"{row['proposals_per_second']:>9.0f}{row['compile_seconds']:>10.1f}{row['peak_bytes'] / 1e6:>8.1f}"
            f"{row['acceptance']:>9.1%}{row['ceiling_fraction']:>8.1%}"
        )
    return "\n".join(lines)


def draw(result: dict[str, Any]) -> bytes:
    """Returns a PNG: proposals per second against samples for each network, and cost against width."""
    from matplotlib.figure import Figure

    colors = {"naive": "#9aa3ab", "compiled": "#d55e00", "incremental": "#0072b2"}
    styles = {0.5: ":", 0.05: "-", 0.02: "--"}
    single = [row for row in result["rows"] if row["chains"] == row["cores"] == 1]
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
        legend.plot([], [], color=color, label=method)
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
