"""The problems of `sa-jax bench`: which are measured, and how each is made from fixed seeds.

Inputs are like those of MNIST, weights are He-scaled, and labels are the dense network's answers. The first mask
keeps the largest weights of the whole network, and so a larger share of the later layers.
"""

import functools
import itertools
import math
from typing import NamedTuple

import jax.numpy as jnp
import numpy as np

from sa_jax.networks import masks, mlp
from sa_jax.networks.mlp import Network

# Scale of the logits in the cross-entropy.
LOGIT_SCALE = 4.0
NETWORKS = ((784, 40, 20, 10), (784, 300, 100, 10), (784, 1000, 1000, 10), (784, 512, 512, 512, 512, 512, 10))
WIDTHS, WIDTHS_FAN_OUT = (300, 1000, 3000), 15


class Case(NamedTuple):
    """A case to measure; `fan_out` above 0 means a random mask with so many kept branches per unit."""

    sizes: tuple[int, ...]
    density: float
    samples: int
    chains: int = 1
    cores: int = 1
    fan_out: int = 0
    naive: bool = False


class Synthetic(NamedTuple):
    """A network, its mask, bool `[total]`, inputs, float32 `[features, samples]`, and labels, int32."""

    network: Network
    mask: np.ndarray  # bool [total]
    inputs: np.ndarray  # float32 [features, samples]
    labels: np.ndarray  # int32 [samples]


def cases(quick: bool) -> list[Case]:
    """Returns the cases to measure."""
    if quick:
        single = [Case(sizes, 0.05, 2_000, naive=True) for sizes in NETWORKS]
        many = [Case(NETWORKS[0], 0.05, 2_000, chains, cores) for chains, cores in ((2, 1), (2, 2), (64, 1))]
        return single + many
    single = [
        # Full evaluation of 60,000 samples takes seconds: once per network is enough.
        Case(sizes, density, samples, naive=samples <= 10_000 or density == 0.05)
        for sizes in NETWORKS
        for density in (0.5, 0.05, 0.02)
        for samples in (1_000, 2_000, 10_000, 60_000)
    ]
    widths = [Case((784, width, width, 10), 0.0, 2_000, fan_out=WIDTHS_FAN_OUT, naive=True) for width in WIDTHS]
    many = [
        Case(sizes, 0.05, 2_000, chains, cores)
        for sizes in NETWORKS[:2]
        for chains, cores in ((2, 1), (2, 2), (8, 1), (8, 2), (64, 1), (64, 2))
    ]
    many += [Case(sizes, 0.05, 2_000, 2, cores) for sizes in NETWORKS[2:] for cores in (1, 2)]
    return single + widths + many


@functools.lru_cache(maxsize=1)
def synthesize(sizes: tuple[int, ...], density: float, samples: int, fan_out: int = 0) -> Synthetic:
    """Makes a problem from fixed seeds; with another number of samples, all samples differ.

    A fifth of the pixels are nonzero before they are standardised like MNIST. A tenth of the labels are random.
    With `fan_out`, each input and each unit of all layers but the last keeps so many branches, chosen at random.
    """
    random = np.random.default_rng(0)
    kernels = tuple(
        random.normal(0, math.sqrt(2 / inputs), (inputs, outputs)).astype(np.float32)
        for inputs, outputs in itertools.pairwise(sizes)
    )
    network = Network(kernels, (None,) * len(kernels))  # type: ignore[arg-type]
    pixels = random.random((sizes[0], samples), np.float32)
    pixels *= random.random((sizes[0], samples), np.float32) < 0.2
    inputs = (pixels - np.float32(0.1307)) / np.float32(0.3081)
    logits = np.asarray(mlp.forward(network, jnp.asarray(inputs.T)))
    noisy = random.random(samples) < 0.1
    labels = np.where(noisy, random.integers(0, sizes[-1], samples), logits.argmax(1)).astype(np.int32)
    if fan_out:
        layers = [random.random(kernel.shape).argsort(1).argsort(1) < fan_out for kernel in kernels]
        mask = np.concatenate([np.ravel(layer) for layer in layers])
    else:
        weights = jnp.abs(masks.flatten(network.kernels))
        mask = np.asarray(masks.by_score(weights, masks.num_kept(density, network.total)))
    return Synthetic(network, mask, inputs, labels)
