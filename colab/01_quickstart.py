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
# # Watch a network being pruned
#
# [![Open in Colab](https://colab.research.google.com/assets/colab-badge.svg)](https://colab.research.google.com/github/sa-jax/sa_jax/blob/main/colab/01_quickstart.ipynb)
#
# A branch is one weight between two units. Simulated annealing decides which branches of a trained network stay, and
# exactly as many stay as you ask for. The weights do not change. The data are scikit-learn's handwritten digits, so
# nothing is downloaded. The notebook takes one to two minutes on a CPU.

# %%
import sys

if "google.colab" in sys.modules:
    # %pip install -q "sa_jax @ git+https://github.com/sa-jax/sa_jax"
    pass

# %%
import jax

print(f"jax {jax.__version__} on {jax.devices()}")

# %% [markdown]
# ## A trained network
#
# The images have 8 by 8 pixels. The network has two hidden layers of 32 and 16 units, and ten classes. `TINY` makes
# everything smaller for the tests of the repository.

# %%
import os

import jax.numpy as jnp
import matplotlib.pyplot as plt
import numpy as np

from sa_jax import files
from sa_jax.networks.mlp import MLP
from sa_jax.networks.pretrain import pretrain

TINY = bool(os.environ.get("SA_JAX_TINY"))
BLUE, ORANGE, GREY = "#0072b2", "#d55e00", "#9aa4ae"
plt.rcParams.update({"axes.spines.top": False, "axes.spines.right": False, "legend.frameon": False})

digits = files.load_dataset("digits")
model = MLP([32, 16, 10])
params = pretrain(jax.random.key(0), model, *digits.train, epochs=2 if TINY else 60, learning_rate=3e-3)
predicted = model.apply({"params": params}, digits.test.inputs).argmax(-1)
print(f"{100 * (predicted == digits.test.labels).mean():.1f} % of the test images right")

# %%
figure, row = plt.subplots(1, 12, figsize=(10, 1.2), layout="constrained")
for axes, pixels, label in zip(row, digits.test.inputs, predicted, strict=False):
    axes.imshow(pixels.reshape(8, 8), cmap="gray_r")
    axes.set_title(int(label), loc="center")
    axes.set_axis_off()
plt.show()

# %% [markdown]
# ## Prune it
#
# This takes one call. `masks` is nested like the parameters; it is True where a branch stays. For comparison,
# `baselines.prune` keeps the branches with the largest absolute weights.

# %%
from sa_jax import baselines, prune
from sa_jax.networks.mlp import apply

DENSITY, STEPS = 0.1, 1_000 if TINY else 20_000


def accuracy(masks):
    return float((apply(params, masks, digits.test.inputs).argmax(-1) == digits.test.labels).mean())


masks, result = prune(jax.random.key(1), params, *digits.train, density=DENSITY, num_steps=STEPS)
largest, _ = baselines.prune(jax.random.key(1), "magnitude_global", params, *digits.train, density=DENSITY)
print(f"{int(result.best.sum())} of {result.best.size} branches stay")
print(f"annealed:          {100 * accuracy(masks):.1f} % of the test images right")
print(f"largest weights:   {100 * accuracy(largest):.1f} %")

# %% [markdown]
# ## Watch the mask change
#
# What does `prune` do? It makes a landscape from three things: the network, a move (here: prune one branch and bring
# another one back) and an energy (here: the cross-entropy of the labels). A chain walks on this landscape while the
# temperature falls.
#
# Here we do the same by hand, with 16 chains. Each chain starts from a random mask of 136 branches, which are 5 % of
# all. We record the mask of every chain 40 times.

# %%
from sa_jax import geometric_schedule
from sa_jax.annealing.chain import init, run
from sa_jax.landscapes.mlp import masked_mlp
from sa_jax.moves import uniform_swap
from sa_jax.networks.energies import cross_entropy
from sa_jax.networks.masks import flatten, num_kept, random, unflatten
from sa_jax.networks.mlp import network_of

CHAINS, SNAPSHOTS, SNAPSHOT_STEPS = (2, 6, 100) if TINY else (16, 40, 1_000)

names, network = network_of(params)
landscape = masked_mlp(network, uniform_swap(), cross_entropy(logit_scale=4.0))
temperature = geometric_schedule(0.03, 1e-4, SNAPSHOTS * SNAPSHOT_STEPS)
samples = jnp.asarray(digits.train.inputs.T), jnp.asarray(digits.train.labels)


def watch(rng_key):
    start_key, chain_key = jax.random.split(rng_key)

    def until_next_snapshot(state, first_step):
        state, _ = run(chain_key, landscape, state, temperature, first_step, SNAPSHOT_STEPS, samples)
        return state, (state.walk.position, state.walk.energy, state.num_accepted)

    mask = random(start_key, network.total, num_kept(0.05, network.total))
    start = init(landscape, mask, samples)
    return jax.lax.scan(until_next_snapshot, start, SNAPSHOT_STEPS * jnp.arange(SNAPSHOTS))[1]


watch_all = jax.jit(lambda keys: jax.lax.map(watch, keys))
chain_masks, energies, accepted = watch_all(jax.random.split(jax.random.key(2), CHAINS))
counts = sorted(set(chain_masks.sum(-1).ravel().tolist()))
print(f"{CHAINS} chains seen {SNAPSHOTS} times; {counts} branches kept, always")

# %% [markdown]
# The pictures show how many branches leave each pixel, from hot (left) to cold (right). The upper row shows one chain,
# the lower row the mean over all chains. The chains share no information. Even so, they agree more and more: the same
# pixels matter to all of them, and the empty edges of the images do not matter.

# %%
first_layer = chain_masks[:, :, : 64 * 32].reshape(CHAINS, SNAPSHOTS, 8, 8, 32).sum(-1)
shown = np.linspace(0, SNAPSHOTS - 1, min(SNAPSHOTS, 8)).astype(int)
figure, grid = plt.subplots(2, len(shown), figsize=(10, 2.9), layout="constrained")
for column, snapshot in zip(grid.T, shown, strict=True):
    column[0].imshow(first_layer[0, snapshot], cmap="Blues", vmin=0, vmax=6)
    column[1].imshow(first_layer[:, snapshot].mean(0), cmap="Blues", vmin=0, vmax=4)
    column[0].set_title(f"T = {float(temperature((snapshot + 1) * SNAPSHOT_STEPS - 1)):.1g}", loc="center")
    for axes in column:
        axes.set(xticks=[], yticks=[])
grid[0, 0].set_ylabel("one chain")
grid[1, 0].set_ylabel(f"mean of {CHAINS}")
plt.show()

# %% [markdown]
# The next figure shows all chains over time. While the temperature is high, nearly every swap is accepted and the
# network classifies no better than chance. Most of the energy is lost in a narrow range of temperatures. After that,
# fewer and fewer swaps are accepted.

# %%
steps = SNAPSHOT_STEPS * np.arange(1, SNAPSHOTS + 1)
figure, (left, middle, right) = plt.subplots(1, 3, figsize=(10, 2.8), layout="constrained")
left.semilogy(steps, [float(temperature(step - 1)) for step in steps], color=ORANGE)
left.set(title="temperature", xlabel="proposals")
middle.plot(steps, energies.T, color=BLUE, alpha=0.3, lw=1)
middle.set(title="energy of each chain", xlabel="proposals", ylim=(0, None))
rates = np.diff(accepted, axis=1, prepend=0) / SNAPSHOT_STEPS
right.plot(steps, 100 * rates.T, color=BLUE, alpha=0.3, lw=1)
right.set(title="swaps accepted, %", xlabel="proposals", ylim=(0, 100))
plt.show()

# %% [markdown]
# ## How far can it go?
#
# We anneal on the same landscape at many densities. Each chain starts from the largest weights and makes 20,000
# proposals. The number of branches is an argument of the compiled function, so it is compiled only once. The accuracies
# are measured on test images that annealing did not use.

# %%
from sa_jax import anneal
from sa_jax.networks.masks import by_score
from sa_jax.networks.mlp import mask_tree

SWEEP_STEPS = 200 if TINY else 20_000
densities = np.array([0.1, 0.05] if TINY else [0.7, 0.5, 0.3, 0.2, 0.1, 0.05, 0.03, 0.02])
counts = jnp.array([num_kept(density, network.total) for density in densities])
magnitude = jnp.abs(flatten(network.kernels))


def both_ways(count):
    start = by_score(magnitude, count)
    schedule = geometric_schedule(0.01, 1e-4, SWEEP_STEPS)
    return start, anneal(jax.random.key(3), landscape, start, schedule, SWEEP_STEPS, samples).best


def accuracies(flat_masks):
    return [accuracy(mask_tree(names, unflatten(mask, network.shapes))) for mask in flat_masks]


by_magnitude, annealed = map(accuracies, jax.jit(lambda counts: jax.lax.map(both_ways, counts))(counts))
for line in zip(densities, annealed, by_magnitude, strict=True):
    print("{:5.0%} kept   annealed {:5.1%}   largest weights {:5.1%}".format(*line))

# %%
figure, axes = plt.subplots(figsize=(7, 3.6), layout="constrained")
dense = float((predicted == digits.test.labels).mean())
axes.axhline(100 * dense, color=GREY, ls="--", lw=1)
axes.text(100 * densities[0], 100 * dense + 1.5, "all branches", color=GREY)
for values, color, name in ((annealed, BLUE, "annealed"), (by_magnitude, ORANGE, "largest weights")):
    axes.plot(100 * densities, 100 * np.array(values), color=color, marker="o", label=name)
axes.set(xscale="log", xlabel="branches kept, %", ylabel="test images right, %", ylim=(0, 105))
axes.set_xticks(100 * densities, [f"{100 * density:.0f}" for density in densities])
axes.minorticks_off()
axes.invert_xaxis()
axes.legend(loc="lower left")
plt.show()

# %% [markdown]
# If most branches stay, the largest weights are good enough and annealing gains nothing. The fewer branches stay, the
# more their choice matters.
#
# ## Next steps
#
# - In a clone of the repository, `sa-jax run --gin_file=configs/digits.gin --workdir=runs/demo` prunes the same data
#   with several chains, checkpoints and a report.
# - The notebook `02_mnist_prune` compares pruning methods on a larger network. `03_anneal_anything` anneals tours, cuts
#   of graphs and subsets of features.
