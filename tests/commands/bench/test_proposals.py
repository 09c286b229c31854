"""`sa-jax bench`: the rows that it measures, what it leaves out, writes and refuses."""

import contextlib
import json
import os
import runpy
import sys
import types
from pathlib import Path

import pytest

from sa_jax import cli
from sa_jax.commands.bench import methods, proposals
from sa_jax.landscapes import native
from tests.conftest import refusal

ROOT = Path(__file__).parents[3]
CEILINGS = {"copy_bytes_per_second": {"1024": 4e9, "1048576": 1e9}, "flops_per_second": 1e10}
FIELDS = {"network", "density", "samples", "chains", "cores", "method", "proposals_per_second", "compile_seconds"}
FIELDS |= {"peak_bytes", "flops", "bytes", "ceiling_fraction"}


@pytest.fixture(scope="module")
def rows():
    """One small case of all methods, and one over two cores."""
    if not (proposals.has_numba() and proposals.has_native()):
        pytest.skip("needs numba and native code")
    single = proposals.measure(
        proposals.Case((12, 6, 4, 3), 0.4, 50, naive=True), CEILINGS, rounds=2, seconds=0.01
    )
    return single + proposals.measure(
        proposals.Case((12, 6, 4, 3), 0.4, 50, 2, 2), CEILINGS, rounds=2, seconds=0.01
    )


@pytest.mark.slow
def test_rows_hold_all_fields(rows):
    methods = [row["method"] for row in rows]
    assert methods == ["naive", "compiled", "incremental", "native", "incremental", "native"]
    for row in rows:
        assert row.keys() >= FIELDS
        assert all(row[name] > 0 for name in FIELDS - {"network", "method"})
        assert len(row["seconds"]) == 2 and 0 < row["acceptance"] <= 1
        least, most = row["microseconds_range"]
        assert least <= row["microseconds"] <= most
    # The cost of a proposal depends on where a chain has come to, so that all make the same number.
    assert rows[1]["steps"] == rows[2]["steps"] == rows[3]["steps"]
    assert rows[2]["acceptance"] == pytest.approx(rows[3]["acceptance"], abs=0.02)
    assert all(row["chains"] == row["cores"] == 2 for row in rows[4:])


def result_of(rows):
    machine = proposals.machine() | {"native": "AVX9, cc 1.0"}
    return {"machine": machine, "ceilings": CEILINGS, "peak_bytes_by_steps": {}, "rows": rows}


def test_command_writes_what_it_measured(rows, tmp_path, monkeypatch, capsys):
    result = result_of(rows)
    monkeypatch.setattr(proposals, "bench", lambda quick, save: save(result) or result)
    monkeypatch.setattr(sys, "argv", ["bench.py", "--quick", f"--out={tmp_path / 'bench.json'}"])
    with pytest.raises(SystemExit) as exit:
        runpy.run_path(str(ROOT / "scripts/bench.py"), run_name="__main__")
    assert exit.value.code == 0
    printed = capsys.readouterr().out.splitlines()
    assert len(printed) == 2 + len(rows) + 2 + 1 and all("12-6-4-3" in line for line in printed[2:-1])
    assert [word in printed[4] for word in ("incremental (XLA)", "native (C)")] == [True, False]
    assert printed[-1].endswith("AVX9, cc 1.0")
    assert json.loads((tmp_path / "bench.json").read_text()) == result
    assert (tmp_path / "bench.png").read_bytes().startswith(b"\x89PNG")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["bench.json", "bench.png"]


def test_native_is_compared_with_incremental_and_compiled():
    same = {"network": "9-3", "density": 0.05, "samples": 2_000, "chains": 2, "mask": "largest weights"}
    same |= dict.fromkeys(("compile_seconds", "peak_bytes", "acceptance", "ceiling_fraction"), 0.5)

    def row(method, speed, cores):
        times = {"microseconds": 1e6 / speed, "microseconds_range": [1.0, 2.0], "proposals_per_second": speed}
        return same | times | {"method": method, "cores": cores}

    one_core = [row("compiled", 200.0, 1), row("incremental", 100.0, 1), row("native", 250.0, 1)]
    two_cores = [row("incremental", 100.0, 2), row("native", 300.0, 2)]
    lines = proposals.table(result_of(one_core + two_cores)).splitlines()[2 + 5 :]
    ratios = "native (C) is 2.50 times as fast as incremental (XLA) and 1.25 times as fast as compiled"
    assert lines[0] == f"9-3, density 0.05, samples 2,000, chains 2, cores 1: {ratios}"
    assert lines[1].endswith("cores 2: native (C) is 3.00 times as fast as incremental (XLA)")
    assert len(lines) == 3
    # Results without native code, such as those of earlier versions, have no such lines.
    assert len(proposals.table(result_of(one_core[:2])).splitlines()) == 2 + 2


@pytest.mark.parametrize("missing", [False, True])
def test_native_is_left_out_where_it_cannot_be_compiled(missing, monkeypatch, capsys):
    def ready():
        if missing:
            raise native.Unavailable("no C compiler was found")
        return native.Library("AVX9, cc 1.0", 0.0)

    @contextlib.contextmanager
    def worker(cores):
        yield types.SimpleNamespace(submit=lambda call, *given: types.SimpleNamespace(result=lambda: call(*given)))

    monkeypatch.setattr(native, "ready", ready)
    monkeypatch.setattr(methods, "ready", ready)
    monkeypatch.setattr(proposals, "_worker", worker)
    monkeypatch.setattr(proposals, "cases", lambda quick: [proposals.Case((12, 3), 0.4, 50)])
    monkeypatch.setattr(proposals, "measure_ceilings", lambda: CEILINGS)
    monkeypatch.setattr(proposals, "measure_memory", lambda: {})
    timed = methods.Method(lambda steps: (0.1, 0.5), 10, 1.0, 1, 1)
    monkeypatch.setattr(proposals, "jax_method", lambda *ignored: timed)
    monkeypatch.setattr(proposals, "has_numba", lambda: False)
    result = proposals.bench(quick=True)
    expected = ["incremental"] if missing else ["incremental", "native"]
    assert [row["method"] for row in result["rows"]] == expected
    assert result["machine"].get("native") == (None if missing else "AVX9, cc 1.0")
    said = "bench: 'native' is left out: no C compiler was found\n"
    assert capsys.readouterr().err.count(said) == missing


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
