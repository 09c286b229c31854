"""Loops over blocks of samples and chunks of units, and the few array operations they are made of."""

from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp

from sa_jax.annealing.landscape import batch_bound
from sa_jax.landscapes.mlp.state import Block

# Measured on x86 with AVX2; neither changes what is computed.
# Rows of a chunk: the least that holds all changed rows, or the greatest, repeatedly.
CHUNKS = (4, 8, 16, 32)
# Samples worked on at once, so that what a proposal computes stays in the cache.
BLOCK_SAMPLES = 8192


def blocks(samples: int, at_most: int) -> tuple[int, int]:
    """How many blocks of samples to work on, and of what size; the last may overlap the one before.

    >>> blocks(10, 4)
    (3, 4)
    """
    number = -(-samples // at_most)
    return number, -(-samples // number)


def cut(array: jax.Array, start: Sequence[jax.Array | int], sizes: Sequence[int]) -> jax.Array:
    """The part of an array, of shape `sizes`, that begins at `start`."""
    return jax.lax.dynamic_slice(array, [jnp.asarray(index, jnp.int32) for index in start], sizes)


def update(array: jax.Array, part: jax.Array, start: Sequence[jax.Array | int]) -> jax.Array:
    """The array, of the shape it has, with a part of it replaced from `start` on."""
    return jax.lax.dynamic_update_slice(array, part, [jnp.asarray(index, jnp.int32) for index in start])


def two_rows(array: jax.Array, units: jax.Array) -> jax.Array:
    """Two rows of an array `[units, samples]`, `[2, samples]`; `units` is int32 `[2]`."""
    return jnp.stack([jax.lax.dynamic_index_in_dim(array, units[j], keepdims=False) for j in range(2)])


def gather(array: jax.Array, units: jax.Array, block: Block) -> jax.Array:
    """Rows of an array `[units, samples]`, of one block of samples: `[len(units), block]`."""
    return jax.vmap(lambda unit: cut(array, (unit, block.start), (1, block.size))[0])(units)


def at(array: jax.Array, unit: jax.Array) -> jax.Array:
    """An entry of an array `[units]`; 0 at the end, where `each` sends chains that have no unit left."""
    return array.at[unit].get(mode="fill", fill_value=0)


def dense(kernel: jax.Array, bias: jax.Array | None, entering: jax.Array) -> jax.Array:
    """A layer's outputs, float32 `[outputs, samples]`, of `entering`, `[inputs, samples]`."""
    # Transposed beforehand the product is a third faster on a CPU; without the barrier XLA undoes that.
    return product(jax.lax.optimization_barrier(kernel.T), bias, entering)


def product(transposed: jax.Array, bias: jax.Array | None, entering: jax.Array) -> jax.Array:
    """The same of a kernel that is transposed, `[outputs, inputs]`: float32 `[outputs, samples]`."""
    value = transposed @ entering
    return value if bias is None else value + bias[:, None]


def zero_like(*arrays: jax.Array) -> jax.Array:
    """A zero, float32 `[]`, that under `shard_map` varies over the mesh as the arrays do."""
    # What is written to must vary as what is written does. Compiles to a constant.
    varying = sum((array.ravel()[0] != 0).astype(jnp.int32) for array in arrays) > 0
    return jnp.where(varying, jnp.float32(0), jnp.float32(0))


def chunks(changed: jax.Array, sizes: Sequence[int], body: Callable[..., Any], carry: Any) -> Any:
    """Calls `body(units, real, carry) -> carry` with the changed units, in order, a chunk at a time.

    All units come up in one chunk of the least size that holds them, or in several of the greatest. A chunk
    is filled up with arbitrary units that are not real.

    Args:
      changed: bool `[units]`.
      sizes: of chunks, rising.
      body: takes units, int32 `[size]`, and which of them are real, bool `[size]`.
      carry: any pytree.
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
    """Calls `body(unit, carry) -> carry` with each changed unit, in order, and under vmap also with `width`.

    Args:
      changed: bool `[width]`.
      body: takes a unit, int32 `[]`.
      carry: any pytree.
    """

    def chunk(units, real, carry):
        units = jnp.where(real, units, changed.size)
        number = batch_bound(real.sum(dtype=jnp.int32))
        return jax.lax.fori_loop(0, number, lambda i, carry: body(units[i], carry), carry)

    return chunks(changed, CHUNKS[-1:], chunk, carry)


def _running_count(changed):
    """The cumulative sum of a boolean vector, int32 of the same shape."""
    # Counted in groups by a product, since a long cumulative sum is slow on a CPU. Whole numbers: exact.
    groups = jnp.pad(changed, (0, -changed.size % 32)).reshape(-1, 32).astype(jnp.float32)
    within = groups @ jnp.triu(jnp.ones((32, 32)))
    before = jnp.cumsum(within[:, -1]) - within[:, -1]
    return (within + before[:, None]).astype(jnp.int32).reshape(-1)[: changed.size]
