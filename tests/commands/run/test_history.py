"""What is recorded of chains, and when they gain nothing more."""

import numpy as np
import pytest

from sa_jax.commands.run import history


def test_a_history_is_that_of_its_arrays():
    first = history.begun()
    first.noted.append((0, np.zeros((2, 3), np.uint8)))
    first.entries.append((100, 0.5, np.ones(2), np.zeros(2), np.full(2, 0.25)))
    assert "validated" not in first.arrays()  # Orbax saves no empty array
    assert history.restored(first.arrays(), {"anneal": 1.0, "cpu": 2.0}).validated == []
    first.validated.append((100, 0.75))
    first.drifts.append(1e-6)
    again = history.restored(first.arrays(), {"anneal": 1.0, "cpu": 2.0, "drift": 1e-6})
    assert again.validated == [(100, 0.75)] and again.drifts == [1e-6]
    assert (again.seconds["anneal"], again.seconds["cpu"]) == (1.0, 2.0)
    for name, values in first.arrays().items():
        np.testing.assert_array_equal(values, again.arrays()[name])


@pytest.mark.parametrize(
    ("energies", "ends"),
    [
        ([1.0, 1.0, 1.0], False),
        ([1.0, 1.0, 1.0, 1.0], True),
        ([1.0, 0.9, 0.9, 0.9], False),
        ([1.0, 0.9, 0.9, 0.9, 0.9], True),
        ([1.0, 0.9, 1.1, 0.9, 0.8995], True),  # less than a thousandth is no gain
        ([1.0, 0.9, 1.1, 0.8], False),
        ([1.0, 0.9995, 0.9985], False),  # small gains add up
        ([1.0, np.nan, np.nan, np.nan], True),
        ([0.0, 0.0, 0.0, 0.0], True),
        ([1.0], False),
        ([], False),
    ],
)
def test_what_gains_nothing_for_a_fifth_of_the_proposals_ends(energies, ends):
    validated = [(100 * i, energy) for i, energy in enumerate(energies)]
    assert history.gains_nothing(validated, 0.2, 1_000) == ends
    assert not history.gains_nothing(validated, 1, 1_000)


def test_a_run_of_few_chunks_is_not_ended_by_one_validation():
    """Its patience is shorter than a chunk."""
    validated = [(1_000 * i, 1.0) for i in range(4)]
    ends = [history.gains_nothing(validated[: 1 + number], 0.2, 5_000) for number in range(4)]
    assert ends == [False, False, False, True]


@pytest.mark.parametrize("chunk", [1, 3, 10])
def test_each_part_ends_once(chunk):
    steps = range(0, 100, chunk)
    assert sum(history.ends_part(step, min(step + chunk, 100), 100, 8) for step in steps) == 8
