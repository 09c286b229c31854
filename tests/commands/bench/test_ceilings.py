"""The ceilings of `sa-jax bench`: what is counted, and which of the two holds."""

import numpy as np

from sa_jax.commands.bench import ceilings
from sa_jax.commands.bench.problems import Synthetic
from sa_jax.networks.mlp import Network

CEILINGS = {"copy_bytes_per_second": {"1024": 4e9, "1048576": 1e9}, "flops_per_second": 1e10}


def test_count_is_that_by_hand(monkeypatch):
    # One input that leads to two units, and these to one output each: branches a -> 1, a -> 2, 1 -> out, 2 -> out.
    # The first and the third are kept, so that there are four swaps.
    network = Network((np.array([[1, 1]], np.float32), np.array([[1], [1]], np.float32)), (None, None))
    mask = np.array([True, False, True, False])
    inputs = np.ones((1, 4), np.float32)
    problem = Synthetic(network, mask, inputs, np.zeros(4, np.int32))
    monkeypatch.setattr(ceilings, "synthesize", lambda *_: problem)
    monkeypatch.setattr(ceilings, "COUNTED_SAMPLES", 4)
    monkeypatch.setattr(ceilings, "COUNTED_PROPOSALS", 4_000)
    entropy = ceilings.EXP_FLOPS + 5 + ceilings.LOG_FLOPS
    # Per swap (pruned, grown): multiply-adds, changed hidden units, changed outputs, rows that enter the ends.
    # 1st, 2nd: both units change, one of them leads on.
    # 1st, 4th: unit 1 changes and leads on; unit 2 is 0, and so is what its new branch carries.
    # 3rd, 2nd: unit 2 changes and leads nowhere; the 3rd branch goes.
    # 3rd, 4th: the output loses the 3rd branch; what the 4th carries is 0.
    swaps = [(3, 2, 1, 2), (2, 1, 1, 1), (2, 1, 1, 2), (1, 0, 1, 1)]
    flops = np.mean([2 * products + 3 * units + outputs * entropy for products, units, outputs, _ in swaps])
    written = np.mean([4 * (units + outputs) for _, units, outputs, _ in swaps])
    read = np.mean([4 * (units + outputs + ends + outputs) for _, units, outputs, ends in swaps])
    counted = ceilings.count.__wrapped__((1, 2, 1), 0.5)
    np.testing.assert_allclose((counted.flops, counted.read, counted.written), (flops, read, written), rtol=0.05)


def test_bound_is_the_tighter_one():
    assert ceilings.bound_seconds(1e10, 1e9, 1000, CEILINGS) == 1.0  # computing
    assert ceilings.bound_seconds(1e9, 1e9, 1000, CEILINGS) == 0.25  # moving within the smaller set
    assert ceilings.bound_seconds(1e9, 1e9, 1025, CEILINGS) == 1.0
    assert ceilings.bound_seconds(1e9, 1e9, 1e9, CEILINGS) == 1.0
