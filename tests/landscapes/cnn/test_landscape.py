"""The landscape of convolutional networks against full evaluation, enumeration and itself."""

import itertools
from functools import partial

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from sa_jax import InputError, anneal
from sa_jax.annealing.chain import init, run
from sa_jax.landscapes.cnn import changes, masked_cnn
from sa_jax.landscapes.full import full_model
from sa_jax.moves.base import Swap
from sa_jax.moves.informed import informed_swap
from sa_jax.moves.nudges import nudge
from sa_jax.moves.uniform import uniform_swap
from sa_jax.networks import cnn, masks
from sa_jax.networks.cnn import samples_last
from sa_jax.networks.energies import ErrorRate, cross_entropy, error_rate, kl_to_teacher
from sa_jax.testing import boltzmann, check_boltzmann, energies_of, visits
from tests.landscapes.cnn.networks import (
    ARCHITECTURES,
    TINY,
    TINY_DATA,
    full_energy,
    make_network,
    make_samples,
)
from tests.landscapes.networks import enumerate_masks
from tests.landscapes.test_program import FULLY, copies, shape_text

MOST_SWAPS = 1_200


def data_of(network, x, y):
    return samples_last(x, network.architecture), y


@partial(jax.jit, static_argnums=5)
def apply_swaps(network, mask, data, swaps, accepted, block_values):
    """Walks through given swaps; the last state and a refreshed one, and the energy that each swap leads to."""
    del block_values  # the constant of this name, by which programs differ
    landscape = masked_cnn(network, uniform_swap(), cross_entropy(3.0))

    def one(state, step):
        swap, accept = step
        change, pending = landscape.delta(state, swap, data)
        return landscape.commit(state, swap, pending, accept), state.energy + change

    state, energies = jax.lax.scan(one, landscape.init(mask, data), (swaps, accepted))
    return state, landscape.refresh(state, data), energies


def walked(network, mask, x, y, pruned, grown, accepted):
    missing = (0, MOST_SWAPS - len(pruned))
    branches = [jnp.asarray(np.pad(np.asarray(side, np.int32), missing)) for side in (pruned, grown)]
    swaps = Swap(*branches, jnp.zeros((MOST_SWAPS, 2), jnp.int32))
    decisions = jnp.asarray(np.pad(np.asarray(accepted), missing))
    arguments = swaps, decisions, changes.BLOCK_VALUES
    state, fresh, energies = apply_swaps(network, mask, data_of(network, x, y), *arguments)
    return state, fresh, np.asarray(energies)[: len(pruned)]


@pytest.mark.slow
@pytest.mark.parametrize("name", ARCHITECTURES)
def test_every_pair_of_branches_equals_full_evaluation(name):
    """All pairs of layers, with both ends in one channel, and borders: every swap of one mask, or many of them."""
    network = make_network(name)
    x, y = make_samples(network)
    mask = np.arange(network.total) % 2 == 0
    layer_of = np.repeat(np.arange(len(network.shapes)), [np.prod(shape) for shape in network.shapes])
    numbers, pairs = np.random.default_rng(4), []
    for ends in itertools.product(range(len(network.shapes)), repeat=2):
        sides = [np.flatnonzero((layer_of == end) & kept) for end, kept in zip(ends, (mask, ~mask), strict=True)]
        found = numbers.permutation(list(itertools.product(*sides)))
        pairs += found[: MOST_SWAPS // len(network.shapes) ** 2].tolist()
    state, fresh, energies = walked(network, mask, x, y, *zip(*pairs, strict=True), np.zeros(len(pairs), bool))
    expected = []
    for pruned, grown in pairs:
        moved = mask.copy()
        moved[pruned], moved[grown] = False, True
        expected.append(full_energy(network, moved, x, y))
    assert np.std(expected) > 0.01
    np.testing.assert_allclose(energies, expected, rtol=2e-4, atol=2e-5)
    np.testing.assert_array_equal(state.position, mask)
    # Nothing has changed but for a note that the refresh makes.
    chex.assert_trees_all_equal(state.cache.outputs, fresh.cache.outputs)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "density", "ties"),
    [*((name, 0.4, False) for name in ARCHITECTURES), ("pooled", 0.6, True), ("separable", 0.6, True)],
)
def test_random_walks_equal_full_evaluation(name, density, ties, monkeypatch):
    """In blocks of samples of which the last overlaps the one before, and with equal values in the pooling."""
    if ties:
        monkeypatch.setattr(changes, "BLOCK_VALUES", 100)
    network = make_network(name, not ties, ties=ties)
    x, y = make_samples(network, ties=ties)
    numbers = np.random.default_rng(5)
    mask = numbers.permutation(network.total) < masks.num_kept(density, network.total)
    now, chosen, accepted, expected = mask.copy(), [], [], []
    for _ in range(60):
        pruned, grown = numbers.choice(np.flatnonzero(now)), numbers.choice(np.flatnonzero(~now))
        proposed = now.copy()
        proposed[pruned], proposed[grown] = False, True
        chosen.append((pruned, grown))
        accepted.append(bool(numbers.random() < 0.7))
        expected.append(full_energy(network, proposed, x, y))
        now = proposed if accepted[-1] else now
    state, fresh, energies = walked(network, mask, x, y, *zip(*chosen, strict=True), accepted)
    assert np.std(expected) > 0.01
    np.testing.assert_allclose(energies, expected, rtol=2e-4, atol=2e-5)
    np.testing.assert_array_equal(state.position, now)
    for cached, again in zip(
        jax.tree.leaves(state.cache.outputs), jax.tree.leaves(fresh.cache.outputs), strict=True
    ):
        np.testing.assert_allclose(cached, again, rtol=1e-4, atol=1e-4)
    for part in ("entering", "features"):
        chex.assert_trees_all_close(getattr(state.cache, part), getattr(fresh.cache, part), rtol=1e-4, atol=1e-4)
    chex.assert_trees_all_close(state.cache.dense.outputs, fresh.cache.dense.outputs, rtol=1e-4, atol=1e-4)


@pytest.mark.slow
@pytest.mark.parametrize("energy", [kl_to_teacher(2.0), error_rate()], ids=["kl_to_teacher", "error_rate"])
def test_walks_as_the_full_landscape(energy):
    """The same swaps by full evaluation end in the same masks, for each energy."""
    network = make_network("pooled")
    x, y = make_samples(network, 30)
    architecture, swaps = network.architecture, uniform_swap()
    mask = masks.random(jax.random.key(2), network.total, network.total // 2)
    predictions = jax.nn.softmax(cnn.forward(network, x))
    targets, last = (y, y) if isinstance(energy, ErrorRate) else (predictions, predictions.T)

    def apply_fn(params, x):
        return jnp.asarray(cnn.CNN(architecture).apply({"params": params}, x))

    paths = [f"{name}/kernel" for name in cnn.layer_names(architecture)]
    slow = full_model(apply_fn, cnn.params_of(network), paths, swaps, energy)
    fast = masked_cnn(network, swaps, energy)

    def walk(landscape, start, data):
        return jax.jit(lambda key: anneal(key, landscape, start, 0.05, 300, data))(jax.random.key(1))

    expected = walk(slow, (mask, swaps.init(mask)), (x, targets))
    found = walk(fast, mask, (samples_last(x, architecture), last))
    assert 20 < found.num_accepted < 300
    np.testing.assert_array_equal(found.final, expected.final[0])
    np.testing.assert_array_equal(found.best, expected.best[0])
    np.testing.assert_allclose(found.best_energy, expected.best_energy, rtol=1e-4, atol=1e-5)


@pytest.mark.slow
def test_fixed_temperature_visits_the_boltzmann_distribution():
    landscape = masked_cnn(TINY, uniform_swap(), cross_entropy(1.5))
    all_masks = enumerate_masks(TINY.total, 4)
    energies = energies_of(landscape, all_masks, TINY_DATA)
    counts = visits(jax.random.key(8), landscape, all_masks, TINY_DATA, 0.3, num_samples=200)
    expected = boltzmann(energies, 0.3)
    assert expected.max() > 3 * expected.min()
    check_boltzmann(counts, energies, 0.3, significance=2e-3)


@pytest.mark.slow
def test_vmapped_chains_walk_as_each_alone_and_chunks_as_one_run():
    network = make_network("pooled")
    data = data_of(network, *make_samples(network))
    landscape = masked_cnn(network, uniform_swap(), cross_entropy(2.0))
    keys = jax.random.split(jax.random.key(5), 3)
    starts = jax.vmap(lambda key: masks.random(key, network.total, network.total // 2))(keys)

    def walk(key, state, first_step, num_steps):
        return run(key, landscape, state, lambda step: 0.1, first_step, num_steps, data)[0]

    def whole(key, mask):
        return walk(key, init(landscape, mask, data), 0, 200)

    together = jax.jit(jax.vmap(whole))(keys, starts)
    alone = jax.jit(lambda keys, starts: jax.lax.map(lambda chain: whole(*chain), (keys, starts)))(keys, starts)
    assert len(set(alone.num_accepted.tolist())) > 1
    np.testing.assert_array_equal(together.walk.position, alone.walk.position)
    np.testing.assert_array_equal(together.best, alone.best)
    chex.assert_trees_all_close(together.walk.cache, alone.walk.cache, rtol=1e-4, atol=1e-4)
    chunk = jax.jit(walk, static_argnums=3)
    state = jax.jit(partial(init, landscape))(starts[0], data)
    for first_step in (0, 100):
        state = chunk(keys[0], state, first_step, 100)
    chex.assert_trees_all_equal(state, jax.tree.map(lambda leaf: leaf[0], alone))


SAMPLES = 150


@pytest.mark.slow
@pytest.mark.skipif(jax.default_backend() != "cpu", reason="reads what XLA makes of it for a CPU")
def test_no_step_copies_what_it_carries(monkeypatch):
    """In blocks of samples, so that what is carried has other shapes than the values of one proposal."""
    monkeypatch.setattr(changes, "BLOCK_VALUES", 700)
    architecture = cnn.Architecture(
        (9, 9, 2),
        (cnn.Convolution(5, (3, 3), padding="SAME", pool=cnn.Pool("max")), cnn.Convolution(7, (2, 2))),
        (23, 19, 11),
    )
    shapes = cnn.kernel_shapes(architecture)
    network = cnn.ConvNetwork(architecture, tuple(map(jnp.ones, shapes)), (None,) * len(shapes))
    data = jnp.ones((2, 9, 9, SAMPLES)), jnp.zeros(SAMPLES, jnp.int32)

    def chunk(keys, network, states, data):
        landscape = masked_cnn(network, uniform_swap(), cross_entropy())

        def one_chain(chain):
            return run(chain[0], landscape, chain[1], lambda step: 0.01, 0, 1_000, data)[0]

        return jax.lax.map(one_chain, (keys, states))

    mask = np.arange(network.total) % 10 == 0
    state = jax.eval_shape(lambda: init(masked_cnn(network, uniform_swap(), cross_entropy()), mask, data))
    states = jax.tree.map(lambda leaf: jax.ShapeDtypeStruct((2, *leaf.shape), leaf.dtype), state)
    keys = jax.random.split(jax.random.key(2))
    text = jax.jit(chunk, donate_argnums=2).lower(keys, network, states, data).compile(FULLY).as_text()
    carried = {shape_text(leaf) for leaf in jax.tree.leaves(state) if leaf.size > 1_000}
    logits, position = f"f32[11,{SAMPLES}]", f"pred[{network.total}]"
    found = copies(text)
    # A refresh copies the inputs, and a new best mask is copied. The logits begin as the old ones: for the dense
    # layers, for each convolution and for a rejection.
    assert found.count(shape_text(data[0])) <= 1
    assert found.count(logits) <= 4
    assert found.count(position) <= 2
    forbidden = carried - {logits, position, shape_text(data[0])}
    assert len(forbidden) >= 7
    assert not forbidden & set(found), found


def test_what_it_cannot_do_is_refused():
    for swaps in (informed_swap(), nudge(uniform_swap(), jnp.ones(8))):
        with pytest.raises(InputError, match="use estimates or change weights need masked_mlp"):
            masked_cnn(TINY, swaps, cross_entropy())
    with pytest.raises(InputError, match="network must be a ConvNetwork, not int"):
        masked_cnn(3, uniform_swap(), cross_entropy())
