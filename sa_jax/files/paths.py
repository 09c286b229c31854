"""Paths as users write them."""

import os
from pathlib import Path

from sa_jax.types import InputError


def expanded(path: str | os.PathLike[str]) -> Path:
    """Returns a path in which a leading `~` or `~name` is replaced by that user's home folder.

    Args:
      path: a path; it need not exist.

    Raises:
      InputError: not a path, there is no user of that name, or no home folder is known.

    >>> expanded("~/weights.pt") == Path.home() / "weights.pt"
    True
    >>> expanded("runs/~old")
    PosixPath('runs/~old')
    """
    if not isinstance(path, str | os.PathLike):
        raise InputError(f"a path must be text or a Path, not {type(path).__name__}: are arguments swapped?")
    try:
        return Path(path).expanduser()
    except RuntimeError:
        raise InputError(f"{path}: the home folder that ~ stands for is not known; write the whole path") from None
