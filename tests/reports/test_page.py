"""The common parts of the pages: colors, numbers for people, and tables as CSV."""

import re

import pytest

from sa_jax.reports import page
from tests.reports.pages import saved


def luminance(color):
    color = color if len(color) == 7 else "#" + "".join(2 * digit for digit in color[1:])
    parts = (int(color[i : i + 2], 16) / 255 for i in (1, 3, 5))
    linear = (part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in parts)
    return sum(weight * part for weight, part in zip((0.2126, 0.7152, 0.0722), linear, strict=True))


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_colors_have_the_contrast_that_wcag_asks_for(scheme):
    light, dark = re.findall(r":root \{([^}]*)\}", page.STYLE)
    colors = dict(re.findall(r"--(\w+): (#\w+)", light if scheme == "light" else dark))
    text = [("ink", "card"), ("ink", "page"), ("ink", "warn"), ("soft", "card"), ("accent", "card")]
    for needed, pairs in ((4.5, text), (3, [("second", "card")])):
        for pair in pairs:
            low, high = sorted(luminance(colors[name]) for name in pair)
            assert (high + 0.05) / (low + 0.05) >= needed, pair


@pytest.mark.parametrize(
    ("key", "value", "text"),
    [
        ("test_accuracy", 0.9397, "94.0 %"),
        ("density", 0.0002, "0.02 %"),
        ("test_accuracy", 0.9998, "99.98 %"),
        ("sizes", [64, 12, 10], "64-12-10"),
        ("seed", 12345, "12345"),
        ("num_steps", 2_000_000, "2,000,000"),
        ("kept_per_layer", [1_000, 2], "1,000, 2"),
        ("best_energy", 0.123456, "0.1235"),
        ("mask_overlap", None, "-"),
    ],
)
def test_numbers_are_formatted_for_people(key, value, text):
    assert page.format_value(key, value) == text


def test_tables_are_escaped_and_saved_as_csv():
    assert page.table_html({"<b>": "&"}) == (
        '<table><tbody><tr><th scope="row">&lt;b&gt;</th><td>&amp;</td></tr></tbody></table>'
    )
    rows = [{"name": 'a,"b"', "counts": [1, 2], "none": None}]
    text = page.table_csv(rows, ["name", "counts", "none"])
    assert text == 'name,counts,none\n"a,""b""",1 2,\n'
    assert saved(page.page_html("t", [page.csv_link("rows.csv", text)]))["rows.csv"] == [
        ["name", "counts", "none"],
        ['a,"b"', "1 2", ""],
    ]
