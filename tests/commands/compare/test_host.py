"""A comparison: what it writes, that it goes on where it stopped, that a cell repeats, and what it refuses."""

import csv
import json

import numpy as np
import pytest

from sa_jax import cli
from sa_jax.commands.compare import grid, significance
from sa_jax.commands.compare import host as compare
from sa_jax.commands.compare.grid import Cell, CompareConfig
from sa_jax.commands.run.settings import RunConfig
from sa_jax.files.npz import npz_bytes
from tests.conftest import refusal

RUN = RunConfig(num_steps=200, num_chains=1, num_samples=100, pretrain_epochs=3)


def config_of(**changes):
    settings = {
        "methods": ["magnitude_global", "anneal", "smaller_dense"],
        "densities": [0.1],
        "seeds": [0, 1],
        "datasets": {"digits": [0.0, 1.0]},
        "hidden": [[8]],
        "annealers": {"anneal": {"move": "informed"}},
        "run": RUN,
        "epochs": 1,
    }
    return CompareConfig(**settings | changes)


@pytest.fixture(scope="module")
def done(tmp_path_factory):
    workdir, told = tmp_path_factory.mktemp("compared"), []
    rows = compare.compare(config_of(), workdir, 2, "sa-jax compare", "compare.seeds = [0, 1]", told.append)
    return workdir, rows, told


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
    assert (annealed["uses_gradients"], annealed["moves_weights"]) == ("True", "False")
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


@pytest.mark.timeout(600)
def test_skips_what_is_done_and_measures_anew_what_changed(done):
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


def test_a_damaged_cell_counts_as_not_there(tmp_path):
    (tmp_path / "cells").mkdir()
    cell = Cell("digits", "pretrain", (8,), "anneal", 0.1, 0)
    path = tmp_path / "cells" / f"{cell.name}.json"
    assert compare.saved_row(config_of(), tmp_path, cell) is None
    path.write_text('{"digest": ')
    assert compare.saved_row(config_of(), tmp_path, cell) is None
    (tmp_path / "networks").mkdir()
    network = tmp_path / "networks" / f"{cell.network_name}.npz"
    network.write_bytes(npz_bytes({"Dense_0/kernel": np.ones((64, 10), np.float32)}))
    saved = {"digest": grid.digest(config_of(), cell), "row": {"kept": 1}}
    path.write_text(json.dumps(saved | {"network": compare._network_hash(tmp_path, cell)}))
    assert compare.saved_row(config_of(), tmp_path, cell) is None  # without its arrays
    path.with_suffix(".npz").write_bytes(npz_bytes({"correct": np.zeros(1, np.uint8)}))
    assert compare.saved_row(config_of(), tmp_path, cell) == {"kept": 1}
    assert compare.saved_row(config_of(run=RunConfig(num_steps=300)), tmp_path, cell) is None
    network.write_bytes(npz_bytes({"Dense_0/kernel": np.zeros((64, 10), np.float32)}))
    assert compare.saved_row(config_of(), tmp_path, cell) is None  # it pruned another network


def test_an_error_in_a_worker_reaches_the_user(tmp_path):
    with refusal("lacking.npz", "digits-lacking.npz-8-0-dense"):
        compare.compare(config_of(weights=["lacking.npz"]), tmp_path, 1)
    assert not list((tmp_path / "cells").iterdir())


def test_a_density_too_low_for_a_network_is_refused_before_anything_is_pruned(tmp_path):
    with refusal("compare.densities, network 64-8-10: density 1e-05 keeps 0 of 592"):
        compare.compare(config_of(densities=[0.1, 1e-5], seeds=[0]), tmp_path, 1)
    dense = Cell("digits", "pretrain", (8,), "dense", 1.0, 0).name
    assert {path.stem for path in (tmp_path / "cells").iterdir()} == {dense}


def test_effort_counts_where_a_method_finds_the_start():
    """The figures of a start found by training depend on its epochs; those of other starts do not."""
    found_first = {"anneal": {}, "anneal_from_edge_popup": {"start": "edge_popup"}}
    methods = list(found_first)
    short, long = (config_of(methods=methods, annealers=found_first, epochs=epochs) for epochs in (1, 2))
    same = [
        grid.digest(short, cell) == grid.digest(long, cell)
        for cell in (Cell("digits", "pretrain", (8,), method, 0.1, 0) for method in methods)
    ]
    assert same == [True, False]


@pytest.mark.parametrize(
    ("changes", "parts"),
    [
        ({"methods": []}, ["compare.methods must be a list"]),
        ({"methods": ["magnitude"]}, ["'magnitude' is none of dense, anneal, random"]),
        ({"methods": ["snip", "snip"]}, ["compare.methods has an entry twice"]),
        ({"densities": [0.1, 2.0]}, ["density must be a number in (0, 1], not 2.0"]),
        ({"seeds": [-1]}, ["SEED"]),
        ({"datasets": {"digits": 1.0}}, ["compare.datasets: 'digits' must have [mean, std]"]),
        ({"annealers": {"snip": {}}}, ["'snip' is the name of another method"]),
        ({"annealers": {"anneal": {"moves": "uniform"}}}, ["'moves' is no setting of run"]),
        ({"annealers": {"anneal": {"move": "up"}}}, ["anneal at density 0.1", "move must be one of"]),
        ({"annealers": {"anneal": {"density": 0.5}}}, ["'density' is set for all methods alike"]),
        ({"annealers": {"a/b": {}}}, ["names are in snake case"]),
        ({"annealers": {"anneal": 3}}, ["must have a dictionary of settings, not 3"]),
        ({"run": RunConfig(seed=5)}, ["run.seed has no effect in a comparison"]),
        ({"run": 3}, ["compare.run must be @run()"]),
        ({"hidden": [32, 16]}, ["compare.hidden must be a list of lists"]),
        ({"densities": [0.1, None]}, ["density must be a number in (0, 1], not None"]),
        ({"densities": [1, 1.0]}, ["compare.densities has an entry twice"]),
        ({"datasets": {"digits": ["a", 1]}}, ["'digits' must have [mean, std]"]),
        ({"epochs": 0}, ["compare.epochs"]),
        ({"tolerance": 1.5}, ["compare.tolerance"]),
    ],
)
def test_refuses(changes, parts):
    with refusal(*parts):
        config_of(**changes)


def test_command_line(tmp_path, capsys):
    shown = ["compare", "--gin_file=configs/compare_digits.gin", "--dry_run"]
    assert cli.main(shown) == 0
    assert "compare.methods" in capsys.readouterr().out
    assert cli.main(shown[:2]) == 2
    assert "--workdir=DIR is missing" in capsys.readouterr().err
    assert cli.main([*shown, "--gin_bindings=compare.epoch=3"]) == 2
    assert "compare has no setting 'epoch'; did you mean epochs?" in capsys.readouterr().err
    assert cli.main([*shown, "--gin_bindings=SEED=3"]) == 2
    assert "SEED is bound, but nothing uses it; did you mean SEEDS?" in capsys.readouterr().err
    assert cli.main([*shown[:2], f"--workdir={tmp_path}", "--jobs=0"]) == 2
    assert "--jobs must be at least 1" in capsys.readouterr().err


@pytest.mark.parametrize(
    "name",
    [
        "compare_digits",
        "compare_mlpnet",
        "compare_lenet300",
        "compare_lenet300_polish",
        "paper",
        "paper_schedules",
    ],
)
def test_configs_hold_what_can_be_compared(name):
    config = cli.load_config(f"configs/{name}.gin", [], cli.gin_compare, cli.COMPARE_MACROS)
    assert len({cell.name for cell in config.cells()}) == len(list(config.cells()))


@pytest.mark.parametrize("seeds", [1, 3, 5])
def test_paired_test_covers_what_it_says(seeds):
    """Without a difference at most about 1 in 20 is called real, whatever seeds and samples have in common."""
    called, rng = 0, np.random.default_rng(0)
    for _ in range(300):
        hard, of_seed = rng.random(400), 0.1 * rng.standard_normal((2, seeds, 1)) * (seeds > 1)
        right = rng.random((2, seeds, 400)) + 0.5 * hard + of_seed < 0.9
        called += significance.paired_test(*right).p_value < 0.05
    assert 1 <= called <= 27


def test_paired_test_finds_a_difference():
    rng = np.random.default_rng(0)
    better = rng.random((4, 2000)) < 0.9
    test = significance.paired_test(better, better & (rng.random((4, 2000)) < 0.9))
    assert test.difference == pytest.approx(0.09, abs=0.02) and test.p_value < 1e-3


def test_paired_test_of_one_method_with_itself():
    right = np.array([[True, False, True]])
    assert significance.paired_test(right, right) == (0.0, 0.0, 1.0)


def test_networks_of_other_paths_have_other_files():
    one, other = (Cell("digits", f"{folder}/w.npz", (8,), "anneal", 0.1, 0) for folder in "ab")
    assert one.name != other.name and one.network_name != other.network_name
    assert one.name != one._replace(density=0.1 + 1e-9).name


@pytest.mark.timeout(600)
def test_nothing_to_hold_others_against(done):
    """Without a way to anneal the first method is the reference; with the dense network alone there is no test."""
    workdir, _, _ = done
    for methods in (["dense"], ["magnitude_global"], ["smaller_dense", "magnitude_global"]):
        config = config_of(methods=methods)
        assert compare.paired_rows(config, workdir) == []
        rows = [compare.saved_row(config, workdir, cell) for cell in config.cells()]
        assert compare.worth_sentences(config, rows) == []


def test_worth_names_the_best_other_search_by_its_validation_accuracy():
    """Not by its test accuracy, and none that moves weights."""
    accuracies = {"dense": (0.95, 0.95), "snip": (0.5, 0.5), "anneal": (0.9, 0.9)}
    accuracies |= {"magnitude_finetuned": (0.94, 0.94), "edge_popup": (0.89, 0.88), "movement": (0.8, 0.93)}
    common = {"dataset": "digits", "network": "64-8-10", "weights": "pretrain", "cpu_seconds": 7.0}
    rows = [
        common
        | {"method": method, "density": 1.0 if method == "dense" else 0.1, "test_accuracy": test}
        | {"validation_accuracy": validation, "moves_weights": method == "magnitude_finetuned"}
        for method, (validation, test) in accuracies.items()
    ]
    (sentence,) = compare.worth_sentences(config_of(methods=list(accuracies)[1:]), rows)
    assert "best one-shot mask: +40.0 at 10 % kept (SNIP)" in sentence
    assert "best other search, Edge-popup: +2.0 at 10 % kept (7 s)" in sentence
