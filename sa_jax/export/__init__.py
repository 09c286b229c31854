"""Masks and weights to what devices and other frameworks read."""

import json
from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np

from sa_jax import models, workdirs
from sa_jax.export import c, files
from sa_jax.export.cleanup import Cleaned, clean, predict
from sa_jax.npz import read_npz
from sa_jax.types import InputError

__all__ = ["FORMATS", "Cleaned", "clean", "export", "predict", "read_run"]

# What makes the files, by name, from a cleaned network.
FORMATS: dict[str, Callable[[Cleaned], Mapping[str, bytes]]] = {
    "c": c.files,
    "npz": files.npz,
    "safetensors": files.safetensors,
}


def read_run(workdir: Path) -> Cleaned:
    """The cleaned network of a finished run.

    Raises:
      InputError: no run's folder, an unfinished one, or one whose files do not belong together.
    """
    path = workdir / "result.json"
    if not path.is_file():
        unfinished = (workdir / "checkpoints").is_dir()
        what = "holds an unfinished run: finish it first" if unfinished else "holds no finished run"
        raise InputError(f"{workdir} {what}; it has no result.json")
    try:
        activation = json.loads(path.read_text())["activation"]
    except (OSError, ValueError, KeyError, TypeError):
        raise InputError(f"{path} is no result of sa-jax run") from None
    models.check_activation(activation)
    names, network = models.network_of(models.load_weights(workdir / "weights.npz"))
    found = read_npz(workdir / "masks.npz")
    wanted = {f"{name}/kernel": shape for name, shape in zip(names, network.shapes, strict=True)}
    if {name: array.shape for name, array in found.items()} != wanted:
        raise InputError(f"{workdir}: masks.npz and weights.npz do not belong together")
    mask = np.concatenate([np.ravel(found[name]).astype(bool) for name in wanted])
    return clean(network, mask, activation)


def export(workdir: Path, form: str, out: Path, overwrite: bool = False) -> list[Path]:
    """Writes a finished run's network in one of `FORMATS`.

    Args:
      workdir: of the run.
      form: a key of `FORMATS`.
      out: a file, or for 'c' a folder, made if missing.
      overwrite: whether files there are replaced.

    Returns:
      What was written.

    Raises:
      InputError: an unknown format, a workdir that holds no finished run, or files that are there already; nothing
        is written.
    """
    if form not in FORMATS:
        raise InputError(f"format must be one of {', '.join(FORMATS)}, not {form!r}")
    made = FORMATS[form](read_run(workdir))
    paths = {out if len(made) == 1 else out / name: content for name, content in made.items()}
    for path in paths:
        if path.exists() and not overwrite:
            raise InputError(f"{path} exists; name another, or add --overwrite")
    if len(made) > 1:
        workdirs.make(out)
    elif not out.parent.is_dir():
        raise InputError(f"{out.parent} is no folder")
    for path, content in paths.items():
        workdirs.write_file(path, content)
    return list(paths)
