"""SparseFW and ALPS: masks by continuous optimisation."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from sa_jax.baselines.linear import magnitude, sparsegpt, wanda
from sa_jax.baselines.relaxed import alps, highest, relaxed_mask, sparse_fw
from sa_jax.networks import patterns
from sa_jax.networks.patterns import NM, Block, Columns, Layer, Rows, Unit
from sa_jax.pruning import refit
from sa_jax.pruning.gram import damped, layer_error
from tests.baselines.test_linear import layer
from tests.baselines.test_swaps import energies
from tests.conftest import refusal
from tests.settings import x64


@pytest.mark.parametrize("size, num_kept", [(7, 0), (7, 1), (7, 3), (7, 7), (42, 20), (1, 1)])
def test_highest_is_that_of_patterns(size, num_kept):
    scores = jax.random.normal(jax.random.key(0), (6, 7))
    tied = jnp.round(scores)  # with zeros of both signs
    none = jnp.where(scores > 0, -jnp.inf, scores)
    for one in (scores, tied, none, scores * 1e-30, jnp.zeros((6, 7))):
        np.testing.assert_array_equal(highest(one, size, num_kept), patterns.highest(one, size, num_kept))


@pytest.mark.parametrize("pattern, size", [(Unit(0.4), 24), (NM(2, 4), 4), (Layer(0.4), 144)], ids=str)
def test_sparse_fw_stays_in_the_polytope_and_lowers_the_relaxed_energy(pattern, size):
    weight, (gram, *_) = layer(6, 24, 100)
    num_kept = patterns.rule_of(pattern).num_kept_of(size)
    correction = jax.random.normal(jax.random.key(5), weight.shape)

    def energy(relaxed):
        removed = (np.asarray(relaxed, np.float64) - 1) * weight
        return ((removed @ gram) * removed + 2 * removed * correction).sum()

    found = [
        relaxed_mask(weight, gram, correction, pattern, 0.5, jnp.int32(steps)) for steps in (0, 1, 2, 50, 500)
    ]
    always = highest(weight**2 * jnp.diag(gram)[None], size, int(0.5 * num_kept))
    for relaxed in found:
        assert relaxed.min() >= 0 and relaxed.max() <= 1 and (np.asarray(relaxed)[always] == 1).all()
        assert relaxed.reshape(-1, size).sum(1).max() <= num_kept + 1e-4
    np.testing.assert_array_equal(found[0] > 0, wanda(weight, gram, pattern))
    values = [energy(relaxed) for relaxed in found]
    # The gap of Frank-Wolfe bounds how far the last one is from the lowest relaxed energy.
    relaxed = np.where(always, 0.0, found[-1])
    derivative = np.where(always, 0.0, 2 * weight * (((found[-1] - 1) * weight) @ gram + correction))
    downhill = np.sort(np.maximum(-derivative, 0.0).reshape(-1, size))[:, int(0.5 * num_kept) - num_kept :]
    gap = downhill.sum() + (relaxed * derivative).sum()
    assert -1e-3 < gap / abs(values[0]) < 0.01 and values[-1] < values[0]


@pytest.mark.parametrize("pattern", [Unit(0.5), NM(2, 4), 0.5], ids=str)
def test_sparse_fw_is_better_than_its_start(pattern):
    weight, (gram, *_) = layer()
    start, mask = wanda(weight, gram, pattern), sparse_fw(weight, gram, pattern)
    assert energies(weight, gram, mask).sum() < 0.95 * energies(weight, gram, start).sum()
    np.testing.assert_array_equal(sparse_fw(weight, gram, pattern, num_steps=0), start)
    np.testing.assert_array_equal(sparse_fw(weight, gram, pattern, fixed=1.0, num_steps=9), start)
    if pattern == 0.5:
        assert int(mask.sum()) == weight.size // 2
    else:
        size = 4 if pattern == NM(2, 4) else 32
        assert (mask.reshape(-1, size).sum(1) == size // 2).all()


@pytest.mark.parametrize("pattern", [Unit(0.4), NM(2, 4), 0.4], ids=str)
def test_alps_solves_its_equations_and_passes_sparsegpt(pattern):
    weight, (gram, *_) = layer()
    mask, moved = alps(weight, gram, pattern)
    assert not np.asarray(moved)[~np.asarray(mask)].any()
    np.testing.assert_array_equal(mask.sum(), magnitude(weight, pattern).sum())
    np.testing.assert_allclose(moved, refit(weight, gram, mask), atol=2e-3)
    refitted = refit(weight, gram, magnitude(weight, pattern))
    by_sparsegpt = sparsegpt(weight, gram, pattern.density if isinstance(pattern, Unit) else pattern)[1]
    error = layer_error(weight, gram, moved)
    for other in (refitted, by_sparsegpt):
        assert error < 0.97 * layer_error(weight, gram, other)


def test_alps_aims_at_the_dense_outputs():
    weight, (gram, *_) = layer()
    correction = jax.random.normal(jax.random.key(5), weight.shape) * 30
    mask, moved = alps(weight, gram, Unit(0.5), 0.01, correction)
    left = (moved - weight) @ damped(gram, 0.01) + correction
    assert np.abs(np.asarray(left)[np.asarray(mask)]).max() < 1e-3 * np.abs(correction).max()
    np.testing.assert_allclose(moved, refit(weight, gram, mask, 0.01, correction), atol=2e-3)
    assert not np.array_equal(mask, alps(weight, gram, Unit(0.5))[0])


@pytest.mark.parametrize("pattern", [Block((4, 4), 0.5), Columns(0.5), Rows(0.5)], ids=str)
def test_alps_prunes_to_all_patterns(pattern):
    weight, (gram, *_) = layer(8, 16)
    mask, moved = alps(weight, gram, pattern)
    kept = patterns.block_sums(pattern, mask.astype(jnp.float32))
    assert set(np.unique(kept)) == {0.0, mask.size / kept.size} and int(mask.sum()) == 64
    refitted = refit(weight, gram, magnitude(weight, pattern))
    assert layer_error(weight, gram, moved) <= 1.01 * layer_error(weight, gram, refitted)


def test_layers_without_a_choice_and_singular_gram_matrices():
    weight, (gram, *_) = layer(4, 8)
    dead = gram.at[2].set(0.0).at[:, 2].set(0.0)
    for singular in (jnp.zeros((8, 8)), dead, jnp.ones((8, 8))):
        for pattern in (Unit(0.125), NM(2, 4)):
            expected = int(magnitude(weight, pattern).sum())
            for damping in (0.0, 0.01):
                mask, moved = alps(weight, singular, pattern, damping)
                assert int(mask.sum()) == expected and np.isfinite(moved).all()
            assert int(sparse_fw(weight, singular, pattern, num_steps=20).sum()) == expected
    mask, moved = alps(weight, gram, 1.0)
    np.testing.assert_allclose(moved, weight, rtol=1e-4, atol=1e-5)
    assert mask.all() and sparse_fw(weight, gram, Unit(1)).all()


def test_settings_of_jax_change_no_mask():
    weight, (gram, *_) = layer(4, 8)
    expected = alps(weight, gram, Unit(0.5))
    found = jax.jit(lambda w, g: alps(w, g, Unit(0.5)))(weight, gram)
    np.testing.assert_array_equal(found[0], expected[0])
    np.testing.assert_allclose(found[1], expected[1], rtol=1e-4)
    mask = sparse_fw(weight, gram, Unit(0.5))
    np.testing.assert_array_equal(jax.jit(lambda w, g: sparse_fw(w, g, Unit(0.5)))(weight, gram), mask)
    with x64():
        given = np.asarray(weight, np.float64), np.asarray(gram, np.float64)
        np.testing.assert_array_equal(sparse_fw(*given, Unit(0.5)), mask)
        found = alps(*given, Unit(0.5))
        np.testing.assert_array_equal(found[0], expected[0])
        assert found[1].dtype == np.float32


def test_refuses_what_they_cannot_prune_to():
    weight, (gram, *_) = layer(4, 8)
    with refusal("SparseFW prunes to a number such as 0.5, to Unit(0.5) or to NM(2, 4)", "Columns"):
        sparse_fw(weight, gram, Columns(0.5))
    for prune in (alps, sparse_fw):
        with refusal("not the text '2:4'", "NM(2, 4)"):
            prune(weight, gram, "2:4")
        with refusal("gram must be [8, 8]"):
            prune(weight, gram[:3, :3], 0.5)
        with refusal("keeps none of the 8 weights"):
            prune(weight, gram, Unit(0.01))
        with refusal("dense_correction must be [4, 8] like the weight"):
            prune(weight, gram, 0.5, dense_correction=weight[0])
    with refusal("damping must be a finite number of at least 0, not -0.1"):
        alps(weight, gram, 0.5, -0.1)
    with refusal("fixed must be a finite number of at least 0 and at most 1, not 2"):
        sparse_fw(weight, gram, 0.5, fixed=2)
    with refusal("num_steps must be a whole number of at least 0, not -1"):
        sparse_fw(weight, gram, 0.5, num_steps=-1)
