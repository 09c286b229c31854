"""`sa-jax compare` on a terminal: its workers, and what it prints."""

import pytest

from sa_jax import cli

DIGITS = ["compare", "--gin_file=configs/compare_digits.gin"]


def test_the_number_of_workers_is_checked(tmp_path, capsys):
    assert cli.main([*DIGITS, f"--workdir={tmp_path / 'new'}", "--jobs=0"]) == 2
    assert "--jobs must be a whole number of at least 1, not 0" in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_each_cell_is_printed_and_then_the_tables(tmp_path, capsys):
    bindings = ["METHODS=['magnitude_global']", "DENSITIES=[0.1]", "SEEDS=[0]", "run.pretrain_epochs=2"]
    words = [f"--gin_bindings={binding}" for binding in bindings]
    assert cli.main([*DIGITS, *words, "--jobs=1", f"--workdir={tmp_path}"]) == 0
    printed = capsys.readouterr()
    assert "1/2  digits, dense, 100.0% kept, seed 0: " in printed.err
    assert "2/2  digits, magnitude_global, 10.0% kept, seed 0: " in printed.err
    assert (tmp_path / "results.md").read_text() in printed.out and "2 cells; see " in printed.out
    page = (tmp_path / "report.html").read_text()
    assert f"sa-jax compare --gin_file={tmp_path}/operative.gin --workdir=NEW_DIR" in page
    # It holds all settings: the command that the page names finds every cell measured.
    assert cli.main(["compare", f"--gin_file={tmp_path}/operative.gin", "--jobs=1", f"--workdir={tmp_path}"]) == 0
    assert "2 of 2 cells have been measured already" in capsys.readouterr().err
    assert not (tmp_path / ".lock").exists()
