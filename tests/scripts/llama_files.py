"""A tiny random Llama in a GGUF file, with a tokenizer of bytes, for the tests of the scripts."""

import numpy as np
import pytest

HEADS, KEY_HEADS, WIDTH, HIDDEN, BLOCKS = 4, 2, 16, 24, 2
MERGES = ["a b", "ab c", "1 2"]


def tokens():
    """The vocabulary: all bytes, then what the merges make."""
    tokenizers = pytest.importorskip("tokenizers", reason="needs tokenizers")
    return sorted(tokenizers.pre_tokenizers.ByteLevel.alphabet()) + [merge.replace(" ", "") for merge in MERGES]


def tensors(own_head=False):
    """Random arrays by the names of llama.cpp, in its order of the rows of queries and keys."""
    size = WIDTH // HEADS
    shapes = {"token_embd": (len(tokens()), WIDTH), "output_norm": (WIDTH,)}
    if own_head:
        shapes["output"] = (len(tokens()), WIDTH)
    for block in range(BLOCKS):
        for name, shape in (
            ("attn_norm", (WIDTH,)),
            ("attn_q", (HEADS * size, WIDTH)),
            ("attn_k", (KEY_HEADS * size, WIDTH)),
            ("attn_v", (KEY_HEADS * size, WIDTH)),
            ("attn_output", (WIDTH, HEADS * size)),
            ("ffn_norm", (WIDTH,)),
            ("ffn_gate", (HIDDEN, WIDTH)),
            ("ffn_up", (HIDDEN, WIDTH)),
            ("ffn_down", (WIDTH, HIDDEN)),
        ):
            shapes[f"blk.{block}.{name}"] = shape
    draw = np.random.default_rng(0).normal
    return {f"{name}.weight": draw(size=shape).astype(np.float32) for name, shape in shapes.items()}


def write_llama(path, arrays, architecture="llama"):
    """Writes a model's arrays and its metadata."""
    values = {
        "llama.block_count": BLOCKS,
        "llama.embedding_length": WIDTH,
        "llama.feed_forward_length": HIDDEN,
        "llama.context_length": 64,
        "llama.attention.head_count": HEADS,
        "llama.attention.head_count_kv": KEY_HEADS,
        "llama.attention.layer_norm_rms_epsilon": 2.0**-17,
        "llama.rope.freq_base": 100.0,
        "tokenizer.ggml.model": "gpt2",
        "tokenizer.ggml.pre": "smollm",
        "tokenizer.ggml.tokens": tokens(),
        "tokenizer.ggml.merges": MERGES,
    }
    writer = pytest.importorskip("gguf", reason="needs gguf").GGUFWriter(path, architecture)
    add = {int: writer.add_uint32, float: writer.add_float32, str: writer.add_string, list: writer.add_array}
    for key, value in values.items():
        add[type(value)](key, value)
    for name, array in arrays.items():
        writer.add_tensor(name, array)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path
