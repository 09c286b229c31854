"""`prune`: the masks that it finds, its options, and the input that it refuses."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from sa_jax import InputError, prune
from sa_jax.networks import energies, masks, mlp, patterns
from sa_jax.networks.mlp import MLP
from sa_jax.networks.patterns import NM, Block, Columns, Layer, Rows, Unit
from sa_jax.pruning.options import ENERGIES, Options, check_options
from sa_jax.pruning.problem import calibrated_search, guiding_energy, make_energy, prepare
from sa_jax.pruning.scores import ScoreSettings, found_mask
from tests.conftest import refusal
from tests.settings import no_derivatives

prepared = jax.jit(prepare, static_argnums=(4, 5))
# Annealing without score search and without estimates, as the paper does it.
ALONE = {"start": "magnitude", "move": "saliency"}


@pytest.fixture(scope="module")
def task():
    """A network that sorts points by the larger of two of their eight coordinates, never trained."""
    x = jax.random.normal(jax.random.key(0), (300, 8))
    y = (x[:, 2] > x[:, 5]).astype(jnp.int32)
    return MLP([16, 8, 2]).init(jax.random.key(1), x), x, y


def accuracy(params, kernel_masks, x, y, activation="relu"):
    return float((mlp.apply(params, kernel_masks, x, activation).argmax(-1) == y).mean())


@pytest.mark.slow
@pytest.mark.parametrize(
    ("activation", "options"),
    [("relu", {}), ("tanh", {}), ("relu", ALONE), ("gelu", {"start": "magnitude"})],
)
def test_prune_finds_a_network_within_random_weights(task, activation, options):
    params, x, y = task
    kernel_masks, result = prune(
        jax.random.key(2), params, x, y, density=0.2, num_steps=6_000, activation=activation, **options
    )
    kernels = {"params": {name: {"kernel": layer["kernel"]} for name, layer in params["params"].items()}}
    chex.assert_trees_all_equal_shapes(kernel_masks, kernels)
    assert {leaf.dtype for leaf in jax.tree.leaves(kernel_masks)} == {jnp.dtype(bool)}
    assert sum(int(leaf.sum()) for leaf in jax.tree.leaves(kernel_masks)) == round(0.2 * (128 + 128 + 16))
    assert accuracy(params, kernel_masks, x, y, activation) > 0.85
    assert result.best_energy <= result.final_energy
    # The tree fits a Flax module's `apply`.
    model = MLP([16, 8, 2], activation)
    logits = model.apply({**params, "masks": kernel_masks["params"]}, x)
    np.testing.assert_allclose(logits, mlp.apply(params, kernel_masks, x, activation), rtol=1e-5, atol=1e-5)


@pytest.mark.slow
def test_same_key_same_masks(task):
    params, x, y = task
    first, again, other = (
        prune(jax.random.key(seed), params, x, y, density=0.3, num_steps=500)[1] for seed in (0, 0, 1)
    )
    np.testing.assert_array_equal(first.best, again.best)
    assert first.best_energy == again.best_energy
    assert (first.final != other.final).any()


@pytest.mark.slow
def test_prune_fits_inside_jit_and_vmap(task):
    params, x, y = task
    keys = jax.random.split(jax.random.key(0), 2)
    parallel_proposals = jax.jit(jax.vmap(lambda key: prune(key, params, x, y, 0.3, 500)[1].best))(keys)
    for key, best in zip(keys, parallel_proposals, strict=True):
        assert int(best.sum()) == round(0.3 * 272)
        alone = prune(key, params, x, y, 0.3, 500)[1]
        assert best.shape == alone.best.shape


@pytest.mark.slow
def test_uniform_moves_other_starts_and_energies(task):
    params, x, y = task
    for options in (
        {"move": "uniform", "start": "random"},
        {"move": "saliency", "start": "saliency", "schedule": "cosine"},
        {"move": "uniform", "score_steps": 20},
        {"start": "magnitude", "estimates": "gradient"},
        {"energy": "error_rate", "schedule": lambda step: 1e-3},
        {"energy": "error_rate", **ALONE},
    ):
        _, result = prune(jax.random.key(3), params, x, y, density=0.3, num_steps=500, **options)
        assert int(result.best.sum()) == int(result.final.sum()) == round(0.3 * 272)
        assert np.isfinite(result.best_energy)


@pytest.mark.slow
def test_everything_kept_changes_nothing(task):
    params, x, y = task
    kernel_masks, result = prune(jax.random.key(0), params, x, y, density=1.0, num_steps=200)
    assert all(leaf.all() for leaf in jax.tree.leaves(kernel_masks)) and result.best.all()


@pytest.mark.slow
@pytest.mark.parametrize("density", [0.5, 0.9])
def test_proposals_that_stay_play_no_part(task, density):
    """At high densities most saliency proposals find nothing to keep."""
    params, x, y = task
    network = mlp.network_of(params)[1]
    num_kept = masks.num_kept(density, network.total)
    starts = [
        float(prepared(jax.random.key(0), network, x, y, num_kept, Options(**options)).temperature_start)
        for options in (ALONE, ALONE | {"move": "uniform"})
    ]
    assert 1 / 4 < starts[0] / starts[1] < 4
    cold = {"schedule": "constant", "temperature_start": 1e-30}
    frozen = prune(jax.random.key(1), params, x, y, density, 1_000, **ALONE, **cold)[1]
    assert int(frozen.num_accepted) < 300  # few proposals improve a mask, many stay


@pytest.mark.slow
def test_given_temperatures_are_kept_in_order(task):
    params, x, y = task
    network = mlp.network_of(params)[1]
    for options, expected in (
        ({"temperature_start": 1e-6}, (1e-6, 1e-8)),
        ({"temperature_start": jnp.float32(0.5), "temperature_end": np.float32(0.25)}, (0.5, 0.25)),
        ({"temperature_end": 1e3}, (1e3, 1e3)),
    ):
        chosen = check_options(Options(**ALONE, **options))
        problem = prepared(jax.random.key(0), network, x, y, 100, chosen)
        given = float(problem.temperature_start), float(problem.temperature_end)
        assert given == pytest.approx(expected, rel=1e-5)


def test_prune_takes_lists_and_numpy_numbers(task):
    params, x, y = task
    plain = prune(jax.random.key(0), params, x, y, 0.3, 500)[1]
    other = prune(
        jax.random.key(0), params, np.asarray(x).tolist(), np.asarray(y).tolist(), np.float64(0.3), np.int64(500)
    )[1]
    np.testing.assert_array_equal(plain.best, other.best)


@pytest.mark.slow
def test_logit_scale_ignores_the_units_of_the_weights(task):
    params, x, y = task
    for factor in (1.0, 50.0):
        network = mlp.network_of(jax.tree.map(lambda leaf, f=factor: f ** (1 / 3) * leaf, params))[1]
        # Of labels that the network tells, and of those that it gets wrong, as one that was never trained may.
        told = mlp.forward(network, x).argmax(-1)
        for labels, expected in ((told, 9.0), (1 - told, 1.5)):
            problem = prepared(jax.random.key(0), network, x, labels, 272, Options(**ALONE))
            spread = mlp.forward(network, x).std() * problem.logit_scale
            assert float(spread) == pytest.approx(expected, rel=1e-3)
    # A given scale is taken, and is part of the energy.
    given = Options(**ALONE, logit_scale=2.0)
    problem = prepared(jax.random.key(0), network, x, y, 100, given)
    logits = mlp.forward(mlp.masked(network, problem.mask), x)
    expected = energies.cross_entropy(2.0)(logits, y)
    assert float(make_energy(problem, given)(logits, y)) == pytest.approx(float(expected))


@pytest.mark.slow
def test_what_is_good_already_starts_cold(task):
    """The start is hundred times as hot as the end, ten times where weights were trained or swaps are informed."""
    params, x, _ = task
    network = mlp.network_of(params)[1]
    told = mlp.forward(network, x).argmax(-1)
    for labels, move, expected in (
        (1 - told, "saliency", 100),
        (told, "saliency", 10),
        (1 - told, "informed", 10),
    ):
        problem = prepared(jax.random.key(0), network, x, labels, 100, Options(start="magnitude", move=move))
        assert float(problem.temperature_start / problem.temperature_end) == pytest.approx(expected, rel=1e-3)


@pytest.mark.slow
@pytest.mark.parametrize("energy", ENERGIES)
def test_annealing_begins_where_score_search_ends(task, energy):
    """At the mask that the search finds with a key of its own, on the calibrated energy."""
    params, x, y = task
    key = jax.random.key(7)
    changed = {"energy": energy, "temperature_start": 1e-9}
    options = Options(**changed, score_steps=150)
    _, result = prune(key, params, x, y, 0.2, 1, **changed, score_steps=150)
    network = mlp.network_of(params)[1]

    @jax.jit
    def searched(network, x, y):
        scale, targets = calibrated_search(network, x, y, 54, options)
        arguments = x, targets, 54, guiding_energy(scale, options), "relu", ScoreSettings(150)
        return found_mask(jax.random.split(key, 3)[2], network, *arguments)

    found = searched(network, x, y)
    assert int(found.sum()) == 54 and int((found != result.final).sum()) in (0, 2)  # one proposal was made
    first = masks.by_score(jnp.abs(masks.flatten(network.kernels)), 54)
    assert int((found != first).sum()) > 10
    # Steps and key of the search are options of the call.
    _, other = prune(key, params, x, y, 0.2, 1, **changed, score_steps=20)
    assert int((found != other.final).sum()) > 2


@pytest.mark.slow
def test_an_error_rate_is_lowered_on_the_estimates_of_a_cross_entropy(task):
    params, x, y = task
    kernel_masks, result = prune(jax.random.key(2), params, x, y, 0.2, 2_000, energy="error_rate")
    assert accuracy(params, kernel_masks, x, y) > 0.85
    # Rounding may break ties of a pruned network's logits either way.
    assert float(result.best_energy) == pytest.approx(1 - accuracy(params, kernel_masks, x, y), abs=0.1)


@pytest.mark.parametrize("energy", ENERGIES)
def test_a_run_with_default_options_takes_no_derivative(task, energy):
    params, x, y = task

    def trace(**options):  # of shapes and options that no other test has compiled
        return jax.eval_shape(
            lambda key: prune(key, params, x[:37], y[:37], 0.2, 37, **options), jax.random.key(0)
        )

    with no_derivatives():
        trace(energy=energy)
        with pytest.raises(AssertionError, match="a derivative is taken"):
            trace(energy=energy, estimates="gradient")


def test_random_masks_are_uniform():
    drawn = jax.vmap(lambda key: masks.random(key, 5, 2))(jax.random.split(jax.random.key(0), 4_000))
    assert (drawn.sum(1) == 2).all()
    np.testing.assert_allclose(drawn.mean(0), 0.4, atol=0.04)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"density": 0}, "density must be a finite number above 0 and at most 1, not 0"),
        ({"density": 1e-6}, "density 1e-06 keeps 0 of 272 branches"),
        ({"num_steps": 0}, "num_steps must be a whole number of at least 1, not 0"),
        ({"num_steps": 1e3}, "num_steps must be a whole number"),
        ({"movement": "uniform"}, "unknown option 'movement'; did you mean move?"),
        ({"num_step": 100}, "unknown option 'num_step'; did you mean num_steps?"),
        ({"colour": "red"}, "unknown option 'colour'; options: activation, energy"),
        ({"rng_key": 0}, r"rng_key must be one key, such as jax.random.key\(0\), not int"),
        ({"rng_key": {"Dense_0": 1}}, "rng_key must be one key, .* not dict"),
        (
            {"x": np.zeros(300, int), "y": np.zeros((300, 8))},
            "labels must be whole numbers, not float64",
        ),  # swapped
        ({"move": "unifrom"}, "move must be one of saliency, informed, uniform, not 'unifrom'"),
        ({"temperature_end": -1.0}, "temperature_end must be a finite number above 0"),
        ({"x": np.zeros((300, 7))}, r"inputs must have the shape \[samples, 8\], not \[300, 7\]"),
        ({"x": np.zeros((0, 8)), "y": np.zeros(0, int)}, r"inputs must have the shape"),
        ({"x": np.full((300, 8), np.inf)}, "inputs hold NaN or infinite values"),
        ({"x": np.full((300, 8), 1e300)}, "inputs hold NaN or infinite values"),
        ({"x": np.full((300, 8), "a")}, "inputs must be numbers, not <U1"),
        ({"x": 1e30 * np.random.default_rng(0).normal(size=(300, 8)), "logit_scale": 1e30}, "no finite energy"),
        ({"y": np.zeros(299, int)}, r"labels must have the shape \[300\], one per input"),
        ({"y": np.zeros(300)}, "labels must be whole numbers, not float"),
        ({"y": np.full(300, 2)}, "labels run from 2 to 2, but the network has 2 classes: 0..1"),
        (
            {"params": {"params": {"Conv_0": {"kernel": np.zeros((3, 3, 1, 2))}}}},
            "does not belong to a multilayer",
        ),
        ({"params": {"Dense_0": {"kernel": np.full((8, 2), np.nan)}}}, "weights hold NaN or infinite values"),
        ({"params": np.zeros((8, 2))}, "parameters must be nested mappings of arrays, not ndarray"),
        ({"params": {}}, "the parameters hold no kernel"),
        (
            {"params": {n: {"kernel": np.ones((8, 8))} for n in ("input", "hidden")}, "y": np.zeros(300, int)},
            "fit each other in two orders",
        ),
    ],
)
def test_bad_input_is_named(task, change, message):
    params, x, y = task
    arguments = {"rng_key": jax.random.key(0), "params": params, "x": x, "y": y, "density": 0.3, "num_steps": 100}
    with pytest.raises(InputError, match=message) as error:
        prune(**arguments | change)
    assert "\n" not in str(error.value)


@pytest.mark.slow
def test_the_dense_network_is_followed_without_a_label(task):
    params, x, y = task
    kernel_masks, result = prune(
        jax.random.key(2), params, x, y, density=0.2, num_steps=6_000, energy="kl_to_teacher"
    )
    assert int(result.best.sum()) == round(0.2 * 272)
    dense = mlp.apply(params, jax.tree.map(jnp.ones_like, kernel_masks), x).argmax(-1)
    assert accuracy(params, kernel_masks, x, dense) > 0.85


@pytest.mark.parametrize("num_kept", [1, 30, 500, 900, 1_000, 1_017])
def test_erk_keeps_exactly_as_many_and_no_more_than_there_are(num_kept):
    shapes = [(30, 25), (25, 10), (10, 1), (1, 7)]
    counts = masks.erk_counts(shapes, num_kept)
    assert sum(counts) == num_kept
    assert all(0 <= count <= a * b for count, (a, b) in zip(counts, shapes, strict=True))
    if num_kept == 500:  # small layers are whole, the first is sparsest
        assert counts[2:] == [10, 7] and counts[0] / 750 < counts[1] / 250


def test_bad_options_of_many_kinds_are_refused(task):
    for change, words in (
        ({"nudge_share": 1.0}, "nudge_share must be a finite number of at least 0 and below 1"),
        ({"nudge_share": 0.5}, "nudge_share changes weights, and prune returns only masks"),
        ({"score_steps": 0}, "score_steps must be a whole number of at least 1, or None to choose it"),
        ({"estimates": "x"}, "estimates must be one of forward, gradient, not 'x'"),
    ):
        with pytest.raises(InputError, match=words):
            prune(jax.random.key(0), *task, num_steps=100, **change)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("pattern", "kept_per_set"),  # of the sets of each layer's kernel, transposed to [outputs, inputs]
    [(NM(2, 4), [2, 2, 2]), (Layer(0.25), [32, 32, 4]), (Unit(0.25), [2, 4, 2])],
    ids=str,
)
def test_patterns_hold_in_every_layer(task, pattern, kept_per_set):
    params, x, y = task
    kernel_masks, result = prune(jax.random.key(0), params, x, y, pattern, num_steps=2_000)
    rule = patterns.rule_of(pattern)
    for layer, kept in zip(kernel_masks["params"].values(), kept_per_set, strict=True):
        mask = layer["kernel"].T
        assert set(mask.reshape(-1, rule.set_size(mask.shape)).sum(1).tolist()) == {kept}
    assert result.num_accepted > 0
    assert accuracy(params, kernel_masks, x, y) > accuracy(params, start_masks(params, pattern), x, y)


@pytest.mark.parametrize(
    ("pattern", "height", "width"), [(Block((4, 2), 0.5), 4, 2), (Columns(0.5), None, 1)], ids=str
)
def test_blocks_and_columns_stay_or_go_as_a_whole(task, pattern, height, width):
    params, x, y = task
    params = {"params": {name: params["params"][name] for name in ("Dense_0", "Dense_1")}}  # 8 classes, 2 used
    kernel_masks, result = prune(jax.random.key(0), params, x, y, pattern, num_steps=1_000)
    for layer in kernel_masks["params"].values():
        mask = np.asarray(layer["kernel"]).T
        outputs, inputs = mask.shape
        blocks = mask.reshape(outputs // (height or outputs), height or outputs, inputs // width, width).sum(
            (1, 3)
        )
        assert set(np.unique(blocks)) == {0, (height or outputs) * width}
        assert (blocks > 0).sum(1).tolist() == [inputs // width // 2] * len(blocks)
    assert result.num_accepted > 0


def start_masks(params, pattern):
    names, network = mlp.network_of(params)
    blocks = patterns.network_best(pattern, [jnp.abs(kernel) for kernel in network.kernels])
    mask = patterns.network_mask(pattern, blocks, network.shapes)
    return mlp.mask_tree(names, masks.unflatten(mask, network.shapes))


@pytest.mark.parametrize(
    ("pattern", "options", "parts"),
    [
        (NM(3, 5), {}, ["layer 1, 8 inputs and 16 outputs", "3:5 needs a multiple of 5 inputs"]),
        (Rows(0.5), {}, ["Rows would prune classes, the outputs of the last layer: use Columns(0.5)"]),
        (
            Block((4, 4), 0.5),
            {"backend": "native"},
            ["Block(shape=(4, 4), density=0.5) has no native code"],
        ),
        (NM(2, 4), {"move": "informed"}, ["NM(kept=2, group=4) needs move 'uniform', not 'informed'"]),
        (
            Unit(0.5),
            {"start": "score_search"},
            ["Unit(density=0.5) needs another start than 'score_search'", "'magnitude'"],
        ),
        ("2:4", {}, ["density must be a number or a pattern, not the text '2:4'", "NM(2, 4)"]),
        ("0.5", {}, ["not the text '0.5'", "Unit(0.5)"]),
    ],
)
def test_patterns_that_do_not_fit_are_refused(task, pattern, options, parts):
    params, x, y = task
    with refusal(*parts):
        prune(jax.random.key(0), params, x, y, pattern, **options)


@pytest.mark.slow
@pytest.mark.parametrize("density", [0.3, Unit(0.5)], ids=str)
def test_samples_and_params_of_any_kind_give_the_same(task, density):
    params, x, y = (jax.tree.map(np.asarray, part) for part in task)

    def found(params, x, y):
        return prune(jax.random.key(0), params, x, y, density, 100)[1]

    expected = found(params, x, y)
    swapped = jax.tree.map(lambda array: array.astype(array.dtype.newbyteorder(">")), (params, x, y))
    for given in (
        swapped,
        (params, x.astype(">f8"), y.astype("u8")),
        (params, np.asfortranarray(x), y.astype(">u8")),
        (params, x.tolist(), y.tolist()),
    ):
        for one, other in zip(jax.tree.leaves(found(*given)), jax.tree.leaves(expected), strict=True):
            np.testing.assert_array_equal(one, other)
