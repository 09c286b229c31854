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
# # Bring your own model
#
# [![Open in Colab](https://colab.research.google.com/assets/colab-badge.svg)](https://colab.research.google.com/github/sa-jax/sa_jax/blob/main/colab/07_bring_your_own_model.ipynb)
#
# You have a trained, fully connected network in a PyTorch file and your data in a CSV file. This notebook makes a
# pruned PyTorch file of it, and a C program for a device. It takes two minutes on a CPU.

# %%
import sys

if "google.colab" in sys.modules:
    # %pip install -q "sa_jax @ git+https://github.com/sa-jax/sa_jax"
    pass

# %% [markdown]
# ## The two files
#
# Put your own in their place. These stand in for them: handwritten digits of 8 by 8 pixels with values from 0 to 16,
# one sample in each line with its label at the end; and a network 64-100-50-10 that was trained on the pixels divided by 16.
# PyTorch trains it where it is installed, as on Colab. Elsewhere JAX does, and the file has the same format.

# %%
import importlib.util
import os
import tempfile
from pathlib import Path

import numpy as np
from sklearn.datasets import load_digits

from sa_jax import files

TINY = bool(os.environ.get("SA_JAX_TINY"))  # for the tests of the repository
folder = Path(tempfile.mkdtemp())
digits = load_digits()
names = [f"pixel_{row}_{column}" for row in range(8) for column in range(8)]
table = np.column_stack([digits.data, digits.target]).astype(int)
np.savetxt(folder / "digits.csv", table, "%d", ",", header=",".join([*names, "digit"]), comments="")

# The samples on which sa_jax will choose the mask; those that it measures on are new to the network.
WIDTHS, EPOCHS = [100, 50, 10], 2 if TINY else 60
x, y = files.load_dataset(str(folder / "digits.csv"), input_std=16).train
if importlib.util.find_spec("torch"):
    import torch

    sizes = [64, *WIDTHS]
    layers = [torch.nn.Linear(*sizes[i : i + 2]) for i in range(3)]
    net = torch.nn.Sequential(layers[0], torch.nn.ReLU(), layers[1], torch.nn.ReLU(), layers[2])
    optimizer = torch.optim.Adam(net.parameters(), 3e-3)
    inputs, labels = torch.from_numpy(x), torch.from_numpy(y).long()
    for _ in range(8 * EPOCHS):
        optimizer.zero_grad()
        torch.nn.functional.cross_entropy(net(inputs), labels).backward()
        optimizer.step()
    torch.save(net.state_dict(), folder / "my_model.pt")
else:
    import jax

    from sa_jax.networks.mlp import MLP
    from sa_jax.networks.pretrain import pretrain

    params = pretrain(jax.random.key(0), MLP(WIDTHS), x, y, EPOCHS, 3e-3)
    state = {}
    for i, layer in enumerate(params.values()):
        state |= {f"{2 * i}.weight": np.asarray(layer["kernel"]).T, f"{2 * i}.bias": np.asarray(layer["bias"])}
    everything = {name: np.ones(value.shape, bool) for name, value in state.items() if "weight" in name}
    files.write_pruned(state, everything, folder / "my_model.pt")
print([path.name for path in sorted(folder.iterdir())])

# %% [markdown]
# ## Prune
#
# We keep a tenth of the weights. `input_std=16` is the scaling with which the network was trained. The samples are cut
# into three parts: the first chooses the mask, the second ends the search, the third gives the figures.

# %%
import time

from sa_jax import prune_file

begun = time.perf_counter()
pruned = prune_file(
    folder / "my_model.pt",
    folder / "digits.csv",
    folder / "pruned.pt",
    density=0.1,
    input_std=16,
    workdir=folder / "run",
    minutes=0.02 if TINY else 1,
)
print(f"{pruned.kept:,} of {pruned.total:,} weights in {time.perf_counter() - begun:.0f} s")
print(f"test accuracy {pruned.dense_accuracy:.1%} -> {pruned.accuracy:.1%}")
print(f"{pruned.bytes_before:,} bytes -> {pruned.packed_bytes:,} bytes where zeros take no space")
for note in pruned.notes:
    print("note:", note)

# %% [markdown]
# On a command line it is the same in one line:
#
# ```bash
# sa-jax prune my_model.pt --data digits.csv --out pruned.pt --density 0.1 --input-std 16 --workdir run
# ```
#
# The report `run/report.html` says what was gained, and against which rivals. Here is where the kept weights are:

# %%
import matplotlib.pyplot as plt

params = files.load(folder / "pruned.pt")
figure, row = plt.subplots(1, 3, figsize=(10, 3.2), layout="constrained")
for axes, (name, layer) in zip(row, params.items(), strict=True):
    kept = np.asarray(layer["kernel"]) != 0
    axes.imshow(kept, cmap="gray_r", aspect="auto", interpolation="nearest")
    axes.set(title=f"{name}: {kept.sum():,} of {kept.size:,}", xlabel="units", ylabel="inputs")
plt.show()

# %% [markdown]
# ## Back in PyTorch
#
# The file has the names, shapes and types of yours. So it loads into your model, and predicts what sa_jax measured.

# %%
from sa_jax.networks.mlp import forward, network_of

dataset = files.load_dataset(str(folder / "digits.csv"), input_std=16)
ours = np.asarray(forward(network_of(params)[1], dataset.test.inputs, "relu")).argmax(1)
print(f"sa_jax:  {(ours == dataset.test.labels).mean():.1%}")
if importlib.util.find_spec("torch"):
    net.load_state_dict(torch.load(folder / "pruned.pt", weights_only=True))
    theirs = net(torch.from_numpy(dataset.test.inputs)).argmax(1).numpy()
    print(f"PyTorch: {(theirs == dataset.test.labels).mean():.1%}, {(ours != theirs).sum()} predictions differ")

# %% [markdown]
# ## A C program
#
# The export removes units that compute nothing, and stores the kept weights in 4 bits each. The C needs no library but
# libm, and allocates no memory. `test.c` compares its outputs with the expected ones.

# %%
import shutil
import subprocess

from sa_jax.export import export

for path in export(folder / "run", "c", folder / "device", bits=4):
    print(f"{path.name}: {path.stat().st_size:,} bytes")
if shutil.which("cc"):
    command = "cc -std=c99 -O2 -c network.c && cc network.o test.c -lm -o test && ./test && size network.o"
    done = subprocess.run(command, shell=True, cwd=folder / "device", capture_output=True, text=True, check=True)
    print(done.stdout)

# %% [markdown]
# ## Next steps
#
# - A pattern in place of a density: `pattern="2:4"`. Or the fewest weights that reach an accuracy:
#   `target_accuracy=0.95`.
# - Without labels annealing keeps the outputs of your network: leave out the last column.
# - A model that is not fully connected: `sa_jax.prune_kernels` and `sa-jax layers`.
