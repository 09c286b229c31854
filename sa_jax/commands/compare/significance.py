"""Which differences between two methods are real: paired tests on the same test samples and seeds."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import scipy.stats

# A difference counts as real below this probability, adjusted for the number of comparisons.
LEVEL = 0.05


class PairedTest(NamedTuple):
    """A paired comparison.

    Attributes:
      difference: mean accuracy of the first less that of the second.
      standard_error: of the difference, over samples and seeds.
      p_value: two-sided, of no difference.
    """

    difference: float
    standard_error: float
    p_value: float


def paired_test(first: np.ndarray, second: np.ndarray) -> PairedTest:
    """Compares two methods on the same test samples with the same seeds.

    The standard error is clustered both ways, by seed and by sample (Cameron, Gelbach & Miller 2011): a seed's
    network errs on many samples, and a hard sample fails with many seeds. The degrees of freedom are those of the
    seeds, the fewer: with three of them only what is far beyond chance is found, and what is not may still be
    real. With one seed it is of the samples alone, and says nothing of other seeds.

    Args:
      first: which samples the first method got right, bool `[seeds, samples]`.
      second: the same of the second.

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
        # Counted in both of the others.
        by_each = ((scores - difference) ** 2).sum() / (seeds * samples) ** 2
        variance = max(by_seed + by_sample - by_each, by_seed, by_sample)
        freedom = min(seeds, samples) - 1.0
    error = float(np.sqrt(variance))
    if error == 0:
        return PairedTest(float(difference), 0.0, 1.0 if difference == 0 else 0.0)
    p_value = 2 * scipy.stats.t.sf(abs(difference) / error, freedom)
    return PairedTest(float(difference), error, float(p_value))


def holm(p_values: Sequence[float]) -> list[float]:
    """Adjusts probabilities for how many there are (Holm 1979), in the order given.

    >>> holm([0.01, 0.04, 0.03])
    [0.03, 0.06, 0.06]
    """
    adjusted, highest = [0.0] * len(p_values), 0.0
    for rank, index in enumerate(np.argsort(p_values, kind="stable")):
        highest = max(highest, min((len(p_values) - rank) * p_values[index], 1.0))
        adjusted[index] = float(highest)
    return adjusted
