"""Finds the initial mask of a run by score search, in parts, saved between them."""

import time
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from sa_jax import pruning
from sa_jax.commands import interrupts
from sa_jax.commands.hardware import check_memory, free_memory, program_bytes
from sa_jax.commands.messages import first_line
from sa_jax.commands.run.processes import agreed, of_first
from sa_jax.commands.run.records import Progress, Saving, Searched, Stopped
from sa_jax.commands.run.settings import RunConfig
from sa_jax.files.npz import npz_bytes, read_npz
from sa_jax.files.paths import expanded
from sa_jax.files.workdirs import write_file
from sa_jax.networks import masks
from sa_jax.networks.mlp import Network
from sa_jax.pruning import scores
from sa_jax.pruning.scores import ScoreState
from sa_jax.types import InputError

# Steps in a part: progress is shown and the search may be saved or stopped after each.
PART_STEPS = 100
# File of the scores in the folder of a finished run.
SCORES = "scores.npz"


def search(
    config: RunConfig,
    network: Network,
    x: np.ndarray,
    y: np.ndarray,
    num_kept: int,
    on_progress: Callable[[Progress], None],
    on_message: Callable[[str], None],
    saving: Saving | None,
) -> Searched:
    """Searches the initial mask of a run, on all training samples.

    Of several processes each searches, and all take the mask of the first.

    Args:
      config: the settings.
      network: the fixed weights.
      x: inputs of all training samples, float `[samples, features]`.
      y: their labels, int `[samples]`.
      num_kept: number of branches that stay.
      on_progress: called after each part.
      on_message: called with messages for the user.
      saving: where and when the search is saved, from where it resumes; None for nowhere.

    Raises:
      InputError: the search does not fit into memory, its energy is not finite, or the scores that it shall start
        from are missing or do not fit.
      Stopped: `saving.stop` asked for it; the search is saved.
    """
    wall_start, cpu_start = time.perf_counter(), time.process_time()
    interrupts.defer(None)
    num_steps = pruning.score_steps(config.options, network.total, len(y), config.sizes(num_kept, len(y))[1])
    file_name = f"score_search-{num_kept}.npz"
    saved = {} if saving is None else _read(saving.folder / file_name, on_message)
    before = {name: float(saved.get(name, 0.0)) for name in ("seconds", "cpu_seconds", "work_seconds")}
    work_start = cpu_start

    def seconds() -> dict[str, float]:
        cpu = time.process_time()
        now = {"seconds": time.perf_counter() - wall_start}
        now |= {"cpu_seconds": cpu - cpu_start, "work_seconds": cpu - work_start}
        return {name: before[name] + passed for name, passed in now.items()}

    if "mask" in saved:
        on_message("score search: its mask was saved")
        mask = np.unpackbits(saved["mask"], count=network.total).astype(bool)
        return Searched(mask, saved["scores"], num_steps, **before)
    on_message(f"score search: {num_steps:,} steps")
    advance = _compiled(config, network, x, y, num_kept, num_steps)
    state, first = _begun(config, network), 0
    work_start = time.process_time()
    if saved:
        state, first = _restored(state, saved)
        on_message(f"resuming score search from step {first:,} of {num_steps:,}")
    saves = saving if saving is not None and saving.every else None
    if saves is not None:
        interrupts.defer("stopping after the current part of the score search")
    last_saved, resumed, resumed_at, stopped = time.monotonic(), first, time.perf_counter(), False
    while first < num_steps:
        steps = min(PART_STEPS, num_steps - first)
        state, energy = advance(state, first, steps)
        first += steps
        rate = (first - resumed) / (time.perf_counter() - resumed_at)
        on_progress(Progress("score search", first, num_steps, rate, energy))
        if saves is None:
            continue
        stopped, due = agreed(saves.stop(), time.monotonic() - last_saved >= saves.every)
        if first < num_steps and (stopped or due):
            written = _write(saves.folder / file_name, {"step": first} | _named(state) | seconds(), on_message)
            last_saved = time.monotonic()
            if stopped and written:
                raise Stopped(first, num_steps, None)
    mask = of_first(np.asarray(jax.jit(scores.mask_of, static_argnums=1)(state, num_kept)))
    found = np.asarray(masks.flatten(state.scores))
    found = found / max(float(found.std()), np.finfo(np.float32).tiny)
    if saves is not None:
        last = {"mask": np.packbits(mask), "scores": found} | seconds()
        written = _write(saves.folder / file_name, last, on_message)
        if stopped and written:
            raise Stopped(first, num_steps, None)
    return Searched(mask, found, num_steps, **seconds())


def _begun(config: RunConfig, network: Network) -> ScoreState:
    """The search before its first step: from the largest weights, or from the scores of another run."""
    state = scores.init(network)
    if config.scores_from is None:
        return state
    path = expanded(Path(config.scores_from)) / SCORES
    if not path.is_file():
        raise InputError(
            f"run.scores_from: {path} is not there; name the folder of a finished run with score search"
        )
    arrays = list(read_npz(path).values())
    if [array.shape for array in arrays] != network.shapes or not all(
        np.isfinite(array).all() for array in arrays
    ):
        raise InputError(f"run.scores_from: {path} does not fit the network {'-'.join(map(str, network.sizes))}")
    return state._replace(scores=tuple(jnp.asarray(array, jnp.float32) for array in arrays))


def _compiled(
    config: RunConfig, network: Network, x: np.ndarray, y: np.ndarray, num_kept: int, num_steps: int
) -> Callable[[ScoreState, int, int], tuple[ScoreState, float]]:
    """A function of a state, its step and a number of steps: the state after them, and the mean energy.

    Programs are compiled from shapes alone, so that a search which does not fit is refused before it uses memory.
    """
    settings = scores.ScoreSettings(num_steps, config.estimates)
    rng_key = jax.random.fold_in(jax.random.key(config.seed), 3)

    def calibrated(which: int, network, x, y):
        return pruning.calibrated_search(network, x, y, num_kept, config.options)[which]

    def part(state, network, x, targets, logit_scale, first, steps):
        energy = pruning.guiding_energy(logit_scale, config.options)
        arguments = network, x, targets, num_kept, energy, config.activation, settings, first, steps
        state = scores.run(rng_key, state._replace(energy=jnp.float32(0)), *arguments)
        return state, state.energy / steps.astype(jnp.float32)

    x, y = x.astype(np.float32), y.astype(np.int32)
    # The logit scale is that of annealing, so it comes from the same samples.
    num_samples, _ = config.sizes(num_kept, len(y))
    few = x[:num_samples], y[:num_samples]
    scale, targets = (
        jax.jit(partial(calibrated, which)).lower(network, *samples) for which, samples in enumerate((few, (x, y)))
    )
    data = network, x, targets.out_info, scale.out_info
    lowered = jax.jit(part, donate_argnums=0).lower(scores.init(network), *data, np.int32(0), np.int32(0))
    scale, targets, compiled = (one.compile() for one in (scale, targets, lowered))
    needed = max(map(program_bytes, (scale, targets, compiled)))
    check_memory("score search", needed, free_memory(jax.local_devices()[0]), "HIDDEN")
    data = network, jnp.asarray(x), targets(network, x, y), scale(network, *few)

    def advance(state: ScoreState, first: int, steps: int) -> tuple[ScoreState, float]:
        state, energy = compiled(state, *data, np.int32(first), np.int32(steps))
        if not np.isfinite(energy := float(energy)):
            raise InputError(
                "the energy of score search is not finite for these weights and inputs: "
                "are the weights far too large?"
            )
        return state, energy

    return advance


def _named(state: ScoreState) -> dict[str, Any]:
    return {f"state.{number}": leaf for number, leaf in enumerate(jax.tree.leaves(state))}


def _restored(state: ScoreState, saved: Mapping[str, np.ndarray]) -> tuple[ScoreState, int]:
    """The saved state, of the same structure as another one, and its step."""
    leaves = [jnp.asarray(saved[name]) for name in _named(state)]
    return jax.tree.unflatten(jax.tree.structure(state), leaves), int(saved["step"])


def _read(path: Path, on_message: Callable[[str], None]) -> dict[str, np.ndarray]:
    """The arrays of a saved search; none if there is no valid file."""
    if not path.is_file():
        return {}
    try:
        return read_npz(path)
    except InputError as error:
        on_message(f"the saved score search is damaged ({first_line(error)}) and is skipped")
        return {}


def _write(path: Path, arrays: Mapping[str, Any], on_message: Callable[[str], None]) -> bool:
    """Saves a search; returns whether it could. The first process writes for all."""
    written = True
    try:
        if jax.process_index() == 0:
            path.parent.mkdir(parents=True, exist_ok=True)
            write_file(path, npz_bytes({name: np.asarray(array) for name, array in arrays.items()}))
    except (InputError, OSError) as error:  # such as a full disk
        on_message(f"the score search could not be saved: {first_line(error)}; the run continues")
        written = False
    return bool(of_first(np.array(written)))
