"""Score search: exactly k branches in every step, what decides its bits, and the masks that it finds."""

import itertools
from contextlib import nullcontext
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from sa_jax.networks import cnn, masks, mlp, pretrain
from sa_jax.networks.energies import cross_entropy, error_rate, kl_to_teacher
from sa_jax.networks.mlp import MLP, Network, network_of
from sa_jax.networks.slopes import ESTIMATES
from sa_jax.pruning import scores
from sa_jax.pruning.scores import ScoreSettings
from tests.conftest import refusal
from tests.landscapes.cnn import networks as conv_networks
from tests.settings import no_derivatives

SHAPES = [(9, 7), (7, 5)]
TOTAL = 98


@jax.jit
def highest(flat, num_kept, guess):
    kept, threshold = scores.highest(masks.unflatten(flat, SHAPES), num_kept, guess)
    return masks.flatten(kept), threshold


def check_highest(flat, num_kept, guess):
    """As many as asked for, and none of them below one that is pruned."""
    flat = np.asarray(flat, np.float32)
    kept, threshold = (np.asarray(found) for found in highest(flat, num_kept, guess))
    assert kept.sum() == num_kept and not np.isnan(threshold)
    if num_kept < TOTAL:
        assert flat[kept].min() >= flat[~kept].max()
    if len(set(flat.tolist())) == TOTAL:
        np.testing.assert_array_equal(kept, masks.by_score(flat, num_kept))
    return threshold


COUNTS = 1, 2, 31, TOTAL - 1, TOTAL
GUESSES = 0.0, 1.0, -3e4, 7e7, 1e30, -1e30


@pytest.mark.parametrize("guess", GUESSES)
def test_exactly_k_are_kept_wherever_the_search_begins(guess):
    numbers = np.random.default_rng(0)
    for flat in (
        numbers.normal(size=TOTAL),
        np.abs(numbers.standard_cauchy(TOTAL)) ** 3,
        numbers.normal(size=TOTAL) * 1e-30,
        1e4 + numbers.normal(size=TOTAL),
    ):
        for num_kept in COUNTS:
            check_highest(flat, num_kept, guess)


@pytest.mark.parametrize("guess", GUESSES)
def test_equal_and_extreme_scores_are_ranked_too(guess):
    numbers = np.random.default_rng(1)
    zeros = np.where(numbers.random(TOTAL) < 0.5, 0.0, -0.0)
    infinite = numbers.normal(size=TOTAL)
    infinite[:20], infinite[50:60] = np.inf, -np.inf
    for flat in (
        np.full(TOTAL, 2.5),
        numbers.integers(0, 3, TOTAL),
        zeros,
        np.where(np.arange(TOTAL) < 40, zeros, numbers.normal(size=TOTAL)),
        infinite,
        np.full(TOTAL, np.inf),
        np.full(TOTAL, -np.inf),
    ):
        for num_kept in COUNTS:
            check_highest(flat, num_kept, guess)


def test_the_threshold_found_is_a_good_guess_for_the_next_step():
    """From it, equal scores need no second search, and other scores that are near need few tries."""
    flat = np.random.default_rng(2).normal(size=TOTAL).astype(np.float32)
    threshold = check_highest(flat, 31, 50.0)
    ordered = np.sort(flat)
    assert ordered[-32] <= threshold < ordered[-31]
    assert check_highest(flat, 31, threshold) == threshold


def test_highest_scores_are_found_under_vmap():
    numbers = np.random.default_rng(3)
    many = numbers.normal(size=(6, TOTAL)).astype(np.float32)
    many[2], many[4, 10:] = 1.0, 0.0
    counts, guesses = np.array([1, 20, 31, 50, 97, TOTAL]), np.array([0, 1e9, 1, -5, 0.5, -1e20], np.float32)
    kept, _ = jax.jit(jax.vmap(highest))(many, counts, guesses)
    np.testing.assert_array_equal(kept.sum(1), counts)
    for one, flat, count in zip(kept, many, counts, strict=True):
        np.testing.assert_array_equal(one, masks.by_score(flat, count))


def make_network(sizes=(16, 8, 2), use_bias=True, seed=0):
    """Weights that were never trained, and biases that are not 0."""
    numbers = np.random.default_rng(seed)
    widths = [8, *sizes]
    shapes = list(itertools.pairwise(widths))
    kernels = tuple(jnp.asarray(numbers.normal(0, shape[0] ** -0.5, shape), jnp.float32) for shape in shapes)
    biases = tuple(jnp.asarray(0.1 * numbers.normal(size=units), jnp.float32) for _, units in shapes)
    return Network(kernels, biases if use_bias else (None,) * len(shapes))


def make_samples(number=300):
    """Points, sorted by the larger of two of their eight coordinates."""
    x = np.random.default_rng(1).normal(size=(number, 8)).astype(np.float32)
    return x, (x[:, 2] > x[:, 5]).astype(np.int32)


ENERGY = cross_entropy(3.0)
KEPT = 40


@partial(jax.jit, static_argnames=("energy", "activation", "settings", "num_steps"))
def run(key, state, network, samples, num_kept, settings, first, num_steps, energy=ENERGY, activation="relu"):
    return scores.run(key, state, network, *samples, num_kept, energy, activation, settings, first, num_steps)


def searched(seed, settings, network=None, samples=None, num_kept=KEPT, **others):
    """The state after a whole search."""
    network = make_network() if network is None else network
    samples, state = make_samples() if samples is None else samples, scores.init(network)
    return run(jax.random.key(seed), state, network, samples, num_kept, settings, 0, settings.num_steps, **others)


def energy_of(network, mask, samples, energy=ENERGY, activation="relu"):
    x, targets = samples
    return float(energy(mlp.forward(mlp.masked(network, mask), jnp.asarray(x), activation), targets))


def gain(network, state, samples, num_kept=KEPT, **others):
    """By how much the energy is lower than that of the largest weights, as a share."""
    first, found = (scores.mask_of(one, num_kept) for one in (scores.init(network), state))
    assert int(found.sum()) == num_kept
    before, after = (energy_of(network, mask, samples, **others) for mask in (first, found))
    return 1 - after / before


@pytest.mark.parametrize("temperature", [0.0, 1.0])
@pytest.mark.parametrize("estimates", ESTIMATES)
def test_every_step_keeps_exactly_k(estimates, temperature, monkeypatch):
    """The mask that the step evaluates, with noise or without it, and the one that a search ended there gives."""
    seen, original = [], scores.highest

    def watched(*arguments):
        kept, threshold = original(*arguments)
        jax.debug.callback(lambda mask: seen.append(np.asarray(mask)), masks.flatten(kept))
        return kept, threshold

    monkeypatch.setattr(scores, "highest", watched)
    monkeypatch.setattr(scores, "STEP_SIZE", 0.3)
    network, samples, settings = make_network(), make_samples(), ScoreSettings(40, estimates, temperature)

    @jax.jit
    def step(state, number):
        arguments = *samples, KEPT, ENERGY, "relu", settings, number, 1
        state = scores.run(jax.random.key(3), state, network, *arguments)
        return state, scores.mask_of(state, KEPT)

    state, after = scores.init(network), []
    np.testing.assert_array_equal(
        scores.mask_of(state, KEPT), masks.by_score(jnp.abs(masks.flatten(network.kernels)), KEPT)
    )
    for number in range(40):
        state, mask = step(state, number)
        after.append(np.asarray(mask))
    jax.effects_barrier()
    assert len(seen) == 40
    for used in (seen, after):
        assert {int(mask.sum()) for mask in used} == {KEPT}
        assert sum((one != other).any() for one, other in itertools.pairwise(used)) > 10
    if not temperature:
        # Without noise a step evaluates the mask that the step before it found.
        np.testing.assert_array_equal(seen[1:], after[:-1])


@pytest.mark.slow
@pytest.mark.parametrize("settings", [ScoreSettings(24), ScoreSettings(24, "gradient", 0.5)], ids=ESTIMATES)
def test_a_search_in_parts_is_the_search_at_once(settings, optimized):
    network, samples, key = make_network(), make_samples(), jax.random.key(1)
    whole = searched(1, settings)
    state, first = scores.init(network), 0
    for steps in (9, 15):
        state = run(key, state, network, samples, KEPT, settings, first, steps)
        first += steps
    jax.tree.map(np.testing.assert_array_equal, state, whole)

    @jax.jit
    def part(state, first, steps):  # one program for parts of any length
        arguments = *samples, KEPT, ENERGY, "relu", settings, first, steps
        return scores.run(key, state, network, *arguments)

    state = part(part(part(scores.init(network), 0, 5), 5, 0), 5, 19)
    jax.tree.map(np.testing.assert_array_equal, state, whole)


def test_key_and_step_alone_decide():
    settings = ScoreSettings(30)
    first, again, other = (searched(seed, settings) for seed in (0, 0, 1))
    jax.tree.map(np.testing.assert_array_equal, first, again)
    assert (scores.mask_of(first, KEPT) != scores.mask_of(other, KEPT)).any()
    # The number of a step decides too: on the same mask, the minibatch is another one.
    network, samples = make_network(), make_samples()
    start = scores.init(network)
    once, later = (run(jax.random.key(0), start, network, samples, KEPT, settings, step, 1) for step in (0, 1))
    assert (once.effects[0] != later.effects[0]).any()


@pytest.mark.slow
@pytest.mark.parametrize("estimates", ESTIMATES)
def test_it_fits_inside_vmap_scan_and_shard_map(estimates):
    settings, network, samples = ScoreSettings(12, estimates, 0.2), make_network(), make_samples()
    keys = jax.random.split(jax.random.key(5), 4)

    def search(key, scale=3.0):
        state = scores.init(network)
        arguments = *samples, KEPT, cross_entropy(scale), "relu", settings, 0, 12
        return scores.run(key, state, network, *arguments)

    alone = [jax.jit(search)(key) for key in keys]
    spec = jax.sharding.PartitionSpec("chains")
    mesh = jax.make_mesh((2,), ("chains",), axis_types=(jax.sharding.AxisType.Auto,))
    spread = partial(jax.shard_map, mesh=mesh, in_specs=spec, out_specs=spec)
    scales = jnp.full(4, 3.0)
    for several in (
        jax.vmap(search)(keys),
        jax.jit(lambda keys: jax.lax.scan(lambda _, key: (None, search(key)), None, keys)[1])(keys),
        jax.jit(spread(lambda keys: jax.lax.map(search, keys)))(keys),
    ):
        for chain, one in enumerate(alone):
            for found, expected in zip(jax.tree.leaves(several), jax.tree.leaves(one), strict=True):
                np.testing.assert_allclose(found[chain], expected, rtol=1e-3, atol=1e-4)
    # Only the energy varies over the devices.
    same = jax.jit(spread(lambda scales: jax.lax.map(partial(search, keys[0]), scales)))(scales)
    np.testing.assert_allclose(same.scores[0][3], alone[0].scores[0], rtol=1e-3, atol=1e-4)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("estimates", "temperature", "activation"),
    [("forward", 0.0, "relu"), ("forward", 0.5, "gelu"), ("gradient", 0.0, "tanh"), ("gradient", 0.5, "relu")],
)
def test_the_energy_of_weights_that_were_never_trained_falls(estimates, temperature, activation):
    network, samples = make_network(), make_samples()
    state = searched(0, ScoreSettings(400, estimates, temperature), activation=activation)
    assert gain(network, state, samples, activation=activation) > 0.2


@pytest.mark.slow
@pytest.mark.parametrize("estimates", ESTIMATES)
def test_the_energy_of_trained_weights_falls(estimates):
    x, y = make_samples()
    _, network = network_of(pretrain.pretrain(jax.random.key(0), MLP([16, 8, 2]), x, y, 20, 1e-2))
    state = searched(0, ScoreSettings(400, estimates), network, num_kept=12)
    assert gain(network, state, (x, y), 12) > 0.2


@pytest.mark.slow
def test_layers_may_use_few_samples_of_a_minibatch(monkeypatch):
    """Where forward estimates would cost too much; the energy falls all the same."""
    monkeypatch.setattr(scores, "PASSES", 0.1)
    monkeypatch.setattr(scores, "LEAST_SAMPLES", 1)
    network, samples = make_network((16, 12, 8, 2)), make_samples()
    used = scores._samples(network.shapes, scores.BATCH_SIZE)
    assert len(used) == 4 and min(used) < scores.BATCH_SIZE // 8
    assert scores._samples(network.shapes, 1) == [1] * 4
    state = searched(0, ScoreSettings(801), network, num_kept=80)
    assert gain(network, state, samples, 80) > 0.15


@pytest.mark.slow
@pytest.mark.parametrize(
    ("sizes", "use_bias", "num_kept"), [((2,), True, 4), ((2,), False, 4), ((12, 12, 8, 8, 2), False, 150)]
)
def test_networks_of_any_depth_are_searched(sizes, use_bias, num_kept):
    network, samples = make_network(sizes, use_bias), make_samples()
    state = searched(0, ScoreSettings(401), network, num_kept=num_kept)
    assert gain(network, state, samples, num_kept) > 0.1


@pytest.mark.slow
@pytest.mark.parametrize("estimates", ESTIMATES)
def test_one_branch_or_all_may_be_kept(estimates):
    network, samples = make_network((4, 2)), make_samples(50)
    for num_kept in (1, network.total):
        mask = scores.score_search(
            jax.random.key(0), network, *samples, num_kept, 3, ENERGY, estimates=estimates, temperature=0.1
        )
        assert int(mask.sum()) == num_kept and mask.dtype == bool


@pytest.mark.slow
def test_few_samples_make_a_smaller_minibatch(monkeypatch):
    monkeypatch.setattr(scores, "BATCH_SIZE", 64)
    network, samples = make_network(), make_samples(11)
    state = searched(0, ScoreSettings(300), network, samples)
    assert gain(network, state, samples) > 0.2


@pytest.mark.slow
@pytest.mark.parametrize("estimates", ESTIMATES)
def test_a_teacher_is_followed_without_a_label(estimates):
    network, (x, _) = make_network(), make_samples()
    predictions = jax.nn.softmax(4 * mlp.forward(network, jnp.asarray(x)), 1)
    energy = kl_to_teacher(4.0)
    state = searched(0, ScoreSettings(400, estimates), network, (x, predictions), energy=energy)
    assert gain(network, state, (x, predictions), energy=energy) > 0.2


def test_mean_energy_of_the_minibatches_is_counted():
    """At a step size of 0 the mask stays, and its energy on minibatches is that on all samples on the average."""
    network, samples = make_network(), make_samples()
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(scores, "STEP_SIZE", 0.0)
        state = searched(0, ScoreSettings(100, "gradient"))
    mask = scores.mask_of(scores.init(network), KEPT)
    np.testing.assert_array_equal(scores.mask_of(state, KEPT), mask)
    assert float(state.energy) / 100 == pytest.approx(energy_of(network, mask, samples), rel=0.1)


@pytest.mark.slow
def test_equal_weights_and_a_flat_energy_change_nothing():
    """Scores without a spread, and effects that are all 0."""
    network = Network((jnp.ones((8, 3)), jnp.ones((3, 2))), (None, None))
    for energy, estimates in ((error_rate(), "gradient"), (ENERGY, "forward")):
        state = searched(0, ScoreSettings(20, estimates), network, num_kept=5, energy=energy)
        assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(state))
        assert int(scores.mask_of(state, 5).sum()) == 5
    state = searched(0, ScoreSettings(21, "gradient"), network, num_kept=5, energy=error_rate())
    jax.tree.map(np.testing.assert_array_equal, state.scores, scores.init(network).scores)


def test_an_overflow_in_one_minibatch_does_not_stay():
    """Effects that are not finite count as 0."""
    x, y = make_samples()
    x[7] = 3e38
    network = make_network()
    state = searched(0, ScoreSettings(100), samples=(x, y))
    assert not np.isfinite(state.energy)
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves((state.scores, state.effects)))
    assert int((scores.mask_of(state, KEPT) != scores.mask_of(scores.init(network), KEPT)).sum()) > 4


@pytest.mark.slow
def test_score_search_gives_the_mask_of_all_its_steps():
    network, (x, y) = make_network(), make_samples()
    expected = scores.mask_of(searched(2, ScoreSettings(25, temperature=0.1)), KEPT)
    search = partial(scores.score_search, num_kept=np.int64(KEPT), num_steps=25, energy=ENERGY, temperature=0.1)
    for given in ((x, y), (x.astype(">f8"), y.astype(">i8")), (x.tolist(), y.tolist())):
        np.testing.assert_array_equal(search(jax.random.key(2), network, *given), expected)
    inside = jax.jit(search)(jax.random.key(2), network, x, y)
    np.testing.assert_array_equal(inside, expected)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"rng_key": 0}, "rng_key must be one key"),
        ({"num_kept": 0}, "num_kept must be a whole number from 1 to 272, not 0"),
        ({"num_kept": 273}, "num_kept must be a whole number from 1 to 272, not 273"),
        ({"num_kept": 0.5}, "num_kept must be a whole number from 1 to 272, not 0.5"),
        ({"num_steps": 0}, "num_steps must be a whole number of at least 1, not 0"),
        ({"activation": "sine"}, "activation must be one of relu, tanh, gelu, not 'sine'"),
        ({"estimates": "backward"}, "estimates must be one of forward, gradient, not 'backward'"),
        ({"temperature": -1}, "temperature must be a finite number of at least 0, not -1"),
        ({"temperature": float("nan")}, "temperature must be a finite number of at least 0, not nan"),
        ({"x": np.zeros((5, 7))}, "inputs must have the shape [samples, 8], not [5, 7]"),
        ({"x": np.zeros((0, 8)), "targets": np.zeros(0, int)}, "inputs must have the shape [samples, 8]"),
        ({"x": np.full((5, 8), np.nan)}, "inputs hold NaN or infinite values"),
        ({"targets": np.zeros(4, int)}, "labels must have the shape [5], one per input, not [4]"),
        ({"targets": np.zeros(5)}, "labels must be whole numbers, not float64"),
        ({"targets": np.full(5, 2)}, "labels run from 2 to 2, but the network has 2 classes"),
        ({"targets": np.zeros((5, 3))}, "predictions must have the shape [samples, 2], not [5, 3]"),
        ({"targets": np.zeros((4, 2))}, "labels must have the shape [5], one per input, not [4]"),
        ({"targets": ["one"] * 5}, "targets must be numbers, not <U3"),
        ({"targets": np.full((5, 2), np.nan)}, "predictions hold NaN or infinite values"),
        ({"network": {}}, "network must be a Network, such as network_of(params)[1], not dict"),
        ({"energy": "error"}, "energy must be a function such as cross_entropy(), not 'error'"),
        ({"energy": cross_entropy}, "energy must be a function such as cross_entropy(), not cross_entropy itself"),
    ],
)
def test_bad_input_is_named(change, message):
    arguments = {
        "rng_key": jax.random.key(0), "network": make_network(), "x": np.zeros((5, 8)),
        "targets": np.zeros(5, int), "num_kept": KEPT, "num_steps": 10, "energy": ENERGY,
    }  # fmt: skip
    with refusal(message):
        scores.score_search(**arguments | change)


def convolutional(name="pooled", samples=200):
    """A network that was never trained, images, and labels that depend on one pixel."""
    network = conv_networks.make_network(name)
    x, _ = conv_networks.make_samples(network, samples)
    return network, x, (x[:, 1, 1, 0] > 0).astype(jnp.int32)


@pytest.mark.slow
@pytest.mark.parametrize("estimates", ESTIMATES)
def test_convolutional_networks_are_searched(estimates):
    network, x, y = convolutional()
    settings, num_kept = ScoreSettings(300, estimates), network.total // 2
    with no_derivatives() if estimates == "forward" else nullcontext():
        state = searched(0, settings, network, (x, y), num_kept)

    def energy_of(mask):
        return float(ENERGY(cnn.forward(cnn.masked(network, mask), x), y))

    before, after = (scores.mask_of(one, num_kept) for one in (scores.init(network), state))
    assert int(after.sum()) == num_kept
    assert energy_of(after) < 0.7 * energy_of(before)
    # In parts, it is the same search.
    first = run(jax.random.key(0), scores.init(network), network, (x, y), num_kept, settings, 0, 120)
    parts = run(jax.random.key(0), first, network, (x, y), num_kept, settings, 120, 180)
    np.testing.assert_array_equal(masks.flatten(parts.scores), masks.flatten(state.scores))


@pytest.mark.parametrize(
    ("changes", "parts"),
    [
        ({"x": np.zeros((200, 5, 5, 2))}, ["images must have the shape [samples, 5, 6, 2], or flat"]),
        ({"targets": np.zeros(3, np.int32)}, ["labels must have the shape [200], one per input, not [3]"]),
        ({"targets": np.full(200, 3)}, ["labels run from 3 to 3, but the network has 3 classes"]),
        ({"targets": np.zeros((200, 4))}, ["predictions must have the shape [samples, 3], not [200, 4]"]),
        ({"num_kept": 10**6}, ["num_kept must be"]),
    ],
)
def test_what_does_not_fit_a_convolutional_network_is_refused(changes, parts):
    network, x, y = convolutional()
    arguments = {"x": x, "targets": y, "num_kept": 20, "num_steps": 5, "energy": ENERGY} | changes
    with refusal(*parts):
        scores.score_search(jax.random.key(0), network, **arguments)
