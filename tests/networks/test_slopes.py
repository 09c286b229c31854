"""Slopes from forward passes against central differences done by hand, and against back-propagation."""

import itertools
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from sa_jax.networks import energies, slopes
from sa_jax.networks.mlp import ACTIVATIONS, Network
from tests.settings import strict, x64

SIZES = [5, 6, 4, 7, 3]  # no two widths are equal; some networks leave the middle ones out
SAMPLES = 11


def make_network(depth, use_bias=True, seed=0):
    """A network of `depth` layers whose outputs are of about the same size in each layer."""
    numbers = np.random.default_rng(seed)
    shapes = list(itertools.pairwise([*SIZES[:depth], SIZES[-1]]))
    kernels = tuple(jnp.asarray(numbers.normal(0, 2 / np.sqrt(shape[0]), shape), jnp.float32) for shape in shapes)
    biases = tuple(jnp.asarray(numbers.normal(size=units), jnp.float32) for _, units in shapes)
    return Network(kernels, biases if use_bias else (None,) * depth)


def make_data(seed=1):
    """Inputs `[features, samples]`, labels, and a teacher's predictions `[classes, samples]`."""
    numbers = np.random.default_rng(seed)
    x = jnp.asarray(numbers.normal(size=(SIZES[0], SAMPLES)), jnp.float32)
    labels = jnp.asarray(numbers.integers(0, SIZES[-1], SAMPLES), jnp.int32)
    return x, labels, jax.nn.softmax(jnp.asarray(numbers.normal(size=(SIZES[-1], SAMPLES)), jnp.float32), 0)


ENERGIES = {
    "cross_entropy": energies.cross_entropy(2.0),
    "kl_to_teacher": energies.kl_to_teacher(0.5),
    "margin_loss": energies.margin_loss(3.0),
    "error_rate": energies.error_rate(),
}


def forward(network, x, targets, energy, activation="tanh", samples=None):
    act = ACTIVATIONS[activation]
    samples = samples or [x.shape[1]] * len(network.kernels)

    @jax.jit
    def found(network, x, targets):
        outputs = slopes.layer_outputs(network, x, act)
        return slopes.forward_slopes(network, outputs, targets, energy, act, samples)

    return jax.tree.map(np.asarray, found(network, x, targets))


def gradient(network, x, targets, energy, activation="tanh"):
    act = ACTIVATIONS[activation]

    @jax.jit
    def found(network, x, targets):
        return slopes.gradient_slopes(network, slopes.layer_outputs(network, x, act), targets, energy, act)

    return jax.tree.map(np.asarray, found(network, x, targets))


def losses_by_hand(network, x, labels, activation, moved=None, amount=0.0):
    """Each sample's cross-entropy at scale 2, in float64, after the output of unit `moved` is changed."""
    act = {
        "relu": lambda z: np.maximum(z, 0),
        "tanh": np.tanh,
        "gelu": lambda z: 0.5 * z * (1 + np.tanh(np.sqrt(2 / np.pi) * (z + 0.044715 * z**3))),
    }[activation]
    values = np.asarray(x, np.float64)
    for layer, (kernel, bias) in enumerate(zip(network.kernels, network.biases, strict=True)):
        values = np.asarray(kernel, np.float64).T @ (act(values) if layer else values)
        values = values if bias is None else values + np.asarray(bias, np.float64)[:, None]
        if moved is not None and moved[0] == layer:
            values[moved[1]] += amount
    scaled = 2 * values
    return np.log(np.exp(scaled).sum(0)) - scaled[np.asarray(labels), np.arange(len(labels))]


@pytest.mark.parametrize(
    ("depth", "use_bias", "activation"),
    [(1, True, "relu"), (2, False, "gelu"), (3, True, "tanh"), (4, False, "relu"), (4, True, "gelu")],
)
def test_slopes_are_the_differences_found_by_hand(depth, use_bias, activation, monkeypatch):
    monkeypatch.setattr(slopes, "PERTURBATION", 1e-3)
    network, (x, labels, _) = make_network(depth, use_bias), make_data()
    estimated = forward(network, x, [labels], ENERGIES["cross_entropy"], activation)
    derived = gradient(network, x, [labels], ENERGIES["cross_entropy"], activation)
    clear = np.ones(SAMPLES, bool)
    if activation == "relu":  # which has no derivative at 0
        for values in slopes.layer_outputs(network, x, jax.nn.relu)[:-1]:
            clear &= (np.abs(values) > 0.01).all(0)
    assert clear.sum() > SAMPLES // 2
    for layer, found in enumerate(estimated):
        expected = np.zeros(found.shape)
        for unit in range(len(found)):
            up, down = (
                losses_by_hand(network, x, labels, activation, (layer, unit), amount) for amount in (1e-5, -1e-5)
            )
            expected[unit] = (up - down) / 2e-5
        assert np.abs(expected).max() > 0.1
        np.testing.assert_allclose(derived[layer][:, clear], expected[:, clear], rtol=1e-3, atol=1e-4)
        np.testing.assert_allclose(found[:, clear], expected[:, clear], rtol=0.02, atol=5e-3)


@pytest.mark.parametrize("energy", ["cross_entropy", "kl_to_teacher", "margin_loss"])
def test_slopes_by_forward_passes_agree_with_back_propagation(energy, monkeypatch):
    monkeypatch.setattr(slopes, "PERTURBATION", 1e-3)
    network, (x, labels, predictions) = make_network(3), make_data()
    targets = [predictions if energy == "kl_to_teacher" else labels]
    for found, expected in zip(
        forward(network, x, targets, ENERGIES[energy]),
        gradient(network, x, targets, ENERGIES[energy]),
        strict=True,
    ):
        np.testing.assert_allclose(found, expected, rtol=0.02, atol=5e-3)
        assert np.abs(expected).max() > 0.1


def test_an_error_rate_is_seen_where_a_unit_decides_a_sample(monkeypatch):
    """It has no derivative, but a sample counts that is told wrong once a unit has moved by a large amount."""
    monkeypatch.setattr(slopes, "PERTURBATION", 0.5)
    network, (x, labels, _) = make_network(3), make_data()
    act, energy = ACTIVATIONS["tanh"], ENERGIES["error_rate"]
    outputs = slopes.layer_outputs(network, x, act)
    found = forward(network, x, [labels], energy)
    assert not any(np.any(slope) for slope in gradient(network, x, [labels], energy))
    wrong = np.asarray(outputs[-1]).argmax(0) != np.asarray(labels)
    for layer, slope in enumerate(found):
        changes = slope * 0.5 * np.sqrt(np.mean(np.asarray(outputs[layer]) ** 2))
        np.testing.assert_allclose(changes, np.round(changes), atol=1e-5)
        assert set(np.round(changes).ravel()) <= {-1.0, 0.0, 1.0}
        assert not ((slope > 0) & wrong[None]).any() and not ((slope < 0) & ~wrong[None]).any()
    assert np.any(found[-1])


@pytest.mark.slow
def test_chunks_that_fit_into_the_cache_change_nothing(monkeypatch):
    """The last chunk of units overlaps the one before, in hidden layers and in the last one."""
    network, (x, labels, predictions) = make_network(4), make_data()
    for targets, energy in (([labels], "cross_entropy"), ([predictions], "kl_to_teacher")):
        whole = forward(network, x, targets, ENERGIES[energy], "gelu")
        for cached in (1, 2 * 3 * SAMPLES, 4 * 7 * SAMPLES):
            monkeypatch.setattr(slopes, "CACHED_VALUES", cached)
            for found, expected in zip(forward(network, x, targets, ENERGIES[energy], "gelu"), whole, strict=True):
                np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-4)
        monkeypatch.undo()


def test_fewer_samples_are_the_first_ones(monkeypatch):
    network, (x, labels, predictions) = make_network(3), make_data()
    for targets, energy in (([labels], "cross_entropy"), ([predictions], "kl_to_teacher")):
        whole = forward(network, x, targets, ENERGIES[energy])
        for cached in (slopes.CACHED_VALUES, 20):
            monkeypatch.setattr(slopes, "CACHED_VALUES", cached)
            some = forward(network, x, targets, ENERGIES[energy], samples=[4, 1, SAMPLES])
            assert [found.shape[1] for found in some] == [4, 1, SAMPLES]
            for found, expected in zip(some, whole, strict=True):
                np.testing.assert_allclose(found, expected[:, : found.shape[1]], rtol=1e-4, atol=1e-4)
        monkeypatch.undo()


def test_dead_layers_have_finite_slopes():
    """Without a kept branch a layer gives zeros; its units may still be moved."""
    network, (x, labels, _) = make_network(4, use_bias=False), make_data()
    dead = network._replace(kernels=(network.kernels[0], 0 * network.kernels[1], *network.kernels[2:]))
    for activation in ACTIVATIONS:
        found = forward(dead, x, [labels], ENERGIES["cross_entropy"], activation)
        assert all(np.isfinite(slope).all() for slope in found)
        assert not np.any(found[0])  # nothing leaves the first layer
        assert np.any(found[1]) and np.any(found[-1])
    for all_dead in (jax.tree.map(jnp.zeros_like, network), jax.tree.map(jnp.zeros_like, make_network(1))):
        found = forward(all_dead, x, [labels], ENERGIES["cross_entropy"])
        assert all(np.isfinite(slope).all() for slope in found) and np.any(found[-1])


def test_losses_of_samples_have_the_energy_as_their_mean():
    network, (x, labels, predictions) = make_network(2), make_data()
    logits = slopes.layer_outputs(network, x, jnp.tanh)[-1]
    for name, energy in ENERGIES.items():
        target = predictions if name == "kl_to_teacher" else labels
        losses = jax.jit(partial(slopes.sample_losses, energy))(logits, [target])
        assert losses.shape == (SAMPLES,) and len(set(losses.tolist())) > 1
        assert float(losses.mean()) == pytest.approx(float(energy(logits, target, axis=0)), rel=1e-5)


def test_a_wider_network_costs_more():
    """In multiplications for each sample: those after the unit, and a fixed cost of the loss."""
    first, second, last = slopes.forward_costs([(784, 300), (300, 100), (100, 10)])
    wider = slopes.forward_costs([(784, 300), (300, 200), (200, 10)])
    assert first - second == 100 * 10 + 100 - 10 and second - last == 10
    assert wider[0] - first == 100 * 10 + 100 and wider[1:] == [second, last]


@pytest.mark.parametrize("setting", ["strict", "x64"])
def test_settings_of_jax_change_no_dtype(setting, monkeypatch):
    network, (x, labels, _) = make_network(3), make_data()
    for cached in (slopes.CACHED_VALUES, 40):
        monkeypatch.setattr(slopes, "CACHED_VALUES", cached)
        expected = forward(network, x, [labels], ENERGIES["cross_entropy"])
        with strict() if setting == "strict" else x64():
            scale = np.float64(2.0) if setting == "x64" else 2.0
            found = forward(network, x, [labels], energies.cross_entropy(scale))
        for one, other in zip(found, expected, strict=True):
            assert one.dtype == jnp.float32
            np.testing.assert_allclose(one, other, rtol=0.05, atol=0.05)
