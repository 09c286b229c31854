"""The page on pruned layers: its figures are those of the rows."""

import pytest

from sa_jax.reports.layers import FIELDS, render_layers


def rows_of(refit):
    errors = {
        "magnitude_error": 0.4,
        "wanda_error": 0.2,
        "annealed_error": 0.1,
        "refit_error": 0.05 if refit else None,
    }
    shape = {"outputs": 4, "inputs": 8, "kept": 16, "total": 32, "pattern": "unit:0.5", "samples": None}
    return [{"layer": name, "seconds": 1.5, **shape, **errors} for name in ("first", "second<b>")]


@pytest.mark.parametrize("refit", [False, True])
def test_the_page_says_what_the_rows_say(refit):
    rows = rows_of(refit)
    assert set(rows[0]) == set(FIELDS)
    settings = {"pattern": "unit:0.5", "allocation": "by_error", "sequential": refit, "refit": refit}
    page = render_layers(rows, settings)
    assert "50.0 % of 64 weights kept in 2 linear layers" in page or "50 % of 64 weights kept" in page
    assert "Pattern unit:0.5; densities by error" in page
    assert "magnitude 40 %, Wanda 20 %, annealed 10 %" in page
    assert ("annealed and refitted 5 %" in page) == refit
    source = "come from the pruned layers before it" if refit else "come from the dense network"
    assert source in page and ("Kept weights are not changed" in page) == (not refit)
    assert "second<b>" not in page and "second&lt;b&gt;" in page
