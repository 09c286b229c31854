"""Renders the report page on the pruned linear layers of a model."""

import html
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from sa_jax.reports import charts, page

FIELDS = (
    "layer",
    "outputs",
    "inputs",
    "pattern",
    "kept",
    "total",
    "samples",
    "magnitude_error",
    "wanda_error",
    "annealed_error",
    "refit_error",
    "seconds",
)


def render_layers(rows: Sequence[Mapping[str, Any]], settings: Mapping[str, Any]) -> str:
    """Renders the page, which compares each layer's error after annealing, Wanda and magnitude pruning.

    Args:
      rows: one per layer, with the names of `FIELDS`.
      settings: the settings of the run by name.
    """
    num_kept, total = (sum(row[name] for row in rows) for name in ("kept", "total"))
    columns = {"magnitude": "magnitude_error", "Wanda": "wanda_error", "annealed": "annealed_error"}
    columns |= {"annealed and refitted": "refit_error"} if settings["refit"] else {}
    means = {label: float(np.mean([row[name] for row in rows])) for label, name in columns.items()}
    lost = ", ".join(f"{label} {100 * mean:.2g} %" for label, mean in means.items())
    heading = f"{page.format_percent(num_kept / total)} of {total:,} weights kept in {len(rows)} linear layers"
    source = "the pruned layers before it" if settings["sequential"] else "the dense network"
    about = (
        f"Pattern {settings['pattern']}; densities {settings['allocation'].replace('_', ' ')}; the inputs of each "
        f"layer come from {source}. "
        f"Squared error of a layer's outputs, relative to their square, mean over the layers: {lost}. "
        f"Kept weights are {'refitted in the last column only' if settings['refit'] else 'not changed'}."
    )
    lines = (
        page.row_html(
            row["layer"],
            f"{row['outputs']} x {row['inputs']}",
            page.format_percent(row["kept"] / row["total"]),
            *(f"{100 * row[name]:.2f} %" for name in columns.values()),
            f"{row['seconds']:.1f}",
        )
        for row in rows
    )
    left = [f"{row['layer']} ({row['not_refitted']} outputs)" for row in rows if row.get("not_refitted")]
    if left:
        about += f" Not refitted, because their inputs are 0 or too few: {', '.join(left)}."
    table = page.numbers_html("Each layer", ("layer", "shape", "kept", *columns, "s"), lines)
    table += page.csv_link("layers.csv", page.table_csv(rows, FIELDS))
    chart = f'<div class="columns">{_chart(rows, columns)}</div>'
    sections = [
        f"<section><h1>{heading}</h1><p>{html.escape(about)}</p>{chart}</section>",
        f"<section><h2>Each layer</h2>{table}</section>",
    ]
    return page.page_html(heading, sections)


def _chart(rows: Sequence[Mapping[str, Any]], columns: Mapping[str, str]) -> str:
    import matplotlib
    from matplotlib.ticker import MaxNLocator

    with matplotlib.rc_context(page.CHARTS):
        figure = page.new_figure(2.6)
        axes = figure.subplots()
        colors = {"magnitude": page.INK, "Wanda": page.SECOND}
        for label, name in columns.items():
            style = "--" if label == "annealed and refitted" else "-"
            values = [max(100 * row[name], 1e-4) for row in rows]
            color = colors.get(label, page.ACCENT)
            axes.plot(range(1, len(rows) + 1), values, style, marker="o", ms=3, lw=1, color=color, label=label)
        axes.set(xlabel="layer", ylabel="output lost, %")
        charts.put_ticks(axes.yaxis, charts.log_scale(axes, "y"), lambda value: f"{value:g}")
        axes.xaxis.set_major_locator(MaxNLocator("auto", integer=True))
        axes.legend(frameon=False, fontsize=9, loc="lower left", bbox_to_anchor=(0, 1), ncols=2)
        page.strip_axes(axes)
        axes.grid(alpha=0.2)
    description = "Share of each layer's output that is lost, by method"
    return page.figure_html("layers", figure, description, "Share of each layer's squared output that is lost.")
