"""Runs that are stopped, killed or damaged resume, and end like uninterrupted ones."""

import contextlib
import dataclasses
import json
import os
import shutil
import socket
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from sa_jax import pruning
from sa_jax.commands.run import checkpoint, evaluation, runner
from sa_jax.commands.run.records import Saving, Stopped
from sa_jax.files import datasets
from tests.commands.run.runs import SEARCHED, stop_after
from tests.commands.run.runs import SMALL as ALONE
from tests.conftest import refusal

SMALL = dataclasses.replace(ALONE, move="informed", num_steps=3_000, num_samples=60, num_chains=3)
# What may differ in the result of a resumed run.
SECONDS = {*evaluation.SECONDS, "steps_per_second", "proposals_per_second", "worth", "parts"}


def run(config, workdir, chunks=10**9, messages=None, overwrite=False):
    tell = (lambda message: None) if messages is None else messages.append
    return runner.run(config, workdir, "", overwrite, lambda progress: None, tell, stop_after(chunks))


def stop(config, workdir, chunks=1):
    with pytest.raises(Stopped):
        run(config, workdir, chunks)


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory):
    workdir = tmp_path_factory.mktemp("undisturbed")
    run(SMALL, workdir)
    return workdir


def assert_same(one, other, but=()):
    results = [json.loads((workdir / "result.json").read_text()) for workdir in (one, other)]
    for name in results[0].keys() - SECONDS - set(but):
        assert results[0][name] == results[1][name], name
    assert (one / "trace.csv").read_text() == (other / "trace.csv").read_text()
    for name in ("masks.npz", "weights.npz"):
        with np.load(one / name) as first, np.load(other / name) as second:
            for array in first:
                np.testing.assert_array_equal(first[array], second[array])


@pytest.mark.slow
@pytest.mark.usefixtures("optimized")
@pytest.mark.parametrize(
    "changes",
    [
        {"hidden": (8, 6, 6), "move": "saliency", "num_steps": 30_000, "schedule": "cosine"},
        {"nudge_share": 0.5, "move": "uniform", "num_steps": 4_000},
    ],
    ids=["saliency, deep, cosine", "uniform, nudged"],
)
def test_chains_that_are_stopped_end_as_those_that_are_not(changes, tmp_path):
    config = dataclasses.replace(SMALL, **changes)
    dataset = datasets.load_dataset(config.dataset)
    _, network = runner.load_network(config, dataset)

    def anneal(folder, chunks):
        saving = Saving(tmp_path / folder, 60.0, stop_after(chunks))
        return runner.anneal_density(config, dataset, network, saving=saving)[0]

    whole = anneal("undisturbed", 10**9)
    for _ in range(2):
        with pytest.raises(Stopped):
            anneal("stopped", 1)
    ended = anneal("stopped", 10**9)
    for name in ("masks", "weights", "best_energy", "num_accepted"):
        np.testing.assert_array_equal(getattr(whole, name), getattr(ended, name))
    for name, values in whole.trace.items():
        np.testing.assert_array_equal(values, ended.trace[name])
    for name, values in whole.snapshots.items():
        np.testing.assert_array_equal(values, ended.snapshots[name])
    assert whole.snapshots["step"][[0, -1]].tolist() == [0, config.num_steps] and len(whole.snapshots["step"]) > 3
    for bits in whole.snapshots["masks"].reshape(-1, whole.snapshots["masks"].shape[-1]):
        assert np.unpackbits(bits).sum() == whole.mask.sum()


@pytest.mark.slow
def test_a_run_that_is_stopped_ends_as_one_that_is_not(undisturbed, tmp_path):
    stop(SMALL, tmp_path)
    assert not (tmp_path / "result.json").exists()
    assert (tmp_path / "partial_report.html").stat().st_size > 10_000
    with np.load(tmp_path / "partial_masks.npz") as partial:
        assert sum(partial[name].sum() for name in partial) > 0
    messages = []
    run(SMALL, tmp_path, messages=messages)
    assert any(message.startswith("resuming from step ") for message in messages)
    assert_same(undisturbed, tmp_path)
    assert not (tmp_path / "checkpoints").exists()
    assert not (tmp_path / "partial_report.html").exists()


@pytest.mark.slow
def test_a_search_for_the_density_resumes_with_the_probe_it_was_at(tmp_path):
    config = dataclasses.replace(SMALL, density=None, target_accuracy=0.99, num_steps=1_000, hidden=(2,))
    stop(config, tmp_path, chunks=2)
    done = {path.name for path in (tmp_path / "checkpoints").iterdir() if path.is_dir()}
    messages = []
    run(config, tmp_path, messages=messages)
    assert any("resuming from step 1,000 of 1,000" in message for message in messages)
    probes = json.loads((tmp_path / "result.json").read_text())["probes"]
    assert done < {str(probe["kept"]) for probe in probes}


@pytest.mark.slow
def test_a_search_for_the_density_resumes_in_the_score_search_it_was_at(tmp_path):
    """Each probe has a score search of its own. A probe whose annealing ended early is not made again."""
    hot = {"schedule": "constant", "temperature_start": 1e6, "num_steps": 6_000, "hidden": (2,)}
    config = dataclasses.replace(SEARCHED, density=None, target_accuracy=0.99, move="informed", **hot)
    stop(config, tmp_path / "stopped", chunks=4 + 4 + 2)  # in the second part of the second search
    assert not list((tmp_path / "stopped").glob("partial*"))
    progress, undisturbed = [], []
    resumed = runner.run(config, tmp_path / "stopped", on_progress=progress.append)
    whole = runner.run(config, tmp_path / "whole", on_progress=undisturbed.append)
    assert [one.step for one in undisturbed if one.probe == 1 and not one.searching] == [
        1_000,
        2_000,
        3_000,
        4_000,
    ]
    assert (progress[0].probe, progress[0].searching, progress[0].step) == (2, True, 300)
    for name in ("kept", "best_energy", "num_steps", "planned_steps", "validation_accuracy"):
        assert resumed[name] == whole[name], name
    kept = [[probe["kept"] for probe in result["probes"]] for result in (resumed, whole)]
    assert kept[0] == kept[1]
    assert whole["seconds_cover"] == f"score search and annealing, all {len(kept[1])} probes together"
    assert all(probe["search_seconds"] > 0 for probe in whole["probes"])


@pytest.mark.slow
def test_a_run_that_is_stopped_while_it_searches_ends_as_one_that_is_not(tmp_path):
    run(SEARCHED, tmp_path / "whole")
    workdir = tmp_path / "stopped"
    stop(SEARCHED, workdir, chunks=2)
    assert sorted(path.name for path in workdir.iterdir()) == ["checkpoints", "metrics.jsonl"]
    with refusal("unfinished run with score_steps = 350, not 400", "--overwrite"):
        run(dataclasses.replace(SEARCHED, score_steps=400), workdir)
    with refusal("unfinished run with patience = 0.2, not 1"):
        run(dataclasses.replace(SEARCHED, patience=1), workdir)
    messages = []
    run(SEARCHED, workdir, messages=messages)
    assert "resuming score search from step 200 of 350" in messages
    assert_same(tmp_path / "whole", workdir)
    assert not (workdir / "checkpoints").exists()


@pytest.mark.slow
def test_a_run_that_is_stopped_after_its_search_does_not_search_again(tmp_path):
    config = dataclasses.replace(SEARCHED, move="informed", num_steps=3_000, patience=1)
    stop(config, tmp_path, chunks=5)
    page = (tmp_path / "partial_report.html").read_text()
    assert "What each part gained" in page and "The run was stopped after 1,000 of 3,000 planned" in page
    messages, progress = [], []
    runner.run(config, tmp_path, "", False, progress.append, messages.append)
    assert [one for one in messages if "score search" in one] == ["score search: its mask was saved"]
    assert not any(one.searching for one in progress) and progress[0].step == 2_000


def test_a_folder_with_a_score_search_alone_is_kept(tmp_path):
    folder = tmp_path / "checkpoints"
    folder.mkdir()
    (folder / "settings.json").write_text("{}")
    (folder / ".score_search-136.npz.77").write_bytes(b"begun")
    assert not checkpoint.any_in(folder)
    (folder / "score_search-136.npz").write_bytes(b"")
    assert checkpoint.any_in(folder)
    checkpoint.remove_unused(folder)
    assert folder.is_dir()
    (folder / "score_search-136.npz").unlink()
    checkpoint.remove_unused(folder)
    assert not folder.exists()


@pytest.mark.slow
def test_other_settings_are_refused_with_the_difference_named(tmp_path):
    stop(SMALL, tmp_path)
    with refusal("unfinished run with seed = 0, not 1", "--overwrite"):
        run(dataclasses.replace(SMALL, seed=1), tmp_path)
    with refusal("unfinished run with density = 0.2, not 0.3"):
        run(dataclasses.replace(SMALL, density=0.3, checkpoint_seconds=0.0), tmp_path)
    backend = pruning.described_backend(SMALL.options)
    if backend != "xla":
        with refusal(f"unfinished run with backend = {backend!r}, not 'xla'"):
            run(dataclasses.replace(SMALL, backend="xla"), tmp_path)
    run(dataclasses.replace(SMALL, seed=1), tmp_path, overwrite=True)
    assert json.loads((tmp_path / "result.json").read_text())["seed"] == 1


@pytest.mark.slow
def test_a_run_that_overwrites_another_resumes_too(undisturbed, tmp_path):
    shutil.copytree(undisturbed, tmp_path / "run")
    with pytest.raises(Stopped):
        run(SMALL, tmp_path / "run", 1, overwrite=True)
    messages = []
    run(SMALL, tmp_path / "run", messages=messages, overwrite=True)
    assert any(message.startswith("resuming from step ") for message in messages)
    assert_same(undisturbed, tmp_path / "run")


@pytest.mark.slow
def test_a_damaged_checkpoint_falls_back_to_the_one_before(undisturbed, tmp_path):
    workdir = tmp_path / "damaged"
    stop(dataclasses.replace(SMALL, checkpoint_seconds=1e-6), workdir, chunks=2)
    (folder,) = (path for path in (workdir / "checkpoints").iterdir() if path.is_dir())
    steps = sorted(int(path.name) for path in folder.iterdir() if path.name.isdecimal())
    assert len(steps) == 2
    for path in (folder / str(steps[-1])).rglob("*"):
        if path.is_file() and path.stat().st_size > 100:
            path.write_bytes(path.read_bytes()[:-50] + bytes(50))
    messages = []
    run(SMALL, workdir, messages=messages)
    assert any(f"step {steps[1]:,} is damaged" in message for message in messages)
    assert any(f"resuming from step {steps[0]:,}" in message for message in messages)
    assert_same(undisturbed, workdir)


@pytest.mark.slow
def test_a_full_disk_costs_checkpoints_and_nothing_else(undisturbed, tmp_path, monkeypatch):
    class Full:
        def all_steps(self):
            return []

        def save(self, *args, **kwargs):
            raise OSError(28, "No space left on device")

        def wait_until_finished(self):
            pass

        close = wait_until_finished

    monkeypatch.setattr(checkpoint.Checkpoints, "_manager", Full())
    messages = []
    # Nor does it stop where that would lose what it has found.
    run(dataclasses.replace(SMALL, checkpoint_seconds=1e-6), tmp_path / "full", chunks=1, messages=messages)
    assert any("No space left on device; the run continues" in message for message in messages)
    assert_same(undisturbed, tmp_path / "full")


@pytest.mark.slow
def test_none_are_made_where_they_are_turned_off(tmp_path):
    run(dataclasses.replace(SMALL, checkpoint_seconds=0.0), tmp_path, chunks=1)
    assert (tmp_path / "result.json").exists()


def command(workdir, *bindings):
    words = ["run", "--gin_file=configs/digits.gin", f"--workdir={workdir}", "--gin_bindings=WEIGHTS='random'"]
    words += ["--gin_bindings=NUM_STEPS=30_000", "--gin_bindings=NUM_SAMPLES=200", "--gin_bindings=run.patience=1"]
    words += [
        "--gin_bindings=run.rival=None",
        "--gin_bindings=CHECKPOINT_SECONDS=0.2",
        "--gin_bindings=NUM_CHAINS=3",
        *bindings,
    ]
    program = "from sa_jax.cli import entry_point; entry_point()"
    # Fully optimized, see conftest. The cache is theirs alone: a process that is killed may leave half a program,
    # of which a reader warns and which it compiles again.
    environment = {name: os.environ[name] for name in os.environ if name != "JAX_DISABLE_MOST_OPTIMIZATIONS"}
    environment["JAX_COMPILATION_CACHE_DIR"] = str(workdir.parent / "compiled")
    words = [sys.executable, "-c", program, *words]
    return subprocess.Popen(words, stderr=subprocess.PIPE, text=True, env=environment)


def wait_for_checkpoint(process, workdir, place="*/*"):
    while process.poll() is None:
        with contextlib.suppress(OSError):
            found = Path(workdir, "checkpoints").glob(place)
            if any(path.name.isdecimal() or path.suffix == ".npz" for path in found):
                return
        time.sleep(0.02)


def commands(workdir, processes, *bindings):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        place = [f"--coordinator=127.0.0.1:{free.getsockname()[1]}", f"--num_processes={processes}"]
    return [command(workdir, *bindings, *place, f"--process_id={i}") for i in range(processes)]


@pytest.mark.slow
@pytest.mark.timeout(400)
def test_runs_of_one_or_two_processes_resume_when_killed_or_stopped(tmp_path):
    """Killed in score search, one of two killed while annealing, and stopped: it ends as an undisturbed run.

    Two processes search from the same file, and both take the mask of the first.
    """
    searching = "--gin_bindings=run.score_steps=8_000"
    with command(tmp_path / "undisturbed", searching) as process:
        assert process.wait() == 0, process.stderr.read()
    workdir = tmp_path / "disturbed"
    with command(workdir, searching) as process:
        wait_for_checkpoint(process, workdir, "score_search-*.npz")
        process.kill()
    first, second = commands(workdir, 2, searching)
    assert any("resuming score search from step" in line for line in iter(first.stderr.readline, ""))
    wait_for_checkpoint(first, workdir)
    second.kill()
    _, said = first.communicate()
    assert first.returncode == 75 and "lost another process (" in said, said
    assert "resuming score search from step" in second.communicate()[1]
    with command(workdir, searching) as process:
        assert any("resuming from step" in line for line in iter(process.stderr.readline, ""))
        process.terminate()
        said = process.stderr.read()
        assert process.wait() == 75, said
    assert "repeat the command to resume" in said and (workdir / "partial_report.html").exists()
    started = commands(workdir, 2, searching)
    said = [process.communicate()[1] for process in started]
    assert [process.returncode for process in started] == [0, 0], said
    assert all("resuming from step" in one for one in said)
    assert_same(tmp_path / "undisturbed", workdir, but=["devices", "memory_bytes"])


@pytest.mark.slow
@pytest.mark.timeout(400)
def test_the_folder_of_a_living_run_is_refused(tmp_path):
    """To a second run, to all its processes, and not after the first was killed."""
    workdir = tmp_path / "run"
    endless = ["--gin_bindings=NUM_STEPS=20_000_000", "--gin_bindings=run.score_steps=200"]
    taken = "another command is writing to"
    with command(workdir, *endless) as process:
        wait_for_checkpoint(process, workdir)
        others = [*commands(workdir, 2, *endless), command(workdir, *endless)]
        said = [other.communicate()[1] for other in others]
        assert [other.returncode for other in others] == [2, 2, 2], said
        for one, words in zip(said, (taken, "another process of this run cannot write to", taken), strict=True):
            assert f"sa-jax: {words} {workdir}\n" in one and "Traceback" not in one
        assert process.poll() is None
        process.kill()
    with command(workdir, *endless) as process:
        assert any("resuming from step" in line for line in iter(process.stderr.readline, ""))
        process.terminate()
        assert process.wait() == 75, process.stderr.read()
    assert sorted(path.name for path in workdir.iterdir()) == [
        "checkpoints",
        "metrics.jsonl",
        "partial_masks.npz",
        "partial_report.html",
    ]


@pytest.mark.slow
def test_a_run_killed_before_its_first_checkpoint_says_that_it_starts_again(tmp_path):
    few = dataclasses.replace(SMALL, num_steps=1_000, num_chains=1)
    (tmp_path / "checkpoints").mkdir()
    messages = []
    run(few, tmp_path, messages=messages)
    assert "this run was ended before its first checkpoint: it starts again" in messages
