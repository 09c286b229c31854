"""What estimates without derivatives cost: measuring, table."""

import json
import statistics
import time
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp

from sa_jax.annealing.chain import init, run
from sa_jax.commands.bench import proposals
from sa_jax.landscapes.mlp import masked_mlp
from sa_jax.moves.informed import informed_swap
from sa_jax.networks import masks
from sa_jax.networks.energies import cross_entropy
from sa_jax.networks.slopes import ESTIMATES
from sa_jax.pruning import scores

from .timing import take_turns, use_one_core

DENSITY = 0.05
# Networks, and the samples in the energy: as many as a run chooses for so many branches out of 50,000, but for the
# deepest, which is measured on fewer because its proposals are slow.
CASES = (
    ((64, 32, 16, 10), 1_437),
    ((784, 40, 20, 10), 32_179),
    ((784, 300, 100, 10), 50_000),
    ((784, 1000, 1000, 10), 50_000),
    ((784, 512, 512, 512, 512, 512, 10), 5_000),
)
STEPS, SCORE_STEPS, ROUNDS = 100, 10, 3


def measure() -> dict[str, Any]:
    """Times refreshes with both kinds of estimates, proposals, and steps of score search, in turns on one core."""
    use_one_core()
    cases = [measure_case(sizes, samples) for sizes, samples in CASES]
    print(json.dumps(cases, indent=1))
    return {"density": DENSITY, "rounds": ROUNDS, "cases": cases, "seed": 0}


def measure_case(sizes: tuple[int, ...], samples: int) -> dict[str, Any]:
    """Seconds of CPU time on one network, on random weights and inputs."""
    synthetic = proposals.synthesize(sizes, DENSITY, samples)
    network, energy = synthetic.network, cross_entropy(4.0)
    # On the device, so that no call copies them.
    data, num_kept = (jnp.asarray(synthetic.inputs), jnp.asarray(synthetic.labels)), int(synthetic.mask.sum())
    by_sample = jnp.array(data[0].T), data[1]
    mask, rng_key = jnp.asarray(synthetic.mask), jax.random.key(0)
    calls, refresh_steps = {}, 0
    for estimates in ESTIMATES:
        landscape = masked_mlp(network, informed_swap(), energy, estimates=estimates)
        refresh_steps = landscape.refresh_steps
        state = jax.jit(partial(init, landscape))(mask, data)
        calls[f"refresh, {estimates}"] = partial(jax.jit(landscape.refresh), state.walk, data)
        if estimates == "forward":

            def chain(state, data, landscape=landscape):
                return run(rng_key, landscape, state, 1e-5, STEPS, STEPS, data)[0].best_energy

            calls["proposals"] = partial(jax.jit(chain), state, data)

        def search(state, x, y, estimates=estimates):
            settings = scores.ScoreSettings(1_000, estimates)
            found = scores.run(rng_key, state, network, x, y, num_kept, energy, "relu", settings, 0, SCORE_STEPS)
            return found.energy

        calls[f"search, {estimates}"] = partial(jax.jit(search), scores.init(network), *by_sample)
    plain = masked_mlp(network, informed_swap()._replace(refresh=None), energy)
    walk = jax.jit(plain.init)(mask, data)
    calls["forward pass"] = partial(jax.jit(plain.refresh), walk, data)
    seconds = {
        name: statistics.median(times) for name, times in take_turns(calls, time.process_time, ROUNDS).items()
    }
    return {
        "network": sizes,
        "samples": samples,
        "total": network.total,
        "kept": int(masks.num_kept(DENSITY, network.total)),
        "refresh_steps": refresh_steps,
        "proposal": seconds["proposals"] / STEPS,
        "forward_pass": seconds["forward pass"],
        "refresh": {name: seconds[f"refresh, {name}"] for name in ESTIMATES},
        "score_step": {name: seconds[f"search, {name}"] / SCORE_STEPS for name in ESTIMATES},
    }


def table(result: dict[str, Any]) -> str:
    """The cost of the estimates as a share of annealing, and the time of a step of score search, by network."""
    lines = [
        "| network | samples | estimates, ms: forward | by derivative | share of annealing | score step, ms: "
        "forward | by derivative |",
        "|---|---|---|---|---|---|---|",
    ]
    for case in result["cases"]:
        extra = {name: 1e3 * (case["refresh"][name] - case["forward_pass"]) for name in ESTIMATES}
        share = extra["forward"] / (extra["forward"] + 1e3 * case["refresh_steps"] * case["proposal"])
        step = {name: 1e3 * seconds for name, seconds in case["score_step"].items()}
        cells = [f"{extra['forward']:,.0f}", f"{extra['gradient']:,.0f}", f"{share:.1%}"]
        cells += [f"{step['forward']:.2f}", f"{step['gradient']:.2f}"]
        network = "-".join(map(str, case["network"]))
        lines.append(f"| {network} | {case['samples']:,} | " + " | ".join(cells) + " |")
    machine = result["machine"]
    return "\n".join(lines) + (
        f"\n\nMedians of {result['rounds']} rounds, CPU time of one core of {machine['processor']}, jax "
        f"{machine['versions']['jax']}; random weights and inputs, {100 * result['density']:g} % kept."
    )
