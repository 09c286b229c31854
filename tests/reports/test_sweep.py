"""The page of a sweep: its figures, its picture, and what it says while it fills."""

import numpy as np
import pytest

from sa_jax.reports.sweep import FIELDS, render_picture, render_sweep, row_of
from tests.reports.pages import Page, saved

OURS = "Score search, then annealing"


def make_result(density, accuracy, difference, rival=True):
    errors = {name: 0.01 for name in ("test_accuracy", "dense_test_accuracy", "best_one_shot_test_accuracy")}
    result = {"density": density, "kept": round(1000 * density), "test_accuracy": accuracy, "rival": None}
    result |= {"best_one_shot": "obd", "one_shot_test_accuracy": {"obd": 0.5, "snip": 0.4}}
    result |= {"dense_test_accuracy": 0.97, "validation_accuracy": 0.9, "cpu_seconds": 12.3}
    result["strongest_other"] = {"name": "OBD, one-shot", "difference": difference, "standard_error": 0.011}
    if rival:
        result["rival"] = {"method": "edge_popup_momentum", "test_accuracy": accuracy - difference}
        errors["rival_test_accuracy"] = 0.02
    return result | {"standard_errors": errors}


RESULTS = [make_result(0.5, 0.96, 0.0), make_result(0.1, 0.93, 0.05), make_result(0.02, 0.6, -0.03)]
ROWS = [row_of(result, f"density_{result['density']}") for result in RESULTS]


def render(rows, num_densities=None):
    return render_sweep(rows, "digits, 64-9-10", OURS, True, num_densities or len(rows))


def test_the_page_holds_the_figures_of_the_runs():
    text = render(ROWS)
    page = Page(text)
    for figure in ("96.0 ±1.0 %", "93.0 ±1.0 %", "88.0 ±2.0 %", "+5.0 ±1.1", "-3.0 ±1.1", "50.0 ±1.0 % (OBD)"):
        assert figure in page.text
    assert "better at 1, level at 1 and worse at 1 of 3 densities" in page.text
    assert "digits, 64-9-10" in page.text and "Each density began with the scores" in page.text
    assert [load for load in page.loads if load.startswith("density")] == [
        f"density_{density}/report.html" for density in (0.5, 0.1, 0.02)
    ]
    rows = saved(text)["sweep.csv"]
    assert rows[0] == list(FIELDS) and [float(row[2]) for row in rows[1:]] == [0.96, 0.93, 0.6]
    assert len(page.svgs) == 1 and page.svgs[0]["aria-label"] and "script" not in page.tags
    assert text == render(ROWS)


def test_a_page_that_fills_says_so():
    text = render(ROWS[:1], 3)
    assert "1 of 3 densities are done" in Page(text).text and 'http-equiv="refresh"' in text
    assert "densities are done" not in render(ROWS) and "refresh" not in render(ROWS)


@pytest.mark.filterwarnings("error")
def test_a_sweep_without_a_rival_and_of_one_density_is_drawn():
    rows = [row_of(make_result(0.1, 1.0, 0.0, rival=False), "density_0.1")]
    page = Page(render_sweep(rows, "<b>mine</b>", "Annealing", False, 1))
    assert "Rival" not in page.text and "Each density began afresh" in page.text and "b" not in page.tags
    assert render_picture(rows, "Annealing")


def test_the_picture_is_a_png_in_colors(tmp_path):
    from matplotlib.image import imread

    (tmp_path / "sweep.png").write_bytes(render_picture(ROWS, OURS))
    colors = {tuple(color) for color in np.rint(255 * imread(tmp_path / "sweep.png"))[..., :3].reshape(-1, 3)}
    assert {(0, 114, 178), (213, 94, 0)} <= colors and (255, 255, 255) in colors
