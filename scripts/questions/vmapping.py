"""When many chains on a CPU are faster vmapped than one after the other: measuring, table."""

import json
import statistics
import time
from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from sa_jax import Landscape, anneal, from_energy
from sa_jax.annealing.chain import init
from sa_jax.commands.bench import problems
from sa_jax.landscapes.mlp import masked_mlp
from sa_jax.moves.uniform import uniform_swap
from sa_jax.networks.energies import cross_entropy
from sa_jax.types import PyTree

from .timing import take_turns, use_one_core

CHAINS = 256
# Numbers of chains vmapped together; 1 is one chain after the other.
BATCHES = (1, 4, 16, 64, 256)
# Vertices of the graphs whose cut is changed step by step, and of those whose whole cut is evaluated.
CHANGED, EVALUATED = (20, 60, 250, 1_000, 4_000), (20, 60, 250, 1_000)
# About the time of a call in a batch of one chain, from which the number of steps follows.
CALL_SECONDS = 0.3


class Sides(NamedTuple):
    """State of a landscape of cuts: see `landscapes.md`."""

    position: jax.Array  # float32 [vertices], +1 or -1
    energy: jax.Array  # float32 []
    fields: jax.Array  # float32 [vertices]


class Case(NamedTuple):
    """A problem to anneal.

    Attributes:
      name: how the table calls it.
      landscape: the landscape.
      start: the position that all chains start at.
      data: see `anneal`.
      temperature: at which some proposals are accepted, and most are not.
    """

    name: str
    landscape: Landscape
    start: PyTree
    data: tuple
    temperature: float


def measure() -> dict[str, Any]:
    """CPU time per proposal of many chains on one core, by how many are vmapped together."""
    use_one_core()
    rows = []
    for case in cases():
        rows.append(measured(case))
        print(json.dumps(rows[-1]), flush=True)
    return {"chains": CHAINS, "cases": rows}


def cases() -> list[Case]:
    """Cuts of small and large graphs, by their change and in full, and networks whose masks are annealed."""
    changed = [Case(f"cut of {size:,} vertices, by its change", changed_cut(), *graph(size)) for size in CHANGED]
    evaluated = [Case(f"cut of {size:,} vertices, in full", evaluated_cut(), *graph(size)) for size in EVALUATED]
    networks = ((64, 32, 16, 10), 300), (problems.NETWORKS[0], 2_000)
    return [*changed, *evaluated, *(masks(*one, backend) for one in networks for backend in ("xla", "native"))]


def graph(size: int) -> tuple[jax.Array, tuple[jax.Array], float]:
    """All vertices on one side, the weights of a complete graph, and a temperature for its cuts."""
    weights = jnp.triu(jax.random.normal(jax.random.key(0), (size, size)), 1)
    return jnp.ones(size), (weights + weights.T,), 0.3 * size**0.5


def changed_cut() -> Landscape:
    """The landscape of `landscapes.md`: a proposal reads one field, and a commit adds one row of the weights."""

    def evaluate(sides, data):
        fields = data[0] @ sides
        return Sides(sides, -(data[0].sum() - sides @ fields) / 4, fields)

    def propose(noise, state, temperature):
        return (noise * state.position.size).astype(jnp.int32), jnp.float32(0)

    def delta(state, vertex, data):
        side = state.position[vertex]
        return -side * state.fields[vertex], -2.0 * side * data[0][vertex]

    def commit(state, vertex, row, accepted):
        energy = state.energy - jnp.where(accepted, state.position[vertex] * state.fields[vertex], 0.0)
        sides = state.position.at[vertex].multiply(jnp.where(accepted, -1, 1))
        return Sides(sides, energy, state.fields + jnp.where(accepted, row, 0.0))

    def refresh(state, data):
        return evaluate(state.position, data)

    return Landscape(evaluate, jax.random.uniform, propose, delta, commit, refresh)


def evaluated_cut() -> Landscape:
    """The same problem from an energy function, which evaluates each proposed cut in full."""

    def energy(sides, weights):
        return -(weights.sum() - sides @ (weights @ sides)) / 4

    def move(rng_key, sides):
        return sides.at[jax.random.randint(rng_key, (), 0, sides.size)].multiply(-1)

    return from_energy(energy, move)


def masks(sizes: tuple[int, ...], samples: int, backend: str) -> Case:
    """The mask of a network, evaluated by XLA or by native code."""
    synthetic = problems.synthesize(sizes, 0.05, samples)
    name = f"mask of {'-'.join(map(str, sizes))}, {samples:,} samples, {backend}"
    landscape = masked_mlp(synthetic.network, uniform_swap(), cross_entropy(problems.LOGIT_SCALE), backend=backend)
    return Case(name, landscape, jnp.asarray(synthetic.mask), (synthetic.inputs, synthetic.labels), 1e-3)


def measured(case: Case) -> dict[str, Any]:
    """Microseconds of CPU time per proposal, by the number of chains vmapped together."""
    keys = jax.random.split(jax.random.key(1), CHAINS)
    steps = 100
    seconds = once(partial(chains(case, 1, steps), keys, case.start, case.data))
    steps = max(100, min(20_000, int(steps * CALL_SECONDS / seconds) // 100 * 100))
    calls = {batch: partial(chains(case, batch, steps), keys, case.start, case.data) for batch in BATCHES}
    accepted = float(calls[1]()[1].mean()) / steps
    times = take_turns(calls, time.process_time)
    return {
        "name": case.name,
        "state_bytes": state_bytes(case),
        "steps": steps,
        "accepted": accepted,
        "microseconds": {batch: 1e6 * statistics.median(one) / (steps * CHAINS) for batch, one in times.items()},
        "of_one_by_one": {
            batch: statistics.median(ours / first for ours, first in zip(one, times[1], strict=True))
            for batch, one in times.items()
        },
    }


def state_bytes(case: Case) -> int:
    """Bytes of the state of one chain."""
    state = jax.eval_shape(partial(init, case.landscape), case.start, case.data)
    return sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(state))


def once(call: Callable[[], Any]) -> float:
    """Seconds of CPU time of a call, after one that compiles."""
    jax.block_until_ready(call())
    start = time.process_time()
    jax.block_until_ready(call())
    return time.process_time() - start


def chains(case: Case, batch: int, steps: int) -> Callable[..., tuple[jax.Array, jax.Array]]:
    """The lowest energies of all chains and their accepted proposals, `batch` chains vmapped together."""

    @jax.jit
    def walk(keys, start, data):
        def one(rng_key):
            result = anneal(rng_key, case.landscape, start, case.temperature, steps, data)
            return result.best_energy, result.num_accepted

        return jax.lax.map(one, keys, batch_size=None if batch == 1 else batch)

    return walk


def table(result: dict[str, Any]) -> str:
    """A table of the time per proposal by the number of chains vmapped together, and the share of the fastest."""
    batches = list(result["cases"][0]["microseconds"])
    machine = result["machine"]
    lines = [
        f"| problem of {result['chains']} chains | state of a chain | {' | '.join(batches)} |",
        "|---|---|" + "---|" * len(batches),
    ]
    for row in result["cases"]:
        fastest = min(batches, key=row["of_one_by_one"].__getitem__)
        times = [f"{row['microseconds'][batch]:.2g}" for batch in batches]
        times = [f"**{one}**" if batch == fastest else one for batch, one in zip(batches, times, strict=True)]
        lines.append(f"| {row['name']} | {row['state_bytes'] / 1_000:,.1f} kB | {' | '.join(times)} |")
    return "\n".join(lines) + (
        "\n\nMicroseconds of CPU time per proposal by the number of chains vmapped together: medians of rounds in "
        f"which the columns took turns, on one core of {machine['processor']}, jax {machine['versions']['jax']}."
    )
