"""Pictures of masks: units, the network, and the mask over time."""

import re

import numpy as np
import pytest

from sa_jax.reports.run import render_report
from tests.reports.pages import Page, make_evolution, make_run, make_weights


def test_gallery_shows_the_busiest_units_first():
    result, trace, _ = make_run(sizes=(4, 50, 2))
    first = np.zeros((4, 50), bool)
    first[:3, 7] = first[:2, 30] = first[0, 49] = True
    masks = {"Dense_0": first, "Dense_1": np.ones((50, 2), bool)}
    text = render_report(result, trace, masks, (2, 2))
    gallery = re.search(r"<svg[^>]*40 of 50 hidden units.*?</svg>", text, re.DOTALL)[0]
    assert re.findall(r"<text[^>]*>([^<]*)</text>", gallery) == ["3", "2", "1"] + ["0"] * 37
    assert gallery.count("<image") == 1
    assert "3 of 4 pixels still feed the network" in text


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("image_shape", [(2, 2), None])
def test_live_branches_are_drawn_by_sign(image_shape):
    result, trace, _ = make_run(sizes=(4, 3, 2))
    first, second = np.zeros((4, 3), bool), np.zeros((3, 2), bool)
    first[0, 0] = first[1, 0] = first[2, 1] = second[0, 0] = second[0, 1] = True  # unit 1 feeds nothing
    weights = [np.where(np.arange(4)[:, None] == 0, -1.0, 1.0) * np.ones((4, 3)), np.ones((3, 2))]
    text = render_report(result, trace, {"a": first, "b": second}, image_shape, None, weights)
    drawing = re.search(r"<svg[^>]*Drawing of the network.*?</svg>", text, re.DOTALL)[0]
    lines = re.findall(r'<path d="([^"]*)" clip-path[^>]*fill: none; opacity[^>]* stroke: (var\(--\w+\))', drawing)
    lines = [(path.count("L"), color) for path, color in lines]
    assert sorted(lines) == [(1, "var(--accent)"), (1, "var(--second)"), (2, "var(--accent)")]
    assert "The 4 branches that lie on a path" in drawing and "2 of 4, 1 of 3, 2 of 2." in drawing


@pytest.mark.parametrize(
    ("dead", "said"), [(False, "drawn only if at most 1,500 branches"), (True, "not drawn: no branch")]
)
def test_a_network_that_cannot_be_drawn_says_why(dead, said):
    result, trace, masks = make_run(sizes=(100, 20, 5), density=0.9)
    if dead:
        masks["Dense_1"][:] = False
    assert said in Page(render_report(result, trace, masks, (10, 10), None, make_weights(masks))).text


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("image_shape", [(4, 4), None])
def test_evolution_is_a_slider_without_script(image_shape):
    result, trace, masks = make_run()
    evolution = make_evolution(trace, masks)
    page = Page(render_report(result, trace, masks, image_shape, None, None, evolution))
    radios = [values for tag, values in page.elements if tag == "input"]
    assert len(radios) == 5 and ["checked" in values for values in radios] == [True] + [False] * 4
    labels = {values["for"] for tag, values in page.elements if tag == "label"}
    assert labels == {values["id"] for values in radios}
    assert {values["aria-describedby"] for values in radios} <= set(page.ids)
    alts = [values["alt"] for tag, values in page.elements if tag == "img"]
    assert "Step 0, the initial mask" in alts[0]
    assert (
        f"Step {trace['step'][-1]:,}, temperature 2e-05: 100.0 % of its branches are also in the best" in alts[4]
    )
    seen = np.count_nonzero(evolution["masks"][0][:96].reshape(16, 6).any(1))
    assert f"{seen} of 16 {'pixels' if image_shape else 'inputs'} feed the network" in alts[0]
    assert "script" not in page.tags
    short = {name: values[:2] for name, values in evolution.items()}
    assert "How the mask evolved" not in render_report(result, trace, masks, image_shape, None, None, short)
