"""Statistical tests for custom moves and landscapes.

The tests need a problem that is small enough to list all its positions. They compare the energy change of each
proposal with a full evaluation, and its stated proposal ratio with counts. They compare the positions that a chain
visits at a fixed temperature with the Boltzmann distribution (Metropolis et al. 1953, Hastings 1970).
"""

from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import scipy.stats

from sa_jax.annealing.chain import BLOCK_STEPS, init, run
from sa_jax.annealing.inputs import as_data, as_position, check_key, check_landscape
from sa_jax.checks import number, whole
from sa_jax.types import InputError, Landscape, PyTree

# Largest error allowed for an energy change: a share of the range of the energies, plus a number of float32
# rounding errors of the largest absolute energy.
ENERGY_ERROR, ROUNDINGS = 1e-4, 32
# A pair of positions is tested if more than this number of proposals were drawn in each direction. The ratio of a
# tested pair may be wrong by this number of standard errors.
LEAST_DRAWS, MOST_ERRORS = 200, 5.0
# Positions with fewer expected visits are tested together. With small expected counts, the test statistic would
# not follow a chi-square distribution.
LEAST_EXPECTED = 5.0


class Balance(NamedTuple):
    """The result of `check_detailed_balance`.

    Attributes:
      counts: number of visits to each position.
      probabilities: Boltzmann probability of each position.
      p_value: p-value of the chi-square test of the counts against the probabilities.
      energy_error: largest error of an energy change, in units of the energy.
      ratio_error: largest error of a stated proposal ratio, in standard errors.
    """

    counts: np.ndarray  # int64 [positions]
    probabilities: np.ndarray  # float64 [positions]
    p_value: float
    energy_error: float
    ratio_error: float


class Proposals(NamedTuple):
    """Statistics of the proposals from each position (row) to each position (column).

    The last column counts proposals to positions that are not listed.

    Attributes:
      draws: number of proposals. Proposals to stay in place, with a log ratio of -inf, are not counted.
      ratios: sum of the stated ratios, `q(current | proposed) / q(proposed | current)`.
      squares: sum of the squares of the stated ratios.
      energy_errors: largest error of the energy changes.
    """

    draws: np.ndarray  # int64 [positions, positions + 1]
    ratios: np.ndarray  # float64 [positions, positions + 1]
    squares: np.ndarray  # float64 [positions, positions + 1]
    energy_errors: np.ndarray  # float64 [positions, positions + 1]


def check_detailed_balance(
    rng_key: jax.Array,
    landscape: Landscape,
    positions: PyTree,
    data: tuple = (),
    temperature: float = 1.0,
    num_draws: int = 10_000,
    num_chains: int = 64,
    num_samples: int = 200,
    steps_apart: int = BLOCK_STEPS,
    significance: float = 1e-3,
) -> Balance:
    """Checks the energy changes, the proposal ratios and the visited positions of a landscape.

    Args:
      rng_key: a key, `[]`.
      landscape: the landscape to check.
      positions: all positions that a chain can reach from the first one, each listed once. A pytree like one
        position, with a leading axis `[positions]`.
      data: arrays that are passed to the landscape.
      temperature: above 0, in units of the energy. Choose a temperature at which the positions differ in
        probability, but each of them is visited.
      num_draws: number of proposals drawn from each position.
      num_chains: number of chains. All chains start at the first position.
      num_samples: number of visits counted per chain.
      steps_apart: number of steps between two counted visits, a multiple of `BLOCK_STEPS`. Choose it large enough
        that the two visits are almost independent.
      significance: significance level of the test of the visits: the probability that a correct landscape fails.

    Returns:
      A `Balance`.

    Raises:
      AssertionError: a check failed. The message compares the values found and expected for the worst case.
      InputError: the temperature is not above 0, `steps_apart` is not a positive multiple of `BLOCK_STEPS`, the
        positions are not listed once each along a leading axis, there are too few draws or visits for a test, or
        an argument is refused as by `anneal`.

    A ring of four wells. The move goes up more often than down, but states no ratio:

    >>> from sa_jax import from_energy
    >>> wells = jnp.array([0.3, 0.0, 0.9, 0.5])
    >>> def up(rng_key, x):
    ...     return (x + jnp.where(jax.random.bernoulli(rng_key, 0.8), 1, -1)) % 4
    >>> dishonest = from_energy(lambda x: wells[x], up)
    >>> try:
    ...     check_detailed_balance(jax.random.key(0), dishonest, jnp.arange(4))
    ... except AssertionError as error:
    ...     print(str(error).partition(";")[0])
    proposal ratios are wrong for 8 of 8 pairs
    """
    check_key(rng_key)
    _check_numbers(num_draws=num_draws, num_chains=num_chains, num_samples=num_samples)
    _check_steps(steps_apart)
    energies = energies_of(landscape, positions, data)
    probabilities = boltzmann(energies, temperature)
    proposal_key, visit_key = jax.random.split(rng_key)
    proposals = count_proposals(proposal_key, landscape, positions, data, temperature, num_draws)
    energy_error = check_energy_changes(proposals, energies)
    ratio_error = check_proposal_ratios(proposals)
    counts = visits(visit_key, landscape, positions, data, temperature, num_chains, num_samples, steps_apart)
    p_value = check_boltzmann(counts, energies, temperature, significance)
    return Balance(counts, probabilities, p_value, energy_error, ratio_error)


def energies_of(landscape: Landscape, positions: PyTree, data: tuple = ()) -> np.ndarray:
    """Evaluates the energy of each position in full, float64 `[positions]`.

    Raises:
      InputError: the positions are not listed once each along a leading axis.
    """
    check_landscape(landscape)
    data = as_data(data)
    evaluate = jax.jit(partial(jax.lax.map, lambda position: landscape.init(position, data).energy))
    return np.asarray(evaluate(_listed(positions)), np.float64)


def boltzmann(energies: np.ndarray, temperature: float) -> np.ndarray:
    """Returns the Boltzmann distribution, `exp(-energy / temperature)` divided by its sum, float64 `[positions]`.

    Args:
      energies: energy of each position, float `[positions]`.
      temperature: above 0, in units of the energy.

    >>> boltzmann(np.log([1.0, 2.0, 5.0]), 1.0).round(4).tolist()
    [0.5882, 0.2941, 0.1176]

    Raises:
      InputError: the temperature is not above 0.
    """
    temperature = number("temperature", temperature, above=0)
    energies = np.asarray(energies, np.float64)
    weights = np.exp((energies.min() - energies) / temperature)
    return weights / weights.sum()


def count_proposals(
    rng_key: jax.Array,
    landscape: Landscape,
    positions: PyTree,
    data: tuple = (),
    temperature: float = 1.0,
    num_draws: int = 10_000,
) -> Proposals:
    """Draws proposals from each position as `anneal` does, and records their ends, ratios and energy changes.

    Args:
      rng_key: a key, `[]`.
      landscape: the landscape to check.
      positions: a pytree with a leading axis `[positions]`.
      data: arrays that are passed to the landscape.
      temperature: temperature that is passed to `landscape.propose`.
      num_draws: number of proposals drawn from each position.

    Raises:
      InputError: the positions are not listed once each along a leading axis.
    """
    check_key(rng_key)
    check_landscape(landscape)
    _check_numbers(num_draws=num_draws)
    positions, data = _listed(positions), as_data(data)
    size = len(jax.tree.leaves(positions)[0])
    energies = jax.lax.map(lambda position: landscape.init(position, data).energy, positions)

    @jax.jit
    def from_one(arguments):
        rng_key, position, energy = arguments
        state = landscape.init(position, data)

        def propose(rng_key):
            move, log_ratio = landscape.propose(landscape.draw(rng_key), state, jnp.float32(temperature))
            change, pending = landscape.delta(state, move, data)
            moved = landscape.commit(state, move, pending, jnp.asarray(True)).position
            return _place(moved, positions), log_ratio, change

        places, log_ratios, changes = jax.vmap(propose)(jax.random.split(rng_key, num_draws))
        real = log_ratios != -jnp.inf
        ratios = jnp.where(real, jnp.exp(log_ratios), 0.0)
        # NaN between two infinite energies, and to a position that is not listed; there any change is right.
        wanted = energies.at[places].get(mode="fill", fill_value=jnp.nan) - energy
        right = ~real | (changes == wanted) | jnp.isnan(wanted)
        errors = jnp.where(right, 0.0, jnp.abs(changes - wanted)).astype(jnp.float32)
        nothing = jnp.zeros(size + 1, jnp.float32)
        sums = (nothing.at[places].add(values) for values in (real.astype(jnp.float32), ratios, ratios**2))
        return (*sums, nothing.at[places].max(errors))

    keys = jax.random.split(rng_key, size)
    found = jax.lax.map(from_one, (keys, positions, energies))
    draws, *others = (np.asarray(values, np.float64) for values in found)
    return Proposals(draws.astype(np.int64), *others)


def check_energy_changes(proposals: Proposals, energies: np.ndarray) -> float:
    """Checks the energy change of each proposal against the difference of two full evaluations.

    Args:
      proposals: the result of `count_proposals`.
      energies: energy of each position, float64 `[positions]`.

    Returns:
      The largest error, in units of the energy.

    Raises:
      AssertionError: a proposal led to a position that is not listed, or an energy change is wrong.
    """
    if proposals.draws[:, -1].any():
        start = int(proposals.draws[:, -1].argmax())
        raise AssertionError(f"a proposal from position {start} led to a position that is not listed")
    errors = np.nan_to_num(proposals.energy_errors, nan=np.inf)
    finite = energies[np.isfinite(energies)]
    rounding = ROUNDINGS * np.finfo(np.float32).eps * np.abs(finite).max(initial=0)
    allowed = ENERGY_ERROR * np.ptp(finite) + rounding if finite.size else 0.0
    if errors.max() > allowed:
        start, end = np.unravel_index(errors.argmax(), errors.shape)
        raise AssertionError(
            f"energy changes are wrong for {(errors > allowed).sum()} pairs; the worst, from {start} to {end}, "
            f"is wrong by {errors.max():.3g}; by full evaluation it is {energies[end] - energies[start]:.6g}"
        )
    return float(errors.max())


def check_proposal_ratios(proposals: Proposals) -> float:
    """Checks the stated proposal ratios against the counts of proposals in both directions.

    The sum of `q(b | a) * [q(a | b) / q(b | a)]` over the proposals from `a` to `b` is `q(a | b)`, also if several
    moves lead from `a` to `b`. So the sum of the stated ratios of the proposals from `a` to `b` must match the
    number of proposals from `b` to `a`. A pair is tested if it was drawn more than `LEAST_DRAWS` times in each
    direction. The logarithms must agree within `MOST_ERRORS` standard errors.

    Args:
      proposals: the result of `count_proposals`.

    Returns:
      The largest error, in standard errors.

    Raises:
      AssertionError: the ratio of a pair is wrong, or proposals lead from `a` to `b` but never from `b` to `a`.
      InputError: no pair was drawn often enough to be tested.
    """
    draws, ratios, squares = (values[:, :-1] for values in proposals[:3])
    one_way = (draws > LEAST_DRAWS) & (draws.T == 0)
    if one_way.any():
        start, end = np.argwhere(one_way)[0]
        raise AssertionError(
            f"proposals lead from {start} to {end}, {draws[start, end]:,} times, and never back: no ratio is right"
        )
    judged = (np.minimum(draws, draws.T) > LEAST_DRAWS) & ~np.eye(len(draws), dtype=bool)
    if not judged.any():
        raise InputError(
            f"no pair of positions has more than {LEAST_DRAWS} proposals in each direction: raise num_draws"
        )
    starts, ends = np.nonzero(judged)
    back, stated = draws.T[judged], ratios[judged]
    with np.errstate(divide="ignore", invalid="ignore", over="ignore"):
        errors = np.abs(np.log(back / stated)) / np.sqrt(squares[judged] / stated**2 + 1 / back)
    # The standard error is not defined for a ratio of 0, or for a ratio that is too large for float32.
    errors = np.where(np.isfinite(squares[judged]), np.nan_to_num(errors, nan=np.inf), np.inf)
    if errors.max() > MOST_ERRORS:
        worst = int(errors.argmax())
        start, end = starts[worst], ends[worst]
        with np.errstate(divide="ignore"):
            log_counted, log_stated = (np.log(sums[worst] / draws[start, end]) for sums in (back, stated))
        raise AssertionError(
            f"proposal ratios are wrong for {(errors > MOST_ERRORS).sum()} of {len(errors)} pairs; the worst, "
            f"from {start} to {end}: log q(back) - log q(there) is {log_counted:.3f} by counts, but stated as "
            f"{log_stated:.3f}, a difference of {errors.max():.0f} standard errors"
        )
    return float(errors.max())


def visits(
    rng_key: jax.Array,
    landscape: Landscape,
    positions: PyTree,
    data: tuple = (),
    temperature: float = 1.0,
    num_chains: int = 64,
    num_samples: int = 200,
    steps_apart: int = BLOCK_STEPS,
) -> np.ndarray:
    """Counts the visits of chains to each position at a fixed temperature, int64 `[positions]`.

    Args:
      rng_key: a key, `[]`.
      landscape: the landscape to check.
      positions: a pytree with a leading axis `[positions]`. The chains start at the first position.
      data: arrays that are passed to the landscape.
      temperature: in units of the energy.
      num_chains: number of chains. They are vmapped together.
      num_samples: number of visits counted per chain.
      steps_apart: number of steps before each counted visit, a multiple of `BLOCK_STEPS`.

    Raises:
      AssertionError: a chain visited a position that is not listed.
      InputError: `steps_apart` is not a positive multiple of `BLOCK_STEPS`, or the positions are not listed once
        each along a leading axis.
    """
    check_key(rng_key)
    check_landscape(landscape)
    _check_numbers(num_chains=num_chains, num_samples=num_samples)
    _check_steps(steps_apart)
    positions, data = _listed(positions), as_data(data)
    size = len(jax.tree.leaves(positions)[0])

    @jax.jit
    @jax.vmap
    def visit(rng_key):
        def stretch(state, first_step):
            state, _ = run(
                rng_key, landscape, state, lambda step: jnp.float32(temperature), first_step, steps_apart, data
            )
            return state, _place(state.walk.position, positions)

        state = init(landscape, jax.tree.map(lambda leaf: leaf[0], positions), data)
        return jax.lax.scan(stretch, state, steps_apart * jnp.arange(num_samples, dtype=jnp.int32))[1]

    places = np.asarray(visit(jax.random.split(rng_key, num_chains)))
    counts = np.bincount(places.ravel(), minlength=size + 1)
    if counts[-1]:
        raise AssertionError(f"{counts[-1]:,} of {places.size:,} positions visited are not listed")
    return counts[:-1]


def check_boltzmann(
    counts: np.ndarray, energies: np.ndarray, temperature: float, significance: float = 1e-3
) -> float:
    """Checks counts of independent visits against the Boltzmann distribution, with Pearson's chi-square test.

    Args:
      counts: number of visits to each position, int `[positions]`.
      energies: energy of each position, float `[positions]`.
      temperature: above 0, in units of the energy.
      significance: significance level of the test: the probability that correct counts fail.

    Returns:
      The p-value.

    Raises:
      AssertionError: the p-value is below the significance level.
      InputError: the temperature is not above 0, or there are too few visits for a test.

    >>> check_boltzmann(np.array([580, 300, 120]), np.log([1.0, 2.0, 5.0]), 1.0) > 0.5
    True
    """
    expected = np.sum(counts) * boltzmann(energies, temperature)
    seldom = expected < LEAST_EXPECTED
    pooled = [np.append(values[~seldom], values[seldom].sum()) for values in (np.asarray(counts), expected)]
    found, wanted = (values[pooled[1] > 0] for values in pooled)
    if len(found) < 2:
        raise InputError(
            f"{np.sum(counts):,} visits of {len(expected):,} positions are too few to judge: at most one "
            f"position has {LEAST_EXPECTED:g} expected visits; raise num_samples, num_chains or the temperature"
        )
    chi_square = ((found - wanted) ** 2 / wanted).sum()
    p_value = float(scipy.stats.chi2.sf(chi_square, len(found) - 1))
    if p_value < significance:
        worst = int(np.abs((counts - expected) / np.sqrt(np.maximum(expected, LEAST_EXPECTED))).argmax())
        raise AssertionError(
            f"the positions visited are not Boltzmann's: chi-square {chi_square:.1f} for {len(found) - 1} degrees "
            f"of freedom, p = {p_value:.1e}; the worst, position {worst}, has {counts[worst]:,} of "
            f"{np.sum(counts):,} visits, but {expected[worst]:,.1f} are expected. If energies and ratios are "
            "right, the chain may need more steps between visits: raise steps_apart"
        )
    return p_value


def _check_numbers(**numbers: int) -> None:
    for name, value in numbers.items():
        whole(name, value, 1)


def _check_steps(steps_apart: int) -> None:
    if whole("steps_apart", steps_apart, 1) % BLOCK_STEPS:
        raise InputError(f"steps_apart must be a multiple of {BLOCK_STEPS}, not {steps_apart}")


def _listed(positions: PyTree) -> PyTree:
    """Converts positions to arrays, after checking that each is listed once."""
    positions = as_position(positions)
    shapes = [leaf.shape for leaf in jax.tree.leaves(positions)]
    if not shapes or not all(shape and 0 < shape[0] == shapes[0][0] for shape in shapes):
        raise InputError("positions must be arrays with a leading axis [positions], such as jnp.arange(4)")
    places = np.asarray(jax.jit(partial(jax.lax.map, lambda one: _place(one, positions)))(positions))
    if (again := places != np.arange(len(places))).any():
        other = int(again.argmax())
        raise InputError(f"positions {places[other]} and {other} are the same: list each once")
    return positions


def _place(position: PyTree, positions: PyTree) -> jax.Array:
    """Returns the index of a position in the list, int32 `[]`; the length of the list if it is not listed."""

    def alike(one, many):
        return (many == one[None]).reshape(len(many), -1).all(1)

    same = jnp.stack(jax.tree.leaves(jax.tree.map(alike, position, positions))).all(0)
    return jnp.where(same.any(), same.argmax(), same.size).astype(jnp.int32)
