"""The tables and the page of a comparison: their numbers, marks and notes, and every shape of comparison."""

import math
import re
import zlib

import numpy as np
import pytest

from sa_jax.reports.comparison import display_name, markdown_tables, render_comparison
from tests.reports.test_run import Page, saved

# labels, gradients, moves weights, CPU seconds, and how much of the error grows with sparsity
METHODS = {
    "random": (0, 0, 0, 0.01, 9),
    "magnitude_global": (0, 0, 0, 0.02, 3),
    "magnitude_layerwise": (0, 0, 0, 0.02, 3.6),
    "magnitude_erk": (0, 0, 0, 0.02, 3.3),
    "wanda_global": (0, 0, 0, 0.2, 2.2),
    "wanda_per_output": (0, 0, 0, 0.22, 2.7),
    "node_entropy": (0, 0, 0, 0.3, 5),
    "node_output_norm": (0, 0, 0, 0.03, 6),
    "node_input_norm": (0, 0, 0, 0.03, 7),
    "random_search": (1, 0, 0, 150, 5.5),
    "greedy_swaps": (1, 0, 0, 60, 1.9),
    "genetic_algorithm": (1, 0, 0, 170, 3.2),
    "anneal_derivative_free": (1, 0, 0, 320, 0.8),
    "snip": (1, 1, 0, 0.9, 2.1),
    "obd": (1, 1, 0, 1.4, 1.8),
    "obs_mask": (1, 1, 0, 4, 1.7),
    "cbs_mask": (1, 1, 0, 20, 1.6),
    "edge_popup": (1, 1, 0, 45, 1.5),
    "movement": (1, 1, 0, 44, 1.4),
    "l0_gates": (1, 1, 0, 60, 2.5),
    "anneal": (1, 1, 0, 340, 0.6),
    "woodfisher": (1, 1, 1, 6, 1.2),
    "obs_update": (1, 1, 1, 5, 1.1),
    "magnitude_finetuned": (1, 1, 1, 40, 0.25),
    "smaller_dense": (1, 1, 1, 30, 0.7),
    "anneal_nudged": (1, 1, 1, 380, 0.35),
}
DENSITIES = (0.5, 0.4, 0.3, 0.2, 0.1, 0.05, 0.02)


def make_comparison(methods=tuple(METHODS), densities=DENSITIES, seeds=3, datasets=("mnist", "fashion_mnist")):
    """Makes the rows and paired tests of a comparison that looks like a real one."""
    rows, paired = [], []
    for dataset in datasets:
        rows += [make_row("dense", dataset, 1.0, seed) for seed in range(seeds)]
        for method in methods:
            rows += [make_row(method, dataset, density, seed) for density in densities for seed in range(seeds)]
        others = [
            method for method in methods if method not in ("anneal", "smaller_dense") and "anneal" in methods
        ]
        paired += [make_test(method, dataset, density, seeds) for method in others for density in densities]
    return rows, paired


def make_row(method, dataset, density, seed):
    """One cell; the smaller dense network is impossible where it would be too small."""
    labels, gradients, moves, seconds, slope = METHODS.get(method, (1, 1, 1, 12, 0))
    rng = np.random.default_rng(zlib.crc32(f"{method}{dataset}".encode()) + seed)
    accuracy = 0.94 if dataset == "mnist" else 0.88
    if method != "dense":
        lost = 0.02 * slope * (math.exp(0.9 * math.log(1 / density) - 0.5) - 0.8) / 3
        accuracy = float(np.clip(accuracy - lost + rng.normal(0, 0.004 + 0.05 * (lost > 0.2)), 0.1, 0.99))
    totals = [784 * 40, 40 * 20, 20 * 10]
    wider = min(1, density ** (1 - len(method) % 7 / 10))
    kept = [int(density * totals[0]), int(wider * totals[1]), int(wider * totals[2])]
    if method == "node_entropy" and density < 0.1:
        kept[2] = 0
    effective = int(sum(kept) * (1 - 0.05 * slope * (1 - density)))
    row = {"dataset": dataset, "network": "784-40-20-10", "weights": "pretrain", "method": method, "seed": seed}
    row |= {"density": density, "sparsity": 1 - density, "kept": sum(kept), "total": sum(totals)}
    row |= {"uses_labels": bool(labels), "uses_gradients": bool(gradients), "moves_weights": bool(moves)}
    row |= {"test_accuracy": accuracy, "validation_accuracy": accuracy, "test_loss": 0.3, "reason": ""}
    row |= {"kept_per_layer": kept, "total_per_layer": totals, "cpu_seconds": seconds * rng.uniform(0.9, 1.1)}
    row |= {"effective_kept": effective, "effective_compression": sum(totals) / effective, "num_evaluations": None}
    if method == "smaller_dense" and density < 0.05:
        row |= impossible("no dense network of 784 inputs has as few as 647 branches")
    return row


def impossible(reason):
    names = ("kept", "kept_per_layer", "effective_kept", "effective_compression")
    return dict.fromkeys((*names, "test_accuracy", "validation_accuracy", "test_loss")) | {"reason": reason}


def make_test(method, dataset, density, seeds):
    difference = (METHODS[method][-1] - 0.6) * 0.01 / density**0.5
    test = {"dataset": dataset, "network": "784-40-20-10", "weights": "pretrain", "density": density}
    test |= {"reference": "anneal", "method": method, "difference": difference, "standard_error": 0.004}
    return test | {"p_value": 0.001, "real": abs(difference) > 0.01, "num_seeds": seeds}


def few(accuracies, densities=(0.5, 0.1), methods=("wanda_global", "anneal", "magnitude_finetuned")):
    """Rows of a few methods whose accuracies, `{(method, density): one per seed}`, are given."""
    seeds = len(next(iter(accuracies.values())))
    rows, _ = make_comparison(methods, densities, seeds, ("mnist",))
    for row in rows:
        if (row["method"], row["density"]) in accuracies:
            row["test_accuracy"] = accuracies[row["method"], row["density"]][row["seed"]]
    return rows


def render(rows, paired=(), worth=("It was.",), command="sa-jax compare", machine="a processor"):
    return render_comparison(rows, paired, worth, command, {"jax": "0.7.1"}, machine)


def cells(markdown, name):
    """The cells of the first line of a table with this name."""
    line = next(line for line in markdown.splitlines() if line.startswith(f"| {name} |"))
    return [cell.strip() for cell in line.strip("|").split("|")][1:]


ACCURACIES = {
    ("wanda_global", 0.5): [0.90, 0.92],
    ("wanda_global", 0.1): [0.50, 0.60],
    ("anneal", 0.5): [0.90, 0.90],
    ("anneal", 0.1): [0.80, 0.82],
    ("magnitude_finetuned", 0.5): [0.93, 0.93],
    ("magnitude_finetuned", 0.1): [0.70, 0.70],
}


def test_table_holds_means_and_deviations_with_the_best_of_each_kind_bold():
    rows = few(ACCURACIES)
    for row in rows:
        row["cpu_seconds"] = {0.5: 1.0, 0.1: 2.0}.get(row["density"], 9.0)
    table = markdown_tables(rows, [])
    assert cells(table, "Method") == ["50 % kept", "10 % kept", "CPU s"]
    assert cells(table, "Wanda, global") == ["**91.0 ±1.4**", "55.0 ±7.1", "1.5"]
    assert cells(table, "Annealing") == ["90.0 ±0.0", "**81.0 ±1.4**", "1.5"]
    # Alone of its kind, so best even where frozen weights are better.
    assert cells(table, "Magnitude, fine-tuned") == ["**93.0 ±0.0**", "**70.0 ±0.0**", "1.5"]
    assert "### mnist, 784-40-20-10, pretrained weights" in table
    assert "with all 32,360 branches: 94.0 ±0.0 %" in table
    bold = re.findall(r"<strong>([^<]*)</strong>", render(rows))
    assert bold == ["91.0 ±1.4", "81.0 ±1.4", "93.0 ±0.0", "70.0 ±0.0"]


def test_what_looks_equal_is_bold_alike():
    rows = few(ACCURACIES | {("wanda_global", 0.5): [0.9002, 0.9002]})
    table = markdown_tables(rows, [])
    assert cells(table, "Wanda, global")[0] == cells(table, "Annealing")[0] == "**90.0 ±0.0**"


def test_differences_that_are_not_real_are_marked_counted_and_named():
    rows = few(ACCURACIES)
    paired = [
        make_test(method, "mnist", density, 2) | {"real": density == 0.1, "difference": difference}
        for method, density, difference in (
            ("wanda_global", 0.5, -0.01),
            ("wanda_global", 0.1, 0.26),
            ("magnitude_finetuned", 0.1, -0.11),
        )
    ]
    table = markdown_tables(rows, paired)
    assert cells(table, "Wanda, global")[:2] == ["**91.0 ±1.4** =", "55.0 ±7.1"]
    assert cells(table, "Annealing")[0] == "90.0 ±0.0"
    assert "not shown to differ from Annealing" in table
    assert "not shown to differ" not in markdown_tables(rows, paired[1:])
    text = Page(render(rows, paired)).text
    assert "Of 3 differences in test accuracy 2 are real: Annealing is better in 1 and worse in 1." in text
    assert "50 % kept: Wanda, global" in text
    assert "10 % kept: Wanda, global" not in text
    assert "-1.0 ±0.4 =" in text and "+26.0 ±0.4 =" not in text and "+26.0 ±0.4" in text


def test_methods_stand_in_their_classes():
    table = markdown_tables(*make_comparison(datasets=("mnist",)))
    order = [line.split("|")[1].strip() for line in table.splitlines() if line.startswith("| ")][2:]
    at = [order.index(name) for name in ("*Needs no labels*", "Node, input norm", "*Needs labels, no derivative*")]
    at += [order.index(name) for name in ("Annealing, no derivative", "*Takes derivatives of the loss*")]
    at += [order.index(name) for name in ("SNIP", "Annealing", "*Moves weights*", "WoodFisher")]
    assert at == sorted(at)
    assert len(order) == len(METHODS) + 4


def test_impossible_cells_say_why():
    rows = few(ACCURACIES, methods=("wanda_global", "anneal", "smaller_dense", "magnitude_finetuned"))
    for row in rows:
        if row["method"] == "smaller_dense":
            row |= impossible("too few" if row["density"] == 0.5 else "<far> too few")
    table = markdown_tables(rows, [])
    assert cells(table, "Smaller dense network")[:2] == ["-¹", "-²"]
    assert "- -¹: too few." in table and "- -²: <far> too few." in table
    page = Page(render(rows))
    assert "-²: <far> too few." in page.text and "far" not in page.tags


def test_impossible_cells_cost_nothing():
    rows = few(ACCURACIES)
    for row in rows:
        row |= {"cpu_seconds": 3.0} if row["density"] == 0.5 else {"cpu_seconds": 0.1} | impossible("too few")
    assert cells(markdown_tables(rows, []), "Annealing") == ["90.0 ±0.0", "-¹", "3"]


def test_cells_not_measured_are_empty():
    rows = [row for row in few(ACCURACIES) if (row["method"], row["density"]) != ("wanda_global", 0.1)]
    assert cells(markdown_tables(rows, []), "Wanda, global")[1] == ""
    Page(render(rows))


def test_one_seed_has_no_deviation():
    rows = few({key: values[:1] for key, values in ACCURACIES.items()})
    table = markdown_tables(rows, [])
    assert cells(table, "Wanda, global")[:2] == ["**90.0**", "50.0"]
    assert "±" not in table and "one seed" in table


def test_each_network_has_a_section_of_its_own():
    rows = few(ACCURACIES)
    rows += [row | {"weights": "my.npz", "test_accuracy": 0.25} for row in rows]
    page = Page(render(rows))
    for title in ("mnist, 784-40-20-10, pretrained weights", "mnist, 784-40-20-10, weights from my.npz"):
        assert title in page.text
    assert cells(markdown_tables(rows, []).split("###")[2], "Annealing")[:2] == ["**25.0 ±0.0**", "**25.0 ±0.0**"]


def test_page_is_complete_loads_nothing_and_runs_nothing():
    rows, paired = make_comparison()
    rest = {"worth": ("Gained 3 points.", "Gained 4 points."), "command": "sa-jax compare --x"}
    text = render(rows, paired, **rest)
    page = Page(text)
    for expected in ("Gained 3 points.", "Gained 4 points.", "sa-jax compare --x", "0.7.1", "a processor"):
        assert expected in page.text
    assert all(display_name(method) in page.text for method in METHODS)
    assert len(page.svgs) == 10
    assert all(svg["role"] == "img" and svg["aria-label"] for svg in page.svgs)
    assert len(page.ids) == len(set(page.ids))
    assert all(load.startswith(("#", "data:")) for load in page.loads)
    assert {load[1:] for load in page.loads if load.startswith("#")} <= set(page.ids)
    assert "script" not in page.tags and "@import" not in text
    assert "mathdefault" not in text  # a tick that no one chose
    assert len(text) < 900_000
    assert text == render(rows, paired, **rest)


def test_all_numbers_are_in_the_page_as_csv():
    rows, paired = make_comparison()
    files = saved(render(rows, paired))
    for name, of in (("results.csv", rows), ("paired.csv", paired)):
        head, *lines = files[name]
        assert head == list(of[0]) and len(lines) == len(of)
        for row, line in zip(of, lines, strict=True):
            written = dict(zip(head, line, strict=True))
            assert written["method"] == row["method"] and float(written["density"]) == row["density"]
    one = dict(zip(*files["results.csv"][:2], strict=True))
    assert one["kept_per_layer"] == " ".join(map(str, rows[0]["kept_per_layer"])) and one["num_evaluations"] == ""
    assert float(one["test_accuracy"]) == rows[0]["test_accuracy"]
    assert "paired.csv" not in saved(render(few(ACCURACIES)))


def test_text_from_outside_is_escaped():
    rows = [row | {"dataset": "<b>$x$|"} for row in few(ACCURACIES)]
    for row in rows:
        row["method"] = {"wanda_global": "<i>"}.get(row["method"], row["method"])
    page = Page(render(rows, worth=("<u>",), command="<s>", machine="<q>"))
    assert not {"b", "i", "u", "s", "q"} & set(page.tags)
    for expected in ("<b>$x$|", "<i>", "<u>", "<s>", "<q>"):
        assert expected in page.text


def names_at(svg):
    """Where each text of a chart stands."""
    return re.findall(
        r'<text[^>]*?(?:x="([\d.]+)" y="([\d.]+)"|translate\(([\d.]+) ([\d.]+)\))[^>]*>([^<]*)<', svg
    )


def test_names_at_the_ends_of_lines_do_not_overlap():
    rows = few({key: [0.9, 0.9] for key in ACCURACIES})
    svg = re.findall(r"<svg.*?</svg>", render(rows), re.DOTALL)[0]
    names = ("Wanda, global", "Annealing", "Magnitude, fine-tuned", "Dense")
    heights = sorted(float(y or v) for _, y, _, v, name in names_at(svg) if name in names)
    assert len(heights) == 4
    assert min(np.diff(heights)) > 8


@pytest.mark.parametrize(
    "shape",
    [
        {"densities": (0.1,), "seeds": 1},
        {"methods": ("anneal",)},
        {"methods": ("random",), "densities": (1.0,), "seeds": 1},
        {"methods": ("smaller_dense",), "densities": (0.02,)},
        {"methods": ()},
        {"methods": ("anneal", "smaller_dense"), "densities": (0.5, 0.001)},
    ],
    ids=["one density", "one method", "nothing pruned", "nothing possible", "dense alone", "very sparse"],
)
def test_every_shape_of_comparison(shape):
    rows, paired = make_comparison(**shape)
    page = Page(render(rows, paired, worth=()))
    assert "fashion_mnist" in page.text
    assert "fashion_mnist" in markdown_tables(rows, paired)
    Page(render([row for row in rows if row["method"] != "dense"], paired))


@pytest.mark.parametrize("accuracy", [0.0, 1.0])
def test_extreme_accuracies(accuracy):
    rows = few({key: [accuracy] * 2 for key in ACCURACIES})
    assert f"{100 * accuracy:.1f} ±0.0" in Page(render(rows)).text
