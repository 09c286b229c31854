"""Baselines of one linear layer."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from sa_jax.baselines.linear import dsnot, magnitude, ria, sparsegpt, wanda
from sa_jax.networks.patterns import NM, Block, Layer, Unit
from sa_jax.pruning.gram import relative_error
from sa_jax.pruning.moments import no_inputs, with_inputs
from tests.conftest import refusal


def layer(outputs=16, inputs=32, samples=500):
    keys = jax.random.split(jax.random.key(0), 4)
    mixing = jax.random.normal(keys[1], (inputs, inputs)) / inputs**0.5
    x = jax.random.normal(keys[0], (samples, inputs)) @ mixing + jax.random.normal(keys[3], (inputs,))
    return jax.random.normal(keys[2], (outputs, inputs)), with_inputs(no_inputs(inputs), x)


def error(weight, moments, pruned):
    return float(relative_error(weight, moments.gram, pruned).mean())


@pytest.mark.slow
@pytest.mark.parametrize("pattern", [0.5, NM(2, 4)], ids=str)
def test_sparsegpt_loses_less_the_more_it_may_do(pattern):
    weight, moments = layer()
    mask, moved = sparsegpt(weight, moments.gram, pattern)
    assert int(mask.sum()) == weight.size // 2 and not np.asarray(moved)[~np.asarray(mask)].any()
    if pattern == NM(2, 4):
        assert (mask.reshape(-1, 4).sum(1) == 2).all()
    by_wanda = jnp.where(wanda(weight, moments.gram, pattern), weight, 0)
    assert error(weight, moments, moved) < 0.7 * error(weight, moments, by_wanda)


@pytest.mark.slow
def test_sparsegpt_of_independent_inputs_is_wanda_by_block_and_moves_nothing():
    weight = jax.random.normal(jax.random.key(0), (6, 300))
    scales = jnp.linspace(0.5, 2, 300)
    mask, moved = sparsegpt(weight, jnp.diag(scales**2), 0.25, damping=1e-6)
    np.testing.assert_allclose(moved, jnp.where(mask, weight, 0), rtol=1e-4)
    scores = np.asarray(weight * scales) ** 2
    for first, last in ((0, 128), (128, 256), (256, 300)):
        block, kept = scores[:, first:last], np.asarray(mask)[:, first:last]
        assert kept.sum() == round(0.25 * block.size)
        assert block[kept].min() >= block[~kept].max()


def test_dsnot_swaps_down_the_mean_error_and_keeps_the_pattern():
    weight, moments = layer()
    for pattern in (Unit(0.5), NM(2, 4)):
        start, mask = wanda(weight, moments.gram, pattern), dsnot(weight, moments.gram, moments.mean, pattern)
        before, after = (np.abs(np.where(kept, 0, weight) @ moments.mean) for kept in (start, mask))
        assert not np.array_equal(start, mask) and after.mean() < before.mean()
        assert (mask.sum(1) == 16).all()
        if pattern == NM(2, 4):
            assert (mask.reshape(-1, 4).sum(1) == 2).all()


def test_magnitude_and_wanda_differ_where_inputs_do():
    weight = jnp.array([[3.0, 2.0, 1.0, 4.0]])
    assert magnitude(weight, 0.5).tolist() == [[True, False, False, True]]
    assert wanda(weight, jnp.diag(jnp.array([0.01, 1.0, 9.0, 1.0])), 0.5).tolist() == [[False, False, True, True]]


def test_ria_compares_weights_with_their_row_and_column():
    weight = np.array([[3.0, -2.0, 1.0, 4.0], [1.0, 0.5, 0.1, -8.0]])
    norms = np.array([1.0, 4.0, 9.0, 0.0])
    size = np.abs(weight)
    scores = (size / size.sum(1, keepdims=True) + size / size.sum(0, keepdims=True)) * norms**0.5
    for pattern, share in ((Unit(0.25), 1), (Unit(0.5), 2)):
        expected = np.argsort(np.argsort(-scores, axis=1), axis=1) < share
        np.testing.assert_array_equal(ria(weight, np.diag(norms**2), pattern), expected)
    assert int(ria(np.zeros((2, 4)), np.eye(4), 0.5).sum()) == 4


def test_a_number_is_the_share_of_the_layer_and_a_unit_that_of_each_row():
    weight = jnp.array([[4.0, 3.0], [1.0, 2.0]])
    assert magnitude(weight, 0.5).tolist() == magnitude(weight, Layer(0.5)).tolist() == [[True, True], [False] * 2]
    assert magnitude(weight, Unit(0.5)).tolist() == [[True, False], [False, True]]
    assert wanda(weight, jnp.eye(2), 0.5).tolist() == [[True, True], [False] * 2]


def test_refuses_what_they_cannot_prune_to():
    weight, moments = layer()
    for density in (Unit(0.5), Block((4, 4), 0.5)):
        with refusal("SparseGPT prunes to a number such as 0.5, or to NM(2, 4)", repr(density)):
            sparsegpt(weight, moments.gram, density)
    for density in (0.5, Layer(0.5), "2:4"):
        with refusal("DSnoT prunes to a share of each row, Unit(0.5), or to NM(2, 4)", repr(density)):
            dsnot(weight, moments.gram, moments.mean, density)
    for prune in (
        lambda density: magnitude(weight, density),
        lambda density: wanda(weight, moments.gram, density),
    ):
        with refusal("not the text '2:4'", "NM(2, 4)"):
            prune("2:4")
    with refusal("gram must be [32, 32]"):
        wanda(weight, moments.gram[:3, :3], 0.5)
    with refusal("damping must be a finite number of at least 0, not -0.1"):
        sparsegpt(weight, moments.gram, 0.5, -0.1)
    with refusal("mean must be [32] for this weight, not [3]"):
        dsnot(weight, moments.gram, moments.mean[:3], Unit(0.5))
    with refusal("mean has entries that are not finite"):
        dsnot(weight, moments.gram, moments.mean * np.nan, Unit(0.5))
    for wrong, part in ((weight.tolist() + [[1.0]], "different lengths"), ("text", "weight must be numbers")):
        with refusal(part):
            magnitude(wrong, 0.5)


@pytest.mark.parametrize("pattern", [0.5, NM(2, 4)], ids=str)
def test_sparsegpt_never_gives_weights_that_are_not_finite(pattern):
    weight = np.random.default_rng(0).normal(size=(4, 8)).astype(np.float32)
    x = np.random.default_rng(1).normal(size=(3, 8)).astype(np.float32)
    x[:, 2] = 0
    for gram, damping in ((np.zeros((8, 8)), 0.01), (x.T @ x, 0.01), (np.diag([1.0] * 7 + [0.0]), 0.0)):
        mask, moved = sparsegpt(weight, gram, pattern, damping)
        assert (
            int(mask.sum()) == 16 and np.isfinite(moved).all() and not np.asarray(moved)[~np.asarray(mask)].any()
        )
    singular = np.ones((8, 8), np.float32)
    with refusal("gram cannot be inverted with a damping of 0: raise it, or use more samples"):
        sparsegpt(weight, singular, pattern, 0.0)
    mask, moved = jax.jit(lambda weight, gram: sparsegpt(weight, gram, pattern, 0.0))(weight, singular)
    np.testing.assert_array_equal(mask, wanda(weight, singular, pattern))
    np.testing.assert_allclose(moved, np.where(mask, weight, 0), rtol=1e-6)


def test_methods_read_layers_that_no_input_reached_and_arrays_of_any_kind():
    weight, moments = layer(4, 8)
    weight, (gram, mean, *_) = np.asarray(weight), moments
    for given in (gram, np.zeros_like(gram)):
        found = {}
        for kind in (np.asarray, lambda a: np.asarray(a).astype(">f4"), lambda a: np.asarray(a).tolist()):
            w, g, m = map(kind, (weight, given, mean))
            masks = magnitude(w, 0.5), wanda(w, g, 0.5), dsnot(w, g, m, Unit(0.5)), *sparsegpt(w, g, 0.5)
            for place, array in enumerate(masks):
                np.testing.assert_array_equal(array, found.setdefault(place, array))
        assert all(int(found[place].sum()) == 16 for place in range(4))
