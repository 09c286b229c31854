"""A comparison: what it writes, that it resumes, that a cell repeats, and what it refuses."""

import csv
import json
from dataclasses import replace

import jax.numpy as jnp
import numpy as np
import pytest

from sa_jax.baselines import Found
from sa_jax.commands.compare import host as compare
from sa_jax.commands.compare import settings
from sa_jax.commands.compare.settings import Cell
from sa_jax.commands.run.settings import RunConfig
from sa_jax.files import datasets, npz, workdirs
from sa_jax.networks.mlp import Network
from tests.commands.compare.configs import RUN, config_of
from tests.conftest import refusal


@pytest.fixture(scope="module")
def done(tmp_path_factory):
    workdir, told = tmp_path_factory.mktemp("compared"), []
    rows = compare.compare(config_of(), workdir, 2, "sa-jax compare", "compare.seeds = [0, 1]", told.append)
    return workdir, rows, told


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_writes_one_row_per_cell_and_everything_drawn(done):
    workdir, rows, told = done
    assert [progress.done for progress in told] == list(range(1, 9)) and told[0].total == 8
    with open(workdir / "results.csv") as file:
        read = list(csv.DictReader(file))
    assert [row["method"] for row in read] == [row["method"] for row in rows]
    assert [row["method"] for row in read[:2]] == ["dense", "dense"]
    assert set(grid_fields := compare.FIELDS) == set(read[0]) and len(grid_fields) == len(read[0])
    annealed = next(row for row in read if row["method"] == "anneal")
    assert (annealed["kept"], annealed["total"], annealed["sparsity"]) == ("59", "592", "0.9")
    assert (annealed["uses_gradients"], annealed["moves_weights"]) == ("False", "False")
    assert int(annealed["effective_kept"]) <= 59 and float(annealed["cpu_seconds"]) > 0
    assert annealed["num_evaluations"] == "200"
    for name in ("results.md", "report.html", "paired.csv", "operative.gin"):
        assert (workdir / name).stat().st_size
    assert "Was annealing worth it on 64-8-10, digits" in (workdir / "results.md").read_text()


def test_says_where_a_method_is_impossible(done):
    workdir, rows, _ = done
    impossible = [row for row in rows if row["method"] == "smaller_dense"]
    assert all(
        row["test_accuracy"] is None and "no dense network of 64 inputs" in row["reason"] for row in impossible
    )
    assert "smaller_dense" not in (workdir / "paired.csv").read_text()


def test_paired_test_is_of_the_saved_images(done):
    workdir, rows, _ = done
    with open(workdir / "paired.csv") as file:
        (row,) = csv.DictReader(file)
    mean = {
        method: np.mean([r["test_accuracy"] for r in rows if r["method"] == method])
        for method in ("anneal", "magnitude_global")
    }
    assert row["reference"] == "anneal"
    assert float(row["difference"]) == pytest.approx(mean["anneal"] - mean["magnitude_global"])


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_skips_what_is_done_and_measures_again_what_changed(done):
    workdir, rows, _ = done
    before = {path.name: path.stat().st_mtime_ns for path in (workdir / "cells").glob("*.json")}
    told = []
    assert compare.compare(config_of(), workdir, 2, on_progress=told.append) == rows
    assert told == [] and before == {p.name: p.stat().st_mtime_ns for p in (workdir / "cells").glob("*.json")}
    changed = config_of(annealers={"anneal": {"move": "informed", "num_steps": 100}}, seeds=[0])
    compare.compare(changed, workdir, 1, on_progress=told.append)
    assert [progress.row["method"] for progress in told] == ["anneal"]
    # A cell measured again, alone and in another process, has the same figures.
    cell = Cell("digits", "pretrain", (8,), "anneal", 0.1, 0)
    again = compare.measure(config_of(), workdir, cell)
    first = next(row for row in rows if row["method"] == "anneal" and row["seed"] == 0)
    assert {k: v for k, v in again.items() if k != "cpu_seconds"} == {
        k: v for k, v in first.items() if k != "cpu_seconds"
    }


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_score_search_and_its_rival_minimise_the_energy_of_annealing(tmp_path):
    """They use its scale of the logits."""
    methods = ["score_search", "score_search_gradient", "edge_popup_momentum"]
    masks_of = []
    for scale in (None, 0.1):
        workdir, run = tmp_path / str(scale), replace(RUN, logit_scale=scale)
        config = config_of(methods=methods, seeds=[0], run=run, epochs=3, score_steps=100)
        rows = {row["method"]: row for row in compare.compare(config, workdir, 1)}
        assert [row["kept"] for row in rows.values()] == [592, 59, 59, 59]
        uses = [(rows[name]["uses_labels"], rows[name]["uses_gradients"]) for name in methods]
        assert uses == [(True, False), (True, True), (True, True)]
        assert not any(rows[name]["moves_weights"] for name in methods)
        cells = [cell for cell in config.cells() if cell.method in methods]
        masks_of.append([npz.read_npz(workdir / "cells" / f"{cell.name}.npz")["mask"] for cell in cells])
    assert not any(map(np.array_equal, *masks_of))


def test_the_page_fills_while_cells_are_measured(tmp_path, monkeypatch):
    """Cells whose figures are known at once, the last of which is stopped."""
    written = []

    def measure(worker, config, workdir, cell):
        written.append((workdir / "report.html").read_text() if (workdir / "report.html").exists() else "")
        if len(written) == 4:
            raise KeyboardInterrupt
        row = dict.fromkeys(compare.FIELDS, 0.5) | cell._asdict() | {"network": "64-8-10", "sparsity": 0.9}
        row |= dict.fromkeys(("uses_labels", "uses_gradients", "moves_weights"), False) | {"total": 592}
        row |= {"kept_per_layer": [50, 9], "total_per_layer": [512, 80]}
        row.pop("hidden")
        made = {"machine": "a processor", "jax": "0.10.2"}
        (workdir / "cells" / f"{cell.name}.json").write_text(json.dumps({"made": made}))
        return row

    monkeypatch.setattr(compare.Worker, "measure", measure)
    monkeypatch.setattr(compare, "PAGE_SECONDS", 0.0)
    monkeypatch.setattr(compare, "PAGE_SHARE", 0)
    config = config_of(methods=["magnitude_global", "anneal"])
    with pytest.raises(KeyboardInterrupt):
        compare.compare(config, tmp_path, 1, "sa-jax compare", "compare.seeds = [0, 1]")
    assert written[0] == "" and "of 6 cells are measured" in written[-1]
    stays = (tmp_path / "report.html").read_text()
    assert "3 of 6 cells are measured" in stays and "64-8-10" in stays and "a processor" in stays
    assert (tmp_path / "operative.gin").read_text() == "compare.seeds = [0, 1]"


def test_ways_to_anneal_say_how_they_begin():
    ways = {
        "anneal": {},
        "anneal_alone": {"start": "magnitude"},
        "anneal_random_start": {"start": "random"},
        "anneal_gradient": {"estimates": "gradient"},
        "anneal_nudged": {"nudge_share": 0.1},
        "anneal_popup": {"start": "edge_popup"},
        "hot": {"temperature_start": 0.1},
    }
    names = compare.names_of(config_of(annealers=ways))
    assert names == {
        "anneal": "Score search, then annealing",
        "anneal_alone": "Annealing alone",
        "anneal_random_start": "Anneal random start (annealing alone)",
        "anneal_gradient": "Score search, then annealing, derivative",
        "anneal_nudged": "Score search, then annealing, nudged weights",
        "anneal_popup": "Edge-popup, then annealing",
        "hot": "Hot (score search, then annealing)",
    }
    alone = compare.names_of(config_of(annealers={"anneal": {"start": "magnitude"}}))
    assert alone == {"anneal": "Annealing alone"}


def test_a_damaged_cell_counts_as_not_there(tmp_path):
    (tmp_path / "cells").mkdir()
    cell = Cell("digits", "pretrain", (8,), "anneal", 0.1, 0)
    path = tmp_path / "cells" / f"{cell.name}.json"
    assert compare.saved_row(config_of(), tmp_path, cell) is None
    path.write_text('{"digest": ')
    assert compare.saved_row(config_of(), tmp_path, cell) is None
    (tmp_path / "networks").mkdir()
    network = tmp_path / "networks" / f"{cell.network_name}.npz"
    network.write_bytes(npz.npz_bytes({"Dense_0/kernel": np.ones((64, 10), np.float32)}))
    saved = {"digest": settings.digest(config_of(), cell), "row": {"kept": 1}}
    path.write_text(json.dumps(saved | {"network": compare._network_hash(tmp_path, cell)}))
    assert compare.saved_row(config_of(), tmp_path, cell) is None  # without its arrays
    path.with_suffix(".npz").write_bytes(npz.npz_bytes({"correct": np.zeros(1, np.uint8)}))
    assert compare.saved_row(config_of(), tmp_path, cell) == {"kept": 1}
    path.write_text(path.read_text().replace('"kept": 1', '"kept": NaN'))
    assert compare.saved_row(config_of(), tmp_path, cell) is None
    path.write_text(path.read_text().replace('"kept": NaN', '"kept": 1'))
    assert compare.saved_row(config_of(run=RunConfig(num_steps=300)), tmp_path, cell) is None
    network.write_bytes(npz.npz_bytes({"Dense_0/kernel": np.zeros((64, 10), np.float32)}))
    assert compare.saved_row(config_of(), tmp_path, cell) is None  # it pruned another network


def test_weights_of_every_kind_of_file_are_part_of_a_cell(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    for suffix in (".npz", ".safetensors", ".pt", ".keras", ".weights.h5"):
        config = config_of(weights=[f"~/model{suffix}"])
        cell = Cell("digits", f"~/model{suffix}", (8,), "anneal", 0.1, 0)
        digests = []
        for content in (b"one", b"other"):
            (tmp_path / f"model{suffix}").write_bytes(content)
            digests.append(settings.digest(config, cell))
        assert len(set(digests)) == 2, suffix


def test_a_loss_that_is_not_finite_is_left_out():
    """As of a method that trains, and diverges."""
    dataset = datasets.load_dataset("digits")
    network = Network((jnp.full((64, 10), jnp.nan),), (None,))
    figures, _ = compare._figures(RunConfig(), dataset, Found(jnp.ones(640, bool), network))
    assert figures["test_loss"] is None and 0 <= figures["test_accuracy"] <= 1
    workdirs.check_finite("cell", figures)


def test_its_folder_has_one_writer_and_is_removed_if_nothing_was_measured(tmp_path):
    config = config_of(datasets={"nothing": [0, 1]})
    with refusal("unknown dataset"):
        compare.compare(config, tmp_path / "new", 1)
    assert not list(tmp_path.iterdir())
    with workdirs.only_one(tmp_path), refusal("another command is writing to"):
        compare.compare(config, tmp_path, 1)
    assert not list(tmp_path.iterdir())


@pytest.mark.slow
def test_an_error_in_a_worker_reaches_the_user(tmp_path):
    with refusal("lacking.npz", "digits-lacking.npz-8-0-dense"):
        compare.compare(config_of(weights=["lacking.npz"]), tmp_path / "new", 1)
    assert not list(tmp_path.iterdir())


@pytest.mark.slow
def test_a_density_too_low_for_a_network_is_refused_before_anything_is_pruned(tmp_path):
    with refusal("compare.densities, network 64-8-10: density 1e-05 keeps 0 of 592"):
        compare.compare(config_of(densities=[0.1, 1e-5], seeds=[0]), tmp_path, 1)
    dense = Cell("digits", "pretrain", (8,), "dense", 1.0, 0).name
    assert {path.stem for path in (tmp_path / "cells").iterdir()} == {dense}


@pytest.mark.timeout(600)
def test_without_a_reference_there_is_nothing_to_compare_with(done):
    """Without a way to anneal the first method is the reference; with the dense network alone there is no test."""
    workdir, _, _ = done
    for methods in (["dense"], ["magnitude_global"], ["smaller_dense", "magnitude_global"]):
        config = config_of(methods=methods)
        assert compare.paired_rows(config, workdir) == []
        rows = [compare.saved_row(config, workdir, cell) for cell in config.cells()]
        assert compare.worth_texts(config, rows) == []


def test_worth_names_the_best_other_search_by_its_validation_accuracy():
    """Not by its test accuracy, none that moves weights, and no search of our own."""
    accuracies = {"dense": (0.95, 0.95), "snip": (0.5, 0.5), "anneal": (0.9, 0.9)}
    accuracies |= {"magnitude_finetuned": (0.94, 0.94), "edge_popup": (0.89, 0.88), "movement": (0.8, 0.93)}
    accuracies |= {"score_search": (0.93, 0.92), "score_search_gradient": (0.92, 0.91)}
    common = {"dataset": "digits", "network": "64-8-10", "weights": "pretrain", "cpu_seconds": 7.0}
    rows = [
        common
        | {"method": method, "density": 1.0 if method == "dense" else 0.1, "test_accuracy": test}
        | {"validation_accuracy": validation, "moves_weights": method == "magnitude_finetuned"}
        for method, (validation, test) in accuracies.items()
    ]
    (sentence,) = compare.worth_texts(config_of(methods=list(accuracies)[1:]), rows)
    assert "best one-shot mask: +40.0 at 10 % kept (SNIP)" in sentence
    assert "best other search, Edge-popup (7 s): +2.0 at 10 % kept. It took 7 s of CPU time." in sentence
    assert "It keeps the dense accuracy, within 0.5 points on validation samples, at no density" in sentence
