"""Nudges: the distribution of a nudged weight, and which weights change."""

import itertools
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.stats

from sa_jax import InputError, anneal
from sa_jax.landscapes.mlp import Weighted, masked_mlp
from sa_jax.moves.base import Estimates
from sa_jax.moves.nudges import NudgeCache, NudgeState, nudge
from sa_jax.moves.saliency import saliency_swap
from sa_jax.moves.uniform import swap_within, uniform_swap
from sa_jax.networks import masks, mlp
from sa_jax.networks.energies import cross_entropy
from sa_jax.testing import check_detailed_balance, count_proposals
from tests.conftest import OPTIMIZED
from tests.landscapes.networks import TINY, TINY_DATA, enumerate_masks, make_network, make_samples


def test_nudges_are_refused_where_no_weight_can_move():
    landscape = masked_mlp(TINY, nudge(uniform_swap(), jnp.ones(8)), cross_entropy())
    with pytest.raises(InputError, match="need masked_mlp"):
        jax.eval_shape(
            lambda mask: anneal(jax.random.key(0), landscape, mask, 0.1, 100, TINY_DATA), np.ones(8, bool)
        )


@pytest.mark.slow
def test_nudged_weight_is_distributed_as_boltzmann_says():
    """One branch, of which the energy is a quadratic: its weight is normal."""
    network = mlp.Network((jnp.array([[1.0]]),), (None,))
    squared_error = lambda outputs, target, axis: ((outputs[0] - target) ** 2).mean()  # noqa: E731
    x, target, temperature = jnp.array([[2.0]]), jnp.array([3.0]), 0.5
    swaps = nudge(uniform_swap(), jnp.array([2.0]), share=1.0)
    # Between refreshes it is exact, however wrong the estimates are.
    told = NudgeCache(*jnp.array([[1.2], [0.4], [1.0]]))
    fixed = NudgeState(uniform_swap().init(jnp.array([True])), told)
    swaps = swaps._replace(init=lambda mask: fixed, refresh=None)
    landscape = masked_mlp(network, swaps, squared_error, moves_weights=True)

    @partial(jax.jit, compiler_options=OPTIMIZED)
    @jax.vmap
    def sample(key):
        start = Weighted(jnp.array([True]), jnp.array([0.0]))
        return anneal(key, landscape, start, temperature, 400, (x, target)).final.weights[0]

    weights = np.asarray(sample(jax.random.split(jax.random.key(0), 4_000)))
    # E = (2 w - 3)^2, hence mean 1.5 and variance T / 8; six standard errors of each.
    assert abs(weights.mean() - 1.5) < 6 * np.sqrt(0.0625 / 4_000)
    assert abs(weights.var() / 0.0625 - 1) < 6 * np.sqrt(2 / 4_000)


def test_nudges_go_down_the_slope_no_farther_than_the_scale():
    slopes = jnp.array([1.0, -2.0, 0.0, 0.01, 0.0, -1.0])
    curvatures = jnp.array([10.0, 10.0, 10.0, 1e-3, 0.0, 1e3])
    mask, scale = jnp.array([True] * 5 + [False]), jnp.full(6, 0.5)
    swaps = nudge(uniform_swap(), scale, share=1.0)
    state = jax.jit(lambda: swaps.refresh(swaps.init(mask), mask, Estimates(slopes, slopes, curvatures)))()
    keys = jax.random.split(jax.random.key(0), 20_000)
    swap, ratio = jax.jit(jax.vmap(lambda key: swaps.propose(swaps.draw(key), state, mask)))(keys)
    made, branch, change = (np.asarray(of) for of in (ratio > -jnp.inf, swap.pruned, swap.nudge))
    np.testing.assert_array_equal(swap.pruned, swap.grown)
    assert set(branch[made]) == {0, 1, 2, 3}  # 4 has no effect, and 5 is pruned
    # -g / h, of 3 no more than the scale, whose gain is then 2 * 0.01 * 0.5 - 1e-3 * 0.25; so that G is 0.10195.
    aimed, spread = [-0.1, 0.2, 0.0, -0.5], [0.6 * np.sqrt(m**2 + 0.10195 / 10) for m in (0.1, 0.2, 0.0)]
    for index in range(4):
        np.testing.assert_allclose(change[branch == index].mean(), aimed[index], atol=0.03)
    for index in range(3):
        np.testing.assert_allclose(change[branch == index].std(), spread[index], rtol=0.1)
    np.testing.assert_allclose(change[branch == 3].std(), 0.5, rtol=0.1)
    # Whichever gains most is drawn most.
    counts = np.bincount(branch[made], minlength=4)
    assert counts[1] > 2 * counts[0] > 2 * counts[2]
    # The change made, the next is aimed at what is left of it.
    one = jax.tree.map(lambda leaf: leaf[0], swap)
    after = jax.jit(swaps.commit)(state, one, jnp.asarray(True))
    np.testing.assert_allclose(after.cache.mean[one.pruned], state.cache.mean[one.pruned] - one.nudge, rtol=1e-6)


def test_nudges_over_swap_within_change_only_weights_of_kept_branches():
    """In every step: the list of kept branches stays true, and each set keeps as many as before."""
    network = make_network("three, narrow", True)
    x, y = make_samples(network, 40)
    sets = np.arange(network.total) // 8
    mask = masks.random(jax.random.key(3), network.total, network.total // 2)
    num_kept = int(mask.sum())
    swaps = nudge(swap_within(sets), jnp.full(network.total, 0.5))
    landscape = masked_mlp(network, swaps, cross_entropy(2.0), moves_weights=True)

    def step(state, key):
        move, log_q_ratio = landscape.propose(landscape.draw(key), state, jnp.float32(1))
        _, pending = landscape.delta(state, move, (x.T, y))
        after = landscape.commit(state, move, pending, log_q_ratio > -jnp.inf)
        kept = after.swaps.swaps.kept_at(jnp.arange(num_kept))
        return after, (state.position, after.position, kept)

    @jax.jit
    def walk(keys):
        state = landscape.init(Weighted(mask, masks.flatten(network.kernels)), (x.T, y))
        return jax.lax.scan(step, state, keys)[1]

    before, after, kept = jax.tree.map(np.asarray, walk(jax.random.split(jax.random.key(4), 400)))
    nudged = before.weights != after.weights
    swapped = before.mask != after.mask
    assert not (nudged & ~before.mask).any() and (nudged.sum(1) <= 1).all()
    assert nudged.any(1).sum() > 100 and swapped.any(1).sum() > 100 and not (nudged.any(1) & swapped.any(1)).any()
    for listed, now in zip(kept, after.mask, strict=True):
        assert sorted(listed) == np.flatnonzero(now).tolist()
        np.testing.assert_array_equal(np.bincount(sets[now], minlength=sets[-1] + 1), np.bincount(sets[mask]))


# The mean and standard deviation of the new weight of each of four branches, and the two amounts that are drawn.
MEANS, SPREAD, AMOUNTS = jnp.array([0.75, -0.5, 1.0, 0.25]), 0.5, jnp.array([-0.5, 1.0])
SWAPS = {
    "uniform": uniform_swap(),
    "within": swap_within(np.arange(4) // 2),
    "saliency": saliency_swap(jnp.array([4.0, 0.0, 1.0, 2.0])),
}


def two_weights_per_branch(swaps):
    """The landscape of one layer with nudges to one of two weights, so that all positions can be listed.

    The two amounts are drawn in proportion to the normal density, from which the stated ratio then follows too.
    """
    densities = np.exp(-(np.asarray(AMOUNTS) ** 2) / 2)
    bound = scipy.stats.norm.ppf(densities[0] / densities.sum())
    nudges = nudge(swaps, jnp.ones(4))

    def draw(rng_key):
        *others, normal = nudges.draw(rng_key)
        return *others, jnp.where(normal < bound, *AMOUNTS)

    network = mlp.Network(TINY.kernels[:1], (None,))
    moves = nudges._replace(draw=draw, refresh=None)
    landscape = masked_mlp(network, moves, cross_entropy(1.5), moves_weights=True)

    def init(position, data):
        state = landscape.init(position, data)
        cache = NudgeCache(MEANS - position.weights, jnp.full(4, SPREAD), jnp.array([0.2, 0.9, 0.5, 1.0]))
        return state._replace(swaps=state.swaps._replace(cache=cache))

    return landscape._replace(init=init)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["saliency", "within"])  # uniform swaps are those of one set
def test_swaps_and_nudges_hold_detailed_balance(name):
    """Energy changes, proposal ratios and visits, on all masks and weights."""
    all_masks = enumerate_masks(4, 2)
    if name == "within":
        all_masks = all_masks[all_masks[:, :2].sum(1) == 1]
    weights = np.array(list(itertools.product(*np.asarray(MEANS[:, None] + SPREAD * AMOUNTS))), np.float32)
    positions = Weighted(np.repeat(all_masks, len(weights), 0), np.tile(weights, (len(all_masks), 1)))
    landscape = two_weights_per_branch(SWAPS[name])
    found = check_detailed_balance(
        jax.random.key(0), landscape, positions, TINY_DATA, 0.3, num_draws=20_000, num_samples=400
    )
    assert found.ratio_error > 0 and found.probabilities.max() > 3 * found.probabilities.min()
    draws = count_proposals(jax.random.key(1), landscape, positions, TINY_DATA, num_draws=1_000).draws
    before, after = np.nonzero(draws[:, :-1])
    changed = positions.weights[before] != positions.weights[after]
    swapped = (positions.mask[before] != positions.mask[after]).any(1)
    np.testing.assert_array_equal(changed.sum(1), ~swapped)  # either a swap or one weight
    assert positions.mask[before][changed].all() and (~swapped).sum() > 100
