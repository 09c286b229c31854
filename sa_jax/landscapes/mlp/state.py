"""The tuples that travel from one function of the landscape to the next."""

from typing import Any, NamedTuple

import jax

from sa_jax.types import PyTree


class Neighbours(NamedTuple):
    """The kept branches that enter each unit of a layer.

    Attributes:
      units: units at their other end, the first `count` of each row, int16 or int32 `[outputs, inputs]`.
      count: int32 `[outputs]`.
    """

    units: jax.Array  # int32 [outputs, inputs]
    count: jax.Array  # int32 [outputs]


class Weighted(NamedTuple):
    """A mask and the weights of all branches, kept or not: bool and float32 `[total]`."""

    mask: jax.Array  # bool [total]
    weights: jax.Array  # float32 [total]


class MlpCache(NamedTuple):
    """What a refresh makes again from the position, so that a checkpoint leaves it out.

    Attributes:
      outputs: per layer, its outputs before the activation, float32 `[units, samples]`; last, the logits.
      scratch: changes of activations of the hidden layers but the first, float32 `[units + 1, samples]`, where
        there are at least three; between proposals, nothing that matters.
      notes: the branches swapped since the position was last remembered as the best, int32 `[notes, 2]`.
      num_notes: their number, int32 `[]`; more than there is room for where some are missing.
    """

    outputs: tuple[jax.Array, ...]  # float32 [units, samples]
    scratch: tuple[jax.Array, ...]  # float32 [units + 1, samples]
    notes: jax.Array  # int32 [notes, 2]
    num_notes: jax.Array  # int32 []


class MlpState(NamedTuple):
    """A mask and everything that depends on it.

    Attributes:
      position: flat mask, bool `[total]`, or `Weighted`.
      energy: float32 `[]`.
      swaps: state of the proposals, such as the index lists of kept and pruned branches.
      fan_in: of each kernel between two hidden layers but the first such.
      cache: what a refresh makes again.
    """

    position: PyTree
    energy: jax.Array  # float32 []
    swaps: PyTree
    fan_in: tuple[Neighbours, ...]
    cache: MlpCache

    def with_cache(self, **fields: Any) -> "MlpState":
        """Returns the state with some fields of its cache replaced."""
        return self._replace(cache=self.cache._replace(**fields))


class Ends(NamedTuple):
    """The two branches of a swap seen from one layer, the pruned one first.

    Attributes:
      here: whether the branch lies in this layer and changes, bool `[2]`.
      unit_in: the unit it leaves, int32 `[2]`; 0 where the branch lies in another layer.
      unit_out: the unit it enters, likewise.
    """

    here: jax.Array  # bool [2]
    unit_in: jax.Array  # int32 [2]
    unit_out: jax.Array  # int32 [2]


class Changes(NamedTuple):
    """What a swap changes before anything is carried to a later layer.

    Attributes:
      at_ends: what each of the two branches adds to the unit at its end, float32 `[2, samples]`.
      first: changes of the activations of the first layer's units where they end, float32 `[2, samples]`; 0 where
        a branch lies in another layer, and the second is 0 where both end in one unit.
      leaving: weights after the swap of the branches by which these changes go on, float32 `[2, units]`.
    """

    at_ends: jax.Array  # float32 [2, samples]
    first: jax.Array  # float32 [2, samples]
    leaving: jax.Array  # float32 [2, units]


class Block(NamedTuple):
    """One block of samples.

    Attributes:
      start: first sample, int32 `[]`.
      size: number of samples.
    """

    start: jax.Array | int  # int32 []
    size: int


class Pending(NamedTuple):
    """A proposal's consequences, up to its acceptance.

    Attributes:
      energy: float32 `[]`.
      changes: see `Changes`.
      changed: which units of the hidden layers from the second on may change, bool `[units]` each.
      logits: float32 `[classes, samples]`.
      scratch: see `MlpCache`.
    """

    energy: jax.Array  # float32 []
    changes: Changes
    changed: tuple[jax.Array, ...]  # bool [units]
    logits: jax.Array  # float32 [classes, samples]
    scratch: tuple[jax.Array, ...]  # float32 [units + 1, samples]
