"""The masks of one linear layer by annealing its rows on its output error, and the weights refitted to them."""

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
from sa_jax.landscapes.linear import heat_bath_rows, pruning_errors
from sa_jax.networks import patterns
from sa_jax.networks.patterns import Pattern
from sa_jax.types import InputError, is_number

# Temperatures in units of a row's median `w^2 H_jj`, the error that pruning one branch alone makes.
TEMPERATURE_START, TEMPERATURE_END = 0.3, 0.001
# Rows annealed together, which fit into a core's cache.
ROW_BATCH = 64
# Rounds in which the rows of a layer with one budget are paired anew.
ROUNDS = 16


def prune_linear(
    rng_key: jax.Array,
    weight: jax.Array,
    gram: jax.Array,
    pattern: Pattern | str | float = 0.5,
    sweeps: float = 2.0,
    row_batch: int = ROW_BATCH,
    dense_correction: jax.Array | None = None,
    first_row: jax.Array | int = 0,
) -> jax.Array:
    """Chooses which weights of a linear layer stay, by annealing the squared error of its outputs.

    Pure: works inside `jit`, with `pattern`, `sweeps` and `row_batch` static, and on rows sharded over devices.
    Each row begins at the largest `|w| * norm(input)` (Wanda; Sun et al. 2024) and is a chain of its own, walked
    by `heat_bath_rows`. Under a density of the whole layer, rows are paired at random, each pair with one budget,
    and paired anew in every round. Of blocks and columns the energy is a quadratic form again, of one variable
    each. Whole rows (outputs) add up independently: the best ones are taken, exactly.

    Args:
      rng_key: a key, `[]`.
      weight: float `[outputs, inputs]`, transposed against a Flax kernel.
      gram: `X' X` or any multiple of it, float `[inputs, inputs]`; float16 and bfloat16 stay so.
      pattern: see `patterns.parse`.
      sweeps: draws for each row over its inputs, or blocks; each draw weighs all places a branch could move to.
      row_batch: rows annealed together; changes no bit of what each does but for rounding.
      dense_correction: `W (X - D)' X`, float `[outputs, inputs]`, in the units of `gram`, where the inputs `X` come from
        pruned layers and `D` are those of the dense network: the layer is then to give what `W` gave on `D`, and
        so makes up for what it inherits. See `inputs.dense_correction`.
      first_row: number of the first row, or row of blocks, where `weight` is a part of a layer: each draws by its
        number, so that parts are pruned as the whole would be. Without effect on a density of the whole layer.

    Returns:
      The mask, bool `[outputs, inputs]`.

    Raises:
      InputError: a pattern that is none or does not fit, or a Gram matrix of the wrong size, not finite or not
        symmetric (the last two where it is not traced).

    >>> x = jax.random.normal(jax.random.key(0), (100, 8)) @ jax.random.normal(jax.random.key(1), (8, 8))
    >>> weight = jax.random.normal(jax.random.key(2), (4, 8))
    >>> mask = prune_linear(jax.random.key(3), weight, x.T @ x, "2:4")
    >>> mask.reshape(4, 2, 4).sum(-1).tolist()
    [[2, 2], [2, 2], [2, 2], [2, 2]]
    """
    pattern = patterns.parse(pattern)
    check_layer(weight, gram)
    if not is_number(sweeps) or not sweeps > 0:
        raise InputError(f"sweeps must be a number above 0, not {sweeps!r}")
    shape = weight.shape[0], weight.shape[1]
    rows, columns = pattern.units(shape)
    weight, gram = jnp.asarray(weight, jnp.float32), jnp.asarray(gram)
    gram = gram if gram.dtype in (jnp.float16, jnp.bfloat16) else gram.astype(jnp.float32)
    if dense_correction is None:
        dense_correction = jnp.zeros_like(weight)
    else:
        _check_inherited(weight, dense_correction)
    if columns == 1:  # whole rows
        energies = jnp.einsum("oi,oi->o", weight, weight @ gram.astype(jnp.float32) - 2 * dense_correction)
        return patterns.of_weights(pattern, patterns.best(pattern, energies[:, None]), shape)
    # How many stay is data: layers of one shape take one program whatever their densities.
    kept = jnp.int32(pattern.kept_of(pattern.set_size((rows, columns))))
    if pattern.whole_layer:
        return _prune_layer(rng_key, weight, gram, dense_correction, kept, sweeps, row_batch)
    block = shape[0] // rows, shape[1] // columns
    batch = min(row_batch, rows)
    units = _prune_rows(
        rng_key, weight, gram, dense_correction, kept, first_row, block, pattern.group, sweeps, batch
    )
    return patterns.of_weights(pattern, units, shape)


def prune_linear_sharded(
    rng_key: jax.Array,
    weight: jax.Array,
    gram: jax.Array,
    pattern: Pattern | str | float = 0.5,
    sweeps: float = 2.0,
    dense_correction: jax.Array | None = None,
    devices: Sequence[Any] | None = None,
) -> jax.Array:
    """Prunes as `prune_linear` does, with the rows spread over devices that exchange nothing.

    The mask is the same but for rounding. Each device holds the Gram matrix and its share of the rows. A density
    of the whole layer, and whole columns or rows, are left to one device.

    Args:
      rng_key: as in `prune_linear`, like all the others but
      weight: float `[outputs, inputs]`.
      gram: float `[inputs, inputs]`.
      pattern: see `patterns.parse`.
      sweeps: draws for each row over its inputs.
      dense_correction: float `[outputs, inputs]`, or None.
      devices: those to use; None for all.

    Returns:
      The mask, bool `[outputs, inputs]`.
    """
    devices = jax.devices() if devices is None else devices
    pattern = patterns.parse(pattern)
    height = pattern.block[0]
    if len(devices) == 1 or pattern.whole_layer or not height:
        return prune_linear(rng_key, weight, gram, pattern, sweeps, dense_correction=dense_correction)
    check_layer(weight, gram)
    pattern.units((weight.shape[0], weight.shape[1]))
    outputs = weight.shape[0]
    weight = jnp.asarray(weight, jnp.float32)
    if dense_correction is None:
        dense_correction = jnp.zeros_like(weight)
    else:
        _check_inherited(weight, dense_correction)
    # Rows of zeros, so that every device has as many.
    filling = ((0, -outputs % (height * len(devices))), (0, 0))
    weight, dense_correction = (jnp.pad(values, filling) for values in (weight, dense_correction))
    mesh = jax.make_mesh((len(devices),), ("rows",), axis_types=(AxisType.Auto,), devices=devices)
    return _prune_sharded(rng_key, weight, gram, dense_correction, mesh, pattern, sweeps)[:outputs]


@partial(jax.jit, static_argnames=("mesh", "pattern", "sweeps"))
def _prune_sharded(rng_key, weight, gram, dense_correction, mesh, pattern, sweeps):
    mine, everyones = PartitionSpec("rows"), PartitionSpec()

    def prune_mine(rng_key, weight, gram, dense_correction):
        first = jax.lax.axis_index("rows") * (len(weight) // pattern.block[0])
        return prune_linear(
            rng_key, weight, gram, pattern, sweeps, dense_correction=dense_correction, first_row=first
        )

    specs = (everyones, mine, everyones, mine)
    return jax.shard_map(prune_mine, mesh=mesh, in_specs=specs, out_specs=mine)(
        rng_key, weight, gram, dense_correction
    )


@partial(jax.jit, static_argnames=("block", "group", "sweeps", "batch"))
def _prune_rows(rng_key, weight, gram, dense_correction, kept, first_row, block, group, sweeps, batch):
    """The mask of units, bool `[rows, columns]`, of which each row or group keeps so many."""
    height, width = block
    rows, columns = weight.shape[0] // height, weight.shape[1] // width

    def prune_row(args):
        rng_key, weight, dense_correction = args
        form, quadratic = weight, gram
        if (height, width) != (1, 1):
            # Pruning units a and b together costs Q_aa + Q_bb + 2 Q_ab: a row of ones with Q for its Gram matrix.
            quadratic = gram.astype(jnp.float32) * (weight.T @ weight)
            quadratic = quadratic.reshape(columns, width, columns, width).sum((1, 3))
            form = jnp.ones((1, columns), jnp.float32)
            dense_correction = (weight * dense_correction).reshape(height, columns, width).sum((0, 2))[None]
        scores = pruning_errors(form, quadratic).reshape(1, columns)
        steps, unit = whole_steps(sweeps * columns), jnp.median(scores)
        start = patterns.highest(scores, group or columns, kept)
        landscape = heat_bath_rows(form, quadratic, group, dense_correction)
        return anneal(rng_key, landscape, start, _cooling(unit, steps), steps).best[0]

    # Rows of zeros fill the last batch, which would else be a second program to compile.
    filled, dense_correction = (
        jnp.pad(values.reshape(rows, height, columns * width), ((0, -rows % batch), (0, 0), (0, 0)))
        for values in (weight, dense_correction)
    )
    keys = jax.vmap(lambda row: jax.random.fold_in(rng_key, row))(first_row + jnp.arange(len(filled)))
    return jax.lax.map(prune_row, (keys, filled, dense_correction), batch_size=batch)[:rows]


@partial(jax.jit, static_argnames=("sweeps", "row_batch"))
def _prune_layer(rng_key, weight, gram, dense_correction, kept, sweeps, row_batch):
    """Pairs of rows share a budget; the pairs change with every round, and the temperature falls through all."""
    outputs, inputs = weight.shape
    scores = pruning_errors(weight, gram).reshape(outputs, inputs)
    size = min(outputs, 2)
    pairs = outputs // size
    steps = whole_steps(sweeps * inputs * size / ROUNDS)
    cooling = _cooling(jnp.median(scores), steps * ROUNDS)

    def one_round(mask, number):
        order_key, chains_key = jax.random.split(jax.random.fold_in(rng_key, number))
        members = jax.random.permutation(order_key, outputs)[: pairs * size].reshape(pairs, size)

        def prune_pair(args):
            rng_key, members = args
            landscape = heat_bath_rows(weight[members], gram, dense_correction=dense_correction[members])
            return anneal(
                rng_key, landscape, mask[members], lambda step: cooling(step + number * steps), steps
            ).final

        batch = min(max(row_batch // size, 1), pairs)
        found = jax.lax.map(prune_pair, (jax.random.split(chains_key, pairs), members), batch_size=batch)
        return mask.at[members].set(found), None

    return jax.lax.scan(one_round, patterns.highest(scores, scores.size, kept), jnp.arange(ROUNDS))[0]


def damped(gram: jax.Array, damping: float) -> jax.Array:
    """A Gram matrix, `[inputs, inputs]`, with a share of its mean diagonal added to it, against over-fitting.

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
    """Moves the kept weights to where the layer's outputs are nearest to those before, by ridge regression.

    In closed form, no derivative of any loss: of each row, `argmin (v - w)' H (v - w) + d |v - w|^2` over all `v`
    that are 0 where the mask is, with `d` a share of the mean of `H_jj` (Hoerl & Kennard 1970). Faster where the
    mask is not traced, as only what the fullest row keeps is solved for.

    Args:
      weight: float `[outputs, inputs]`.
      gram: float `[inputs, inputs]`.
      mask: bool `[outputs, inputs]`.
      damping: the share, above 0.
      dense_correction: as `prune_linear` takes it.

    Returns:
      float32 `[outputs, inputs]`, 0 where the mask is.
    """
    check_layer(weight, gram)
    most = mask.shape[1] if isinstance(mask, Tracer) else max(int(jnp.asarray(mask).sum(1).max(initial=0)), 1)
    weight = jnp.asarray(weight, jnp.float32)
    dense_correction = jnp.zeros_like(weight) if dense_correction is None else dense_correction
    return _refit(weight, gram, dense_correction, jnp.asarray(mask), damping, most)


@partial(jax.jit, static_argnames="most")
def _refit(weight, gram, dense_correction, mask, damping, most):
    ridge = damped(gram, damping)

    def solve(args):
        weight, dense_correction, mask = args
        removed = gram @ jnp.where(mask, 0.0, weight) - dense_correction
        columns = jnp.argsort(~mask, stable=True)[:most]
        kept = mask[columns]
        among = jnp.where(kept[:, None] & kept, ridge[columns][:, columns], jnp.eye(most))
        step = jax.scipy.linalg.solve(among, jnp.where(kept, removed[columns], 0.0), assume_a="pos")
        return jnp.where(mask, weight, 0.0).at[columns].add(jnp.where(kept, step, 0.0))

    return jax.lax.map(solve, (weight, dense_correction, mask))


def compact(weight: jax.Array, mask: jax.Array) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Removes inputs and outputs of which nothing stays, exactly: what is left computes the same with fewer.

    `outputs[kept_outputs] = small @ inputs[kept_inputs]`, biases added as before; other outputs are their biases.

    Args:
      weight: float `[outputs, inputs]`.
      mask: bool `[outputs, inputs]`, not traced.

    Returns:
      The small weight, float `[kept outputs, kept inputs]`; and which outputs and inputs those are, int32 each.

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
    """Squared error of a pruned layer's outputs together, over their square: float `[]`; see `relative_error`.

    Where `dense_correction` is what `prune_linear` takes, the outputs are those that the dense network had, on inputs
    with the Gram matrix `dense_gram`.

    >>> layer_error(jnp.array([[3.0, 4.0]]), jnp.eye(2), jnp.array([[0.0, 4.0]]))
    Array(0.36, dtype=float32)
    """
    change = pruned - weight
    error, whole = (((values @ gram) * values).sum() for values in (change, weight))
    if dense_correction is not None and dense_gram is not None:
        # What is inherited alone is the square of `W (X - D)'`.
        error += 2 * (dense_correction * (change + weight)).sum() - whole
        whole = ((weight @ dense_gram) * weight).sum()
        error = jnp.maximum(error + whole, 0.0)
    return error / jnp.where(whole > 0, whole, 1.0)


def relative_error(weight: jax.Array, gram: jax.Array, pruned: jax.Array) -> jax.Array:
    """Squared error of each output of a pruned layer, over the squared output: float `[outputs]`.

    Args:
      weight: before, float `[outputs, inputs]`.
      gram: float `[inputs, inputs]`.
      pruned: after, float `[outputs, inputs]`, with zeros.

    >>> relative_error(jnp.array([[3.0, 4.0]]), jnp.eye(2), jnp.array([[0.0, 4.0]]))
    Array([0.36], dtype=float32)
    """
    change = pruned - weight
    whole = ((weight @ gram) * weight).sum(1)
    return ((change @ gram) * change).sum(1) / jnp.where(whole > 0, whole, 1.0)


def check_layer(weight: Any, gram: Any) -> None:
    """Refuses a weight and a Gram matrix that do not belong together, or of which the latter is none.

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
        raise InputError("gram has negative entries on its diagonal: it is no X' X")


def _check_inherited(weight: Any, dense_correction: Any) -> None:
    if np.shape(dense_correction) != np.shape(weight):
        shapes = list(np.shape(weight)), list(np.shape(dense_correction))
        raise InputError(f"inherited must be {shapes[0]} like the weight, not {shapes[1]}")
    if not isinstance(dense_correction, Tracer) and not np.isfinite(np.asarray(dense_correction)).all():
        raise InputError("inherited has entries that are not finite")


def whole_steps(draws: float) -> int:
    """Whole blocks: a part of one would be a second program to compile."""
    return BLOCK_STEPS * max(math.ceil(draws / BLOCK_STEPS), 1)


def _cooling(unit: jax.Array, steps: int) -> Callable[[jax.Array], jax.Array]:
    cooling = geometric_schedule(TEMPERATURE_START, TEMPERATURE_END, steps)
    return lambda step: unit * cooling(step)
