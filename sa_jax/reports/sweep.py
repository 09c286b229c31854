"""The HTML page and the picture of a sweep over densities."""

import html
import io
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from sa_jax.baselines import METHODS
from sa_jax.reports.charts import (
    Look,
    Point,
    density_axis,
    draw_line,
    error_axis,
    error_of,
    name_ends,
)
from sa_jax.reports.page import (
    ACCENT,
    CHARTS,
    INK,
    SECOND,
    csv_link,
    figure_html,
    format_with_error,
    new_figure,
    numbers_html,
    page_html,
    row_html,
    table_csv,
)

if TYPE_CHECKING:
    from matplotlib.figure import Figure

# Fields of a row, which are columns of the page's CSV.
FIELDS = (
    "density",
    "kept",
    "test_accuracy",
    "test_error",
    "rival",
    "rival_accuracy",
    "rival_error",
    "best_one_shot",
    "one_shot_accuracy",
    "one_shot_error",
    "dense_accuracy",
    "dense_error",
    "strongest_other",
    "difference",
    "difference_error",
    "validation_accuracy",
    "cpu_seconds",
    "folder",
)
# How often the page of a sweep that is not finished loads itself again.
RELOAD_SECONDS = 10
# Colors in the picture of those that stand for colors of the page.
_IN_PICTURE = {INK: "#1b232c", ACCENT: "#0072b2", SECOND: "#d55e00"}

Rows = Sequence[Mapping[str, Any]]


def row_of(result: Mapping[str, Any], folder: str) -> dict[str, Any]:
    """Returns the figures of a run that a sweep shows, by the names of `FIELDS`.

    Args:
      result: content of the run's `result.json`.
      folder: folder of the run.
    """
    errors, rival, other = result["standard_errors"], result["rival"] or {}, result["strongest_other"]
    values = (
        result["density"],
        result["kept"],
        result["test_accuracy"],
        errors["test_accuracy"],
        rival.get("method"),
        rival.get("test_accuracy"),
        errors.get("rival_test_accuracy"),
        result["best_one_shot"],
        result["one_shot_test_accuracy"][result["best_one_shot"]],
        errors["best_one_shot_test_accuracy"],
        result["dense_test_accuracy"],
        errors["dense_test_accuracy"],
        other["name"],
        other["difference"],
        other["standard_error"],
        result["validation_accuracy"],
        result["cpu_seconds"],
        folder,
    )
    return dict(zip(FIELDS, values, strict=True))


def render_sweep(rows: Rows, title: str, ours: str, begun_before: bool, num_densities: int) -> str:
    """Renders a sweep as one HTML page; the same input gives the same text.

    Args:
      rows: see `row_of`, one for each density that is done, the highest first.
      title: what was pruned, such as 'digits, 64-32-16-10'.
      ours: name of the way to anneal.
      begun_before: whether each density began with the scores of the one before.
      num_densities: number of all densities; if some are not done, the page says so and loads itself again.
    """
    import matplotlib

    text = "Test accuracy against the share of branches pruned. Bars: one standard error, from the test samples."
    with matplotlib.rc_context(CHARTS):
        drawn = figure_html("sweep", _draw(rows, ours), text, f"{text} The error is on a log scale.")
    unfinished = len(rows) < num_densities
    waits = f"<p>{len(rows)} of {num_densities} densities are done; this page fills.</p>" if unfinished else ""
    sections = [
        f"""<section class="columns"><div><h1>Accuracy against density</h1><p>{html.escape(title)}</p>{waits}
<p>{_verdict(rows)}</p><p class="soft">{_beginning(begun_before)}</p></div>{drawn}</section>""",
        _table(rows, ours),
    ]
    return page_html(f"Sweep: {title}", sections, RELOAD_SECONDS if unfinished else None)


def render_picture(rows: Rows, ours: str) -> bytes:
    """Returns the chart of a sweep as a PNG.

    Args:
      rows: see `render_sweep`.
      ours: name of the way to anneal.
    """
    import matplotlib

    buffer = io.BytesIO()
    with matplotlib.rc_context({**CHARTS, "savefig.facecolor": "white"}):
        figure = _draw(rows, ours)
        for artist in figure.findobj(lambda artist: hasattr(artist, "get_color")):
            color: Any = artist
            color.set_color(_IN_PICTURE.get(color.get_color(), color.get_color()))
        figure.savefig(buffer, format="png", dpi=200, metadata={"Software": None})
    return buffer.getvalue()


def _draw(rows: Rows, ours: str) -> "Figure":
    """Draws test accuracy against density: annealed masks, the rival's, best one-shot masks, all branches."""
    figure = new_figure(4.4)
    axes = figure.add_subplot()
    rivals = {row["rival"] for row in rows} - {None}
    lines = {
        "test": (ours, Look(ACCENT, 1.0, "-", "o", True)),
        "rival": (METHODS[min(rivals)].label if rivals else "", Look(SECOND, 1.0, "-", "^", True)),
        "one_shot": ("Best one-shot", Look(INK, 0.6, "-", "s", True)),
        "dense": ("Dense", Look(INK, 0.6, "--", "", True)),
    }
    ends = []
    for field, (name, look) in lines.items():
        points = [
            (row["density"], row[f"{field}_accuracy"], row[f"{field}_error"])
            for row in rows
            if row[f"{field}_accuracy"] is not None
        ]
        for density, accuracy, error in points if look.marker else ():
            reach = error_of(accuracy + error), error_of(accuracy - error)
            axes.plot([density, density], reach, color=look.color, alpha=0.7 * look.alpha, lw=1.2)
        if points:
            densities, errors = [point[0] for point in points], [error_of(point[1]) for point in points]
            draw_line(axes, densities, errors, look)
            ends.append(Point(name, densities[-1], errors[-1], look))
    density_axis(axes, [row["density"] for row in rows])
    error_axis(axes)
    axes.set_title("Test accuracy, %", loc="left")
    name_ends(axes, ends)
    return figure


def _verdict(rows: Rows) -> str:
    """Counts at how many densities the annealed mask is better than the strongest other one."""
    gains = [row["difference"] for row in rows if abs(row["difference"]) > row["difference_error"]]
    better, worse = sum(gain > 0 for gain in gains), sum(gain < 0 for gain in gains)
    level = len(rows) - better - worse
    counts = f"better at {better}, level at {level} and worse at {worse} of {len(rows)} densities"
    return (
        f"Against the strongest other mask of each density, the annealed mask is {counts}. Level: the difference "
        "is within one standard error."
    )


def _percent(density: float) -> str:
    return f"{100 * density:.6g}\N{NO-BREAK SPACE}%"


def _beginning(begun_before: bool) -> str:
    if begun_before:
        return (
            "Each density began with the scores that score search had found for the next higher one. All prune "
            "the same network."
        )
    return "Each density began afresh. All prune the same network."


def _table(rows: Rows, ours: str) -> str:
    rival = any(row["rival"] for row in rows)
    head = ["Kept", ours, *(["Rival"] if rival else []), "Difference", "Best one-shot", "Branches", "CPU time"]
    lines = []
    for row in rows:
        one_shot = f"{format_with_error(row['one_shot_accuracy'], row['one_shot_error'])}"
        against = [format_with_error(row["rival_accuracy"], row["rival_error"])] if row["rival"] else [""] * rival
        cells = [
            format_with_error(row["test_accuracy"], row["test_error"]),
            *against,
            f"{100 * row['difference']:+.1f} ±{100 * row['difference_error']:.1f}",
            f"{one_shot} ({METHODS[row['best_one_shot']].label})",
            f"{row['kept']:,}",
            f"{row['cpu_seconds']:,.0f} s",
        ]
        lines.append(row_html(_percent(row["density"]), *cells))
    links = ", ".join(
        f'<a href="{html.escape(row["folder"])}/report.html">{_percent(row["density"])}</a>' for row in rows
    )
    note = (
        "Test accuracies, ± one standard error. Difference: from the strongest other mask, chosen on validation "
        "samples, on the same test samples; in points. The CPU time is that of score search and annealing, with "
        "compiling."
    )
    return f"""<section><h2>All densities</h2>{numbers_html("All densities", head, lines)}
<p class="soft">{note}</p><p>The reports: {links}.</p>{csv_link("sweep.csv", table_csv(rows, FIELDS))}</section>"""
