"""The ceilings of `sa-jax bench`: what a proposal must compute and move, and how fast the machine does that."""

import functools
import math
import time
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from sa_jax.annealing.schedules import END_SHARE, START_SHARE
from sa_jax.commands.bench.problems import LOGIT_SCALE, synthesize

COUNTED_PROPOSALS, COUNTED_SAMPLES = 500, 256
# Operations of `compiled`: of an exponential, and of the rest of the cross-entropy per sample.
EXP_FLOPS, LOG_FLOPS = 24, 4
COPY_KIB = (128, 1024, 8 * 1024, 256 * 1024)


class Count(NamedTuple):
    """Means over proposals, per sample: operations, bytes read, bytes written on acceptance; and a temperature."""

    flops: float
    read: float
    written: float
    temperature: float


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
