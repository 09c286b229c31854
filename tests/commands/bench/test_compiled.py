"""The compiled loop that `bench` compares with: its caches, its exponential, and the masks that it visits."""

import jax.numpy as jnp
import numpy as np
import pytest

from sa_jax.commands.bench import proposals
from sa_jax.networks.energies import cross_entropy
from sa_jax.networks.mlp import forward, masked


@pytest.mark.slow
@pytest.mark.parametrize("sizes", [(12, 3), (12, 9, 3), (12, 9, 7, 8, 3)])
@pytest.mark.parametrize("samples", [40, 101])
@pytest.mark.parametrize("biased", [False, True])
def test_compiled_loop_keeps_its_caches(sizes, samples, biased, monkeypatch):
    pytest.importorskip("numba")
    from sa_jax.commands.bench import compiled

    monkeypatch.setattr(compiled, "MAX_BLOCK", 48)  # one block, or several
    network, mask, inputs, labels = proposals.synthesize(sizes, 0.4, samples)
    if biased:
        random = np.random.default_rng(5)
        biases = tuple(random.normal(size=width).astype(np.float32) for width in sizes[1:])
        network = network._replace(biases=biases)
    problem, chain, scratch = compiled.prepare(network, mask, inputs, labels, 4.0, 3)
    accepted = compiled.walk(problem, chain, scratch, 0.1, 3_000)
    assert 0 < accepted < 3_000
    kept = int(mask.sum())
    assert sorted(chain.order) == list(range(mask.size))
    walked = np.zeros_like(mask)
    walked[chain.order[:kept]] = True
    assert (walked != mask).any()

    logits = forward(masked(network, jnp.asarray(walked)), jnp.asarray(inputs.T))
    energy = cross_entropy(4.0)(logits, jnp.asarray(labels))
    assert chain.energies.sum() / samples == pytest.approx(float(energy), rel=1e-4, abs=1e-5)
    fresh = compiled.prepare(network, walked, inputs, labels, 4.0, 3)[1]
    np.testing.assert_allclose(chain.outputs, fresh.outputs, atol=1e-4)
    np.testing.assert_array_equal(chain.fan_out, fresh.fan_out)
    for layer in range(1, len(sizes) - 1):
        for unit in range(sizes[layer]):
            branch = problem.starts[layer] + unit * sizes[layer + 1]
            start = branch - problem.starts[1]
            targets = chain.targets[start : start + chain.fan_out[problem.units[layer - 1] + unit]]
            assert sorted(targets) == np.flatnonzero(walked[branch : branch + sizes[layer + 1]]).tolist()
            assert (chain.slots[start + targets] == np.arange(len(targets))).all()


def test_compiled_exponential():
    pytest.importorskip("numba")
    from sa_jax.commands.bench import compiled

    x = -np.linspace(0, 80, 1_001).astype(np.float32)
    values = np.array([compiled._exp(value) for value in x])
    np.testing.assert_allclose(values, np.exp(x.astype(np.float64)), rtol=2e-7)


@pytest.mark.slow
def test_compiled_loop_visits_masks_as_boltzmann_says():
    pytest.importorskip("numba")
    from sa_jax.commands.bench import compiled

    network, mask, inputs, labels = proposals.synthesize((3, 2, 2), 0.2, 20)  # 2 of 10 branches: 45 masks
    pairs = [(a, b) for a in range(10) for b in range(a)]
    energies = []
    for pair in pairs:
        candidate = np.isin(np.arange(10), pair)
        logits = forward(masked(network, jnp.asarray(candidate)), jnp.asarray(inputs.T))
        energies.append(float(cross_entropy(4.0)(logits, jnp.asarray(labels))))
    temperature = float(np.std(energies))
    problem, chain, scratch = compiled.prepare(network, mask, inputs, labels, 4.0, 7)
    visits = dict.fromkeys(pairs, 0)
    num_samples = 40_000
    for _ in range(num_samples):
        compiled.walk(problem, chain, scratch, temperature, 5)
        a, b = chain.order[:2]
        visits[max(a, b), min(a, b)] += 1
    expected = np.exp(-np.array(energies) / temperature)
    measured = np.array([visits[pair] for pair in pairs]) / num_samples
    np.testing.assert_allclose(measured, expected / expected.sum(), atol=0.006)
