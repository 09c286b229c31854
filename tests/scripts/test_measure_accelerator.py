"""The script that measures accelerators, on a CPU and in a small form."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from sa_jax import InputError

sys.path.insert(0, str(Path(__file__).parents[2] / "scripts"))
import measure_accelerator
from measure_accelerator import Plan

SCRIPT = Path(__file__).parents[2] / "scripts/measure_accelerator.sh"
TINY = Plan(((12, 8, 4),), 40, (1, 4), (1, 4), 200, 10, (3,), 1 << 16, 0.01)


@pytest.mark.slow
def test_each_case_has_a_row_and_is_saved(tmp_path):
    path = tmp_path / "result.json"
    result = measure_accelerator.measure(TINY, 480, lambda result: measure_accelerator.write(path, result))
    assert json.loads(path.read_text()) == result
    assert not result["left_out"] and result["copied_bytes_per_second"] > 0
    assert result["machine"]["versions"]["jax"] and result["device"]
    rows = result["rows"]
    kinds = [(row["kind"], row["chains"], row.get("parallel_proposals")) for row in rows]
    assert kinds == [
        ("chains", 1, None),
        ("chains", 4, None),
        ("score search", 1, None),
        ("chains", 3, None),
        ("parallel proposals", 1, 1),
        ("parallel proposals", 1, 4),
    ]
    assert all(row["per_second"] > 0 and row["compile_seconds"] > 0 for row in rows)
    assert all(0 <= row["acceptance"] <= 1 for row in rows if row["kind"] != "score search")
    lines = measure_accelerator.table(result).splitlines()
    assert len(lines) == 2 + len(rows) and lines[2].startswith("chains") and "12-8-4" in lines[2]


def test_cases_are_left_out_where_time_is_short():
    saved = []
    result = measure_accelerator.measure(TINY, 1, lambda result: saved.append(len(result["left_out"])))
    assert not result["rows"] and len(result["left_out"]) == saved[-1] == 6
    assert result["left_out"][0]["case"] == "12-8-4, chains: 1"
    assert "s are left" in measure_accelerator.table(result)


def test_a_case_that_fails_does_not_end_the_others(capsys):
    session = measure_accelerator.Session(480, lambda result: None)

    def case():
        raise InputError("too large")

    assert session.try_case("a case", case) is None
    assert session.result["left_out"] == [{"case": "a case", "reason": "too large"}]
    assert "a case: left out: too large" in capsys.readouterr().err


def test_chains_are_halved_until_they_fit():
    last = {"program_bytes": 1_000, "chains": 10}
    assert measure_accelerator.fitting(64, last, 1_700) == 16
    assert measure_accelerator.fitting(64, last, 6_400) == 64
    assert measure_accelerator.fitting(64, last, None) == 64


def test_a_result_that_cannot_be_written_is_refused(tmp_path, capsys):
    (tmp_path / "file").touch()
    assert measure_accelerator.main([f"--out={tmp_path / 'file/result.json'}"]) == 2
    assert capsys.readouterr().err.startswith("measure_accelerator: ")


def test_the_wrapper_is_whole():
    assert subprocess.run(["bash", "-n", str(SCRIPT)]).returncode == 0
