"""The network against Flax and numpy, its parameters as trees, and known accuracies."""

import itertools
import os
from pathlib import Path

import chex
import flax
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from sa_jax import files
from sa_jax.files import datasets
from sa_jax.networks import masks, mlp
from tests.conftest import refusal

GIVEN = os.environ.get("SA_JAX_DATA")


WEIGHTS = "mlpnet_mnist_93.97.npz"


NUMPY_ACTIVATIONS = {
    "relu": lambda z: np.maximum(z, 0),
    "tanh": np.tanh,
    "gelu": lambda z: 0.5 * z * (1 + np.tanh(np.sqrt(2 / np.pi) * (z + 0.044715 * z**3))),
}


def ones(*shape):
    return np.ones(shape, np.float32)


@pytest.fixture(
    params=itertools.product(mlp.ACTIVATIONS, [True, False]), ids=lambda pair: "-".join(map(str, pair))
)
def model(request):
    """One of three layers for each activation, with and without biases."""
    activation, use_bias = request.param
    return mlp.MLP([6, 5, 3], activation, use_bias)


def perturbed(params, rng_key):
    """Biases start at zero, which would hide most mistakes with them."""
    leaves, structure = jax.tree.flatten(params)
    keys = jax.random.split(rng_key, len(leaves))
    return structure.unflatten(
        leaf + jax.random.normal(key, leaf.shape) for key, leaf in zip(keys, leaves, strict=True)
    )


@pytest.mark.slow
def test_flax_apply_forward_and_numpy_agree(model, rng_key):
    x = jax.random.normal(jax.random.key(5), (8, 4))
    params = perturbed(model.init(rng_key, x)["params"], rng_key)
    names, network = mlp.network_of(params)
    assert network.sizes == [4, 6, 5, 3] and network.total == 4 * 6 + 6 * 5 + 5 * 3
    assert all((bias is not None) == model.use_bias for bias in network.biases)
    mask = masks.random(rng_key, network.total, 40)
    kernel_masks = mlp.mask_tree(names, masks.unflatten(mask, network.shapes))

    expected, start = np.asarray(x, np.float64), 0
    for layer, name in enumerate(("Dense_0", "Dense_1", "Dense_2")):
        kernel = np.asarray(params[name]["kernel"], np.float64)
        kept = np.asarray(mask[start : start + kernel.size]).reshape(kernel.shape)
        start += kernel.size
        expected = NUMPY_ACTIVATIONS[model.activation](expected) if layer else expected
        expected = expected @ (kernel * kept) + (params[name]["bias"] if model.use_bias else 0)

    logits = mlp.apply(params, kernel_masks, x, model.activation)
    np.testing.assert_allclose(logits, expected, rtol=1e-4, atol=1e-5)
    alike = [
        mlp.forward(mlp.masked(network, mask), x, model.activation),
        model.apply({"params": params, "masks": kernel_masks}, x),
        mlp.apply({"params": params}, {"params": kernel_masks}, x, model.activation),
    ]
    for other in alike:
        np.testing.assert_array_equal(other, logits)


def test_without_masks_the_network_is_dense(model, rng_key):
    x = jax.random.normal(jax.random.key(5), (8, 4))
    params = perturbed(model.init(rng_key, x)["params"], rng_key)
    _, network = mlp.network_of(params)
    dense = model.apply({"params": params}, x)
    np.testing.assert_array_equal(mlp.forward(network, x, model.activation), dense)
    everything = mlp.masked(network, jnp.ones(network.total, bool))
    np.testing.assert_array_equal(mlp.forward(everything, x, model.activation), dense)
    entering = mlp.layer_inputs(network, x, model.activation)
    assert [inputs.shape[1] for inputs in entering] == network.sizes
    np.testing.assert_array_equal(entering[0], x)
    np.testing.assert_array_equal(entering[-1], dense)


def test_nan_in_a_pruned_branch_is_gone():
    network = mlp.Network((jnp.array([[jnp.nan], [2.0]]),), (None,))
    pruned = mlp.masked(network, jnp.array([False, True]))
    assert mlp.forward(pruned, jnp.ones((1, 2))).tolist() == [[2.0]]


VARIANCES = {"he": 2 / 100, "glorot": 2 / 500, "lecun": 1 / 100, "orthogonal": 1 / 400}


@pytest.mark.parametrize("initializer", mlp.INITIALIZERS)
def test_initial_weights_follow_from_the_key_and_the_name(initializer):
    model = mlp.MLP([400], initializer=initializer)
    initial = [model.init(jax.random.key(seed), ones(1, 100))["params"]["Dense_0"] for seed in (3, 3, 4)]
    chex.assert_trees_all_equal(initial[0], initial[1], strict=True)
    kernel, bias = np.asarray(initial[0]["kernel"]), initial[0]["bias"]
    assert kernel.dtype == np.float32 and np.isfinite(kernel).all() and not bias.any()
    assert abs(np.corrcoef(kernel.ravel(), np.ravel(initial[2]["kernel"]))[0, 1]) < 0.03
    kind, _, distribution = initializer.partition("_")
    np.testing.assert_allclose(kernel.var(), VARIANCES[kind], rtol=0.05)
    if distribution == "uniform":
        np.testing.assert_allclose(np.abs(kernel).max(), np.sqrt(3 * VARIANCES[kind]), rtol=0.01)
    if kind == "orthogonal":
        np.testing.assert_allclose(kernel @ kernel.T, np.eye(100), atol=1e-4)


def test_saliency_is_weight_times_root_mean_square_of_its_input():
    first, bias, second = [[1.0, -2.0], [0.5, 3.0]], [0.25, -1.0], [[2.0, -1.0, 0.0], [-4.0, 0.5, 1.0]]
    network = mlp.Network((jnp.array(first), jnp.array(second)), (jnp.array(bias), None))
    x = np.array([[1.0, 2.0], [-3.0, 0.0], [0.5, 0.5]])
    hidden = np.tanh(x @ np.array(first) + bias)
    expected = [
        abs(kernel[i][j]) * np.sqrt(sum(row[i] ** 2 for row in inputs) / 3)
        for kernel, inputs in ((first, x), (second, hidden))
        for i in range(2)
        for j in range(len(kernel[0]))
    ]
    np.testing.assert_allclose(mlp.saliency(network, jnp.asarray(x), "tanh"), expected, rtol=1e-5)


# Parameters as trees


NESTED = {
    "trunk": {"fc1": {"kernel": ones(3, 4), "bias": ones(4)}, "fc2": {"kernel": ones(4, 2)}},
    "head": {"kernel": ones(5, 3)},
}


def test_layers_are_ordered_by_the_numbers_in_their_names():
    widths = [4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15]
    params = {
        f"Dense_{layer}": {"kernel": jnp.full(shape, layer, float)}
        for layer, shape in reversed(list(enumerate(itertools.pairwise(widths))))
    }
    for tree in (params, {"params": params}, flax.core.freeze(params)):
        names, network = mlp.network_of(tree)
        assert [name.rpartition("/")[2] for name in names] == [f"Dense_{layer}" for layer in range(11)]
        assert network.sizes == widths
        assert [float(kernel[0, 0]) for kernel in network.kernels] == list(range(11))
    assert mlp.network_of({"params": params})[0][0] == "params/Dense_0"


def test_biases_stay_with_their_layers():
    names, network = mlp.network_of(NESTED)
    assert names == ["head", "trunk/fc1", "trunk/fc2"] and network.sizes == [5, 3, 4, 2]
    assert [bias is None for bias in network.biases] == [True, False, True]


@pytest.mark.parametrize(
    "params",
    [
        {f"Dense_{layer}": {"kernel": ones(2, 2)} for layer in range(12)},
        {"params": {"Dense_0": {"kernel": ones(4, 3), "bias": ones(3)}, "Dense_1": {"kernel": ones(3, 2)}}},
        NESTED,
        {"Dense": {"kernel": ones(2, 3)}, "Dense1": {"kernel": ones(3, 4)}},  # one name begins the other
        {"net": {"kernel": ones(2, 3), "head": {"kernel": ones(3, 4)}}},
        {"fc": {"kernel": ones(2, 3)}, "fc-out": {"kernel": ones(3, 4)}},  # '-' sorts before '/'
        {"kernel": ones(2, 3)},
    ],
    ids=["twelve", "outer level", "nested", "numbered second", "layer within a layer", "dash", "no layer"],
)
def test_masks_go_to_a_tree_and_back(params):
    names, network = mlp.network_of(params)
    mask = masks.random(jax.random.key(2), network.total, network.total // 2)
    parts = masks.unflatten(mask, network.shapes)
    tree = mlp.mask_tree(names, parts)
    np.testing.assert_array_equal(mlp.flat_mask(tree), mask)
    x = jax.random.normal(jax.random.key(5), (3, network.sizes[0]))
    masked = mlp.forward(mlp.masked(network, mask), x)
    np.testing.assert_array_equal(mlp.apply(params, tree, x), masked)
    # The tree has a mask of the same shape wherever the params have a kernel.
    shapes = {path: leaf.shape for path, leaf in flax.traverse_util.flatten_dict(params).items()}
    flat = flax.traverse_util.flatten_dict(tree)
    assert {path: leaf.shape for path, leaf in flat.items()} == {
        path: shape for path, shape in shapes.items() if path[-1] == "kernel"
    }


def test_only_the_parameters_of_all_variables_count():
    params = {"Dense_0": {"kernel": ones(3, 3)}}
    names, network = mlp.network_of({"params": params, "masks": params, "batch_stats": {"mean": ones(3)}})
    assert names == ["params/Dense_0"] and network.total == 9


@pytest.mark.parametrize(
    ("kernel_masks", "activation", "problem"),
    [
        ({"a": {"kernel": ones(3, 2) > 0}}, "sine", "activation must be one of relu, tanh, gelu, not 'sine'"),
        ({"b": {"kernel": ones(3, 2) > 0}}, "relu", "the masks do not fit the parameters"),
        ({"a": {"kernel": ones(2, 3) > 0}}, "relu", "the masks do not fit the parameters"),
        ({"a": {"kernel": ones(3, 2) > 0}, "b": {"kernel": ones(2, 2) > 0}}, "relu", "the masks do not fit"),
    ],
)
def test_masks_that_do_not_fit_are_refused(kernel_masks, activation, problem):
    with refusal(problem):
        mlp.apply({"a": {"kernel": ones(3, 2)}}, kernel_masks, ones(5, 3), activation)


@pytest.mark.parametrize(
    ("params", "problem"),
    [
        ({}, "the parameters hold no kernel"),
        ({"params": {}}, "the parameters hold no kernel"),
        ([ones(2, 2)], "parameters must be nested mappings of arrays, not list"),
        (
            {"Conv_0": {"kernel": ones(3, 3, 1, 8)}},
            "parameter 'Conv_0/kernel' of shape [3, 3, 1, 8] does not belong",
        ),
        ({"a": {"kernel": ones(3)}}, "parameter 'a/kernel' of shape [3] does not belong"),
        ({"a": {"kernel": ones(3, 2), "bias": ones(1, 2)}}, "parameter 'a/bias' of shape [1, 2] does not belong"),
        ({"a": {"kernel": ones(3, 2), "scale": ones(2)}}, "parameter 'a/scale' of shape [2] does not belong"),
        ({"a": ones(3, 2)}, "parameter 'a' of shape [3, 2] does not belong"),
        ({"a": {"bias": ones(2)}}, "layer 'a' has a bias and no kernel"),
        ({"a": {"kernel": ones(3, 2), "bias": ones(3)}}, "layer 'a': bias [3] does not fit kernel [3, 2]"),
        (
            {"a_2": {"kernel": ones(4, 5)}, "a_10": {"kernel": ones(4, 5)}},
            "layer 'a_10' takes 4 inputs, but the layer before it has 5 outputs; layers in the order "
            "of their names: a_2, a_10",
        ),
    ],
)
def test_what_is_no_perceptron_is_refused(params, problem):
    with refusal(problem):
        mlp.network_of(params)


# Known accuracies


@pytest.fixture(scope="module")
def published():
    """The published weights and the test images that they were made for."""
    mnist = datasets.load_dataset("mnist", 0.1307, 0.3081)
    return mlp.network_of(files.load(datasets.data_file(WEIGHTS)))[1], *mnist.test


@jax.jit
def num_correct(network, mask, x, y):
    return (mlp.forward(mlp.masked(network, mask), x).argmax(1) == y).sum()


needs_published = pytest.mark.skipif(
    not (GIVEN and (Path(GIVEN) / WEIGHTS).is_file() and (Path(GIVEN) / "mnist").is_dir()),
    reason=f"needs SA_JAX_DATA, a folder that holds mnist/ and {WEIGHTS}",
)


@pytest.mark.slow
@needs_published
def test_dense_accuracy_is_the_published_one(published):
    network, x, y = published
    assert network.sizes == [784, 40, 20, 10] and network.total == 32_360 and network.biases == (None,) * 3
    assert int(num_correct(network, jnp.ones(network.total, bool), x, y)) == 9_397


@needs_published
@pytest.mark.parametrize(
    ("density", "percent"),
    [(0.5, 93.93), (0.4, 93.78), (0.3, 93.62), (0.2, 92.89), (0.1, 90.30), (0.05, 83.64), (0.02, 32.25)],
)
def test_magnitude_pruning_gives_the_known_accuracy(published, density, percent):
    network, x, y = published
    mask = masks.by_score(masks.flatten(map(jnp.abs, network.kernels)), masks.num_kept(density, network.total))
    assert mask.sum() == round(density * 32_360)
    assert abs(int(num_correct(network, mask, x, y)) / 100 - percent) < 0.0201
