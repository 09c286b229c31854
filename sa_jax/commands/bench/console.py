"""`sa-jax bench` on a terminal: prints the tables, writes the files."""

import argparse
from typing import Any

from sa_jax.commands.bench import exports, proposals
from sa_jax.commands.messages import RESUMABLE, tell
from sa_jax.commands.run.records import Stopped
from sa_jax.files import workdirs
from sa_jax.types import InputError


def command(arguments: argparse.Namespace) -> int:
    """Runs `sa-jax bench` and returns its exit code.

    Args:
      arguments: arguments of the command line.

    Raises:
      InputError: a file or folder that cannot be written; or as `exports.measure` says.
    """
    out = arguments.out
    if arguments.what == "export":
        if out is None:
            raise InputError("--out=DIR is missing: it names the folder for the results")
        try:
            with workdirs.writing(out, tell):
                runs = arguments.runs or exports.run_all(out / "runs", arguments.quick, tell)
                exports.write(exports.measure(runs, arguments.quick, tell), out)
        except Stopped as stopped:
            tell(f"{stopped}; repeat the command to resume")
            return RESUMABLE
        print((out / "results.md").read_text())
        print(f"see {out / 'report.html'}")
        return 0
    if out is not None:
        proposals.check_out(out)

    def save(result: dict[str, Any]) -> None:
        if out is not None:
            proposals.write(result, out)

    result = proposals.bench(arguments.quick, save)
    print(proposals.table(result))
    if out is not None:
        proposals.write_picture(result, out)
    return 0
