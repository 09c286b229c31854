"""Shows the progress of a run: a bar on a terminal, now and then a line elsewhere."""

import contextlib
import time
from collections.abc import Callable, Iterator

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from sa_jax.commands.messages import clock, tell
from sa_jax.commands.run import records

# Seconds between two lines where there is no terminal, as in a notebook or a log.
LINE_SECONDS = 10.0


@contextlib.contextmanager
def shown_progress() -> Iterator[tuple[Callable[[records.Progress], None], Callable[[str], None]]]:
    """Shows what a command is doing, and for how long.

    Yields:
      `on_progress` and `on_message` of `runner.run`. Messages are printed with the time since the command started
      to work; the last one is also shown beside the bar.
    """
    begun = last_line = time.monotonic()
    console = Console(stderr=True)
    columns = (
        TimeElapsedColumn(),
        TextColumn("{task.fields[steps]}"),
        BarColumn(),
        TextColumn("{task.fields[figures]}"),
        TimeRemainingColumn(compact=True),
    )
    with Progress(*columns, console=console, disable=not console.is_terminal, transient=True) as bar:
        task = bar.add_task("", total=None, steps="loading", figures="")

        def show(progress: records.Progress) -> None:
            nonlocal last_line
            steps, figures = described(progress)
            bar.update(task, completed=progress.step, total=progress.num_steps, steps=steps, figures=figures)
            now = time.monotonic()
            if not console.is_terminal and now - last_line >= LINE_SECONDS:
                last_line = now
                tell(f"{clock(now - begun)}  {steps}  {figures}")

        def say(message: str) -> None:
            nonlocal last_line
            last_line = time.monotonic()
            bar.update(task, completed=0, total=None, steps=message, figures="")
            tell(f"{clock(last_line - begun)}  {message}")

        yield show, say


def described(progress: records.Progress) -> tuple[str, str]:
    """Returns what is done and how far, and the figures of it.

    >>> described(records.Progress("training", 20, 100, 9.5, accuracy=0.951))
    ('training, epoch 20/100', 'validation accuracy 95.1 %')
    >>> described(records.Progress("annealing", 1_000, 2_000, 5e4, 0.5, 0.4, 1e-3, 0.25))
    ('annealing, step 1,000/2,000', 'T 1.0e-03  energy 0.5000  best 0.4000  accepted 25.0%  50,000 steps/s')
    """
    unit = "epoch" if progress.stage == "training" else "step"
    steps = f"{progress.stage}, {unit} {progress.step:,}/{progress.num_steps:,}"
    if progress.density is not None:
        steps = f"probe {progress.probe}, {100 * progress.density:.3g} % kept, {steps}"
    figures = []
    if progress.accuracy is not None:
        figures.append(f"validation accuracy {100 * progress.accuracy:.1f} %")
    if progress.temperature is not None:
        figures.append(f"T {progress.temperature:.1e}")
    if progress.energy is not None:
        figures.append(f"energy {progress.energy:.4f}")
    if progress.best_energy is not None:
        figures.append(f"best {progress.best_energy:.4f}")
    if progress.acceptance is not None:
        figures.append(f"accepted {progress.acceptance:.1%}")
    if progress.stage != "training":
        figures.append(f"{progress.steps_per_second:,.0f} steps/s")
    return steps, "  ".join(figures)
