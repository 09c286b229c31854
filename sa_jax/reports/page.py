"""The common parts of the HTML pages: frame, style, tables, and charts as inline SVG in the page's colors."""

import base64
import csv
import html
import io
import math
import re
import urllib.parse
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

# Colors that `_svg` replaces by colors of the page's style sheet, so that charts follow light and dark.
INK, ACCENT, SECOND = "#010203", "#010204", "#010205"
_PAGE_COLORS = {INK: "currentColor", ACCENT: "var(--accent)", SECOND: "var(--second)"}
CHARTS: dict[Any, Any] = {
    **dict.fromkeys(("text.color", "axes.labelcolor", "xtick.color", "ytick.color"), INK),
    "font.size": 10,
    "axes.titlesize": 10,
    "text.parse_math": False,
    "svg.fonttype": "none",
    "svg.hashsalt": "sa_jax",
}
WIDTH = 4.6  # inches; narrow, so that text stays readable when a phone shrinks the chart

STYLE = """
:root { color-scheme: light dark; --page: #f4f6f8; --card: #fff; --ink: #1b232c; --soft: #55616d;
  --line: #d9dfe5; --accent: #0072b2; --second: #d55e00; --warn: #fff3df; }
@media (prefers-color-scheme: dark) { :root { --page: #0f1317; --card: #181e24; --ink: #e4e9ee;
  --soft: #a3afba; --line: #313a43; --accent: #56b4e9; --second: #e69f00; --warn: #3a2b0c; } }
* { box-sizing: border-box; }
body { margin: 0; background: var(--page); color: var(--ink); font: 16px/1.5 system-ui, sans-serif; }
main { max-width: 1120px; margin: 0 auto; padding: 16px; }
section, aside { background: var(--card); border: 1px solid var(--line); border-radius: 10px;
  padding: 20px 24px; margin: 0 0 16px; }
aside { background: var(--warn); border-color: var(--second); border-left-width: 6px; }
.columns { display: grid; grid-template-columns: repeat(2, minmax(0, 1fr)); gap: 12px 40px; }
main > .columns { gap: 0 16px; align-items: start; }
h1 { font-size: clamp(1.4rem, 4vw, 2rem); line-height: 1.2; margin: 0 0 12px; }
h1 :is(span, strong) { white-space: nowrap; display: inline-block; }
h1 strong { color: var(--accent); }
h2 { font-size: 1.2rem; margin: 0 0 12px; }
h3 { font-size: 1rem; margin: 12px 0 4px; }
p { margin: 0 0 12px; }
dl { display: grid; grid-template-columns: 1fr 1fr; gap: 12px 20px; margin: 20px 0 12px; }
dt { color: var(--soft); font-size: .85rem; }
dd { margin: 0; font-size: 1.15rem; font-weight: 600; }
figure { margin: 0; }
.columns > figure:only-child { grid-column: 1 / -1; width: 100%; max-width: 560px; margin: auto; }
.wide > figure { max-width: 800px; margin: auto; }
figcaption { margin-top: 8px; }
figcaption, .soft { color: var(--soft); font-size: .95rem; }
svg { display: block; width: 100%; height: auto; }
svg text { font-family: system-ui, sans-serif !important; }
table { border-collapse: collapse; width: 100%; font-size: .92rem; font-variant-numeric: tabular-nums; }
th, td { padding: 4px 10px 4px 0; border-bottom: 1px solid var(--line); text-align: left; }
td { overflow-wrap: anywhere; }
th { width: 50%; font-weight: 400; color: var(--soft); vertical-align: top; }
.scroll { overflow-x: auto; }
.numbers :is(th, td) { width: auto; overflow-wrap: normal; }
.numbers td { white-space: nowrap; }
.numbers :is(th, td):not(:first-child) { text-align: right; padding: 4px 0 4px 8px; }
.scroll th:first-child { position: sticky; left: 0; background: var(--card); }
.numbers.marked th:not(:first-child) { padding-right: .9em; }
.marked thead th { white-space: nowrap; }
.scroll + .soft { margin-top: 8px; }
.class th { color: var(--ink); font-weight: 600; padding-top: 12px; }
.class span { position: sticky; left: 0; }
.mark { display: inline-block; width: .9em; color: var(--soft); }
ul { margin: 0 0 12px; padding-left: 20px; }
a { color: var(--accent); }
:focus-visible { outline: 3px solid var(--accent); outline-offset: 2px; border-radius: 3px; }
.saves { margin: 8px 0 0; font-size: .92rem; color: var(--soft); }
.saves a::before { content: "↓ "; }
img { display: block; image-rendering: pixelated; }
.unseen { position: absolute; width: 1px; height: 1px; overflow: hidden; clip-path: inset(50%); }
.slider { display: grid; position: relative; }
.slider::before { content: ""; position: absolute; top: 13px; left: 5%; right: 5%; height: 2px;
  background: var(--soft); opacity: .5; }
.slider input { grid-row: 1; justify-self: center; position: relative; width: 20px; height: 20px; margin: 4px 0;
  accent-color: var(--accent); background: var(--card); }
.slider label { grid-row: 2; text-align: center; font-size: .72rem; padding: 2px 0 8px; cursor: pointer;
  color: var(--soft); position: relative; }
.slider input:checked + label { color: var(--ink); font-weight: 700; }
.slider figure { grid-area: 3 / 1 / 4 / -1; display: none; }
.slider input:checked + label + figure { display: block; }
.slider img { width: 100%; height: 340px; object-fit: contain; }
.slider img.matrix { object-fit: fill; }
.slider figcaption { min-height: 4.5em; }
.key { display: flex; gap: 8px; align-items: center; font-size: .85rem; color: var(--soft); flex-wrap: wrap; }
.key img { width: 90px; height: 12px; }
summary { cursor: pointer; margin-bottom: 8px; }
pre { margin: 0; padding: 10px 12px; white-space: pre-wrap; font-size: .8rem; background: var(--page); }
@media (max-width: 760px) { main { padding: 8px; } section, aside { padding: 16px 14px; }
  .columns { grid-template-columns: minmax(0, 1fr); } .numbers { font-size: .78rem; } }
"""


def page_html(title: str, sections: Iterable[str], reload_seconds: int | None = None) -> str:
    """Returns a page of the sections, without scripts and requests.

    Args:
      title: title of the page, to be escaped.
      sections: HTML of the sections.
      reload_seconds: seconds after which the page loads itself again; None for never.
    """
    reload = "" if reload_seconds is None else f'\n<meta http-equiv="refresh" content="{reload_seconds}">'
    return f"""<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">{reload}
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta http-equiv="Content-Security-Policy"
  content="default-src 'none'; style-src 'unsafe-inline'; img-src data:">
<link rel="icon" href="data:,">
<title>{html.escape(title)}</title>
<style>{STYLE}</style>
</head>
<body><main>
{"".join(sections)}
</main></body>
</html>
"""


def table_html(values: Mapping[str, str]) -> str:
    """Returns a table of names and values, each escaped."""
    rows = "".join(row_html(name, str(value)) for name, value in values.items())
    return f"<table><tbody>{rows}</tbody></table>"


def row_html(name: str, *cells: str) -> str:
    """Returns a row of a table: a name and its cells, escaped."""
    texts = "".join(f"<td>{html.escape(cell)}</td>" for cell in cells)
    return f'<tr><th scope="row">{html.escape(name)}</th>{texts}</tr>'


def numbers_html(name: str, heads: Iterable[str], lines: Iterable[str], kind: str = "numbers") -> str:
    """Returns a table of numbers, in a frame that scrolls on narrow pages, also by keyboard.

    Args:
      name: name of the table for screen readers.
      heads: heads of the columns.
      lines: HTML of the rows, see `row_html`.
      kind: CSS classes of the table.
    """
    head = "".join(f'<th scope="col">{html.escape(column)}</th>' for column in heads)
    table = f'<table class="{kind}"><thead><tr>{head}</tr></thead><tbody>{"".join(lines)}</tbody></table>'
    return f'<div class="scroll" role="region" tabindex="0" aria-label="{html.escape(name)}">{table}</div>'


def csv_text(head: Iterable[str], rows: Iterable[Iterable[Any]]) -> str:
    """Returns rows as CSV; lists are joined by spaces, None is empty."""

    def plain(value: Any) -> Any:
        return " ".join(map(str, value)) if isinstance(value, list | tuple) else value

    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerows([head, *(map(plain, row) for row in rows)])
    return text.getvalue()


def table_csv(rows: Iterable[Mapping[str, Any]], fields: Sequence[str]) -> str:
    """Returns the fields of rows as CSV, see `csv_text`."""
    return csv_text(fields, ([row[name] for name in fields] for row in rows))


def csv_link(name: str, text: str, note: str = "") -> str:
    """Returns a link that saves numbers, which are contained in the page.

    Args:
      name: name of the saved file.
      text: content of the file.
      note: description of the content, if the name is not enough.
    """
    url = f"data:text/csv;charset=utf-8,{urllib.parse.quote(text, safe=',-.')}"
    after = f" ({html.escape(note)})" if note else ""
    name = html.escape(name)
    return f'<p class="saves"><a download="{name}" href="{url}">{name}</a>{after}</p>'


def png_url(colors: np.ndarray) -> str:
    """Returns a picture, RGBA float `[rows, columns, 4]`, as the data URL of a PNG."""
    from matplotlib.image import imsave

    buffer = io.BytesIO()
    imsave(buffer, np.asarray(colors), format="png")
    return f"data:image/png;base64,{base64.b64encode(buffer.getvalue()).decode()}"


def format_value(key: str, value: Any) -> str:
    """Formats a figure for people: '-' for None, shares in %, thousands with commas.

    Args:
      key: name of the figure in the results, by which shares are recognized.
      value: a number, a text, None, or a list of these.
    """
    if value is None:
        return "-"
    if isinstance(value, list | tuple):
        return ("-" if key == "sizes" else ", ").join(format_value("", item) for item in value)
    if isinstance(value, float):
        if key.endswith("accuracy") or key in ("density", "acceptance"):
            return format_percent(value)
        return f"{value:,.0f}" if 1000 <= abs(value) < 1e15 else f"{value:.4g}"
    return f"{value:,}" if type(value) is int and key != "seed" else str(value)


def format_percent(fraction: float) -> str:
    """Formats a fraction in %, with two significant digits below 1 %."""
    percent = 100 * fraction
    if 0 < percent < 1:
        return f"{percent:.2g} %"
    return f"{percent:.2f} %" if 99.95 <= percent < 99.995 else f"{percent:.1f} %"


def sampling_error(share: float, samples: int) -> float:
    """Returns the standard error of a share of samples, as a share: the binomial one.

    Args:
      share: such as an accuracy, from 0 to 1.
      samples: number of samples.

    >>> round(sampling_error(0.9, 100), 4)
    0.03
    """
    return math.sqrt(share * (1 - share) / samples)


def format_with_error(share: float, error: float | None, digits: int = 1) -> str:
    """Formats a share and its standard error in %; without the error where that is None.

    >>> format_with_error(0.947, 0.0118), format_with_error(0.5, None, 2)
    ('94.7 ±1.2 %', '50.00 %')
    """
    if error is None:
        return format_percent(share) if digits == 1 else f"{100 * share:.{digits}f} %"
    return f"{100 * share:.{digits}f} ±{100 * error:.{digits}f} %"


def new_figure(height: float, layout: Literal["constrained"] | None = "constrained") -> "Figure":
    """Returns a Matplotlib figure of the pages' width and `height` inches."""
    from matplotlib.figure import Figure

    return Figure((WIDTH, height), layout=layout)


def strip_axes(axes: "Axes") -> None:
    """Removes the frame and the ticks, but not their labels."""
    axes.spines[:].set_visible(False)
    axes.tick_params(which="both", length=0)


def legend_above(axes: "Axes") -> None:
    """Puts the legend in one line above the axes, where it covers nothing."""
    place = {"loc": "lower left", "bbox_to_anchor": (0, 1.02), "ncols": 4, "borderaxespad": 0}
    axes.legend(frameon=False, fontsize=9, handlelength=1.3, columnspacing=1.2, handletextpad=0.4, **place)


def figure_html(name: str, figure: "Figure", description: str, caption: str) -> str:
    """Returns a chart as inline SVG with its caption.

    Args:
      name: prefix of this chart's ids, unique in the page.
      figure: the chart.
      description: description for screen readers.
      caption: caption below the chart.
    """
    svg = _svg(figure, name).replace("<svg ", f'<svg role="img" aria-label="{html.escape(description)}" ', 1)
    return f"<figure>{svg}<figcaption>{html.escape(caption)}</figcaption></figure>"


def _svg(figure: "Figure", name: str) -> str:
    """Returns the figure as inline SVG with colors of the page and ids that start with `name`."""
    buffer = io.StringIO()
    no_metadata = dict.fromkeys(("Creator", "Date", "Format", "Type"))
    figure.savefig(buffer, format="svg", transparent=True, metadata=no_metadata)
    svg = buffer.getvalue()
    svg = svg[svg.index("<svg ") :]
    svg = re.sub(r'( id="|href="#|url\(#)', rf"\1{name}-", svg)
    svg = re.sub(
        r' d="[^"]*"', lambda path: re.sub(r"(\.\d)\d+", r"\1", path[0]), svg
    )  # saves a third of the page
    for color, page_color in _PAGE_COLORS.items():
        svg = svg.replace(color, page_color)
    return svg
