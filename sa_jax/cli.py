"""The command `sa-jax`: arguments, gin files, progress, one-line messages and exit codes."""

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

import sa_jax
from sa_jax import checks, export
from sa_jax.commands.bench import exports, proposals
from sa_jax.commands.compare import host as compare
from sa_jax.commands.compare.settings import CompareConfig
from sa_jax.commands.hardware import available_cores, use_all_cores
from sa_jax.commands.layers import host as layers
from sa_jax.commands.layers.settings import LayersConfig
from sa_jax.commands.run import chains, runner
from sa_jax.commands.run.settings import MACROS, SCHEDULES, RunConfig
from sa_jax.files import workdirs
from sa_jax.types import InputError

SETTINGS = tuple(field.name for field in dataclasses.fields(RunConfig))
COMPARE_MACROS = ("METHODS", "DENSITIES", "SEEDS")
COMPARE_SETTINGS = tuple(field.name for field in dataclasses.fields(CompareConfig))
LAYERS_SETTINGS = tuple(field.name for field in dataclasses.fields(LayersConfig))
# Exit code of a run that the same command resumes: EX_TEMPFAIL of sysexits.h.
RESUMABLE = 75
# Words in JAX's errors when another process is gone.
LOST_PEER = re.compile("gloo|connection|coordination|heartbeat|barrier|peer|preempt|unavailable", re.IGNORECASE)

gin_run = gin.external_configurable(RunConfig, name="run")
gin_compare = gin.external_configurable(CompareConfig, name="compare")
gin_layers = gin.external_configurable(LayersConfig, name="layers")


class Parser(argparse.ArgumentParser):
    """Reports a mistake in one line."""

    def error(self, message: str) -> NoReturn:
        """Exits with 2."""
        self.exit(2, f"{self.prog}: {message}; see {self.prog} --help\n")


def make_parser() -> Parser:
    """Returns the parser of the command line."""
    parser = Parser(prog="sa-jax", description="Prune neural networks by simulated annealing.")
    parser.add_argument("--version", action="version", version=f"sa-jax {sa_jax.__version__}")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    running = commands.add_parser("run", help="prune one network, with the settings of a gin file")
    comparing = commands.add_parser("compare", help="compare pruning methods over densities, seeds and data sets")
    pruning_layers = commands.add_parser("layers", help="prune the linear layers of any pretrained model")
    examples = {
        running: ("configs/digits.gin", "DENSITY=0.05 or DATASET=\"'mnist'\""),
        comparing: ("configs/compare_digits.gin", "SEEDS=[0,1] or compare.epochs=3"),
        pruning_layers: ("configs/layers.gin", "layers.pattern=\"'2:4'\" or layers.refit=True"),
    }
    for command, (file, binding) in examples.items():
        command.add_argument("--gin_file", required=True, metavar="FILE", help=f"settings file, such as {file}")
        command.add_argument(
            "--gin_bindings",
            action="append",
            default=[],
            metavar="BINDING",
            help=f"setting that replaces one of the file, such as {binding}; may be repeated",
        )
        command.add_argument("--workdir", type=Path, metavar="DIR", help="output directory, made if missing")
        command.add_argument("--dry_run", action="store_true", help="print all settings and exit")
    running.add_argument("--coordinator", metavar="HOST:PORT", help="address of process 0")
    running.add_argument("--num_processes", type=int, metavar="N", help="number of processes")
    running.add_argument("--process_id", type=int, metavar="I", help="index of this process, from 0")
    running.add_argument("--overwrite", action="store_true", help="replace the results of an earlier run")
    comparing.add_argument(
        "--jobs", type=int, metavar="N", help="number of worker processes (default: one per core)"
    )
    _add_export(commands.add_parser("export", help="export a pruned network to devices and other frameworks"))
    _add_bench(commands.add_parser("bench", help="measure proposals per second, or exported networks"))
    return parser


def _add_export(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("rundir", type=Path, metavar="WORKDIR", help="work directory of a finished run")
    parser.add_argument("--format", required=True, metavar="FORMAT", help=f"one of {', '.join(export.FORMATS)}")
    folders = " and ".join(export.FOLDERS)
    out_help = f"output file, or output directory for the formats {folders}"
    parser.add_argument("--out", type=Path, required=True, metavar="PATH", help=out_help)
    width = parser.add_mutually_exclusive_group()
    bits_help = "bits per kept weight: 1, 2, 3, 4, 8 or 32 (default 32)"
    width.add_argument("--bits", type=int, metavar="N", help=bits_help)
    formats = ", ".join(export.BUDGETED)
    budget_help = f"largest size in bytes, for C of the tables; chooses the bits per layer (formats {formats})"
    width.add_argument("--max_bytes", type=int, metavar="N", help=budget_help)
    parser.add_argument("--overwrite", action="store_true", help="replace existing files")


def _add_bench(parser: argparse.ArgumentParser) -> None:
    what_help = "measurement: proposals (default) or export"
    parser.add_argument("what", nargs="?", choices=["proposals", "export"], default="proposals", help=what_help)
    runs_help = "work directories of finished runs, for export (default: makes new runs)"
    parser.add_argument("runs", nargs="*", type=Path, metavar="WORKDIR", help=runs_help)
    parser.add_argument("--quick", action="store_true", help="measure few cases, in about 3 minutes")
    out_help = "output file FILE.json, with a picture beside it; for export an output directory"
    parser.add_argument("--out", type=Path, metavar="PATH", help=out_help)


def main(argv: list[str] | None = None) -> int:
    """Runs the command line and returns the exit code: 0 done, 2 bad input, 75 to be resumed, 130 interrupted."""
    arguments = make_parser().parse_args(argv)
    functions = {
        "run": run_command,
        "compare": compare_command,
        "layers": layers_command,
        "export": export_command,
        "bench": bench_command,
    }
    try:
        return functions[arguments.command](arguments)
    except InputError as error:
        tell(str(error))
        return 2
    except BrokenPipeError:  # the reader of the output has ended, as in `... | head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except chains.Stopped as stopped:
        tell(f"{stopped}; repeat the command to resume")
        return RESUMABLE
    except KeyboardInterrupt:
        return _interrupted(arguments)


def _interrupted(arguments: argparse.Namespace) -> int:
    """Says what an interrupted command has written, and returns its exit code."""
    if arguments.command in ("compare", "layers"):
        tell("interrupted; repeat the command to resume")
        return 130
    workdir = getattr(arguments, "workdir", None)
    if arguments.command == "run" and workdir and (workdir / runner.CHECKPOINTS).is_dir():
        tell("interrupted; repeat the command to resume from the last checkpoint")
        return RESUMABLE
    measured = " except the cases measured so far" if arguments.command == "bench" and arguments.out else ""
    tell(f"interrupted; nothing was written{measured}")
    return 130


def tell(message: str) -> None:
    """Prints a message to the user."""
    print(f"sa-jax: {message}", file=sys.stderr)


def _asked_workdir(arguments: argparse.Namespace) -> Path:
    if arguments.workdir is None:
        raise InputError("--workdir=DIR is missing: it names the directory for the results")
    return arguments.workdir


def run_command(arguments: argparse.Namespace) -> int:
    """`sa-jax run`."""
    config = cast(RunConfig, load_config(arguments.gin_file, arguments.gin_bindings, gin_run, MACROS))
    operative = gin.operative_config_str()
    if arguments.dry_run:
        print(operative)
        return 0
    workdir = _asked_workdir(arguments)
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

        with stopping(config.checkpoint_seconds > 0) as stop:
            try:
                result = runner.run(config, workdir, operative, arguments.overwrite, show, tell, stop)
            except (ValueError, RuntimeError) as error:
                if not several or isinstance(error, InputError) or not LOST_PEER.search(str(error)):
                    raise
                reason = _first_line(error)
                tell(f"lost another process ({reason}); restart all processes to resume; their number may differ")
                sys.stderr.flush()
                os._exit(RESUMABLE)  # JAX would wait for the other processes
    if not several or jax.process_index() == 0:
        print(summary(result, workdir))
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
        raise InputError(f"the processes could not connect at {where}: {_first_line(error)}") from None
    return True


@contextlib.contextmanager
def stopping(possible: bool) -> Iterator[Callable[[], bool]]:
    """Makes a first SIGINT or SIGTERM set a flag instead of ending the process; a second one ends it.

    Args:
      possible: whether the run can be saved; if not, the first signal ends the process.

    Yields:
      A function that returns the flag.
    """
    received = []

    def receive(number: int, frame: Any) -> None:
        received.append(number)
        for name, handler in before.items():
            signal.signal(name, handler)
        tell("stopping after the current chunk; interrupt again to stop immediately")

    before = {}
    if possible and threading.current_thread() is threading.main_thread():
        before = dict.fromkeys((signal.SIGINT, signal.SIGTERM), signal.default_int_handler)
        earlier = {number: signal.signal(number, receive) for number in before}
    try:
        yield lambda: bool(received)
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
    workdir = _asked_workdir(arguments)
    jobs = available_cores() if arguments.jobs is None else checks.whole("--jobs", arguments.jobs, 1)
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

        words = [f"--gin_file={shlex.quote(arguments.gin_file)}"]
        words += [f"--gin_bindings={shlex.quote(binding)}" for binding in arguments.gin_bindings]
        command = f"sa-jax compare {' '.join(words)} --workdir=NEW_DIR"
        result = compare.compare(config, workdir, jobs, command, operative, show, tell)
    print((workdir / "results.md").read_text())
    print(f"{len(result)} cells; see {workdir / 'report.html'}")
    return 0


def layers_command(arguments: argparse.Namespace) -> int:
    """`sa-jax layers`."""
    read = load_config(arguments.gin_file, arguments.gin_bindings, gin_layers, ())
    config, operative = cast(LayersConfig, read), gin.operative_config_str()
    if arguments.dry_run:
        print(operative)
        return 0
    workdir = _asked_workdir(arguments)
    sys.path.insert(0, os.getcwd())  # a user's own `forward` may be a module in this directory
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

        rows = layers.prune_model_files(config, workdir, operative, show, tell)
    num_kept, total = (sum(row[name] for row in rows) for name in ("kept", "total"))
    print(f"{num_kept:,} of {total:,} weights kept ({num_kept / total:.1%}) in {len(rows)} layers")
    print(f"  see {workdir / 'report.html'}; pruned model: {workdir / 'pruned.safetensors'}")
    return 0


def export_command(arguments: argparse.Namespace) -> int:
    """`sa-jax export`."""
    chosen = arguments.bits, arguments.max_bytes
    written = export.export(arguments.rundir, arguments.format, arguments.out, arguments.overwrite, *chosen)
    for path in written:
        print(f"{path}: {path.stat().st_size:,} bytes")
    if arguments.format in export.FOLDERS and not any(path.name == "classify.c" for path in written):
        tell("classify.c was not written: the data set has no image shape or could not be loaded")
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
        raise InputError("--out=DIR is missing: it names the directory for the results")
    workdirs.make(arguments.out)

    runs = arguments.runs or exports.run_all(arguments.out / "runs", arguments.quick, tell)
    result = exports.measure(runs, arguments.quick, tell)
    exports.write(result, arguments.out)
    print((arguments.out / "results.md").read_text())
    print(f"see {arguments.out / 'report.html'}")
    return 0


def load_config(
    gin_file: str, bindings: list[str], settings: Callable[[], Any], macros: Sequence[str]
) -> RunConfig | CompareConfig | LayersConfig:
    """Reads a gin file and bindings, and refuses values that no setting uses.

    Args:
      gin_file: path of the file; the package's own, such as `configs/digits.gin`, are found from any directory.
      bindings: such as `DENSITY=0.05`; of several with the same name the last one counts.
      settings: `gin_run`, `gin_compare` or `gin_layers`.
      macros: macros that configs of this command have.

    Raises:
      InputError: unreadable or malformed gin, a name that does not exist, a bad value.
    """
    gin.clear_config()
    # The configs are in an installed package, or beside it in a checkout.
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
                raise InputError(f"no setting uses {scope}; {_nearest(scope, macros)}")
            raise InputError(f"no setting uses {scope + '/' if scope else ''}{selector}")
    return config


@contextlib.contextmanager
def _gin_errors(where: str, macros: Sequence[str]):
    """Turns errors of gin into one line that names the place and the fix."""
    logger = logging.getLogger()
    before = logger.level
    logger.setLevel(logging.CRITICAL)  # gin logs a missing file before it raises
    try:
        yield
    except tokenize.TokenError:
        raise InputError(f"{where}: a bracket or a quote is not closed") from None
    except OSError as error:
        missing = re.search(r"Unable to open file: (.*?)\.? Searched", str(error))
        raise InputError(f"gin file {missing[1] if missing else where} is not there or cannot be read") from None
    except UnicodeDecodeError:
        raise InputError(f"{where} is not a text file") from None
    except Exception as error:  # gin lets errors of Python's parser and of imports through
        message = _first_line(error)
        if isinstance(error, InputError):
            raise InputError(message) from None
        fix = ""
        if "Expected newline" in message:
            message, fix = "more than one binding", "; give --gin_bindings once for each"
        elif isinstance(error, RecursionError):
            message = "a name refers to itself"
        elif "malformed node" in message or "Unable to parse value" in message:
            line = (re.search(r" \(.*line \d+\)", message) or [""])[0] if "Unable" in message else ""
            message, fix = f"a value is not a Python literal{line}", "; text needs quotes, as in DATASET='mnist'"
        elif match := re.search(r"'?(run|compare|layers)'? .*doesn't have a parameter named '(.*)'", message):
            known = {"run": SETTINGS, "compare": COMPARE_SETTINGS, "layers": LAYERS_SETTINGS}[match[1]]
            message, fix = f"{match[1]} has no setting {match[2]!r}", f"; {_nearest(match[2], known)}"
        elif match := re.search(r"No bindings specified for '(.*)/gin.macro'", message):
            message, fix = f"%{match[1]} is used, but has no value", f"; {_nearest(match[1], macros)}"
        elif match := re.search("No configurable matching (?:reference )?'(.*)'", message):
            message, fix = f"unknown name {match[1]!r}", "; settings are written NAME=... or run.name=..."
            if match[1].lstrip("@(").rstrip("()") in SCHEDULES:
                fix = "; the built-in schedules are given by name, such as 'geometric'"
        elif "Couldn't parse statement" in message or "Unexpected token" in message:
            message, fix = "not of the form NAME = value", ", such as DENSITY = 0.05"
        raise InputError(f"{where}: {message}{fix}") from None
    finally:
        logger.setLevel(before)


def _nearest(name: str, known: Sequence[str]) -> str:
    close = difflib.get_close_matches(name, known, 1) or difflib.get_close_matches(name.upper(), known, 1)
    return f"did you mean {close[0]}?" if close else f"known: {', '.join(known)}"


def summary(result: dict[str, Any], workdir: Path) -> str:
    """Returns the few lines that a finished run prints."""
    annealed = "annealed, weights moved" if result["moves_weights"] else "annealed"
    accuracies = {annealed: result["test_accuracy"]}
    accuracies["best one-shot"] = result["one_shot_test_accuracy"][result["best_one_shot"]]
    names = {"global magnitude": "magnitude", "random": "random", "dense": "dense"}
    accuracies |= {name: result[f"{field}_test_accuracy"] for name, field in names.items()}
    width = max(17, *(len(name) + 2 for name in accuracies))
    of_search = f", found by {len(result['probes'])} probes" if result["probes"] else ""
    seconds = result["compile_seconds"] + result["anneal_seconds"]
    lines = [
        f"{result['kept']:,} of {result['total']:,} branches kept ({result['kept'] / result['total']:.1%}) of "
        f"{'-'.join(map(str, result['sizes']))} on {result['dataset']}{of_search}, compiled and annealed in "
        f"{seconds:.0f} s",
        *(f"  {name:<{width}}{100 * accuracy:6.2f} % test accuracy" for name, accuracy in accuracies.items()),
        f"  {result['worth']}",
        *(f"  warning: {warning}" for warning in result["warnings"]),
        f"  see {workdir / 'report.html'}",
    ]
    return "\n".join(lines)


def entry_point() -> None:
    """Runs the console command; termination is treated as an interrupt."""
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    sys.exit(main())


def _first_line(error: Exception) -> str:
    # gin appends lines on where a setting was used.
    return str(error).split("\n")[0]
