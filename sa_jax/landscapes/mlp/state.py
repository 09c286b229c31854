"""The tuples that the functions of the landscape pass to each other."""

from typing import Any, NamedTuple

import jax

from sa_jax.types import PyTree


class Neighbours(NamedTuple):
    """The kept branches that enter each unit of a layer.

    Attributes:
      units: units of the previous layer from which the branches come. Only the first `count` of each row are
        valid.
      count: number of kept branches that enter each unit.
    """

    units: jax.Array  # int16 or int32 [outputs, inputs]
    count: jax.Array  # int32 [outputs]


class Weighted(NamedTuple):
    """A position that holds weights: a mask, and the weights of all branches, kept and pruned."""

    mask: jax.Array  # bool [total]
    weights: jax.Array  # float32 [total]


class MlpCache(NamedTuple):
    """Values that a refresh computes again from the position; checkpoints do not contain them.

    Attributes:
      outputs: outputs of each layer before the activation; the last entry holds the logits.
      scratch: changes of activations, for each hidden layer except the first. It is empty if there are fewer than
        three hidden layers. Between two proposals its values are not used.
      notes: pruned and grown branch of each swap since the position was last saved as the best.
      num_notes: number of these swaps. It is greater than the length of `notes` if notes are missing.
    """

    outputs: tuple[jax.Array, ...]  # float32 [units, samples] each
    scratch: tuple[jax.Array, ...]  # float32 [units + 1, samples] each
    notes: jax.Array  # int32 [notes, 2]
    num_notes: jax.Array  # int32 []


class MlpState(NamedTuple):
    """A position and all values that depend on it.

    Attributes:
      position: flat mask, or `Weighted`.
      energy: energy of the position.
      swaps: state of the proposals, such as the index lists of kept and pruned branches.
      fan_in: kept branches that enter each hidden layer from the third on.
      cache: values that a refresh computes again.
    """

    position: PyTree  # bool [total], or Weighted
    energy: jax.Array  # float32 []
    swaps: PyTree
    fan_in: tuple[Neighbours, ...]
    cache: MlpCache

    def with_cache(self, **fields: Any) -> "MlpState":
        """Returns the state with some fields of its cache replaced."""
        return self._replace(cache=self.cache._replace(**fields))


class Ends(NamedTuple):
    """The units that the two branches of a swap connect, for one layer; the pruned branch comes first.

    Attributes:
      here: whether the branch lies in this layer and changes.
      unit_in: the unit that the branch leaves; 0 if the branch lies in another layer.
      unit_out: the unit that the branch enters; 0 if the branch lies in another layer.
    """

    here: jax.Array  # bool [2]
    unit_in: jax.Array  # int32 [2]
    unit_out: jax.Array  # int32 [2]


class Changes(NamedTuple):
    """The changes that a swap causes directly, before they reach a later layer.

    Attributes:
      at_ends: change that each of the two branches causes in the output of the unit that it enters.
      first: changes of the activations of the first layer's units that the branches enter. A row is 0 if its
        branch lies in another layer. If both branches enter the same unit, the first row holds its change and the
        second row is 0.
      leaving: weights after the swap of the branches that lead from these units to the second layer.
    """

    at_ends: jax.Array  # float32 [2, samples]
    first: jax.Array  # float32 [2, samples]
    leaving: jax.Array  # float32 [2, units]


class Block(NamedTuple):
    """One block of samples.

    Attributes:
      start: index of the first sample.
      size: number of samples.
    """

    start: jax.Array | int  # int32 []
    size: int


class Pending(NamedTuple):
    """The values computed for a proposal that `commit` reuses.

    Attributes:
      energy: energy after the proposal.
      changes: see `Changes`.
      changed: which units may change, for each hidden layer from the second on.
      logits: logits after the proposal.
      scratch: see `MlpCache`.
    """

    energy: jax.Array  # float32 []
    changes: Changes
    changed: tuple[jax.Array, ...]  # bool [units] each
    logits: jax.Array  # float32 [classes, samples]
    scratch: tuple[jax.Array, ...]  # float32 [units + 1, samples] each
