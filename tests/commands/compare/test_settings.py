"""Settings of a comparison: what they refuse, and the cells that they make."""

import pytest

from sa_jax import cli
from sa_jax.commands.compare import settings
from sa_jax.commands.compare.settings import Cell
from sa_jax.commands.run.settings import RunConfig
from tests.commands.compare.configs import config_of
from tests.conftest import refusal


@pytest.mark.parametrize(
    ("changes", "parts"),
    [
        ({"methods": []}, ["compare.methods must be a non-empty list, not []"]),
        (
            {"methods": ["magnitude"]},
            ["compare.methods: 'magnitude' is not known; did you mean 'magnitude_erk'?"],
        ),
        ({"methods": ["aneal"]}, ["compare.methods: 'aneal' is not known; did you mean 'anneal'?"]),
        (
            {"methods": ["qqq"]},
            ["each method in compare.methods must be one of dense, anneal, random", "not 'qqq'"],
        ),
        ({"methods": ["snip", "snip"]}, ["compare.methods contains duplicates"]),
        (
            {"densities": [0.1, 2.0]},
            ["each density in compare.densities must be a finite number above 0 and at most 1, not 2.0"],
        ),
        ({"seeds": [-1]}, ["each seed in compare.seeds must be a whole number from 0 to 4294967295, not -1"]),
        ({"datasets": {"digits": 1.0}}, ["compare.datasets['digits'] must be [mean, std], not 1.0"]),
        ({"annealers": {"snip": {}}}, ["'snip' is the name of another method"]),
        (
            {"annealers": {"anneal": {"moves": "uniform"}}},
            ["compare.annealers['anneal']: 'moves' is not a setting of run"],
        ),
        ({"annealers": {"anneal": {"move": "up"}}}, ["method anneal at density 0.1: run.move must be one of"]),
        ({"annealers": {"anneal": {"density": 0.5}}}, ["'density' must be the same for all methods"]),
        ({"annealers": {"a/b": {}}}, ["names in compare.annealers must be in snake case"]),
        ({"annealers": {"anneal": 3}}, ["compare.annealers['anneal'] must be a dictionary of settings, not 3"]),
        ({"run": RunConfig(seed=5)}, ["run.seed has no effect in a comparison: set compare.seeds instead"]),
        ({"run": 3}, ["compare.run must be @run()"]),
        ({"hidden": [32, 16]}, ["compare.hidden must be a list of lists"]),
        ({"hidden": [[8], [0]]}, ["each width in compare.hidden must be a whole number of at least 1, not 0"]),
        ({"weights": ["random", 3]}, ["each name in compare.weights must be text in quotes, not 3"]),
        ({"datasets": {5: [0, 1]}}, ["each name in compare.datasets must be text in quotes, not 5"]),
        (
            {"annealers": {"anneal": {"temperature_end": float("nan")}}},
            ["method anneal at density 0.1: run.temperature_end must be a finite number", "not nan"],
        ),
        ({"densities": [0.1, None]}, ["each density in compare.densities must be a finite number", "not None"]),
        ({"densities": [1, 1.0]}, ["compare.densities contains duplicates"]),
        (
            {"datasets": {"digits": ["a", 1]}},
            ["the mean in compare.datasets['digits'] must be a finite number, not 'a'"],
        ),
        ({"epochs": 0}, ["compare.epochs"]),
        ({"score_steps": 0}, ["compare.score_steps must be a whole number of at least 1, or None to choose it"]),
        ({"tolerance": 1.5}, ["compare.tolerance"]),
    ],
)
def test_refuses(changes, parts):
    with refusal(*parts):
        config_of(**changes)


@pytest.mark.parametrize(
    "name",
    [
        "compare_digits",
        "compare_mlpnet",
        "compare_lenet300",
        "compare_wide",
        "paper",
        "paper_schedules",
    ],
)
def test_configs_hold_what_can_be_compared(name):
    config = cli.load_config(f"configs/{name}.gin", [], cli.gin_compare, cli.COMPARE_MACROS)
    assert len({cell.name for cell in config.cells()}) == len(list(config.cells()))


def test_networks_of_other_paths_have_other_files():
    one, other = (Cell("digits", f"{folder}/w.npz", (8,), "anneal", 0.1, 0) for folder in "ab")
    assert one.name != other.name and one.network_name != other.network_name
    assert one.name != one._replace(density=0.1 + 1e-9).name


def test_the_steps_of_score_search_are_part_of_its_cell():
    configs = [config_of(methods=["score_search", "anneal"], score_steps=steps) for steps in (10, 20)]
    assert [config.budget.score_steps for config in configs] == [10, 20]
    same = []
    for method in configs[0].methods:
        digests = [settings.digest(config, Cell("digits", "pretrain", (8,), method, 0.1, 0)) for config in configs]
        same.append(digests[0] == digests[1])
    assert same == [False, True]


def test_the_budget_counts_where_a_method_finds_the_start():
    """The figures of a start found by training depend on its epochs; those of other starts do not."""
    found_first = {"anneal": {}, "anneal_from_edge_popup": {"start": "edge_popup"}}
    methods = list(found_first)
    short, long = (config_of(methods=methods, annealers=found_first, epochs=epochs) for epochs in (1, 2))
    same = [
        settings.digest(short, cell) == settings.digest(long, cell)
        for cell in (Cell("digits", "pretrain", (8,), method, 0.1, 0) for method in methods)
    ]
    assert same == [True, False]
