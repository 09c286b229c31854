"""`sa-jax bench` on a terminal: where it writes."""

from sa_jax import cli
from sa_jax.commands.bench import exports, proposals
from sa_jax.commands.run.records import Stopped


def test_exports_are_measured_into_a_folder(tmp_path, capsys):
    assert cli.main(["bench", "export"]) == 2
    assert "--out=DIR is missing: it names the folder for the results" in capsys.readouterr().err
    assert cli.main(["bench", "export", str(tmp_path / "none"), f"--out={tmp_path / 'new'}"]) == 2
    assert "holds no finished run" in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


def test_a_stopped_run_is_told_to_be_repeated(tmp_path, capsys, monkeypatch):
    def stopped(*ignored):
        raise Stopped(100, 200, None)  # pyright: ignore

    monkeypatch.setattr(exports, "run_all", stopped)
    assert cli.main(["bench", "export", f"--out={tmp_path}"]) == 75
    assert "stopped after 100 of 200 steps; repeat the command to resume" in capsys.readouterr().err


def test_proposals_are_measured_into_a_file(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(proposals, "bench", lambda quick, save: save({"rows": 1}) or {"rows": 2})
    monkeypatch.setattr(proposals, "table", lambda result: f"table {result}")
    monkeypatch.setattr(proposals, "draw", lambda result: b"picture")
    assert cli.main(["bench", f"--out={tmp_path / 'b.json'}"]) == 0
    assert capsys.readouterr().out == "table {'rows': 2}\n"
    assert (tmp_path / "b.json").read_text() == '{\n "rows": 1\n}\n'
    assert (tmp_path / "b.png").read_bytes() == b"picture"
