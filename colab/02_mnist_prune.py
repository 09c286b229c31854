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
# # Compare pruning methods on MNIST
#
# [![Open in Colab](https://colab.research.google.com/assets/colab-badge.svg)](https://colab.research.google.com/github/sa-jax/sa_jax/blob/main/colab/02_mnist_prune.ipynb)
#
# The network is LeNet-300-100: layers of 784, 300, 100 and 10 units. It is trained once. Then six methods choose which
# 10, 3 and 1 % of its 266,200 branches (single weights) stay. No method changes the weights. The notebook calls the
# functions behind the command `sa-jax compare`, which also write a report. It takes two to four minutes on two CPU
# cores.

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
# MNIST is downloaded once and verified by SHA-256, unless the folder `$SA_JAX_DATA` already has it. `TINY` is for the
# tests of the repository: it uses scikit-learn's digits and a small network instead.

# %%
import os

import matplotlib.pyplot as plt
import numpy as np

from sa_jax import files

TINY = bool(os.environ.get("SA_JAX_TINY"))
BLUE, ORANGE, GREEN, GREY = "#0072b2", "#d55e00", "#009e73", "#9aa4ae"
plt.rcParams.update({"axes.spines.top": False, "axes.spines.right": False, "legend.frameon": False})

NAME, MEAN, STD = ("digits", 0.0, 1.0) if TINY else ("mnist", 0.1307, 0.3081)
dataset = files.load_dataset(NAME, MEAN, STD)
print({split: getattr(dataset, split).inputs.shape for split in ("train", "validation", "test")})

figure, row = plt.subplots(1, 12, figsize=(10, 1), layout="constrained")
for axes, pixels in zip(row, dataset.train.inputs, strict=False):
    axes.imshow(pixels.reshape(dataset.image_shape), cmap="gray_r")
    axes.set_axis_off()
plt.show()

# %% [markdown]
# ## What is compared
#
# - The largest weights, Wanda and SNIP give each branch one score, without regard to the other branches.
# - Edge-popup trains a score for each branch by back-propagation, here on the same energy as annealing. It is the
#   strongest other method that does not change the weights. It makes three passes over the 50,000 training images.
# - Score search moves scores without back-propagation: it moves the output of one unit at a time and observes the loss.
# - Annealing is measured twice: after score search, as in every run by default, and alone, from the largest weights.
#   Neither takes a derivative.
#
# All methods prune the same trained network to the same number of branches. All are measured on the same 10,000 test
# images, which no method uses.

# %%
from sa_jax.commands.compare.settings import CompareConfig
from sa_jax.commands.run.settings import RunConfig

config = CompareConfig(
    methods=[
        "magnitude_global",
        "wanda_global",
        "snip",
        "edge_popup_momentum",
        "score_search",
        "anneal",
        "anneal_alone",
    ],
    densities=[0.1, 0.03, 0.01],
    seeds=[0],
    datasets={NAME: [MEAN, STD]},
    hidden=[[300, 100]],
    annealers={"anneal": {}, "anneal_alone": {"start": "magnitude"}},
    run=RunConfig(num_chains=1, budget=200_000_000, pretrain_epochs=5, pretrain_learning_rate=1e-3),
    epochs=3,
)
if TINY:
    from dataclasses import replace

    config = replace(
        config,
        methods=["magnitude_global", "anneal"],
        densities=[0.1],
        hidden=[[16]],
        annealers={"anneal": {"num_samples": 100, "num_steps": 200, "score_steps": 100}},
        run=RunConfig(num_chains=1, pretrain_epochs=2),
    )

# %% [markdown]
# ## Measure
#
# One cell of the comparison is one method at one density. There is one worker process per CPU core, and each process
# uses one thread, so that CPU seconds can be compared. The worker processes use the CPU even if there is a GPU or TPU,
# because the notebook itself holds that device. Finished cells are saved. If you interrupt the code below, run it
# again: it continues with the cells that are left.

# %%
import tempfile
from pathlib import Path

from sa_jax.commands.compare.host import compare

os.environ["JAX_PLATFORMS"] = "cpu"  # for the worker processes
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
# Lower is better. The grey methods score each branch on its own.

# %%
from sa_jax.reports.comparison import display_name

colors = {"anneal": BLUE, "anneal_alone": GREEN, "edge_popup_momentum": ORANGE}
dense = next(row["test_accuracy"] for row in rows if row["method"] == "dense")
figure, axes = plt.subplots(figsize=(8.5, 4), layout="constrained")
axes.axhline(100 - 100 * dense, color=GREY, ls="--", lw=1)
axes.text(100 * config.densities[-1], 100 - 100 * dense, "all branches", color=GREY, ha="right", va="bottom")
for method, style in zip(config.methods, ("-", "--", ":", "-", "-.", "-", "-"), strict=False):
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
# These remarks are about the saved figures. The grey methods lose most of the accuracy at low densities. The methods that
# search for a whole mask lose little. Edge-popup is as good at 10 % and takes less time. At 3 and 1 % score search and
# annealing are best, without a derivative. Annealing alone is far behind: on a network of this size it would need far more
# proposals.
#
# ## Which pixels the pruned networks use
#
# The pictures show how many branches leave each pixel at the lowest density. Methods that score each branch on its own
# put the branches on few pixels. Methods that search for a whole mask spread them.

# %%
from sa_jax.networks.masks import unflatten
from sa_jax.networks.mlp import network_of

least = [cell for cell in config.cells() if cell.density == min(config.densities) and cell.method != "dense"]
_, network = network_of(files.load(FOLDER / "networks" / f"{least[0].network_name}.npz"))
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
# The report has the tables. It tells which differences are larger than chance on these test images, and whether
# annealing was worth its time. There is only one seed, so the report says nothing about other trained networks.

# %%
print((FOLDER / "results.md").read_text())

# %%
import html


class Page:
    """Shows an HTML page in a frame."""

    def __init__(self, path):
        self.path = path

    def _repr_html_(self):
        page = html.escape(self.path.read_text())
        return f'<div><iframe srcdoc="{page}" width="100%" height="700" style="border: 0"></iframe></div>'


Page(FOLDER / "report.html")

# %% [markdown]
# ## Next steps
#
# In a clone of the repository:
#
# - `sa-jax compare --gin_file=configs/compare_lenet300.gin --workdir=runs/compare` compares with three seeds, on MNIST
#   and Fashion-MNIST. It takes hours.
# - `sa-jax run --gin_file=configs/lenet300_mnist.gin --workdir=runs/lenet300` anneals for longer.
# - `sa-jax export runs/lenet300 --format=c --out=lenet300_c` then writes the pruned network as C code.
