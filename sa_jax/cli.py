"""The command `sa-jax`: gin at the very edge, one-line messages and exit codes."""

import argparse
import contextlib
import dataclasses
import difflib
import logging
import os
import re
import shlex
import signal
import sys
import threading
import tokenize
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, NoReturn, cast

import gin.config
import jax
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

from sa_jax import export
from sa_jax.commands.bench import exports, proposals
from sa_jax.commands.compare import host as compare
from sa_jax.commands.compare.grid import CompareConfig
from sa_jax.commands.hardware import available_cores, use_all_cores
from sa_jax.commands.layers import host as layers
from sa_jax.commands.layers.settings import LayersConfig
from sa_jax.commands.run import chains, runner
from sa_jax.commands.run.settings import RunConfig
from sa_jax.files import workdirs
from sa_jax.pruning.options import SCHEDULES
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
    "CHECKPOINT_SECONDS",
)

SETTINGS = tuple(field.name for field in dataclasses.fields(RunConfig))

# Of a run that the same command goes on with: EX_TEMPFAIL of sysexits.h.
RESUMABLE = 75
# What JAX says where another process is gone.
LOST_PEER = re.compile("gloo|connection|coordination|heartbeat|barrier|peer|preempt|unavailable", re.IGNORECASE)
COMPARE_MACROS = ("METHODS", "DENSITIES", "SEEDS")
COMPARE_SETTINGS = tuple(field.name for field in dataclasses.fields(CompareConfig))

LAYERS_SETTINGS = tuple(field.name for field in dataclasses.fields(LayersConfig))

gin_run = gin.external_configurable(RunConfig, name="run")
gin_compare = gin.external_configurable(CompareConfig, name="compare")
gin_layers = gin.external_configurable(LayersConfig, name="layers")


class Parser(argparse.ArgumentParser):
    """Reports a mistake in one line."""

    def error(self, message: str) -> NoReturn:
        """Exits with 2."""
        self.exit(2, f"{self.prog}: {message}; see {self.prog} --help\n")


def main(argv: list[str] | None = None) -> int:
    """Runs the command line and returns the exit code: 0 done, 2 bad input, 130 interrupted."""
    parser = Parser(prog="sa-jax", description="Prune networks by simulated annealing.")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    run = commands.add_parser("run", help="anneal the structure of a network as a gin file says")
    comparing = commands.add_parser("compare", help="compare methods over densities, seeds and data sets")
    pruning_layers = commands.add_parser("layers", help="prune the linear layers of any pretrained network")
    bindings = {run: "DENSITY=0.05 or DATASET=\"'mnist'\"", comparing: "SEEDS=[0,1] or compare.epochs=3"}
    bindings[pruning_layers] = "layers.pattern=\"'2:4'\" or layers.refit=True"
    files = {run: "configs/digits.gin", comparing: "configs/compare_digits.gin"}
    files[pruning_layers] = "configs/layers.gin"
    for command in (run, comparing, pruning_layers):
        command.add_argument("--gin_file", required=True, metavar="FILE", help=f"such as {files[command]}")
        command.add_argument(
            "--gin_bindings",
            action="append",
            default=[],
            metavar="BINDING",
            help=f"such as {bindings[command]}; may be given several times",
        )
        command.add_argument("--workdir", type=Path, metavar="DIR", help="where the results go; made if missing")
        command.add_argument("--dry_run", action="store_true", help="print the resolved settings and stop")
    run.add_argument("--coordinator", metavar="HOST:PORT", help="of several processes: where the first listens")
    run.add_argument("--num_processes", type=int, metavar="N", help="how many they are")
    run.add_argument("--process_id", type=int, metavar="I", help="which one this is, from 0")
    run.add_argument("--overwrite", action="store_true", help="replace the results of an earlier run")
    comparing.add_argument("--jobs", type=int, metavar="N", help="processes, one core each; all cores")
    exporting = commands.add_parser("export", help="write a run's network for devices and other frameworks")
    exporting.add_argument("rundir", type=Path, metavar="WORKDIR", help="of the run")
    exporting.add_argument("--format", required=True, metavar="FORMAT", help=", ".join(export.FORMATS))
    exporting.add_argument("--out", type=Path, required=True, metavar="PATH", help="a file; for c a folder")
    width = exporting.add_mutually_exclusive_group()
    width.add_argument(
        "--bits", type=int, metavar="N", help="of each kept weight: 1, 2, 3, 4, 8 or 32, the default"
    )
    budget_help = f"of {', '.join(export.BUDGETED)}; of C the tables: the bits of each layer are chosen to fit"
    width.add_argument("--max_bytes", type=int, metavar="N", help=budget_help)
    exporting.add_argument("--overwrite", action="store_true", help="replace what is there")
    measuring = commands.add_parser("bench", help="measure proposals per second, or exported networks")
    measuring.add_argument("what", nargs="?", choices=["proposals", "export"], default="proposals")
    measuring.add_argument("runs", nargs="*", type=Path, metavar="WORKDIR", help="of `export`: finished runs")
    measuring.add_argument("--quick", action="store_true", help="a few cases, in 3 minutes")
    measuring.add_argument(
        "--out", type=Path, metavar="PATH", help="FILE.json, a picture beside it; of `export` a folder"
    )
    arguments = parser.parse_args(argv)
    try:
        functions = {"run": run_command, "compare": compare_command, "layers": layers_command}
        functions["export"] = export_command
        return (functions | {"bench": bench_command})[arguments.command](arguments)
    except InputError as error:
        print(f"sa-jax: {error}", file=sys.stderr)
        return 2
    except BrokenPipeError:  # whoever read the output has gone, as in `... | head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except chains.Stopped as stopped:
        print(f"sa-jax: {stopped}; the same command goes on from there", file=sys.stderr)
        return RESUMABLE
    except KeyboardInterrupt:
        measured = arguments.command == "bench" and arguments.out
        kept = " but the cases measured before" if measured else ""
        if arguments.command in ("compare", "layers"):
            print("sa-jax: interrupted; the same command goes on where it stopped", file=sys.stderr)
            return 130
        saved = getattr(arguments, "workdir", None) and (arguments.workdir / runner.CHECKPOINTS).is_dir()
        if arguments.command == "run" and saved:
            print("sa-jax: interrupted; the same command goes on from the last checkpoint", file=sys.stderr)
            return RESUMABLE
        print(f"sa-jax: interrupted; nothing was written{kept}", file=sys.stderr)
        return 130


def run_command(arguments: argparse.Namespace) -> int:
    """`sa-jax run`."""
    config = cast(RunConfig, load_config(arguments.gin_file, arguments.gin_bindings, gin_run, MACROS))
    operative = gin.operative_config_str()
    if arguments.dry_run:
        print(operative)
        return 0
    if arguments.workdir is None:
        raise InputError("--workdir=DIR is missing: where the results go")
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

        def show(progress: chains.Progress) -> None:
            figures = (
                f"T {progress.temperature:.1e}  energy {progress.energy:.4f}  best {progress.best_energy:.4f}  "
                f"accepted {progress.acceptance:.1%}  {progress.steps_per_second:,.0f} steps/s"
            )
            steps = f"step {progress.step:,}/{progress.num_steps:,}"
            if progress.density is not None:
                steps = f"probe {progress.probe}, {100 * progress.density:.3g} % kept, {steps}"
            bar.update(task, completed=progress.step, total=progress.num_steps, steps=steps, figures=figures)

        def tell(message: str) -> None:
            print(f"sa-jax: {message}", file=sys.stderr)

        with stopping(config.checkpoint_seconds > 0, tell) as stop:
            try:
                result = runner.run(config, arguments.workdir, operative, arguments.overwrite, show, tell, stop)
            except (ValueError, RuntimeError) as error:
                if not several or isinstance(error, InputError) or not LOST_PEER.search(str(error)):
                    raise
                said = str(error).partition("\n")[0]
                tell(f"another process of this run has ended ({said}); start all again, as many as you like")
                sys.stderr.flush()
                os._exit(RESUMABLE)  # JAX would wait for the others
    if not several or jax.process_index() == 0:
        print(summary(result, arguments.workdir))
    return 0


def join_processes(arguments: argparse.Namespace) -> bool:
    """Makes this one of several processes, as the arguments say or as JAX finds out by itself on a cluster.

    Returns:
      Whether there are several.

    Raises:
      InputError: arguments that do not go together, or processes that do not meet.
    """
    given = {name: getattr(arguments, name) for name in ("coordinator", "num_processes", "process_id")}
    if all(value is None for value in given.values()):
        # Of a step that srun started: what a batch script or a shell runs by itself is one process.
        under_srun = "SLURM_STEP_NODELIST" in os.environ and os.environ.get("SLURM_STEP_NUM_TASKS", "1") != "1"
        if not under_srun and len(os.environ.get("TPU_WORKER_HOSTNAMES", "").split(",")) < 2:
            return False
    elif missing := [f"--{name}" for name, value in given.items() if value is None]:
        raise InputError(f"{missing[0]} is missing: --coordinator, --num_processes and --process_id go together")
    elif not 0 <= given["process_id"] < given["num_processes"]:
        raise InputError(f"--process_id must be from 0 to {given['num_processes'] - 1}, not {given['process_id']}")
    elif not re.fullmatch(r"\S+:\d+", given["coordinator"]):
        raise InputError(f"--coordinator must be HOST:PORT, such as 10.0.0.1:1234, not {given['coordinator']!r}")
    try:
        jax.distributed.initialize(*given.values())
    except (ValueError, RuntimeError) as error:
        where = given["coordinator"] or "the place that the cluster names"
        said = str(error).partition("\n")[0]
        raise InputError(f"the processes did not meet at {where}: {said}") from None
    return True


@contextlib.contextmanager
def stopping(possible: bool, tell: Callable[[str], None]) -> Iterator[Callable[[], bool]]:
    """Turns a first SIGINT or SIGTERM into a wish to stop, told by what it yields; a second one stops at once."""
    wished = []

    def wish(number: int, frame: Any) -> None:
        wished.append(number)
        for name, handler in before.items():
            signal.signal(name, handler)
        tell("stopping after this chunk; once more to stop at once")

    before = {}
    if possible and threading.current_thread() is threading.main_thread():
        before = dict.fromkeys((signal.SIGINT, signal.SIGTERM), signal.default_int_handler)
        earlier = {number: signal.signal(number, wish) for number in before}
    try:
        yield lambda: bool(wished)
    finally:
        for number in before:
            signal.signal(number, earlier[number])


def compare_command(arguments: argparse.Namespace) -> int:
    """`sa-jax compare`."""
    read = load_config(arguments.gin_file, arguments.gin_bindings, gin_compare, COMPARE_MACROS)
    config, operative = cast(CompareConfig, read), gin.operative_config_str()
    if arguments.dry_run:
        print(operative)
        return 0
    if arguments.workdir is None:
        raise InputError("--workdir=DIR is missing: where the results go")
    jobs = available_cores() if arguments.jobs is None else arguments.jobs
    if jobs < 1:
        raise InputError(f"--jobs must be at least 1, not {jobs}")
    console = Console(stderr=True)
    columns = (TextColumn("{task.completed}/{task.total} cells"), BarColumn(), TimeRemainingColumn(compact=True))
    with Progress(*columns, console=console, disable=not console.is_terminal) as bar:
        task = bar.add_task("")

        def show(progress: compare.Progress) -> None:
            row = progress.row
            accuracy = row["test_accuracy"]
            figures = row["reason"] if accuracy is None else f"{accuracy:.2%} in {row['cpu_seconds']:.0f} s"
            what = f"{row['dataset']}, {row['method']}, {row['density']:.1%} kept, seed {row['seed']}: {figures}"
            bar.update(task, completed=progress.done, total=progress.total)
            bar.console.print(f"{progress.done}/{progress.total}  {what}", highlight=False)

        def tell(message: str) -> None:
            print(f"sa-jax: {message}", file=sys.stderr)

        words = [f"--gin_file={shlex.quote(arguments.gin_file)}"]
        words += [f"--gin_bindings={shlex.quote(binding)}" for binding in arguments.gin_bindings]
        command = f"sa-jax compare {' '.join(words)} --workdir=NEW_DIR"
        result = compare.compare(config, arguments.workdir, jobs, command, operative, show, tell)
    print((arguments.workdir / "results.md").read_text())
    print(f"{len(result)} cells; see {arguments.workdir / 'report.html'}")
    return 0


def layers_command(arguments: argparse.Namespace) -> int:
    """`sa-jax layers`."""
    read = load_config(arguments.gin_file, arguments.gin_bindings, gin_layers, ())
    config, operative = cast(LayersConfig, read), gin.operative_config_str()
    if arguments.dry_run:
        print(operative)
        return 0
    if arguments.workdir is None:
        raise InputError("--workdir=DIR is missing: where the results go")
    sys.path.insert(0, os.getcwd())  # where a user's own `forward` lies
    use_all_cores(available_cores())
    console = Console(stderr=True)
    columns = (TextColumn("{task.completed}/{task.total} layers"), BarColumn(), TimeRemainingColumn(compact=True))
    with Progress(*columns, console=console, disable=not console.is_terminal) as bar:
        task = bar.add_task("", total=None)

        def show(progress: layers.Progress) -> None:
            row = progress.row
            figures = ", ".join(
                f"{name} {row[f'{name}_error']:.2%}"
                for name in ("magnitude", "wanda", "annealed", "refit")
                if row[f"{name}_error"] is not None
            )
            bar.update(task, completed=progress.done, total=progress.total)
            what = f"{progress.done}/{progress.total}  {row['layer']}, output lost: {figures}"
            bar.console.print(f"{what}, in {row['seconds']:.1f} s", highlight=False, soft_wrap=True)

        def tell(message: str) -> None:
            print(f"sa-jax: {message}", file=sys.stderr)

        rows = layers.prune_layers(config, arguments.workdir, operative, show, tell)
    kept, total = (sum(row[name] for row in rows) for name in ("kept", "total"))
    print(f"{kept:,} of {total:,} weights kept ({kept / total:.1%}) in {len(rows)} layers")
    print(f"  see {arguments.workdir / 'report.html'}; the model: {arguments.workdir / 'pruned.safetensors'}")
    return 0


def export_command(arguments: argparse.Namespace) -> int:
    """`sa-jax export`."""
    chosen = arguments.bits, arguments.max_bytes
    written = export.export(arguments.rundir, arguments.format, arguments.out, arguments.overwrite, *chosen)
    for path in written:
        print(f"{path}: {path.stat().st_size:,} bytes")
    if arguments.format in export.FOLDERS and not any(path.name == "classify.c" for path in written):
        print("sa-jax: no classify.c: the data are no images, or cannot be loaded", file=sys.stderr)
    return 0


def bench_command(arguments: argparse.Namespace) -> int:
    """`sa-jax bench`."""
    if arguments.what == "export":
        return bench_export_command(arguments)
    if arguments.out is not None:
        proposals.check_out(arguments.out)

    def save(result: dict[str, Any]) -> None:
        if arguments.out is not None:
            proposals.write(result, arguments.out)

    result = proposals.bench(arguments.quick, save)
    print(proposals.table(result))
    if arguments.out is not None:
        proposals.write_picture(result, arguments.out)
    return 0


def bench_export_command(arguments: argparse.Namespace) -> int:
    """`sa-jax bench export`."""
    if arguments.out is None:
        raise InputError("--out=DIR is missing: where the results go")
    workdirs.make(arguments.out)

    def tell(message: str) -> None:
        print(f"sa-jax: {message}", file=sys.stderr)

    runs = arguments.runs or exports.run_all(arguments.out / "runs", arguments.quick, tell)
    result = exports.measure(runs, arguments.quick, tell)
    exports.write(result, arguments.out)
    print((arguments.out / "results.md").read_text())
    print(f"see {arguments.out / 'report.html'}")
    return 0


def load_config(
    gin_file: str, bindings: list[str], settings: Callable[[], Any], macros: Sequence[str]
) -> RunConfig | CompareConfig | LayersConfig:
    """Reads a gin file and bindings, and refuses whatever they hold that nothing uses.

    Args:
      gin_file: a path; `configs/digits.gin` and its kind are found from anywhere, since the package has them.
      bindings: such as `DENSITY=0.05`; the last of a name counts.
      settings: `gin_run`, `gin_compare` or `gin_layers`.
      macros: that configs of this kind open with.

    Raises:
      InputError: unreadable or malformed gin, a name that does not exist, a bad value.
    """
    gin.clear_config()
    # The configs lie in an installed package, or beside it in a checkout.
    places = (Path(), *Path(__file__).parents[:2])
    path = next((place / gin_file for place in places if (place / gin_file).is_file()), None)
    if path is None:
        raise InputError(f"gin file {gin_file} is not there")
    with _gin_errors(gin_file, macros):
        gin.parse_config_file(str(path))
    for binding in bindings:
        with _gin_errors(f"binding {binding}", macros):
            gin.parse_config(binding)
    with _gin_errors(gin_file, macros):
        gin.finalize()
        config = settings()
    for scope, selector in gin.config._CONFIG:
        if (scope, selector) not in gin.config._OPERATIVE_CONFIG:
            if selector == "gin.macro":
                raise InputError(f"{scope} is bound, but nothing uses it; {_nearest(scope, macros)}")
            raise InputError(f"{scope + '/' if scope else ''}{selector} is bound, but nothing uses it")
    return config


@contextlib.contextmanager
def _gin_errors(where: str, macros: Sequence[str]):
    """Turns what gin raises for a user's mistake into one line that names the place and the fix."""
    logger = logging.getLogger()
    before = logger.level
    logger.setLevel(logging.CRITICAL)  # gin logs a missing file before it raises
    try:
        yield
    except tokenize.TokenError:
        raise InputError(f"{where}: a bracket or a quote is left open") from None
    except OSError as error:
        missing = re.search(r"Unable to open file: (.*?)\.? Searched", str(error))
        raise InputError(f"gin file {missing[1] if missing else where} is not there or cannot be read") from None
    except UnicodeDecodeError:
        raise InputError(f"{where} is not a text file") from None
    except Exception as error:  # gin lets through whatever Python's parser and importer raise
        message = _first_line(error)
        if isinstance(error, InputError):
            raise InputError(message) from None
        fix = ""
        if "Expected newline" in message:
            message, fix = "more than one binding", "; give --gin_bindings once for each"
        elif isinstance(error, RecursionError):
            message = "a name is bound to itself"
        elif "malformed node" in message or "Unable to parse value" in message:
            line = (re.search(r" \(.*line \d+\)", message) or [""])[0] if "Unable" in message else ""
            message, fix = f"a value is no Python literal{line}", "; text needs quotes, as in DATASET='mnist'"
        elif match := re.search(r"'?(run|compare|layers)'? .*doesn't have a parameter named '(.*)'", message):
            known = {"run": SETTINGS, "compare": COMPARE_SETTINGS, "layers": LAYERS_SETTINGS}[match[1]]
            message, fix = f"{match[1]} has no setting {match[2]!r}", f"; {_nearest(match[2], known)}"
        elif match := re.search(r"No bindings specified for '(.*)/gin.macro'", message):
            message, fix = f"%{match[1]} is used, but bound nowhere", f"; {_nearest(match[1], macros)}"
        elif match := re.search("No configurable matching (?:reference )?'(.*)'", message):
            message, fix = f"unknown name {match[1]!r}", "; settings are written NAME=... or run.name=..."
            if match[1].lstrip("@(").rstrip("()") in SCHEDULES:
                fix = "; the built-in schedules are text, such as 'geometric'"
        elif "Couldn't parse statement" in message or "Unexpected token" in message:
            message, fix = "not of the form NAME = value", ", such as DENSITY = 0.05"
        raise InputError(f"{where}: {message}{fix}") from None
    finally:
        logger.setLevel(before)


def _nearest(name: str, known: Sequence[str]) -> str:
    close = difflib.get_close_matches(name, known, 1) or difflib.get_close_matches(name.upper(), known, 1)
    return f"did you mean {close[0]}?" if close else f"known: {', '.join(known)}"


def summary(result: dict[str, Any], workdir: Path) -> str:
    """The few lines that a finished run prints."""
    annealed = "annealed, moved" if result["moves_weights"] else "annealed"
    accuracies = {annealed: result["test_accuracy"]}
    accuracies["best one-shot"] = result["one_shot_test_accuracy"][result["best_one_shot"]]
    names = {"global magnitude": "magnitude", "random": "random", "dense": "dense"}
    accuracies |= {name: result[f"{field}_test_accuracy"] for name, field in names.items()}
    of_search = f", found by {len(result['probes'])} probes" if result["probes"] else ""
    seconds = result["compile_seconds"] + result["anneal_seconds"]
    lines = [
        f"{result['kept']:,} of {result['total']:,} branches kept ({result['kept'] / result['total']:.1%}) of "
        f"{'-'.join(map(str, result['sizes']))} on {result['dataset']}{of_search}, compiled and annealed in "
        f"{seconds:.0f} s",
        *(f"  {name:<17}{100 * accuracy:6.2f} % test accuracy" for name, accuracy in accuracies.items()),
        f"  {result['worth']}",
        *(f"  warning: {warning}" for warning in result["warnings"]),
        f"  see {workdir / 'report.html'}",
    ]
    return "\n".join(lines)


def entry_point() -> None:
    """The console command; being terminated is being interrupted."""
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    sys.exit(main())


def _first_line(error: Exception) -> str:
    # gin appends where a configurable was called.
    return str(error).split("\n")[0]
