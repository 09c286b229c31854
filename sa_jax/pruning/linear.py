"""Prunes one linear layer by annealing its squared output error, and refits the kept weights."""

import math
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer
from jax.sharding import AxisType, PartitionSpec

from sa_jax.annealing.chain import BLOCK_STEPS, anneal
from sa_jax.annealing.schedules import geometric_schedule
from sa_jax.checks import number
from sa_jax.landscapes.linear import heat_bath_rows, pruning_errors
from sa_jax.networks import patterns
from sa_jax.networks.patterns import Pattern
from sa_jax.types import InputError

# Temperatures in units of a row's median `w^2 H_jj`, the error that pruning one branch alone makes.
TEMPERATURE_START, TEMPERATURE_END = 0.3, 0.001
# Number of rows annealed together; they fit into a core's cache.
ROW_BATCH = 64
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
        weight, or a Gram matrix of the wrong size, not finite or not symmetric (the last two where it is not
        traced).

    >>> x = jax.random.normal(jax.random.key(0), (100, 8)) @ jax.random.normal(jax.random.key(1), (8, 8))
    >>> weight = jax.random.normal(jax.random.key(2), (4, 8))
    >>> mask = prune_linear(jax.random.key(3), weight, x.T @ x, patterns.NM(2, 4))
    >>> mask.reshape(4, 2, 4).sum(-1).tolist()
    [[2, 2], [2, 2], [2, 2], [2, 2]]
    """
    rule = patterns.rule_of(patterns.of_layer(density))
    check_layer(weight, gram)
    sweeps = number("sweeps", sweeps, above=0)
    shape = weight.shape[0], weight.shape[1]
    rows, columns = rule.blocks(shape)
    weight, gram = jnp.asarray(weight, jnp.float32), jnp.asarray(gram)
    gram = gram if gram.dtype in (jnp.float16, jnp.bfloat16) else gram.astype(jnp.float32)
    dense_correction = _checked_correction(weight, dense_correction)
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
    does all the work where the rows share one budget, and for whole columns or rows.

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
    devices = jax.devices() if devices is None else devices
    pattern = patterns.of_layer(density)
    rule = patterns.rule_of(pattern)
    height = rule.block[0]
    if len(devices) == 1 or rule.whole_layer or not height:
        return prune_linear(rng_key, weight, gram, pattern, sweeps, dense_correction=dense_correction)
    check_layer(weight, gram)
    sweeps = number("sweeps", sweeps, above=0)
    rule.blocks((weight.shape[0], weight.shape[1]))
    outputs = weight.shape[0]
    weight = jnp.asarray(weight, jnp.float32)
    dense_correction = _checked_correction(weight, dense_correction)
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
    keys = jax.vmap(lambda row: jax.random.fold_in(rng_key, row))(first_row + jnp.arange(len(filled)))
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


def damped(gram: jax.Array, damping: float) -> jax.Array:
    """Adds a share of its mean to the diagonal of a Gram matrix, `[inputs, inputs]`, against over-fitting.

    >>> damped(jnp.eye(2), 0.5)
    Array([[1.5, 0. ],
           [0. , 1.5]], dtype=float32)
    """
    return gram + damping * jnp.diag(gram).mean() * jnp.eye(gram.shape[0])


def refit(
    weight: jax.Array,
    gram: jax.Array,
    mask: jax.Array,
    damping: float = 0.01,
    dense_correction: jax.Array | None = None,
) -> jax.Array:
    """Refits the kept weights of a pruned layer to the outputs of the dense layer, by ridge regression.

    In closed form, without the derivative of any loss: of each row, `argmin (v - w)' H (v - w) + d |v - w|^2` over
    all `v` that are 0 where the branch is pruned, with `d` a share of the mean of `H_jj` (Hoerl & Kennard 1970).
    Faster where the mask is not traced: each row then solves only for as many weights as the fullest row keeps.

    Args:
      weight: float `[outputs, inputs]`, of the dense layer.
      gram: float `[inputs, inputs]`.
      mask: bool `[outputs, inputs]`.
      damping: the share, above 0.
      dense_correction: as in `prune_linear`.

    Returns:
      The new weight, float32 `[outputs, inputs]`, 0 where the branch is pruned.

    Raises:
      InputError: a Gram matrix that does not fit the weight, or is none; see `check_layer`.
    """
    check_layer(weight, gram)
    if isinstance(mask, Tracer):
        max_kept_per_row = mask.shape[1]
    else:
        max_kept_per_row = max(int(jnp.asarray(mask).sum(1).max(initial=0)), 1)
    weight = jnp.asarray(weight, jnp.float32)
    dense_correction = jnp.zeros_like(weight) if dense_correction is None else dense_correction
    return _refit(weight, gram, dense_correction, jnp.asarray(mask), damping, max_kept_per_row)


@partial(jax.jit, static_argnames="max_kept_per_row")
def _refit(weight, gram, dense_correction, mask, damping, max_kept_per_row):
    ridge = damped(gram, damping)

    def solve(args):
        weight, dense_correction, mask = args
        removed = gram @ jnp.where(mask, 0.0, weight) - dense_correction
        columns = jnp.argsort(~mask, stable=True)[:max_kept_per_row]
        kept = mask[columns]
        among = jnp.where(kept[:, None] & kept, ridge[columns][:, columns], jnp.eye(max_kept_per_row))
        step = jax.scipy.linalg.solve(among, jnp.where(kept, removed[columns], 0.0), assume_a="pos")
        return jnp.where(mask, weight, 0.0).at[columns].add(jnp.where(kept, step, 0.0))

    return jax.lax.map(solve, (weight, dense_correction, mask))


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

    >>> weight, mask = jnp.array([[1.0, 2.0], [3.0, 4.0]]), jnp.array([[False, True], [False, False]])
    >>> [part.tolist() for part in compact(weight, mask)]
    [[[2.0]], [0], [1]]
    """
    mask = jnp.asarray(mask)
    outputs, inputs = (jnp.flatnonzero(mask.any(axis)).astype(jnp.int32) for axis in (1, 0))
    return jnp.where(mask, weight, 0)[outputs][:, inputs], outputs, inputs


@jax.jit
def layer_error(
    weight: jax.Array,
    gram: jax.Array,
    pruned: jax.Array,
    dense_correction: jax.Array | None = None,
    dense_gram: jax.Array | None = None,
) -> jax.Array:
    """Returns the squared error of a pruned layer's outputs, summed over all outputs and relative to their square.

    With `dense_correction`, the outputs are compared with those that the dense network had, on inputs with the
    Gram matrix `dense_gram`. For each output alone see `relative_error`.

    Args:
      weight: of the dense layer, float `[outputs, inputs]`.
      gram: float `[inputs, inputs]`.
      pruned: the pruned weight, float `[outputs, inputs]`, with zeros.
      dense_correction: as in `prune_linear`.
      dense_gram: float `[inputs, inputs]`, of the dense network's inputs.

    Returns:
      float32 `[]`.

    >>> layer_error(jnp.array([[3.0, 4.0]]), jnp.eye(2), jnp.array([[0.0, 4.0]]))
    Array(0.36, dtype=float32)
    """
    change = pruned - weight
    error, whole = (((values @ gram) * values).sum() for values in (change, weight))
    if dense_correction is not None and dense_gram is not None:
        # The error of the unpruned weight alone is the square of `W (X - D)'`.
        error += 2 * (dense_correction * (change + weight)).sum() - whole
        whole = ((weight @ dense_gram) * weight).sum()
        error = jnp.maximum(error + whole, 0.0)
    return error / jnp.where(whole > 0, whole, 1.0)


def relative_error(weight: jax.Array, gram: jax.Array, pruned: jax.Array) -> jax.Array:
    """Returns each output's squared error, relative to the squared output, of a pruned layer: float `[outputs]`.

    Args:
      weight: of the dense layer, float `[outputs, inputs]`.
      gram: float `[inputs, inputs]`.
      pruned: the pruned weight, float `[outputs, inputs]`, with zeros.

    >>> relative_error(jnp.array([[3.0, 4.0]]), jnp.eye(2), jnp.array([[0.0, 4.0]]))
    Array([0.36], dtype=float32)
    """
    change = pruned - weight
    whole = ((weight @ gram) * weight).sum(1)
    return ((change @ gram) * change).sum(1) / jnp.where(whole > 0, whole, 1.0)


def check_layer(weight: Any, gram: Any) -> None:
    """Refuses a weight and a Gram matrix that do not fit each other, or a matrix that is not a Gram matrix.

    Raises:
      InputError: wrong shapes; or, where it is not traced, not finite, not symmetric, or a negative diagonal.
    """
    if len(np.shape(weight)) != 2:
        raise InputError(f"weight must be [outputs, inputs], not of shape {list(np.shape(weight))}")
    inputs = np.shape(weight)[1]
    if np.shape(gram) != (inputs, inputs):
        raise InputError(f"gram must be [{inputs}, {inputs}] for this weight, not {list(np.shape(gram))}")
    for name, value in (("weight", weight), ("gram", gram)):
        if not isinstance(value, Tracer) and not np.isfinite(np.asarray(value)).all():
            raise InputError(f"{name} has entries that are not finite")
    if isinstance(gram, Tracer):
        return
    gram = np.asarray(gram)
    if np.abs(gram - gram.T).max(initial=0) > 1e-4 * max(np.abs(gram).max(initial=0), 1e-30):
        raise InputError("gram must be symmetric: it is X' X of the layer's inputs X")
    if (np.diag(gram) < 0).any():
        raise InputError("gram has negative entries on its diagonal: it is not X' X of any inputs X")


def _checked_correction(weight: jax.Array, dense_correction: Any) -> jax.Array:
    """The dense correction, zeros where there is none."""
    if dense_correction is None:
        return jnp.zeros_like(weight)
    if np.shape(dense_correction) != np.shape(weight):
        shapes = list(np.shape(weight)), list(np.shape(dense_correction))
        raise InputError(f"dense_correction must be {shapes[0]} like the weight, not {shapes[1]}")
    if not isinstance(dense_correction, Tracer) and not np.isfinite(np.asarray(dense_correction)).all():
        raise InputError("dense_correction has entries that are not finite")
    return dense_correction


def whole_steps(draws: float) -> int:
    """Rounds a number of draws up to whole blocks of steps; part of a block would compile a second program."""
    return BLOCK_STEPS * max(math.ceil(draws / BLOCK_STEPS), 1)


def _cooling(unit: jax.Array, steps: int) -> Callable[[jax.Array], jax.Array]:
    cooling = geometric_schedule(TEMPERATURE_START, TEMPERATURE_END, steps)
    return lambda step: unit * cooling(step)
