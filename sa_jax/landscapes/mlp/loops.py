"""Loops over blocks of samples and chunks of units, and the array operations that these loops use."""

from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp

from sa_jax.annealing.landscape import batch_bound
from sa_jax.landscapes.mlp.state import Block

# Both values were measured on x86 with AVX2. They do not change the results.
# Numbers of rows in a chunk. One chunk of the smallest size that holds all changed rows is used, or several chunks
# of the largest size.
CHUNKS = (4, 8, 16, 32)
# Number of samples processed at once, so that the values of one proposal stay in the CPU cache.
BLOCK_SAMPLES = 8192


def blocks(samples: int, at_most: int) -> tuple[int, int]:
    """Returns the number of blocks of samples and their size; the last block may overlap the previous one.

    >>> blocks(10, 4)
    (3, 4)
    """
    number = -(-samples // at_most)
    return number, -(-samples // number)


def cut(array: jax.Array, start: Sequence[jax.Array | int], sizes: Sequence[int]) -> jax.Array:
    """Returns the part of an array that begins at `start` and has the shape `sizes`."""
    return jax.lax.dynamic_slice(array, [jnp.asarray(index, jnp.int32) for index in start], sizes)


def update(array: jax.Array, part: jax.Array, start: Sequence[jax.Array | int]) -> jax.Array:
    """Returns the array, in its own shape, with the part that begins at `start` replaced by `part`."""
    return jax.lax.dynamic_update_slice(array, part, [jnp.asarray(index, jnp.int32) for index in start])


def two_rows(array: jax.Array, units: jax.Array) -> jax.Array:
    """Returns two rows of an array `[units, samples]`, as `[2, samples]`; `units` is int32 `[2]`."""
    return jnp.stack([jax.lax.dynamic_index_in_dim(array, units[j], keepdims=False) for j in range(2)])


def gather(array: jax.Array, units: jax.Array, block: Block) -> jax.Array:
    """Returns rows of an array `[units, samples]` for one block of samples, as `[len(units), block]`."""
    return jax.vmap(lambda unit: cut(array, (unit, block.start), (1, block.size))[0])(units)


def at(array: jax.Array, unit: jax.Array) -> jax.Array:
    """Returns an entry of an array `[units]`; 0 if `unit` is out of range, as `each` uses it (see there)."""
    return array.at[unit].get(mode="fill", fill_value=0)


def dense(kernel: jax.Array, bias: jax.Array | None, entering: jax.Array) -> jax.Array:
    """Returns a layer's outputs, float32 `[outputs, samples]`, for the inputs `entering`, `[inputs, samples]`."""
    # With a kernel that is transposed first, the product is a third faster on a CPU. Without the barrier XLA
    # undoes the transposition.
    return product(jax.lax.optimization_barrier(kernel.T), bias, entering)


def product(transposed: jax.Array, bias: jax.Array | None, entering: jax.Array) -> jax.Array:
    """Returns a layer's outputs, float32 `[outputs, samples]`, from its transposed kernel, `[outputs, inputs]`."""
    value = transposed @ entering
    return value if bias is None else value + bias[:, None]


def zero_like(*arrays: jax.Array) -> jax.Array:
    """Returns a zero, float32 `[]`, that under `shard_map` varies over the same mesh axes as the arrays."""
    # JAX requires that an array varies over the same mesh axes as the values written to it. This compiles to a
    # constant.
    varying = sum(array.ravel()[0].astype(bool).astype(jnp.int32) for array in arrays) > 0
    return jnp.where(varying, jnp.float32(0), jnp.float32(0))


def chunks(changed: jax.Array, sizes: Sequence[int], body: Callable[..., Any], carry: Any) -> Any:
    """Calls `body(units, real, carry) -> carry` with the changed units, in order, a chunk at a time.

    All changed units fit into one chunk of the smallest possible size, or they are spread over several chunks of
    the largest size. A chunk is filled up with arbitrary units, for which `real` is False.

    Args:
      changed: which units changed, bool `[units]`.
      sizes: chunk sizes, in increasing order.
      body: takes units, int32 `[size]`, which of them are real, bool `[size]`, and the carry.
      carry: initial carry, any pytree.
    """
    width, own = changed.size, changed.sum(dtype=jnp.int32)
    count, upto = batch_bound(own), _running_count(changed)
    smaller = 0
    for size in sizes:
        if size == sizes[-1]:
            times = jnp.where(count > smaller, -(-count // size), 0)
        else:
            times = ((count > smaller) & (count <= size)).astype(jnp.int32)

        def chunk(i, carry, size=size):
            wanted = i * size + 1 + jnp.arange(size)
            units = jnp.minimum(jnp.searchsorted(upto, wanted, method="scan_unrolled"), width - 1)
            return body(units, wanted <= own, carry)

        carry = jax.lax.fori_loop(0, times, chunk, carry)
        smaller = size
    return carry


def each(changed: jax.Array, body: Callable[..., Any], carry: Any) -> Any:
    """Calls `body(unit, carry) -> carry` with each changed unit, in order.

    Under vmap the loop runs as often as the chain with the most changed units needs. For a chain without units
    left, `unit` is then `width`, one past the last unit.

    Args:
      changed: which units changed, bool `[width]`.
      body: takes a unit, int32 `[]`, and the carry.
      carry: initial carry, any pytree.
    """

    def chunk(units, real, carry):
        units = jnp.where(real, units, changed.size)
        number = batch_bound(real.sum(dtype=jnp.int32))
        return jax.lax.fori_loop(0, number, lambda i, carry: body(units[i], carry), carry)

    return chunks(changed, CHUNKS[-1:], chunk, carry)


def _running_count(changed):
    """Returns the cumulative sum of a boolean vector, int32 of the same shape."""
    # A matrix product counts within groups, because a long cumulative sum is slow on a CPU. The sums are whole
    # numbers, so they are exact.
    groups = jnp.pad(changed, (0, -changed.size % 32)).reshape(-1, 32).astype(jnp.float32)
    within = groups @ jnp.triu(jnp.ones((32, 32)))
    before = jnp.cumsum(within[:, -1]) - within[:, -1]
    return (within + before[:, None]).astype(jnp.int32).reshape(-1)[: changed.size]
