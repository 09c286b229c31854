"""Saves and restores a run's chains with Orbax, without what can be computed again.

A state is saved just before its landscape is refreshed, so that everything a refresh computes again is left out. A
checkpoint then takes a few bytes per kept branch, whatever the number of samples. A resumed chain is bit for bit
the same as an uninterrupted one.
"""

import functools
import hashlib
import json
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from sa_jax.commands.messages import first_line
from sa_jax.files.workdirs import write_file
from sa_jax.moves.base import KeptList
from sa_jax.types import AnnealState, InputError

KEPT_CHECKPOINTS = 3
# The field of a state that holds what a refresh makes again.
CACHE = "cache"


class Saved(NamedTuple):
    """A run between two steps.

    Attributes:
      step: number of proposals that each chain has made.
      chains: the arrays of `persistent_arrays`, NumPy arrays by name.
      trace: the trace up to this step, NumPy arrays by name.
      figures: other numbers up to this step, such as the seconds taken, by name.
    """

    step: int
    chains: dict[str, np.ndarray]
    trace: dict[str, np.ndarray]
    figures: dict[str, float]


def persistent_arrays(states: AnnealState) -> dict[str, jax.Array]:
    """Returns what chains cannot compute again, by name; masks packed into bits, eight to a byte. Pure.

    What a refresh makes again lies under fields called `cache`, and is left out.

    Args:
      states: of the landscape `masked_mlp`, leading axis `[chains]`, before a refresh or after the last step.
    """
    states = jax.tree.map(_packed, states, is_leaf=lambda node: isinstance(node, KeptList))
    return {
        ".".join(names): jnp.packbits(leaf, axis=-1) if leaf.dtype == bool else leaf
        for names, leaf in _named(states)
        if CACHE not in names
    }


def restored(states: AnnealState, arrays: Mapping[str, Any]) -> AnnealState:
    """Returns the chains whose arrays `persistent_arrays` gave, to be refreshed before their next step. Pure.

    Args:
      states: of the same landscape and as many chains, at any step.
      arrays: as `persistent_arrays` gave them.
    """

    def chosen(path, leaf):
        names = _names(path)
        if CACHE in names:
            return leaf
        array = jnp.asarray(arrays[".".join(names)])
        if leaf.dtype == bool:
            return jnp.unpackbits(array, axis=-1, count=leaf.shape[-1]).astype(bool)
        return array.astype(leaf.dtype)

    return jax.tree_util.tree_map_with_path(chosen, states)


def _packed(node: Any) -> Any:
    return node.packed() if isinstance(node, KeptList) else node


def _named(tree: Any) -> list[tuple[list[str], Any]]:
    return [(_names(path), leaf) for path, leaf in jax.tree_util.tree_leaves_with_path(tree)]


def check_settings(folder: Path, settings: Mapping[str, Any], overwrite: bool) -> None:
    """Checks that a folder's checkpoints were made with the same settings, and stores the settings in it.

    Args:
      folder: folder of the checkpoints of a whole run.
      settings: all that a result depends on, JSON values by name.
      overwrite: whether checkpoints made with other settings are removed.

    Raises:
      InputError: the checkpoints were made with other settings.
    """
    path, now = folder / "settings.json", json.loads(json.dumps(settings))
    try:
        before = json.loads(path.read_text()) if path.is_file() else now
    except (OSError, ValueError):
        before = {}
    for name in [*now, *before]:
        if before.get(name) != now.get(name):
            if not overwrite:
                raise InputError(
                    f"{folder.parent} holds an unfinished run with {name} = {before.get(name)!r}, not "
                    f"{now.get(name)!r}: choose another workdir, or add --overwrite to start again"
                )
            if jax.process_index() == 0:
                shutil.rmtree(folder, ignore_errors=True)
            break
    if jax.process_index() == 0:
        folder.mkdir(parents=True, exist_ok=True)
        write_file(path, json.dumps(now, indent=1))


def any_in(folder: Path) -> bool:
    """Returns whether a run's folder of checkpoints holds one from which it can resume."""
    return any(step.name.isdecimal() for step in folder.glob("*/*")) or any(folder.glob("score_search-*.npz"))


def remove_unused(folder: Path) -> None:
    """Removes a run's folder of checkpoints if it holds none."""
    if not any_in(folder):
        shutil.rmtree(folder, ignore_errors=True)


class Checkpoints:
    """The checkpoints of one run's chains, in a folder of their own; a context manager.

    Args:
      folder: folder of the checkpoints, made if missing.
      tell: called with messages for the user.
    """

    def __init__(self, folder: Path, tell: Callable[[str], None]):
        self._folder, self._tell = folder.absolute(), tell

    @functools.cached_property
    def _orbax(self) -> Any:
        import orbax.checkpoint  # takes a second, and a short run never needs it

        return orbax.checkpoint

    @functools.cached_property
    def _manager(self) -> Any:
        options = self._orbax.CheckpointManagerOptions(max_to_keep=KEPT_CHECKPOINTS, cleanup_tmp_directories=True)
        return self._orbax.CheckpointManager(self._folder, options=options)

    def __enter__(self) -> "Checkpoints":
        return self

    def __exit__(self, *raised: object) -> None:
        if "_manager" not in vars(self):
            return
        try:
            self._manager.close()
        except Exception as error:  # such as a full disk; earlier checkpoints stay
            self._tell(f"the last checkpoint could not be written: {first_line(error)}")

    def newest(self) -> Saved | None:
        """Returns the newest valid checkpoint, or None; damaged ones are reported and moved aside."""
        if not self._folder.is_dir():
            return None
        ocp = self._orbax
        for step in sorted(self._manager.all_steps(), reverse=True):
            parts = ocp.args.Composite(state=ocp.args.StandardRestore(), about=ocp.args.JsonRestore())
            try:
                found = self._manager.restore(step, args=parts)
                state, about = found["state"], found["about"]
                saved = Saved(step, state["chains"], state["trace"], about["figures"])
                if about["digest"] != _digest(saved):
                    raise ValueError("its content has changed")
            except Exception as error:
                self._tell(f"the checkpoint at step {step:,} is damaged ({first_line(error)}) and is skipped")
                if jax.process_index() == 0:
                    aside = self._folder.parent / f"damaged-{self._folder.name}-{step}"
                    shutil.rmtree(aside, ignore_errors=True)
                    shutil.move(self._folder / str(step), aside)
                if jax.process_count() > 1:
                    from jax.experimental import multihost_utils

                    multihost_utils.sync_global_devices(f"put aside {step}")
                self._manager.reload()
                continue
            return saved
        return None

    def save(self, saved: Saved) -> bool:
        """Starts writing a checkpoint, in parallel to the chains; returns whether it could start."""
        ocp = self._orbax
        about = {"figures": saved.figures, "digest": _digest(saved)}
        state = {"chains": saved.chains, "trace": saved.trace}
        parts = ocp.args.Composite(state=ocp.args.StandardSave(state), about=ocp.args.JsonSave(about))
        try:
            self._manager.save(saved.step, args=parts)
        except Exception as error:  # such as a full disk, also from the previous checkpoint
            self._tell(f"no checkpoint at step {saved.step:,}: {first_line(error)}; the run continues")
            return False
        return True

    def wait(self) -> bool:
        """Waits until the checkpoint that `save` started is written; returns whether it was."""
        try:
            self._manager.wait_until_finished()
        except Exception as error:
            self._tell(f"the last checkpoint could not be written: {first_line(error)}")
            return False
        return True


def _digest(saved: Saved) -> str:
    digest = hashlib.sha256(json.dumps([saved.step, saved.figures], sort_keys=True).encode())
    for name, array in sorted((saved.chains | {f"trace {name}": a for name, a in saved.trace.items()}).items()):
        array = np.ascontiguousarray(array)
        digest.update(f"{name} {array.dtype} {array.shape}".encode())
        digest.update(array.tobytes())
    return digest.hexdigest()


def _names(path) -> list[str]:
    return [str(getattr(key, "name", getattr(key, "idx", key))) for key in path]
