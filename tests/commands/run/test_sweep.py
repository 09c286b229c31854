"""A sweep: each density from the one before, one picture, and a stopped sweep that resumes."""

import dataclasses
import json

import numpy as np
import pytest

from sa_jax.commands.run import runner, sweep
from sa_jax.commands.run.records import Progress, Stopped
from sa_jax.commands.run.settings import RunConfig
from sa_jax.networks.patterns import Unit
from tests.commands.run.runs import SEARCHED, SMALL
from tests.conftest import refusal
from tests.reports.test_sweep import make_result

CONFIG = RunConfig(weights="random", hidden=(6,), density=None, seed=3)


class Runs:
    """Runs whose results are known at once."""

    def __init__(self, monkeypatch):
        self.made, self.stops_at = [], None
        monkeypatch.setattr(runner, "run", self.run)

    def run(
        self,
        config,
        workdir,
        operative="",
        overwrite=False,
        on_progress=None,
        on_message=None,
        stop=None,
        dense=None,
    ):
        if config.density == self.stops_at:
            raise Stopped(1, 2, None)
        self.made.append((config, operative, overwrite, dense))
        on_progress(Progress("annealing", 1, 2, 3.0))
        result = make_result(config.density, 0.9, 0.01) | {"dataset": "digits", "sizes": [64, 6, 10]}
        result |= {"scores_from": config.scores_from}
        workdir.mkdir(parents=True, exist_ok=True)
        (workdir / "result.json").write_text(json.dumps(result))
        return result

    @property
    def densities(self):
        return [config.density for config, *_ in self.made]


@pytest.fixture
def runs(monkeypatch):
    return Runs(monkeypatch)


def test_each_density_starts_from_the_one_before(runs, tmp_path):
    told = []
    results = sweep.sweep(
        CONFIG, [0.1, 0.5, 0.2], tmp_path / "new", "DENSITY = 0.7\nrun.density = %DENSITY\n", False, told.append
    )
    assert runs.densities == [result["density"] for result in results] == [0.5, 0.2, 0.1]
    before = [None, *(str((tmp_path / "new" / f"density_{density}").absolute()) for density in (0.5, 0.2))]
    assert [config.scores_from for config, *_ in runs.made] == before
    # The same dense network for all.
    assert len({id(dense) for *_, dense in runs.made}) == 1 and runs.made[0][3][1].sizes == [64, 6, 10]
    assert [(progress.probe, progress.density) for progress in told] == [(1, 0.5), (2, 0.2), (3, 0.1)]
    _, operative, *_ = runs.made[1]
    assert operative.endswith(f"DENSITY = 0.2\nrun.scores_from = {before[1]!r}\n")
    saved = json.loads((tmp_path / "new/sweep.json").read_text())
    assert [row["density"] for row in saved["densities"]] == [0.5, 0.2, 0.1]
    assert [row["test_accuracy"] for row in saved["densities"]] == [0.9] * 3 and saved["settings"]["seed"] == 3
    assert "of 3 densities" in (tmp_path / "new/sweep.html").read_text()
    assert (tmp_path / "new/sweep.png").read_bytes()[1:4] == b"PNG"
    assert not (tmp_path / "new/.lock").exists()


def test_annealing_alone_has_no_scores_to_start_from(runs, tmp_path):
    sweep.sweep(dataclasses.replace(SMALL, density=0.2), [0.5, 0.2], tmp_path)
    assert [config.scores_from for config, *_ in runs.made] == [None, None]
    assert "Each density began afresh" in (tmp_path / "sweep.html").read_text()


def test_a_stopped_sweep_is_drawn_and_resumes(runs, tmp_path):
    runs.stops_at = 0.1
    with pytest.raises(Stopped):
        sweep.sweep(CONFIG, [0.5, 0.2, 0.1], tmp_path)
    assert "2 of 3 densities are done" in (tmp_path / "sweep.html").read_text()
    runs.stops_at, told = None, []
    results = sweep.sweep(CONFIG, [0.5, 0.2, 0.1], tmp_path, on_message=told.append)
    assert runs.densities == [0.5, 0.2, 0.1] == [result["density"] for result in results]
    assert "50 % kept: done already" in told and "densities are done" not in (tmp_path / "sweep.html").read_text()
    # Once more, all are done: nothing is trained, and the page is the same.
    page = (tmp_path / "sweep.html").read_text()
    sweep.sweep(CONFIG, [0.5, 0.2, 0.1], tmp_path)
    assert len(runs.made) == 3 and (tmp_path / "sweep.html").read_text() == page
    # One more density below them is added to them.
    sweep.sweep(CONFIG, [0.5, 0.2, 0.1, 0.05], tmp_path)
    assert runs.densities[3:] == [0.05]


def test_what_another_sweep_has_left_is_refused(runs, tmp_path):
    sweep.sweep(CONFIG, [0.5, 0.1], tmp_path)
    with refusal("holds a sweep with seed = 3, not 4: choose another workdir, or add --overwrite"):
        sweep.sweep(dataclasses.replace(CONFIG, seed=4), [0.5, 0.1], tmp_path)
    with refusal("density_0.1 holds a run that started from another density"):
        sweep.sweep(CONFIG, [0.5, 0.2, 0.1], tmp_path)
    sweep.sweep(dataclasses.replace(CONFIG, seed=4), [0.5, 0.2, 0.1], tmp_path, overwrite=True)
    assert [overwrite for _, _, overwrite, _ in runs.made[-3:]] == [True] * 3
    (tmp_path / "sweep.json").write_text("{")
    with refusal("sweep.json is damaged"):
        sweep.sweep(CONFIG, [0.5, 0.1], tmp_path)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("0.5;0.1", "--densities must be numbers such as 0.5,0.2,0.1, not '0.5;0.1'"),
        ("0.5,", "--densities must be numbers"),
        ("0.5,0", "each density must be a finite number above 0 and at most 1, not 0.0"),
        ("0.5,0.50", "densities contains duplicates"),
    ],
)
def test_bad_densities_are_refused(text, message):
    with refusal(message):
        sweep.densities_of(text)


def test_what_cannot_be_swept_is_refused_before_anything_is_written(runs, tmp_path):
    with refusal("densities must be a non-empty list, not []"):
        sweep.sweep(CONFIG, [], tmp_path / "new")
    with refusal("a pattern has its density"):
        sweep.sweep(dataclasses.replace(CONFIG, density=0.1, pattern=Unit(0.1)), [0.5], tmp_path / "new")
    with refusal("keep"):
        sweep.sweep(CONFIG, [0.5, 1e-6], tmp_path / "new")
    assert not runs.made and not list(tmp_path.iterdir())


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_a_density_of_a_sweep_is_a_run_that_starts_from_scores(tmp_path):
    config = dataclasses.replace(SEARCHED, num_chains=1)
    results = sweep.sweep(config, [0.4, 0.2], tmp_path / "swept")
    alone = dataclasses.replace(config, density=0.2, scores_from=str(tmp_path / "swept/density_0.4"))
    again = runner.run(alone, tmp_path / "alone")
    afresh = runner.run(dataclasses.replace(alone, scores_from=None), tmp_path / "afresh")
    assert again["best_energy"] == results[1]["best_energy"] != afresh["best_energy"]
    with (
        np.load(tmp_path / "swept/density_0.4/scores.npz") as scores,
        np.load(tmp_path / "alone/masks.npz") as mask,
    ):
        assert scores.files == mask.files
        flat = np.concatenate([scores[name].ravel() for name in scores])
        assert np.std(flat) == pytest.approx(1, rel=1e-5)
    with refusal("run.scores_from: ", "is not there; name the folder of a finished run"):
        runner.run(dataclasses.replace(alone, scores_from=str(tmp_path)), tmp_path / "no")
    with refusal("does not fit the network 64-5-10"):
        runner.run(dataclasses.replace(alone, hidden=(5,)), tmp_path / "no")
