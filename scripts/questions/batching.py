"""What it brings to evaluate chains together, or proposals of one chain together: measuring, table."""

import json
import statistics
from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp

from sa_jax import anneal
from sa_jax.commands.bench import proposals
from sa_jax.types import Landscape

from .timing import SAMPLES, take_turns, use_one_core

CHAINS = 16
CHAIN_STEPS = 500
LOW_TEMPERATURE = 1e-6
# Networks, and the samples that each is given.
PROPOSAL_CASES = (
    ((64, 32, 16, 10), 300),
    (proposals.NETWORKS[0], SAMPLES),
    (proposals.NETWORKS[1], SAMPLES),
)


def measure() -> dict[str, Any]:
    """Times chains vmapped in groups or one after the other, and proposals evaluated together, on one core.

    Networks and data are those of `sa-jax bench`.
    """
    use_one_core()
    chain_batch = measure_chains()
    parallel_proposals = [measure_proposals(sizes, number) for sizes, number in PROPOSAL_CASES]
    print(json.dumps([chain_batch, parallel_proposals], indent=1))
    return {
        "network": proposals.NETWORKS[0],
        "chains": CHAINS,
        "chain_batch": chain_batch,
        "parallel_proposals": parallel_proposals,
    }


def measure_chains() -> list[dict[str, Any]]:
    """Microseconds per proposal by how many chains are vmapped together."""
    synthetic = proposals.synthesize(proposals.NETWORKS[0], 0.05, SAMPLES)
    landscape, samples = proposals.incremental(synthetic.network), (synthetic.inputs, synthetic.labels)
    keys = jax.random.split(jax.random.key(0), CHAINS)
    calls = {
        batch: partial(jax.jit(chains_by(batch, landscape)), keys, synthetic.mask, samples)
        for batch in (1, 4, CHAINS)
    }
    return [
        {"chain_batch": batch, "microseconds": 1e6 * statistics.median(times) / (CHAIN_STEPS * CHAINS)}
        for batch, times in take_turns(calls).items()
    ]


def chains_by(batch: int, landscape: Landscape) -> Callable[..., jax.Array]:
    """The final energies of chains, `batch` of them vmapped together."""

    def chains(keys, mask, samples):
        def chain(key):
            return anneal(key, landscape, mask, 1e-3, CHAIN_STEPS, samples).final_energy

        return jax.lax.map(chain, keys, batch_size=None if batch == 1 else batch)

    return chains


def measure_proposals(sizes: tuple[int, ...], number: int) -> dict[str, Any]:
    """Microseconds per proposal by how many are evaluated together.

    This is measured after a greedy descent, at a temperature at which few are accepted: with many, the later ones
    of a group are wasted.
    """
    synthetic = proposals.synthesize(sizes, 0.05, number)
    landscape, samples = proposals.incremental(synthetic.network), (synthetic.inputs, synthetic.labels)
    mask = anneal(jax.random.key(1), landscape, jnp.asarray(synthetic.mask), 0.0, 10_000, samples).final
    steps = 6_000_000 // number
    calls = {
        at_once: partial(jax.jit(chain_by(at_once, landscape, steps)), jax.random.key(0), mask, samples)
        for at_once in (1, 2, 4, 8)
    }
    accepted = float(calls[1]()[1]) / steps
    times = {at_once: 1e6 * statistics.median(times) / steps for at_once, times in take_turns(calls).items()}
    return {"network": sizes, "samples": number, "accepted": accepted, "microseconds": times}


def chain_by(at_once: int, landscape: Landscape, steps: int) -> Callable[..., tuple[jax.Array, jax.Array]]:
    """A chain's final energy and accepted proposals, `at_once` of which are evaluated together."""

    def chain(key, mask, samples):
        result = anneal(key, landscape, mask, LOW_TEMPERATURE, steps, samples, parallel_proposals=at_once)
        return result.final_energy, result.num_accepted

    return chain


def table(result: dict[str, Any]) -> str:
    """A sentence on chains, then a table of proposals evaluated together."""
    batches = ", ".join(f"{row['microseconds']:.0f} ({row['chain_batch']})" for row in result["chain_batch"])
    network = "-".join(map(str, result["network"]))
    text = (
        f"Microseconds per proposal of {result['chains']} chains of {network} on one core, in brackets how many "
        f"were vmapped together: {batches}. Proposals evaluated together, likewise:\n\n"
        "| network | samples | accepted | 1 | 2 | 4 | 8 together |\n|---|---|---|---|---|---|---|\n"
    )
    rows = [
        f"| {'-'.join(map(str, row['network']))} | {row['samples']:,} | {row['accepted']:.1%} | "
        + " | ".join(f"{taken:.1f}" for taken in row["microseconds"].values())
        + " |"
        for row in result["parallel_proposals"]
    ]
    return text + "\n".join(rows)
