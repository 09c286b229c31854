"""`sa-jax run` on a terminal: processes, progress and a summary."""

import argparse
import os
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax

from sa_jax import checks
from sa_jax.baselines import METHODS
from sa_jax.commands import interrupts
from sa_jax.commands.hardware import use_all_cores
from sa_jax.commands.messages import RESUMABLE, first_line, tell
from sa_jax.commands.run import records, runner, sweep
from sa_jax.commands.run.progress import shown_progress
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

    Raises:
      InputError: as for `runner.run` and `sweep.sweep`; or a sweep over several processes.
    """
    densities = None if arguments.densities is None else sweep.densities_of(arguments.densities)
    several = join_processes(arguments)
    if several and densities is not None:
        raise InputError("--densities runs in one process: leave out --coordinator and the like")
    if not several:
        use_all_cores(config.num_chains)
    try:
        with shown_progress() as (show, say):
            overwrite, stop = arguments.overwrite, interrupts.requested
            more = arguments.workdir, operative, overwrite, show, say, stop
            if densities is None:
                said = summary(runner.run(config, *more), arguments.workdir)
            else:
                said = sweep_summary(sweep.sweep(config, densities, *more), arguments.workdir)
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
    if said:
        print(said)
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


def sweep_summary(results: Sequence[dict[str, Any]], workdir: Path) -> str:
    """Returns the few lines that a finished sweep prints."""
    lines = [f"{'kept':>8}  {'test accuracy':>13}  difference from the strongest other mask"]
    for result in results:
        other = result["strongest_other"]
        found = percent(result["test_accuracy"], result["standard_errors"]["test_accuracy"])
        gain = f"{100 * other['difference']:+.2f} ±{100 * other['standard_error']:.2f}, {other['name']}"
        lines.append(f"{100 * result['density']:6.3g} %  {found:>13}  {gain}")
    dense = percent(results[0]["dense_test_accuracy"], results[0]["standard_errors"]["dense_test_accuracy"])
    return "\n".join([*lines, f"{'dense':>8}  {dense:>13}", f"see {workdir / 'sweep.html'}"])


def percent(share: float, error: float) -> str:
    """Returns an accuracy and its standard error in per cent.

    >>> percent(0.975, 0.0052)
    ' 97.50 ±0.52'
    """
    return f"{100 * share:6.2f} ±{100 * error:.2f}"


def summary(result: dict[str, Any], workdir: Path) -> str:
    """Returns the few lines that a finished run prints; nothing for the empty result of another process."""
    if not result:
        return ""
    fields = {"annealed, weights moved" if result["moves_weights"] else "annealed": "test_accuracy"}
    known = {"best_one_shot_test_accuracy": result["one_shot_test_accuracy"][result["best_one_shot"]]}
    if result["rival"] is not None:
        fields[METHODS[result["rival"]["method"]].label.lower()] = "rival_test_accuracy"
        known["rival_test_accuracy"] = result["rival"]["test_accuracy"]
    fields[f"best one-shot: {METHODS[result['best_one_shot']].label}"] = "best_one_shot_test_accuracy"
    names = {"global magnitude": "magnitude", "random": "random", "dense": "dense"}
    fields |= {name: f"{field}_test_accuracy" for name, field in names.items()}
    accuracies = {
        name: percent((result | known)[field], result["standard_errors"][field]) for name, field in fields.items()
    }
    width = max(17, *(len(name) + 2 for name in accuracies))
    of_search = f", found by {len(result['probes'])} probes" if result["probes"] else ""
    done = "searched, compiled and annealed" if result["score_steps"] else "compiled and annealed"
    seconds = sum(result[f"{part}_seconds"] for part in ("search", "compile", "anneal"))
    lines = [
        f"{result['kept']:,} of {result['total']:,} branches kept ({result['kept'] / result['total']:.1%}) of "
        f"{'-'.join(map(str, result['sizes']))} on {result['dataset']}{of_search}, {done} in {seconds:.0f} s",
        *(f"  {name:<{width}}{accuracy} % test accuracy" for name, accuracy in accuracies.items()),
        f"  {result['worth']}",
        *(f"  warning: {warning}" for warning in result["warnings"]),
        f"  see {workdir / 'report.html'}",
    ]
    return "\n".join(lines)
