"""Brings language models in GGUF files into Hugging Face's names and layouts.

A Llama, which Mistral and SmolLM2 are too, is what is known; the architecture is read from the file.
"""

import itertools
import json
import os
from collections.abc import Iterator
from typing import Any

import numpy as np

from sa_jax.checks import number, whole
from sa_jax.files import gguf_files, workdirs
from sa_jax.files.array_files import check_numbers
from sa_jax.files.gguf_files import Content
from sa_jax.files.paths import expanded
from sa_jax.types import InputError


def hugging_face_config(content: Content) -> dict[str, Any]:
    """Returns what transformers keeps in `config.json`: the sizes of the model, the base of RoPE and the like.

    Args:
      content: a model, as `gguf_files.read` returns it.

    Raises:
      InputError: the model is not a Llama, scales RoPE, or lacks a size.
    """
    metadata, place = content.metadata, f"{content.path}: "
    if (architecture := metadata.get("general.architecture")) != "llama":
        raise InputError(f"{place}models of the architecture {architecture!r} are not converted, only llama")
    if (scaling := metadata.get("llama.rope.scaling.type", "none")) != "none":
        raise InputError(f"{place}models that scale RoPE, here {scaling!r}, are not converted")

    def size(key: str, otherwise: int | None = None, most: int | None = None) -> int:
        return whole(f"{place}llama.{key}", metadata.get(f"llama.{key}", otherwise), 1, most)

    def real(key: str, otherwise: float | None = None) -> float:
        return number(f"{place}llama.{key}", metadata.get(f"llama.{key}", otherwise), above=0)

    width, heads = size("embedding_length"), size("attention.head_count")
    head_size = size("attention.key_length", width // heads)
    if size("rope.dimension_count", head_size) != head_size or head_size % 2:
        raise InputError(f"{place}RoPE must turn all {head_size} entries of a head, in pairs")
    embedding = content.tensors.get("token_embd.weight")
    tokens = {
        f"{name}_token_id": metadata[key]
        for name in ("bos", "eos")
        if (key := f"tokenizer.ggml.{name}_token_id") in metadata
    }
    return {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "hidden_act": "silu",
        "hidden_size": width,
        "intermediate_size": size("feed_forward_length"),
        "num_hidden_layers": size("block_count", most=len(content.tensors)),
        "num_attention_heads": heads,
        "num_key_value_heads": size("attention.head_count_kv", heads),
        "head_dim": head_size,
        "rms_norm_eps": real("attention.layer_norm_rms_epsilon"),
        "rope_theta": real("rope.freq_base", 10_000.0),
        "max_position_embeddings": size("context_length"),
        "vocab_size": embedding.shape[0] if embedding and embedding.shape else 0,
        "tie_word_embeddings": "output.weight" not in content.tensors,
        "torch_dtype": "float32",
        **tokens,
    }


def hugging_face_arrays(content: Content) -> Iterator[tuple[str, np.ndarray]]:
    """Yields the arrays of a model, one at a time, by the names that transformers has for them.

    llama.cpp keeps the rows of queries and keys in the order in which RoPE turns adjacent ones together. They are
    brought back into the order of transformers, see `unpermuted`. All other layouts are the same.

    Args:
      content: a model, as `gguf_files.read` returns it.

    Yields:
      Name and array, float32; linear layers `[outputs, inputs]`.

    Raises:
      InputError: as `hugging_face_config`; a tensor is missing, unknown, of another shape or not finite; or the
        file has been changed.
    """
    config = hugging_face_config(content)
    heads = {"attn_q": config["num_attention_heads"], "attn_k": config["num_key_value_heads"]}
    for name, theirs in _names(content, config).items():
        array = content.tensors[name].read()
        check_numbers(name, array, f"{content.path}: ")
        part = name.split(".")[-2]
        yield theirs, unpermuted(array, heads[part]) if part in heads else array


def write_hugging_face(source: str | os.PathLike[str], folder: str | os.PathLike[str]) -> None:
    """Writes a model as `model.safetensors` and `config.json`, which transformers loads, without its tokenizer.

    No more than one tensor at a time is in memory. If it fails, nothing is written.

    Args:
      source: the path of a GGUF file.
      folder: where the two files will be; created if it does not exist. Files of their names are replaced.

    Raises:
      InputError: as `hugging_face_arrays`; or the folder cannot be written.
    """
    content = gguf_files.read(source)
    config = hugging_face_config(content)
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    end = 0
    for name, theirs in _names(content, config).items():
        shape = content.tensors[name].shape
        start, end = end, end + 4 * int(np.prod(shape, dtype=object))
        header[theirs] = {"dtype": "F32", "shape": shape, "data_offsets": [start, end]}
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    path = expanded(folder) / "model.safetensors"
    aside = path.with_name(f".{path.name}.{os.getpid()}")
    with workdirs.writing(path.parent):
        try:
            with aside.open("wb") as file:
                file.write(len(text).to_bytes(8, "little") + text)
                for _, array in hugging_face_arrays(content):
                    file.write(array.astype("<f4", order="C", copy=False).data)
            workdirs.write_file(path.with_name("config.json"), json.dumps(config, indent=2) + "\n")
            os.replace(aside, path)
        except OSError as error:
            raise InputError(f"{path} could not be written: {error.strerror}") from None
        finally:
            aside.unlink(missing_ok=True)


def unpermuted(array: np.ndarray, num_heads: int) -> np.ndarray:
    """Returns the rows of a query or key projection in the order of transformers.

    The inverse of `permute` in llama.cpp's `convert_hf_to_gguf.py`. RoPE turns the entries of a head in pairs: in
    llama.cpp the entries 2i and 2i + 1, in transformers i and i + half of the head.

    Args:
      array: `[num_heads * size, ...]`, with an even `size`, in the order of llama.cpp.
      num_heads: the number of query heads, or of key heads.

    >>> unpermuted(np.array([0, 2, 1, 3]), 1)
    array([0, 1, 2, 3])
    """
    pairs = array.reshape(num_heads, -1, 2, *array.shape[1:])
    return pairs.swapaxes(1, 2).reshape(array.shape)


def _names(content: Content, config: dict[str, Any]) -> dict[str, str]:
    """The names that transformers has for a file's tensors, all of which must be there with their shapes."""
    width, hidden, vocabulary = (config[name] for name in ("hidden_size", "intermediate_size", "vocab_size"))
    queries, keys = (config["head_dim"] * config[f"num_{kind}_heads"] for kind in ("attention", "key_value"))
    block = {
        "attn_norm": ("input_layernorm", (width,)),
        "attn_q": ("self_attn.q_proj", (queries, width)),
        "attn_k": ("self_attn.k_proj", (keys, width)),
        "attn_v": ("self_attn.v_proj", (keys, width)),
        "attn_output": ("self_attn.o_proj", (width, queries)),
        "ffn_norm": ("post_attention_layernorm", (width,)),
        "ffn_gate": ("mlp.gate_proj", (hidden, width)),
        "ffn_up": ("mlp.up_proj", (hidden, width)),
        "ffn_down": ("mlp.down_proj", (width, hidden)),
    }
    parts = {"token_embd": ("model.embed_tokens", (vocabulary, width)), "output_norm": ("model.norm", (width,))}
    for layer, part in itertools.product(range(config["num_hidden_layers"]), block):
        theirs, shape = block[part]
        parts[f"blk.{layer}.{part}"] = f"model.layers.{layer}.{theirs}", shape
    if not config["tie_word_embeddings"]:
        parts["output"] = "lm_head", (vocabulary, width)
    wanted = {f"{name}.weight": (f"{theirs}.weight", shape) for name, (theirs, shape) in parts.items()}
    for name in content.tensors:
        if name not in wanted:
            raise InputError(f"{content.path}: tensor {name!r} has no place in a Llama of transformers")
    for name, (_, shape) in wanted.items():
        if name not in content.tensors:
            raise InputError(f"{content.path} has no tensor {name!r}, which a Llama needs")
        if content.tensors[name].shape != shape:
            given = list(content.tensors[name].shape)
            raise InputError(f"{content.path}: tensor {name!r} must have the shape {list(shape)}, not {given}")
    return {name: theirs for name, (theirs, _) in wanted.items()}
