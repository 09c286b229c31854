"""Draws the pictures of sa_jax/docs/concepts.md: `python scripts/concepts.py`."""

import itertools
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import matplotlib
import numpy as np
from matplotlib.figure import Figure

from sa_jax import anneal, from_energy, geometric_schedule
from sa_jax.testing import boltzmann

FOLDER = Path(__file__).parents[1] / "sa_jax/docs"
BLUE, RED, GREEN, GREY = "#1a86d0", "#d1495b", "#2e8b57", "#999999"
SIZES = (5, 4, 3)


def hills(x):
    """Returns the energy of positions: a parabola with waves, with many local minima and one global minimum."""
    return 0.1 * (x - 7) ** 2 + 2 * jnp.cos(2 * x)


def draw_swap(figure: Figure) -> None:
    """Draws a masked network before and after one swap."""
    heights = [np.linspace(-1, 1, size) * (size - 1) / 4 for size in SIZES]
    places = [[(layer, height) for height in column] for layer, column in enumerate(heights)]
    branches = [ends for left, right in itertools.pairwise(places) for ends in itertools.product(left, right)]
    kept = np.random.default_rng(3).permutation(len(branches)) < 12
    pruned, grown = int(np.flatnonzero(kept)[2]), int(np.flatnonzero(~kept)[9])
    for axes, after in zip(figure.subplots(1, 2), (False, True), strict=True):
        for number, ((x0, y0), (x1, y1)) in enumerate(branches):
            color, style, width = (BLUE, "-", 1.8) if kept[number] else (GREY, ":", 0.7)
            if number == pruned:
                color, style, width = RED, ":" if after else "-", 2.6
            if number == grown:
                color, style, width = GREEN, "-" if after else ":", 2.6
            axes.plot((x0, x1), (y0, y1), style, color=color, linewidth=width, zorder=1)
        x, y = zip(*itertools.chain(*places), strict=True)
        axes.scatter(x, y, s=130, color="white", edgecolors="black", zorder=2)
        title = "after: red is pruned, green is kept" if after else "before: 12 of 32 branches are kept"
        axes.set_title(title, fontsize=9)
        axes.axis("off")


def draw_temperature(figure: Figure) -> None:
    """Draws an energy, and its Boltzmann distribution at three temperatures."""
    x = np.linspace(-1, 15, 1_000)
    energy = np.asarray(hills(x))
    upper, lower = figure.subplots(2, 1, sharex=True, height_ratios=(1, 1.2))
    upper.plot(x, energy, color="black", linewidth=1.2)
    upper.set(ylabel="energy")
    for temperature, color in ((5.0, RED), (1.0, GREEN), (0.2, BLUE)):
        density = boltzmann(energy, temperature) / (x[1] - x[0])
        lower.fill_between(x, density, color=color, alpha=0.25)
        lower.plot(x, density, color=color, linewidth=1.2, label=f"temperature {temperature:g}")
    lower.set(xlabel="position", ylabel="probability density", ylim=(0, None))
    lower.legend(frameon=False, fontsize=8)


def draw_course(figure: Figure) -> None:
    """Draws one annealed chain on that energy: energy, temperature and accepted proposals."""
    steps = 3_000
    landscape = from_energy(hills, lambda rng_key, x: x + 0.5 * jax.random.normal(rng_key))
    schedule = geometric_schedule(10.0, 0.02, steps)
    trace = anneal(jax.random.key(1), landscape, 0.0, schedule, steps, trace_every=10).trace
    assert trace is not None
    panels = figure.subplots(3, 1, sharex=True, height_ratios=(1.6, 1, 1))
    panels[0].plot(trace.step, trace.energy, color=BLUE, linewidth=0.8, label="energy")
    panels[0].plot(trace.step, trace.best_energy, color=RED, linewidth=1.4, label="lowest so far")
    panels[0].legend(frameon=False, fontsize=8)
    panels[1].semilogy(trace.step, trace.temperature, color="black", linewidth=1.2)
    accepted = np.diff(np.asarray(trace.num_accepted), prepend=0).reshape(-1, 10).sum(1) / 100
    panels[2].plot(np.asarray(trace.step)[9::10], 100 * accepted, color=GREEN, linewidth=1.2)
    for axes, label in zip(panels, ("energy", "temperature", "accepted in %"), strict=True):
        axes.set_ylabel(label)
    panels[2].set(xlabel="step", ylim=(0, 105))


def main() -> None:
    """Writes swap.png, temperature.png and course.png."""
    pictures = {"swap": (draw_swap, 2.6), "temperature": (draw_temperature, 3.6), "course": (draw_course, 4.2)}
    look: dict[Any, Any] = {"axes.spines.top": False, "axes.spines.right": False, "font.size": 9}
    with matplotlib.rc_context(look):
        for name, (draw, height) in pictures.items():
            figure = Figure(figsize=(7.2, height), layout="constrained")
            draw(figure)
            figure.savefig(FOLDER / f"{name}.png", dpi=110, metadata={"Software": None})


if __name__ == "__main__":
    main()
