"""`sa-jax bench`: what it counts, the compiled loop that it compares with, what it writes and refuses."""

import json
import os
import runpy
import sys
from pathlib import Path

import numpy as np
import pytest

from sa_jax import cli
from sa_jax.commands.bench import proposals
from sa_jax.networks.mlp import Network
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


@pytest.mark.slow
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
