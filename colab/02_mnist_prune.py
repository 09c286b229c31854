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
# # Prune LeNet-300-100 on MNIST, and compare
#
# [![Open in Colab](https://colab.research.google.com/assets/colab-badge.svg)](https://colab.research.google.com/github/sa-jax/sa_jax/blob/main/colab/02_mnist_prune.ipynb)
#
# A network 784-300-100-10 is trained once. Then six methods each choose which 10, 3 and 1 % of its 266,200 branches stay,
# its weights untouched. Everything is done by the functions behind the command `sa-jax compare`, which then writes a
# report. Two to four minutes on two CPU cores.

# %%
import sys

if "google.colab" in sys.modules:
    # %pip install -q "sa_jax @ git+https://github.com/sa-jax/sa_jax"
    pass

# %%
import jax

print(f"jax {jax.__version__} on {jax.devices()}")

# %% [markdown]
# ## The data
#
# MNIST is looked for in `$SA_JAX_DATA`, else downloaded once and checked by SHA-256. `TINY`, for the repository's tests,
# takes scikit-learn's digits in its place, and a small network.

# %%
import os

import matplotlib.pyplot as plt
import numpy as np

from sa_jax.files import datasets

TINY = bool(os.environ.get("SA_JAX_TINY"))
BLUE, ORANGE, GREEN, GREY = "#0072b2", "#d55e00", "#009e73", "#9aa4ae"
plt.rcParams.update({"axes.spines.top": False, "axes.spines.right": False, "legend.frameon": False})

NAME, MEAN, STD = ("digits", 0.0, 1.0) if TINY else ("mnist", 0.1307, 0.3081)
dataset = datasets.load_dataset(NAME, MEAN, STD)
print({split: getattr(dataset, split).inputs.shape for split in ("train", "validation", "test")})

figure, row = plt.subplots(1, 12, figsize=(10, 1), layout="constrained")
for axes, pixels in zip(row, dataset.train.inputs, strict=False):
    axes.imshow(pixels.reshape(dataset.image_shape), cmap="gray_r")
    axes.set_axis_off()
plt.show()

# %% [markdown]
# ## What is compared
#
# - The largest weights, Wanda and SNIP score each branch once, alone.
# - Edge-popup trains a score for each branch by back-propagation, here on annealing's own energy. It is the strongest rival
#   that leaves the weights as they are. It gets three passes over the 50,000 training images.
# - Annealing, once with swaps that need no derivative of anything, once with informed swaps, which take the derivative of
#   the energy with respect to the mask.
#
# All get the same trained network and the same number of branches, and are measured on the same 10,000 test images, which
# none of them saw. Both ways to anneal make 50,000 proposals, each weighed on 4,000 images: of 4,000, 10,000 and 20,000 images
# at as many proposals times images, those did best on the validation images, on average over 10 and 1 % kept.

# %%
from sa_jax.commands.compare.grid import CompareConfig
from sa_jax.commands.run.settings import RunConfig

config = CompareConfig(
    methods=["magnitude_global", "wanda_global", "snip", "edge_popup_scaled", "anneal", "anneal_informed"],
    densities=[0.1, 0.03, 0.01],
    seeds=[0],
    datasets={NAME: [MEAN, STD]},
    hidden=[[300, 100]],
    annealers={"anneal": {}, "anneal_informed": {"move": "informed"}},
    run=RunConfig(
        num_chains=1, num_samples=4_000, num_steps=50_000, pretrain_epochs=5, pretrain_learning_rate=1e-3
    ),
    epochs=3,
)
if TINY:
    from dataclasses import replace

    config = replace(
        config,
        methods=["magnitude_global", "anneal"],
        densities=[0.1],
        hidden=[[16]],
        annealers={"anneal": {"num_samples": 100, "num_steps": 200}},
        run=RunConfig(num_chains=1, pretrain_epochs=2),
    )

# %% [markdown]
# ## Measure
#
# Each cell of the comparison is measured by one of as many processes as there are cores, on one thread, so that CPU
# seconds can be compared. They are to use the CPU, also where there is a GPU or TPU, which this process holds. A cell that
# is done is kept: where you stop this cell, it goes on the next time.

# %%
import tempfile
from pathlib import Path

from sa_jax.commands.compare.host import compare

os.environ["JAX_PLATFORMS"] = "cpu"  # of the processes to be started
FOLDER = Path(tempfile.mkdtemp() if TINY else "runs/mnist_prune")


def show(progress):
    print(f"\r{progress.done} of {progress.total} measured", end="", flush=True)


jobs = 1 if TINY else os.cpu_count()
rows = compare(config, FOLDER, jobs, command="jupyter execute 02_mnist_prune.ipynb", on_progress=show)
print()
for row in rows:
    print("{method:18} {density:4.0%} kept {test_accuracy:6.1%} right {cpu_seconds:4.0f} CPU s".format(**row))

# %% [markdown]
# ## Accuracy against density
#
# Lower is better. Grey is what looks at each branch alone.

# %%
from sa_jax.reports.comparison import display_name

colors = {"anneal": BLUE, "anneal_informed": GREEN, "edge_popup_scaled": ORANGE}
dense = next(row["test_accuracy"] for row in rows if row["method"] == "dense")
figure, axes = plt.subplots(figsize=(8.5, 4), layout="constrained")
axes.axhline(100 - 100 * dense, color=GREY, ls="--", lw=1)
axes.text(100 * config.densities[-1], 100 - 100 * dense, "all branches", color=GREY, ha="right", va="bottom")
for method, style in zip(config.methods, ("-", "--", ":", "-", "-", "-"), strict=False):
    wrong = [100 - 100 * row["test_accuracy"] for row in rows if row["method"] == method]
    color = colors.get(method, GREY)
    axes.plot(100 * np.array(config.densities), wrong, style, color=color, marker="o", label=display_name(method))
axes.set(xscale="log", yscale="log", xlabel="branches kept, %", ylabel="test images wrong, %")
axes.set_yticks([2, 5, 10, 20, 50, 100], [2, 5, 10, 20, 50, 100])
axes.set_xticks(100 * np.array(config.densities), [f"{100 * density:.0f}" for density in config.densities])
axes.minorticks_off()
axes.invert_xaxis()
figure.legend(loc="outside right upper")
plt.show()

# %% [markdown]
# In the saved figures all three that look at whole masks lose little where the others lose most. Edge-popup does best at
# 10 and 3 %, and in less time; at 1 % annealing with informed swaps does. Annealing without derivatives is behind both,
# by at most 2.5 points, and needs nothing but the energies of masks.
#
# ## What the pruned networks still look at
#
# How many branches leave each pixel when fewest stay. What scores branches one by one puts them on few pixels; what
# searches for a whole mask spreads them.

# %%
from sa_jax.networks.masks import unflatten
from sa_jax.networks.mlp import load_weights, network_of

least = [cell for cell in config.cells() if cell.density == min(config.densities) and cell.method != "dense"]
_, network = network_of(load_weights(FOLDER / "networks" / f"{least[0].network_name}.npz"))
figure, panels = plt.subplots(1, len(least), figsize=(12, 2.6), layout="constrained")
for axes, cell in zip(panels, least, strict=True):
    saved = np.load(FOLDER / "cells" / f"{cell.name}.npz")["mask"]
    mask = np.unpackbits(saved, count=network.total).astype(bool)
    pixels = np.asarray(unflatten(mask, network.shapes)[0]).sum(1)
    axes.imshow(pixels.reshape(dataset.image_shape), cmap="magma", vmax=np.quantile(pixels, 0.995))
    axes.set_title(f"{display_name(cell.method)}\n{(pixels > 0).sum()} pixels", loc="center", fontsize=10)
    axes.set_axis_off()
plt.show()

# %% [markdown]
# ## The report
#
# The tables, which of the differences are more than chance on these test images, and whether annealing was worth it. One
# seed: how another network would fare is not told.

# %%
print((FOLDER / "results.md").read_text())

# %%
import html


class Page:
    """An HTML page in a frame of its own."""

    def __init__(self, path):
        self.path = path

    def _repr_html_(self):
        page = html.escape(self.path.read_text())
        return f'<div><iframe srcdoc="{page}" width="100%" height="700" style="border: 0"></iframe></div>'


Page(FOLDER / "report.html")

# %% [markdown]
# ## Go on
#
# - `sa-jax compare --gin_file=configs/compare_lenet300.gin --workdir=runs/compare` in a clone of the repository takes five
#   seeds, both MNIST and Fashion-MNIST, and hours.
# - `sa-jax run --gin_file=configs/lenet300_mnist.gin --workdir=runs/lenet300` anneals for longer, and
#   `sa-jax export runs/lenet300 --format=c --out=lenet300_c` writes what is left as C.
