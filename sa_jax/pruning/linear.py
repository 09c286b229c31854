"""Prunes one linear layer by annealing its squared output error."""

import math
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jax.core import Tracer
from jax.sharding import AxisType, PartitionSpec

from sa_jax.annealing.chain import BLOCK_STEPS, anneal
from sa_jax.annealing.inputs import check_key
from sa_jax.annealing.schedules import geometric_schedule
from sa_jax.checks import number, whole
from sa_jax.landscapes.linear import heat_bath_rows, pruning_errors
from sa_jax.networks import patterns
from sa_jax.networks.arrays import as_numbers
from sa_jax.networks.patterns import Pattern
from sa_jax.pruning.gram import check_layer, checked_correction, checked_mask

# Temperatures in units of a row's median `w^2 H_jj`, the error that pruning one branch alone makes.
TEMPERATURE_START, TEMPERATURE_END = 0.3, 0.001
# Number of rows annealed together; they fit into a core's cache.
ROW_BATCH = 64
# Rows are counted in int32.
MAX_ROWS = 2**31 - 1
# Number of rounds for a layer whose rows share one budget; each round pairs the rows again.
ROUNDS = 16


def prune_linear(
    rng_key: jax.Array,
    weight: jax.Array,
    gram: jax.Array,
    density: float | Pattern = 0.5,
    sweeps: float = 2.0,
    row_batch: int = ROW_BATCH,
    dense_correction: jax.Array | None = None,
    first_row: jax.Array | int = 0,
) -> jax.Array:
    """Prunes one linear layer by annealing its mask on the squared error of the layer's outputs.

    No weight changes. Pure: works inside `jit`, with `density`, `sweeps` and `row_batch` static, and on rows
    sharded over devices. Each row starts from the weights of largest `|w| * norm(input)` (Wanda; Sun et al. 2024)
    and is a chain of its own, annealed by `heat_bath_rows`. Where the rows share one budget (a number, or
    `Layer`), they are annealed in random pairs, and each round pairs them again. Blocks and columns have a
    quadratic energy too, with one variable each. The errors of whole rows (outputs) add up independently, so the
    best rows are taken, exactly.

    Args:
      rng_key: a key, `[]`.
      weight: float `[outputs, inputs]`; that is a transposed Flax kernel.
      gram: `X' X` of the layer's inputs `X`, or any multiple of it, float `[inputs, inputs]`; float16 and bfloat16
        keep their type.
      density: the share of the layer's weights that is kept, in (0, 1]; or a pattern such as `patterns.Unit(0.5)`,
        the share of each row, or `patterns.NM(2, 4)`.
      sweeps: number of draws for each row, divided by the number of its inputs or blocks. Each draw weighs all
        places that one branch could move to.
      row_batch: number of rows annealed together; it changes results by no more than rounding.
      dense_correction: `W (X - D)' X`, float `[outputs, inputs]`, in the units of `gram`. `X` are the inputs that
        come from pruned layers, and `D` those of the dense network: the pruned layer is then to give on `X` what
        the weights `W` gave on `D`. See `moments.dense_correction`.
      first_row: number of the first row, or row of blocks, where `weight` is a part of a layer. Each row's random
        numbers depend on its number alone, so that parts are pruned as the whole would be. No effect where the
        rows share one budget.

    Returns:
      The mask, bool `[outputs, inputs]`.

    Raises:
      InputError: a density that is neither a pattern nor a number in (0, 1], a pattern that does not fit the
        weight, a Gram matrix of the wrong size, not finite or not symmetric (the last two where it is not
        traced), a number that is out of range, or no key.

    >>> x = jax.random.normal(jax.random.key(0), (100, 8)) @ jax.random.normal(jax.random.key(1), (8, 8))
    >>> weight = jax.random.normal(jax.random.key(2), (4, 8))
    >>> mask = prune_linear(jax.random.key(3), weight, x.T @ x, patterns.NM(2, 4))
    >>> mask.reshape(4, 2, 4).sum(-1).tolist()
    [[2, 2], [2, 2], [2, 2], [2, 2]]
    """
    check_key(rng_key)
    rule = patterns.rule_of(patterns.of_layer(density))
    weight, gram = check_layer(weight, gram)
    sweeps, row_batch = number("sweeps", sweeps, above=0), whole("row_batch", row_batch, 1)
    if not isinstance(first_row, Tracer):
        first_row = whole("first_row", first_row, 0, MAX_ROWS)
    shape = weight.shape[0], weight.shape[1]
    rows, columns = rule.blocks(shape)
    dense_correction = checked_correction(weight, dense_correction)
    size = rule.set_size((rows, columns))
    if columns == 1:  # whole rows
        energies = jnp.einsum("oi,oi->o", weight, weight @ gram.astype(jnp.float32) - 2 * dense_correction)
        return patterns.expand(patterns.highest(energies[:, None], size, rule.num_kept_of(size)), shape)
    # The number of kept blocks is data: layers of one shape share one program whatever their densities.
    num_kept = jnp.int32(rule.num_kept_of(size))
    if rule.whole_layer:
        return _prune_layer(rng_key, weight, gram, dense_correction, num_kept, sweeps, row_batch)
    block = shape[0] // rows, shape[1] // columns
    batch = min(row_batch, rows)
    blocks = _prune_rows(
        rng_key, weight, gram, dense_correction, num_kept, first_row, block, rule.group, sweeps, batch
    )
    return patterns.expand(blocks, shape)


def prune_linear_sharded(
    rng_key: jax.Array,
    weight: jax.Array,
    gram: jax.Array,
    density: float | Pattern = 0.5,
    sweeps: float = 2.0,
    dense_correction: jax.Array | None = None,
    devices: Sequence[Any] | None = None,
) -> jax.Array:
    """Prunes one linear layer as `prune_linear` does, with its rows spread over devices that exchange nothing.

    The mask is the same but for rounding. Each device holds the Gram matrix and its share of the rows. One device
    does all the work where the rows share one budget, for whole columns or rows, and with a key of the kind rbg.

    Args:
      rng_key: a key, `[]`.
      weight: float `[outputs, inputs]`.
      gram: float `[inputs, inputs]`.
      density: as in `prune_linear`.
      sweeps: as in `prune_linear`.
      dense_correction: float `[outputs, inputs]`, or None, as in `prune_linear`.
      devices: the devices to use; None for all.

    Returns:
      The mask, bool `[outputs, inputs]`.

    Raises:
      InputError: as `prune_linear` does.
    """
    check_key(rng_key)
    devices = jax.devices() if devices is None else devices
    pattern = patterns.of_layer(density)
    rule = patterns.rule_of(pattern)
    height = rule.block[0]
    # Without `jit`, each operation would be spread over the devices by itself, which takes minutes.
    config: Any = jax.config
    # The bits of rbg keys depend on how many rows are vmapped, and JAX 0.7 has none inside `shard_map`.
    alone = config.jax_disable_jit or "rbg" in str(jax.random.key_impl(rng_key))
    if len(devices) == 1 or rule.whole_layer or not height or alone:
        return prune_linear(rng_key, weight, gram, pattern, sweeps, dense_correction=dense_correction)
    weight, gram = check_layer(weight, gram)
    sweeps = number("sweeps", sweeps, above=0)
    rule.blocks((weight.shape[0], weight.shape[1]))
    outputs = weight.shape[0]
    dense_correction = checked_correction(weight, dense_correction)
    # Rows of zeros give every device the same number of rows.
    filling = ((0, -outputs % (height * len(devices))), (0, 0))
    weight, dense_correction = (jnp.pad(values, filling) for values in (weight, dense_correction))
    mesh = jax.make_mesh((len(devices),), ("rows",), axis_types=(AxisType.Auto,), devices=devices)
    return _prune_sharded(rng_key, weight, gram, dense_correction, mesh, pattern, sweeps)[:outputs]


@partial(jax.jit, static_argnames=("mesh", "pattern", "sweeps"))
def _prune_sharded(rng_key, weight, gram, dense_correction, mesh, pattern, sweeps):
    mine, everyones = PartitionSpec("rows"), PartitionSpec()

    def prune_mine(rng_key, weight, gram, dense_correction):
        first = jax.lax.axis_index("rows") * (len(weight) // patterns.rule_of(pattern).block[0])
        return prune_linear(
            rng_key, weight, gram, pattern, sweeps, dense_correction=dense_correction, first_row=first
        )

    specs = (everyones, mine, everyones, mine)
    return jax.shard_map(prune_mine, mesh=mesh, in_specs=specs, out_specs=mine)(
        rng_key, weight, gram, dense_correction
    )


@partial(jax.jit, static_argnames=("block", "group", "sweeps", "batch"))
def _prune_rows(rng_key, weight, gram, dense_correction, num_kept, first_row, block, group, sweeps, batch):
    """The mask of blocks, bool `[rows, columns]`, of which each row or group keeps `num_kept`."""
    height, width = block
    rows, columns = weight.shape[0] // height, weight.shape[1] // width

    def prune_row(args):
        rng_key, weight, dense_correction = args
        form, quadratic = weight, gram
        if (height, width) != (1, 1):
            # Pruning blocks a and b together costs Q_aa + Q_bb + 2 Q_ab: a row of ones with Q for its Gram matrix.
            quadratic = gram.astype(jnp.float32) * (weight.T @ weight)
            quadratic = quadratic.reshape(columns, width, columns, width).sum((1, 3))
            form = jnp.ones((1, columns), jnp.float32)
            dense_correction = (weight * dense_correction).reshape(height, columns, width).sum((0, 2))[None]
        scores = pruning_errors(form, quadratic).reshape(1, columns)
        steps, unit = whole_steps(sweeps * columns), jnp.median(scores)
        start = patterns.highest(scores, group or columns, num_kept)
        landscape = heat_bath_rows(form, quadratic, group, dense_correction)
        return anneal(rng_key, landscape, start, _cooling(unit, steps), steps).best[0]

    # Rows of zeros fill the last batch, which would otherwise be a second program to compile.
    filled, dense_correction = (
        jnp.pad(values.reshape(rows, height, columns * width), ((0, -rows % batch), (0, 0), (0, 0)))
        for values in (weight, dense_correction)
    )
    numbers = first_row + jnp.arange(len(filled), dtype=jnp.int32)
    keys = jax.vmap(lambda row: jax.random.fold_in(rng_key, row))(numbers)
    return jax.lax.map(prune_row, (keys, filled, dense_correction), batch_size=batch)[:rows]


@partial(jax.jit, static_argnames=("sweeps", "row_batch"))
def _prune_layer(rng_key, weight, gram, dense_correction, num_kept, sweeps, row_batch):
    """Pairs of rows share a budget. Each round pairs the rows again; the temperature falls through all rounds."""
    outputs, inputs = weight.shape
    scores = pruning_errors(weight, gram).reshape(outputs, inputs)
    size = min(outputs, 2)
    pairs = outputs // size
    steps = whole_steps(sweeps * inputs * size / ROUNDS)
    cooling = _cooling(jnp.median(scores), steps * ROUNDS)

    def one_round(mask, index):
        order_key, chains_key = jax.random.split(jax.random.fold_in(rng_key, index))
        members = jax.random.permutation(order_key, outputs)[: pairs * size].reshape(pairs, size)

        def prune_pair(args):
            rng_key, members = args
            landscape = heat_bath_rows(weight[members], gram, dense_correction=dense_correction[members])
            return anneal(
                rng_key, landscape, mask[members], lambda step: cooling(step + index * steps), steps
            ).final

        batch = min(max(row_batch // size, 1), pairs)
        found = jax.lax.map(prune_pair, (jax.random.split(chains_key, pairs), members), batch_size=batch)
        return mask.at[members].set(found), None

    return jax.lax.scan(one_round, patterns.highest(scores, scores.size, num_kept), jnp.arange(ROUNDS))[0]


def compact(weight: jax.Array, mask: jax.Array) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Removes the inputs and outputs of a layer that have no kept weight; the smaller layer is exactly equivalent.

    `outputs[kept_outputs] = small @ inputs[kept_inputs]`, biases added as before. Each removed output equals its
    bias.

    Args:
      weight: float `[outputs, inputs]`.
      mask: bool `[outputs, inputs]`, not traced.

    Returns:
      The small weight, float `[kept outputs, kept inputs]`, and the indices of the kept outputs and of the kept
      inputs, int32.

    Raises:
      InputError: a mask that does not fit the weight.

    >>> weight, mask = jnp.array([[1.0, 2.0], [3.0, 4.0]]), jnp.array([[False, True], [False, False]])
    >>> [part.tolist() for part in compact(weight, mask)]
    [[[2.0]], [0], [1]]
    """
    weight = jnp.asarray(as_numbers("weight", weight))
    mask = checked_mask(weight, mask)
    outputs, inputs = (jnp.flatnonzero(mask.any(axis)).astype(jnp.int32) for axis in (1, 0))
    return jnp.where(mask, weight, 0)[outputs][:, inputs], outputs, inputs


def whole_steps(draws: float) -> int:
    """Rounds a number of draws up to whole blocks of steps; part of a block would compile a second program."""
    return BLOCK_STEPS * max(math.ceil(draws / BLOCK_STEPS), 1)


def _cooling(unit: jax.Array, steps: int) -> Callable[[jax.Array], jax.Array]:
    cooling = geometric_schedule(TEMPERATURE_START, TEMPERATURE_END, steps)
    return lambda step: unit * cooling(step)
