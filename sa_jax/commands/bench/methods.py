"""The methods that `sa-jax bench` times: three landscapes, annealed by one JAX program, and a compiled loop."""

import functools
import importlib.util
import statistics
import time
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import AxisType, NamedSharding, PartitionSpec

from sa_jax.annealing.chain import BLOCK_STEPS, init
from sa_jax.annealing.chain import run as run_steps
from sa_jax.annealing.landscape import from_energy
from sa_jax.annealing.schedules import constant_schedule
from sa_jax.commands.bench.ceilings import Count
from sa_jax.commands.bench.problems import LOGIT_SCALE, Case, Synthetic, synthesize
from sa_jax.commands.hardware import program_bytes
from sa_jax.landscapes.mlp import masked_mlp
from sa_jax.landscapes.native import Unavailable, ready
from sa_jax.moves.base import move_fn
from sa_jax.moves.uniform import uniform_swap
from sa_jax.networks import mlp
from sa_jax.networks.energies import cross_entropy
from sa_jax.networks.mlp import Network
from sa_jax.types import Landscape

# Most floating-point operations that a compiled program makes between two checks of the round's length.
FLOPS_AT_ONCE = 2e9


def has_numba() -> bool:
    """Returns whether `compiled` can be measured."""
    return importlib.util.find_spec("numba") is not None


def has_native() -> bool:
    """Returns whether `native` can be measured."""
    try:
        ready()
    except Unavailable:
        return False
    return True


def naive(network: Network) -> Landscape:
    """Returns the fastest form of full evaluation: samples first, the index lists of swaps in the position."""
    energy = cross_entropy(LOGIT_SCALE)

    def energy_fn(position, x, y):
        return energy(mlp.forward(mlp.masked(network, position[0]), x), y)

    return from_energy(energy_fn, move_fn(uniform_swap()))


def incremental(network: Network) -> Landscape:
    """Returns the landscape of `sa_jax.landscapes.mlp`, evaluated by XLA."""
    return masked_mlp(network, uniform_swap(), cross_entropy(LOGIT_SCALE), backend="xla")


def native(network: Network) -> Landscape:
    """Returns the same landscape as `incremental`, evaluated by C code."""
    return masked_mlp(network, uniform_swap(), cross_entropy(LOGIT_SCALE), backend="native")


LANDSCAPES = {"naive": naive, "incremental": incremental, "native": native}


class Method(NamedTuple):
    """A method to time; each `walk(steps)` starts again and returns its seconds and its acceptance."""

    walk: Callable[[int], tuple[float, float]]
    steps_at_once: int
    compile_seconds: float
    peak_bytes: int
    arrays_bytes: int


def steps_at_once(flops: float) -> int:
    """Returns the number of proposals between two checks of a round's length, from the operations of one."""
    return int(np.clip(FLOPS_AT_ONCE // flops, 2, BLOCK_STEPS))


def jax_method(name: str, case: Case, problem: Synthetic, counted: Count) -> Method:
    """Compiles one of `LANDSCAPES`; chains are spread over cores and run one after the other on each core."""
    is_naive = name == "naive"
    landscape_of = LANDSCAPES[name]
    network: Network = jax.tree.map(jnp.asarray, problem.network)
    mask = jnp.asarray(problem.mask)
    x = jnp.asarray(problem.inputs.T if is_naive else problem.inputs)
    data = (x, jnp.asarray(problem.labels))
    flops = case.samples * (2 * network.total if is_naive else counted.flops)
    steps = steps_at_once(flops)
    mesh = jax.make_mesh(
        (case.cores,), ("chains",), axis_types=(AxisType.Auto,), devices=jax.local_devices()[: case.cores]
    )
    over_chains, everywhere = PartitionSpec("chains"), PartitionSpec()

    def walk_chains(keys, states, blocks, network, data, temperature):
        landscape = landscape_of(network)

        def one_chain(chain):
            key, start = chain

            def one_block(index, state):
                schedule = constant_schedule(temperature)
                return run_steps(key, landscape, state, schedule, index * BLOCK_STEPS, steps, data)[0]

            return jax.lax.fori_loop(0, blocks, one_block, start)

        return jax.lax.map(one_chain, (keys, states))

    def start(network, mask, data):
        position = (mask, uniform_swap().init(mask)) if is_naive else mask
        state = init(landscape_of(network), position, data)
        return jax.tree.map(lambda leaf: jnp.broadcast_to(leaf, (case.chains, *leaf.shape)), state)

    sharded = jax.shard_map(
        walk_chains,
        mesh=mesh,
        in_specs=(over_chains, over_chains, everywhere, everywhere, everywhere, everywhere),
        out_specs=over_chains,
        check_vma=False,
    )
    shared = NamedSharding(mesh, everywhere)
    network, mask, data, temperature = jax.device_put((network, mask, data, counted.temperature), shared)
    keys = jax.device_put(jax.random.split(jax.random.key(0), case.chains), NamedSharding(mesh, over_chains))
    begin = time.perf_counter()
    started = jax.jit(start, out_shardings=NamedSharding(mesh, over_chains)).lower(network, mask, data).compile()
    compile_seconds = time.perf_counter() - begin
    states = jax.block_until_ready(started(network, mask, data))
    begin = time.perf_counter()
    jitted = jax.jit(sharded, donate_argnums=1)
    program = jitted.lower(keys, states, jnp.int32(1), network, data, temperature).compile()
    compile_seconds += time.perf_counter() - begin
    arrays = jax.tree.leaves((states, network, data))

    def walk(num_steps: int) -> tuple[float, float]:
        states = jax.block_until_ready(started(network, mask, data))
        blocks = jnp.int32(num_steps // steps)
        begin = time.perf_counter()
        states = jax.block_until_ready(program(keys, states, blocks, network, data, temperature))
        return time.perf_counter() - begin, float(states.num_accepted.mean()) / num_steps

    peak_bytes = case.cores * program_bytes(program)
    return Method(walk, steps, compile_seconds, peak_bytes, sum(leaf.nbytes for leaf in arrays))


def compiled_method(case: Case, problem: Synthetic, counted: Count) -> Method:
    """Prepares the compiled loop; chains run one after the other."""
    from sa_jax.commands.bench import compiled

    fixed, start, scratch = compiled.prepare(*problem, logit_scale=LOGIT_SCALE, seed=0)
    per_chain = sum(field.nbytes for field in start)
    once = sum(field.nbytes for field in (*fixed, *scratch) if isinstance(field, np.ndarray))
    arrays = sum(field.nbytes for field in fixed if isinstance(field, np.ndarray)) + case.chains * per_chain

    def walk(num_steps: int) -> tuple[float, float]:
        chains = [compiled.Chain(*(field.copy() for field in start)) for _ in range(case.chains)]
        for index, chain in enumerate(chains):
            chain.bits[0] += np.uint64(2 * index)
        begin = time.perf_counter()
        accepted = [compiled.walk(fixed, chain, scratch, counted.temperature, num_steps) for chain in chains]
        return time.perf_counter() - begin, statistics.mean(accepted) / num_steps

    at_once = steps_at_once(case.samples * counted.flops)
    return Method(walk, at_once, compiled_seconds(), once + (case.chains + 1) * per_chain, arrays)


@functools.cache
def compiled_seconds() -> float:
    """Returns the compile time of the loop; one compilation serves all networks."""
    from sa_jax.commands.bench import compiled

    times = []
    for _ in range(2):
        begin = time.perf_counter()
        problem = compiled.prepare(*synthesize((8, 4, 3), 0.5, 8), logit_scale=LOGIT_SCALE, seed=0)
        compiled.walk(*problem, 1.0, 1)
        times.append(time.perf_counter() - begin)
    return times[0] - times[1]
