"""Compiles the programs of a run's chains, from shapes alone, and refuses runs that do not fit into memory."""

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import AxisType, NamedSharding, PartitionSpec

from sa_jax import pruning
from sa_jax.annealing.chain import BLOCK_STEPS, init
from sa_jax.annealing.chain import run as run_steps
from sa_jax.commands.compiling import compile_once
from sa_jax.commands.hardware import check_memory, free_memory, program_bytes
from sa_jax.commands.run.processes import on_host
from sa_jax.commands.run.settings import RunConfig
from sa_jax.networks.mlp import Network
from sa_jax.pruning.problem import Problem
from sa_jax.types import AnnealState, InputError

# A run is cut into about CHUNKS chunks of at least MIN_CHUNK_STEPS steps; each is an entry of the trace.
CHUNKS = 200
MIN_CHUNK_STEPS = 1_000


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
    """Compiles the programs that advance chains, and evaluates the initial mask.

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
    prepare, start = compile_once(prepare), compile_once(start)
    compiled = {
        steps: _compile_chunk(problem, keys, states, config.options, num_steps, steps, mesh, batch_size)
        for steps in {min(chunk, num_steps), num_steps % chunk} - {0}
    }
    # The devices of a CPU share one memory, in which each holds its own copy.
    copies = len(mesh.local_devices) if devices[0].platform == "cpu" else 1
    chunks = (start, *compiled.values())
    memory = max(program_bytes(prepare), *(copies * program_bytes(program) for program in chunks))
    free = free_memory(jax.local_devices()[0])
    if memory:
        left = "" if free is None else f"; {free / 1e6:,.1f} MB are free"
        on_message(f"needs {memory / 1e6:,.1f} MB of memory{left}")
    check_memory("the run", memory, free, "NUM_SAMPLES, NUM_CHAINS or HIDDEN")

    problem = prepare(setup_key, network, *samples, mask)
    for name in ("logit_scale", "temperature_start", "temperature_end"):
        if not np.isfinite(getattr(problem, name)):
            raise InputError(f"{name} is not finite for these weights and inputs: are the weights far too large?")
    problem = jax.device_put(jax.tree.map(np.asarray, problem), everywhere)
    states = start(problem)
    start_energy = float(on_host(states.best_energy)[0])
    if not np.isfinite(start_energy):
        raise InputError("the initial mask has no finite energy: are the weights or inputs far too large?")
    sizes = num_samples, num_steps, batch_size, start_energy, memory
    return CompiledRun(problem, states, keys, over_chains, compiled, chunk, refresh_steps, *sizes)


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
    """Returns how many of a device's chains to vmap together: one on a CPU, else all.

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
