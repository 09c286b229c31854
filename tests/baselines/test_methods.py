"""Baselines by name: exact counts, weights that move only where said, labels, and the function `prune`."""

import jax
import numpy as np
import pytest

from sa_jax.baselines import METHODS, Budget, Found, prune, scores
from sa_jax.networks import mlp
from sa_jax.networks.energies import cross_entropy
from sa_jax.networks.patterns import Unit
from tests.baselines.conftest import BUDGET, task_of
from tests.conftest import refusal


@pytest.mark.slow
@pytest.mark.parametrize("name", METHODS)
def test_every_method_keeps_exactly_as_many_and_moves_weights_only_where_it_says(name, digits, trained_network):
    num_kept = 173
    task = task_of(trained_network, *digits.train, num_kept)
    mask, network = METHODS[name].find(task)
    if name == "smaller_dense":
        assert network.total <= num_kept and bool(mask.all())
        assert network.sizes[0] == 64 and network.sizes[-1] == 10
        return
    assert mask.dtype == bool and mask.shape == (trained_network.total,) and int(mask.sum()) == num_kept
    same = all(np.array_equal(a, b) for a, b in zip(network.kernels, trained_network.kernels, strict=True))
    assert same != METHODS[name].moves_weights


@pytest.mark.parametrize("name", [name for name, method in METHODS.items() if not method.uses_labels])
def test_methods_without_labels_do_not_see_them(name, digits, trained_network):
    x, y = digits.train
    found = [METHODS[name].find(task_of(trained_network, x, labels, 173)).mask for labels in (y, 0 * y)]
    assert np.array_equal(*found)


@pytest.mark.slow
def test_prune_takes_any_method_by_name_and_gives_masks_first(digits):
    params = {"params": mlp.MLP([12, 10]).init(jax.random.key(0), digits.train.inputs[:1])["params"]}
    key, data = jax.random.key(1), (params, *digits.train)
    kernel_masks, same = prune(key, "magnitude_global", *data, density=0.1)
    assert jax.tree.structure(same) == jax.tree.structure(params)
    assert sum(int(m.sum()) for m in jax.tree.leaves(kernel_masks)) == round(0.1 * (64 * 12 + 120))
    mlp.apply(same, kernel_masks, digits.test.inputs)
    _, moved = prune(key, "woodfisher", *data, density=0.1, budget=BUDGET)
    assert not np.array_equal(moved["params"]["Dense_0"]["kernel"], params["params"]["Dense_0"]["kernel"])
    with refusal("method must be one of", "'magnitude'"):
        prune(key, "magnitude", *data)
    with refusal("density"):
        prune(key, "magnitude_global", *data, density=0)
    with refusal("density", "Unit"):
        prune(key, "magnitude_global", *data, density=Unit(0.1))
    with refusal("budget.epochs must be a whole number of at least 1, not 0"):
        prune(key, "edge_popup", *data, budget=BUDGET._replace(epochs=0))
    with refusal("budget.learning_rate must be a finite number above 0, not -1.0"):
        prune(key, "edge_popup", *data, budget=BUDGET._replace(learning_rate=-1.0))
    with refusal("budget.score_steps must be a whole number of at least 1, or None to choose it"):
        prune(key, "score_search", *data, budget=BUDGET._replace(score_steps=0))


def test_score_search_from_forward_passes_takes_no_derivative():
    names = ("score_search", "score_search_gradient", "edge_popup_momentum")
    methods = [METHODS[name] for name in names]
    assert [method.uses_gradients for method in methods] == [False, True, True]
    assert all(one.uses_labels and one.minimises_energy and not one.moves_weights for one in methods)


@pytest.mark.slow
@pytest.mark.parametrize("scale", [None, 4.0])
@pytest.mark.parametrize("name", ["score_search", "score_search_gradient", "edge_popup_momentum"])
def test_searches_of_scores_lower_the_energy_that_they_are_given(name, scale, digits, trained_network):
    budget, energy = BUDGET._replace(score_steps=600, epochs=40), cross_entropy(1.0 if scale is None else scale)

    def found(budget, seed=0, energy=None if scale is None else energy):
        task = task_of(trained_network, *digits.train, 173, energy, budget)
        return METHODS[name].find(task._replace(rng_key=jax.random.key(seed))).mask

    def of(mask):
        return float(
            energy(mlp.forward(mlp.masked(trained_network, mask), digits.train.inputs), digits.train.labels)
        )

    masks_of_seeds = [found(budget, seed) for seed in (0, 0, 1)]
    start = scores.magnitude_global(trained_network, 173)
    assert all(int(mask.sum()) == 173 and of(mask) < 0.7 * of(start) for mask in masks_of_seeds)
    assert np.array_equal(*masks_of_seeds[:2]) and not np.array_equal(*masks_of_seeds[1:])
    assert of(masks_of_seeds[0]) < of(found(budget._replace(score_steps=10, epochs=1)))
    if scale:  # another energy than the cross-entropy of the labels
        assert not np.array_equal(masks_of_seeds[0], found(budget, energy=None))


def test_every_method_has_one_label_for_people():
    labels = [method.label for method in METHODS.values()]
    assert all(label[:1].isupper() and "_" not in label for label in labels)
    assert len(set(labels)) == len(labels)


@pytest.mark.slow
def test_whole_numbers_are_taken_as_floats(digits):
    params = mlp.MLP([12, 10]).init(jax.random.key(0), digits.train.inputs[:1])
    pixels = np.rint(16 * digits.train.inputs).astype(np.uint8)
    for method in ("wanda_global", "obd"):
        both = [
            prune(jax.random.key(1), method, params, x, digits.train.labels, 0.1)[0]
            for x in (pixels, pixels.astype(np.float32))
        ]
        assert all(map(np.array_equal, *map(jax.tree.leaves, both)))


@pytest.mark.parametrize(
    "name", ["random", "wanda_global", "snip", "woodfisher", "greedy_swaps", "edge_popup", "score_search"]
)
def test_arrays_of_any_kind_give_the_same(name, small):
    network, x, y = small
    params = mlp.with_weights({}, ["Dense_0", "Dense_1", "Dense_2"], jax.tree.map(np.asarray, network))
    x, y = np.asarray(x), np.asarray(y)
    budget = Budget(12, 64, 12, 1, score_steps=20)
    expected = prune(jax.random.key(0), name, params, x, y, 0.3, budget=budget)
    swapped = jax.tree.map(lambda array: array.astype(array.dtype.newbyteorder(">")), (params, x, y))
    for given in (swapped, (params, x.tolist(), y.astype(">u8"))):
        found = prune(jax.random.key(0), name, *given, 0.3, budget=budget)
        for one, other in zip(jax.tree.leaves(found), jax.tree.leaves(expected), strict=True):
            np.testing.assert_array_equal(one, other)
    # The functions themselves too, after they were compiled for the same shapes.
    if name in ("wanda_global", "snip"):
        functions = {"wanda_global": lambda x, y: scores.wanda_global(network, x, 9)}
        functions["snip"] = lambda x, y: scores.snip(network, x, y, 9)
        np.testing.assert_array_equal(*(functions[name](*pair) for pair in ((x, y), swapped[1:])))


def test_weights_that_training_moves_beyond_all_bounds_are_refused(small, monkeypatch):
    network, x, y = small
    params = mlp.with_weights({}, ["Dense_0", "Dense_1", "Dense_2"], network)
    diverged = Found(np.ones(network.total, bool), network._replace(biases=(network.biases[0] * np.nan,) * 3))
    monkeypatch.setitem(
        METHODS, "magnitude_finetuned", METHODS["magnitude_finetuned"]._replace(find=lambda _: diverged)
    )
    with refusal("magnitude_finetuned moved weights until they were not finite: lower budget.learning_rate"):
        prune(jax.random.key(0), "magnitude_finetuned", params, x, y)


def test_what_is_not_a_key_or_not_samples_is_refused(small):
    network, x, y = small
    params = mlp.with_weights({}, ["Dense_0", "Dense_1", "Dense_2"], network)
    for key in (0, None, params):
        with refusal("rng_key must be one key, such as jax.random.key(0), not"):
            prune(key, "snip", params, x, y)
    with refusal("labels must be whole numbers, not float32"):
        prune(jax.random.key(0), "snip", params, y, x)
    with refusal("inputs must be one array, but its rows have different lengths"):
        prune(jax.random.key(0), "snip", params, [[1.0], [2.0, 3.0]], y)
