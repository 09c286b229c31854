# ---
# jupyter:
#   jupytext:
#     formats: ipynb,py:percent
#   kernelspec:
#     display_name: Python 3
#     language: python
#     name: python3
# ---

# %% [markdown]
# # Many chains on many devices
#
# [![Open in Colab](https://colab.research.google.com/assets/colab-badge.svg)](https://colab.research.google.com/github/sa-jax/sa_jax/blob/main/colab/04_tpu_many_chains.ipynb)
#
# Chains do not depend on each other, so they can run on all cores of a TPU or on several GPUs. If there is no TPU or
# GPU, this notebook uses 8 devices that JAX simulates on the CPU. It takes two to three minutes on a CPU.

# %%
import sys

if "google.colab" in sys.modules:
    # %pip install -q "sa_jax @ git+https://github.com/sa-jax/sa_jax"
    pass

# %% [markdown]
# The number of simulated CPU devices must be set before JAX is first used. It has no effect on a TPU or GPU.

# %%
import jax

jax.config.update("jax_num_cpu_devices", 8)
DEVICES = jax.devices()
ON_CPU = DEVICES[0].platform == "cpu"
print(f"jax {jax.__version__} on {len(DEVICES)} x {DEVICES[0].device_kind}")

# %% [markdown]
# ## One chain
#
# A small network is trained once on scikit-learn's digits. A chain chooses which 5 % of its branches (single weights)
# stay. `TINY` makes everything smaller for the tests of the repository.

# %%
import os

import jax.numpy as jnp
import matplotlib.pyplot as plt
import numpy as np

from sa_jax import anneal, files, geometric_schedule
from sa_jax.landscapes.mlp import masked_mlp
from sa_jax.moves import uniform_swap
from sa_jax.networks.energies import cross_entropy
from sa_jax.networks.masks import num_kept, overlap, random
from sa_jax.networks.mlp import MLP, network_of
from sa_jax.networks.pretrain import pretrain

TINY = bool(os.environ.get("SA_JAX_TINY"))
BLUE, ORANGE, GREY = "#0072b2", "#d55e00", "#9aa4ae"
plt.rcParams.update({"axes.spines.top": False, "axes.spines.right": False, "legend.frameon": False})

digits = files.load_dataset("digits")
params = pretrain(jax.random.key(0), MLP([32, 10]), *digits.train, epochs=2 if TINY else 30, learning_rate=3e-3)
_, network = network_of(params)
landscape = masked_mlp(network, uniform_swap(), cross_entropy(logit_scale=4.0))
samples = jnp.asarray(digits.train.inputs.T), jnp.asarray(digits.train.labels)


def chain(rng_key, num_steps):
    start_key, chain_key = jax.random.split(rng_key)
    start = random(start_key, network.total, num_kept(0.05, network.total))
    return anneal(chain_key, landscape, start, geometric_schedule(0.02, 2e-4, num_steps), num_steps, samples)


# %% [markdown]
# ## All devices
#
# `shard_map` gives each device an equal share of the keys. On a TPU or GPU, all chains of a device run at once, by
# `vmap`. On a CPU they run one after the other, because the arrays of one chain fit into the cache. No device waits for
# another.

# %%
from functools import partial

from jax.sharding import AxisType
from jax.sharding import PartitionSpec as P


def spread(devices, num_steps):
    """Returns a function of keys `[chains]` that runs one chain for each key, spread over the devices."""
    one_chain = partial(chain, num_steps=num_steps)
    chains_of_device = (lambda keys: jax.lax.map(one_chain, keys)) if ON_CPU else jax.vmap(one_chain)
    mesh = jax.make_mesh((len(devices),), ("chains",), axis_types=(AxisType.Auto,), devices=devices)
    return jax.jit(jax.shard_map(chains_of_device, mesh=mesh, in_specs=P("chains"), out_specs=P("chains")))


CHAINS = len(DEVICES) if TINY else 64 if ON_CPU else 1024
STEPS = 200 if TINY else 10_000
keys = jax.random.split(jax.random.key(1), CHAINS)
result = jax.device_get(spread(DEVICES, STEPS)(keys))
print(
    f"{CHAINS} chains, {CHAINS // len(DEVICES)} on each device; energies {result.best_energy.min():.3f}", end=" "
)
print(f"to {result.best_energy.max():.3f}")

# %% [markdown]
# The result of a chain depends only on its key. If we run the first chain alone, on one device, it ends at the same
# mask:

# %%
alone = jax.device_get(spread(DEVICES[:1], STEPS)(keys[:1]))
print(f"{(alone.best[0] == result.best[0]).mean():.0%} of its branches are decided alike")

# %% [markdown]
# ## What many chains give
#
# - Left: the energies at which the chains end.
# - Middle: the expected best energy if we run a given number of chains.
# - Right: the mean number of branches that leave each pixel.
#
# The chains end at different masks, but these masks use the same pixels.

# %%
energies = np.sort(result.best_energy)
counts = np.unique(np.geomspace(1, CHAINS, 20).astype(int))
draws = np.random.default_rng(0).choice(energies, (2_000, CHAINS))
expected = [draws[:, :count].min(1).mean() for count in counts]
figure, (left, middle, right) = plt.subplots(
    1, 3, figsize=(11, 3.2), layout="constrained", width_ratios=(1.2, 1.2, 1)
)
left.hist(energies, bins=16, color=BLUE)
left.set(title="energies at which chains end", xlabel="energy", ylabel="chains")
middle.plot(counts, expected, color=BLUE, marker="o", ms=4)
middle.set(title="best energy of so many chains", xlabel="chains", xscale="log")
middle.xaxis.set_major_formatter("{x:.0f}")
pixels = result.best[:, : 64 * 32].reshape(-1, 8, 8, 32).sum(-1).mean(0)
image = right.imshow(pixels, cmap="Blues", vmin=0)
right.set(title="branches from each pixel", xticks=[], yticks=[])
figure.colorbar(image, shrink=0.8)
plt.show()

similarity = overlap(result.best)
print(f"Jaccard index of two chains' masks {similarity.jaccard_mean:.2f}", end="")
print(f"; of two random masks {similarity.jaccard_of_random:.2f}")

# %% [markdown]
# ## Throughput
#
# We measure the proposals per second of all chains together, for several numbers of chains, on one device and on all
# devices. Each figure is the best of five rounds. The time to compile is not counted.

# %%
import time

ROUND_STEPS = STEPS if TINY else 1_000


def proposals_per_second(devices, chains):
    keys = jax.random.split(jax.random.key(2), chains)
    run = spread(devices, ROUND_STEPS).lower(keys).compile()
    seconds = []
    for _ in range(5):
        start = time.perf_counter()
        jax.block_until_ready(run(keys))
        seconds.append(time.perf_counter() - start)
    return chains * ROUND_STEPS / min(seconds)


LARGEST = 1 if TINY else 8 if ON_CPU else 512  # maximal number of chains on each device
rates = {}
for devices, name in ((DEVICES[:1], "one device"), (DEVICES, f"all {len(DEVICES)} devices")):
    sizes = [len(devices) * per_device for per_device in (1, 2, 4, 8, 32, 128, 512) if per_device <= LARGEST]
    rates[name] = {size: proposals_per_second(devices, size) for size in sizes}
    for size, rate in rates[name].items():
        print(f"{name:14} {size:5} chains  {rate:12,.0f} proposals/s")
    if len(DEVICES) == 1:
        break

# %%
figure, axes = plt.subplots(figsize=(7, 3.6), layout="constrained")
for (name, curve), color in zip(rates.items(), (ORANGE, BLUE), strict=False):
    axes.plot(list(curve), [rate / 1e3 for rate in curve.values()], color=color, marker="o", label=name)
axes.set(xscale="log", xlabel="chains", ylabel="thousand proposals per second", ylim=(0, None))
axes.set_xticks(sorted({size for curve in rates.values() for size in curve}))
axes.set_xticks([], minor=True)
axes.xaxis.set_major_formatter("{x:.0f}")
axes.legend()
plt.show()

# %% [markdown]
# The saved figures were measured on a CPU, so they do not tell how a TPU or GPU scales. Simulated devices are threads:
# here, eight threads share two cores and keep them busier than one device does. Two things are the same on a TPU: the
# program, and the result of each chain, which does not depend on the number of devices.

# %%
print(f"{os.cpu_count()} CPU cores")

# %% [markdown]
# ## Next steps
#
# - `sa-jax run` spreads chains in the same way, saves checkpoints, and can run on many hosts. For 64 chains, add
#   `--set NUM_CHAINS=64`.
# - Chains can also help each other: `sa_jax.tempering.temper(..., axis_name="chains")` exchanges replicas between
#   devices.
