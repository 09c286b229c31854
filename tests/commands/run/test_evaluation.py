"""The evaluation of a run: against one-shot masks, the other chains and the dense network."""

import dataclasses
import json

import jax.numpy as jnp
import numpy as np
import pytest

from sa_jax import baselines
from sa_jax.baselines import scores
from sa_jax.commands.run import evaluation, runner
from sa_jax.commands.run.console import summary
from sa_jax.commands.run.evaluation import worth_text
from sa_jax.commands.run.settings import RunConfig
from sa_jax.files import datasets
from sa_jax.networks import mlp
from tests.commands.run.runs import SEARCHED

SHORT = {"num_steps": 1_000, "num_samples": 300, "pretrain_epochs": 5, "rival": None}
SMALL = RunConfig(hidden=(12,), density=0.15, num_chains=3, move="saliency", start="magnitude", **SHORT)


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """A run's folder and what `run` returned."""
    workdir = tmp_path_factory.mktemp("run")
    return workdir, runner.run(SMALL, workdir)


@pytest.mark.slow
def test_the_best_one_shot_mask_is_chosen_on_the_validation_split(finished):
    _, result = finished
    dataset = datasets.load_dataset("digits")
    _, network = runner.load_network(SMALL, dataset)
    x, y = (jnp.asarray(array[:1_000]) for array in dataset.train)
    kept = result["kept"]
    expected = {
        "magnitude_global": scores.magnitude_global(network, kept),
        "magnitude_layerwise": scores.magnitude_layerwise(network, kept),
        "magnitude_erk": scores.magnitude_erk(network, kept),
        "wanda_global": scores.wanda_global(network, x, kept),
        "wanda_per_output": scores.wanda_per_output(network, x, kept),
        "snip": scores.snip(network, x, y, kept),
        "obd": scores.obd(network, x, y, kept),
    }
    assert list(expected) == list(evaluation.ONE_SHOT) == list(result["one_shot_test_accuracy"])

    def accuracy(mask, split):
        logits = mlp.forward(mlp.masked(network, mask), split.inputs)
        return float((np.asarray(logits.argmax(-1)) == split.labels).mean())

    for name, mask in expected.items():
        # A tie may round the other way.
        assert result["one_shot_test_accuracy"][name] == pytest.approx(accuracy(mask, dataset.test), abs=0.003)
    on_validation = {name: accuracy(mask, dataset.validation) for name, mask in expected.items()}
    assert on_validation[result["best_one_shot"]] > max(on_validation.values()) - 0.003
    assert result["magnitude_test_accuracy"] == result["one_shot_test_accuracy"]["magnitude_global"]


def test_the_run_says_whether_it_was_worth_it(finished):
    workdir, result = finished
    gain = result["test_accuracy"] - result["one_shot_test_accuracy"][result["best_one_shot"]]
    error = result["strongest_other"]["standard_error"]
    assert f"gained {100 * gain:.2f} ± {100 * error:.2f} points" in result["worth"] and gain > error > 0
    assert f"({baselines.METHODS[result['best_one_shot']].label}, one-shot)" in result["worth"]
    kept = result["test_accuracy"] >= result["dense_test_accuracy"] - 0.005
    assert ("It does not keep the accuracy" in result["worth"]) == (not kept)
    assert json.loads((workdir / "result.json").read_text())["worth"] == result["worth"]
    assert result["worth"].split(" (")[0] in (workdir / "report.html").read_text()


@pytest.mark.parametrize(
    ("difference", "said"),
    [
        (0.0, "is level with the strongest other mask (OBD): the difference is +0.00 ± 0.50 points"),
        (0.0049, "is level with the strongest other mask (OBD): the difference is +0.49 ± 0.50 points"),
        (-0.0049, "is level with the strongest other mask (OBD): the difference is -0.49 ± 0.50 points"),
        (0.0051, "annealing gained 0.51 ± 0.50 points of test accuracy over the strongest other mask (OBD)"),
        (-0.0123, "it was not worth it: annealing lost 1.23 ± 0.50 points of test accuracy to the strongest"),
    ],
)
def test_gain_loss_and_no_difference_are_said_plainly(difference, said):
    text = worth_text(difference, 0.005, "OBD", 1234.0, 0.5, True, 0.005)
    assert said in text and "1,234 s" in text and ("not worth" in text) == (difference < -0.005)


def test_weights_that_move_and_searches_are_said():
    moved = worth_text(0.01, 0.001, "SNIP", 1.0, 0.5, True, 0.01, moves_weights=True)
    assert "(SNIP, which keeps the original weights, while annealing moved them)" in moved
    assert "within 1 point." in moved
    searched = worth_text(0.01, 0.001, "SNIP", 1.0, 0.1, False, 0.005, sparsest=0.123)
    assert "accuracy of the dense network within 0.5 points down to 12.3 % of the branches." in searched
    assert worth_text(0.01, 0.001, "SNIP", 1.0, 0.1, False, 0.005, 0.1).endswith("down to this density.")
    both = worth_text(0.0, 0.001, "SNIP", 1.0, 0.1, False, 0.005, searched=True)
    assert "score search and annealing are level with the strongest other mask" in both


def test_standard_errors_by_hand():
    right = np.array([True, True, True, False])
    assert evaluation.standard_error(right) == pytest.approx(np.sqrt(0.75 * 0.25 / 4))
    # Of masks whose accuracies are averaged: from the mean of each sample.
    assert evaluation.standard_error(np.array([1.0, 0.5, 0.5, 0.0])) == pytest.approx(np.sqrt(0.125 / 4))
    other = np.array([False, False, True, True])
    found = evaluation.paired_difference(right, other)
    # Two samples against one: the root of 3 - (2 - 1)**2 / 4, over 4.
    assert found == (0.25, pytest.approx(np.sqrt(3 - 1 / 4) / 4), 2, 1)
    assert evaluation.paired_difference(right, right) == (0.0, 0.0, 0, 0)


def test_errors_and_differences_of_a_run_are_those_of_its_masks(finished):
    workdir, result = finished
    dataset = datasets.load_dataset("digits")
    _, network = runner.load_network(SMALL, dataset)
    with np.load(workdir / "masks.npz") as masks:
        mask = jnp.concatenate([masks[name].ravel() for name in masks])
    right = evaluation.correct(network, mask, dataset.test, "relu")
    samples, accuracy = len(dataset.test.labels), result["test_accuracy"]
    assert (right.mean(), len(right)) == (pytest.approx(accuracy, abs=0.003), samples)
    assert (result["num_test_samples"], result["num_validation_samples"]) == (
        samples,
        len(dataset.validation.labels),
    )
    errors = result["standard_errors"]
    assert errors["test_accuracy"] == pytest.approx(np.sqrt(accuracy * (1 - accuracy) / samples))
    best = result["one_shot_test_accuracy"][result["best_one_shot"]]
    assert errors["best_one_shot_test_accuracy"] == pytest.approx(np.sqrt(best * (1 - best) / samples))
    assert "rival_test_accuracy" not in errors and result["rival"] is None
    other = result["strongest_other"]
    assert other["difference"] == pytest.approx(accuracy - best)
    assert other["only_first"] - other["only_second"] == pytest.approx(samples * other["difference"])
    of_chains = result["test_accuracy_per_chain"]
    winner = int(np.argmin(result["best_energy_per_chain"]))
    assert len(of_chains) == 3 and of_chains[winner] == accuracy


def test_the_strongest_other_mask_may_be_the_rival(monkeypatch):
    """A method that finds the annealed mask itself: nobody is better than the other."""
    dataset = datasets.load_dataset("digits")
    _, network = runner.load_network(SMALL, dataset)
    annealed, _ = runner.anneal_density(SMALL, dataset, network)
    same = baselines.Found(jnp.asarray(annealed.mask), network)
    method = baselines.METHODS["edge_popup_momentum"]._replace(find=lambda task: same)
    monkeypatch.setitem(baselines.METHODS, "edge_popup_momentum", method)
    config = dataclasses.replace(SMALL, rival="edge_popup_momentum")
    result = evaluation.evaluate(config, dataset, network, network, annealed, stop=lambda: True)
    other = result["strongest_other"]
    assert other["name"] == "Edge-popup, momentum, in as much time" and other["difference"] == 0
    assert "level with the strongest other mask (Edge-popup, momentum, in as much time)" in result["worth"]
    assert result["rival"]["test_accuracy"] == result["test_accuracy"] and not result["rival"]["reproducible"]
    assert result["standard_errors"]["rival_test_accuracy"] == result["standard_errors"]["test_accuracy"]
    plain = evaluation.evaluate(SMALL, dataset, network, network, annealed)
    for name in plain.keys() - {"rival", "strongest_other", "standard_errors", "worth"}:
        assert plain[name] == result[name], name


def test_survival_and_overlap_are_those_of_the_chains(finished):
    workdir, result = finished
    with np.load(workdir / "survival.npz") as survival, np.load(workdir / "masks.npz") as masks:
        assert survival.files == masks.files and all(survival[name].dtype == np.float32 for name in survival)
        shares = np.concatenate([survival[name].ravel() for name in survival])
        best = np.concatenate([masks[name].ravel() for name in masks])
    counts = np.rint(3 * shares)
    np.testing.assert_allclose(3 * shares, counts, atol=1e-6)
    assert counts.sum() == 3 * result["kept"] and (counts[best] > 0).all()
    dataset = datasets.load_dataset("digits")
    _, network = runner.load_network(SMALL, dataset)
    annealed, _ = runner.anneal_density(SMALL, dataset, network, lambda progress: None, lambda message: None)
    np.testing.assert_array_equal(annealed.masks.sum(0), counts)
    np.testing.assert_array_equal(annealed.mask, best)
    sets = [set(np.flatnonzero(mask)) for mask in annealed.masks]
    pairs = [(sets[0], sets[1]), (sets[0], sets[2]), (sets[1], sets[2])]
    alike = [len(one & other) / len(one | other) for one, other in pairs]
    found = result["mask_overlap"]
    assert found["jaccard_mean"] == pytest.approx(np.mean(alike)) and found["jaccard_min"] == min(alike) < 1
    assert found["hamming_max"] == pytest.approx(max(len(a ^ b) for a, b in pairs) / (2 * result["kept"]))
    start = set(np.flatnonzero(np.asarray(scores.magnitude_global(network, result["kept"]))))
    with_start = np.mean([len(one & start) / len(one | start) for one in sets])
    assert found["jaccard_with_start"] == pytest.approx(with_start)
    energies = result["best_energy_per_chain"]
    assert result["best_energy_spread"] == pytest.approx(max(energies) - min(energies))
    assert 0 < result["effective_kept"] <= result["kept"]


@pytest.mark.slow
def test_one_chain_leaves_no_survival_behind(finished, tmp_path):
    (tmp_path / "survival.npz").write_bytes((finished[0] / "survival.npz").read_bytes())
    (tmp_path / "result.json").write_text("{}")
    (tmp_path / "notes.txt").write_text("mine")
    result = runner.run(dataclasses.replace(SMALL, num_chains=1), tmp_path, overwrite=True)
    assert result["mask_overlap"] is None and "Do the chains agree?" not in (tmp_path / "report.html").read_text()
    assert not (tmp_path / "survival.npz").exists() and (tmp_path / "notes.txt").read_text() == "mine"
    assert "Do the chains agree?" in (finished[0] / "report.html").read_text()


@pytest.mark.slow
def test_temperatures_far_off_are_warned_of(tmp_path):
    hot = dataclasses.replace(SMALL, weights="random", schedule="constant", move="uniform", temperature_start=1e9)
    (warning,) = runner.run(hot, tmp_path)["warnings"]
    assert warning == "100 % of the proposals were accepted: the temperatures are too high"
    assert "no mask was better" in evaluation.search_warnings(0.5, False)[0]


@pytest.mark.slow
def test_the_parts_of_a_run_are_measured(tmp_path):
    result = runner.run(dataclasses.replace(SEARCHED, density=0.3), tmp_path)
    largest, search, annealing = result["parts"]
    assert [part["part"] for part in result["parts"]] == ["largest weights", "score search", "annealing"]
    assert largest["test_accuracy"] == result["magnitude_test_accuracy"] and largest["energy"] is None
    assert search["energy"] == result["start_energy"] >= annealing["energy"] == result["best_energy"]
    for split in ("validation_accuracy", "test_accuracy"):
        assert largest[split] < search[split] <= 1 and annealing[split] == result[split]
    assert sum(part["cpu_seconds"] for part in result["parts"]) == pytest.approx(result["cpu_seconds"])
    assert search["cpu_seconds"] > 0 and annealing["cpu_seconds"] > 0
    assert (result["start"], result["score_steps"], result["estimates"]) == ("score_search", 350, "forward")
    assert (result["patience"], result["planned_steps"]) == (0.2, 1_000) and not result["uses_gradients"]
    assert result["seconds_cover"] == "score search and annealing" and result["search_seconds"] > 0
    assert "Score search and annealing took" in result["worth"]
    assert ", searched, compiled and annealed in " in summary(result, tmp_path)
    page = (tmp_path / "report.html").read_text()
    assert "What each part gained" in page and "Score search and then annealing chose branches" in page


def test_annealing_alone_has_no_parts(finished):
    workdir, result = finished
    assert result["parts"] == [] and result["score_steps"] == 0 and result["search_seconds"] == 0
    assert result["num_steps"] == result["planned_steps"] == 1_000 and result["seconds_cover"] == "annealing"
    assert "What each part gained" not in (workdir / "report.html").read_text()
