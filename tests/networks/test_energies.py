"""Energies against their definitions, in both layouts, for few and many classes."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from sa_jax.networks.energies import (
    UNROLLED_CLASSES,
    ErrorRate,
    KlToTeacher,
    cross_entropy,
    error_rate,
    kl_to_teacher,
    margin_loss,
)

SAMPLES = 50


@pytest.fixture(params=[3, UNROLLED_CLASSES + 8])
def problem(request):
    keys = jax.random.split(jax.random.key(0), 3)
    logits, teacher = (2 * jax.random.normal(key, (SAMPLES, request.param)) for key in keys[:2])
    return logits, teacher, jax.random.randint(keys[2], (SAMPLES,), 0, request.param)


def hinge(logits, labels):
    values = []
    for row, label in zip(np.asarray(logits, np.float64), np.asarray(labels), strict=True):
        values.append(max(0.0, 1 - (row[label] - np.delete(row, label).max()) / 0.7))
    return np.mean(values)


@pytest.mark.slow
def test_energies_are_those_of_their_definitions(problem):
    logits, teacher, labels = problem
    classes = logits.shape[1]
    one_hot = jax.nn.one_hot(labels, classes)
    smoothed = optax.losses.smooth_labels(one_hot, 0.1)
    divergence = optax.losses.kl_divergence(jax.nn.log_softmax(1.5 * logits), jax.nn.softmax(0.5 * teacher))
    expected = {
        cross_entropy(2.0): optax.losses.softmax_cross_entropy(2 * logits, one_hot).mean(),
        cross_entropy(2.0, 0.1): optax.losses.softmax_cross_entropy(2 * logits, smoothed).mean(),
        error_rate(): (logits.argmax(1) != labels).mean(),
        margin_loss(0.7): hinge(logits, labels),
        kl_to_teacher(1.5): divergence.mean(),
    }
    for energy, value in expected.items():
        targets = jax.nn.softmax(0.5 * teacher) if isinstance(energy, KlToTeacher) else labels
        np.testing.assert_allclose(energy(logits, targets), value, rtol=1e-5, atol=1e-6)
        np.testing.assert_allclose(
            energy(logits.T, targets.T if targets.ndim == 2 else targets, axis=0), value, rtol=1e-5, atol=1e-6
        )
        broken = energy(logits.at[0, 0].set(jnp.nan), targets)
        assert jnp.isnan(broken) or isinstance(energy, ErrorRate)


def test_huge_logits_stay_finite(problem):
    logits, teacher, labels = problem
    for energy, targets in ((cross_entropy(1e4), labels), (kl_to_teacher(1e4), jax.nn.softmax(1e4 * teacher))):
        assert np.isfinite(energy(1e3 * logits, targets))
