"""The command `sa-jax`: arguments, gin files, one-line messages and exit codes.

JAX and the commands are imported where they are used. That takes seconds, and signals are handled before.
"""

import argparse
import ast
import contextlib
import dataclasses
import difflib
import functools
import importlib
import logging
import os
import re
import sys
import tokenize
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

import sa_jax
from sa_jax.commands import interrupts
from sa_jax.commands.messages import RESUMABLE, first_line, tell
from sa_jax.commands.prune.arguments import add_arguments
from sa_jax.commands.run.macros import MACROS

if TYPE_CHECKING:
    from sa_jax.commands.compare.settings import CompareConfig
    from sa_jax.commands.layers.settings import LayersConfig
    from sa_jax.commands.run.settings import RunConfig

# The settings of each command as gin knows them, see `_gin`.
CONFIGURABLES: dict[str, Any] = {}
COMPARE_MACROS = ("METHODS", "DENSITIES", "SEEDS")
# As in `sa_jax.export`, whose import takes a second.
EXPORT_FORMATS = ("c", "c_packed", "packed", "npz", "safetensors", "safetensors_packed", "onnx", "stablehlo")
EXPORT_FOLDERS, EXPORT_BUDGETED = ("c", "c_packed"), ("c", "c_packed", "packed")


class Parser(argparse.ArgumentParser):
    """Reports a mistake in one line, with the nearest flag if one is misspelt."""

    words: Sequence[str] = ()

    def parse_known_args(self, args: Any = None, namespace: Any = None) -> tuple[Any, list[str]]:
        """Parses the arguments; other than its base, a command refuses those that it does not know."""
        self.words = sys.argv[1:] if args is None else list(args)
        parsed, unknown = super().parse_known_args(args, namespace)
        if unknown:
            self.error(f"unrecognized arguments: {' '.join(unknown)}")
        return parsed, unknown

    def error(self, message: str) -> NoReturn:
        """Exits with 2."""
        known = self._option_string_actions
        given = [word.partition("=")[0] for word in self.words if word.startswith("--")]
        for flag in given:
            close = difflib.get_close_matches(flag, known, 1)
            if close and not any(name.startswith(flag) for name in known):
                message += f"; did you mean {close[0]} for {flag}?"
        self.exit(2, f"{self.prog}: {message}; see {self.prog} --help\n")


def make_parser() -> Parser:
    """Returns the parser of the command line."""
    parser = Parser(prog="sa-jax", description="Prune neural networks by simulated annealing.")
    parser.add_argument("--version", action="version", version=f"sa-jax {sa_jax.__version__}")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    running = commands.add_parser("run", help="prune one network, with the settings of a gin file")
    comparing = commands.add_parser("compare", help="compare pruning methods over densities, seeds and data sets")
    pruning = commands.add_parser("prune", help="prune a model of your own on data of your own")
    add_arguments(pruning)
    pruning_layers = commands.add_parser("layers", help="prune the linear layers of any pretrained model")
    examples = {
        running: ("configs/digits.gin", "DENSITY=0.05 or DATASET=mnist"),
        comparing: ("configs/compare_digits.gin", "SEEDS=[0,1] or compare.epochs=3"),
        pruning_layers: ("configs/layers.gin", "layers.pattern=2:4 or layers.refit=True"),
    }
    for command, (file, setting) in examples.items():
        command.add_argument("--gin_file", required=True, metavar="FILE", help=f"settings file, such as {file}")
        command.add_argument(
            "--set",
            action="append",
            default=[],
            type=as_binding,
            dest="gin_bindings",
            metavar="NAME=VALUE",
            help=f"setting that replaces one of the file, such as {setting}; may be repeated",
        )
        command.add_argument(
            "--gin_bindings",
            action="append",
            metavar="BINDING",
            help="the same in the syntax of gin, where text needs quotes: DATASET=\"'mnist'\"",
        )
        command.add_argument("--workdir", type=Path, metavar="DIR", help="output folder, made if missing")
        command.add_argument("--dry_run", action="store_true", help="print all settings and exit")
    running.add_argument("--coordinator", metavar="HOST:PORT", help="address of process 0")
    running.add_argument("--num_processes", type=int, metavar="N", help="number of processes")
    running.add_argument("--process_id", type=int, metavar="I", help="index of this process, from 0")
    running.add_argument("--overwrite", action="store_true", help="replace the results of an earlier run")
    densities_help = "a run at each of these densities, and one picture of all; such as 0.5,0.2,0.1,0.05,0.02"
    running.add_argument("--densities", metavar="LIST", help=densities_help)
    comparing.add_argument(
        "--jobs", type=int, metavar="N", help="number of worker processes (default: one per core)"
    )
    _add_export(commands.add_parser("export", help="export a pruned network to devices and other frameworks"))
    _add_bench(commands.add_parser("bench", help="measure proposals per second, or exported networks"))
    return parser


def as_binding(setting: str) -> str:
    """Returns the binding of gin that a setting `NAME=VALUE` means: text gets its quotes.

    Literals of Python and references of gin stay as they are, and so does what has quotes.

    >>> as_binding("DATASET=mnist"), as_binding("DENSITY=0.05"), as_binding("METHODS=[snip, obd]")
    ("DATASET='mnist'", 'DENSITY=0.05', "METHODS=['snip', 'obd']")
    """
    name, equals, value = setting.partition("=")
    return f"{name}{equals}{_literal(value.strip())}" if value.strip() else setting


def _literal(value: str) -> str:
    """A value as a literal of Python."""
    with contextlib.suppress(ValueError, SyntaxError):
        ast.literal_eval(value)
        return value
    if value[:1] in "@%" or any(sign in value for sign in "'\"\n"):
        return value
    if value[0] == "[" and value[-1] == "]" and not any(sign in value[1:-1] for sign in "[]"):
        return f"[{', '.join(_literal(part.strip()) for part in value[1:-1].split(','))}]"
    return repr(value)


def _add_export(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("rundir", type=Path, metavar="WORKDIR", help="folder of a finished run")
    parser.add_argument("--format", required=True, metavar="FORMAT", help=f"one of {', '.join(EXPORT_FORMATS)}")
    folders = " and ".join(EXPORT_FOLDERS)
    out_help = f"output file, or output folder for the formats {folders}"
    parser.add_argument("--out", type=Path, required=True, metavar="PATH", help=out_help)
    width = parser.add_mutually_exclusive_group()
    bits_help = "bits per kept weight: 1, 2, 3, 4, 8 or 32 (default 32)"
    width.add_argument("--bits", type=int, metavar="N", help=bits_help)
    formats = ", ".join(EXPORT_BUDGETED)
    budget_help = f"largest size in bytes, for C of the tables; chooses the bits per layer (formats {formats})"
    width.add_argument("--max_bytes", type=int, metavar="N", help=budget_help)
    parser.add_argument("--overwrite", action="store_true", help="replace existing files")


def _add_bench(parser: argparse.ArgumentParser) -> None:
    what_help = "measurement: proposals (default) or export"
    parser.add_argument("what", nargs="?", choices=["proposals", "export"], default="proposals", help=what_help)
    runs_help = "folders of finished runs, for export (default: makes new runs)"
    parser.add_argument("runs", nargs="*", type=Path, metavar="WORKDIR", help=runs_help)
    parser.add_argument("--quick", action="store_true", help="measure few cases, in about 3 minutes")
    out_help = "output file FILE.json, with a picture beside it; for export an output folder"
    parser.add_argument("--out", type=Path, metavar="PATH", help=out_help)


def main(argv: list[str] | None = None) -> int:
    """Runs the command line and returns the exit code: 0 done, 2 bad input, 75 to be resumed, 130 interrupted."""
    parser = make_parser()
    if "_ARGCOMPLETE" in os.environ:  # the shell asks what could come next
        import argcomplete

        argcomplete.autocomplete(parser)
    arguments = parser.parse_args(argv)
    from sa_jax.types import InputError

    try:
        _expand_paths(arguments)
        interrupts.on_end(functools.partial(_interrupted, arguments))
        return COMMANDS[arguments.command](arguments)
    except InputError as error:
        tell(str(error))
        return 2
    except BrokenPipeError:  # the reader of the output has ended, as in `... | head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except KeyboardInterrupt:
        return interrupts.end()


def _expand_paths(arguments: argparse.Namespace) -> None:
    """Replaces a leading ~ in all paths among the arguments."""
    from sa_jax.files.paths import expanded

    for name, value in vars(arguments).items():
        if isinstance(value, Path):
            setattr(arguments, name, expanded(value))
        elif isinstance(value, list):
            setattr(arguments, name, [expanded(one) if isinstance(one, Path) else one for one in value])


def _interrupted(arguments: argparse.Namespace) -> int:
    """Says what an interrupted command has written, and returns its exit code."""
    from sa_jax.files import workdirs

    workdirs.abandon()
    in_run = "checkpoints/*/*", "checkpoints/score_search-*.npz"
    in_run += (*(f"density_*/{place}" for place in in_run), "density_*/result.json")
    saved = {"run": in_run, "prune": in_run, "compare": ("*/*.*",), "layers": ("layers/*.npz",)}
    if arguments.command in saved and arguments.workdir is not None:
        running = arguments.command in ("run", "prune")
        found = (path for place in saved[arguments.command] for path in arguments.workdir.glob(place))
        # Of a run, checkpoints that are whole.
        if any(path.name.isdecimal() or path.suffix in (".npz", ".json") or not running for path in found):
            from_where = " from the last checkpoint" if running else ""
            tell(f"interrupted; repeat the command to resume{from_where}")
            return RESUMABLE
    measures = arguments.command == "bench" and arguments.out is not None
    return interrupts.nothing_written(" except the cases measured so far" if measures else "")


def _configured_command(arguments: argparse.Namespace) -> int:
    """`sa-jax run`, `sa-jax compare` and `sa-jax layers`."""
    from sa_jax.types import InputError

    settings, macros = {
        "run": (gin_run, MACROS),
        "compare": (gin_compare, COMPARE_MACROS),
        "layers": (gin_layers, ()),
    }[arguments.command]
    config = load_config(arguments.gin_file, arguments.gin_bindings, settings, macros)
    operative = _gin().operative_config_str()
    if arguments.dry_run:
        print(operative)
        return 0
    if arguments.workdir is None:
        raise InputError("--workdir=DIR is missing: it names the folder for the results")
    from sa_jax.commands import compiling

    console = importlib.import_module(f"sa_jax.commands.{arguments.command}.console")
    compiling.begin(tell)
    interrupts.begin()
    return console.command(config, operative, arguments)


def _bench_command(arguments: argparse.Namespace) -> int:
    """`sa-jax bench`."""
    from sa_jax.commands.bench import console

    interrupts.begin()
    return console.command(arguments)


def _prune_command(arguments: argparse.Namespace) -> int:
    """`sa-jax prune`."""
    from sa_jax.commands import compiling
    from sa_jax.commands.prune import console

    compiling.begin(tell)
    interrupts.begin()
    return console.command(arguments)


def _export_command(arguments: argparse.Namespace) -> int:
    """`sa-jax export`."""
    from sa_jax import export
    from sa_jax.files import workdirs

    interrupts.begin()
    chosen = arguments.bits, arguments.max_bytes
    several = arguments.format in export.FOLDERS and not arguments.out.is_file()
    with workdirs.writing(arguments.out, tell) if several else contextlib.nullcontext():
        written = export.export(arguments.rundir, arguments.format, arguments.out, arguments.overwrite, *chosen)
    for path in written:
        print(f"{path}: {path.stat().st_size:,} bytes")
    if arguments.format in export.FOLDERS and not any(path.name == "classify.c" for path in written):
        tell("classify.c was not written: the data set has no image shape or could not be loaded")
    return 0


COMMANDS = {
    "run": _configured_command,
    "compare": _configured_command,
    "layers": _configured_command,
    "prune": _prune_command,
    "export": _export_command,
    "bench": _bench_command,
}


@functools.cache
def _gin() -> Any:
    """Returns gin, which knows the settings of all commands, and finds the package's configs from any folder."""
    import gin.config

    from sa_jax.commands.compare.settings import CompareConfig
    from sa_jax.commands.layers.settings import LayersConfig
    from sa_jax.commands.run.settings import RunConfig

    for name, settings in (("run", RunConfig), ("compare", CompareConfig), ("layers", LayersConfig)):
        CONFIGURABLES[name] = gin.external_configurable(settings, name=name)
    readers: list[Any] = gin.config._FILE_READERS
    readers[:] = [(_open_gin, lambda name: _gin_path(name) is not None)]
    return gin


def _gin_path(name: str) -> Path | None:
    """The path of a gin file: from the current folder, or of the package; None where there is none."""
    from sa_jax.files.paths import expanded

    # The configs are in an installed package, or beside it in a checkout.
    places = (Path(), *Path(__file__).parents[:2])
    return next((place / expanded(name) for place in places if (place / expanded(name)).is_file()), None)


def _open_gin(name: str) -> Any:
    path = _gin_path(name)
    assert path is not None
    return path.open(encoding="utf-8-sig")  # editors on Windows write a byte-order mark


def gin_run() -> "RunConfig":
    """Returns the settings of a run, of the gin files that were read."""
    return CONFIGURABLES["run"]()


def gin_compare() -> "CompareConfig":
    """Returns the settings of a comparison, of the gin files that were read."""
    return CONFIGURABLES["compare"]()


def gin_layers() -> "LayersConfig":
    """Returns the settings of `sa-jax layers`, of the gin files that were read."""
    return CONFIGURABLES["layers"]()


def setting_names(command: str) -> tuple[str, ...]:
    """Returns the names of the settings of 'run', 'compare' or 'layers'."""
    _gin()
    return tuple(field.name for field in dataclasses.fields(CONFIGURABLES[command]))


def load_config(gin_file: str, bindings: list[str], settings: Callable[[], Any], macros: Sequence[str]) -> Any:
    """Reads a gin file and bindings, and refuses values that no setting uses.

    Args:
      gin_file: path of the file; the package's own, such as `configs/digits.gin`, are found from any folder.
      bindings: such as `DENSITY=0.05`; of several with the same name the last one counts.
      settings: `gin_run`, `gin_compare` or `gin_layers`.
      macros: macros that configs of this command have.

    Raises:
      InputError: unreadable or malformed gin, a name that does not exist, a bad value.
    """
    from sa_jax.types import InputError

    gin = _gin()
    gin.clear_config()
    if _gin_path(gin_file) is None:
        raise InputError(f"gin file {gin_file} is not there")
    with _gin_errors(gin_file, macros):
        gin.parse_config_file(gin_file)
    for binding in bindings:
        with _gin_errors(f"binding {binding}", macros):
            gin.parse_config(binding)
    with _gin_errors(gin_file, macros):
        gin.finalize()
        config = settings()
    for scope, selector in gin.config._CONFIG:
        if (scope, selector) not in gin.config._OPERATIVE_CONFIG:
            if selector == "gin.macro":
                if scope in macros:
                    command = "compare" if scope in COMPARE_MACROS else "run"
                    raise InputError(f"{gin_file} has no macro {scope}: set {command}.{scope.lower()}")
                raise InputError(f"no setting uses {scope}; {_nearest(scope, macros)}")
            raise InputError(f"no setting uses {scope + '/' if scope else ''}{selector}")
    return config


@contextlib.contextmanager
def _gin_errors(where: str, macros: Sequence[str]):
    """Turns errors of gin into one line that names the place and the fix."""
    from sa_jax.types import InputError

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
        raise InputError(f"{where} is not a text file in UTF-8") from None
    except Exception as error:  # gin lets errors of Python's parser and of imports through
        message = first_line(error)
        if isinstance(error, InputError):
            raise InputError(message) from None
        fix = ""
        if "Expected newline" in message:
            message, fix = "more than one binding", "; give --set or --gin_bindings once for each"
        elif isinstance(error, RecursionError):
            message = "a name refers to itself"
        elif "malformed node" in message or "Unable to parse value" in message:
            line = (re.search(r" \(.*line \d+\)", message) or [""])[0] if "Unable" in message else ""
            message, fix = f"a value is not a Python literal{line}", "; text needs quotes, as in DATASET='mnist'"
        elif match := re.search(r"'?(run|compare|layers)'? .*doesn't have a parameter named '(.*)'", message):
            known = setting_names(match[1])
            message, fix = f"{match[1]} has no setting {match[2]!r}", f"; {_nearest(match[2], known)}"
        elif match := re.search(r"No bindings specified for '(.*)/gin.macro'", message):
            message, fix = f"%{match[1]} is used, but has no value", f"; {_nearest(match[1], macros)}"
        elif match := re.search("No configurable matching (?:reference )?'(.*)'", message):
            message, fix = f"unknown name {match[1]!r}", "; settings are written NAME=... or run.name=..."
            from sa_jax.commands.run.settings import SCHEDULES

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


def entry_point(argv: list[str] | None = None) -> None:
    """Runs the command line and ends this process; SIGINT and SIGTERM end it within seconds, at any time."""
    interrupts.watch()
    try:
        code = main(argv)
    except KeyboardInterrupt:
        code = interrupts.end()
    interrupts.finish(code)
