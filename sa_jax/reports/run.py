"""The HTML page on a finished run: self-contained, without scripts, for light and dark, phone and desktop."""

import html
import json
import math
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from sa_jax.baselines import METHODS
from sa_jax.reports.page import (
    ACCENT,
    CHARTS,
    INK,
    SECOND,
    WIDTH,
    csv_link,
    csv_text,
    figure_html,
    format_percent,
    format_value,
    format_with_error,
    legend_above,
    new_figure,
    numbers_html,
    page_html,
    row_html,
    sampling_error,
    strip_axes,
    table_html,
)
from sa_jax.reports.pictures import GREY, bands, draw_evolution, draw_matrix, draw_network, draw_pixels, draw_units

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_MAX_CSV = 150_000  # most bytes of a trace inside the page
_MAX_POINTS = 8000  # most points of a panel's faint lines, which bounds the size of the page


def render_report(
    result: Mapping[str, Any],
    trace: Mapping[str, np.ndarray],
    masks: Mapping[str, np.ndarray],
    image_shape: tuple[int, int] | None,
    survival: Mapping[str, np.ndarray] | None = None,
    weights: Sequence[np.ndarray] | None = None,
    evolution: Mapping[str, np.ndarray] | None = None,
) -> str:
    """Renders a finished run as one HTML page; the same input gives the same text.

    Args:
      result: the figures and settings of `result.json`.
      trace: `step` and `temperature` `[entries]`; `energy`, `best_energy` and `acceptance`, the accepted
        share since the previous entry, `[chains, entries]`.
      masks: the best mask, one bool `[inputs, outputs]` per layer, in network order.
      image_shape: rows and columns if the inputs are the pixels of an image, else None.
      survival: the share of the chains whose best mask keeps each branch, one float `[inputs, outputs]` per layer;
        None if there is one chain.
      weights: one float `[inputs, outputs]` per layer, to draw the network; None for no drawing.
      evolution: masks of the best chain during the run: `step` `[times]`, and `masks`, flat, bool `[times,
        total]`; None if none were recorded.
    """
    import matplotlib

    with matplotlib.rc_context(CHARTS):
        sections = [
            _headline(result),
            _warnings(result.get("warnings") or []),
            _parts(result) if result.get("parts") else "",
            _probes(result) if result.get("probes") else "",
            _first_layer(next(iter(masks.values())), image_shape),
            "" if evolution is None else draw_evolution(evolution, trace, masks, image_shape),
            "" if weights is None else _network(masks, weights, image_shape),
            "" if survival is None else _agreement(result, survival, image_shape),
            f'<div class="columns">{_history(trace)}<div>{_layers(result, masks)}{_reproduce(result)}</div></div>',
            _settings(result),
        ]
    title = f"Annealed mask: {result['dataset']}, {result['kept']:,} branches"
    return page_html(title, sections)


def _headline(result: Mapping[str, Any]) -> str:
    sizes = "-".join(map(str, result["sizes"]))
    weights = {"random": "random weights", "pretrain": "pretrained weights"}.get(
        result["weights"], f"weights from {result['weights']}"
    )
    network = html.escape(f"{sizes} {result['activation']} network, {weights}, on {result['dataset']}.")
    facts = {
        "Validation accuracy": _validated(result, result["validation_accuracy"], 1),
        "Best energy": format_value("best_energy", result["best_energy"]),
        "Steps &times; chains": " &times; ".join(
            format_value("", result.get(name)) for name in ("num_steps", "num_chains")
        ),
        "Annealing time": f"{format_value('', result.get('anneal_seconds'))} s",
    }
    if result.get("score_steps"):
        facts["Score search"] = f"{result['score_steps']:,} steps"
    if result.get("probes"):
        facts["Densities tried"] = f"{len(result['probes'])} probes"
    of_chains = result.get("test_accuracy_per_chain") or []
    if len(of_chains) > 1:
        ends = dict.fromkeys(f"{100 * end:.1f}" for end in (min(of_chains), max(of_chains)))
        facts["Test accuracy of the chains"] = f"{' to '.join(ends)} %"
    return f"""<section class="columns"><div>
<h1>{result["kept"]:,} of {result["total"]:,} branches kept <span>({format_percent(result["density"])}):</span>
<strong>{_tested(result, "test_accuracy")} test accuracy</strong></h1>
<p>{network}</p>
{f"<p>{html.escape(result['worth'])}</p>" if result.get("worth") else ""}
{_rival(result)}
<p class="soft">{_method(result)}</p>
<dl>{"".join(f"<div><dt>{name}</dt><dd>{fact}</dd></div>" for name, fact in facts.items())}</dl>
</div>{_accuracies(result)}</section>"""


def _method(result: Mapping[str, Any]) -> str:
    """Says what chose the branches, whether it took derivatives, and whether it ended before its last proposal."""
    search = "Score search and then annealing" if result.get("score_steps") else "Annealing"
    what = "branches and changed weights." if result.get("moves_weights") else "branches; no weight was changed."
    derivatives = "No derivative of the energy was taken."
    if result.get("uses_gradients"):
        derivatives = "Derivatives of the energy guided the proposals or chose the initial mask."
    done, planned = result.get("num_steps"), result.get("planned_steps")
    ended = ""
    if planned is not None and done < planned:
        of_planned = f"after {done:,} of {planned:,} planned proposals"
        ended = f"Annealing ended {of_planned}, because it gained nothing more on validation samples."
        if result.get("stopped"):
            ended = f"The run was stopped {of_planned}: this is what it has found so far."
    return " ".join(filter(None, (f"{search} chose {what}", derivatives, ended)))


def _tested(result: Mapping[str, Any], name: str, accuracy: float | None = None) -> str:
    """The test accuracy of this name, with its standard error if that is known."""
    error = (result.get("standard_errors") or {}).get(name)
    return format_with_error(result[name] if accuracy is None else accuracy, error)


def _validated(result: Mapping[str, Any], accuracy: float, digits: int = 2) -> str:
    """A validation accuracy, with its standard error if the number of samples is known."""
    samples = result.get("num_validation_samples")
    return format_with_error(accuracy, samples and sampling_error(accuracy, samples), digits)


def _rival(result: Mapping[str, Any]) -> str:
    """Says how long the rival searched, and that its number of steps was chosen by time."""
    found = result.get("rival")
    if not found:
        return ""
    label, clock = METHODS[found["method"]].label, f"{found['clock']} time"
    if not found["steps"]:
        return f'<p class="soft">{label} computes its scores once, in {found["seconds"]:.2g} s of {clock}.</p>'
    used = f"{found['seconds']:,.1f} of {found['allowed_seconds']:,.1f} s of {clock}"
    said = (
        f"{label} had as much time as score search and annealing, without compiling: it used {used}, in runs "
        f"of growing length. The best of them on validation samples made {found['steps']:,} steps. The lengths "
        "follow the speed of the machine, so another run may find another mask."
    )
    return f'<p class="soft">{said}</p>'


def _accuracies(result: Mapping[str, Any]) -> str:
    """Draws the test accuracies of the annealed mask, of the others, and of the dense network."""
    best_one_shot, found = result.get("best_one_shot"), result.get("rival")
    names = {"test_accuracy": "Score search,\nthen annealing" if result.get("score_steps") else "Annealing"}
    bars = {"test_accuracy": result["test_accuracy"]}
    if found:
        spent = f"as much {found['clock']} time" if found["steps"] else "one-shot"
        names["rival_test_accuracy"] = f"{METHODS[found['method']].label}\n({spent})"
        bars["rival_test_accuracy"] = found["test_accuracy"]
    if best_one_shot:
        names["best_one_shot_test_accuracy"] = f"{METHODS[best_one_shot].label}\n(best one-shot)"
        bars["best_one_shot_test_accuracy"] = result["one_shot_test_accuracy"][best_one_shot]
    if best_one_shot != "magnitude_global":
        names["magnitude_test_accuracy"] = METHODS["magnitude_global"].label
    names |= {"random_test_accuracy": "Random\n(mean of ten)", "dense_test_accuracy": "Dense"}
    bars |= {name: result[name] for name in names if name not in bars and result.get(name) is not None}
    errors = result.get("standard_errors") or {}
    figure = new_figure(0.45 + 0.46 * len(bars))
    axes = figure.add_subplot()
    heights = np.arange(len(bars), dtype=float)
    heights[-1] += 0.3  # sets the reference apart
    drawn = axes.barh(heights, list(bars.values()), 0.6, color=INK, alpha=0.4)
    drawn[0].set(color=ACCENT, alpha=1)
    drawn[-1].set(fill=False, edgecolor=INK, linestyle="--", alpha=0.8)
    for height, (name, accuracy) in zip(heights, bars.items(), strict=True):
        error = errors.get(name, 0.0)
        axes.plot([accuracy - error, accuracy + error], [height, height], color=INK, lw=1.2, solid_capstyle="butt")
        text = axes.text(accuracy + error + 0.02, height, _tested(result, name, accuracy), va="center", fontsize=9)
        text.set_fontweight("bold" if name == "test_accuracy" else "normal")
    axes.set(yticks=heights, yticklabels=[names[name] for name in bars], xlim=(0, 1.4), xticks=[])
    axes.tick_params(axis="y", labelsize=9)
    axes.invert_yaxis()
    strip_axes(axes)
    said = (f"{names[name]} {_tested(result, name, accuracy)}" for name, accuracy in bars.items())
    text = "; ".join(one.replace("\n", " ") for one in said)
    caption = "Test accuracy. All but the dense network keep the same number of branches."
    if errors:
        of = f"{result['num_test_samples']:,} test samples"
        caption += f" ±: one standard error, because there are only {of}; lines on the bars show the same."
    return figure_html("accuracies", figure, f"Bar chart of test accuracy: {text}", caption)


def _probes(result: Mapping[str, Any]) -> str:
    """Draws and lists the densities that a search has tried."""
    from matplotlib.ticker import LogLocator, NullLocator

    probes, target = result["probes"], result["target_accuracy"]
    figure = new_figure(2.9)
    axes = figure.add_subplot()
    density, accuracy = (
        np.array([probe[name] for probe in probes]) for name in ("density", "validation_accuracy")
    )
    reached = accuracy >= target - 1e-9  # accuracies are shares of samples, rounded
    style = {"marker": "o", "s": 42, "clip_on": False, "zorder": 3}
    axes.scatter(100 * density[reached], 100 * accuracy[reached], color=ACCENT, label="reached", **style)
    missed = 100 * density[~reached], 100 * accuracy[~reached]
    axes.scatter(*missed, facecolors="none", edgecolors=SECOND, label="missed", **style)
    axes.axhline(100 * target, color=INK, linestyle="--", linewidth=1, alpha=0.7, label="target")
    axes.scatter(100, 100 * result["dense_validation_accuracy"], color=INK, alpha=0.6, label="dense", **style)
    axes.set(xscale="log", xlabel="branches kept in %", ylabel="validation accuracy in %")
    many_decades = density.min() < 0.02
    axes.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5) if many_decades else (1, 1.5, 2, 3, 5, 7)))
    axes.xaxis.set_major_formatter(lambda value, _: f"{value:g}")
    axes.xaxis.set_minor_locator(NullLocator())
    axes.grid(color=INK, alpha=0.12, linewidth=0.6)
    legend_above(axes)
    strip_axes(axes)
    caption = "Validation accuracy against the share of branches kept, one point per annealing run."
    head = ["Probe", "Density", "Kept", "Validation accuracy", "CPU time"]
    rows = [
        [
            str(number),
            format_percent(probe["density"]),
            f"{probe['kept']:,}",
            _validated(result, probe["validation_accuracy"]),
            f"{probe['cpu_seconds']:,.1f} s",
        ]
        for number, probe in enumerate(probes, 1)
    ]
    saves = csv_link("probes.csv", csv_text(probes[0], (probe.values() for probe in probes)))
    return f"""<section><h2>How the density was found</h2>
<p>Target: the lowest density with a validation accuracy of at least {100 * target:.2f} %.</p>
<div class="columns">{figure_html("probes", figure, caption, caption)}
<div>{numbers_html("Probes", head, (row_html(*row) for row in rows))}{saves}</div></div></section>"""


def _parts(result: Mapping[str, Any]) -> str:
    parts, samples = result["parts"], result.get("num_test_samples")
    head = ["Part", "Energy", "Validation accuracy", "Test accuracy", "CPU time"]
    rows = []
    for part in parts:
        accuracy = part["test_accuracy"]
        tested = format_with_error(accuracy, samples and sampling_error(accuracy, samples), 2)
        figures = format_value("energy", part["energy"]), _validated(result, part["validation_accuracy"]), tested
        rows.append([part["part"], *figures, f"{part['cpu_seconds']:,.1f} s"])
    saves = csv_link("parts.csv", csv_text(parts[0], (part.values() for part in parts)))
    return f"""<section><h2>What each part gained</h2>
<p>The mask after each part of the run, always with the same number of branches. The times include compiling.</p>
{numbers_html("What each part gained", head, (row_html(*row) for row in rows))}{saves}</section>"""


def _warnings(warnings: Iterable[str]) -> str:
    items = "".join(f"<li>{html.escape(warning)}</li>" for warning in warnings)
    return f'<aside role="alert"><h2>Warnings</h2><ul>{items}</ul></aside>' if items else ""


def _first_layer(mask: np.ndarray, image_shape: tuple[int, int] | None) -> str:
    mask = np.asarray(mask, bool)
    if image_shape is None:
        fed = f"{np.count_nonzero(mask.any(1)):,} of {len(mask):,} inputs still feed the network."
        pictures = draw_matrix(mask, "matrix", f"The mask of the first layer: {fed}")
    else:
        pictures = draw_pixels(mask, image_shape) + draw_units(mask, image_shape)
    return (
        f'<section><h2>Inputs that the first layer still uses</h2><div class="columns">{pictures}</div></section>'
    )


def _network(
    masks: Mapping[str, np.ndarray], weights: Sequence[np.ndarray], image_shape: tuple[int, int] | None
) -> str:
    drawn = draw_network(masks, weights, image_shape)
    return f'<section class="wide"><h2>The pruned network</h2>{drawn}</section>'


def _agreement(
    result: Mapping[str, Any], survival: Mapping[str, np.ndarray], image_shape: tuple[int, int] | None
) -> str:
    """States and draws how many branches the masks of the chains have in common."""
    found, energies = result["mask_overlap"], result["best_energy_per_chain"]
    mean, least, most, chance, with_start = (
        format_percent(found[f"jaccard_{of}"]) for of in ("mean", "min", "max", "of_random", "with_start")
    )
    spread = f" ({least} to {most})" if len(energies) > 2 else ""
    sentence = (
        f"Of the branches that at least one of two chains keeps, both keep {mean}{spread}; two random masks would "
        f"share {chance}. Each chain shares {with_start} with the initial mask. The best energies of the chains "
        f"are between {format_value('', min(energies))} and {format_value('', max(energies))}."
    )
    first = next(iter(survival.values()))
    if image_shape is None:
        picture = draw_matrix(first, "common", "First layer. The more chains keep a branch, the bluer it is.")
    else:
        picture = _common_pixels(result, first, image_shape)
    return f"""<section><h2>Do the chains agree?</h2><p>{sentence}</p>
<div class="columns">{_survivals(result, survival)}{picture}</div></section>"""


def _survivals(result: Mapping[str, Any], survival: Mapping[str, np.ndarray]) -> str:
    """Draws how many branches are kept by 1, 2, ... of the chains, beside the numbers expected by chance."""
    from matplotlib.ticker import MaxNLocator

    chains, num_kept, total = result["num_chains"], result["kept"], result["total"]
    shares = np.concatenate([np.ravel(kernel) for kernel in survival.values()])
    numbers = np.arange(1, chains + 1)
    counts = np.bincount(np.rint(chains * shares).astype(int), minlength=chains + 1)[1:]
    density = num_kept / total
    chance = [total * math.comb(chains, n) * density**n * (1 - density) ** (chains - n) for n in numbers.tolist()]
    figure = new_figure(3.2)
    axes = figure.add_subplot()
    drawn = axes.bar(numbers - 0.2, counts, 0.4, color=ACCENT, label="annealed")
    by_chance = axes.bar(numbers + 0.2, chance, 0.4, color=INK, alpha=0.35, label="independent random masks")
    if chains <= 8:
        axes.bar_label(drawn, [f"{count:,}" for count in counts], padding=2, fontsize=8)
        axes.bar_label(by_chance, [_rounded(count) for count in chance], padding=2, fontsize=8)
    axes.set(xlabel="chains that keep a branch", ylabel="branches", yticks=[])
    axes.margins(y=0.1)
    axes.xaxis.set_major_locator(MaxNLocator(12, integer=True))
    legend_above(axes)
    strip_axes(axes)
    caption = f"Every chain keeps the same {counts[-1]:,} branches; by chance it would be {_rounded(chance[-1])}."
    description = f"Bar chart of branches by the number of chains that keep them. {caption}"
    return figure_html("survivals", figure, description, caption)


def _common_pixels(result: Mapping[str, Any], survival: np.ndarray, image_shape: tuple[int, int]) -> str:
    """Draws, for each pixel, which share of a chain's kept branches another chain keeps too."""
    chains = result["num_chains"]
    counts = np.rint(chains * survival)
    num_kept, num_common = counts.sum(1), (counts * (counts - 1)).sum(1) / (chains - 1)
    share = np.ma.masked_array(num_common / np.maximum(num_kept, 1), num_kept == 0)
    figure = new_figure(WIDTH * min(1.5, 0.83 * image_shape[0] / image_shape[1]) + 0.2)
    axes = figure.add_subplot()
    colors = bands(64).with_extremes(bad=GREY)
    top = max(1, 100 * share.max()) if num_kept.any() else 1
    image = axes.imshow(100 * share.reshape(image_shape), colors, vmin=0, vmax=top, interpolation="none")
    bar = figure.colorbar(image, shrink=0.86, pad=0.03)
    bar.set_label("% kept by another chain too")
    bar.outline.set_visible(False)
    axes.set(xticks=[], yticks=[])
    strip_axes(axes)
    caption = (
        "First layer: the share of a chain's kept branches that another chain keeps too, for each pixel. Over all "
        f"pixels it is {format_percent(num_common.sum() / max(num_kept.sum(), 1))}."
    )
    return figure_html("common", figure, f"Picture of the pixels. {caption}", caption)


def _history(trace: Mapping[str, np.ndarray]) -> str:
    from matplotlib.ticker import EngFormatter

    arrays = {name: np.asarray(values, float) for name, values in trace.items()}
    arrays = {name: np.where(np.isfinite(values), values, np.nan) for name, values in arrays.items()}
    step, best, accepted = arrays["step"], arrays["best_energy"], arrays["acceptance"]
    winner = int(np.argmin(np.nan_to_num(best[:, -1], nan=np.inf)))
    style = "o-" if len(step) == 1 else "-"  # a line of one point is not visible
    figure = new_figure(5.6)
    panels = figure.subplots(3, 1, sharex=True, height_ratios=(2, 1, 1.3))
    titles = ("Energy", "Temperature", "Accepted proposals")

    _chains(panels[0], step, arrays["energy"], style)
    panels[0].plot(step, best[winner], style, color=SECOND, lw=1.5, label="lowest so far, best chain")
    panels[1].plot(step, arrays["temperature"], style, color=INK)
    _log_scale(panels[1], arrays["temperature"])
    _chains(panels[2], step, accepted, style)
    panels[2].plot(step, accepted[winner], style, color=SECOND, lw=1, label="best chain")
    _log_scale(panels[2], accepted)
    panels[2].yaxis.set_major_formatter(lambda value, _: f"{100 * value:g} %")
    panels[2].set(xlabel="step", xlim=(0, 1.02 * step[-1]))
    panels[2].xaxis.set_major_formatter(EngFormatter(sep=""))
    for axes, title in zip(panels, titles, strict=True):
        axes.set_title(title, loc="left")
        axes.grid(color=INK, alpha=0.12, linewidth=0.6)
        strip_axes(axes)
    for axes in panels[::2]:
        for line in axes.legend(frameon=False, loc="upper right").get_lines():
            line.set(alpha=1, linewidth=1.5)
    text = "Energy, temperature and accepted share of the proposals against the step."
    drawn = figure_html("history", figure, text, text)
    return f"<section><h2>How the search went</h2>{drawn}{_trace_link(trace, winner)}</section>"


def trace_csv(trace: Mapping[str, np.ndarray], chains: Iterable[int] | None = None) -> str:
    """Returns the trace as CSV, one row per chain and entry.

    Args:
      trace: see `render_report`, arrays `[entries]` or `[chains, entries]`.
      chains: chains to include; None for all.
    """
    rows = []
    for chain in range(len(trace["energy"])) if chains is None else chains:
        for entry in range(len(trace["step"])):
            per_chain = (float(trace[name][chain, entry]) for name in ("energy", "best_energy", "acceptance"))
            rows.append([chain, int(trace["step"][entry]), float(trace["temperature"][entry]), *per_chain])
    return csv_text(("chain", "step", "temperature", "energy", "best_energy", "acceptance"), rows)


def _trace_link(trace: Mapping[str, np.ndarray], winner: int) -> str:
    text = trace_csv(trace)
    if len(text) <= _MAX_CSV:
        return csv_link("trace.csv", text)
    note = "the best chain; the file trace.csv beside this page has all chains"
    return csv_link("trace_best_chain.csv", trace_csv(trace, [winner]), note)


def _chains(axes: "Axes", step: np.ndarray, values: np.ndarray, style: str) -> None:
    """Draws one faint line per chain, with fewer points where there would be very many."""
    stride = math.ceil(values.size / _MAX_POINTS)
    lines = axes.plot(step[::stride], values[:, ::stride].T, style, color=ACCENT, lw=0.9)
    for line in lines:
        line.set_alpha(0.5 if len(lines) <= 8 else 0.25)
    lines[0].set_label("each chain")


def _log_scale(axes: "Axes", values: np.ndarray) -> None:
    """Shows whole decades from the smallest positive value up, and zero below them if it occurs."""
    positive = values[values > 0]
    if not positive.size:
        axes.set_ylim(0, 1)
    else:
        low = 10.0 ** math.floor(math.log10(positive.min()))
        high = 10.0 ** math.ceil(math.log10(positive.max()))
        axes.set_yscale("symlog", linthresh=low, linscale=0.4)
        axes.set_ylim(0 if np.any(values == 0) else low, max(high, 10 * low))
    axes.yaxis.set_major_formatter(lambda value, _: f"{value:g}")


def _layers(result: Mapping[str, Any], masks: Mapping[str, np.ndarray]) -> str:
    num_kept = [int(np.sum(mask)) for mask in masks.values()]
    densities = [count / mask.size for count, mask in zip(num_kept, masks.values(), strict=True)]
    figure = new_figure(0.5 + 0.36 * len(masks))
    axes = figure.add_subplot()
    bars = axes.barh(range(len(masks)), densities, 0.66, color=ACCENT)
    axes.bar_label(bars, [format_percent(density) for density in densities], padding=4)
    axes.set(yticks=range(len(masks)), yticklabels=list(masks), xlim=(0, 1.22 * max(densities)), xticks=[])
    axes.invert_yaxis()
    strip_axes(axes)
    text = "; ".join(f"{name} {format_percent(density)}" for name, density in zip(masks, densities, strict=True))
    rows = [
        [name, f"{count:,}", f"{mask.size:,}", format_percent(density), _in_use(mask, 1), _in_use(mask, 0)]
        for (name, mask), count, density in zip(masks.items(), num_kept, densities, strict=True)
    ]
    caption = "Share of each layer's branches that is kept."
    if result.get("effective_kept") is not None:
        effective = f"{result['effective_kept']:,} of {sum(num_kept):,} kept branches"
        caption += f" {effective} lie on a path from input to output."
    head = ["Layer", "Kept", "Total", "Density", "Inputs in use", "Units in use"]
    plain = csv_text(
        ("layer", "kept", "total", "inputs_in_use", "units_in_use"),
        ((name, mask.sum(), mask.size, mask.any(1).sum(), mask.any(0).sum()) for name, mask in masks.items()),
    )
    return f"""<section><h2>Where the kept branches are</h2>
{figure_html("layers", figure, f"Bar chart of the share of each layer that is kept: {text}", caption)}
<h3>Layer by layer</h3>{numbers_html("Layer by layer", head, (row_html(*row) for row in rows))}
{csv_link("layers.csv", plain)}</section>"""


def _in_use(mask: np.ndarray, axis: int) -> str:
    used = np.any(mask, axis)
    return f"{np.count_nonzero(used):,}/{used.size:,}"


def _reproduce(result: Mapping[str, Any]) -> str:
    return f"""<section><h2>Reproduce</h2>
<p>The file <code>operative.gin</code> beside this page contains every setting, including the seed
{html.escape(str(result.get("seed", "")))}. This command repeats the run:</p>
<pre><code>sa-jax run --gin_file=operative.gin --workdir=NEW_DIR</code></pre></section>"""


def _settings(result: Mapping[str, Any]) -> str:
    figures = {
        key.removeprefix("num_").replace("_", " "): _setting(key, value)
        for key, value in result.items()
        if key not in ("warnings", "versions", "worth", "probes", "parts")
    }
    timing = {name: figures.pop(name) for name in list(figures) if "second" in name}
    return f"""<section><h2>Settings and figures</h2>
<div class="columns"><div><h3>Run</h3>{table_html(figures)}</div><div><h3>Time</h3>{table_html(timing)}
<h3>Versions</h3>{table_html(result.get("versions") or {})}
{csv_link("figures.csv", csv_text(("field", "value"), _fields(result)))}</div></div></section>"""


def _fields(result: Mapping[str, Any]) -> list[tuple[str, str]]:
    """Returns all fields of a result and their values, `outer.inner` for nested fields, lists as JSON."""
    fields = {}
    for name, value in result.items():
        items = value.items() if isinstance(value, Mapping) else ()
        fields |= {f"{name}.{inner}": item for inner, item in items} or {name: value}
    return [(name, item if isinstance(item, str) else json.dumps(item)) for name, item in fields.items()]


def _setting(key: str, value: Any) -> str:
    if isinstance(value, Mapping):
        shares = key.endswith("accuracy")
        items = ((name, format_value(key if shares else name, item)) for name, item in value.items())
        return ", ".join(f"{name.replace('_', ' ')} {text}" for name, text in items)
    return format_value(key, value)


def _rounded(count: float) -> str:
    return f"{count:,.0f}" if count >= 10 else f"{count:.2g}"
