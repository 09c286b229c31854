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
# # Anneal anything
#
# [![Open in Colab](https://colab.research.google.com/assets/colab-badge.svg)](https://colab.research.google.com/github/sa-jax/sa_jax/blob/main/colab/03_anneal_anything.ipynb)
#
# `anneal` is a pure function of a key, an energy, a move, a start and a schedule. It works inside `jit` and `vmap`. In
# this notebook it cuts graphs, shortens tours and selects features. On small problems we compare its answers with the
# best of all possible solutions. The notebook takes one or two minutes on a CPU.

# %%
import sys

if "google.colab" in sys.modules:
    # %pip install -q "sa_jax @ git+https://github.com/sa-jax/sa_jax"
    pass

# %%
import jax

print(f"jax {jax.__version__} on {jax.devices()}")

# %%
import itertools
import os

import jax.numpy as jnp
import matplotlib.pyplot as plt
import numpy as np

from sa_jax import anneal, from_energy, geometric_schedule

TINY = bool(os.environ.get("SA_JAX_TINY"))  # makes everything smaller for the tests of the repository
BLUE, ORANGE, GREY = "#0072b2", "#d55e00", "#9aa4ae"
plt.rcParams.update({"axes.spines.top": False, "axes.spines.right": False, "legend.frameon": False})

# %% [markdown]
# ## The largest cut of a graph
#
# Give each node of a graph one of two colors. An edge is cut if its two nodes have different colors. Which colors cut
# the most edges? We write this as a QUBO, a quadratic form `x @ matrix @ x` of zeros and ones, so that the energy is
# minus the number of cut edges. The move changes the color of one node.

# %%
NODES, GRAPHS = (8, 4) if TINY else (18, 32)


def graph(rng_key):
    """Returns random points of the plane, and edges from each point to the three nearest other points."""
    points = jax.random.uniform(rng_key, (NODES, 2))
    distances = jnp.linalg.norm(points[:, None] - points, axis=-1)
    near = distances <= jnp.sort(distances, axis=1)[:, 3:4]
    return points, (near | near.T) & ~jnp.eye(NODES, dtype=bool)


def quadratic(edges):
    return edges - jnp.diag(edges.sum(0))


def energy(x, matrix):
    return x @ matrix @ x


def flip_node(rng_key, x):
    node = jax.random.randint(rng_key, (), 0, x.size)
    return x.at[node].set(1 - x[node])


landscape = from_energy(energy, flip_node)


def largest_cut(rng_key, matrix):
    return anneal(rng_key, landscape, jnp.zeros(NODES), geometric_schedule(2.0, 0.1, 2_000), 2_000, (matrix,))


# %% [markdown]
# We anneal 32 graphs at once: `vmap` over keys and graphs, inside one `jit`. All randomness comes from the keys that we
# pass.

# %%
graph_keys, chain_keys = jax.random.split(jax.random.key(0), (2, GRAPHS))
points, edges = jax.vmap(graph)(graph_keys)
matrices = jax.vmap(quadratic)(edges).astype(jnp.float32)
cuts = jax.jit(jax.vmap(largest_cut))(chain_keys, matrices)

# %% [markdown]
# With 18 nodes there are 131,072 cuts, so we can evaluate all of them:

# %%
every_x = jnp.asarray((np.arange(2 ** (NODES - 1))[:, None] >> np.arange(NODES)) & 1, jnp.float32)


@jax.jit
def energies_of_all(matrix):
    return ((every_x @ matrix) * every_x).sum(1)


least = jnp.array([energies_of_all(matrix).min() for matrix in matrices])
print(f"the largest cut was found on {int((cuts.best_energy == least).sum())} of {GRAPHS} graphs")

# %% [markdown]
# Annealing does not guarantee the optimum. Black edges are cut, dotted grey edges are not:

# %%
figure, row = plt.subplots(1, 4, figsize=(11, 3), layout="constrained")
for number, axes in enumerate(row):
    colors = cuts.best[number] > 0
    for a, b in zip(*np.nonzero(np.triu(edges[number])), strict=True):
        cut = colors[a] != colors[b]
        look = {"color": "black", "lw": 1.2} if cut else {"color": GREY, "lw": 1.2, "ls": ":"}
        axes.plot(*points[number, [a, b]].T, **look, zorder=1)
    axes.scatter(*points[number].T, s=70, c=[ORANGE if color else BLUE for color in colors], zorder=2)
    total = int(edges[number].sum()) // 2
    axes.set_title(f"{-int(cuts.best_energy[number])} of {total} edges cut", loc="center")
    axes.set_axis_off()
plt.show()

# %% [markdown]
# ## Replica exchange
#
# A spin glass is a harder problem of the same form: each pair of spins has its own random coupling. `tempering.temper`
# (replica exchange) runs one chain at each of eight temperatures, which are called rungs. Chains at neighbouring rungs
# exchange their positions. `temper` is a pure function too: here we run it 400 times in one `vmap`. Each rung must then
# sample the Boltzmann distribution of its temperature. For 12 spins we can compute this distribution exactly.

# %%
from sa_jax import tempering

SPINS, REPEATS, TEMPER_STEPS = (6, 8, 200) if TINY else (12, 400, 2_000)
upper = jnp.triu(jax.random.normal(jax.random.key(3), (SPINS, SPINS)), 1) / jnp.sqrt(SPINS)
ladder = jnp.geomspace(0.1, 3.0, 8)


def glass_energy(spins, couplings):
    return -spins @ couplings @ spins


def flip_one(rng_key, spins):
    spin = jax.random.randint(rng_key, (), 0, spins.size)
    return spins.at[spin].multiply(-1)


@jax.jit
@jax.vmap
def tempered(rng_key):
    spin_glass = from_energy(glass_energy, flip_one)
    return tempering.temper(rng_key, spin_glass, jnp.ones(SPINS), ladder, TEMPER_STEPS, (upper,))


replicas = tempered(jax.random.split(jax.random.key(4), REPEATS))
every_spin = 2.0 * ((np.arange(2**SPINS)[:, None] >> np.arange(SPINS)) & 1) - 1
levels = -np.einsum("si,ij,sj->s", every_spin, np.asarray(upper), every_spin)
found = np.isclose(replicas.best_energy, levels.min(), atol=1e-4)
print(f"the ground state was met in {found.sum()} of {REPEATS} repeats")

# %%
temperatures = np.geomspace(0.08, 4, 100)
weights = np.exp(-(levels - levels.min())[:, None] / temperatures)
exact = (weights * levels[:, None]).sum(0) / weights.sum(0)
figure, (left, right) = plt.subplots(1, 2, figsize=(10, 3.2), layout="constrained")
left.plot(temperatures, exact, color=GREY, lw=2, label="exact")
mean, error = replicas.final_energy.mean(0), replicas.final_energy.std(0) / np.sqrt(REPEATS)
left.errorbar(ladder, mean, 2 * error, color=BLUE, fmt="o", ms=5, label="replica exchange, ± 2 standard errors")
left.set(xscale="log", xlabel="temperature", title="mean energy of each rung")
left.legend()
right.bar(np.arange(1, 8), 100 * replicas.exchange_share.mean(0), color=BLUE)
right.set(xlabel="between this rung and the next", title="exchanges accepted, %", ylim=(0, 100))
plt.show()

# %% [markdown]
# ## The shortest tour
#
# A tour is a permutation of cities, and the move reverses a part of the tour. First we take 16 maps of 9 cities. Each
# map has only 40,320 tours that begin at city 0, so we can evaluate all of them:

# %%
MAPS = 2 if TINY else 16


def length(tour, cities):
    return jnp.linalg.norm(cities[tour] - cities[jnp.roll(tour, 1)], axis=1).sum()


def reverse_part(rng_key, tour):
    first, last = jnp.sort(jax.random.randint(rng_key, (2,), 0, tour.size))
    place = jnp.arange(tour.size)
    return tour[jnp.where((first <= place) & (place <= last), first + last - place, place)]


tours = from_energy(length, reverse_part)


def shortest_tour(rng_key, cities):
    start = jnp.arange(len(cities))
    return anneal(rng_key, tours, start, geometric_schedule(0.3, 0.01, 3_000), 3_000, (cities,))


map_key, tour_key = jax.random.split(jax.random.key(5))
maps = jax.random.uniform(map_key, (MAPS, 9, 2))
short = jax.jit(jax.vmap(shortest_tour))(jax.random.split(tour_key, MAPS), maps)

every_tour = jnp.array([(0, *rest) for rest in itertools.permutations(range(1, 9))])
shortest = jax.jit(
    lambda maps: jax.lax.map(lambda cities: jax.vmap(length, (0, None))(every_tour, cities).min(), maps)
)
optimal = np.isclose(short.best_energy, shortest(maps), rtol=1e-5)
print(f"the shortest tour was found on {optimal.sum()} of {MAPS} maps")

# %% [markdown]
# Then we take 80 cities, which have far too many tours to evaluate all. Eight chains begin at the same tour, each with
# its own key. `trace_every` records the energy during the run. The figure shows the first tour, the best tour found,
# and the length in each chain.

# %%
CITIES, TOUR_STEPS = (12, 2_000) if TINY else (80, 60_000)
city_key, tour_key = jax.random.split(jax.random.key(6))
cities = jax.random.uniform(city_key, (CITIES, 2))
schedule = geometric_schedule(0.3, 0.002, TOUR_STEPS)


def long_tour(rng_key):
    return anneal(rng_key, tours, jnp.arange(CITIES), schedule, TOUR_STEPS, (cities,), trace_every=100)


toured = jax.jit(jax.vmap(long_tour))(jax.random.split(tour_key, 8))
winner = toured.best_energy.argmin()

# %%
figure, (before, after, course) = plt.subplots(1, 3, figsize=(11, 3.4), layout="constrained")
for axes, tour, color in ((before, jnp.arange(CITIES), GREY), (after, toured.best[winner], BLUE)):
    axes.plot(
        *cities[jnp.append(tour, tour[0])].T, color=color, lw=1.2, marker="o", ms=4, mfc="black", mec="black"
    )
    axes.set_title(f"length {float(length(tour, cities)):.2f}", loc="center")
    axes.set(aspect="equal")
    axes.set_axis_off()
trace = toured.trace
course.plot(trace.step.T, trace.energy.T, color=BLUE, alpha=0.35, lw=0.8)
course.set(xlabel="proposals", title="length in each of 8 chains", ylim=(0, None))
plt.show()

# %% [markdown]
# ## The best few features
#
# Which 4 of 30 measurements predict best, by least squares, whether a breast tumour is malignant? A position is an
# order of all 30 measurements; the first 4 are the chosen ones. The move exchanges a chosen measurement with one that
# is not chosen, so there are always 4. The energy is the share of the variance that the 4 measurements do not explain,
# on half of the patients.

# %%
from sklearn.datasets import load_breast_cancer

COUNT = 2 if TINY else 4
tumours = load_breast_cancer()
patients = np.random.default_rng(0).permutation(len(tumours.target))
train, test = np.split(patients, [len(patients) // 2])
center, spread = tumours.data[train].mean(0), tumours.data[train].std(0)
inputs = (tumours.data - center) / spread
malignant = np.where(tumours.target == 0, 1.0, -1.0)
target = (malignant - malignant[train].mean()) / malignant[train].std()
gram = jnp.asarray(inputs[train].T @ inputs[train] / len(train), jnp.float32)
moments = jnp.asarray(inputs[train].T @ target[train] / len(train), jnp.float32)


def variance_left(order, gram, moments):
    chosen = order[:COUNT]
    return 1 - moments[chosen] @ jnp.linalg.solve(gram[chosen][:, chosen], moments[chosen])


def swap_features(rng_key, order):
    key_in, key_out = jax.random.split(rng_key)
    first = jax.random.randint(key_in, (), 0, COUNT)
    second = jax.random.randint(key_out, (), COUNT, order.size)
    return order.at[first].set(order[second]).at[second].set(order[first])


subsets = from_energy(variance_left, swap_features)


@jax.jit
@jax.vmap
def best_subset(rng_key):
    start = jnp.arange(30)
    return anneal(rng_key, subsets, start, geometric_schedule(0.05, 1e-4, 2_000), 2_000, (gram, moments))


chosen = best_subset(jax.random.split(jax.random.key(7), 16))
every_subset = jnp.array(list(itertools.combinations(range(30), COUNT)))
all_left = jax.jit(jax.vmap(variance_left, (0, None, None)))(every_subset, gram, moments)
optimal = np.isclose(chosen.best_energy, all_left.min(), atol=1e-5)
best = np.sort(chosen.best[chosen.best_energy.argmin()][:COUNT])
print(f"the best of {len(every_subset):,} subsets was found by {optimal.sum()} of 16 chains:")
print(", ".join(tumours.feature_names[best]))


def test_accuracy(columns):
    weights = np.linalg.lstsq(inputs[train][:, columns], target[train], rcond=None)[0]
    threshold = -malignant[train].mean() / malignant[train].std()
    return ((inputs[test][:, columns] @ weights > threshold) == (malignant[test] > 0)).mean()


print(f"patients not seen before, told right: {test_accuracy(best):.1%}", end="")
print(f"; with all 30 features {test_accuracy(np.arange(30)):.1%}")

# %% [markdown]
# A temperature is a number, so `vmap` can map over temperatures too. Here we run 48 chains at each of 24 constant
# temperatures, each from a random start. The figure shows which share of the chains chooses each feature: at lower
# temperatures the chains agree more. At the lowest temperatures some chains get stuck at other features, because they
# were never warmer. The 16 chains above, which were cooled slowly, all found the best subset.

# %%
heats = jnp.geomspace(0.1, 2e-4, 4 if TINY else 24)


def chosen_at(temperature, rng_key):
    start_key, chain_key = jax.random.split(rng_key)
    start = jax.random.permutation(start_key, 30)
    result = anneal(chain_key, subsets, start, temperature, 1_000, (gram, moments))
    return jnp.zeros(30).at[result.final[:COUNT]].set(1)


keys = jax.random.split(jax.random.key(8), 4 if TINY else 48)
shares = jax.jit(jax.vmap(jax.vmap(chosen_at, (None, 0)), (0, None)))(heats, keys).mean(1)

figure, axes = plt.subplots(figsize=(9, 5.6), layout="constrained")
order = np.argsort(-shares[-1])
image = axes.imshow(shares[:, order].T, cmap="Blues", vmin=0, vmax=1, aspect="auto")
axes.set_yticks(range(30), tumours.feature_names[order], fontsize=8)
for label, feature in zip(axes.get_yticklabels(), order, strict=True):
    label.set(color=ORANGE if feature in best else "black", fontweight="bold" if feature in best else "normal")
some = np.linspace(0, len(heats) - 1, 4).astype(int)
axes.set_xticks(some, [f"{heats[place]:.1g}" for place in some])
axes.set(xlabel="temperature", title="share of chains that choose a feature; orange: the best subset")
figure.colorbar(image, shrink=0.6)
plt.show()

# %% [markdown]
# ## Next steps
#
# - The same key gives the same result, bit for bit. There is no global state.
# - A move that is not symmetric returns `(position, log_q_ratio)`. The acceptance is then still exact.
# - `sa_jax.calibrate` suggests the first and the last temperature.
# - `sa_jax.tempering.population_anneal` cools many chains together.
# - The next notebook, `04_tpu_many_chains`, runs chains on many devices.
