"""Prunes a user's own model on the user's own data: opens files, runs, writes the pruned file."""

import contextlib
import dataclasses
import os
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np

from sa_jax import export, files
from sa_jax.commands.prune import budget
from sa_jax.commands.prune.inputs import Inputs, open_inputs
from sa_jax.commands.prune.settings import PruneConfig
from sa_jax.commands.run import runner, sweep
from sa_jax.commands.run.records import Progress
from sa_jax.commands.run.settings import RunConfig
from sa_jax.export import packed
from sa_jax.files import workdirs
from sa_jax.files.array_files import array_bytes
from sa_jax.files.npz import npz_bytes
from sa_jax.networks.patterns import Pattern
from sa_jax.types import InputError

# The data set with labels or classes that its file lacks, in the folder of the run.
DATA = "data.npz"
# A machine's chains are spread over its devices; more than these gain little for one mask.
MOST_CHAINS = 2


class Pruned(NamedTuple):
    """What `prune_file` has done.

    Attributes:
      out: the file that was written.
      kept: number of branches kept.
      total: number of branches.
      dense_accuracy: accuracy of the model on the test split. Without labels, all accuracies are agreement with
        the predictions of the model.
      accuracy: accuracy of the pruned model on the test split.
      validation_accuracy: the same on the validation split.
      labelled: whether the data had labels.
      bytes_before: size of the model's file.
      bytes_after: size of `out`, in which pruned weights are zeros.
      packed_bytes: size of the file that `sa-jax export --format=packed` makes, in which they are left out.
      seconds: wall time.
      notes: what the user should know, one line each.
    """

    out: Path
    kept: int
    total: int
    dense_accuracy: float
    accuracy: float
    validation_accuracy: float
    labelled: bool
    bytes_before: int
    bytes_after: int
    packed_bytes: int
    seconds: float
    notes: tuple[str, ...]


def prune_file(
    model: str | os.PathLike[str],
    data: str | os.PathLike[str],
    out: str | os.PathLike[str],
    density: float | None = None,
    *,
    pattern: str | Pattern | None = None,
    target_accuracy: float | None = None,
    masks: str | os.PathLike[str] | None = None,
    label: str | None = None,
    input_mean: float = 0.0,
    input_std: float = 1.0,
    activation: str | None = None,
    minutes: float | None = None,
    seed: int = 0,
    workdir: str | os.PathLike[str] | None = None,
    overwrite: bool = False,
    on_progress: Callable[[Progress], None] = lambda progress: None,
) -> Pruned:
    """Prunes the multilayer perceptron in a file on a data set, and writes it to another file.

    This is `sa-jax prune` as a function: score search and annealing, as `sa-jax run` does them. No kept weight
    changes. Training samples choose the mask, validation samples end annealing, test samples give the figures.

    Args:
      model: a file that `files.load` reads.
      data: a data set of `files.load_dataset`, such as a .csv or .npz file. Without labels, which are an .npz of
        inputs alone or a .csv with as many columns as the model has inputs, annealing keeps the outputs near those
        of the dense network.
      out: the file to write, as `files.write_pruned` does: with the names, types and other arrays of the model.
      density: kept / total, in (0, 1]; 0.1 if `pattern` and `target_accuracy` are None too.
      pattern: which weights may be kept, in place of a density: such as '2:4' or 'unit:0.1'.
      target_accuracy: the lowest density is searched that reaches this accuracy on the validation split.
      masks: a file `.npz` or `.safetensors` for the masks, as `files.masks_like` gives them; None for none.
      label: the column of a .csv that holds the labels; None for the last one, 'none' for no labels.
      input_mean: number subtracted from the inputs, as in the training of the model; before that, bytes are
        divided by 255.
      input_std: number that then divides the inputs.
      activation: 'relu', 'tanh' or 'gelu', between layers; None for that of a Keras file, or relu.
      minutes: wall time to use, about; None chooses the steps by the size of the model.
      seed: seed of everything random.
      workdir: folder for the report and for checkpoints, from which the same call resumes; None for none.
      overwrite: whether files of these names are replaced.
      on_progress: called with a `Progress` after each part of score search and chunk of annealing.

    Returns:
      The figures.

    Raises:
      InputError: files that cannot be read or do not fit each other, bad settings, or files that exist; nothing is
        written.
    """
    config = PruneConfig(
        Path(model),
        os.fspath(data),
        Path(out),
        density,
        pattern,  # pyright: ignore[reportArgumentType]
        target_accuracy,
        masks,  # pyright: ignore[reportArgumentType]
        label,
        input_mean,
        input_std,
        activation,
        minutes,
        seed,
        workdir,  # pyright: ignore[reportArgumentType]
        overwrite,
    )
    # A run is not made for stricter settings of the caller.
    with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):
        return prune(config, open_inputs(config), on_progress)


def prune(
    config: PruneConfig,
    inputs: Inputs,
    on_progress: Callable[[Progress], None] = lambda progress: None,
    on_message: Callable[[str], None] = lambda message: None,
    stop: Callable[[], bool] = lambda: False,
    begun: float | None = None,
) -> Pruned:
    """Prunes what was opened, and writes the results.

    Args:
      config: the settings.
      inputs: what `open_inputs` has opened.
      on_progress: see `runner.run`.
      on_message: called with messages for the user.
      stop: see `runner.run`.
      begun: when the wall time began, as `time.monotonic` counts; None for now.

    Raises:
      InputError: the folder of the run cannot be used, or the results cannot be written.
      Stopped: see `runner.run`.
    """
    begun = time.monotonic() if begun is None else begun
    with _planned(config, inputs, on_message, begun) as (run_config, folder):
        operative = operative_config(run_config)
        if _is_finished(config, inputs, folder, operative):
            on_message("the run was finished before; only its files are written")
            result = workdirs.read_result(folder)
        else:
            more = folder, operative, config.overwrite, on_progress, on_message, stop
            result = runner.run(run_config, *more)
        if config.masks is not None:
            made = array_bytes(config.masks, files.masks_like(inputs.model, folder))
            workdirs.write_file(config.masks, made)
        return _pruned(inputs, result, folder, config.out, time.monotonic() - begun)


def prune_all(
    config: PruneConfig,
    inputs: Inputs,
    on_progress: Callable[[Progress], None] = lambda progress: None,
    on_message: Callable[[str], None] = lambda message: None,
    stop: Callable[[], bool] = lambda: False,
    begun: float | None = None,
) -> list[dict[str, Any]]:
    """Prunes at each of `config.densities`, and writes a file for each; otherwise as `prune`.

    Returns:
      What `sweep.sweep` returns.
    """
    assert config.densities is not None
    begun = time.monotonic() if begun is None else begun
    with _planned(config, inputs, on_message, begun) as (run_config, folder):
        more = folder, operative_config(run_config), config.overwrite, on_progress, on_message, stop
        results = sweep.sweep(run_config, config.densities, *more)
        for density in config.densities:
            files.write_pruned(inputs.model, folder / sweep.folder_of(density), config.out_of(density))
    return results


@contextlib.contextmanager
def _planned(
    config: PruneConfig, inputs: Inputs, on_message: Callable[[str], None], begun: float
) -> Iterator[tuple[RunConfig, Path]]:
    """The settings of the run or runs, and their folder, with the data in it that no file holds."""
    with _folder(config, on_message) as folder:
        run_config = run_settings(config, inputs)
        if not inputs.as_in_file:
            content = npz_bytes(inputs.samples.arrays | {"classes": np.array(inputs.samples.classes)})
            _write_data(folder / DATA, content, config.overwrite)
            run_config = dataclasses.replace(run_config, dataset=str((folder / DATA).absolute()))
        deadline = begun + 60 * (config.minutes or 0)
        sizes = inputs.network.total, len(inputs.dataset.train.labels)
        where = folder, config.overwrite, on_message
        yield budget.planned(run_config, *sizes, config.minutes, deadline, *where, len(config.outs)), folder


def _write_data(path: Path, content: bytes, overwrite: bool) -> None:
    """Writes the data of a run, but not over those of another one."""
    if path.exists() and not overwrite and path.read_bytes() != content:
        raise InputError(f"{path.parent} holds a run on other data; name another workdir, or add --overwrite")
    workdirs.write_file(path, content)


def _pruned(inputs: Inputs, result: dict[str, Any], folder: Path, out: Path, seconds: float) -> Pruned:
    """Writes the pruned file of a finished run, and returns its figures."""
    files.write_pruned(inputs.model, folder, out)
    cleaned, _ = export.read_run(folder)
    packed_bytes = len(packed.pack(export.quantize(cleaned, 32)))
    return Pruned(
        out=out,
        kept=result["kept"],
        total=result["total"],
        dense_accuracy=result["dense_test_accuracy"],
        accuracy=result["test_accuracy"],
        validation_accuracy=result["validation_accuracy"],
        labelled=inputs.labelled,
        bytes_before=inputs.model.stat().st_size,
        bytes_after=out.stat().st_size,
        packed_bytes=packed_bytes,
        seconds=seconds,
        notes=(*inputs.notes, *result["warnings"]),
    )


@contextlib.contextmanager
def _folder(config: PruneConfig, on_message: Callable[[str], None]) -> Iterator[Path]:
    """The folder of the run: the workdir, without files of a run that never began; or a temporary one."""
    folder = config.workdir or Path(tempfile.mkdtemp(prefix="sa_jax-"))
    with workdirs.writing(folder, on_message, alone=False) as at_end:
        if config.workdir is None:
            at_end.callback(shutil.rmtree, folder, ignore_errors=True)
        else:
            at_end.callback(_remove_unused, folder)
        yield folder


def _is_finished(config: PruneConfig, inputs: Inputs, folder: Path, operative: str) -> bool:
    """Whether the folder holds the run of these settings, which ended before its files were written."""
    result, settings = folder / "result.json", folder / "operative.gin"
    if config.overwrite or not result.is_file() or not settings.is_file() or settings.read_text() != operative:
        return False
    sources = [inputs.model, *(path for path in [Path(config.data.partition("#")[0])] if path.is_file())]
    return all(path.stat().st_mtime < result.stat().st_mtime for path in sources)


def _remove_unused(folder: Path) -> None:
    if not budget.is_begun(folder):
        for name in (DATA, budget.PLAN):
            (folder / name).unlink(missing_ok=True)


def run_settings(config: PruneConfig, inputs: Inputs) -> RunConfig:
    """Returns the settings of the run that prunes what was opened."""
    return RunConfig(
        dataset=inputs.data,
        input_mean=config.input_mean,
        input_std=config.input_std,
        weights=str(config.model),
        hidden=inputs.network.sizes[1:-1],
        activation=inputs.activation,
        density=0.5 if config.pattern is not None or config.densities is not None else config.density,
        pattern=config.pattern,
        target_accuracy=config.target_accuracy,
        seed=config.seed,
        num_chains=min(MOST_CHAINS, jax.local_device_count()),
        checkpoint_seconds=0.0 if config.workdir is None else RunConfig.checkpoint_seconds,
        energy="cross_entropy" if inputs.labelled else "kl_to_teacher",
        # A rival takes as long again. It is worth that where densities are chosen.
        rival=None if config.densities is None else RunConfig.rival,
    )


def operative_config(config: RunConfig) -> str:
    """Returns the settings of a run that differ from their defaults, as a gin file."""
    fields = ((field.name, field.default) for field in dataclasses.fields(config))
    changed = {name: getattr(config, name) for name, default in fields if getattr(config, name) != default}
    return "".join(f"run.{name} = {value!r}\n" for name, value in changed.items())
