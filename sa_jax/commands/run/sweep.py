"""Prunes one network at several densities, each starting from the one before, and draws all in one picture."""

import dataclasses
import json
import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from sa_jax import checks
from sa_jax.commands.run import runner
from sa_jax.commands.run.records import Progress
from sa_jax.commands.run.settings import RunConfig
from sa_jax.files import datasets, workdirs
from sa_jax.networks import masks
from sa_jax.reports.sweep import render_picture, render_sweep, row_of
from sa_jax.types import InputError

# Settings that a density has of its own, or on which no mask depends.
_NOT_SHARED = ("density", "target_accuracy", "checkpoint_seconds", "rival", "scores_from")


def densities_of(text: str) -> list[float]:
    """Returns the densities that a text such as '0.5,0.2,0.1' lists.

    Raises:
      InputError: not a list of numbers above 0 and at most 1, each of them once.

    >>> densities_of("0.1, 0.5")
    [0.1, 0.5]
    """
    try:
        densities = [float(part) for part in text.split(",")]
    except ValueError:
        raise InputError(f"--densities must be numbers such as 0.5,0.2,0.1, not {text!r}") from None
    return _checked(densities)


def sweep(
    config: RunConfig,
    densities: Sequence[float],
    workdir: Path,
    operative_config: str = "",
    overwrite: bool = False,
    on_progress: Callable[[Progress], None] = lambda progress: None,
    on_message: Callable[[str], None] = lambda message: None,
    stop: Callable[[], bool] = lambda: False,
) -> list[dict[str, Any]]:
    """Makes a run at each density, from the highest to the lowest, and draws them together.

    The dense network is trained once. Score search of a density starts from the scores that it found for the
    density before, in place of the largest weights; annealing alone starts each time from its own initial mask.

    Args:
      config: the settings; their density is not used.
      densities: densities, each in (0, 1].
      workdir: output folder, made if missing. Gets a folder for each density, as `runner.run` writes it, such as
        'density_0.5'; and, after each density, sweep.json, sweep.html and sweep.png with all of them.
      operative_config: text of `operative.gin`, to which each density adds its own settings.
      overwrite: whether to replace the results of an earlier sweep.
      on_progress: called as by `runner.run`; `probe` counts the densities, and `density` is the present one.
      on_message: called with messages for the user.
      stop: as for `runner.run`. A call with the same settings resumes where this one ended, and makes no density
        again that is done.

    Returns:
      The content of each `result.json`, the highest density first.

    Raises:
      InputError: bad densities, data, weights or settings, or a workdir that cannot be used.
      Stopped: `stop` asked for it; the densities that are done are drawn, and the present one is saved.
    """
    ordered = sorted(_checked(densities), reverse=True)
    if config.pattern is not None:
        raise InputError("--densities and a pattern exclude each other: a pattern has its density")
    results: list[dict[str, Any]] = []
    with workdirs.writing(workdir, on_message):
        done = set() if overwrite else _done(config, workdir)
        dataset = datasets.load_dataset(config.dataset, config.input_mean, config.input_std)
        dense = None
        for number, density in enumerate(ordered, 1):
            own = _own(config, density, [workdir / folder_of(one) for one in ordered[: number - 1]])
            folder = workdir / folder_of(density)
            if folder_of(density) in done:
                result = workdirs.read_result(folder)
                if result["scores_from"] != own.scores_from:
                    raise InputError(
                        f"{folder} holds a run that started from another density: choose another workdir, or add "
                        "--overwrite to start again"
                    )
                on_message(f"{100 * density:g} % kept: done already")
                results.append(result)
                continue
            if dense is None:
                dense = runner.load_network(own, dataset, on_message, on_progress)
                for one in ordered:
                    masks.num_kept(one, dense[1].total)  # refuses a density that keeps no branch

            on_message(f"{100 * density:g} % kept, density {number} of {len(ordered)}")

            def show(progress: Progress, number: int = number, density: float = density) -> None:
                on_progress(progress._replace(probe=number, density=density))

            text = _with_density(operative_config, own)
            result = runner.run(own, folder, text, overwrite, show, on_message, stop, dense)
            results.append(result)
            _write(config, results, workdir, len(ordered))
        _write(config, results, workdir, len(ordered))
    return results


def _checked(densities: Sequence[float]) -> list[float]:
    if not isinstance(densities, list | tuple) or not densities:
        raise InputError(f"densities must be a non-empty list, not {densities!r}")
    found = [checks.number("each density", density, above=0, most=1) for density in densities]
    if len(set(found)) < len(found):
        raise InputError(f"densities contains duplicates: {densities!r}")
    return found


def folder_of(density: float) -> str:
    """Returns the name of a density's folder in that of a sweep.

    >>> folder_of(0.1)
    'density_0.1'
    """
    return f"density_{density!r}"


def _own(config: RunConfig, density: float, before: Sequence[Path]) -> RunConfig:
    """The settings of one density; `before` are the folders of the higher ones, the next higher one last."""
    own = dataclasses.replace(config, density=density, target_accuracy=None)
    if not before or config.start != "score_search":
        return own
    return dataclasses.replace(own, scores_from=str(before[-1].absolute()))


def _with_density(operative_config: str, own: RunConfig) -> str:
    """The text of `operative.gin` with the density and scores of one run; the last binding of a name counts."""
    if not operative_config:
        return ""
    name = "DENSITY" if re.search("^DENSITY *=", operative_config, re.MULTILINE) else "run.density"
    own_values = f"{name} = {own.density!r}\nrun.scores_from = {own.scores_from!r}\n"
    return f"{operative_config}\n# Of this density of the sweep.\n{own_values}"


def _shared(config: RunConfig) -> dict[str, Any]:
    """The settings that all densities share, as JSON values."""
    settings = {name: value for name, value in dataclasses.asdict(config).items() if name not in _NOT_SHARED}
    if callable(config.schedule):
        settings["schedule"] = getattr(config.schedule, "__qualname__", type(config.schedule).__qualname__)
    return json.loads(json.dumps(settings))


def _done(config: RunConfig, workdir: Path) -> set[str]:
    """The folders of the densities that an earlier call with these settings has done."""
    path = workdir / "sweep.json"
    if not path.is_file():
        return set()
    try:
        saved = json.loads(path.read_text())
        before, folders = saved["settings"], [row["folder"] for row in saved["densities"]]
    except (OSError, ValueError, KeyError, TypeError):
        raise InputError(f"{path} is damaged: choose another workdir, or add --overwrite to start again") from None
    now = _shared(config)
    for name in now:
        if before.get(name) != now[name]:
            raise InputError(
                f"{workdir} holds a sweep with {name} = {before.get(name)!r}, not {now[name]!r}: choose another "
                "workdir, or add --overwrite to start again"
            )
    return {folder for folder in folders if (workdir / folder / "result.json").is_file()}


def _write(config: RunConfig, results: Sequence[dict[str, Any]], workdir: Path, num_densities: int) -> None:
    rows = [row_of(result, folder_of(result["density"])) for result in results]
    searched = config.start == "score_search"
    ours = "Score search, then annealing" if searched else "Annealing"
    title = f"{results[0]['dataset']}, {'-'.join(map(str, results[0]['sizes']))}"
    page = render_sweep(rows, title, ours, searched and len(rows) > 1, num_densities)
    workdirs.write_file(workdir / "sweep.png", render_picture(rows, ours))
    workdirs.write_file(workdir / "sweep.html", page)
    saved = {"settings": _shared(config), "densities": rows}
    workdirs.write_file(workdir / "sweep.json", json.dumps(saved, indent=1) + "\n")
