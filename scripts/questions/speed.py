"""How much faster incremental evaluation is than full evaluation: measuring, sentence."""

import statistics
from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from sa_jax import anneal, from_energy, geometric_schedule
from sa_jax.files import datasets, weights
from sa_jax.landscapes.full import full_mlp
from sa_jax.landscapes.mlp import masked_mlp
from sa_jax.moves.base import move_fn
from sa_jax.moves.uniform import uniform_swap
from sa_jax.networks import masks, mlp
from sa_jax.networks.energies import cross_entropy
from sa_jax.types import Landscape

from .timing import ROUNDS, SAMPLES, take_turns, use_one_core

FULL_STEPS, INCREMENTAL_STEPS = 300, 20_000


class Case(NamedTuple):
    """A way to evaluate proposals, with the start, the samples and the steps of its chain."""

    landscape: Landscape
    start: Any
    samples: tuple[jax.Array, jax.Array]
    steps: int


def measure() -> dict[str, Any]:
    """Proposals per second of both landscapes of MLPNet, one chain each, taking turns on one core.

    One core because a run gives each chain one: on more, full evaluation would use them all at once.
    """
    use_one_core()
    dataset = datasets.load_dataset("mnist", 0.1307, 0.3081)
    network = mlp.network_of(weights.load(datasets.data_file("mlpnet_mnist_93.97.npz")))[1]
    x, y = (jnp.asarray(part[:SAMPLES]) for part in dataset.train)
    cases = cases_of(network, x, y)
    seconds = take_turns({name: call_of(case) for name, case in cases.items()})
    rates = {name: cases[name].steps / statistics.median(times) for name, times in seconds.items()}
    print(f"proposals per second: {rates}")
    return {
        "network": network.sizes,
        "samples": SAMPLES,
        "rounds": ROUNDS,
        "steps": {name: case.steps for name, case in cases.items()},
        "seconds": seconds,
        "proposals_per_second": rates,
        "ratio": rates["incremental"] / rates["full"],
        "seed": 0,
    }


def cases_of(network: mlp.Network, x: jax.Array, y: jax.Array) -> dict[str, Case]:
    """Full evaluation in two forms, and the incremental one, all from the mask of the largest weights."""
    mask = masks.by_score(jnp.abs(masks.flatten(network.kernels)), masks.num_kept(0.05, network.total))
    swaps, energy = uniform_swap(), cross_entropy(4.0)
    start = (mask, swaps.init(mask))

    def energy_by_sample(position, x, y):
        return energy(mlp.forward(mlp.masked(network, position[0]), x), y)

    # Full evaluation is faster with the samples first, so that this is what counts.
    by_sample = from_energy(energy_by_sample, move_fn(swaps))
    return {
        "full": Case(by_sample, start, (x, y), FULL_STEPS),
        "full_mlp": Case(full_mlp(network, swaps, energy), start, (x.T, y), FULL_STEPS),
        "incremental": Case(masked_mlp(network, swaps, energy), mask, (x.T, y), INCREMENTAL_STEPS),
    }


def call_of(case: Case) -> Callable[[], jax.Array]:
    """A jitted chain, ready to be timed."""
    schedule = geometric_schedule(2e-3, 1e-4, case.steps)

    @jax.jit
    def final_energy(key, start, samples):
        return anneal(key, case.landscape, start, schedule, case.steps, samples).final_energy

    return partial(final_energy, jax.random.key(0), case.start, case.samples)


def sentence(result: dict[str, Any]) -> str:
    """How many proposals a second, incremental and full."""
    rates = result["proposals_per_second"]
    return (
        f"On {'-'.join(map(str, result['network']))} with {result['samples']:,} samples one chain made "
        f"{rates['incremental']:,.0f} exact proposals a second, against {rates['full']:,.0f} by full evaluation: "
        f"{result['ratio']:.0f} times as many (medians of {result['rounds']} alternating rounds on one core of "
        f"{result['machine']['processor']}, jax {result['machine']['versions']['jax']})."
    )
