"""The forward pass of all-MiniLM-L6-v2 in plain JAX, for pruning: weights, tokens and embeddings.

BERT (Devlin et al. 2019) of 6 layers and width 384; the mean of its token vectors, normalised (Reimers & Gurevych
2019).
"""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from safetensors.numpy import load_file

NUM_LAYERS, HEADS, EPSILON = 6, 12, 1e-12
PARTS = (
    "attention.self.query",
    "attention.self.key",
    "attention.self.value",
    "attention.output.dense",
    "intermediate.dense",
    "output.dense",
)
LINEAR = tuple(f"encoder.layer.{layer}.{part}" for layer in range(NUM_LAYERS) for part in PARTS)
Params = Mapping[str, jax.Array]


def load(folder: Path) -> dict[str, jax.Array]:
    """Returns the parameters of `model.safetensors`, by name, float32."""
    arrays = load_file(folder / "model.safetensors")
    return {name: jnp.asarray(array) for name, array in arrays.items() if array.dtype == np.float32}


def tokenize(folder: Path, sentences: Sequence[str], length: int) -> tuple[np.ndarray, np.ndarray]:
    """Returns token numbers, cut or padded to `length`, int32 `[sentences, length]`, and a mask of them, bool."""
    from tokenizers import Tokenizer

    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    tokenizer.enable_truncation(length)
    tokenizer.enable_padding(length=length)
    encoded = tokenizer.encode_batch(list(sentences))
    ids = np.array([one.ids for one in encoded], np.int32)
    return ids, np.array([one.attention_mask for one in encoded], bool)


def embed(
    params: Params,
    ids: jax.Array,
    present: jax.Array,
    record: Callable[..., None] = lambda name, x, weight: None,
) -> jax.Array:
    """Returns sentence embeddings of norm 1, float32 `[sentences, 384]`.

    Args:
      params: parameters by name, from `load`.
      ids: token numbers, int32 `[sentences, length]`.
      present: where they are tokens and not padding, bool `[sentences, length]`.
      record: called with each linear layer's name, its inputs, float32 `[sentences, length, inputs]`, and
        `present`; see `sa_jax.pruning.collect_recorded`.
    """

    def linear(name, x):
        record(name, x, present)
        return x @ params[f"{name}.weight"].T + params[f"{name}.bias"]

    def normalised(name, x):
        centred = x - x.mean(-1, keepdims=True)
        scaled = centred * jax.lax.rsqrt((centred**2).mean(-1, keepdims=True) + EPSILON)
        return scaled * params[f"{name}.weight"] + params[f"{name}.bias"]

    def by_head(x):
        return x.reshape(*x.shape[:-1], HEADS, -1).swapaxes(1, 2)

    x = params["embeddings.word_embeddings.weight"][ids]
    x += params["embeddings.position_embeddings.weight"][: ids.shape[1]]
    x += params["embeddings.token_type_embeddings.weight"][0]
    x = normalised("embeddings.LayerNorm", x)
    for layer in range(NUM_LAYERS):
        name = f"encoder.layer.{layer}"
        query, key, value = (
            by_head(linear(f"{name}.attention.self.{part}", x)) for part in ("query", "key", "value")
        )
        scores = query @ key.swapaxes(-1, -2) / jnp.sqrt(query.shape[-1])
        shares = jax.nn.softmax(jnp.where(present[:, None, None], scores, -jnp.inf), axis=-1)
        mixed = (shares @ value).swapaxes(1, 2).reshape(x.shape)
        x = normalised(f"{name}.attention.output.LayerNorm", x + linear(f"{name}.attention.output.dense", mixed))
        wide = jax.nn.gelu(linear(f"{name}.intermediate.dense", x), approximate=False)
        x = normalised(f"{name}.output.LayerNorm", x + linear(f"{name}.output.dense", wide))
    sums = jnp.where(present[..., None], x, 0).sum(1) / present.sum(1, keepdims=True)
    return sums / jnp.linalg.norm(sums, axis=-1, keepdims=True)
