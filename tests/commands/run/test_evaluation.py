"""What a run says of its mask: against one-shot masks, the other chains and the dense network."""

import dataclasses
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from sa_jax import baselines
from sa_jax.baselines import scores
from sa_jax.commands.run import chains, evaluation, runner
from sa_jax.commands.run.evaluation import worth_sentence
from sa_jax.commands.run.settings import RunConfig
from sa_jax.files import datasets
from sa_jax.networks import mlp
from tests.conftest import refusal

SMALL = RunConfig(hidden=(12,), density=0.15, num_steps=1_000, num_chains=3, num_samples=300, pretrain_epochs=5)


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """A run's folder and what `run` returned."""
    workdir = tmp_path_factory.mktemp("run")
    return workdir, runner.run(SMALL, workdir)


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
    assert f"gained {100 * gain:.2f} points" in result["worth"] and gain > 0
    assert evaluation.ONE_SHOT[result["best_one_shot"]] in result["worth"] and "at this density" in result["worth"]
    kept = result["test_accuracy"] >= result["dense_test_accuracy"] - 0.005
    assert ("is not kept" in result["worth"]) == (not kept)
    assert json.loads((workdir / "result.json").read_text())["worth"] == result["worth"]
    assert result["worth"].split(" (")[0] in (workdir / "report.html").read_text()


def test_a_loss_and_no_gain_are_said_plainly():
    assert worth_sentence(0.0, "OBD", 1.0, 0.5, True, 0.005).startswith(
        "Annealing was not worth it at 50 % of the branches: it gained no test accuracy over the best"
    )
    lost = worth_sentence(-0.0123, "OBD", 1234.0, 0.5, True, 0.005)
    assert "was not worth it" in lost and "it lost 1.23 points of test accuracy to" in lost and "1,234 s" in lost
    assert "not worth" not in worth_sentence(0.0002, "OBD", 1.0, 0.5, True, 0.005)


def test_weights_that_move_and_searches_are_said():
    moved = worth_sentence(0.01, "SNIP", 1.0, 0.5, True, 0.01, moves_weights=True)
    assert "(SNIP, with the weights as they were, which annealing moved)" in moved and "within 1 point at" in moved
    searched = worth_sentence(0.01, "SNIP", 1.0, 0.1, False, 0.005, sparsest=0.123)
    assert "on validation samples the dense accuracy is kept within 0.5 points down to 12.3 % of the" in searched
    assert worth_sentence(0.01, "SNIP", 1.0, 0.1, False, 0.005, 0.1).endswith("down to this density.")


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


def test_one_chain_leaves_no_survival_behind(finished, tmp_path):
    (tmp_path / "survival.npz").write_bytes((finished[0] / "survival.npz").read_bytes())
    (tmp_path / "result.json").write_text("{}")
    (tmp_path / "notes.txt").write_text("mine")
    result = runner.run(dataclasses.replace(SMALL, num_chains=1), tmp_path, overwrite=True)
    assert result["mask_overlap"] is None and "Do the chains agree?" not in (tmp_path / "report.html").read_text()
    assert not (tmp_path / "survival.npz").exists() and (tmp_path / "notes.txt").read_text() == "mine"
    assert "Do the chains agree?" in (finished[0] / "report.html").read_text()


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
    least = min(runner.FEWEST_BRANCHES, total // 2)
    if found is not None:
        assert found in tried and found >= threshold
        assert found <= max(runner.FINENESS * threshold, threshold + 1, runner.FINENESS * least, least + 1)
    elif dense_passes:
        assert total <= max(runner.FINENESS * threshold, threshold + 1)
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
        dataclasses.replace(SMALL, num_steps=10, num_chains=1), dataset, network, lambda p: None, lambda m: None
    )
    densities = []

    def anneal(config, dataset, network, on_progress, on_message, saving):
        on_message("needs memory")
        on_progress(chains.Progress(1, 1, 0.1, 1.0, 1.0, 0.5, 10.0))
        densities.append(config.density)
        kept = round(config.density * 640)
        return real._replace(masks=(np.arange(640) < kept)[None], cpu_seconds=2.0), None

    def search(accuracy, **settings):
        def pretend(network, mask, split, activation):
            assert split is dataset.validation
            return accuracy(int(mask.sum()))

        monkeypatch.setattr(runner, "anneal_density", anneal)
        monkeypatch.setattr(runner, "accuracy", pretend)
        config = dataclasses.replace(SMALL, density=None, **settings)
        progress, messages = [], []
        found, searched = runner.anneal_to_target(config, dataset, network, progress.append, messages.append)
        return int(found.mask.sum()), searched, progress, messages, densities

    return search


def test_a_search_takes_the_sparsest_mask_that_reaches_the_target(pretended):
    kept, search, progress, messages, densities = pretended(lambda kept: 0.9 if kept >= 100 else 0.7)
    assert search.target_accuracy == pytest.approx(0.895) and 100 <= kept <= 110
    assert kept == min(probe.kept for probe in search.probes if probe.validation_accuracy == 0.9)
    assert [probe.density for probe in search.probes] == densities and densities[:3] == [0.5, 0.25, 0.125]
    assert [one.probe for one in progress] == list(range(1, len(densities) + 1))
    assert [one.density for one in progress] == densities
    assert messages[0] == "needs memory" and messages.count("needs memory") == 1
    assert messages[1] == "probe 1: 50 % of the branches kept, validation accuracy 90.00 %, wanted 89.50 %"


def test_a_target_may_be_given_and_met_to_the_last_digit(pretended):
    kept, search, *_ = pretended(lambda kept: kept / 640, target_accuracy=0.3)
    assert search.target_accuracy == 0.3 and 192 <= kept <= 1.1 * 192
    kept, search, *_ = pretended(lambda kept: 0.9 + 0.1 * (kept == 640) - 1e-12, tolerance=0.1)
    assert kept == min(probe.kept for probe in search.probes) <= 9  # all of them pass


def test_where_nothing_reaches_the_target_the_nearest_is_taken(pretended):
    kept, search, *_ = pretended(lambda kept: 0.5 - abs(kept - 80) / 1_000, target_accuracy=0.99)
    assert kept == 80 and not any(search.passes(probe.validation_accuracy) for probe in search.probes)


def test_a_search_is_written_like_any_run(tmp_path, monkeypatch):
    monkeypatch.setattr(runner, "FINENESS", 1.9)
    monkeypatch.setattr(runner, "FEWEST_BRANCHES", 200)
    config = dataclasses.replace(SMALL, density=None, target_accuracy=0.02, num_steps=300, num_chains=1)
    result = runner.run(config, tmp_path / "search")
    assert [probe["kept"] for probe in result["probes"]] == [444, 222] and result["total"] == 888
    assert result["kept"] == 222 and result["density"] == 0.25 and result["target_accuracy"] == 0.02
    assert result["validation_accuracy"] == result["probes"][-1]["validation_accuracy"]
    for name in ("cpu_seconds", "anneal_seconds", "compile_seconds"):
        assert result[name] == pytest.approx(sum(probe[name] for probe in result["probes"]))
    assert result["seconds_cover"] == "annealing, all 2 probes together" and not result["warnings"]
    assert "How the density was found" in (tmp_path / "search" / "report.html").read_text()
    # The result is that of a run at the density found.
    given = dataclasses.replace(config, density=0.25, target_accuracy=None)
    assert runner.run(given, tmp_path / "given")["probes"] == []
    for name in ("masks.npz", "trace.csv"):
        assert (tmp_path / "search" / name).read_bytes() == (tmp_path / "given" / name).read_bytes()


def test_a_target_that_nothing_reaches_is_warned_of(tmp_path, monkeypatch):
    monkeypatch.setattr(runner, "FEWEST_BRANCHES", 400)
    config = dataclasses.replace(SMALL, density=None, target_accuracy=1.0, num_steps=300, num_chains=1)
    result = runner.run(config, tmp_path)
    expected = "no density tried reached the wanted validation accuracy, 100.00 %: this is the nearest"
    assert expected in result["warnings"]


def test_another_methods_mask_to_begin_with():
    config = dataclasses.replace(SMALL, start="snip", num_steps=100, num_chains=1)
    assert config.uses_gradients and config.uses_labels and config.options.start == "magnitude"
    assert not dataclasses.replace(SMALL, start="wanda_global").uses_gradients
    dataset, messages = datasets.load_dataset("digits"), []
    _, network = runner.load_network(config, dataset)
    annealed, _ = runner.anneal_density(config, dataset, network, lambda progress: None, messages.append)
    kept = int(annealed.mask.sum())
    key = jax.random.fold_in(jax.random.key(config.seed), 3)
    x, y = map(jnp.asarray, dataset.train)
    found = baselines.METHODS["snip"].find(baselines.Task(key, network, x, y, kept, config.activation))
    np.testing.assert_array_equal(annealed.problem.mask, found.mask)
    assert annealed.best_energy.min() < annealed.start_energy and "found by snip" in messages[0]
    with refusal("start must be one of magnitude, saliency, random", "edge_popup", "'woodfisher'"):
        dataclasses.replace(SMALL, start="woodfisher")
