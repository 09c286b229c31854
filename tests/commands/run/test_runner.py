"""A run from its settings to its folder: what it leaves, what it never sees, what changes no bit of it."""

import csv
import dataclasses
import io
import json
from pathlib import Path

import jax
import numpy as np
import pytest

from sa_jax import InputError
from sa_jax.commands.run import chains, evaluation, runner
from sa_jax.commands.run.settings import RunConfig
from sa_jax.files import datasets, workdirs
from tests.conftest import refusal

SMALL = RunConfig(
    weights="random", hidden=(12, 8), density=0.2, num_steps=2_000, num_chains=2, num_samples=300, use_bias=True
)
# A last chunk that is shorter than the others.
UNEVEN = dataclasses.replace(SMALL, num_steps=3_500)
FILES = {"masks.npz", "weights.npz", "survival.npz", "operative.gin", "trace.csv", "report.html", "result.json"}
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


def annealed(config, dataset=None, on_progress=lambda progress: None):
    """Anneals as `run` does, without writing anything."""
    dataset = dataset or datasets.load_dataset(config.dataset)
    _, network = runner.load_network(config, dataset)
    x, y = dataset.train.inputs[: config.num_samples], dataset.train.labels[: config.num_samples]
    return chains.anneal_chains(config, network, x, y, kept=100, on_progress=on_progress)


def test_folder_holds_the_whole_run(finished):
    workdir, result = finished
    assert {path.name for path in workdir.iterdir()} == FILES == set(workdirs.FILES)
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
    """Computed anew with numpy alone, as a stranger would who gets only the folder."""
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
    assert result["uses_gradients"] and not finished[1]["uses_gradients"]
    assert result["kept"] == finished[1]["kept"] and result["best_energy"] < result["start_energy"]
    assert "which annealing moved" in result["worth"] and "which annealing moved" not in finished[1]["worth"]
    for folder, of, words in (
        (tmp_path / "moved", result, "changed weights, by annealing alone"),
        (*finished, "no weight was changed"),
    ):
        assert of["moves_weights"] == (words[0] == "c")
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


@pytest.mark.usefixtures("optimized")
def test_chain_count_changes_no_bit_of_a_chain():
    two = annealed(SMALL)
    for num_chains in (1, 3):
        other = annealed(dataclasses.replace(SMALL, num_chains=num_chains))
        shared = min(2, num_chains)
        for name in ("energy", "best_energy", "acceptance"):
            np.testing.assert_array_equal(two.trace[name][:shared], other.trace[name][:shared])
        np.testing.assert_array_equal(two.num_accepted[:shared], other.num_accepted[:shared])
        assert other.best_energy.shape == (num_chains,)


@pytest.mark.usefixtures("optimized")
def test_chunk_length_changes_no_bit(monkeypatch):
    long = annealed(UNEVEN)
    monkeypatch.setattr(chains, "LEAST_CHUNK_STEPS", 300)
    short = annealed(UNEVEN)
    assert len(short.trace["step"]) > len(long.trace["step"])
    np.testing.assert_array_equal(long.mask, short.mask)
    np.testing.assert_array_equal(long.best_energy, short.best_energy)
    np.testing.assert_array_equal(long.num_accepted, short.num_accepted)


def test_nothing_compiles_between_chunks():
    compilations, seen = [], []

    def listen(event, duration, **_):
        if event.endswith("backend_compile_duration"):
            compilations.append(duration)

    jax.monitoring.register_event_duration_secs_listener(listen)
    jax.clear_caches()  # of what other tests have compiled
    annealed(UNEVEN, on_progress=lambda progress: seen.append(len(compilations)))
    assert len(seen) >= 4 and seen[0] > 0
    assert seen[-1] == seen[0]


def test_validation_and_test_samples_play_no_part(tmp_path, monkeypatch):
    """Neither in the pretraining, nor in the search, nor in which chain is taken."""
    config = dataclasses.replace(SMALL, weights="pretrain", pretrain_epochs=2, num_steps=500)
    runner.run(config, tmp_path / "true")
    dataset = datasets.load_dataset("digits")
    garbage = datasets.Split(dataset.test.inputs[::-1] * 7, (dataset.test.labels + 1) % 10)
    monkeypatch.setattr(datasets, "load", lambda *ignored: dataset._replace(validation=garbage, test=garbage))
    runner.run(config, tmp_path / "garbage")
    for name in ("masks.npz", "weights.npz", "trace.csv"):
        assert (tmp_path / "true" / name).read_bytes() == (tmp_path / "garbage" / name).read_bytes()


def test_annealing_beats_magnitude_and_random(tmp_path):
    config = RunConfig(hidden=(16,), density=0.1, num_steps=15_000, num_samples=500, pretrain_epochs=20)
    result = runner.run(config, tmp_path)
    assert result["validation_accuracy"] > 0.75
    assert result["test_accuracy"] > max(result["magnitude_test_accuracy"], result["random_test_accuracy"]) + 0.1
    assert not result["warnings"]


def test_temperatures_far_off_are_warned_of(tmp_path):
    hot = dataclasses.replace(SMALL, schedule="constant", move="uniform", temperature_start=1e9)
    (warning,) = runner.run(hot, tmp_path)["warnings"]
    assert warning == "a share of 1 of the proposals was accepted: the temperatures are too high"
    assert "no mask was better" in evaluation.search_warnings(0.5, False)[0]


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
        with pytest.raises(InputError, match=r"workdir .* cannot be made: .*file is a file"):
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
    with pytest.raises(InputError, match="workdir /proc/sa_jax cannot be written"):
        runner.run(SMALL, Path("/proc/sa_jax"))


def save_weights(path, kernels, **extra):
    named = {f"fc{i}.weight": kernel.T for i, kernel in enumerate(kernels)}
    np.savez(path, **named, **extra)
    return dataclasses.replace(SMALL, weights=str(path))


def test_weights_file_fixes_the_layers(tmp_path, rng_key):
    numbers = np.random.default_rng(0)
    kernels = [numbers.normal(size=(64, 7)), numbers.normal(size=(7, 10))]
    result = runner.run(save_weights(tmp_path / "w.npz", kernels), tmp_path / "run")
    assert result["sizes"] == [64, 7, 10] and result["warnings"] == [
        "HIDDEN = [12, 8] was not used: the weights file has [7]"
    ]
    with np.load(tmp_path / "run" / "masks.npz") as masks:
        assert masks.files == ["fc0/kernel", "fc1/kernel"] and masks["fc0/kernel"].shape == (64, 7)


@pytest.mark.parametrize(
    ("kernels", "extra", "message"),
    [
        ([np.ones((63, 10))], {}, "a network 63-10 does not fit digits, which has 64 features and 10 classes"),
        ([np.ones((64, 9))], {}, "a network 64-9 does not fit digits"),
        ([np.ones((64, 5)), np.ones((6, 10))], {}, "'fc1' takes 6 inputs, but the layer before it has 5 outputs"),
        ([np.full((64, 10), np.nan)], {}, "'fc0.weight' holds NaN or infinite values"),
        ([np.ones((64, 10))], {"fc0.bias": np.ones(9)}, "bias .* does not fit kernel"),
        ([np.ones((64, 10))], {"fc0.gain": np.ones(9)}, "'fc0.gain' is none of"),
        ([np.full((64, 10), 1e38)], {}, "no finite .*: are the weights far too large"),
    ],
)
def test_weights_that_do_not_fit(tmp_path, kernels, extra, message):
    config = save_weights(tmp_path / "w.npz", kernels, **extra)
    with pytest.raises(InputError, match=message):
        runner.run(config, tmp_path / "run")
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"density": 0.0}, r"density must be a number in \(0, 1\], not 0.0"),
        ({"density": 1.01}, "density must be a number"),
        ({"density": float("nan")}, "density must be a number"),
        ({"density": "half"}, "density must be a number"),
        ({"target_accuracy": 0.9}, "target_accuracy = 0.9 and DENSITY = 0.2 exclude each other"),
        (
            {"density": None, "target_accuracy": 95},
            r"target_accuracy must be a number in \(0, 1\], or None, not 95",
        ),
        ({"density": None, "target_accuracy": float("nan")}, "target_accuracy must be a number"),
        ({"density": None, "target_accuracy": True}, "target_accuracy must be a number"),
        ({"tolerance": 1}, "tolerance must be a number from 0 to below 1, not 1"),
        ({"tolerance": None}, "tolerance must be a number"),
        ({"num_steps": 0}, "NUM_STEPS must be a whole number of at least 1, or None to choose it, not 0"),
        ({"num_steps": 2**31}, "NUM_STEPS must be below"),
        ({"num_chains": 0}, "NUM_CHAINS must be a whole number of at least 1"),
        ({"num_chains": True}, "NUM_CHAINS must be a whole number"),
        ({"num_samples": 0.5}, "NUM_SAMPLES must be a whole number"),
        ({"seed": -1}, "SEED must be a whole number from 0"),
        ({"hidden": 300}, "HIDDEN must be a list"),
        ({"hidden": [3, 0]}, "HIDDEN must be a list"),
        ({"dataset": 5}, "DATASET must be text in quotes"),
        ({"weights": None}, "WEIGHTS must be text in quotes"),
        ({"activation": "sine"}, "activation must be one of relu, tanh, gelu"),
        ({"input_std": 0}, "INPUT_STD must be above 0"),
        ({"input_mean": float("inf")}, "INPUT_MEAN must be a finite number"),
        ({"use_bias": 1}, "use_bias must be True or False"),
        ({"initializer": "ones"}, "initializer must be one of"),
        ({"energy": "loss"}, "energy must be one of cross_entropy, kl_to_teacher, error_rate"),
        ({"move": "flip"}, "move must be one of saliency, informed, uniform"),
        ({"move": "informed", "energy": "error_rate"}, "needs an energy with a derivative"),
        ({"budget": None}, "BUDGET must be a whole number of at least 1, not None"),
        ({"num_samples": "all"}, "NUM_SAMPLES must be a whole number of at least 1, or None to choose it"),
        ({"start": "zero"}, "start must be one of"),
        ({"schedule": "exponential"}, "schedule must be one of"),
        ({"logit_scale": 0}, "logit_scale must be a finite number above 0"),
        ({"temperature_start": float("nan")}, "temperature_start must be a finite number"),
    ],
)
def test_bad_settings_are_named(settings, message):
    with pytest.raises(InputError, match=message) as error:
        dataclasses.replace(SMALL, **settings)
    assert "\n" not in str(error.value)


def test_samples_and_steps_are_chosen_by_branches_and_budget():
    config = dataclasses.replace(SMALL, num_steps=None, num_samples=None, budget=1_234_567)
    assert config.sizes(kept=100, available=60_000) == (2_000, 600)
    informed = dataclasses.replace(config, move="informed")
    assert informed.sizes(kept=400, available=60_000) == (16_000, 100)  # at least a block of steps
    assert config.sizes(kept=400, available=500) == (500, 2_400)  # no more samples than there are
    given = dataclasses.replace(config, num_steps=77, num_samples=300)
    assert given.sizes(kept=100, available=60_000) == (300, 77)
    assert given.sizes(kept=100, available=200) == (200, 77)


@pytest.mark.parametrize("schedule", ["linear", "cosine", "logarithmic", "constant", lambda step: 1e-3])
def test_every_schedule_runs(schedule, tmp_path):
    config = dataclasses.replace(SMALL, schedule=schedule, move="uniform", num_steps=300, energy="error_rate")
    result = runner.run(config, tmp_path)
    assert result["kept"] == 189 and 0 <= result["best_energy"] <= 1


def test_chain_batches_walk_alike_up_to_rounding():
    config = dataclasses.replace(SMALL, num_chains=5, num_steps=1_500)
    alone = annealed(config)
    grouped = annealed(dataclasses.replace(config, chain_batch=2))
    assert (alone.chain_batch, grouped.chain_batch) == (1, 2)
    np.testing.assert_array_equal(alone.num_accepted, grouped.num_accepted)
    np.testing.assert_allclose(alone.best_energy, grouped.best_energy, rtol=1e-4)


@pytest.mark.parametrize("value", [0, -1, 1.5, True, "all"])
def test_a_bad_chain_batch_is_refused(value):
    with refusal("chain_batch must be a whole number of at least 1, or None", repr(value)):
        dataclasses.replace(SMALL, chain_batch=value)


def test_a_run_that_does_not_fit_is_refused_before_it_begins(tmp_path, monkeypatch):
    monkeypatch.setattr(chains, "free_memory", lambda device: 20_000)
    messages = []
    with refusal("the run needs", "MB of memory", "0.0 MB are free", "lower NUM_SAMPLES"):
        runner.run(SMALL, tmp_path / "run", on_message=messages.append)
    assert any(message.startswith("needs ") for message in messages)
    assert not (tmp_path / "run").exists()


def test_memory_is_stated_and_does_not_grow_with_the_steps():
    """Against the arrays that must exist on each of the two devices, for a network large enough to tell."""
    dataset = datasets.load_dataset("digits")
    config = dataclasses.replace(SMALL, hidden=(300, 300), weights="random", num_samples=1_000)
    short, long = (annealed(dataclasses.replace(config, num_steps=n), dataset) for n in (1_000, 4_000))
    assert short.memory_bytes == long.memory_bytes
    branches = 64 * 300 + 300 * 300 + 300 * 10
    fixed = 4 * branches * 2 + 4 * 1_000 * 64  # weights and saliency, inputs
    chain = branches * (1 + 1 + 4) + 4 * 1_000 * 610  # mask, best mask, index list, outputs
    assert fixed + chain < short.memory_bytes / 2 < 2.5 * (fixed + chain)


def test_free_memory_is_a_number_of_bytes():
    assert 0 < chains.free_memory(jax.local_devices()[0]) < 2**50
