"""Runs independent chains: jitted chunks of steps, sharded over devices, traced and saved between chunks."""

import contextlib
import math
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import AxisType, NamedSharding, PartitionSpec

from sa_jax import checks, pruning
from sa_jax.annealing.chain import BLOCK_STEPS, init
from sa_jax.annealing.chain import run as run_steps
from sa_jax.commands import interrupts
from sa_jax.commands.hardware import free_memory, program_bytes
from sa_jax.commands.run import checkpoint
from sa_jax.commands.run.checkpoint import Checkpoints, Saved
from sa_jax.commands.run.settings import RunConfig
from sa_jax.networks.mlp import Network
from sa_jax.pruning.problem import Problem
from sa_jax.types import AnnealState, InputError

# A run is cut into about CHUNKS chunks of at least MIN_CHUNK_STEPS steps; each is an entry of the trace.
CHUNKS = 200
MIN_CHUNK_STEPS = 1_000
# How often a run compares the energy with its full evaluation, and the largest difference allowed: absolute, or as
# a share of the energy, whichever is larger.
DRIFTS_MEASURED, MAX_DRIFT = 5, 1e-3
# How many masks of each chain are recorded for the pictures of a run, besides the initial one; one bit per branch.
SNAPSHOTS = 8
TRACED: tuple[str, ...] = ("step", "temperature", "energy", "best_energy", "acceptance")


class Annealed(NamedTuple):
    """The result of annealing all chains.

    Attributes:
      masks: the best mask of each chain, flat, bool `[chains, total]`.
      weights: the weights that belong to the best of these masks, float32 `[total]`; None where no weight moved.
      problem: the problem that was annealed.
      start_energy: energy of the initial mask.
      best_energy: lowest energy of each chain, float32 `[chains]`.
      num_accepted: accepted proposals of each chain, int32 `[chains]`.
      num_not_finite: proposals of each chain whose energy was NaN or infinite, int32 `[chains]`.
      max_drift: largest difference found between a chain's energy and its full evaluation; NaN if not measured.
      num_samples: number of samples in the energy.
      num_steps: proposals of each chain.
      trace: arrays by name; `step` and `temperature` `[entries]`, `energy`, `best_energy` and `acceptance` (since
        the previous entry) `[chains, entries]`.
      snapshots: masks recorded during the run, by name: `step`, int64 `[snapshots]`, and `masks`, uint8
        `[snapshots, chains, total / 8]`, eight branches to a byte.
      memory_bytes: memory that the programs need, over all devices of a CPU or on one of an accelerator; 0 if
        unknown.
      chain_batch: number of chains vmapped together.
      compile_seconds: wall time of compiling.
      anneal_seconds: wall time of annealing.
      cpu_seconds: CPU time of compiling and annealing, all threads.
    """

    masks: np.ndarray  # bool [chains, total]
    weights: np.ndarray | None  # float32 [total]
    problem: Problem
    start_energy: float
    best_energy: np.ndarray  # float32 [chains]
    num_accepted: np.ndarray  # int32 [chains]
    num_not_finite: np.ndarray  # int32 [chains]
    max_drift: float
    num_samples: int
    num_steps: int
    trace: dict[str, np.ndarray]
    snapshots: dict[str, np.ndarray]
    memory_bytes: int
    chain_batch: int
    compile_seconds: float
    anneal_seconds: float
    cpu_seconds: float

    @property
    def mask(self) -> np.ndarray:
        """The best mask of all chains, bool `[total]`."""
        return self.masks[int(self.best_energy.argmin())]


class Saving(NamedTuple):
    """Where and when a run is saved.

    Attributes:
      folder: folder of the checkpoints.
      every: seconds between two checkpoints; 0 for none.
      stop: returns whether the run shall be saved and end.
      probes: whether these chains are one probe of a search; each probe is saved after its last step too.
    """

    folder: Path
    every: float
    stop: Callable[[], bool]
    probes: bool = False


class Stopped(Exception):
    """A run was saved and ended before its last step, on request."""

    def __init__(self, step: int, num_steps: int, annealed: Annealed):
        super().__init__(f"stopped after {step:,} of {num_steps:,} steps")
        self.annealed = annealed


class Progress(NamedTuple):
    """Progress after a chunk; energies and acceptance are those of the chain with the lowest energy so far.

    In a search for the density, `probe` counts the annealing runs from 1, and `density` is that of this run.
    """

    step: int
    num_steps: int
    temperature: float
    energy: float
    best_energy: float
    acceptance: float
    steps_per_second: float
    probe: int = 0
    density: float | None = None


class CompiledRun(NamedTuple):
    """Chains before their first step, and the compiled programs that advance them.

    Attributes:
      problem: the problem, on the devices.
      states: an `AnnealState`, leading axis `[chains]`; more chains than configured where they fill the devices.
      keys: the key of each chain, `[chains]`.
      over_chains: sharding of arrays with a leading axis `[chains]`.
      compiled: programs `(problem, keys, states, first step) -> states`, by their number of steps.
      chunk: number of steps of all chunks but the last.
      refresh_steps: see `Landscape`.
      num_samples: number of samples in the energy.
      num_steps: steps of each chain.
      chain_batch: number of chains vmapped together.
      start_energy: energy of the initial mask.
      memory_bytes: see `Annealed`.
    """

    problem: Problem
    states: AnnealState
    keys: jax.Array  # keys [chains]
    over_chains: NamedSharding
    compiled: dict[int, Any]
    chunk: int
    refresh_steps: int
    num_samples: int
    num_steps: int
    chain_batch: int
    start_energy: float
    memory_bytes: int


def compile_run(
    config: RunConfig,
    network: Network,
    x: np.ndarray,
    y: np.ndarray,
    num_kept: int,
    on_message: Callable[[str], None],
    mask: jax.Array | None,
) -> CompiledRun:
    """Compiles the programs of `anneal_chains`, and evaluates the initial mask.

    Args:
      config: the settings.
      network: the fixed weights.
      x: inputs, float `[samples, features]`.
      y: labels, int `[samples]`.
      num_kept: number of branches that stay.
      on_message: called with the memory that the run needs.
      mask: initial mask, flat, bool `[total]`; None for the one that the options give.

    Raises:
      InputError: the run does not fit into memory, or its initial energy is not finite.
    """
    num_samples, num_steps = config.sizes(num_kept, len(y))
    # Every process needs at least one chain, if only an extra one that fills its devices.
    devices = jax.devices() if jax.process_count() > 1 else jax.devices()[: config.num_chains]
    mesh = jax.make_mesh((len(devices),), ("chains",), axis_types=(AxisType.Auto,), devices=devices)
    everywhere, over_chains = (NamedSharding(mesh, PartitionSpec(*axes)) for axes in ((), ("chains",)))
    per_device = -(-config.num_chains // len(devices))
    chains = per_device * len(devices)
    setup_key, chains_key = jax.random.split(jax.random.fold_in(jax.random.key(config.seed), 1))
    fold_in = jax.vmap(partial(jax.random.fold_in, chains_key))
    keys = jax.jit(lambda: fold_in(jnp.arange(chains)), out_shardings=over_chains)()

    # Programs are compiled from shapes alone, so that a run which does not fit is refused before it uses memory.
    samples = x.astype(np.float32), y.astype(np.int32)
    prepare = jax.jit(pruning.prepare, static_argnums=(4, 5)).lower(
        setup_key, network, *samples, num_kept, config.options, mask
    )
    problem = _shapes(prepare.out_info, everywhere)
    start = jax.jit(_start, static_argnums=(1, 2), out_shardings=over_chains)
    start = start.lower(problem, config.options, chains)
    states = _shapes(start.out_info, over_chains)
    batch_size = min(config.chain_batch or default_chain_batch(devices[0].platform, per_device), per_device)
    refresh_steps = pruning.refresh_steps(network, config.options)
    chunk = chunk_steps(num_steps, refresh_steps)
    prepare, start = prepare.compile(), start.compile()
    compiled = {
        steps: _compile_chunk(problem, keys, states, config.options, num_steps, steps, mesh, batch_size)
        for steps in {min(chunk, num_steps), num_steps % chunk} - {0}
    }
    # The devices of a CPU share one memory, in which each holds its own copy.
    copies = len(mesh.local_devices) if devices[0].platform == "cpu" else 1
    chunks = (start, *compiled.values())
    memory = max(program_bytes(prepare), *(copies * program_bytes(program) for program in chunks))
    free = free_memory(jax.local_devices()[0])
    needed, left = (f"{size / 1e6:,.1f} MB" for size in (memory, free or 0))
    if memory:
        on_message(f"needs {needed} of memory" + ("" if free is None else f"; {left} are free"))
    if free is not None and memory > free:
        raise InputError(
            f"the run needs {needed} of memory, but only {left} are free: lower NUM_SAMPLES, NUM_CHAINS or HIDDEN"
        )

    problem = prepare(setup_key, network, *samples, mask)
    for name in ("logit_scale", "temperature_start", "temperature_end"):
        if not np.isfinite(getattr(problem, name)):
            raise InputError(f"{name} is not finite for these weights and inputs: are the weights far too large?")
    problem = jax.device_put(jax.tree.map(np.asarray, problem), everywhere)
    states = start(problem)
    start_energy = float(_on_host(states.best_energy)[0])
    if not np.isfinite(start_energy):
        raise InputError("the initial mask has no finite energy: are the weights or inputs far too large?")
    sizes = num_samples, num_steps, batch_size, start_energy, memory
    return CompiledRun(problem, states, keys, over_chains, compiled, chunk, refresh_steps, *sizes)


class History(NamedTuple):
    """Everything recorded up to a step.

    Attributes:
      entries: for each chunk its last step, temperature, and `[chains]` energies, lowest energies, acceptances.
      noted: for each snapshot, its step and the masks of all chains, bits `[chains, total / 8]`.
      drifts: differences found between energies and their full evaluations.
      seconds: 'anneal' and 'cpu' seconds that the run took before it was stopped.
    """

    entries: list[tuple[Any, ...]]
    noted: list[tuple[int, np.ndarray]]  # each uint8 [chains, total / 8]
    drifts: list[float]
    seconds: dict[str, float]

    @property
    def trace(self) -> dict[str, np.ndarray]:
        """The entries as arrays, `[entries]` or `[entries, chains]`."""
        columns = (np.array(column) for column in zip(*self.entries, strict=True))
        return dict(zip(TRACED, columns, strict=True))

    @property
    def snapshots(self) -> dict[str, np.ndarray]:
        """The snapshots as arrays, `step` `[snapshots]` and `masks` `[snapshots, chains, total / 8]`."""
        steps, bits = zip(*self.noted, strict=True)
        return {"step": np.array(steps), "masks": np.array(bits)}


def anneal_chains(
    config: RunConfig,
    network: Network,
    x: np.ndarray,
    y: np.ndarray,
    num_kept: int,
    on_progress: Callable[[Progress], None],
    on_message: Callable[[str], None] = lambda message: None,
    mask: jax.Array | None = None,
    saving: Saving | None = None,
) -> Annealed:
    """Anneals `config.num_chains` chains, spread over the devices of all processes, in chunks.

    Chain `i` draws from `fold_in(key, i)` alone, so that neither the number of chains nor the length of the chunks
    changes a bit of it.

    Args:
      config: the settings.
      network: the fixed weights.
      x: inputs, float `[samples, features]`.
      y: labels, int `[samples]`.
      num_kept: number of branches that stay.
      on_progress: called after each chunk.
      on_message: called with the memory that the run needs, and with news of checkpoints.
      mask: initial mask, flat, bool `[total]`; None for the one that the options give.
      saving: where and when checkpoints are made, from which the chains resume; None for none.

    Raises:
      InputError: as for `compile_run`; or an energy that drifted from its full evaluation.
      Stopped: `saving.stop` asked for it; the chains are saved.
    """
    cpu_start, wall_start = time.process_time(), time.perf_counter()
    interrupts.defer(None)
    compiled_run = compile_run(config, network, x, y, num_kept, on_message, mask)
    problem, states, num_steps = compiled_run.problem, compiled_run.states, compiled_run.num_steps
    schedule = jax.jit(lambda p, step: pruning.make_schedule(p, config.options, num_steps)(step))
    for done in range(compiled_run.chunk, num_steps + compiled_run.chunk, compiled_run.chunk):
        step = min(done, num_steps) - 1
        checks.number(f"run.schedule at step {step:,}", float(schedule(problem, step)), least=0)
    full_energies = jax.jit(partial(_full_energies, config.options))
    compile_seconds = time.perf_counter() - wall_start

    def of_chains(tree):
        return jax.tree.map(lambda leaf: _on_host(leaf)[: config.num_chains], tree)

    def mask_bits(states: AnnealState) -> np.ndarray:
        position = states.walk.position
        return np.packbits(of_chains(position[0] if config.options.nudge_share else position), axis=-1)

    def seconds() -> dict[str, float]:
        now = {"anneal": time.perf_counter() - wall_start, "cpu": time.process_time() - cpu_start}
        return {name: history.seconds[name] + passed for name, passed in now.items()}

    def annealed_so_far() -> Annealed:
        trace = {name: values.T for name, values in history.trace.items()}
        best, best_energy = of_chains((states.best, states.best_energy))
        best_masks, best_weights = best if config.options.nudge_share else (best, None)
        return Annealed(
            best_masks,
            None if best_weights is None else best_weights[best_energy.argmin()],
            jax.tree.map(np.asarray, problem),
            compiled_run.start_energy,
            best_energy,
            previous,
            of_chains(states.num_not_finite),
            max(history.drifts, default=math.nan),
            compiled_run.num_samples,
            num_steps,
            trace,
            history.snapshots,
            compiled_run.memory_bytes,
            compiled_run.chain_batch,
            compile_seconds,
            *seconds().values(),
        )

    with contextlib.ExitStack() as stack:
        history, previous = History([], [], [], {"anneal": 0.0, "cpu": 0.0}), np.zeros(config.num_chains, np.int64)
        checkpoints, first, last_saved = None, 0, time.monotonic()
        if saving is not None and saving.every:
            interrupts.defer("stopping after the current chunk")
        if saving is not None:
            checkpoints = stack.enter_context(Checkpoints(saving.folder / str(num_kept), on_message))
            if saved := checkpoints.newest():
                on_message(f"resuming from step {saved.step:,} of {num_steps:,}")
                states, history = _resumed(compiled_run, saved)
                first, previous = saved.step, saved.chains["num_accepted"]
        if first == 0:
            history.noted.append((0, mask_bits(states)))
        wall_start = time.perf_counter()
        for first_step in range(first, num_steps, compiled_run.chunk):
            steps = min(compiled_run.chunk, num_steps - first_step)
            states = compiled_run.compiled[steps](problem, compiled_run.keys, states, np.int32(first_step))
            walked = states.walk.energy, states.best_energy, states.num_accepted
            energy, best_energy, accepted = of_chains(walked)
            done = first_step + steps
            temperature = float(schedule(problem, done - 1))
            acceptance = (accepted - previous) / steps
            previous = accepted
            history.entries.append((done, temperature, energy, best_energy, acceptance))
            leader = int(best_energy.argmin())
            now, lowest, share = (float(values[leader]) for values in (energy, best_energy, acceptance))
            rate = (done - first) / (time.perf_counter() - wall_start)
            on_progress(Progress(done, num_steps, temperature, now, lowest, share, rate))
            if done * SNAPSHOTS // num_steps > first_step * SNAPSHOTS // num_steps:
                history.noted.append((done, mask_bits(states)))
            # Just before a refresh a checkpoint is smallest, because the refresh computes the rest again; and the
            # drift of the energy is largest.
            at_refresh = done % compiled_run.refresh_steps == 0 or done == num_steps
            if at_refresh and done * DRIFTS_MEASURED // num_steps > first_step * DRIFTS_MEASURED // num_steps:
                whole = of_chains(full_energies(problem, states.walk.position))
                history.drifts.append(_checked_drift(done, energy, whole))
            if saving is None or checkpoints is None or not saving.every or not at_refresh:
                continue
            ends = done == num_steps and not saving.probes
            stopped, due = _agreed(saving.stop(), time.monotonic() - last_saved >= saving.every)
            if (stopped or due or done == num_steps) and not ends:
                numbers = seconds() | ({"drift": max(history.drifts)} if history.drifts else {})
                persistent_arrays = of_chains(jax.jit(checkpoint.persistent_arrays)(states))
                trace = history.trace | {f"snapshots.{name}": a for name, a in history.snapshots.items()}
                begun = checkpoints.save(Saved(done, persistent_arrays, trace, numbers))
                last_saved = time.monotonic()
                if stopped and begun and checkpoints.wait():
                    raise Stopped(done, num_steps, annealed_so_far())
    return annealed_so_far()


def _resumed(compiled_run: CompiledRun, saved: Saved) -> tuple[AnnealState, History]:
    """Returns the chains of a checkpoint and their history."""
    restore = jax.jit(checkpoint.restored, out_shardings=compiled_run.over_chains, donate_argnums=0)
    wanted = len(saved.chains["num_accepted"])
    # Extra chains that fill the devices are copies of the last one.
    sources = np.minimum(np.arange(len(compiled_run.keys)), wanted - 1)
    states = restore(compiled_run.states, {name: array[sources] for name, array in saved.chains.items()})
    entries = list(zip(*(saved.trace[name] for name in TRACED), strict=True))
    noted = list(zip(*(saved.trace[f"snapshots.{name}"] for name in ("step", "masks")), strict=True))
    drifts = [saved.figures[name] for name in ("drift",) if name in saved.figures]
    return states, History(entries, noted, drifts, saved.figures)


def _checked_drift(step: int, energies: np.ndarray, whole: np.ndarray) -> float:
    drift = float(np.abs(whole - energies).max())
    if not drift <= MAX_DRIFT * max(1.0, float(np.abs(whole).max())):  # NaN too
        raise InputError(
            f"after {step:,} steps the energy differs by {drift:.2g} from its full evaluation, which is too much: "
            "lower run.logit_scale or scale the weights down, and please report this network"
        )
    return drift


def chunk_steps(num_steps: int, refresh_steps: int) -> int:
    """Returns the number of steps of a chunk, a multiple of `BLOCK_STEPS`.

    It divides `num_steps` if possible, and divides `refresh_steps` or is a multiple of it, because chains can be
    saved only there; the second condition is the more important one.

    >>> chunk_steps(300_000, 1_000), chunk_steps(1_000_000, 10_000), chunk_steps(250, 10_000)
    (2000, 5000, 300)
    """
    blocks, refresh = -(-num_steps // BLOCK_STEPS), refresh_steps // BLOCK_STEPS
    least = max(MIN_CHUNK_STEPS // BLOCK_STEPS, blocks // CHUNKS)
    candidates = [*range(least, min(2 * least, blocks) + 1)]
    # Always include one that allows saving at every refresh, even if it makes more entries in the trace.
    candidates.append(max(size for size in range(1, 2 * least + 1) if refresh % size == 0))

    def fits(candidate):
        in_step = candidate % refresh == 0 or refresh % candidate == 0
        return in_step, candidate >= least, num_steps % BLOCK_STEPS == 0 and blocks % candidate == 0

    chosen = max(candidates, key=lambda candidate: (*fits(candidate), -candidate))
    return min(chosen, blocks) * BLOCK_STEPS


def default_chain_batch(platform: str, chains: int) -> int:
    """Returns how many of a device's chains to vmap together: one on a CPU, where one is fastest, else all.

    >>> default_chain_batch("cpu", 64), default_chain_batch("gpu", 64)
    (1, 64)
    """
    return 1 if platform == "cpu" else chains


def _shapes(tree, sharding):
    return jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding), tree)


def _start(problem: Problem, options: pruning.Options, chains: int) -> AnnealState:
    landscape = pruning.make_landscape(problem, options)
    state = init(landscape, pruning.start_position(problem, options), problem.data)
    return jax.tree.map(lambda leaf: jnp.broadcast_to(leaf, (chains, *leaf.shape)), state)


def _on_host(array: jax.Array) -> np.ndarray:
    """Returns, in each process, a whole array that may be spread over the devices of several processes."""
    if jax.process_count() > 1 and not array.is_fully_replicated:
        from jax.experimental import multihost_utils

        return np.asarray(multihost_utils.process_allgather(array, tiled=True))
    return np.asarray(array)


def _agreed(stopped: bool, due: bool) -> tuple[bool, bool]:
    """Returns what all processes do: stop if any was asked to, save if it is time for the first one."""
    if jax.process_count() == 1:
        return stopped, due
    from jax.experimental import multihost_utils

    votes = multihost_utils.process_allgather(np.array([stopped, due]))
    return bool(votes[:, 0].any()), bool(votes[0, 1])


def _full_energies(options: pruning.Options, problem: Problem, positions: Any) -> jax.Array:
    landscape = pruning.make_landscape(problem, options)
    return jax.lax.map(lambda position: landscape.init(position, problem.data).energy, positions)


def _compile_chunk(problem, keys, states, options, num_steps, steps, mesh, batch_size):
    def chunk(problem, keys, states, first_step):
        landscape = pruning.make_landscape(problem, options)
        schedule = pruning.make_schedule(problem, options, num_steps)

        def one_chain(chain):
            key, state = chain
            return run_steps(key, landscape, state, schedule, first_step, steps, problem.data)[0]

        # A batch of one would still be vmapped, which evaluates both sides of every condition in the program.
        return jax.lax.map(one_chain, (keys, states), batch_size=None if batch_size == 1 else batch_size)

    over_chains, everywhere = PartitionSpec("chains"), PartitionSpec()
    sharded = jax.shard_map(
        chunk,
        mesh=mesh,
        in_specs=(everywhere, over_chains, over_chains, everywhere),
        out_specs=over_chains,
        check_vma=False,
    )
    jitted = jax.jit(sharded, donate_argnums=2)
    return jitted.lower(problem, keys, states, np.int32(0)).compile()
