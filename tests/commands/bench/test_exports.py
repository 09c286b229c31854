"""Exported programs compiled, timed and compared with the network."""

import json
import re
import shutil
import urllib.parse

import pytest

from sa_jax import cli
from sa_jax.commands.bench import exports
from tests.conftest import refusal


@pytest.mark.slow
def test_every_form_is_compiled_timed_and_gives_the_same_predictions(finished, tmp_path, capsys):
    if shutil.which("cc") is None:
        pytest.skip("there is no C compiler")
    assert cli.main(["bench", "export", str(finished), "--quick", f"--out={tmp_path}"]) == 0
    rows = json.loads((tmp_path / "results.json").read_text())["rows"]
    assert {(row["form"], row["bits"]) for row in rows} >= {("smallest", bits) for bits in (32, 8, 4, 2)}
    accuracy = json.loads((finished / "result.json").read_text())["test_accuracy"]
    for row in rows:
        if row["engine"] != "onnxruntime" or row["bits"] == 32:
            assert row["other_predictions"] == 0 and row["largest_relative_error"] < 1e-5
        assert row["microseconds"] > 0 and row["bytes"] > 100
        if row["bits"] == 32 and row["density"] < 1:
            assert row["test_accuracy"] == pytest.approx(accuracy)
    by_bits = {row["bits"]: row["packed_bytes"] for row in rows if row["form"] == "smallest"}
    assert by_bits[32] > by_bits[8] > by_bits[4] > by_bits[2]
    page = (tmp_path / "report.html").read_text()
    assert "Does it pay?" in page and page.count("<svg ") == 2
    saved = re.search(r'download="programs.csv" href="data:text/csv;charset=utf-8,([^"]*)"', page)
    assert saved and len(urllib.parse.unquote(saved[1]).splitlines()) == 1 + len(rows)
    assert (tmp_path / "results.md").read_text() in capsys.readouterr().out
    with refusal("holds no finished run"):
        exports.measure([tmp_path])
