"""`sa-jax compare` on a terminal: progress and the tables."""

import argparse
import shlex

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

from sa_jax import checks
from sa_jax.commands.compare import host
from sa_jax.commands.compare.settings import CompareConfig
from sa_jax.commands.hardware import available_cores
from sa_jax.commands.messages import tell


def command(config: CompareConfig, operative: str, arguments: argparse.Namespace) -> int:
    """Runs `sa-jax compare` and returns its exit code.

    Args:
      config: the settings.
      operative: their text, for `operative.gin`.
      arguments: arguments of the command line.
    """
    workdir = arguments.workdir
    jobs = available_cores() if arguments.jobs is None else checks.whole("--jobs", arguments.jobs, 1)
    console = Console(stderr=True)
    columns = (TextColumn("{task.completed}/{task.total} cells"), BarColumn(), TimeRemainingColumn(compact=True))
    with Progress(*columns, console=console, disable=not console.is_terminal) as bar:
        task = bar.add_task("")

        def show(progress: host.Progress) -> None:
            row = progress.row
            accuracy = row["test_accuracy"]
            figures = row["reason"] if accuracy is None else f"{accuracy:.2%} in {row['cpu_seconds']:.0f} s"
            what = f"{row['dataset']}, {row['method']}, {row['density']:.1%} kept, seed {row['seed']}: {figures}"
            bar.update(task, completed=progress.done, total=progress.total)
            bar.console.print(f"{progress.done}/{progress.total}  {what}", highlight=False)

        # The file of all settings, which lies beside the page.
        repeated = f"sa-jax compare --gin_file={shlex.quote(str(workdir / 'operative.gin'))} --workdir=NEW_DIR"
        result = host.compare(config, workdir, jobs, repeated, operative, show, tell)
    print((workdir / "results.md").read_text())
    print(f"{len(result)} cells; see {workdir / 'report.html'}")
    return 0
