"""Landscapes of the output error of a linear layer, whose energy changes are cheap to compute.

Let `W [outputs, inputs]` be a weight with mask `M` and inputs `X [samples, inputs]`. The energy of a row `w` of
`W` is the squared error of its outputs, `r' H r` with `r = M * w - w` and the Gram matrix `H = X' X`. (This is the
quadratic model of LeCun, Denker & Solla 1990 and Hassibi & Stork 1993, by layer as in Dong, Chen & Pan 2017.) The
state holds `g = H r`. The energy change of a swap then takes five look-ups, and accepting the swap takes two rows
of `H`. The landscapes need no labels and no derivatives.
"""

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from sa_jax.checks import native
from sa_jax.moves import SwapProposal
from sa_jax.moves.base import below, kept_list
from sa_jax.types import Landscape


class RowState(NamedTuple):
    """The state of rows with one joint budget of kept branches.

    Attributes:
      position: the mask.
      energy: squared output error.
      fields: half of the energy's derivative with respect to `r`, which is `H r` plus the dense correction.
      swaps: state of the proposals; for `heat_bath_rows`, the list of the kept branches.
    """

    position: jax.Array  # bool [rows, inputs]
    energy: jax.Array  # float32 []
    fields: jax.Array  # float32 [rows, inputs]
    swaps: Any


class HeatBathMove(NamedTuple):
    """A swap drawn by the heat bath.

    Attributes:
      pruned: flat index of the kept branch to prune.
      grown: flat index of the branch to keep in its place; it may be the same branch.
      slot: position of `pruned` in the list of the kept branches.
      energy_change: the energy after the swap minus the energy before it.
    """

    pruned: jax.Array  # int32 []
    grown: jax.Array  # int32 []
    slot: jax.Array  # int32 []
    energy_change: jax.Array  # float32 []


def linear_rows(
    weight: jax.Array, gram: jax.Array, swaps: SwapProposal, dense_correction: jax.Array | float = 0.0
) -> Landscape:
    """Makes the landscape of rows with one joint budget, for any swaps.

    An energy change takes five look-ups. Accepting a swap takes two rows of the Gram matrix.

    Args:
      weight: weights of the rows, float32 `[rows, inputs]`; usually one row.
      gram: `X' X` or a multiple of it, symmetric, float32 `[inputs, inputs]`.
      swaps: the proposals, such as `sa_jax.moves.uniform_swap()`.
      dense_correction: as in `prune_linear`.

    Returns:
      A `Landscape` whose positions are masks, bool `[rows, inputs]`. The energy is the squared output error,
      summed over the samples if `gram` is `X' X`, and their mean if `gram` is a mean over the samples.
    """
    weight, gram = jnp.asarray(weight, jnp.float32), jnp.asarray(native(gram))
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
    """Makes the landscape of rows with one joint budget, with swaps drawn by a heat bath.

    A step draws a kept branch uniformly and prunes it. It then draws one of all pruned branches, this one
    included, by its Boltzmann weight, and keeps that branch (a step of the Gibbs sampler, Geman & Geman 1984). So
    each step compares all swaps of one branch, and no swap is rejected because of its energy. At temperature 0 the
    step takes the swap with the lowest energy. Detailed balance holds exactly: a swap and its reverse choose from
    the same set of masks, and this set is drawn with the same probability in both cases.

    Args:
      weight: weights of the rows, float32 `[rows, inputs]`; usually one row.
      gram: as in `linear_rows`.
      group: size of the groups of adjacent branches within which a swap stays; it divides the number of inputs.
        With None a swap may connect any two branches of the rows.
      dense_correction: as in `prune_linear`.

    Returns:
      A `Landscape` like that of `linear_rows`.
    """
    weight, gram = jnp.asarray(weight, jnp.float32), jnp.asarray(native(gram))
    flat, squares = weight.ravel(), pruning_errors(weight, gram)

    def draw(rng_key):
        return jax.random.bits(rng_key, (3,), jnp.uint32)

    def propose(noise, state, temperature):
        slot = below(noise[0], state.swaps.num_kept)
        pruned = state.swaps.branches[slot]
        first, rises = _rises(state, pruned, flat, squares, gram, group)
        chosen = _by_boltzmann(rises, temperature, noise[1], noise[2])
        change = rises[chosen] - rises[pruned - first]
        # The probabilities of this swap and of its reverse contain the Boltzmann weights already. With this ratio
        # the Metropolis rule accepts every swap.
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
    """Returns the first branch that could replace the pruned one, and the energy rise of each replacement.

    The rises are infinite for the other kept branches.
    """
    size = group or flat.size
    first, places = jnp.int32(0), slice(None)
    if group is None:
        fields = _moved(state.fields, gram, pruned, -flat[pruned]).ravel()
    else:  # Only the fields of one group are needed.
        row, column = divmod(pruned, state.fields.shape[1])
        first = pruned // size * size
        places = first + jnp.arange(size)
        change = flat[pruned] * gram[column, column // size * size + jnp.arange(size)].astype(jnp.float32)
        fields = state.fields[row, column // size * size + jnp.arange(size)] - change
    rises = 2 * flat[places] * fields + squares[places]
    free = ~state.position.ravel()[places] | (jnp.arange(size) == pruned - first)
    return first, jnp.where(free, rises, jnp.inf)


def pruning_errors(weight: jax.Array, gram: jax.Array) -> jax.Array:
    """Returns the squared output error if only one branch is pruned, `w^2 H_jj`, for each branch.

    Args:
      weight: weights of the rows, float32 `[rows, inputs]`.
      gram: Gram matrix, `[inputs, inputs]`.

    Returns:
      Float32 `[rows * inputs]`.
    """
    weight, gram = jnp.asarray(weight, jnp.float32), jnp.asarray(native(gram))
    return (weight * weight * jnp.diag(gram).astype(jnp.float32)[None]).ravel()


def _init(weight, gram, dense_correction, init_swaps: Callable[[jax.Array], Any]):
    dense_correction = jnp.asarray(dense_correction, jnp.float32)

    def init(mask, data):
        del data
        removed = jnp.where(mask, 0.0, -weight)
        fields = removed @ gram.astype(jnp.float32) + dense_correction
        return RowState(mask, (removed * (fields + dense_correction)).sum(), fields, init_swaps(mask))

    return init


def _refresh(init):
    return lambda state, data: init(state.position, data)._replace(swaps=state.swaps)


def _moved(fields, gram, branch, amount):
    """Returns the fields after the entry of `r` of one branch has changed by `amount`."""
    row, column = divmod(branch, fields.shape[1])
    change = amount * gram[column].astype(jnp.float32)
    return fields + change[None] if fields.shape[0] == 1 else fields.at[row].add(change)


def _swapped(mask, pruned, grown, accepted):
    # JAX does not write at an index out of range. If no branch is kept, `pruned` is not the index of a kept
    # branch, so a proposal that is not accepted must not write there. A batch of chains commits such proposals
    # too.
    pruned, grown = (jnp.where(accepted, branch, mask.size) for branch in (pruned, grown))
    return mask.ravel().at[pruned].set(False).at[grown].set(True).reshape(mask.shape)


def _by_boltzmann(energies, temperature, *bits):
    """Draws an index by its Boltzmann weight; at temperature 0, one of those of the lowest energy.

    A draw among many indices has two stages: first a part, then an index within this part.
    """
    lowest, size = energies.min(), energies.size
    hot = jnp.exp((lowest - energies) / jnp.where(temperature > 0, temperature, 1.0))
    weights = jnp.where(temperature > 0, hot, (energies == lowest).astype(hot.dtype))
    width = 1 << round(math.log2(size) / 2) if size > 64 else size
    stage = jnp.pad(weights, (0, -size % width)).reshape(-1, width)
    part = _by_weight(stage.sum(1), bits[0])
    return part * width + _by_weight(stage[part], bits[1])


def _by_weight(weights, bits):
    upto = jnp.cumsum(weights)
    uniform = (bits >> 8).astype(jnp.float32) * 2.0**-24
    # Rounding must not move the target to the last sum, because the indices at the end may have no weight.
    target = jnp.minimum(uniform * upto[-1], jnp.nextafter(upto[-1], jnp.zeros_like(upto[-1])))
    return (upto <= target).sum(dtype=jnp.int32)
