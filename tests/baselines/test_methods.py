"""Baselines: exact counts, brute force where the method is a formula, and what is trained or searched improves."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from sa_jax.baselines import METHODS, Budget, Task, prune, scores, search, second_order, trained
from sa_jax.files import datasets
from sa_jax.networks import masks, mlp
from sa_jax.networks.energies import cross_entropy
from sa_jax.networks.mlp import Network
from sa_jax.networks.patterns import Unit
from sa_jax.networks.pretrain import pretrain
from tests.conftest import refusal

BUDGET = Budget(num_samples=64, num_evaluations=64, search_samples=64, epochs=2)


@pytest.fixture(scope="module")
def digits():
    return datasets.load_dataset("digits")


@pytest.fixture(scope="module")
def trained_network(digits):
    params = pretrain(jax.random.key(0), mlp.MLP([16, 12, 10]), *digits.train, 30, 3e-3)
    return mlp.network_of(params)[1]


@pytest.fixture
def small():
    """6-5-4-3 with biases, and 12 samples."""
    sizes, keys = [6, 5, 4, 3], jax.random.split(jax.random.key(3), 8)
    kernels = tuple(jax.random.normal(k, shape) for k, shape in zip(keys, itertools.pairwise(sizes), strict=False))
    biases = tuple(0.1 * jax.random.normal(k, (n,)) for k, n in zip(keys[3:], sizes[1:], strict=False))
    x = jax.random.normal(keys[6], (12, 6))
    return Network(kernels, biases), x, jax.random.randint(keys[7], (12,), 0, 3)


def task_of(network, x, y, num_kept, energy=None, budget=BUDGET):
    return Task(jax.random.key(5), network, jnp.asarray(x), jnp.asarray(y), num_kept, "relu", energy, budget)


def accuracy(network, split):
    return float((mlp.forward(network, split.inputs).argmax(-1) == split.labels).mean())


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


def sample_gradients(network, x, y):
    """By automatic differentiation, one sample after the other: `[samples, total]`."""

    def loss(kernels, one_x, one_y):
        logits = mlp.forward(network._replace(kernels=kernels), one_x[None])
        return cross_entropy()(logits, one_y[None])

    return np.stack([masks.flatten(jax.grad(loss)(network.kernels, a, b)) for a, b in zip(x, y, strict=True)])


def test_snip_and_obd_are_their_formulas(small):
    network, x, y = small
    gradients, weights = sample_gradients(network, x, y), np.asarray(masks.flatten(network.kernels))
    by_slope = masks.by_score(jnp.abs(weights * gradients.mean(0)), 20)
    by_curvature = masks.by_score(weights**2 * (gradients**2).mean(0), 20)
    np.testing.assert_array_equal(scores.snip(network, x, y, 20), by_slope)
    np.testing.assert_array_equal(scores.obd(network, x, y, 20), by_curvature)


def test_fisher_inverse_is_that_of_the_dense_matrix(small):
    network, x, y = small
    gradients = sample_gradients(network, x, y).astype(np.float64)
    fisher = second_order.empirical_fisher(network, x, y, damping=1e-2)
    dense = np.linalg.inv(gradients.T @ gradients / len(x) + 1e-2 * np.eye(network.total))
    vector = np.arange(network.total) / 10.0
    np.testing.assert_allclose(second_order.inverse_diagonal(fisher), np.diag(dense), rtol=1e-4)
    np.testing.assert_allclose(second_order.inverse_product(fisher, vector), dense @ vector, rtol=1e-3, atol=1e-3)

    weights = np.asarray(masks.flatten(network.kernels), np.float64)
    mask, moved = second_order.woodfisher(network, fisher, 20)
    np.testing.assert_array_equal(mask, masks.by_score(jnp.asarray(weights**2 / np.diag(dense)), 20))
    gone = np.where(mask, 0, weights / np.diag(dense))
    np.testing.assert_allclose(masks.flatten(moved.kernels), weights - dense @ gone, rtol=1e-3, atol=1e-3)


def quadratic(gradients, weights, mask, damping):
    v = np.where(mask, 0, weights)
    return ((gradients @ v) ** 2).sum() / (2 * len(gradients)) + damping / 2 * (v**2).sum()


def test_joint_update_minimises_the_quadratic_model(small):
    network, x, y = small
    gradients = sample_gradients(network, x, y).astype(np.float64)
    fisher = second_order.empirical_fisher(network, x, y, damping=1e-2)
    mask = np.asarray(scores.magnitude_global(network, 20))
    moved = second_order.obs_update(network, fisher, jnp.asarray(mask))
    old, new = (np.asarray(masks.flatten(n.kernels), np.float64) for n in (network, moved))
    matrix = gradients.T @ gradients / len(x) + 1e-2 * np.eye(network.total)
    change = np.where(mask, new, 0) - old
    # At the minimum no kept weight has a slope.
    np.testing.assert_allclose((matrix @ change)[mask], 0, atol=1e-4)
    assert change @ matrix @ change < old[~mask] @ matrix[~mask][:, ~mask] @ old[~mask]


def test_swap_search_ends_where_no_single_swap_lowers_the_quadratic_model(small):
    network, x, y = small
    gradients = sample_gradients(network, x, y).astype(np.float64)
    weights = np.asarray(masks.flatten(network.kernels), np.float64)
    fisher = second_order.empirical_fisher(network, x, y)
    start = scores.magnitude_global(network, 20)
    mask = np.array(second_order.cbs_mask(network, fisher, 20, start))
    found = quadratic(gradients, weights, mask, fisher.damping)
    assert mask.sum() == 20 and found < quadratic(gradients, weights, np.asarray(start), fisher.damping)
    for leave, enter in itertools.product(np.flatnonzero(mask), np.flatnonzero(~mask)):
        other = mask.copy()
        other[leave], other[enter] = False, True
        assert quadratic(gradients, weights, other, fisher.damping) >= found * (1 - 1e-4)


def test_wanda_per_output_has_equal_density_in_every_unit(small):
    network, x, _ = small
    num_kept = 37  # half of 74
    parts = masks.unflatten(scores.wanda_per_output(network, x, num_kept), network.shapes)
    for part in parts:
        per_unit = np.asarray(part.sum(0))
        assert per_unit.max() - per_unit.min() <= 1
    score = masks.unflatten(mlp.saliency(network, x), network.shapes)[0]
    for unit in range(5):
        chosen, rest = (
            np.asarray(score[:, unit])[np.asarray(which)] for which in (parts[0][:, unit], ~parts[0][:, unit])
        )
        assert chosen.min() > rest.max()


def test_node_pruning_drops_whole_units_of_least_importance(small):
    network, x, _ = small
    norms = np.abs(network.kernels[0]).mean(0)
    # All branches without the least of the first layer's five units, of the second's four all.
    num_kept = network.total - 6 - 4
    first, second, third = masks.unflatten(scores.node_input_norm(network, num_kept), network.shapes)
    dropped = int(norms.argmin())
    assert not first[:, dropped].any() and not second[dropped].any()
    assert int(first.sum()) == 24 and int(second.sum()) == 16 and bool(third.all())
    hidden = np.asarray(mlp.layer_inputs(network, x)[1]) > 0
    share = hidden.mean(0)
    importance = -(np.nan_to_num(share * np.log(share)) + np.nan_to_num((1 - share) * np.log1p(-share)))
    first = masks.unflatten(scores.node_entropy(network, x, num_kept), network.shapes)[0]
    assert importance[~np.asarray(first).any(0)] == pytest.approx(importance.min())


def test_searches_lower_the_energy_and_more_evaluations_never_raise_it(digits, trained_network):
    x, y = (jnp.asarray(part[:200]) for part in digits.train)
    energy = cross_entropy()

    def of(mask):
        return float(energy(mlp.forward(mlp.masked(trained_network, mask), x), y))

    start = of(scores.magnitude_global(trained_network, 173))
    arguments = jax.random.key(1), trained_network, x, y, 173
    tried = [of(search.random_search(*arguments, n)) for n in (1, 30, 300)]
    assert tried[0] >= tried[1] >= tried[2] and tried[0] > tried[2]
    for method in (search.greedy_swaps, search.genetic_algorithm):
        assert of(method(*arguments, 600)) < 0.98 * start


def test_trained_gates_beat_magnitude(digits, trained_network):
    magnitude = METHODS["magnitude_global"].find(task_of(trained_network, *digits.train, 100)).mask
    least = accuracy(mlp.masked(trained_network, magnitude), digits.train)
    for name in ("edge_popup", "movement", "l0_gates", "magnitude_finetuned"):
        task = task_of(trained_network, *digits.train, 100, budget=BUDGET._replace(epochs=60))
        mask, network = METHODS[name].find(task)
        assert accuracy(mlp.masked(network, mask), digits.train) > least + 0.05, name


def test_front_door(digits):
    params = {"params": mlp.MLP([12, 10]).init(jax.random.key(0), digits.train.inputs[:1])["params"]}
    arguments = jax.random.key(1), params, *digits.train
    key, *data = arguments
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


def test_every_method_has_one_label_for_people():
    labels = [method.label for method in METHODS.values()]
    assert all(label[:1].isupper() and "_" not in label for label in labels)
    assert len(set(labels)) == len(labels)


def test_whole_numbers_are_taken_as_floats(digits):
    params = mlp.MLP([12, 10]).init(jax.random.key(0), digits.train.inputs[:1])
    pixels = np.rint(16 * digits.train.inputs).astype(np.uint8)
    for method in ("wanda_global", "obd"):
        both = [
            prune(jax.random.key(1), method, params, x, digits.train.labels, 0.1)[0]
            for x in (pixels, pixels.astype(np.float32))
        ]
        assert all(map(np.array_equal, *map(jax.tree.leaves, both)))


def test_no_dense_network_so_small():
    assert trained.smaller_layouts((4, 8, 2), 48) == [(4, 8, 2)]
    assert trained.smaller_layouts((4, 8, 2), 6) == [(4, 1, 2)]
    assert trained.smaller_layouts((4, 8, 8, 2), 6) == [(4, 1, 2)]
    assert trained.smaller_layouts((4, 8, 8, 2), 7) == [(4, 1, 2), (4, 1, 1, 2)]
    with refusal("no dense network of 4 inputs", "makes 6"):
        trained.smaller_layouts((4, 8, 2), 5)
