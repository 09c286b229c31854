"""The incremental landscape against full evaluation, enumeration and itself."""

import itertools
import runpy
from functools import partial
from pathlib import Path

import hypothesis
import hypothesis.strategies as st
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from sa_jax import InputError, anneal, constant_schedule
from sa_jax.annealing.chain import init, run
from sa_jax.landscapes.mlp import Weighted, evaluation, hidden, masked_mlp
from sa_jax.landscapes.mlp import landscape as mlp_landscape
from sa_jax.moves.base import Estimates, Swap
from sa_jax.moves.informed import InformedCache, InformedState, informed_swap
from sa_jax.moves.nudges import nudge
from sa_jax.moves.saliency import saliency_swap
from sa_jax.moves.uniform import swap_within, uniform_swap
from sa_jax.networks import masks, mlp
from sa_jax.networks.energies import cross_entropy, error_rate
from sa_jax.testing import boltzmann, check_boltzmann, check_proposal_ratios, count_proposals, energies_of, visits
from tests.landscapes.networks import (
    TINY,
    TINY_DATA,
    enumerate_masks,
    full_energy,
    make_network,
    make_samples,
    record_estimates,
)

# Some of all combinations, since each is a program to compile.
VARIANTS = [
    ("one layer", True, "relu", "cross_entropy"),
    ("two layers", False, "tanh", "error_rate"),
    ("three, narrow", True, "gelu", "cross_entropy"),
    ("three, wide", True, "relu", "cross_entropy"),
    ("three, wide", False, "tanh", "error_rate"),
    ("four, wide", False, "relu", "cross_entropy"),
    ("five", True, "relu", "cross_entropy"),
    ("five", False, "gelu", "error_rate"),
]


ENERGIES = {"cross_entropy": cross_entropy(3.0), "error_rate": error_rate()}


MOST_SWAPS = 2_000  # walked through by one program, however many there are


def apply_swaps(network, mask, data, energy, activation, pruned, grown, accepted):
    """Walks through given swaps; the last state, and of each step the energy proposed, the energy, the count."""
    number = len(pruned)
    missing = (0, MOST_SWAPS - number)
    pruned, grown = (np.pad(np.asarray(branches, np.int32), missing) for branches in (pruned, grown))
    swaps = Swap(pruned, grown, np.zeros((MOST_SWAPS, 2), np.int32))
    state, seen = _apply_swaps(network, mask, data, energy, activation, swaps, np.pad(accepted, missing), number)
    return state, [np.asarray(values)[:number] for values in seen]


@partial(jax.jit, static_argnums=(3, 4))
def _apply_swaps(network, mask, data, energy, activation, swaps, accepted, number):
    landscape = masked_mlp(network, uniform_swap(), ENERGIES[energy], activation)

    def one(i, carry):
        state, seen = carry
        swap, accept = jax.tree.map(lambda leaf: leaf[i], (swaps, accepted))
        change, pending = landscape.delta(state, swap, data)
        before = state.energy
        state = landscape.commit(state, swap, pending, accept)
        new = before + change, state.energy, state.position.sum(dtype=jnp.int32)
        return state, [values.at[i].set(value) for values, value in zip(seen, new, strict=True)]

    seen = [jnp.zeros(MOST_SWAPS, dtype) for dtype in (jnp.float32, jnp.float32, jnp.int32)]
    return jax.lax.fori_loop(0, number, one, (landscape.init(mask, data), seen))


@pytest.mark.slow
@hypothesis.settings(deadline=None, max_examples=24)
@hypothesis.given(
    variant=st.sampled_from(VARIANTS),
    seed=st.integers(0, 1_000),
    density=st.floats(0.1, 0.9),
)
def test_random_walks_equal_full_evaluation(variant, seed, density):
    name, use_bias, activation, energy = variant
    network = make_network(name, use_bias, seed)
    x, y = make_samples(network)
    numbers = np.random.default_rng(seed)
    kept = masks.num_kept(density, network.total)
    mask = numbers.permutation(network.total) < kept
    evaluate = full_energy(network, energy, activation)
    walked, expected, chosen, decisions = mask.copy(), [], [], []
    for _ in range(12):
        pruned = numbers.choice(np.flatnonzero(walked))
        grown = numbers.choice(np.flatnonzero(~walked))
        accept = bool(numbers.random() < 0.7)
        proposed = walked.copy()
        proposed[pruned], proposed[grown] = False, True
        expected.append(evaluate(proposed, x, y))
        walked = proposed if accept else walked
        chosen.append((pruned, grown))
        decisions.append(accept)
    state, (proposed_energy, energies, counts) = apply_swaps(
        network, mask, (x.T, y), energy, activation, *zip(*chosen, strict=True), decisions
    )
    clear = ~np.isnan(expected)
    np.testing.assert_allclose(proposed_energy[clear], np.array(expected)[clear], rtol=2e-4, atol=2e-5)
    np.testing.assert_array_equal(state.position, walked)
    np.testing.assert_array_equal(counts, kept)
    assert energies[-1] == state.energy


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "use_bias", "activation"),
    # Most in the form that random walks compile too.
    [
        ("one layer", True, "relu"),
        ("two layers", False, "relu"),
        ("three, narrow", True, "gelu"),
        ("three, wide", True, "relu"),
        ("four", False, "tanh"),
        ("five", True, "relu"),
    ],
)
def test_every_pair_of_branches_equals_full_evaluation(name, use_bias, activation):
    """All layer pairs, both ends in one unit, neighbouring layers: every swap there is from one mask."""
    network = make_network(name, use_bias)
    x, y = make_samples(network)
    mask = np.random.default_rng(4).permutation(network.total) < network.total // 2
    pairs = list(itertools.product(np.flatnonzero(mask), np.flatnonzero(~mask)))
    # The wide network has too many for the slow evaluation of this test.
    pairs = pairs[:: -(-len(pairs) // MOST_SWAPS)]
    pruned, grown = zip(*pairs, strict=True)
    rejected = np.zeros(len(pairs), bool)
    state, (proposed, _, _) = apply_swaps(
        network, mask, (x.T, y), "cross_entropy", activation, pruned, grown, rejected
    )
    evaluate, expected = full_energy(network, "cross_entropy", activation), []
    for branch, other in pairs:
        moved = mask.copy()
        moved[branch], moved[other] = False, True
        expected.append(evaluate(moved, x, y))
    np.testing.assert_allclose(proposed, expected, rtol=2e-4, atol=2e-5)
    np.testing.assert_array_equal(state.position, mask)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["three, narrow", "three, wide", "four, wide"])
def test_blocks_of_samples_change_nothing(name, monkeypatch):
    """Three blocks, of which the last overlaps the one before."""
    network = make_network(name, True)
    x, y = make_samples(network, 10)
    mask = masks.random(jax.random.key(3), network.total, network.total // 3)

    def walk():
        landscape = masked_mlp(network, uniform_swap(), cross_entropy(2.0))
        return jax.jit(
            lambda key: run(
                key, landscape, init(landscape, mask, (x.T, y)), constant_schedule(0.1), 0, 300, (x.T, y)
            )
        )

    whole, _ = walk()(jax.random.key(4))
    for module in (hidden, mlp_landscape):
        monkeypatch.setattr(module, "BLOCK_SAMPLES", 4)
    monkeypatch.setattr(evaluation, "EVALUATED_SAMPLES", 4)
    blocked, _ = walk()(jax.random.key(4))
    assert 20 < whole.num_accepted < 300
    np.testing.assert_array_equal(whole.walk.position, blocked.walk.position)
    for one, other in zip(whole.walk.cache.outputs, blocked.walk.cache.outputs, strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-4, atol=1e-4)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["five"])
def test_vmapped_chains_walk_as_each_alone(name):
    """Loops then run as often as the chain needs that needs it most. Alone, two on each of two devices."""
    network = make_network(name, True)
    x, y = make_samples(network, 10)
    landscape = masked_mlp(network, uniform_swap(), cross_entropy(2.0))
    keys = jax.random.split(jax.random.key(5), 4)
    starts = jax.vmap(lambda key: masks.random(key, network.total, network.total // 3))(keys)

    def walk(key, mask):
        return run(key, landscape, init(landscape, mask, (x.T, y)), constant_schedule(0.1), 0, 300, (x.T, y))[0]

    parallel_proposals = jax.jit(jax.vmap(walk))(keys, starts)
    mesh = jax.make_mesh((2,), ("chains",), axis_types=(jax.sharding.AxisType.Auto,))
    spec = jax.sharding.PartitionSpec("chains")
    alone = jax.jit(
        jax.shard_map(
            lambda *chains: jax.lax.map(lambda chain: walk(*chain), chains),
            mesh=mesh,
            in_specs=spec,
            out_specs=spec,
        )
    )(keys, starts)
    assert len(set(alone.num_accepted.tolist())) > 1
    np.testing.assert_array_equal(parallel_proposals.walk.position, alone.walk.position)
    np.testing.assert_array_equal(parallel_proposals.best, alone.best)
    for one, other in zip(parallel_proposals.walk.cache.outputs, alone.walk.cache.outputs, strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-4, atol=1e-4)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["one layer", "two layers", "three, narrow", "four, wide"])
def test_every_nudge_equals_full_evaluation(name):
    """Of each kept branch: proposed, then made, so that what is cached then is seen in the next."""
    network = make_network(name, True)
    x, y = make_samples(network, 5)
    mask = np.asarray(masks.random(jax.random.key(4), network.total, network.total // 2))
    weights = np.asarray(masks.flatten(network.kernels))
    landscape = masked_mlp(network, uniform_swap(), cross_entropy(3.0), moves_weights=True)
    branches = np.random.default_rng(0).permutation(np.flatnonzero(mask))[:200]
    amounts = np.random.default_rng(1).normal(0, 0.5, len(branches)).astype(np.float32)
    kept = jnp.asarray(branches, jnp.int32)
    nudges = Swap(kept, kept, jnp.zeros((len(branches), 2), jnp.int32), jnp.asarray(amounts))

    def one(state, move):
        change, pending = landscape.delta(state, move, (x.T, y))
        before = state.energy
        return landscape.commit(state, move, pending, jnp.asarray(True)), before + change

    start = jax.jit(landscape.init)(Weighted(mask, weights), (x.T, y))
    state, energies = jax.jit(lambda state: jax.lax.scan(one, state, nudges))(start)
    for branch, amount, energy in zip(branches, amounts, np.asarray(energies), strict=True):
        weights = weights.copy()
        weights[branch] += amount
        kernels = tuple(map(np.asarray, masks.unflatten(jnp.asarray(weights), network.shapes)))
        expected = full_energy(network._replace(kernels=kernels), "cross_entropy", "relu")(mask, x, y)
        np.testing.assert_allclose(energy, expected, rtol=5e-4, atol=5e-5)
    np.testing.assert_allclose(state.position.weights, weights, rtol=1e-6)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "branches_per_note", "make_swaps"),
    [
        ("three, narrow", 1, saliency_swap),
        ("five", 4_096, lambda saliency: uniform_swap()),
        ("five", 1, lambda saliency: informed_swap()),
    ],
    ids=["saliency", "uniform", "informed"],
)
def test_swaps_and_nudges_in_turn_equal_full_evaluation(name, branches_per_note, make_swaps, monkeypatch):
    """Where a chain is, and its best."""
    monkeypatch.setattr(evaluation, "BRANCHES_PER_NOTE", branches_per_note)
    network = make_network(name, True)
    x, y = make_samples(network)
    mask = masks.random(jax.random.key(3), network.total, network.total // 2)
    weights = masks.flatten(network.kernels)
    swaps = nudge(make_swaps(mlp.saliency(network, x)), 0.3 * jnp.abs(weights) + 0.1)
    landscape = masked_mlp(network, swaps, cross_entropy(3.0), moves_weights=True)
    data = x.T, y
    result = jax.jit(lambda key: anneal(key, landscape, Weighted(mask, weights), 0.1, 1_000, data))(
        jax.random.key(4)
    )
    assert int(result.best.mask.sum()) == network.total // 2 and int((result.final.mask != mask).sum()) > 0
    assert int((result.final.weights != weights).sum()) > 3
    assert float(result.best_energy) <= float(result.final_energy)
    for at, energy in ((result.final, result.final_energy), (result.best, result.best_energy)):
        kernels = tuple(masks.unflatten(at.weights, network.shapes))
        expected = full_energy(network._replace(kernels=kernels), "cross_entropy", "relu")
        np.testing.assert_allclose(energy, expected(np.asarray(at.mask), x, y), rtol=5e-4, atol=5e-5)


TINY_ENERGY = cross_entropy(1.5)
SALIENCY = jnp.array([4.0, 0.0, 1.0, 2.0, 0.5, 7.0, 1.0, 3.0])


def fixed_informed_swap(effects):
    """Informed swaps whose estimates stay as they are, whatever the mask."""
    swaps = informed_swap()
    told = Estimates(effects, effects, effects)
    mask = jnp.arange(8) < 4
    once = jax.jit(lambda: swaps.refresh(swaps.init(mask), mask, told))().cache

    def start(mask):
        grow = jnp.diff(once.grow_upto, prepend=0)
        sums = (jnp.where(mask, weights, 0).sum() for weights in (grow, once.prune_weights))
        return InformedState(swaps.init(mask).kept, InformedCache(once.grow_upto, once.prune_weights, *sums))

    return swaps._replace(init=start, refresh=None)


def forward_effects():
    """The effects that forward passes of a mask estimate."""
    landscape = masked_mlp(TINY, record_estimates(), TINY_ENERGY, estimates="forward")
    return jax.jit(landscape.init)(jnp.arange(8) % 3 > 0, TINY_DATA).swaps.effects


MOVES = {
    "uniform": uniform_swap(),
    "saliency": saliency_swap(SALIENCY),
    "informed": fixed_informed_swap(SALIENCY - 2),
    "informed, forward": fixed_informed_swap(forward_effects()),
}


@pytest.mark.slow
@pytest.mark.parametrize(
    ("move", "kept"),
    [("uniform", 3), ("saliency", 6), ("within", 3), ("informed", 3), ("informed, forward", 6)],
)
def test_fixed_temperature_visits_the_boltzmann_distribution(move, kept):
    swaps = swap_within(np.arange(8) // 4) if move == "within" else MOVES[move]
    all_masks = enumerate_masks(TINY.total, kept)
    if move == "within":  # each half of the branches keeps as many as it had
        all_masks = all_masks[all_masks[:, :4].sum(1) == kept // 2]
    landscape = masked_mlp(TINY, swaps, cross_entropy(1.5))
    # 100 steps apart, the eight branches have forgotten where they were.
    counts = visits(jax.random.key(8), landscape, all_masks, TINY_DATA, 0.3, num_samples=400)
    energies = energies_of(landscape, all_masks, TINY_DATA)
    expected = boltzmann(energies, 0.3)
    assert expected.max() > 3 * expected.min()  # the energy tells the masks apart
    check_boltzmann(counts, energies, 0.3, significance=2e-3)


@pytest.mark.slow
@pytest.mark.parametrize("kept", [1, 4])
@pytest.mark.parametrize("move", ["saliency", "informed"])
def test_swaps_state_their_exact_proposal_ratio(move, kept):
    """Proposal frequencies from every mask, counted, against the log ratio that comes with each."""
    landscape = masked_mlp(TINY, MOVES[move], cross_entropy(1.5))
    all_masks = enumerate_masks(TINY.total, kept)
    proposals = count_proposals(jax.random.key(9), landscape, all_masks, TINY_DATA, num_draws=40_000)
    assert check_proposal_ratios(proposals) > 0
    assert (proposals.draws > 0).sum() > len(all_masks)
    before, after = np.nonzero(proposals.draws[:, :-1])
    assert ((all_masks[before] != all_masks[after]).sum(1) == 2).all()


@pytest.mark.slow
@pytest.mark.parametrize(
    "swaps",
    [*MOVES.values(), informed_swap(), swap_within(np.arange(8) // 4)],
    ids=[*MOVES, "estimated", "within"],
)
def test_with_nothing_to_swap_it_stays(swaps):
    landscape = masked_mlp(TINY, swaps, cross_entropy())
    walk = jax.jit(lambda mask: anneal(jax.random.key(0), landscape, mask, 1.0, 150, data=TINY_DATA).final)
    for mask in (np.zeros(8, bool), np.ones(8, bool)):
        np.testing.assert_array_equal(walk(mask), mask)


@pytest.mark.slow
def test_exactly_k_kept_and_lists_true_after_every_step():
    network = make_network("four", True)
    x, y = make_samples(network)
    data, kept = (x.T, y), 11
    mask = masks.random(jax.random.key(1), network.total, kept)
    scores = mlp.saliency(network, x)
    for swaps in (uniform_swap(), informed_swap(), saliency_swap(scores)):
        landscape = masked_mlp(network, swaps, cross_entropy())

        def one_step(state, key, landscape=landscape):
            move, _ = landscape.propose(landscape.draw(key), state, jnp.float32(1))
            _, pending = landscape.delta(state, move, data)
            state = landscape.commit(state, move, pending, jax.random.bernoulli(key))
            return state, (state.swaps.kept_at(jnp.arange(kept)), state.position)

        @jax.jit
        def walk(keys, landscape=landscape, one_step=one_step):
            state, seen = jax.lax.scan(one_step, landscape.init(mask, data), keys)
            return state, seen, landscape.refresh(state, data)

        state, seen, refreshed = walk(jax.random.split(jax.random.key(2), 300))
        for kept_list, position in zip(*map(np.asarray, seen), strict=True):
            assert sorted(kept_list) == np.flatnonzero(position).tolist()
        np.testing.assert_allclose(state.energy, refreshed.energy, rtol=1e-5)
        for cached, fresh in zip(state.cache.outputs, refreshed.cache.outputs, strict=True):
            np.testing.assert_allclose(cached, fresh, rtol=1e-4, atol=1e-5)
    # The integer sum that the exact ratio needs has not drifted at all.
    assert state.swaps.kept_weight == swaps.init(state.position).kept_weight


@pytest.mark.slow
def test_true_optimum_is_found_on_enumerable_networks(monkeypatch):
    """The figure that the README states, measured again on some networks by the script behind it."""
    script = runpy.run_path(str(Path(__file__).parents[2] / "scripts/optimum.py"))
    enumerated = script["enumerated"]
    monkeypatch.setitem(enumerated.__globals__, "NETWORKS", 20)
    monkeypatch.setitem(enumerated.__globals__, "BUDGETS", (3_000,))
    result = enumerated()
    found = {row["search"]: row["found"] for row in result["rows"]}
    assert result["masks"] == 31_824 and found["annealing"] >= 0.85
    assert found["random"] < found["greedy"] < found["annealing"]


def test_an_unknown_activation_is_named():
    with pytest.raises(InputError, match="activation must be one of relu, tanh, gelu, not 'sine'"):
        masked_mlp(TINY, uniform_swap(), cross_entropy(), "sine")
