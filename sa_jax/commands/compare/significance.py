"""Paired significance tests of two methods on the same test samples and seeds."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import scipy.stats

# A difference counts as real where its probability, adjusted for the number of tests, is below this level.
LEVEL = 0.05


class PairedTest(NamedTuple):
    """The result of a paired test.

    Attributes:
      difference: mean accuracy of the first method less that of the second.
      standard_error: standard error of the difference, over samples and seeds.
      p_value: two-sided probability of such a difference if there is none.
    """

    difference: float
    standard_error: float
    p_value: float


def paired_test(first: np.ndarray, second: np.ndarray) -> PairedTest:
    """Compares two methods on the same test samples with the same seeds.

    The standard error is clustered both ways, by seed and by sample (Cameron, Gelbach & Miller 2011), because a
    seed's network errs on many samples, and a hard sample fails with many seeds. The degrees of freedom are the
    number of seeds less one, or of samples if there are fewer. With three seeds the test finds only large
    differences; a difference that it does not find may still be real. With one seed the error is clustered by
    sample alone, and the result does not hold for other seeds.

    Args:
      first: which samples the first method got right, bool `[seeds, samples]`.
      second: which samples the second method got right, bool `[seeds, samples]`.

    >>> first = np.array([[True] * 60 + [False] * 40])
    >>> second = np.array([[True] * 45 + [False] * 55])
    >>> test = paired_test(first, second)
    >>> round(test.difference, 2), round(test.standard_error, 3), test.p_value < 0.001
    (0.15, 0.036, True)
    """
    scores = first.astype(float) - second
    seeds, samples = scores.shape
    difference = scores.mean()
    by_sample = ((scores.mean(0) - difference) ** 2).sum() / (samples * max(samples - 1, 1))
    variance, freedom = by_sample, samples - 1.0
    if seeds > 1:
        by_seed = ((scores.mean(1) - difference) ** 2).sum() / (seeds * (seeds - 1))
        # Counted in both of the other variances, so subtracted once.
        by_each = ((scores - difference) ** 2).sum() / (seeds * samples) ** 2
        variance = max(by_seed + by_sample - by_each, by_seed, by_sample)
        freedom = min(seeds, samples) - 1.0
    error = float(np.sqrt(variance))
    if freedom < 1:
        return PairedTest(float(difference), error, 1.0)  # nothing follows from a single sample
    if error == 0:
        return PairedTest(float(difference), 0.0, 1.0 if difference == 0 else 0.0)
    p_value = 2 * scipy.stats.t.sf(abs(difference) / error, freedom)
    return PairedTest(float(difference), error, float(p_value))


def holm(p_values: Sequence[float]) -> list[float]:
    """Adjusts probabilities for the number of tests (Holm 1979), in the order given.

    >>> holm([0.01, 0.04, 0.03])
    [0.03, 0.06, 0.06]
    """
    adjusted, highest = [0.0] * len(p_values), 0.0
    for rank, index in enumerate(np.argsort(p_values, kind="stable")):
        highest = max(highest, min((len(p_values) - rank) * p_values[index], 1.0))
        adjusted[index] = float(highest)
    return adjusted
