"""The command `sa-jax`: gin at the very edge, one-line messages and exit codes."""

import argparse
import contextlib
import os
import sys
import tokenize
from pathlib import Path
from typing import Any, cast

import gin.config
import jax
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

from sa_jax import runner
from sa_jax.types import InputError

MACROS = (
    "DATASET",
    "INPUT_MEAN",
    "INPUT_STD",
    "WEIGHTS",
    "HIDDEN",
    "ACTIVATION",
    "DENSITY",
    "SEED",
    "NUM_STEPS",
    "NUM_CHAINS",
    "NUM_SAMPLES",
)

gin_run = gin.external_configurable(runner.RunConfig, name="run")


def main(argv: list[str] | None = None) -> int:
    """Runs the command line and returns the exit code: 0 done, 2 bad input, 130 interrupted."""
    parser = argparse.ArgumentParser(prog="sa-jax", description="Prune networks by simulated annealing.")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    run = commands.add_parser("run", help="anneal the structure of a network as a gin file says")
    run.add_argument("--gin_file", required=True, metavar="FILE", help="such as configs/digits.gin")
    run.add_argument(
        "--gin_bindings",
        action="append",
        default=[],
        metavar="BINDING",
        help="such as DENSITY=0.05 or DATASET=\"'mnist'\"; may be given several times",
    )
    run.add_argument("--workdir", type=Path, metavar="DIR", help="where the results go; made if missing")
    run.add_argument("--overwrite", action="store_true", help="replace the results of an earlier run")
    run.add_argument("--dry_run", action="store_true", help="print the resolved settings and stop")
    arguments = parser.parse_args(argv)
    try:
        return run_command(arguments)
    except InputError as error:
        print(f"sa-jax: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("sa-jax: interrupted; nothing was written", file=sys.stderr)
        return 130


def run_command(arguments: argparse.Namespace) -> int:
    """`sa-jax run`."""
    config = load_config(arguments.gin_file, arguments.gin_bindings)
    operative = gin.operative_config_str()
    if arguments.dry_run:
        print(operative)
        return 0
    if arguments.workdir is None:
        raise InputError("--workdir=DIR is missing: where the results go")
    use_all_cores(config.num_chains)
    console = Console(stderr=True)
    columns = (
        TextColumn("step {task.completed:,}/{task.total:,}"),
        BarColumn(),
        TextColumn("{task.fields[figures]}"),
        TimeRemainingColumn(compact=True),
    )
    with Progress(*columns, console=console, disable=not console.is_terminal, transient=True) as bar:
        task = bar.add_task("", total=config.num_steps, figures="preparing and compiling")

        def show(progress: runner.Progress) -> None:
            figures = (
                f"T {progress.temperature:.1e}  energy {progress.energy:.4f}  best {progress.best_energy:.4f}  "
                f"accepted {progress.acceptance:.1%}  {progress.steps_per_second:,.0f} steps/s"
            )
            bar.update(task, completed=progress.step, figures=figures)

        result = runner.run(config, arguments.workdir, operative, arguments.overwrite, show)
    print(summary(result, arguments.workdir))
    return 0


def use_all_cores(num_chains: int) -> None:
    """Makes one host device per core, so that chains share out over the cores."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    # Where a caller has used JAX before, its number of devices is fixed.
    with contextlib.suppress(RuntimeError):
        jax.config.update("jax_num_cpu_devices", min(num_chains, cores))


def load_config(gin_file: str, bindings: list[str]) -> runner.RunConfig:
    """Reads a gin file and bindings, and refuses whatever they hold that nothing uses.

    Raises:
      InputError: unreadable or malformed gin, a name that does not exist, a bad value.
    """
    gin.clear_config()
    packaged = Path(__file__).parent
    gin.add_config_file_search_path(str(packaged))
    try:
        gin.parse_config_files_and_bindings([gin_file], bindings, print_includes_and_imports=False)
        config = cast(runner.RunConfig, gin_run())
    except InputError as error:
        raise InputError(_first_line(error)) from None
    except OSError:
        raise InputError(f"gin file {gin_file} cannot be read") from None
    except (ValueError, TypeError, SyntaxError, NameError, AttributeError, RuntimeError, ImportError) as error:
        raise InputError(_gin_message(error, bindings)) from None
    except tokenize.TokenError as error:
        raise InputError(f"malformed gin: {error.args[0]}; is a bracket or a quote left open?") from None
    unused = [key for key in gin.config._CONFIG if key not in gin.config._OPERATIVE_CONFIG]
    for scope, selector in unused:
        if selector == "gin.macro":
            raise InputError(f"{scope} is bound, but nothing uses it; everyday names: {', '.join(MACROS)}")
        raise InputError(f"{selector} is bound, but nothing uses it")
    return config


def summary(result: dict[str, Any], workdir: Path) -> str:
    """The few lines that a finished run prints."""
    rows = [("annealed", "test_accuracy"), ("global magnitude", "magnitude_test_accuracy")]
    rows += [("random", "random_test_accuracy"), ("dense", "dense_test_accuracy")]
    seconds = result["compile_seconds"] + result["anneal_seconds"]
    lines = [
        f"{result['kept']:,} of {result['total']:,} branches kept ({result['kept'] / result['total']:.1%}) of "
        f"{'-'.join(map(str, result['sizes']))} on {result['dataset']}, in {seconds:.0f} s",
        *(f"  {name:<17}{100 * result[field]:6.2f} % test accuracy" for name, field in rows),
        *(f"  warning: {warning}" for warning in result["warnings"]),
        f"  see {workdir / 'report.html'}",
    ]
    return "\n".join(lines)


def entry_point() -> None:
    """The console command."""
    sys.exit(main())


def _first_line(error: Exception) -> str:
    # gin appends where a configurable was called.
    return str(error).split("\n")[0]


def _gin_message(error: Exception, bindings: list[str]) -> str:
    return "gin: " + _first_line(error)
