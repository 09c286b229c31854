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
# # From a mask to a microcontroller
#
# [![Open in Colab](https://colab.research.google.com/assets/colab-badge.svg)](https://colab.research.google.com/github/sa-jax/sa_jax/blob/main/colab/05_to_the_edge.ipynb)
#
# Zeros in a dense matrix save neither memory nor time. This notebook makes a pruned network smaller and faster: it
# removes units that compute nothing, stores the kept weights in a few bits each, and writes a C file that we compile,
# run and time. It takes about a minute on a CPU.

# %%
import sys

if "google.colab" in sys.modules:
    # %pip install -q "sa_jax @ git+https://github.com/sa-jax/sa_jax"
    pass

# %%
import jax

print(f"jax {jax.__version__} on {jax.devices()}")

# %% [markdown]
# ## A pruned network
#
# The data are handwritten digits of 8 by 8 pixels. The network has hidden layers of 100 and 50 units. We keep 8 % of
# its branches (single weights). `TINY` makes everything smaller for the tests of the repository.

# %%
import os

import matplotlib.pyplot as plt
import numpy as np

from sa_jax import export, files, prune
from sa_jax.networks.mlp import MLP, network_of
from sa_jax.networks.pretrain import pretrain

TINY = bool(os.environ.get("SA_JAX_TINY"))
BLUE, ORANGE, GREY = "#0072b2", "#d55e00", "#9aa4ae"
plt.rcParams.update({"axes.spines.top": False, "axes.spines.right": False, "legend.frameon": False})

digits = files.load_dataset("digits")
params = pretrain(
    jax.random.key(0), MLP([100, 50, 10]), *digits.train, epochs=2 if TINY else 60, learning_rate=3e-3
)
_, result = prune(jax.random.key(1), params, *digits.train, density=0.08, num_steps=1_000 if TINY else 40_000)
_, network = network_of(params)


def accuracy(cleaned, split=digits.test):
    return 100 * float((export.predict(cleaned, split.inputs).argmax(-1) == split.labels).mean())


dense = export.clean(network, np.ones(network.total, bool))
print(f"dense:  {accuracy(dense):.1f} % of the test images right")

# %% [markdown]
# ## Remove what computes nothing
#
# A hidden unit without kept inputs has a constant output. A hidden unit without kept outputs has no effect. `clean`
# removes both kinds of units until none is left, and adds the constants to the biases of the next layer. The outputs of
# the network stay the same.

# %%
cleaned = export.clean(network, np.asarray(result.best))
print(f"pruned: {accuracy(cleaned):.1f} %")
print("units:  ", network.sizes, "->", [64, *(kernel.shape[1] for kernel in cleaned.kernels)])

# %%
figure, row = plt.subplots(1, 3, figsize=(10, 3.4), layout="constrained")
for axes, mask, title in zip(row, cleaned.masks, ("first layer", "second layer", "last layer"), strict=True):
    axes.imshow(mask, cmap="gray_r", aspect="auto", interpolation="nearest")
    axes.set(title=f"{title}: {mask.sum()} of {mask.size}", xlabel="units", ylabel="inputs")
plt.show()

# %% [markdown]
# ## Quantize the kept weights
#
# A kept weight gets one to four bits by alternating multi-bit quantization (Xu et al. 2018), or eight bits by affine
# quantization. The masks are compressed to nearly `log2 C(n, k)` bits, the least that any code needs for a random mask
# with `k` of `n` branches.

# %%
from sa_jax.export.packed import bfloat16_bytes, entropy_bits, pack, pack_codes, rice

WIDTHS = (1, 2, 3, 4, 8, 32)
quantized = {bits: export.quantize(cleaned, bits) for bits in WIDTHS}
print("bits  bytes  % right")
for bits, coded in quantized.items():
    print(f"{bits:4}  {len(pack(coded)):5}  {accuracy(export.simulate(coded)):.1f}")
bound = sum(map(entropy_bits, cleaned.masks)) / 8
taken = sum(len(rice(mask).content) for mask in cleaned.masks)
print(f"masks: {taken} bytes, bound {bound:.0f}")

# %%
figure, axes = plt.subplots(figsize=(9, 2.8), layout="constrained")
left = np.zeros(len(WIDTHS))
parts = {
    "masks": [sum(len(rice(layer.mask).content) for layer in quantized[bits].layers) for bits in WIDTHS],
    "weights": [sum(len(pack_codes(layer.codes, bits)) for layer in quantized[bits].layers) for bits in WIDTHS],
    "scales": [sum(len(bfloat16_bytes(layer.scales)) for layer in quantized[bits].layers) for bits in WIDTHS],
}
parts["biases and heads"] = [
    len(pack(quantized[bits])) - sum(part[i] for part in parts.values()) for i, bits in enumerate(WIDTHS)
]
for (name, sizes), color in zip(parts.items(), (GREY, BLUE, ORANGE, "#c9d1d8"), strict=True):
    axes.barh(["1 bit", *(f"{bits} bits" for bits in WIDTHS[1:])], sizes, left=left, color=color, label=name)
    left += sizes
axes.invert_yaxis()
axes.set(xlabel=f"bytes of the packed file (the dense network: {4 * (network.total + 160):,})")
axes.legend(loc="upper right")
plt.show()

# %% [markdown]
# ## A budget in bytes
#
# Annealing can also choose the number of bits of each layer: it looks for the lowest loss on the validation images
# within a given number of bytes.

# %%
from sa_jax.export.packed import layer_bytes

budget = len(pack(quantized[3]))


def num_bytes(layer):
    return len(layer_bytes(layer))


other_bytes = len(pack(quantized[1])) - sum(map(num_bytes, quantized[1].layers))  # not part of a layer
widths = export.choose_bits(jax.random.key(2), cleaned, *digits.validation, budget, num_bytes, other_bytes)
chosen = export.quantize(cleaned, widths)
print(f"bits of the layers: {widths}, {len(pack(chosen))} of {budget} bytes")
print(f"validation: {accuracy(export.simulate(chosen), digits.validation):.1f} % right", end="")
print(f", with 3 bits throughout {accuracy(export.simulate(quantized[3]), digits.validation):.1f} %")
print(f"test:       {accuracy(export.simulate(chosen)):.1f} % right")

# %% [markdown]
# ## C
#
# `network.h` and `network.c` need only libm and allocate no memory. `test.c` compares the outputs with the expected
# outputs. Each layer is stored in the form that takes the fewest bytes.

# %%
import shutil
import subprocess
import tempfile
from pathlib import Path

from sa_jax.export import c

folder = Path(tempfile.mkdtemp())
for name, content in c.files(chosen).items():
    (folder / name).write_bytes(content)
print((folder / "network.h").read_text())
print("forms:", [c.smallest(layer).form for layer in chosen.layers])
if shutil.which("cc"):
    command = "cc -std=c99 -O2 -Wall -Wextra network.c test.c -lm -o test && ./test"
    print(subprocess.run(command, shell=True, cwd=folder, capture_output=True, text=True, check=True).stdout)

# %% [markdown]
# ## How long it takes
#
# All programs are compiled with the same flags and predict one sample at a time. The times are medians of seven rounds;
# each round runs every program once.

# %%
from sa_jax.commands.bench import exports

if shutil.which("cc"):
    x = np.ascontiguousarray(digits.test.inputs)
    programs = {}
    for name, coded, forms in (
        ("dense loop", export.quantize(dense, 32), ("dense",)),
        ("pruned, float32", quantized[32], c.FORMS),
        ("pruned, chosen bits", chosen, c.FORMS),
        ("pruned, packed masks", chosen, c.PACKED_FORMS),
    ):
        expected = export.predict(export.simulate(coded), x)
        programs[name] = exports.c_program(coded, forms, exports.FLAGS, {}, expected, x, folder)
    seconds = {name: [] for name in programs}
    for _ in range(7):
        for name, program in programs.items():
            seconds[name].append(program.seconds(1))
    figure, axes = plt.subplots(figsize=(8, 2.6), layout="constrained")
    times = {name: 1e6 * float(np.median(found)) for name, found in seconds.items()}
    bars = axes.barh(list(times), list(times.values()), color=[GREY, BLUE, BLUE, ORANGE])
    axes.bar_label(
        bars, [f"{us:.1f} us, {programs[name].about['bytes']:,} bytes" for name, us in times.items()], padding=4
    )
    axes.set(xlabel="microseconds a sample", xlim=(0, 1.5 * max(times.values())))
    axes.invert_yaxis()
    plt.show()
    for name, program in programs.items():
        same = (program.logits(x).argmax(-1) == program.expected.argmax(-1)).all()
        print(
            f"{name}: {'the same predictions as JAX' if same else 'OTHER predictions than JAX'} on all test images"
        )

# %% [markdown]
# ## Next steps
#
# - `sa-jax export WORKDIR --format=c --bits=4 --out=DIR` exports a finished run of `sa-jax run`. With
#   `--max_bytes=9000` instead of `--bits=4`, the bits of each layer are chosen by annealing.
# - Other formats are `packed`, `onnx`, `stablehlo`, `npz` and `safetensors`.
# - `sa-jax bench export` compares the C programs with onnxruntime.
