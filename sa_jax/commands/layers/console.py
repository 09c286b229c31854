"""`sa-jax layers` on a terminal: progress and a summary."""

import argparse
import os
import sys

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

from sa_jax.commands.hardware import available_cores, use_all_cores
from sa_jax.commands.layers import host
from sa_jax.commands.layers.settings import LayersConfig
from sa_jax.commands.messages import tell


def command(config: LayersConfig, operative: str, arguments: argparse.Namespace) -> int:
    """Runs `sa-jax layers` and returns its exit code.

    Args:
      config: the settings.
      operative: their text, for `operative.gin`.
      arguments: arguments of the command line.
    """
    workdir = arguments.workdir
    sys.path.insert(0, os.getcwd())  # a user's own `forward` may be a module in this folder
    use_all_cores(available_cores())
    console = Console(stderr=True)
    columns = (TextColumn("{task.completed}/{task.total} layers"), BarColumn(), TimeRemainingColumn(compact=True))
    with Progress(*columns, console=console, disable=not console.is_terminal) as bar:
        task = bar.add_task("", total=None)

        def show(progress: host.Progress) -> None:
            row = progress.row
            figures = ", ".join(
                f"{name} {row[f'{name}_error']:.2%}"
                for name in ("magnitude", "wanda", "annealed", "refit")
                if row[f"{name}_error"] is not None
            )
            bar.update(task, completed=progress.done, total=progress.total)
            what = f"{progress.done}/{progress.total}  {row['layer']}, output lost: {figures}"
            bar.console.print(f"{what}, in {row['seconds']:.1f} s", highlight=False, soft_wrap=True)

        rows = host.prune_model_files(config, workdir, operative, show, tell)
    num_kept, total = (sum(row[name] for row in rows) for name in ("kept", "total"))
    print(f"{num_kept:,} of {total:,} weights kept ({num_kept / total:.1%}) in {len(rows)} layers")
    print(f"  see {workdir / 'report.html'}; pruned model: {workdir / 'pruned.safetensors'}")
    return 0
