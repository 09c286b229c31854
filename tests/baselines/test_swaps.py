"""SparseSwaps: the swaps of each row end at an optimum, which all pairs confirm."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from sa_jax.baselines.linear import magnitude, wanda
from sa_jax.baselines.swaps import sparse_swaps
from sa_jax.networks.patterns import NM, Block, Layer, Unit
from tests.baselines.test_linear import layer
from tests.conftest import refusal
from tests.settings import x64


def energies(weight, gram, masks, correction=0.0):
    """The exact energy of each row, `r' H r + 2 r' C`."""
    removed = np.where(masks, 0.0, -np.asarray(weight, np.float64))
    return ((removed @ np.asarray(gram, np.float64)) * removed + 2 * removed * correction).sum(-1)


def best_change(weight, gram, mask, size, correction=0.0):
    """The lowest energy change of all swaps of each row, by full evaluation, and the swap."""
    found = []
    for row, kept in enumerate(mask):
        before, changes = energies(weight[row], gram, kept, correction[row]), {(0, 0): 0.0}
        for p in np.flatnonzero(kept):
            for q in np.flatnonzero(~kept):
                if p // size == q // size:
                    swapped = kept.copy()
                    swapped[[p, q]] = False, True
                    changes[p, q] = energies(weight[row], gram, swapped, correction[row]) - before
        place = min(changes, key=changes.__getitem__)
        found.append((changes[place], place))
    return found


@pytest.mark.parametrize("pattern, size", [(Unit(0.4), 24), (NM(3, 4), 4), (Unit(0.04), 24)], ids=str)
def test_ends_at_an_optimum_and_keeps_the_pattern(pattern, size):
    weight, (gram, *_) = layer(6, 24, 100)
    correction = np.asarray(jax.random.normal(jax.random.key(5), weight.shape)) * 10
    for given in (None, correction):
        start = np.asarray(magnitude(weight, pattern))
        mask = np.asarray(sparse_swaps(weight, gram, pattern, given, start))
        added = np.zeros(weight.shape) if given is None else given
        before, after = (energies(weight, gram, one, added) for one in (start, mask))
        assert (after <= before).all() and after.sum() < before.sum()
        assert (mask.reshape(-1, size).sum(1) == start.reshape(-1, size).sum(1)).all()
        for change, _ in best_change(weight, gram, mask, size, added):
            assert change > -1e-5 * abs(before).max()


def test_each_swap_is_the_best_one():
    weight, (gram, *_) = layer(6, 24, 100)
    pattern, nothing = Unit(0.5), np.zeros((6, 24))
    start = magnitude(weight, pattern)
    mask = np.array(start)
    for swaps in range(1, 4):
        for kept, (change, (p, q)) in zip(mask, best_change(weight, gram, mask, 24, nothing), strict=True):
            if change < 0:
                kept[[p, q]] = False, True
        found = sparse_swaps(weight, gram, pattern, start=start, max_swaps=swaps)
        np.testing.assert_array_equal(found, mask)


def test_rows_together_or_alone_and_a_half_gram_matrix_give_one_mask():
    weight, (gram, *_) = layer(7, 24)
    expected = sparse_swaps(weight, gram, Unit(0.5))
    np.testing.assert_array_equal(sparse_swaps(weight, gram, Unit(0.5), row_batch=3), expected)
    np.testing.assert_array_equal(jax.jit(lambda w, g: sparse_swaps(w, g, Unit(0.5)))(weight, gram), expected)
    with x64():
        np.testing.assert_array_equal(sparse_swaps(np.float64(weight), np.float64(gram), Unit(0.5)), expected)
    half = (gram / 1000).astype(jnp.float16)
    np.testing.assert_array_equal(
        sparse_swaps(weight, half, Unit(0.5)), sparse_swaps(weight, half.astype(jnp.float32), Unit(0.5))
    )


def test_layers_without_a_choice_and_singular_gram_matrices():
    weight, (gram, *_) = layer(4, 8)
    for pattern in (Unit(1), NM(4, 4)):
        assert sparse_swaps(weight, gram, pattern).all()
    nothing = jnp.zeros((8, 8))
    np.testing.assert_array_equal(sparse_swaps(weight, nothing, Unit(0.125)), wanda(weight, nothing, Unit(0.125)))
    start = wanda(weight, gram, Unit(0.125))
    np.testing.assert_array_equal(sparse_swaps(weight, gram, Unit(0.125), max_swaps=0), start)
    dead = gram.at[2].set(0.0).at[:, 2].set(0.0)
    for singular in (dead, jnp.ones((8, 8))):
        mask = np.asarray(sparse_swaps(weight, singular, Unit(0.125)))
        assert (mask.sum(1) == 1).all()
        changes = best_change(np.asarray(weight), singular, mask, 8, np.zeros((4, 8)))
        assert min(change for change, _ in changes) > -1e-4 * np.abs(singular).max()
    assert not sparse_swaps(weight, dead, Unit(0.125))[:, 2].any()


def test_refuses_what_it_cannot_start_from():
    weight, (gram, *_) = layer(4, 8)
    for density in (0.5, Layer(0.5), Block((4, 4), 0.5), "2:4"):
        with refusal("SparseSwaps prunes to a share of each row, Unit(0.5), or to NM(2, 4)", repr(density)):
            sparse_swaps(weight, gram, density)
    with refusal("start must keep 4 of each 8 weights for unit:0.5, not 2"):
        sparse_swaps(weight, gram, Unit(0.5), start=magnitude(weight, Unit(0.25)))
    with refusal("mask must be bool[4, 8] like the weight"):
        sparse_swaps(weight, gram, Unit(0.5), start=np.ones((4, 8)))
    with refusal("needs a multiple of 3 inputs"):
        sparse_swaps(weight, gram, NM(1, 3))
    with refusal("max_swaps must be a whole number of at least 0, not -1"):
        sparse_swaps(weight, gram, Unit(0.5), max_swaps=-1)
    with refusal("row_batch must be a whole number of at least 1, not 0"):
        sparse_swaps(weight, gram, Unit(0.5), row_batch=0)
    with refusal("dense_correction must be [4, 8] like the weight, not [8]"):
        sparse_swaps(weight, gram, Unit(0.5), weight[0][:8])
