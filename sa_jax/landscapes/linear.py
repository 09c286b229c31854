"""The landscapes of a linear layer's output error, row by row: what a swap changes is known at once.

Of a weight `W [outputs, inputs]` with mask `M` and inputs `X [samples, inputs]`, the energy of a row is the
squared error of its outputs, `r' H r` with `r = M * w - w` and the Gram matrix `H = X' X` (the quadratic model of
LeCun, Denker & Solla 1990 and Hassibi & Stork 1993, by layer as in Dong, Chen & Pan 2017). With `g = H r` at hand,
a swap's energy change takes five look-ups, and accepting it two rows of `H`. No label or derivative is needed.
"""

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from sa_jax.moves import SwapProposal
from sa_jax.moves.base import below, kept_list
from sa_jax.types import Landscape


class RowState(NamedTuple):
    """Rows with one budget, between two steps.

    Attributes:
      position: the mask, bool `[rows, inputs]`.
      energy: squared output error, float32 `[]`.
      fields: half the energy's slope in `r`, `H r` and what is inherited, float32 `[rows, inputs]`.
      swaps: what draws the branches.
    """

    position: jax.Array  # bool [rows, inputs]
    energy: jax.Array  # float32 []
    fields: jax.Array  # float32 [rows, inputs]
    swaps: Any


class HeatBathMove(NamedTuple):
    """A branch taken out and put back where the heat bath says.

    Attributes:
      pruned: flat index of the kept branch, int32 `[]`.
      grown: flat index of the one kept in its place, maybe the same, int32 `[]`.
      slot: where the first stands in the order, int32 `[]`.
      energy_change: float32 `[]`.
    """

    pruned: jax.Array  # int32 []
    grown: jax.Array  # int32 []
    slot: jax.Array  # int32 []
    energy_change: jax.Array  # float32 []


def linear_rows(
    weight: jax.Array, gram: jax.Array, swaps: SwapProposal, dense_correction: jax.Array | float = 0.0
) -> Landscape:
    """The landscape of rows with one budget, walked by any swaps.

    An energy change takes five look-ups, accepting a swap two rows of the Gram matrix.

    Args:
      weight: float32 `[rows, inputs]`, usually of one row.
      gram: `X' X` or any multiple of it, symmetric, float32 `[inputs, inputs]`.
      swaps: such as `moves.uniform_swap()`.
      dense_correction: as `prune_linear` takes it.

    Returns:
      A `Landscape` of masks, bool `[rows, inputs]`; energies in units of the squared output, times samples unless
      `gram` is a mean.
    """
    inputs, flat, squares = weight.shape[1], weight.ravel(), pruning_errors(weight, gram)

    def propose(noise, state, temperature):
        del temperature
        return swaps.propose(noise, state.swaps, state.position.ravel())

    def delta(state, swap, data):
        del data
        (row, column), (other_row, other_column) = (divmod(branch, inputs) for branch in (swap.pruned, swap.grown))
        fields, w, other_w = state.fields, flat[swap.pruned], flat[swap.grown]
        change = squares[swap.pruned] - 2 * w * fields[row, column]
        change += squares[swap.grown] + 2 * other_w * fields[other_row, other_column]
        joint = 2 * w * other_w * gram[column, other_column].astype(jnp.float32)
        joint = jnp.where(row == other_row, joint, 0.0)
        return jnp.where(swap.changes_mask, change - joint, 0.0), None

    def commit(state, swap, pending, accepted):
        del pending
        change, _ = delta(state, swap, ())
        fields = _moved(state.fields, gram, swap.pruned, jnp.where(accepted, -flat[swap.pruned], 0.0))
        fields = _moved(fields, gram, swap.grown, jnp.where(accepted, flat[swap.grown], 0.0))
        mask = _swapped(state.position, swap.pruned, swap.grown, accepted)
        energy = state.energy + jnp.where(accepted, change, 0.0)
        return RowState(mask, energy, fields, swaps.commit(state.swaps, swap, accepted))

    init = _init(weight, gram, dense_correction, lambda mask: swaps.init(mask.ravel()))
    return Landscape(init, swaps.draw, propose, delta, commit, _refresh(init))


def heat_bath_rows(
    weight: jax.Array, gram: jax.Array, group: int | None = None, dense_correction: jax.Array | float = 0.0
) -> Landscape:
    """The landscape of rows with one budget, walked by a heat bath.

    A kept branch is drawn uniformly and taken out; of all places where it could be put back, its own included, one
    is drawn by its Boltzmann weight (Geman & Geman 1984, a Gibbs sampler's step), so that each step weighs all the
    swaps of a branch and none is rejected for its energy. At temperature 0 it takes the best. Detailed balance
    holds exactly: a place and its alternatives have the same chance to be in question from either side.

    Args:
      weight: float32 `[rows, inputs]`, usually of one row.
      gram: as `linear_rows` takes it.
      group: branches side by side that a branch may move within, dividing the inputs; None for all of the rows.
      dense_correction: as `prune_linear` takes it.

    Returns:
      A `Landscape` as that of `linear_rows`.
    """
    flat, squares = weight.ravel(), pruning_errors(weight, gram)

    def draw(rng_key):
        return jax.random.bits(rng_key, (3,), jnp.uint32)

    def propose(noise, state, temperature):
        slot = below(noise[0], state.swaps.num_kept)
        pruned = state.swaps.branches[slot]
        first, rises = _rises(state, pruned, flat, squares, gram, group)
        chosen = _by_boltzmann(rises, temperature, noise[1], noise[2])
        change = rises[chosen] - rises[pruned - first]
        # Its chance, and that of its reverse, hold the Boltzmann weights already.
        log_q_ratio = jnp.where(temperature > 0, change / jnp.where(temperature > 0, temperature, 1.0), 0.0)
        stays = (chosen + first == pruned) | (state.swaps.num_kept == 0)
        move = HeatBathMove(pruned, chosen + first, slot, change)
        return move, jnp.where(stays, -jnp.inf, log_q_ratio)

    def delta(state, move, data):
        del state, data
        return move.energy_change, None

    def commit(state, move, pending, accepted):
        del pending
        fields = _moved(state.fields, gram, move.pruned, -flat[move.pruned])
        fields = _moved(fields, gram, move.grown, flat[move.grown])
        kept = state.swaps.replaced(move.slot, jnp.where(accepted, move.grown, move.pruned))
        return RowState(
            _swapped(state.position, move.pruned, move.grown, accepted),
            state.energy + jnp.where(accepted, move.energy_change, 0.0),
            jnp.where(accepted, fields, state.fields),
            kept,
        )

    init = _init(weight, gram, dense_correction, lambda mask: kept_list(mask.ravel()))
    return Landscape(init, draw, propose, delta, commit, _refresh(init))


def _rises(state, pruned, flat, squares, gram, group):
    """The first place where a branch that is taken out could be put back, and by how much each raises the energy.

    Infinite where another kept branch stands.
    """
    size = group or flat.size
    first, places = jnp.int32(0), slice(None)
    if group is None:
        fields = _moved(state.fields, gram, pruned, -flat[pruned]).ravel()
    else:  # the fields of one group are enough
        row, column = divmod(pruned, state.fields.shape[1])
        first = pruned // size * size
        places = first + jnp.arange(size)
        change = flat[pruned] * gram[column, column // size * size + jnp.arange(size)].astype(jnp.float32)
        fields = state.fields[row, column // size * size + jnp.arange(size)] - change
    rises = 2 * flat[places] * fields + squares[places]
    free = ~state.position.ravel()[places] | (jnp.arange(size) == pruned - first)
    return first, jnp.where(free, rises, jnp.inf)


def pruning_errors(weight: jax.Array, gram: jax.Array) -> jax.Array:
    """The squared error that pruning a branch alone makes, `w^2 H_jj`.

    Args:
      weight: float32 `[rows, inputs]`.
      gram: `[inputs, inputs]`.

    Returns:
      Float32 `[rows * inputs]`.
    """
    return (weight * weight * jnp.diag(gram).astype(jnp.float32)).ravel()


def _init(weight, gram, dense_correction, init_swaps: Callable[[jax.Array], Any]):
    def init(mask, data):
        del data
        removed = jnp.where(mask, 0.0, -weight)
        fields = removed @ gram.astype(jnp.float32) + dense_correction
        return RowState(mask, (removed * (fields + dense_correction)).sum(), fields, init_swaps(mask))

    return init


def _refresh(init):
    return lambda state, data: init(state.position, data)._replace(swaps=state.swaps)


def _moved(fields, gram, branch, amount):
    """The fields after one branch's error changes by an amount."""
    row, column = divmod(branch, fields.shape[1])
    change = amount * gram[column].astype(jnp.float32)
    return fields + change if fields.shape[0] == 1 else fields.at[row].add(change)


def _swapped(mask, pruned, grown, accepted):
    # An index out of range is not written. Where nothing is kept, `pruned` is not a kept branch, and a proposal
    # that is not accepted must not write it: a batch of chains commits such proposals too.
    pruned, grown = (jnp.where(accepted, branch, mask.size) for branch in (pruned, grown))
    return mask.ravel().at[pruned].set(False).at[grown].set(True).reshape(mask.shape)


def _by_boltzmann(energies, temperature, *bits):
    """Draws an index by its Boltzmann weight, in two stages where there are many; at 0 the first of the lowest."""
    lowest, size = energies.min(), energies.size
    hot = jnp.exp((lowest - energies) / jnp.where(temperature > 0, temperature, 1.0))
    weights = jnp.where(temperature > 0, hot, energies == lowest)
    width = 1 << round(math.log2(size) / 2) if size > 64 else size
    stage = jnp.pad(weights, (0, -size % width)).reshape(-1, width)
    part = _by_weight(stage.sum(1), bits[0])
    return part * width + _by_weight(stage[part], bits[1])


def _by_weight(weights, bits):
    upto = jnp.cumsum(weights)
    uniform = (bits >> 8).astype(jnp.float32) * 2.0**-24
    # Rounding must not reach the end, where a place of no weight may stand.
    target = jnp.minimum(uniform * upto[-1], jnp.nextafter(upto[-1], jnp.zeros_like(upto[-1])))
    return (upto <= target).sum(dtype=jnp.int32)
