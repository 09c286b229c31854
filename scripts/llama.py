"""A Llama in plain JAX, for pruning: its forward pass, tokens, perplexity, and its blocks pruned one by one.

Arrays have the names and layouts of transformers, as `sa_jax.files.gguf_models.hugging_face_arrays` reads them
from a GGUF file. The parts: RMSNorm (Zhang & Sennrich 2019), RoPE (Su et al. 2021), grouped key heads (Ainslie et
al. 2023), SwiGLU (Shazeer 2020). The head is the embedding's own matrix unless there is `lm_head.weight`.
"""

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from sa_jax.pruning.moments import Moments, no_inputs, with_inputs

# The linear layers of a block, and the layer whose inputs each of them has.
LINEAR = {
    "self_attn.q_proj": "self_attn.q_proj",
    "self_attn.k_proj": "self_attn.q_proj",
    "self_attn.v_proj": "self_attn.q_proj",
    "self_attn.o_proj": "self_attn.o_proj",
    "mlp.gate_proj": "mlp.gate_proj",
    "mlp.up_proj": "mlp.gate_proj",
    "mlp.down_proj": "mlp.down_proj",
}
# Windows that go through a block together.
BATCH = 4
Params = Mapping[str, jax.Array]
Record = Callable[[str, jax.Array], Any]


class Config(NamedTuple):
    """What the arrays do not tell.

    Attributes:
      num_blocks: number of blocks.
      num_heads: query heads of a block.
      num_key_heads: key and value heads of a block; each serves equally many query heads.
      epsilon: what RMSNorm adds to the mean square.
      base: the base of RoPE.
    """

    num_blocks: int
    num_heads: int
    num_key_heads: int
    epsilon: float
    base: float


def config_of(settings: Mapping[str, Any]) -> Config:
    """Returns the config in what transformers keeps in `config.json`, see `gguf_models.hugging_face_config`."""
    names = ("num_hidden_layers", "num_attention_heads", "num_key_value_heads", "rms_norm_eps", "rope_theta")
    return Config(*(settings[name] for name in names))


def tokenizer_of(metadata: Mapping[str, Any]) -> Any:
    """Returns the tokenizer in the metadata of a GGUF file: byte-level BPE, for text without special tokens.

    Raises:
      ValueError: it is of another kind.
    """
    from tokenizers import Tokenizer, models, pre_tokenizers

    kind = metadata.get("tokenizer.ggml.model"), metadata.get("tokenizer.ggml.pre")
    if kind != ("gpt2", "smollm"):
        raise ValueError(f"the tokenizer is of the kind {kind}, and only ('gpt2', 'smollm') is known")
    vocabulary = {token: number for number, token in enumerate(metadata["tokenizer.ggml.tokens"])}
    merges = [tuple(merge.split(" ")) for merge in metadata["tokenizer.ggml.merges"]]
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=merges))
    single_digits = pre_tokenizers.Digits(individual_digits=True)
    by_words = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([single_digits, by_words])
    return tokenizer


def block_params(params: Params, block: int) -> dict[str, jax.Array]:
    """Returns the parameters of one block, by their names within the block."""
    prefix = f"model.layers.{block}."
    return {name.removeprefix(prefix): array for name, array in params.items() if name.startswith(prefix)}


def apply_block(config: Config, params: Params, x: jax.Array, record: Record = lambda layer, x: None) -> jax.Array:
    """Returns the hidden states after one block, float32 `[windows, length, width]`.

    Args:
      config: the config.
      params: of the block, see `block_params`.
      x: hidden states before the block, float32 `[windows, length, width]`.
      record: called with the name within the block of each linear layer, and its inputs, float32
        `[windows, length, inputs]`.
    """

    def linear(layer, x):
        record(layer, x)
        return x @ params[f"{layer}.weight"].T

    def by_head(layer, x, heads):  # [windows, key heads, query heads of each, length, size]
        y = linear(layer, x).reshape(*x.shape[:2], config.num_key_heads, heads // config.num_key_heads, -1)
        return y.transpose(0, 2, 3, 1, 4)

    length, a = x.shape[1], _normalised(config, x, params["input_layernorm.weight"])
    query = _turned(config, by_head("self_attn.q_proj", a, config.num_heads))
    key = _turned(config, by_head("self_attn.k_proj", a, config.num_key_heads))
    value = by_head("self_attn.v_proj", a, config.num_key_heads)
    scores = query @ key.swapaxes(-1, -2) / jnp.sqrt(query.shape[-1])
    shares = jax.nn.softmax(jnp.where(jnp.tri(length, dtype=bool), scores, -jnp.inf), axis=-1)
    mixed = (shares @ value).transpose(0, 3, 1, 2, 4).reshape(*x.shape[:2], -1)
    x = x + linear("self_attn.o_proj", mixed)
    b = _normalised(config, x, params["post_attention_layernorm.weight"])
    wide = jax.nn.silu(linear("mlp.gate_proj", b)) * linear("mlp.up_proj", b)
    return x + linear("mlp.down_proj", wide)


def _normalised(config: Config, x: jax.Array, weight: jax.Array) -> jax.Array:
    return x * jax.lax.rsqrt((x**2).mean(-1, keepdims=True) + config.epsilon) * weight


def _turned(config: Config, x: jax.Array) -> jax.Array:
    """RoPE: turns entry i of a head together with the one half a head further on."""
    length, size = x.shape[-2:]
    frequencies = config.base ** (-jnp.arange(0, size, 2) / size)
    angles = jnp.arange(length)[:, None] * frequencies
    one, other = jnp.split(x, 2, axis=-1)
    cos, sin = jnp.cos(angles), jnp.sin(angles)
    return jnp.concatenate([one * cos - other * sin, other * cos + one * sin], axis=-1)


def logits(config: Config, params: Params, x: jax.Array) -> jax.Array:
    """Returns logits, float32 `[..., vocabulary]`, of the hidden states after the last block, `[..., width]`."""
    head = params["lm_head.weight" if "lm_head.weight" in params else "model.embed_tokens.weight"]
    return _normalised(config, x, params["model.norm.weight"]) @ head.T


def forward(config: Config, params: Params, ids: jax.Array, record: Record = lambda layer, x: None) -> jax.Array:
    """Returns the hidden states after the last block, float32 `[windows, length, width]`.

    Args:
      config: the config.
      params: by the names of transformers.
      ids: token numbers, int32 `[windows, length]`, without padding.
      record: called with each linear layer's name and inputs; see `sa_jax.pruning.collect_recorded`.
    """
    x = params["model.embed_tokens.weight"][ids]
    for block in range(config.num_blocks):
        prefix = f"model.layers.{block}."
        x = apply_block(config, block_params(params, block), x, lambda layer, x, at=prefix: record(at + layer, x))
    return x


def perplexity(config: Config, params: Params, ids: np.ndarray) -> float:
    """Returns the perplexity of windows of tokens: exp of the mean loss of all tokens but the first of a window.

    Args:
      config: the config.
      params: by the names of transformers.
      ids: token numbers, int32 `[windows, length]`. A window sees nothing of the others.
    """
    ends = {name: array for name, array in params.items() if not name.startswith("model.layers.")}
    x = _embedded(params, ids)
    for block in range(config.num_blocks):
        arrays = block_params(params, block)
        x = [_after(config, arrays, part) for part in x]
    sums = [_loss(config, ends, part, ids[at : at + BATCH]) for part, at in zip(x, _starts(ids), strict=True)]
    return float(np.exp(np.sum(sums) / (ids.shape[0] * (ids.shape[1] - 1))))


def prune_blocks(
    config: Config,
    params: Params,
    ids: np.ndarray,
    prune: Callable[[str, jax.Array, Moments], jax.Array],
    sequential: bool = True,
    corrected: bool = False,
) -> dict[str, jax.Array]:
    """Prunes all linear layers, block by block; memory holds the Gram matrices of one block.

    The layers of a block are pruned on inputs that its dense layers make, as SparseGPT does.

    Args:
      config: the config.
      params: by the names of transformers.
      ids: token numbers to calibrate on, int32 `[windows, length]`.
      prune: called with a layer's name, its weight, float32 `[outputs, inputs]`, and the moments of its inputs;
        returns the pruned weight.
      sequential: whether a block's inputs come from the pruned blocks before it; otherwise from the dense ones.
      corrected: whether the moments hold `Moments.change`, for `dense_correction`; needs `sequential`, and
        another forward pass, of the dense blocks.

    Returns:
      The pruned weights, by the names of transformers.
    """
    x = _embedded(params, ids)
    dense = x if corrected else [None] * len(x)
    pruned = {}
    for block in range(config.num_blocks):
        arrays = block_params(params, block)
        sizes = {layer: arrays[f"{layer}.weight"].shape[1] for layer in set(LINEAR.values())}
        moments = {layer: no_inputs(size) for layer, size in sizes.items()}
        if corrected:
            moments = {layer: one._replace(change=jnp.zeros_like(one.gram)) for layer, one in moments.items()}
        ahead = []
        for part, dense_part in zip(x, dense, strict=True):
            moments, after = _collected(config, arrays, moments, part, dense_part)
            ahead.append(after)
        for layer, source in LINEAR.items():
            name = f"{layer}.weight"
            arrays[name] = prune(f"model.layers.{block}.{layer}", arrays[name], moments[source])
            pruned[f"model.layers.{block}.{name}"] = arrays[name]
        x = [_after(config, arrays, part) for part in x] if sequential else ahead
        dense = ahead if corrected else dense
    return pruned


def _starts(ids: np.ndarray) -> range:
    return range(0, len(ids), BATCH)


def _embedded(params: Params, ids: np.ndarray) -> list[jax.Array]:
    return [params["model.embed_tokens.weight"][ids[at : at + BATCH]] for at in _starts(ids)]


_after = jax.jit(apply_block, static_argnums=0)


@partial(jax.jit, static_argnums=0)
def _loss(config: Config, params: Params, x: jax.Array, ids: jax.Array) -> jax.Array:
    def of_window(window):
        x, ids = window
        shares = jax.nn.log_softmax(logits(config, params, x[:-1]))
        return -jnp.take_along_axis(shares, ids[1:, None], axis=1).sum()

    return jax.lax.map(of_window, (x, ids)).sum()  # the logits of one window at a time


@partial(jax.jit, static_argnums=0)
def _collected(
    config: Config, params: Params, moments: dict[str, Moments], x: jax.Array, dense: jax.Array | None
) -> tuple[dict[str, Moments], jax.Array]:
    """The moments with the inputs of more windows, and the dense block's outputs on the dense network's inputs."""
    inputs: dict[str, jax.Array] = {}
    dense_inputs: dict[str, jax.Array] = {}
    after = apply_block(config, params, x, inputs.setdefault)
    if dense is not None:
        after = apply_block(config, params, dense, dense_inputs.setdefault)
    added = {
        layer: with_inputs(before, inputs[layer], None, dense_inputs.get(layer))
        for layer, before in moments.items()
    }
    return added, after
