"""`sa-jax run` on a terminal: processes, progress and a summary."""

import argparse
import os
import re
from pathlib import Path
from typing import Any

import jax
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

from sa_jax import checks
from sa_jax.commands import interrupts
from sa_jax.commands.hardware import use_all_cores
from sa_jax.commands.messages import RESUMABLE, first_line, tell
from sa_jax.commands.run import records, runner
from sa_jax.commands.run.settings import RunConfig
from sa_jax.files import workdirs
from sa_jax.types import InputError

# Words in JAX's errors when another process is gone.
LOST_PEER = re.compile("gloo|connection|coordination|heartbeat|barrier|peer|preempt|unavailable", re.IGNORECASE)


def command(config: RunConfig, operative: str, arguments: argparse.Namespace) -> int:
    """Runs `sa-jax run` and returns its exit code.

    Args:
      config: the settings.
      operative: their text, for `operative.gin`.
      arguments: arguments of the command line.
    """
    several = join_processes(arguments)
    if not several:
        use_all_cores(config.num_chains)
    console = Console(stderr=True)
    columns = (
        TextColumn("{task.fields[steps]}"),
        BarColumn(),
        TextColumn("{task.fields[figures]}"),
        TimeRemainingColumn(compact=True),
    )
    with Progress(*columns, console=console, disable=not console.is_terminal, transient=True) as bar:
        task = bar.add_task("", total=None, steps="", figures="preparing and compiling")

        def show(progress: records.Progress) -> None:
            steps = f"step {progress.step:,}/{progress.num_steps:,}"
            if progress.searching:
                steps = f"score search, {steps}"
                figures = f"energy {progress.energy:.4f}  "
            else:
                energies = f"energy {progress.energy:.4f}  best {progress.best_energy:.4f}"
                figures = f"T {progress.temperature:.1e}  {energies}  accepted {progress.acceptance:.1%}  "
            figures += f"{progress.steps_per_second:,.0f} steps/s"
            if progress.density is not None:
                steps = f"probe {progress.probe}, {100 * progress.density:.3g} % kept, {steps}"
            bar.update(task, completed=progress.step, total=progress.num_steps, steps=steps, figures=figures)

        try:
            overwrite, stop = arguments.overwrite, interrupts.requested
            result = runner.run(config, arguments.workdir, operative, overwrite, show, tell, stop)
        except records.Stopped as stopped:
            tell(f"{stopped}; repeat the command to resume")
            return RESUMABLE
        except (ValueError, RuntimeError) as error:
            if not several or isinstance(error, InputError) or not LOST_PEER.search(str(error)):
                raise
            reason = first_line(error)
            tell(f"lost another process ({reason}); restart all processes to resume; their number may differ")
            workdirs.abandon()
            interrupts.leave(RESUMABLE)  # JAX would wait for the other processes
    if not several or jax.process_index() == 0:
        print(summary(result, arguments.workdir))
    return 0


def join_processes(arguments: argparse.Namespace) -> bool:
    """Joins the processes of a run, as the arguments or a cluster's environment say.

    Returns:
      Whether there are several processes.

    Raises:
      InputError: some of the arguments are missing or wrong, or the processes cannot connect.
    """
    given = {name: getattr(arguments, name) for name in ("coordinator", "num_processes", "process_id")}
    if all(value is None for value in given.values()):
        # The variables of a step that srun started. A batch script, or a shell in it, is a single process.
        under_srun = "SLURM_STEP_NODELIST" in os.environ and os.environ.get("SLURM_STEP_NUM_TASKS", "1") != "1"
        if not under_srun and len(os.environ.get("TPU_WORKER_HOSTNAMES", "").split(",")) < 2:
            return False
    else:
        for name, value in given.items():
            if value is None:
                raise InputError(
                    f"--{name} is missing: --coordinator, --num_processes and --process_id must be given together"
                )
        checks.whole("--num_processes", given["num_processes"], 1)
        checks.whole("--process_id", given["process_id"], 0, given["num_processes"] - 1)
        if not re.fullmatch(r"\S+:\d+", given["coordinator"]):
            address = given["coordinator"]
            raise InputError(f"--coordinator must be HOST:PORT, such as 10.0.0.1:1234, not {address!r}")
    try:
        jax.distributed.initialize(*given.values())
    except (ValueError, RuntimeError) as error:
        where = given["coordinator"] or "the address that the cluster gives"
        raise InputError(f"the processes could not connect at {where}: {first_line(error)}") from None
    interrupts.arm()  # JAX has replaced the handler of SIGTERM
    return True


def summary(result: dict[str, Any], workdir: Path) -> str:
    """Returns the few lines that a finished run prints."""
    annealed = "annealed, weights moved" if result["moves_weights"] else "annealed"
    accuracies = {annealed: result["test_accuracy"]}
    accuracies["best one-shot"] = result["one_shot_test_accuracy"][result["best_one_shot"]]
    names = {"global magnitude": "magnitude", "random": "random", "dense": "dense"}
    accuracies |= {name: result[f"{field}_test_accuracy"] for name, field in names.items()}
    width = max(17, *(len(name) + 2 for name in accuracies))
    of_search = f", found by {len(result['probes'])} probes" if result["probes"] else ""
    done = "searched, compiled and annealed" if result["score_steps"] else "compiled and annealed"
    seconds = sum(result[f"{part}_seconds"] for part in ("search", "compile", "anneal"))
    lines = [
        f"{result['kept']:,} of {result['total']:,} branches kept ({result['kept'] / result['total']:.1%}) of "
        f"{'-'.join(map(str, result['sizes']))} on {result['dataset']}{of_search}, {done} in {seconds:.0f} s",
        *(f"  {name:<{width}}{100 * accuracy:6.2f} % test accuracy" for name, accuracy in accuracies.items()),
        f"  {result['worth']}",
        *(f"  warning: {warning}" for warning in result["warnings"]),
        f"  see {workdir / 'report.html'}",
    ]
    return "\n".join(lines)
