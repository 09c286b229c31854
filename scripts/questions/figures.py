"""The figures that pages quote: what measures each, the code that it depends on, and the commit that it is of.

A figure is current while its code is as it was when it was measured, but for comments, docstrings and blank lines.
`scripts/measure_all.sh` measures what is not. Pages say by themselves which figures are of an earlier commit.
"""

import ast
import hashlib
import io
import json
import subprocess
import tokenize
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

from .saved import RESULTS, ROOT

# What has been measured at which commit, and the digest of the code then.
STAMPS = RESULTS / "measured.json"

ANNEALING = ("sa_jax/annealing/*.py", "sa_jax/types.py")
MLP = (
    "sa_jax/landscapes/mlp/*.py",
    "sa_jax/landscapes/native/*",
    "sa_jax/moves/*.py",
    *(f"sa_jax/networks/{name}.py" for name in ("energies", "masks", "mlp", "samples", "slopes")),
)
SEARCH = (
    *ANNEALING,
    *MLP,
    *(f"sa_jax/pruning/{name}.py" for name in ("mlp", "options", "problem", "scores")),
    *(f"sa_jax/commands/run/{name}.py" for name in ("chains", "evaluation", "history", "runner", "score_stage")),
    "sa_jax/files/datasets.py",
)
PRETRAINING = ("sa_jax/networks/pretrain.py",)
COMPARISON = (*SEARCH, *PRETRAINING, "sa_jax/baselines/*.py", "sa_jax/commands/compare/host.py")
LINEAR = (
    *ANNEALING,
    "sa_jax/landscapes/linear.py",
    "sa_jax/networks/patterns.py",
    *(f"sa_jax/pruning/{name}.py" for name in ("gram", "linear", "refitting")),
)
BENCH = (*ANNEALING, *MLP, "sa_jax/landscapes/full.py", "sa_jax/commands/bench/*.py")


class Figure(NamedTuple):
    """Figures that one command measures.

    Attributes:
      files: names in results/ that hold them.
      commands: what measures them, from the root of the checkout; each resumes where it can. `{code}` stands for
        the digest of the code.
      minutes: how long that takes on one core.
      sources: the code and configs that the figures depend on, as patterns of paths.
      needs_idle: True where time is the figure.
    """

    files: tuple[str, ...]
    commands: tuple[str, ...]
    minutes: int
    sources: tuple[str, ...]
    needs_idle: bool = False


def _comparison(name: str, minutes: int) -> "Figure":
    files = tuple(f"{name}{end}" for end in (".csv", ".md", "_paired.csv"))
    return Figure(files, _asked(f"compare --configs={name}"), minutes, (*COMPARISON, f"configs/{name}.gin"))


def _asked(what: str) -> tuple[str, ...]:
    return (f"python scripts/results.py {what}",)


FIGURES = {
    "accuracy": Figure(
        ("accuracy.json", "masks.npz"),
        _asked("accuracy"),
        150,
        (*SEARCH, "configs/mlpnet_mnist*.gin", "scripts/questions/runs.py"),
    ),
    "random": Figure(
        ("random.json",),
        _asked("random"),
        60,
        (*SEARCH, "configs/random_weights_mnist*.gin", "scripts/questions/runs.py"),
    ),
    "estimates": Figure(
        ("estimates.json",),
        _asked("estimates"),
        5,
        (*MLP, "sa_jax/pruning/scores.py", "scripts/questions/estimates.py"),
    ),
    "compare_mlpnet": _comparison("compare_mlpnet", 200)._replace(files=("compare_mlpnet.csv",)),
    "compare_lenet300": _comparison("compare_lenet300", 120),
    "compare_wide": _comparison("compare_wide", 20),
    "paper": Figure(
        (
            *(f"paper{end}" for end in (".csv", ".md", "_accuracy.png")),
            *(f"paper_{end}" for end in ("courses.png", "schedules.csv", "schedules.png")),
        ),
        ("scripts/reproduce_paper.sh runs/paper-{code}",),
        60,
        (*SEARCH, *PRETRAINING, "configs/paper*.gin", "scripts/paper.py"),
    ),
    "ablation": Figure(
        tuple(f"ablation{end}" for end in (".json", ".md", ".png")),
        ("python scripts/ablate.py",),
        60,
        (*SEARCH, "scripts/ablate.py"),
    ),
    "optimum": Figure(
        ("optimum.json", "optimum.png"),
        ("python scripts/optimum.py enumerated",),
        3,
        (*ANNEALING, *MLP, "scripts/optimum.py"),
    ),
    "chains": Figure(
        ("chains.json",),
        ("python scripts/optimum.py chains",),
        10,
        (*SEARCH, "configs/mlpnet_mnist.gin", "scripts/optimum.py"),
    ),
    "warm_starts": Figure(
        ("warm_starts.json",),
        _asked("warm_starts"),
        10,
        (*MLP, "sa_jax/pruning/scores.py", "scripts/questions/warm_starts.py"),
    ),
    "speed": Figure(
        ("speed.json",),
        _asked("speed"),
        1,
        (*ANNEALING, *MLP, "sa_jax/landscapes/full.py", "scripts/questions/speed.py"),
        needs_idle=True,
    ),
    "tour": Figure(("tour.json",), _asked("tour"), 1, (*ANNEALING, "scripts/questions/tour.py"), needs_idle=True),
    "batching": Figure(
        ("batching.json",),
        _asked("batching"),
        3,
        (*ANNEALING, *MLP, "scripts/questions/batching.py"),
        needs_idle=True,
    ),
    "vmapping": Figure(
        ("vmapping.json",),
        _asked("vmapping"),
        15,
        (*ANNEALING, *MLP, "scripts/questions/vmapping.py"),
        needs_idle=True,
    ),
    "bench": Figure(
        ("bench.json", "bench.png"), ("sa-jax bench --out=scripts/results/bench.json",), 40, BENCH, needs_idle=True
    ),
    "layers": Figure(
        ("layers.json",),
        ("python scripts/bench_layers.py",),
        6,
        (*LINEAR, "scripts/bench_layers.py"),
        needs_idle=True,
    ),
    "export": Figure(
        ("export.json",),
        _asked("export"),
        25,
        (*SEARCH, "sa_jax/export/*.py", "sa_jax/commands/bench/exports.py"),
        needs_idle=True,
    ),
    "endure": Figure(
        ("endure.json",),
        tuple(f"python scripts/endure.py {what}" for what in ("kills", "cost", "soak", "fuzz")),
        65,
        (*SEARCH, "sa_jax/commands/run/*.py", "sa_jax/files/*.py", "scripts/endure.py"),
        needs_idle=True,
    ),
    "minilm": Figure(
        tuple(f"minilm{end}" for end in (".json", ".md", ".png")),
        ("python scripts/prune_minilm.py $MINILM",),
        60,
        (*LINEAR, "sa_jax/baselines/linear.py", "scripts/prune_minilm.py", "scripts/minilm.py"),
    ),
}


def paths_of(figure: Figure) -> list[Path]:
    """The files that a figure depends on."""
    found = [sorted(ROOT.glob(pattern)) for pattern in figure.sources]
    if empty := [pattern for pattern, paths in zip(figure.sources, found, strict=True) if not paths]:
        raise SystemExit(f"measure_all: no file is {empty[0]}: mend scripts/questions/figures.py")
    return sorted({path for paths in found for path in paths if path.is_file()})


def digest_of(texts: Iterable[tuple[str, str]]) -> str:
    """A digest of files, given as path and text; of Python, what a comment or a docstring says does not count."""
    digest = hashlib.sha256()
    for path, text in texts:
        digest.update(path.encode() + b"\0" + (code_of(text) if path.endswith(".py") else text).encode() + b"\0")
    return digest.hexdigest()[:16]


def code_of(text: str) -> str:
    """Python code without comments, docstrings and blank lines."""
    lines = text.splitlines(keepends=True)
    for first, last in sorted(_prose(text), reverse=True):
        (row, start), (last_row, end) = first, last
        lines[row - 1 : last_row] = [lines[row - 1][:start] + lines[last_row - 1][end:]]
    return "\n".join(line.rstrip() for line in "".join(lines).splitlines() if line.strip())


def _prose(text: str) -> Iterator[tuple[tuple[int, int], tuple[int, int]]]:
    """Where comments and docstrings begin and end: rows from 1, columns from 0."""
    starts = set()
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            first = node.body[0] if node.body else None
            if (
                isinstance(first, ast.Expr)
                and isinstance(first.value, ast.Constant)
                and isinstance(first.value.value, str)
            ):
                starts.add(first.lineno)
    for token in tokenize.generate_tokens(io.StringIO(text).readline):
        if token.type == tokenize.COMMENT or (token.type == tokenize.STRING and token.start[0] in starts):
            yield token.start, token.end


def sources_digest(name: str) -> str:
    """The digest of the code that a figure depends on, as it is now."""
    paths = paths_of(FIGURES[name])
    return digest_of((path.relative_to(ROOT).as_posix(), path.read_text()) for path in paths)


def stamps() -> dict[str, dict[str, str]]:
    """By figure: the commit whose code measured it, and the digest of that code."""
    return json.loads(STAMPS.read_text()) if STAMPS.exists() else {}


def is_current(name: str) -> bool:
    """Whether a figure's files are there and its code is as it was when they were measured."""
    there = all((RESULTS / file).exists() for file in FIGURES[name].files)
    return there and stamps().get(name, {}).get("sources") == sources_digest(name)


def note(name: str) -> str:
    """What a page adds to a figure that is not current; empty where it is."""
    if is_current(name):
        return ""
    return f"\n\nMeasured at commit `{stamps()[name]['commit']}`; code that this depends on has changed since."


def table(_: Any = None) -> str:
    """By figure: the commit that it is of, and whether its code has changed since."""
    lines = ["| figures | measured at commit | code since |", "|---|---|---|"]
    for name, stamp in sorted(stamps().items()):
        lines.append(f"| {name} | `{stamp['commit']}` | {'unchanged' if is_current(name) else 'changed'} |")
    return "\n".join(lines)


def changed_paths(name: str) -> list[str]:
    """The sources of a figure that are not as they were at its commit, as far as git can tell."""
    commit = stamps().get(name, {}).get("commit", "")
    paths = [path.relative_to(ROOT).as_posix() for path in paths_of(FIGURES[name])]
    asked = subprocess.run(
        ["git", "diff", "--name-only", commit, "--", *paths], cwd=ROOT, capture_output=True, text=True
    )
    return asked.stdout.split() if commit and not asked.returncode else []


def stamp(name: str, commit: str) -> None:
    """Notes that a figure has been measured with the code as it is now, which is that of a commit."""
    found = stamps() | {name: {"commit": commit, "sources": sources_digest(name)}}
    STAMPS.write_text(json.dumps(dict(sorted(found.items())), indent=1) + "\n")


def commit_of(name: str) -> str:
    """The commit whose code a measurement would be of.

    Raises:
      SystemExit: a source differs from the last commit.
    """
    paths = [path.relative_to(ROOT).as_posix() for path in paths_of(FIGURES[name])]
    dirty = _git("status", "--porcelain", "--", *paths)
    if dirty:
        raise SystemExit(
            f"measure_all: commit first, figures carry a commit: {dirty.splitlines()[0][3:]} has changed"
        )
    return _git("rev-parse", "--short=10", "HEAD").strip()


def _git(*arguments: str) -> str:
    asked = subprocess.run(["git", *arguments], cwd=ROOT, capture_output=True, text=True)
    if asked.returncode:
        raise SystemExit(f"measure_all: {asked.stderr.strip()}")
    return asked.stdout
