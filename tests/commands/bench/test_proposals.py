"""`sa-jax bench`: what it counts, the compiled loop that it compares with, what it writes and refuses."""

import json
import os
import runpy
import sys
from pathlib import Path

import jax.numpy as jnp
import numpy as np
import pytest

from sa_jax import cli
from sa_jax.commands.bench import proposals
from sa_jax.networks.energies import cross_entropy
from sa_jax.networks.mlp import Network, forward, masked
from tests.conftest import refusal

ROOT = Path(__file__).parents[3]
CEILINGS = {"copy_bytes_per_second": {"1024": 4e9, "1048576": 1e9}, "flops_per_second": 1e10}
FIELDS = {"network", "density", "samples", "chains", "cores", "method", "proposals_per_second", "compile_seconds"}
FIELDS |= {"peak_bytes", "flops", "bytes", "ceiling_fraction"}


@pytest.fixture(scope="module")
def rows():
    """One small case of all methods, and one over two cores."""
    if not proposals.has_numba():
        pytest.skip("needs numba")
    single = proposals.measure(
        proposals.Case((12, 6, 4, 3), 0.4, 50, naive=True), CEILINGS, rounds=2, seconds=0.01
    )
    return single + proposals.measure(
        proposals.Case((12, 6, 4, 3), 0.4, 50, 2, 2), CEILINGS, rounds=2, seconds=0.01
    )


def test_rows_hold_all_fields(rows):
    assert [row["method"] for row in rows] == ["naive", "compiled", "incremental", "incremental"]
    for row in rows:
        assert row.keys() >= FIELDS
        assert all(row[name] > 0 for name in FIELDS - {"network", "method"})
        assert len(row["seconds"]) == 2 and 0 < row["acceptance"] <= 1
        least, most = row["microseconds_range"]
        assert least <= row["microseconds"] <= most
    # The cost of a proposal depends on where a chain has come to, so that both make the same number.
    assert rows[1]["steps"] == rows[2]["steps"]
    assert rows[3]["chains"] == rows[3]["cores"] == 2


def test_command_writes_what_it_measured(rows, tmp_path, monkeypatch, capsys):
    result = {"machine": proposals.machine(), "ceilings": CEILINGS, "peak_bytes_by_steps": {}, "rows": rows}
    monkeypatch.setattr(proposals, "bench", lambda quick, save: save(result) or result)
    monkeypatch.setattr(sys, "argv", ["bench.py", "--quick", f"--out={tmp_path / 'bench.json'}"])
    with pytest.raises(SystemExit) as exit:
        runpy.run_path(str(ROOT / "scripts/bench.py"), run_name="__main__")
    assert exit.value.code == 0
    printed = capsys.readouterr().out.splitlines()
    assert len(printed) == 2 + len(rows) and all("12-6-4-3" in line for line in printed[2:])
    assert json.loads((tmp_path / "bench.json").read_text()) == result
    assert (tmp_path / "bench.png").read_bytes().startswith(b"\x89PNG")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["bench.json", "bench.png"]


def test_out_is_refused_before_measuring(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(proposals, "bench", lambda quick, save: pytest.fail("measured"))
    (tmp_path / "folder.json").mkdir()
    (tmp_path / "file").touch()
    for out, reason in {
        "missing/bench.json": "is not there",
        "file/bench.json": "is not there",
        "bench.txt": "must end in .json",
        "folder.json": "a folder has that name",
    }.items():
        assert cli.main(["bench", f"--out={tmp_path / out}"]) == 2
        error = capsys.readouterr().err
        assert error.count("\n") == 1 and reason in error and str(tmp_path / out) in error
    if os.geteuid() != 0:  # root may write anywhere
        tmp_path.chmod(0o500)
        with refusal("cannot be written"):
            proposals.check_out(tmp_path / "bench.json")


def test_cases():
    quick, full = proposals.cases(True), proposals.cases(False)
    assert {case.sizes for case in quick} == set(proposals.NETWORKS)
    assert {case.density for case in full} >= {0.5, 0.05, 0.02}
    assert {case.samples for case in full} == {1_000, 2_000, 10_000, 60_000}
    assert {(case.chains, case.cores) for case in full} >= {(1, 1), (64, 1), (64, 2)}
    assert all(case.chains % case.cores == 0 for case in quick + full)


def test_equal_fan_out():
    problem = proposals.synthesize((9, 8, 8, 4), 0.0, 5, fan_out=3)
    kept = problem.mask[72:136].reshape(8, 8)
    assert (kept.sum(1) == 3).all() and problem.mask.sum() == 3 * (9 + 8 + 8)


def test_count_is_that_by_hand(monkeypatch):
    # One input that leads to two units, and these to one output each: branches a -> 1, a -> 2, 1 -> out, 2 -> out.
    # The first and the third are kept, so that there are four swaps.
    network = Network((np.array([[1, 1]], np.float32), np.array([[1], [1]], np.float32)), (None, None))
    mask = np.array([True, False, True, False])
    inputs = np.ones((1, 4), np.float32)
    problem = proposals.Synthetic(network, mask, inputs, np.zeros(4, np.int32))
    monkeypatch.setattr(proposals, "synthesize", lambda *_: problem)
    monkeypatch.setattr(proposals, "COUNTED_SAMPLES", 4)
    monkeypatch.setattr(proposals, "COUNTED_PROPOSALS", 4_000)
    entropy = proposals.EXP_FLOPS + 5 + proposals.LOG_FLOPS
    # Per swap (pruned, grown): multiply-adds, changed hidden units, changed outputs, rows that enter the ends.
    # 1st, 2nd: both units change, one of them leads on.
    # 1st, 4th: unit 1 changes and leads on; unit 2 is 0, and so is what its new branch carries.
    # 3rd, 2nd: unit 2 changes and leads nowhere; the 3rd branch goes.
    # 3rd, 4th: the output loses the 3rd branch; what the 4th carries is 0.
    swaps = [(3, 2, 1, 2), (2, 1, 1, 1), (2, 1, 1, 2), (1, 0, 1, 1)]
    flops = np.mean([2 * products + 3 * units + outputs * entropy for products, units, outputs, _ in swaps])
    written = np.mean([4 * (units + outputs) for _, units, outputs, _ in swaps])
    read = np.mean([4 * (units + outputs + ends + outputs) for _, units, outputs, ends in swaps])
    counted = proposals.count.__wrapped__((1, 2, 1), 0.5)
    np.testing.assert_allclose((counted.flops, counted.read, counted.written), (flops, read, written), rtol=0.05)


def test_bound_is_the_tighter_one():
    assert proposals.bound_seconds(1e10, 1e9, 1000, CEILINGS) == 1.0  # computing
    assert proposals.bound_seconds(1e9, 1e9, 1000, CEILINGS) == 0.25  # moving within the smaller set
    assert proposals.bound_seconds(1e9, 1e9, 1025, CEILINGS) == 1.0
    assert proposals.bound_seconds(1e9, 1e9, 1e9, CEILINGS) == 1.0


@pytest.mark.parametrize("sizes", [(12, 3), (12, 9, 3), (12, 9, 7, 8, 3)])
@pytest.mark.parametrize("samples", [40, 101])
@pytest.mark.parametrize("biased", [False, True])
def test_compiled_loop_keeps_its_caches(sizes, samples, biased, monkeypatch):
    pytest.importorskip("numba")
    from sa_jax.commands.bench import compiled

    monkeypatch.setattr(compiled, "MOST_BLOCK", 48)  # one block, or several
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
