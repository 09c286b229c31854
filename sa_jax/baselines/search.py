"""Searches over masks other than annealing, without derivatives, at a given number of energy evaluations."""

import jax
import jax.numpy as jnp

from sa_jax.annealing import schedules
from sa_jax.annealing.chain import anneal, scan_carry
from sa_jax.landscapes.mlp import masked_mlp
from sa_jax.moves.uniform import uniform_swap
from sa_jax.networks import masks, mlp
from sa_jax.networks.arrays import jit
from sa_jax.networks.energies import Energy, cross_entropy
from sa_jax.networks.mlp import Network

# Settings of the genetic algorithm: masks in a generation, rivals in a tournament, and share of a child's branches
# that mutate.
POPULATION = 32
RIVALS = 3
MUTATED = 0.005


@jit(static_argnames=("num_kept", "num_evaluations", "activation", "energy"))
def random_search(
    rng_key: jax.Array,
    network: Network,
    x: jax.Array,
    y: jax.Array,
    num_kept: int,
    num_evaluations: int,
    activation: str = "relu",
    energy: Energy | None = None,
) -> jax.Array:
    """Returns the mask of lowest energy among uniformly random ones.

    Args:
      rng_key: a key, `[]`.
      network: the fixed weights.
      x: inputs, float `[samples, features]`.
      y: labels, int `[samples]`.
      num_kept: number of branches that stay.
      num_evaluations: number of masks to try, at least 1.
      activation: 'relu', 'tanh' or 'gelu'.
      energy: of the logits; None for the cross-entropy of the labels.

    Returns:
      A flat mask, bool `[total]`, with exactly `num_kept` ones.
    """
    evaluate = _energy_of_masks(network, x, y, activation, energy)

    def draw(step):
        return masks.random(jax.random.fold_in(rng_key, step), network.total, num_kept)

    def one(step, best):
        best_step, best_energy = best
        now = evaluate(draw(step))
        improved = now < best_energy
        return jnp.where(improved, step, best_step), jnp.where(improved, now, best_energy)

    return draw(jax.lax.fori_loop(0, num_evaluations, one, (0, jnp.inf))[0])


@jit(static_argnames=("num_kept", "num_evaluations", "activation", "energy"))
def greedy_swaps(
    rng_key: jax.Array,
    network: Network,
    x: jax.Array,
    y: jax.Array,
    num_kept: int,
    num_evaluations: int,
    activation: str = "relu",
    energy: Energy | None = None,
) -> jax.Array:
    """Starts from the largest `|w|` and accepts each uniformly drawn swap that lowers the energy: greedy descent.

    This is annealing at temperature 0, with the same incremental evaluation. Arguments and result as in
    `random_search`; each proposed swap counts as one evaluation.
    """
    landscape = masked_mlp(network, uniform_swap(), energy or cross_entropy(), activation, backend="auto")
    start = masks.by_score(jnp.abs(masks.flatten(network.kernels)), num_kept)
    greedy = schedules.constant_schedule(0.0)
    return anneal(rng_key, landscape, start, greedy, num_evaluations, (x.T.astype(jnp.float32), y)).best


@jit(static_argnames=("num_kept", "num_evaluations", "activation", "energy"))
def genetic_algorithm(
    rng_key: jax.Array,
    network: Network,
    x: jax.Array,
    y: jax.Array,
    num_kept: int,
    num_evaluations: int,
    activation: str = "relu",
    energy: Energy | None = None,
) -> jax.Array:
    """Runs a genetic algorithm over masks (Whitley, Starkweather & Bogart 1990, over connections).

    Parents are chosen by tournament, a child keeps the branches that both parents keep, some branches mutate, and
    the best mask survives unchanged. Every child has exactly `num_kept` branches. The first generation are mutants
    of the mask of the largest `|w|`. Arguments and result as in `random_search`.
    """
    evaluate = _energy_of_masks(network, x, y, activation, energy)
    magnitude = jnp.abs(masks.flatten(network.kernels))
    population = min(POPULATION, num_evaluations)
    generations = num_evaluations // population

    def child(rng_key, both):
        """Keeps the branches that most parents keep, ties at random; mutation inverts a branch's votes."""
        mutate_key, tie_key = jax.random.split(rng_key)
        # The expected number of mutations is the same among pruned as among kept branches.
        share = jnp.where(both > 0, MUTATED, MUTATED * num_kept / (network.total - num_kept + 1))
        mutation, tie = (jax.random.uniform(key, both.shape, jnp.float32) for key in (mutate_key, tie_key))
        votes = jnp.where(mutation < share, 2 - both, both)
        return masks.by_score(votes.astype(jnp.float32) + tie, num_kept)

    def tournament(rng_key, energies):
        drawn = jax.random.randint(rng_key, (RIVALS,), 0, population)
        return drawn[energies[drawn].argmin()]

    def breed(rng_key, parents, energies):
        first, second, child_key = jax.random.split(rng_key, 3)
        chosen = parents[tournament(first, energies)], parents[tournament(second, energies)]
        return child(child_key, sum(mask.astype(jnp.int32) for mask in chosen))

    def generation(carry, rng_key):
        parents, energies = carry
        keys = jax.random.split(rng_key, population)
        children = jax.lax.map(lambda key: breed(key, parents, energies), keys)
        children = children.at[0].set(parents[energies.argmin()])  # evaluated again, for simplicity
        return (children, jax.lax.map(evaluate, children)), None

    first_key, keys_key = jax.random.split(rng_key)
    start = masks.by_score(magnitude, num_kept)
    mutants = jax.lax.map(
        lambda key: child(key, 2 * start.astype(jnp.int32)), jax.random.split(first_key, population)
    )
    parents = mutants.at[0].set(start)
    carry = parents, jax.lax.map(evaluate, parents)
    parents, energies = scan_carry(generation, carry, jax.random.split(keys_key, generations - 1))
    return parents[energies.argmin()]


def _energy_of_masks(network, x, y, activation, energy):
    energy = cross_entropy() if energy is None else energy

    def evaluate(mask):
        return energy(mlp.forward(mlp.masked(network, mask), x, activation), y)

    return evaluate
