"""The tuples that the functions of the landscape pass to each other."""

from typing import NamedTuple

import jax

from sa_jax.landscapes.mlp.layout import Layout
from sa_jax.landscapes.mlp.state import MlpCache, MlpState, Neighbours, Pending
from sa_jax.networks.cnn import Stage
from sa_jax.types import PyTree


class CnnLayout(NamedTuple):
    """The fixed part of a landscape.

    Attributes:
      stages: the convolutions.
      whole: layout of all layers, with kernels as matrices. It finds the ends of a swap and the weights.
      tail: layout of the dense layers alone; its branches are counted in the whole network.
    """

    stages: list[Stage]
    whole: Layout
    tail: Layout

    @property
    def num_stages(self) -> int:
        """Number of convolutions, and the index of the first dense layer in `whole`."""
        return len(self.stages)


class CnnCache(NamedTuple):
    """Values that a refresh computes again from the position.

    Attributes:
      outputs: outputs of each convolution before its activation.
      entering: inputs of each convolution. Those of the first are the inputs of the network, which `commit` does
        not get in any other way.
      features: inputs of the first dense layer, in the order of its kernel's rows.
      dense: cache of the dense layers.
    """

    outputs: tuple[jax.Array, ...]  # float32 [channels, height, width, samples] each
    entering: tuple[jax.Array, ...]  # float32 [channels, height, width, samples] each
    features: jax.Array  # float32 [height, width, channels, samples]
    dense: MlpCache


class CnnState(NamedTuple):
    """A position and all values that depend on it.

    Attributes:
      position: flat mask.
      energy: energy of the position.
      swaps: state of the proposals.
      fan_in: kept branches that enter each dense hidden layer from the third on.
      cache: values that a refresh computes again.
    """

    position: jax.Array  # bool [total]
    energy: jax.Array  # float32 []
    swaps: PyTree
    fan_in: tuple[Neighbours, ...]
    cache: CnnCache

    @property
    def tail(self) -> MlpState:
        """The state as that of the dense layers."""
        return MlpState(self.position, self.energy, self.swaps, self.fan_in, self.cache.dense)

    def with_tail(self, tail: MlpState) -> "CnnState":
        """Returns the state with all that the state of the dense layers holds."""
        return CnnState(*tail[:-1], self.cache._replace(dense=tail.cache))


class CnnPending(NamedTuple):
    """The values computed for a proposal that `commit` reuses.

    Attributes:
      first: index of the first convolution that changes; the number of convolutions if none changes.
      dense: those of the dense layers, with the energy and the logits of the whole network.
    """

    first: jax.Array  # int32 []
    dense: Pending


class Few(NamedTuple):
    """Changed channels of a convolution, one slot for each branch of a swap.

    Attributes:
      active: whether the slot holds a changed channel.
      outputs: outputs of the channel before the activation.
      pooled: outputs after activation and pooling.
      change: change of these, 0 if the slot is not active.
    """

    active: jax.Array  # bool [2]
    outputs: list[jax.Array]  # float32 [1, height, width, block] each
    pooled: list[jax.Array]  # float32 [1, height, width, block] each
    change: list[jax.Array]  # float32 [1, height, width, block] each


class Whole(NamedTuple):
    """All channels of a convolution after a swap.

    Attributes:
      outputs: before the activation.
      pooled: after activation and pooling.
    """

    outputs: jax.Array  # float32 [channels, height, width, block]
    pooled: jax.Array  # float32 [channels, height, width, block]


class Changed(NamedTuple):
    """What a swap changes in one block of samples.

    Attributes:
      convolutions: values of the convolutions from the first that changes on.
      dense: outputs of all dense layers before the activation.
    """

    convolutions: list[Few | Whole]
    dense: list[jax.Array]  # float32 [units, block] each


class Weights(NamedTuple):
    """The weights after a swap that are needed to evaluate it.

    Attributes:
      channels: output channel that each branch of the swap enters, 0 for a branch of a dense layer.
      later: for each layer after the first convolution that changes, by its index. If few channels of it change,
        the taps of the two channels, `[2, taps]`. If the change spreads, the taps and outputs of the two channels,
        `[2, taps, outputs]`. Otherwise the kernel as a matrix, `[rows, outputs]`.
    """

    channels: jax.Array  # int32 [2]
    later: dict[int, jax.Array]
