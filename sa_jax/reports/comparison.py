"""The Markdown tables and the self-contained HTML page of a comparison of pruning methods."""

import html
import itertools
import statistics
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from sa_jax.baselines import METHODS
from sa_jax.reports.charts import (
    Look,
    Point,
    density_axis,
    draw_line,
    error_axis,
    error_of,
    finish,
    log_scale,
    name_ends,
    name_points,
    put_ticks,
)
from sa_jax.reports.page import (
    ACCENT,
    CHARTS,
    INK,
    SECOND,
    csv_link,
    figure_html,
    new_figure,
    numbers_html,
    page_html,
    row_html,
    table_csv,
    table_html,
)

DENSE = "dense"
CLASSES = ("Needs no labels", "Needs labels, no derivative", "Takes derivatives of the loss", "Moves weights")
_MARKERS = ("o", "s", "^", "D")  # one per class
_MOVES = len(CLASSES) - 1
# Names of usual ways to anneal, where the settings do not say more; other methods have the labels of `METHODS`.
_ANNEALERS = {
    "anneal": "Score search, then annealing",
    "anneal_alone": "Annealing alone",
    "anneal_gradient": "Score search, then annealing, derivative",
    "anneal_nudged": "Score search, then annealing, nudged weights",
}
# How often the page of a comparison that is not finished loads itself again.
RELOAD_SECONDS = 10
_SUPERSCRIPTS = str.maketrans("0123456789", "⁰¹²³⁴⁵⁶⁷⁸⁹")

Rows = Sequence[Mapping[str, Any]]


def display_name(method: str) -> str:
    """Returns the name of a method to show to people.

    >>> display_name("wanda_global"), display_name("some_other")
    ('Wanda, global', 'Some other')
    """
    if method in METHODS:
        return METHODS[method].label
    words = method.replace("_", " ")
    return _ANNEALERS.get(method, words[:1].upper() + words[1:])


def markdown_tables(rows: Rows, paired: Rows, names: Mapping[str, str] = {}) -> str:
    """Returns one table of test accuracies per data set, network and weights.

    Args:
      rows: one row per cell: dataset, network, weights, method, density, seed; test_accuracy and
        validation_accuracy, None where the cell is impossible, and then the reason; cpu_seconds; uses_labels,
        uses_gradients, moves_weights. The method 'dense', with density 1, is the unpruned network.
      paired: one row per tested difference: dataset, network, weights, density, reference, method and real.
      names: names to show of methods; `display_name` names the others.
    """
    return "\n".join(_markdown(group) for group in _groups(rows, paired, names))


def render_comparison(
    rows: Rows,
    paired: Rows,
    worth: Sequence[str],
    command: str,
    versions: Mapping[str, str],
    machine: str,
    names: Mapping[str, str] = {},
    num_cells: int | None = None,
) -> str:
    """Renders a comparison as one HTML page; the same input gives the same text.

    Args:
      rows: see `markdown_tables`; also with sparsity, total, effective_compression, kept_per_layer and
        total_per_layer.
      paired: see `markdown_tables`; also with difference, reference minus method, and standard_error.
      worth: sentences on what annealing gained, and at what cost.
      command: command that repeats the comparison.
      versions: versions of the libraries, by name.
      machine: machine that it ran on.
      names: see `markdown_tables`.
      num_cells: number of all cells, where some are not measured yet; None where all are.
    """
    import matplotlib

    groups = _groups(rows, paired, names)
    with matplotlib.rc_context(CHARTS):
        sections = [_headline(rows, worth), *(_section(group, f"g{i}") for i, group in enumerate(groups))]
    sections += [_uses(groups), _saves(rows, paired), _reproduce(command, versions, machine)]
    if num_cells is not None:
        sections.insert(1, _unfinished(len(rows), num_cells))
    return page_html("Pruning methods compared", sections, None if num_cells is None else RELOAD_SECONDS)


class _Group(NamedTuple):
    """Rows that are compared directly, because they prune the same networks."""

    title: str
    rows: Rows
    paired: Rows
    names: Mapping[str, str]

    def name(self, method: str) -> str:
        """The name of a method to show to people."""
        return self.names.get(method) or display_name(method)

    @property
    def densities(self) -> list[float]:
        return sorted({row["density"] for row in self.rows if row["method"] != DENSE}, reverse=True)

    @property
    def classes(self) -> dict[str, int]:
        """The class of each method, in order of class."""
        found = {row["method"]: class_of(row) for row in self.rows if row["method"] != DENSE}
        return dict(sorted(found.items(), key=lambda item: item[1]))

    def values(self, name: str, method: str, density: float | None = None) -> list[float]:
        """One figure of all possible cells of a method, at one density or at all."""
        rows = [row for row in self.rows if row["method"] == method and density in (None, row["density"])]
        return [row[name] for row in rows if row["test_accuracy"] is not None]

    def mean(self, name: str, method: str, density: float | None = None) -> float | None:
        values = self.values(name, method, density)
        return statistics.fmean(values) if values else None

    def curve(self, name: str, method: str) -> list[tuple[float, float, float]]:
        """(density, mean, standard deviation) for each density at which a method has the figure."""
        found = ((density, self.values(name, method, density)) for density in self.densities)
        return [(density, statistics.fmean(values), _deviation(values)) for density, values in found if values]


def _groups(rows: Rows, paired: Rows, names: Mapping[str, str]) -> list[_Group]:
    def of(rows, key):
        return [row for row in rows if (row["dataset"], row["network"], row["weights"]) == key]

    keys = dict.fromkeys((row["dataset"], row["network"], row["weights"]) for row in rows)
    titles = {key: f"{key[0]}, {key[1]}, {weights_name(key[2])}" for key in keys}
    return [_Group(titles[key], of(rows, key), of(paired, key), names) for key in keys]


def weights_name(source: str) -> str:
    """Returns in words where a network's weights come from."""
    names = {"random": "random weights", "pretrain": "pretrained weights"}
    return names.get(source, f"weights from {source}")


def class_of(row: Mapping[str, Any]) -> int:
    """Returns the index in `CLASSES` of a method, from uses_labels, uses_gradients and moves_weights."""
    if row["moves_weights"]:
        return _MOVES
    return 2 if row["uses_gradients"] else int(bool(row["uses_labels"]))


def _deviation(values: Sequence[float]) -> float:
    return statistics.stdev(values) if len(values) > 1 else 0.0


# Tables.


class _Cell(NamedTuple):
    """A cell of the table of accuracies: its text, and how it is marked."""

    text: str
    bold: bool = False
    same: bool = False


class _Line(NamedTuple):
    """A line of the table of accuracies."""

    method: str
    cells: list[_Cell]
    seconds: str


def _accuracies(group: _Group) -> tuple[dict[str, list[_Line]], list[str]]:
    """Returns the lines of the table by class, and the reasons of impossible cells in the order of their notes."""
    reasons: dict[str, int] = {}
    same = {(row["method"], row["density"]) for row in group.paired if not row["real"]}
    means = {
        (method, density): mean
        for method, density in itertools.product(group.classes, group.densities)
        if (mean := group.mean("test_accuracy", method, density)) is not None
    }
    rivals: dict[tuple[bool, float], list[float]] = {}
    for (method, density), mean in means.items():
        rivals.setdefault((group.classes[method] == _MOVES, density), []).append(round(mean, 3))

    def cell(method, density):
        if (method, density) in means:
            of_kind = rivals[group.classes[method] == _MOVES, density]
            bold = len(of_kind) > 1 and round(means[method, density], 3) == max(of_kind)
            text = _spread(group.values("test_accuracy", method, density))
            return _Cell(text, bold, (method, density) in same)
        given = [row["reason"] for row in group.rows if (row["method"], row["density"]) == (method, density)]
        if not given:
            return _Cell("")
        number = reasons.setdefault(given[0], len(reasons) + 1)
        return _Cell("-" + str(number).translate(_SUPERSCRIPTS))

    lines: dict[str, list[_Line]] = {}
    for method, kind in group.classes.items():
        cells = [cell(method, density) for density in group.densities]
        line = _Line(method, cells, _seconds(group.mean("cpu_seconds", method)))
        lines.setdefault(CLASSES[kind], []).append(line)
    return lines, list(reasons)


def _spread(shares: Sequence[float]) -> str:
    """Returns the mean in per cent, with the standard deviation if there are several shares."""
    text = f"{100 * statistics.fmean(shares):.1f}"
    return f"{text} ±{100 * _deviation(shares):.1f}" if len(shares) > 1 else text


def _seconds(seconds: float | None) -> str:
    if seconds is None:
        return ""
    return f"{seconds:,.0f}" if seconds >= 9.95 else f"{seconds:.2g}"


def _heads(group: _Group) -> list[str]:
    return [f"{100 * density:.6g} % kept" for density in group.densities]


def _dense_line(group: _Group) -> str:
    shares = group.values("test_accuracy", DENSE)
    if not shares:
        return ""
    total = next(row["total"] for row in group.rows if row["method"] == DENSE)
    return f"Test accuracy of the dense network, with all {total:,} branches: {_spread(shares)} %."


def _notes(group: _Group, reasons: Sequence[str]) -> list[str]:
    seeds = len({row["seed"] for row in group.rows})
    spread = f"mean ± standard deviation over {seeds} seeds" if seeds > 1 else "one seed"
    notes = [
        f"Test accuracy in %, {spread}. Bold: the best method that keeps the weights, and the best that moves "
        "them. CPU s: mean CPU seconds per cell."
    ]
    if any(not row["real"] for row in group.paired):
        reference = group.name(group.paired[0]["reference"])
        notes.append(
            f"=: no significant difference from {reference} (paired test, adjusted for the number of tests)."
            + (" With so few seeds the test finds only large differences." if 1 < seeds < 5 else "")
        )
    if seeds == 1 and group.paired:
        notes.append("With one seed the paired test covers the test samples only; other seeds may differ.")
    elif seeds > 1 and group.rows[0]["weights"] not in ("random", "pretrain"):
        notes.append("All seeds prune the same network: a seed changes the search, not the weights.")
    return notes + [f"-{str(i).translate(_SUPERSCRIPTS)}: {reason}." for i, reason in enumerate(reasons, 1)]


def _markdown(group: _Group) -> str:
    lines, reasons = _accuracies(group)
    heads = ["Method", *_heads(group), "CPU s"]
    table = [heads, ["---", *["--:"] * (len(heads) - 1)]] if lines else []
    for title, of_class in lines.items():
        table.append([f"*{title}*", *[""] * (len(heads) - 1)])
        for line in of_class:
            cells = [(f"**{c.text}**" if c.bold else c.text) + (" =" if c.same else "") for c in line.cells]
            table.append([group.name(line.method), *cells, line.seconds])
    parts = [f"### {group.title}", _dense_line(group)]
    parts.append("\n".join("| " + " | ".join(cell.replace("|", r"\|") for cell in row) + " |" for row in table))
    parts.append("\n".join(f"- {note}" for note in _notes(group, reasons)) if lines else "")
    return "\n\n".join(part for part in parts if part) + "\n"


def _class_row(title: str, columns: int) -> str:
    return f'<tr class="class"><th colspan="{columns}" scope="rowgroup"><span>{title}</span></th></tr>'


def _grid_row(name: str, cells: Sequence[_Cell]) -> str:
    texts = (
        f"<td>{f'<strong>{cell.text}</strong>' if cell.bold else cell.text}"
        f'<span class="mark">{"=" if cell.same else ""}</span></td>'
        for cell in cells
    )
    return f'<tr><th scope="row">{html.escape(name)}</th>{"".join(texts)}</tr>'


def _accuracy_table(group: _Group) -> str:
    lines, reasons = _accuracies(group)
    heads = ["Method", *_heads(group), "CPU s"]
    body = []
    for title, of_class in lines.items():
        body.append(_class_row(title, len(heads)))
        body += [_grid_row(group.name(line.method), [*line.cells, _Cell(line.seconds)]) for line in of_class]
    notes = "<br>".join(map(html.escape, _notes(group, reasons)))
    table = numbers_html(f"Test accuracy, {group.title}", heads, body, "numbers marked")
    return f'<h3>Test accuracy</h3>{table}<p class="soft">{notes}</p>'


def _paired(group: _Group) -> str:
    """States how many differences the paired test finds significant, and names the others."""
    if not group.paired:
        return ""
    reference = group.name(group.paired[0]["reference"])
    better = sum(bool(row["real"]) and row["difference"] > 0 for row in group.paired)
    worse = sum(bool(row["real"]) and row["difference"] <= 0 for row in group.paired)
    counted = (
        f"{better + worse} of {len(group.paired)} differences in test accuracy are significant: {reference} is "
        f"better in {better} and worse in {worse}."
    )
    unreal = []
    for density, head in zip(group.densities, _heads(group), strict=True):
        names = [
            group.name(row["method"]) for row in group.paired if row["density"] == density and not row["real"]
        ]
        if names:
            unreal.append("<li>" + html.escape(f"{head}: {'; '.join(names)}") + "</li>")
    named = f"<p>No significant difference:</p><ul>{''.join(unreal)}</ul>" if unreal else ""
    return f"<h3>Which differences are significant</h3><p>{html.escape(counted)}</p>{named}"


def _differences(group: _Group) -> str:
    """Returns all differences of the paired test, in a box that can be opened."""
    if not group.paired:
        return ""
    cells = {
        (row["method"], row["density"]): _Cell(
            f"{100 * row['difference']:+.1f} ±{100 * row['standard_error']:.1f}", same=not row["real"]
        )
        for row in group.paired
    }
    tested = {method for method, _ in cells}
    lines = [
        _grid_row(group.name(method), [cells.get((method, density), _Cell("")) for density in group.densities])
        for method in group.classes
        if method in tested
    ]
    reference = group.name(group.paired[0]["reference"])
    note = f"{reference} minus the method, in points, ± standard error. =: no significant difference."
    title = f"All differences from {reference}"
    table = numbers_html(f"{title}, {group.title}", ["Method", *_heads(group)], lines, "numbers marked")
    return f"""<details><summary>{html.escape(title)}</summary>
{table}<p class="soft">{html.escape(note)}</p></details>"""


def _uses(groups: Sequence[_Group]) -> str:
    """Lists what each method may use, and its mean cost on each network."""
    heads = ["Method", "Labels", "Derivatives", "Moves weights", *(f"CPU s: {group.title}" for group in groups)]
    rows = {row["method"]: row for group in groups for row in group.rows if row["method"] != DENSE}
    lines = []
    for kind, title in enumerate(CLASSES):
        of_class = [row for row in rows.values() if class_of(row) == kind]
        lines += [_class_row(title, len(heads))] if of_class else []
        for row in of_class:
            uses = ("yes" if row[name] else "no" for name in ("uses_labels", "uses_gradients", "moves_weights"))
            costs = (_seconds(group.mean("cpu_seconds", row["method"])) for group in groups)
            lines.append(row_html(groups[0].name(row["method"]), *uses, *costs))
    note = "CPU seconds per cell, mean over densities and seeds."
    title = "What each method may use, and its cost"
    return f"""<section><h2>{title}</h2>
{numbers_html(title, heads, lines)}<p class="soft">{note}</p></section>"""


def _headline(rows: Rows, worth: Sequence[str]) -> str:
    pruned = [row for row in rows if row["method"] != DENSE]
    counts = {
        "Methods": len({row["method"] for row in pruned}),
        "Densities": len({row["density"] for row in pruned}),
        "Seeds": len({row["seed"] for row in rows}),
        "Networks": len({(row["dataset"], row["network"], row["weights"]) for row in rows}),
    }
    facts = "".join(f"<div><dt>{name}</dt><dd>{count}</dd></div>" for name, count in counts.items())
    sentences = "".join(f"<p>{html.escape(sentence)}</p>" for sentence in worth)
    gained = f"<h2>What annealing gained</h2>{sentences}" if worth else ""
    return f"""<section class="columns"><div><h1>Pruning methods compared</h1>
<p>Every method keeps the same number of branches of the same networks; a smaller dense network has at most as
many. Accuracies are measured on test samples, which no method has used.</p><dl>{facts}</dl></div>
<div>{gained}</div></section>"""


def _unfinished(done: int, num_cells: int) -> str:
    said = (
        f"{done:,} of {num_cells:,} cells are measured. While the command runs, this page fills and loads itself "
        "again. If the command was stopped, repeat it to measure the others."
    )
    return f'<aside role="status"><h2>Not finished yet</h2><p>{said}</p></aside>'


def _saves(rows: Rows, paired: Rows) -> str:
    """Returns links to all numbers as CSV."""
    tables = (
        ("results.csv", rows, "one row per method, density and seed"),
        ("paired.csv", paired, "the paired tests"),
    )
    links = (csv_link(name, table_csv(of, list(of[0])), note) for name, of, note in tables if of)
    return f"<section><h2>All numbers</h2>{''.join(links)}</section>"


def _reproduce(command: str, versions: Mapping[str, str], machine: str) -> str:
    return f"""<section><h2>Reproduce</h2><pre><code>{html.escape(command)}</code></pre>
<div class="columns"><div><h3>Versions</h3>{table_html(versions)}</div>
<div><h3>Machine</h3><p>{html.escape(machine)}</p></div></div></section>"""


def _section(group: _Group, name: str) -> str:
    if not group.densities:
        return f"<section><h2>{html.escape(group.title)}</h2><p>{_dense_line(group)}</p></section>"
    looks = _looks(group)
    least, middle = group.densities[-1], group.densities[len(group.densities) // 2]
    charts = [_accuracy_chart(group, looks, name), _compression_chart(group, looks, name)]
    charts += [_time_chart(group, looks, density, name) for density in dict.fromkeys((middle, least))]
    charts += [_layer_chart(group, looks, least, name)]
    columns = f'<div class="columns">{"".join(charts)}<div>{_paired(group)}</div></div>'
    return f"""<section><h2>{html.escape(group.title)}</h2><p>{_dense_line(group)}</p>{columns}
{_accuracy_table(group)}{_differences(group)}</section>"""


# Charts.


def _looks(group: _Group) -> dict[str, Look]:
    """Returns colors for annealing, ink for the best other method of each class, faint ink for other methods."""
    looks = {method: Look(INK, 0.22, "-", _MARKERS[kind], False) for method, kind in group.classes.items()}
    ways = [method for method in looks if method not in METHODS]
    for kind in range(len(CLASSES)):
        of_kind = [method for method in looks if group.classes[method] == kind and method not in ways]
        others = [method for method in of_kind if not METHODS[method].own]
        if others:
            best = max(others, key=lambda method: _validated(group, method))
            looks[best] = looks[best]._replace(alpha=0.75, named=True)
    frozen = itertools.cycle(("-", "--", ":"))
    for method in sorted(ways, key=lambda method: (len(method), method)):
        moves = group.classes[method] == _MOVES
        color, line = (SECOND, "-") if moves else (ACCENT, next(frozen))
        looks[method] = looks[method]._replace(color=color, alpha=1, line=line, named=True)
    return looks


def _validated(group: _Group, method: str) -> float:
    """Returns the sum of the validation accuracy over all densities, 0 for an impossible cell."""
    return sum(group.mean("validation_accuracy", method, density) or 0 for density in group.densities)


_REFERENCE = Look(INK, 0.75, "--", "", True)
_LOOKS_TOLD = (
    "Blue: annealing. Orange: annealing that moves weights. Strong: the best other method of each class, chosen "
    "on validation samples. Faint: all other methods."
)


def _accuracy_chart(group: _Group, looks: Mapping[str, Look], name: str) -> str:
    figure = new_figure(4.0)
    axes = figure.add_subplot()
    ends = []
    for method, look in looks.items():
        points = group.curve("test_accuracy", method)
        if not points:
            continue
        densities, means, spreads = zip(*points, strict=True)
        errors = [error_of(mean) for mean in means]
        draw_line(axes, densities, errors, look)
        if look.named:
            low, high = ([error_of(m + sign * s) for m, s in zip(means, spreads, strict=True)] for sign in (1, -1))
            axes.fill_between(densities, low, high, color=look.color, alpha=0.15, linewidth=0)
            ends.append(Point(group.name(method), densities[-1], errors[-1], look))
    dense = group.mean("test_accuracy", DENSE)
    if dense is not None:
        axes.axhline(error_of(dense), color=INK, alpha=0.6, linestyle=(0, (5, 4)), linewidth=1)
        ends.append(Point("Dense", group.densities[-1], error_of(dense), _REFERENCE))
    if not ends:
        return ""
    density_axis(axes, group.densities)
    error_axis(axes)
    axes.set_title("Test accuracy, %", loc="left")
    name_ends(axes, ends)
    text = "Test accuracy against the share of branches pruned. Bands: one standard deviation over seeds."
    caption = f"{text} The error is on a log scale. {_LOOKS_TOLD}"
    return figure_html(f"{name}-accuracy", figure, text, caption)


def _compression_chart(group: _Group, looks: Mapping[str, Look], name: str) -> str:
    figure = new_figure(4.0)
    axes = figure.add_subplot()
    ends = []
    for method, look in looks.items():
        points = group.curve("effective_compression", method)
        if points:
            at, means, _ = zip(*points, strict=True)
            draw_line(axes, at, means, look)
            ends += [Point(group.name(method), at[-1], means[-1], look)] if look.named else []
    densities = group.densities
    axes.plot(
        densities, [1 / density for density in densities], color=INK, alpha=0.6, linestyle=(0, (5, 4)), linewidth=1
    )
    ends.append(Point("No dead units", densities[-1], 1 / densities[-1], _REFERENCE))
    density_axis(axes, group.densities)
    put_ticks(axes.yaxis, log_scale(axes, "y"), lambda value: f"{value:,.6g}×")
    axes.set_title("Effective compression", loc="left")
    name_ends(axes, ends)
    text = (
        "Effective compression against the share of branches pruned: the number of all branches over the number "
        "that is left when units without inputs or outputs are removed."
    )
    return figure_html(f"{name}-compression", figure, text, text)


def _time_chart(group: _Group, looks: Mapping[str, Look], density: float, name: str) -> str:
    """Draws accuracy against CPU time at one density, with the name of every method."""
    figure = new_figure(5.4)
    axes = figure.add_subplot()
    points = []
    for method, look in looks.items():
        accuracy = group.mean("test_accuracy", method, density)
        seconds = group.mean("cpu_seconds", method, density)
        if accuracy is not None and seconds is not None:
            points.append(Point(group.name(method), max(seconds, 1e-3), error_of(accuracy), look))
    if not points:
        return ""
    for _, seconds, error, look in points:
        alpha = max(look.alpha, 0.4)
        axes.plot(seconds, error, look.marker, color=look.color, alpha=alpha, markersize=4.5, markeredgewidth=0)
    log_scale(axes, "x", 0.12)
    axes.set_xlabel("CPU seconds")
    error_axis(axes)
    axes.xaxis.set_major_formatter(lambda value, _: f"{value:,g}")
    axes.minorticks_off()
    head = f"{100 * density:.6g} % kept"
    axes.set_title(f"Test accuracy, %, at {head}", loc="left")
    name_points(axes, points)
    shapes = "; ".join(f"{sign}: {title.lower()}" for sign, title in zip("●■▲◆", CLASSES, strict=True))
    text = f"Test accuracy against CPU time at {head}."
    return figure_html(f"{name}-time-{density:g}", figure, text, f"{text} {shapes}.")


def _layer_chart(group: _Group, looks: Mapping[str, Look], density: float, name: str) -> str:
    """Draws the share of each layer that the named methods keep at one density."""
    figure = new_figure(4.0)
    axes = figure.add_subplot()
    shares: dict[str, list[float]] = {}
    totals: list[int] = []
    for method in (method for method, look in looks.items() if look.named):
        rows = [row for row in group.rows if (row["method"], row["density"]) == (method, density)]
        counts = [row["kept_per_layer"] for row in rows if row["kept_per_layer"]]
        if counts:
            totals = rows[0]["total_per_layer"]
            layers = zip(*counts, strict=True)
            shares[method] = [statistics.fmean(kept) / total for kept, total in zip(layers, totals, strict=True)]
    if not shares:
        return ""
    positive = [share for of_method in shares.values() for share in of_method if share > 0]
    floor = min(positive, default=1) / 3
    ends = []
    for method, of_method in shares.items():
        drawn = [max(share, floor) for share in of_method]
        draw_line(axes, range(len(drawn)), drawn, looks[method])
        ends.append(Point(group.name(method), len(drawn) - 1, drawn[-1], looks[method]))
    emptied = any(share == 0 for of_method in shares.values() for share in of_method)
    put_ticks(
        axes.yaxis, log_scale(axes, "y"), lambda value: f"{100 * value:.3g} %", floor=floor if emptied else None
    )
    names = [f"layer {i}\nof {total:,}" for i, total in enumerate(totals, 1)]
    axes.set(xticks=range(len(totals)), xticklabels=names, xlim=(-0.2, len(totals) - 0.8))
    axes.set_title(f"Kept share of each layer, at {100 * density:.6g} % kept", loc="left")
    finish(axes)
    name_ends(axes, ends)
    text = "Share of each layer's branches that is kept, on a log scale."
    return figure_html(f"{name}-layers", figure, text, text)
