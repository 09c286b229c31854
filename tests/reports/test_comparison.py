"""The tables and the page of a comparison: their numbers, marks and notes, and every shape of comparison."""

import re

import pytest

from sa_jax.reports.comparison import display_name, markdown_tables, render_comparison
from tests.reports.comparisons import ACCURACIES, METHODS, few, impossible, make_comparison, make_test, render
from tests.reports.pages import Page, saved

OURS = display_name("anneal")


def cells(markdown, name):
    """The cells of the first line of a table with this name."""
    line = next(line for line in markdown.splitlines() if line.startswith(f"| {name} |"))
    return [cell.strip() for cell in line.strip("|").split("|")][1:]


def test_table_holds_means_and_deviations_with_the_best_of_each_kind_bold():
    rows = few(ACCURACIES)
    for row in rows:
        row["cpu_seconds"] = {0.5: 1.0, 0.1: 2.0}.get(row["density"], 9.0)
    table = markdown_tables(rows, [])
    assert cells(table, "Method") == ["50 % kept", "10 % kept", "CPU s"]
    assert cells(table, "Wanda, global") == ["**91.0 ±1.4**", "55.0 ±7.1", "1.5"]
    assert cells(table, OURS) == ["90.0 ±0.0", "**81.0 ±1.4**", "1.5"]
    # Alone of its kind: there is nothing to be better than.
    assert cells(table, "Magnitude, fine-tuned") == ["93.0 ±0.0", "70.0 ±0.0", "1.5"]
    assert "### mnist, 784-40-20-10, pretrained weights" in table
    assert "with all 32,360 branches: 94.0 ±0.0 %." in table
    bold = re.findall(r"<strong>([^<]*)</strong>", render(rows))
    assert bold == ["91.0 ±1.4", "81.0 ±1.4"]
    both = few(ACCURACIES | {("woodfisher", 0.5): [0.9, 0.9]}, methods=("woodfisher", "magnitude_finetuned"))
    assert cells(markdown_tables(both, []), "Magnitude, fine-tuned")[0] == "**93.0 ±0.0**"


def test_what_looks_equal_is_bold_alike():
    rows = few(ACCURACIES | {("wanda_global", 0.5): [0.9002, 0.9002]})
    table = markdown_tables(rows, [])
    assert cells(table, "Wanda, global")[0] == cells(table, OURS)[0] == "**90.0 ±0.0**"


def test_differences_that_are_not_significant_are_marked_counted_and_named():
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
    assert cells(table, OURS)[0] == "90.0 ±0.0"
    assert f"no significant difference from {OURS}" in table
    assert "no significant difference" not in markdown_tables(rows, paired[1:])
    text = Page(render(rows, paired)).text
    assert f"2 of 3 differences in test accuracy are significant: {OURS} is better in 1 and worse in 1." in text
    assert "50 % kept: Wanda, global" in text
    assert "10 % kept: Wanda, global" not in text
    assert "-1.0 ±0.4 =" in text and "+26.0 ±0.4 =" not in text and "+26.0 ±0.4" in text


def test_methods_stand_in_their_classes():
    table = markdown_tables(*make_comparison(datasets=("mnist",)))
    order = [line.split("|")[1].strip() for line in table.splitlines() if line.startswith("| ")][2:]
    at = [order.index(name) for name in ("*Needs no labels*", "Node, input norm", "*Needs labels, no derivative*")]
    at += [order.index(name) for name in ("Annealing alone", "*Takes derivatives of the loss*")]
    at += [order.index(name) for name in ("SNIP", OURS, "*Moves weights*", "WoodFisher")]
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
    assert cells(markdown_tables(rows, []), OURS) == ["90.0 ±0.0", "-¹", "3"]


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
    assert cells(markdown_tables(rows, []).split("###")[2], OURS)[:2] == ["**25.0 ±0.0**", "**25.0 ±0.0**"]


@pytest.mark.slow
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


@pytest.mark.slow
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


@pytest.mark.slow
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


def test_an_unfinished_page_says_how_many_cells_are_measured_and_loads_itself_again():
    rows = [row for row in few(ACCURACIES) if row["method"] != "anneal"]
    text = render_comparison(rows, [], [], "sa-jax compare", {"jax": "0.7.1"}, "a processor", {}, 14)
    assert f"{len(rows)} of 14 cells are measured." in Page(text).text
    assert '<meta http-equiv="refresh" content="10">' in text
    dense = [row for row in rows if row["method"] == "dense"]
    assert "2 of 14 cells" in Page(render_comparison(dense, [], [], "", {}, "", {}, 14)).text
    whole = render(rows)
    assert "Not finished yet" not in whole and "refresh" not in whole


def test_names_that_are_given_are_shown_everywhere():
    rows, names = few(ACCURACIES), {"anneal": "My <way>"}
    paired = [make_test("wanda_global", "mnist", 0.1, 2) | {"real": False}]
    table = markdown_tables(rows, paired, names)
    assert cells(table, "My <way>")[0] == "90.0 ±0.0" and "difference from My <way>" in table
    page = Page(render_comparison(rows, paired, [], "", {}, "", names))
    assert "My <way>" in page.text and OURS not in page.text and "way" not in page.tags
