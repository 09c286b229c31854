"""Measures every figure that README, pages and notebooks quote and that is not of the code as it is.

    scripts/measure_all.sh --list             # what is left, and how long it takes
    scripts/measure_all.sh --check            # exit code 1 if anything is left
    scripts/measure_all.sh --jobs=2           # measures what is left, two at a time where time is not the figure
    scripts/measure_all.sh --only=tour,speed

questions/figures.py says what each figure depends on and what measures it. A stopped measurement resumes. When a
figure has been measured, its commit is noted in results/measured.json, so commit first. At the end the pages are
written. MNIST, Fashion-MNIST and mlpnet_mnist_93.97.npz must be in $SA_JAX_DATA, all-MiniLM-L6-v2 in $MINILM.
"""

import argparse
import os
import shlex
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent))  # runpy.run_path, which tests use, leaves this folder out
from questions import figures
from questions.figures import FIGURES
from questions.saved import ROOT


def left(names: list[str]) -> str:
    """What is left to measure, a line for each figure, and the time of all on one core."""
    lines = []
    for name in names:
        figure = FIGURES[name]
        changed = figures.changed_paths(name)
        why = f"changed since: {', '.join(changed[:3])}{', ...' if len(changed) > 3 else ''}" if changed else ""
        alone = "on an idle machine" if figure.needs_idle else ""
        lines.append(f"  {name:<18} {figure.minutes:>4} min  {'; '.join(filter(None, (alone, why)))}".rstrip())
    minutes = sum(FIGURES[name].minutes for name in names)
    return "\n".join([f"{len(names)} of {len(FIGURES)} left, about {minutes / 60:.1f} hours on one core:", *lines])


def measure(name: str) -> str:
    """Measures a figure, and returns the commit that it is of.

    Raises:
      SystemExit: its code is not committed, or a command failed.
    """
    commit = figures.commit_of(name)
    code = figures.sources_digest(name)
    environment = os.environ | {"PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ.get('PATH', '')}"}
    for command in FIGURES[name].commands:
        words = shlex.split(os.path.expandvars(command.replace("{code}", code)))
        if unset := [word for word in words if "$" in word]:
            raise SystemExit(f"measure_all: {name} needs {unset[0]}, see --help")
        if subprocess.run(words, cwd=ROOT, env=environment).returncode:
            raise SystemExit(f"measure_all: {name} was not finished: {command}")
    if figures.sources_digest(name) != code:
        raise SystemExit(f"measure_all: {name} was measured while its code changed; measure it again")
    return commit


def main() -> int:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", action="store_true", help="say what is left; exit code 1 if there is any")
    parser.add_argument("--list", action="store_true", help="say what is left")
    parser.add_argument("--only", default="", help="names of figures, with commas between them")
    parser.add_argument("--jobs", type=int, default=1, help="measurements at the same time")
    arguments = parser.parse_args()
    chosen = arguments.only.split(",") if arguments.only else list(FIGURES)
    if unknown := [name for name in chosen if name not in FIGURES]:
        parser.error(f"unknown figure {unknown[0]!r}; figures: {', '.join(FIGURES)}")
    names = [name for name in chosen if not figures.is_current(name)]
    if not names:
        print("all figures are of the code as it is")
        return 0
    print(left(names))
    if arguments.check or arguments.list:
        return int(arguments.check)
    for alone, jobs in ((False, arguments.jobs), (True, 1)):
        some = [name for name in names if FIGURES[name].needs_idle == alone]
        with ThreadPoolExecutor(jobs) as executor:
            for name, commit in zip(some, executor.map(measure, some), strict=True):
                figures.stamp(name, commit)
    return subprocess.run([sys.executable, str(ROOT / "scripts" / "results.py"), "readme"], cwd=ROOT).returncode


if __name__ == "__main__":
    sys.exit(main())
