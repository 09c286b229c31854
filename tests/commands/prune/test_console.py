"""`sa-jax prune` on a terminal: what it prints, and how it ends."""

import numpy as np
import pytest

from sa_jax import cli
from sa_jax.commands import interrupts
from sa_jax.commands.prune import budget
from tests.commands.prune.models import shorten, write_model, write_table


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    shorten(monkeypatch)
    write_model(tmp_path)
    write_table(tmp_path)
    return tmp_path


WORDS = ["prune", "model.npz", "--data=data.csv", "--out=out.npz", "--activation=tanh"]


def test_a_dry_run_opens_everything_and_writes_nothing(folder, capsys):
    assert cli.main([*WORDS, "--dry-run", "--minutes=2", "--workdir=run", "--density=0.5"]) == 0
    printed = capsys.readouterr()
    assert printed.out.splitlines() == [
        "model: model.npz, 4-8-3, tanh, 56 weights to prune; layers enc.block_a.proj, the_head",
        "data: data.csv, 3 classes; 120 training, 40 validation, 40 test samples (cut 60:20:20)",
        "dense model: 100.00 % test accuracy",
        "would keep 28 branches (0.5 of all), with about 2 minutes",
        "would write out.npz, run; nothing was written",
    ]
    assert printed.err == "sa-jax: classes: 0 = cat, 1 = dog, 2 = fox\n"
    assert sorted(path.name for path in folder.iterdir()) == ["data.csv", "model.npz"]


@pytest.mark.slow
def test_the_command_prunes_stops_and_resumes(folder, capsys, monkeypatch):
    words = [*WORDS, "--workdir=my run", "--density=0.5"]
    monkeypatch.setattr(interrupts, "requested", lambda: True)
    assert cli.main(words) == 75
    assert "stopped after 100 of 150 steps; repeat the command to resume" in capsys.readouterr().err
    monkeypatch.setattr(interrupts, "requested", lambda: False)
    assert cli.main(words) == 0
    printed = capsys.readouterr()
    assert "resuming score search from step 100 of 150" in printed.err
    lines = printed.out.splitlines()[2:]
    assert lines[0].startswith("28 of 56 branches kept (50.0%), in ")
    assert lines[1].startswith("  before 100.00 % test accuracy, ") and "bytes as a packed export" in lines[2]
    assert lines[3:] == [
        "  pruned model: out.npz",
        "  report: my run/report.html",
        "  to C: sa-jax export 'my run' --format=c --out=out_c",
    ]
    assert cli.main(["export", "my run", "--format=c", "--out=out_c"]) == 0
    assert (folder / "out_c/network.c").is_file()


def test_without_a_workdir_only_the_pruned_file_is_left(folder, capsys):
    assert cli.main([*WORDS, "--density=0.5"]) == 0
    assert capsys.readouterr().out.endswith("for a report, and an export to C, name a folder: --workdir=DIR\n")
    assert sorted(path.name for path in folder.iterdir()) == ["data.csv", "model.npz", "out.npz"]
    assert cli.main(WORDS) == 2
    assert capsys.readouterr().err == "sa-jax: out.npz exists; name another, or add --overwrite\n"


@pytest.mark.slow
def test_several_densities_are_files_and_one_picture(folder, capsys):
    words = [*WORDS, "--workdir=run", "--densities=0.3,0.5", "--minutes=0.01"]
    assert cli.main([*words, "--dry-run"]) == 0
    assert "would keep 50 %, 30 % of the branches, in turn" in capsys.readouterr().out
    assert cli.main(words) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[-1] == "pruned models: out-0.5.npz, out-0.3.npz" and lines[-2] == "see run/sweep.html"
    for density, kept in ((0.5, 28), (0.3, 17)):
        arrays = np.load(folder / f"out-{density}.npz")
        weights = [array for array in arrays.values() if array.ndim == 2]
        assert sum(np.count_nonzero(array) for array in weights) == kept
        assert (folder / f"run/density_{density}/report.html").is_file()


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--densities=0.3,x", "--workdir=run"], "--densities must be numbers such as 0.5,0.2,0.1, not '0.3,x'"),
        (["--densities=0.3"], "densities need a workdir"),
        (["--densities=0.3", "--workdir=run", "--masks=m.npz"], "masks is one file"),
    ],
)
def test_densities_that_cannot_be(words, message, folder, capsys):
    assert cli.main([*WORDS, *words]) == 2
    assert message in capsys.readouterr().err
    assert sorted(path.name for path in folder.iterdir()) == ["data.csv", "model.npz"]


@pytest.mark.slow
def test_a_sweep_within_minutes_resumes_with_the_steps_that_it_had(folder, capsys, monkeypatch):
    words = [*WORDS, "--workdir=run", "--densities=0.5,0.3", "--minutes=0.1"]
    monkeypatch.setattr(budget, "measure", lambda config: budget.Speed(1e3, 4e2, 0.0))
    monkeypatch.setattr(interrupts, "requested", lambda: True)
    assert cli.main(words) == 75
    plan = (folder / "run/prune.json").read_text()
    monkeypatch.setattr(budget, "measure", lambda config: budget.Speed(1e3, 1e3, 0.0))
    monkeypatch.setattr(interrupts, "requested", lambda: False)
    assert cli.main(words) == 0
    assert (folder / "run/prune.json").read_text() == plan
    # Its files are gone: they are written again, without another run.
    (folder / "out-0.3.npz").unlink()
    assert cli.main(words) == 2
    (folder / "out-0.5.npz").unlink()
    capsys.readouterr()
    assert cli.main(words) == 0 and "done already" in capsys.readouterr().err
    assert (folder / "out-0.3.npz").is_file()


@pytest.mark.slow
def test_files_of_a_finished_run_are_written_again(folder, capsys):
    words = [*WORDS, "--workdir=run", "--density=0.5"]
    assert cli.main(words) == 0
    content = (folder / "out.npz").read_bytes()
    (folder / "out.npz").unlink()
    capsys.readouterr()
    assert cli.main(words) == 0
    assert "only its files are written" in capsys.readouterr().err
    assert (folder / "out.npz").read_bytes() == content
    (folder / "out.npz").unlink()
    assert cli.main([*words, "--seed=1"]) == 2
    assert "already holds a run's result" in capsys.readouterr().err


def test_the_data_are_never_replaced(folder, capsys):
    assert cli.main([*WORDS[:2], "--data=data.csv", "--out=data.csv", "--overwrite"]) == 2
    assert "data.csv is the data set itself" in capsys.readouterr().err
