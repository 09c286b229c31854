"""The paired test: how often it is wrong, and what it finds."""

import numpy as np
import pytest

from sa_jax.commands.compare import significance


@pytest.mark.parametrize("seeds", [1, 3, 5])
def test_paired_test_covers_what_it_says(seeds):
    """Without a difference at most about 1 in 20 is called real, whatever seeds and samples have in common."""
    called, rng = 0, np.random.default_rng(0)
    for _ in range(300):
        hard, of_seed = rng.random(400), 0.1 * rng.standard_normal((2, seeds, 1)) * (seeds > 1)
        right = rng.random((2, seeds, 400)) + 0.5 * hard + of_seed < 0.9
        called += significance.paired_test(*right).p_value < 0.05
    assert 1 <= called <= 27


def test_paired_test_finds_a_difference():
    rng = np.random.default_rng(0)
    better = rng.random((4, 2000)) < 0.9
    test = significance.paired_test(better, better & (rng.random((4, 2000)) < 0.9))
    assert test.difference == pytest.approx(0.09, abs=0.02) and test.p_value < 1e-3


def test_paired_test_of_a_single_sample_finds_nothing():
    test = significance.paired_test(np.array([[True], [True], [False]]), np.array([[False], [True], [False]]))
    assert test.difference == pytest.approx(1 / 3) and test.p_value == 1


def test_paired_test_of_one_method_with_itself():
    right = np.array([[True, False, True]])
    assert significance.paired_test(right, right) == (0.0, 0.0, 1.0)
