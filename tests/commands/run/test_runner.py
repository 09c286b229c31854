"""A run from its settings to its folder: what it leaves, what it never sees, what changes no bit of it."""

import csv
import dataclasses
import io
import json
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from sa_jax import InputError, baselines
from sa_jax.commands.run import runner
from sa_jax.commands.run.evaluation import SECONDS
from sa_jax.commands.run.records import Progress
from sa_jax.commands.run.settings import RunConfig
from sa_jax.files import datasets, workdirs
from sa_jax.landscapes import native
from sa_jax.landscapes.mlp import landscape
from sa_jax.landscapes.native import calls
from sa_jax.networks import mlp
from tests.commands.run.runs import SMALL, annealed
from tests.conftest import refusal

TRAINED = dataclasses.replace(SMALL, weights="pretrain", hidden=(12,), density=0.15, num_steps=1_000, num_chains=3)
TRAINED = dataclasses.replace(TRAINED, pretrain_epochs=5)

FILES = {"masks.npz", "weights.npz", "survival.npz", "operative.gin", "trace.csv", "report.html", "result.json"}
FILES |= {"metrics.jsonl"}
FIELDS = [
    "dataset",
    "sizes",
    "density",
    "kept",
    "total",
    "kept_per_layer",
    "best_energy",
    "test_accuracy",
    "validation_accuracy",
    "dense_test_accuracy",
    "magnitude_test_accuracy",
    "random_test_accuracy",
    "effective_kept",
    "one_shot_test_accuracy",
    "best_one_shot",
    "worth",
    "mask_overlap",
    "num_steps",
    "num_chains",
    "steps_per_second",
    "chain_batch",
    "memory_bytes",
    "compile_seconds",
    "anneal_seconds",
    "cpu_seconds",
    "seed",
    "versions",
]


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """A run's folder and what `run` returned."""
    workdir = tmp_path_factory.mktemp("runs") / "new" / "folder"
    return workdir, runner.run(SMALL, workdir, "SEED = 0\n")


@pytest.mark.slow
def test_folder_holds_the_whole_run(finished):
    workdir, result = finished
    assert {path.name for path in workdir.iterdir()} == FILES
    assert FILES - {"metrics.jsonl"} == set(workdirs.FILES) - {"scores.npz"}
    written = json.loads((workdir / "result.json").read_text())
    assert written == result and not set(FIELDS) - set(written)
    assert written["kept"] == round(0.2 * 944) == sum(written["kept_per_layer"]) and written["total"] == 944
    assert written["sizes"] == [64, 12, 8, 10]
    assert (workdir / "operative.gin").read_text() == "SEED = 0\n"
    assert (workdir / "report.html").read_text().startswith("<!DOCTYPE html>")
    for name in FIELDS:
        if name.endswith("accuracy") and name != "one_shot_test_accuracy":
            assert 0 <= written[name] <= 1
        if name.endswith(("seconds", "per_second")):
            assert written[name] > 0


def test_saved_masks_and_weights_give_the_reported_figures(finished):
    """Computed again with numpy alone, as by a stranger who gets only the folder."""
    workdir, result = finished
    with np.load(workdir / "masks.npz") as masks, np.load(workdir / "weights.npz") as weights:
        assert set(masks.files) == {name for name in weights.files if name.endswith("kernel")}
        layers = sorted({name.split("/")[0] for name in weights.files})
        assert [int(masks[f"{layer}/kernel"].sum()) for layer in layers] == result["kept_per_layer"]
        dataset = datasets.load_dataset("digits")

        def logits(x, masked):
            for i, layer in enumerate(layers):
                kernel = weights[f"{layer}/kernel"] * (masks[f"{layer}/kernel"] if masked else 1)
                assert masks[f"{layer}/kernel"].dtype == bool
                x = (np.maximum(x, 0) if i else x) @ kernel + weights[f"{layer}/bias"]
            return x

        for field, split, masked in (
            ("test_accuracy", dataset.test, True),
            ("validation_accuracy", dataset.validation, True),
            ("dense_test_accuracy", dataset.test, False),
        ):
            accuracy = (logits(split.inputs, masked).argmax(1) == split.labels).mean()
            assert result[field] == pytest.approx(accuracy, abs=0.003)  # a tie may round the other way
        x, y = dataset.train.inputs[:300], dataset.train.labels[:300]
        scaled = result["logit_scale"] * logits(x, True)
        energy = np.mean(np.log(np.exp(scaled).sum(1)) - scaled[np.arange(300), y])
        assert result["best_energy"] == pytest.approx(energy, rel=1e-4)


@pytest.mark.slow
def test_weights_that_move_are_told_apart(finished, tmp_path):
    """A class of its own in every place, and the folder holds the weights that go with the masks."""
    config = dataclasses.replace(SMALL, nudge_share=0.5)
    result = runner.run(config, tmp_path / "moved")
    with np.load(tmp_path / "moved/masks.npz") as masks, np.load(tmp_path / "moved/weights.npz") as weights:
        with np.load(finished[0] / "weights.npz") as before:
            moved = {name: (weights[name] != before[name]).sum() for name in before.files}
        assert sum(moved.values()) > 50 and not any(moved[name] for name in moved if name.endswith("bias"))
        x = datasets.load_dataset("digits").test.inputs
        for i, layer in enumerate(sorted({name.split("/")[0] for name in masks.files})):
            kernel = weights[f"{layer}/kernel"] * masks[f"{layer}/kernel"]
            x = (np.maximum(x, 0) if i else x) @ kernel + weights[f"{layer}/bias"]
    accuracy = (x.argmax(1) == datasets.load_dataset("digits").test.labels).mean()
    assert result["test_accuracy"] == pytest.approx(accuracy, abs=0.003)
    assert result["dense_test_accuracy"] == finished[1]["dense_test_accuracy"]
    assert not result["uses_gradients"] and not finished[1]["uses_gradients"]
    assert result["kept"] == finished[1]["kept"] and result["best_energy"] < result["start_energy"]
    assert "annealing moved them" in result["worth"] and "annealing moved them" not in finished[1]["worth"]
    for folder, of, words in (
        (tmp_path / "moved", result, "Annealing chose branches and changed weights."),
        (*finished, "no weight was changed."),
    ):
        assert of["moves_weights"] == ("changed weights" in words)
        assert words in (folder / "report.html").read_text()


def test_trace_follows_every_chain(finished):
    workdir, result = finished
    rows = list(csv.DictReader(io.StringIO((workdir / "trace.csv").read_text())))
    for chain in ("0", "1"):
        own = [row for row in rows if row["chain"] == chain]
        steps = [int(row["step"]) for row in own]
        assert steps[-1] == 2_000 and steps == sorted(set(steps))
        best = [float(row["best_energy"]) for row in own]
        assert best == sorted(best, reverse=True)
        assert best[-1] == pytest.approx(result["best_energy_per_chain"][int(chain)])
        assert float(own[-1]["temperature"]) == pytest.approx(result["temperature_end"], rel=1e-4)
    assert result["best_energy"] == min(result["best_energy_per_chain"])


@pytest.mark.slow
def test_same_settings_same_bits_in_place_of_an_old_result(finished, tmp_path):
    workdir, result = finished
    (tmp_path / "result.json").write_text("{}")
    again = runner.run(SMALL, tmp_path, "SEED = 0\n", overwrite=True)
    assert json.loads((tmp_path / "result.json").read_text())["kept"] == again["kept"] == 189
    for name in ("masks.npz", "weights.npz", "trace.csv"):
        assert (workdir / name).read_bytes() == (tmp_path / name).read_bytes()
    assert again["best_energy"] == result["best_energy"]
    other = annealed(dataclasses.replace(SMALL, seed=1))
    assert float(other.best_energy.min()) != result["best_energy"]


@pytest.mark.slow
def test_validation_and_test_samples_play_no_part(tmp_path, monkeypatch):
    """Neither in the pretraining, nor in the search, nor in which chain is taken."""
    config = dataclasses.replace(SMALL, weights="pretrain", pretrain_epochs=2, num_steps=500)
    runner.run(config, tmp_path / "true")
    dataset = datasets.load_dataset("digits")
    garbage = datasets.Split(dataset.test.inputs[::-1] * 7, (dataset.test.labels + 1) % 10)
    monkeypatch.setattr(
        datasets, "load_dataset", lambda *ignored: dataset._replace(validation=garbage, test=garbage)
    )
    runner.run(config, tmp_path / "garbage")
    for name in ("masks.npz", "weights.npz", "trace.csv"):
        assert (tmp_path / "true" / name).read_bytes() == (tmp_path / "garbage" / name).read_bytes()


@pytest.mark.slow
def test_annealing_beats_magnitude_and_random(tmp_path):
    changes = {"hidden": (16,), "density": 0.1, "num_steps": 15_000, "num_samples": 500, "pretrain_epochs": 20}
    result = runner.run(dataclasses.replace(TRAINED, **changes), tmp_path)
    assert result["validation_accuracy"] > 0.75
    assert result["test_accuracy"] > max(result["magnitude_test_accuracy"], result["random_test_accuracy"]) + 0.1
    assert not result["warnings"]


@pytest.mark.parametrize(
    ("name", "place", "changed"),
    [
        ("evaluate", "result.json, best_energy", lambda result: result | {"best_energy": np.nan}),
        ("_by_kernel", "masks.npz, fc", lambda arrays: {"fc": np.array([np.inf])}),
        ("anneal_density", "trace.csv, energy", lambda found: (with_nan(found[0]), None)),
    ],
)
def test_results_that_are_not_finite_are_not_written(name, place, changed, tmp_path, monkeypatch):
    function = getattr(runner, name)
    monkeypatch.setattr(runner, name, lambda *args, **named: changed(function(*args, **named)))
    with refusal(f"{place} would hold NaN or infinite values: it was not written"):
        runner.run(SMALL, tmp_path / "run")
    assert not list(tmp_path.iterdir())


def with_nan(annealed):
    return annealed._replace(trace=annealed.trace | {"energy": annealed.trace["energy"] * np.nan})


@pytest.mark.slow
@pytest.mark.parametrize(("value", "shown"), [(np.nan, "nan"), (-0.5, "-0.5"), (np.inf, "inf")])
def test_a_schedule_that_gives_no_temperature_is_refused_before_the_first_step(value, shown, tmp_path):
    schedule = lambda step: jnp.where(step < 1_500, 0.1, value)  # noqa: E731
    with refusal(f"run.schedule at step 1,999 must be a finite number of at least 0, not {shown}"):
        runner.run(dataclasses.replace(SMALL, schedule=schedule), tmp_path / "run")
    assert not list(tmp_path.iterdir())


def test_a_folder_has_one_writer(tmp_path):
    with workdirs.only_one(tmp_path), refusal("another command is writing to"):
        runner.run(SMALL, tmp_path)
    assert not list(tmp_path.iterdir())


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["<u8", ">u8", ">i2", ">f4"])
def test_data_of_every_number_type_give_the_same_run(kind, tmp_path):
    digits = datasets.load_dataset("digits").train
    results = []
    for labels, inputs in (("i4", "f4"), (kind, ">f4")):
        np.savez(tmp_path / "own.npz", x=digits.inputs.astype(inputs), y=digits.labels.astype(labels))
        config = dataclasses.replace(SMALL, dataset=str(tmp_path / "own.npz"), num_steps=300)
        results.append(runner.run(config, tmp_path / f"run_{inputs[0]}"))
    assert results[0]["best_energy"] == results[1]["best_energy"]


def test_interruption_leaves_nothing(tmp_path):
    def stop(progress):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        runner.run(SMALL, tmp_path / "a" / "b", on_progress=stop)
    assert not list(tmp_path.iterdir())


def test_a_finished_run_is_not_overwritten_unasked(finished):
    workdir, _ = finished
    before = {path.name: path.read_bytes() for path in workdir.iterdir()}
    with pytest.raises(InputError, match="already holds a run's result; name another workdir, or add --overwrite"):
        runner.run(dataclasses.replace(SMALL, seed=5), workdir)
    assert before == {path.name: path.read_bytes() for path in workdir.iterdir()}


def test_a_write_that_fails_leaves_the_old_files_whole(tmp_path):
    workdirs.write(tmp_path, {"a": b"old", "b": b"old"})
    with pytest.raises(TypeError):
        workdirs.write(tmp_path, {"a": b"new", "b": "no bytes"})  # pyright: ignore
    with pytest.raises(InputError, match="could not be written"):
        workdirs.write(tmp_path, {"a": b"new", "no such folder/b": b"new"})
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == {"a": b"old", "b": b"old"}


def test_workdir_that_cannot_be_made(tmp_path):
    (tmp_path / "file").write_text("")
    for workdir in (tmp_path / "file", tmp_path / "file" / "below"):
        with pytest.raises(InputError, match=r"folder .* cannot be made: .*file is a file"):
            runner.run(SMALL, workdir)
    assert (tmp_path / "file").read_text() == ""
    with pytest.raises(InputError, match="cannot be written: File name too long"):
        runner.run(SMALL, tmp_path / "new" / ("a" * 300))
    (tmp_path / "taken" / "report.html").mkdir(parents=True)
    with pytest.raises(InputError, match=r"report\.html in it is a folder"):
        runner.run(SMALL, tmp_path / "taken")
    assert {path.name for path in tmp_path.rglob("*")} == {"file", "taken", "report.html"}


@pytest.mark.skipif(not Path("/proc/self").is_dir(), reason="needs Linux's /proc, which no one may write to")
def test_workdir_that_cannot_be_written():
    with pytest.raises(InputError, match="folder /proc/sa_jax cannot be written"):
        runner.run(SMALL, Path("/proc/sa_jax"))


def save_weights(path, kernels, **extra):
    named = {f"fc{i}.weight": kernel.T for i, kernel in enumerate(kernels)}
    np.savez(path, **named, **extra)
    return dataclasses.replace(SMALL, weights=str(path))


@pytest.mark.slow
def test_weights_file_fixes_the_layers(tmp_path, rng_key):
    numbers = np.random.default_rng(0)
    kernels = [numbers.normal(size=(64, 7)), numbers.normal(size=(7, 10))]
    result = runner.run(save_weights(tmp_path / "w.npz", kernels), tmp_path / "run")
    # HIDDEN is not used, which is no reason for a warning.
    assert result["sizes"] == [64, 7, 10] and result["warnings"] == []
    with np.load(tmp_path / "run" / "masks.npz") as masks:
        assert masks.files == ["fc0/kernel", "fc1/kernel"] and masks["fc0/kernel"].shape == (64, 7)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("kernels", "extra", "message"),
    [
        ([np.ones((63, 10))], {}, "a network 63-10 does not fit digits, which has 64 features and 10 classes"),
        ([np.ones((64, 9))], {}, "a network 64-9 does not fit digits"),
        ([np.ones((64, 5)), np.ones((6, 10))], {}, "'fc1' takes 6 inputs, but the layer before it has 5 outputs"),
        ([np.full((64, 10), np.nan)], {}, "'fc0.weight' holds NaN or infinite values"),
        ([np.ones((64, 10))], {"fc0.bias": np.ones(9)}, "bias .* does not fit kernel"),
        ([np.ones((64, 10))], {"fc0.gain": np.ones(9)}, "'fc0.gain' is none of"),
        ([np.full((64, 10), 1e38)], {}, "not finite .*: are the weights far too large"),
    ],
)
def test_weights_that_do_not_fit(tmp_path, kernels, extra, message):
    config = save_weights(tmp_path / "w.npz", kernels, **extra)
    with pytest.raises(InputError, match=message):
        runner.run(config, tmp_path / "run")
    assert not (tmp_path / "run").exists()


@pytest.mark.slow
@pytest.mark.parametrize("schedule", ["linear", "cosine", "logarithmic", "constant", lambda step: 1e-3])
def test_every_schedule_runs(schedule, tmp_path):
    config = dataclasses.replace(SMALL, schedule=schedule, move="uniform", num_steps=300, energy="error_rate")
    result = runner.run(config, tmp_path)
    assert result["kept"] == 189 and 0 <= result["best_energy"] <= 1


# Searches for the density


@pytest.mark.parametrize("total", [2, 3, 9, 100, 2_720, 266_200])
@pytest.mark.parametrize("share", [0.002, 0.03, 0.2, 0.55, 0.98])
@pytest.mark.parametrize("dense_passes", [True, False])
def test_the_fewest_branches_that_pass_are_found(total, share, dense_passes):
    threshold, tried = max(1, round(share * total)), []

    def passes(kept):
        assert 1 <= kept < total and kept not in tried
        tried.append(kept)
        return kept >= threshold

    found = runner.fewest_branches(passes, total, dense_passes)
    least = min(runner.MIN_BRANCHES, total // 2)
    if found is not None:
        assert found in tried and found >= threshold
        assert found <= max(runner.SEARCH_RATIO * threshold, threshold + 1, runner.SEARCH_RATIO * least, least + 1)
    elif dense_passes:
        assert total <= max(runner.SEARCH_RATIO * threshold, threshold + 1)
    else:
        assert max(tried) < threshold
    assert len(tried) < 25 and min(tried) >= least


def test_what_passes_only_when_sparse_is_found():
    """As a network whose weights were never trained: dense it fails."""
    found = runner.fewest_branches(lambda kept: 100 <= kept <= 300, 1_000, False)
    assert 100 <= found <= 110


@pytest.fixture
def pretended(monkeypatch):
    """A search whose accuracy depends on the number of branches alone, and what it was called with."""
    dataset = datasets.load_dataset("digits")
    network = mlp.Network((jnp.ones((64, 10)),), (None,))
    real, _ = runner.anneal_density(
        dataclasses.replace(TRAINED, num_steps=10, num_chains=1), dataset, network, lambda p: None, lambda m: None
    )
    densities = []

    def anneal(config, dataset, network, on_progress, on_message, saving):
        on_message("needs memory")
        on_progress(Progress("annealing", 1, 1, 10.0, 1.0, 1.0, 0.1, 0.5))
        densities.append(config.density)
        kept = round(config.density * 640)
        return real._replace(masks=(np.arange(640) < kept)[None], cpu_seconds=2.0), None

    def search(accuracy, **settings):
        def pretend(network, mask, split, activation):
            assert split is dataset.validation
            return accuracy(int(mask.sum()))

        monkeypatch.setattr(runner, "anneal_density", anneal)
        monkeypatch.setattr(runner, "accuracy", pretend)
        config = dataclasses.replace(TRAINED, density=None, **settings)
        progress, messages = [], []
        found, searched = runner.anneal_to_target(config, dataset, network, progress.append, messages.append)
        return int(found.mask.sum()), searched, progress, messages, densities

    return search


@pytest.mark.slow
def test_a_search_takes_the_sparsest_mask_that_reaches_the_target(pretended):
    kept, search, progress, messages, densities = pretended(lambda kept: 0.9 if kept >= 100 else 0.7)
    assert search.target_accuracy == pytest.approx(0.895) and 100 <= kept <= 110
    assert kept == min(probe.kept for probe in search.probes if probe.validation_accuracy == 0.9)
    assert [probe.density for probe in search.probes] == densities and densities[:3] == [0.5, 0.25, 0.125]
    assert [one.probe for one in progress] == list(range(1, len(densities) + 1))
    assert [one.density for one in progress] == densities
    assert messages[0] == "needs memory" and messages.count("needs memory") == 1
    assert messages[1] == "probe 1: 50 % of the branches kept, validation accuracy 90.00 %, target 89.50 %"


def test_a_target_may_be_given_and_met_to_the_last_digit(pretended):
    kept, search, *_ = pretended(lambda kept: kept / 640, target_accuracy=0.3)
    assert search.target_accuracy == 0.3 and 192 <= kept <= 1.1 * 192
    kept, search, *_ = pretended(lambda kept: 0.9 + 0.1 * (kept == 640) - 1e-12, tolerance=0.1)
    assert kept == min(probe.kept for probe in search.probes) <= 9  # all of them pass


def test_where_nothing_reaches_the_target_the_nearest_is_taken(pretended):
    kept, search, *_ = pretended(lambda kept: 0.5 - abs(kept - 80) / 1_000, target_accuracy=0.99)
    assert kept == 80 and not any(search.passes(probe.validation_accuracy) for probe in search.probes)


@pytest.mark.slow
def test_a_search_is_written_like_any_run(tmp_path, monkeypatch):
    monkeypatch.setattr(runner, "SEARCH_RATIO", 1.9)
    monkeypatch.setattr(runner, "MIN_BRANCHES", 200)
    config = dataclasses.replace(TRAINED, density=None, target_accuracy=0.02, num_steps=300, num_chains=1)
    result = runner.run(config, tmp_path / "search")
    assert [probe["kept"] for probe in result["probes"]] == [444, 222] and result["total"] == 888
    assert result["kept"] == 222 and result["density"] == 0.25 and result["target_accuracy"] == 0.02
    assert result["validation_accuracy"] == result["probes"][-1]["validation_accuracy"]
    for name in SECONDS:
        assert result[name] == pytest.approx(sum(probe[name] for probe in result["probes"]))
    assert result["seconds_cover"] == "annealing, all 2 probes together" and not result["warnings"]
    assert "How the density was found" in (tmp_path / "search" / "report.html").read_text()
    # The result is that of a run at the density found.
    given = dataclasses.replace(config, density=0.25, target_accuracy=None)
    assert runner.run(given, tmp_path / "given")["probes"] == []
    for name in ("masks.npz", "trace.csv"):
        assert (tmp_path / "search" / name).read_bytes() == (tmp_path / "given" / name).read_bytes()


@pytest.mark.slow
def test_a_target_that_nothing_reaches_is_warned_of(tmp_path, monkeypatch):
    monkeypatch.setattr(runner, "MIN_BRANCHES", 400)
    config = dataclasses.replace(TRAINED, density=None, target_accuracy=1.0, num_steps=300, num_chains=1)
    result = runner.run(config, tmp_path)
    expected = "no density tried reached the target validation accuracy of 100.00 %: this result came closest"
    assert expected in result["warnings"]


@pytest.mark.slow
def test_another_methods_mask_to_begin_with():
    config = dataclasses.replace(TRAINED, start="snip", num_steps=100, num_chains=1)
    assert config.uses_gradients and config.uses_labels and config.options.start == "magnitude"
    assert not dataclasses.replace(TRAINED, start="wanda_global").uses_gradients
    dataset, messages = datasets.load_dataset("digits"), []
    _, network = runner.load_network(config, dataset)
    annealed, _ = runner.anneal_density(config, dataset, network, lambda progress: None, messages.append)
    kept = int(annealed.mask.sum())
    key = jax.random.fold_in(jax.random.key(config.seed), 3)
    x, y = map(jnp.asarray, dataset.train)
    found = baselines.METHODS["snip"].find(baselines.Task(key, network, x, y, kept, config.activation))
    np.testing.assert_array_equal(annealed.problem.mask, found.mask)
    assert annealed.best_energy.min() < annealed.start_energy
    assert "finding the initial mask with snip" in messages[0]
    with refusal(
        "run.start must be one of score_search, magnitude, saliency, random", "edge_popup", "'woodfisher'"
    ):
        dataclasses.replace(TRAINED, start="woodfisher")


def test_a_run_says_what_evaluates_its_proposals(monkeypatch):
    """With the reason where there is no native code, and with the seconds where it was compiled now."""
    said = []

    def backend(found, wanted="auto"):
        monkeypatch.setattr(calls, "_found", lambda: found)
        landscape._warn_once.cache_clear()
        return runner._with_backend(RunConfig(backend=wanted), said.append).backend

    assert backend(native.Unavailable("no C compiler was found")) == "xla"
    assert said == ["no C compiler was found; XLA evaluates the proposals, at about half the speed"]
    with pytest.raises(InputError, match="backend 'native' is not possible: no C compiler"):
        backend(native.Unavailable("no C compiler was found"), "native")
    assert backend(native.Library("AVX2, gcc 1.0", 0.0)) == "native"
    assert backend(None, "xla") == "xla"
    monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
    with pytest.raises(InputError, match="'native' needs a CPU, but this run would use gpu"):
        backend(native.Library("AVX2, gcc 1.0", 0.0), "native")
    monkeypatch.setattr(jax, "default_backend", lambda: "cpu")
    assert len(said) == 1
    backend(native.Library("AVX2, gcc 1.0", 1.23))
    assert said[1:] == ["compiled native code in 1.2 s, for AVX2, gcc 1.0"]
