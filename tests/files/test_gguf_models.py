"""Llamas in GGUF files, in the names and layouts of transformers."""

import json
import re
from pathlib import Path

import numpy as np
import pytest
import safetensors.numpy

from sa_jax.files import gguf_files, gguf_models
from tests.conftest import refusal
from tests.files.gguf_writer import write

pytest.importorskip("gguf", reason="needs gguf")
WEIGHTS_PAGE = Path(__file__).parents[2] / "sa_jax/docs/weights.md"
SIZES = {
    "llama.block_count": 2,
    "llama.embedding_length": 8,
    "llama.feed_forward_length": 12,
    "llama.context_length": 64,
    "llama.attention.head_count": 2,
    "llama.attention.head_count_kv": 1,
    "llama.attention.layer_norm_rms_epsilon": 2.0**-17,
    "llama.rope.freq_base": 1e5,
    "tokenizer.ggml.eos_token_id": 2,
    "tokenizer.ggml.tokens": ["a", "b"],
}
PARTS = {
    "attn_norm": ("input_layernorm", (8,)),
    "attn_q": ("self_attn.q_proj", (8, 8)),
    "attn_k": ("self_attn.k_proj", (4, 8)),
    "attn_v": ("self_attn.v_proj", (4, 8)),
    "attn_output": ("self_attn.o_proj", (8, 8)),
    "ffn_norm": ("post_attention_layernorm", (8,)),
    "ffn_gate": ("mlp.gate_proj", (12, 8)),
    "ffn_up": ("mlp.up_proj", (12, 8)),
    "ffn_down": ("mlp.down_proj", (8, 12)),
}


def permute(weights, n_head):
    """As llama.cpp's convert_hf_to_gguf.py."""
    pairs = weights.reshape(n_head, 2, weights.shape[0] // n_head // 2, *weights.shape[1:])
    return pairs.swapaxes(1, 2).reshape(weights.shape)


def llama():
    """A model's arrays, by the names of transformers and by those of llama.cpp."""
    draw = np.random.default_rng(0).normal
    shapes = {"token_embd": ("model.embed_tokens", (5, 8)), "output_norm": ("model.norm", (8,))}
    for layer in range(2):
        for name, (theirs, shape) in PARTS.items():
            shapes[f"blk.{layer}.{name}"] = f"model.layers.{layer}.{theirs}", shape
    theirs, tensors = {}, {}
    for name, (other, shape) in shapes.items():
        array = theirs[f"{other}.weight"] = draw(size=shape).astype(np.float32)
        heads = {"attn_q": 2, "attn_k": 1}.get(name.split(".")[-1])
        tensors[f"{name}.weight"] = ("F32", permute(array, heads).copy() if heads else array)
    return theirs, tensors


@pytest.mark.parametrize("heads", [1, 2, 3])
def test_rows_come_back_from_the_order_of_llama_cpp(heads):
    for size in (2, 4, 6):
        rows = np.arange(heads * size * 3).reshape(heads * size, 3)
        np.testing.assert_array_equal(gguf_models.unpermuted(permute(rows, heads), heads), rows)
    vector = np.arange(heads * 6)
    np.testing.assert_array_equal(gguf_models.unpermuted(permute(vector, heads), heads), vector)


def test_attention_is_the_same_in_both_orders():
    """RoPE of adjacent pairs, on the rows of llama.cpp, and of halves, on the rows brought back."""
    rng = np.random.default_rng(0)
    queries, keys = rng.normal(size=(2, 6, 5))  # one head of 6, 5 inputs
    angles = 7 * 10.0 ** -np.arange(3)

    def of_adjacent(rows):
        even, odd = rows[::2], rows[1::2]
        return np.stack(
            [even * np.cos(angles) - odd * np.sin(angles), even * np.sin(angles) + odd * np.cos(angles)], 1
        )

    def of_halves(rows):
        low, high = rows[:3], rows[3:]
        return np.concatenate(
            [low * np.cos(angles) - high * np.sin(angles), low * np.sin(angles) + high * np.cos(angles)]
        )

    x, y = rng.normal(size=(2, 5))
    theirs = [gguf_models.unpermuted(one, 1) for one in (queries, keys)]
    adjacent = (of_adjacent(queries @ x).ravel() * (keys @ y)).sum()
    np.testing.assert_allclose((of_halves(theirs[0] @ x) * (theirs[1] @ y)).sum(), adjacent, rtol=1e-12)


def test_a_llama_is_written_as_transformers_loads_it(tmp_path):
    theirs, tensors = llama()
    path = write(tmp_path / "model.gguf", tensors, SIZES)
    model = gguf_files.read(path)
    arrays = dict(gguf_models.hugging_face_arrays(model))
    assert set(arrays) == set(theirs)
    for name, array in theirs.items():
        np.testing.assert_array_equal(arrays[name], array)
    gguf_models.write_hugging_face(path, tmp_path / "new" / "folder")
    assert sorted(one.name for one in (tmp_path / "new/folder").iterdir()) == ["config.json", "model.safetensors"]
    written = safetensors.numpy.load_file(tmp_path / "new/folder/model.safetensors")
    assert set(written) == set(theirs)
    for name, array in theirs.items():
        np.testing.assert_array_equal(written[name], array)
    with safetensors.safe_open(tmp_path / "new/folder/model.safetensors", "numpy") as file:
        assert file.metadata() == {"format": "pt"}
    config = json.loads((tmp_path / "new/folder/config.json").read_text())
    assert config == gguf_models.hugging_face_config(model)
    expected = {"vocab_size": 5, "head_dim": 4, "num_key_value_heads": 1, "rope_theta": 1e5, "eos_token_id": 2}
    assert config.items() >= expected.items() and config["tie_word_embeddings"] is True
    write(path, tensors | {"output.weight": tensors["token_embd.weight"]}, SIZES)
    untied = gguf_files.read(path)
    assert gguf_models.hugging_face_config(untied)["tie_word_embeddings"] is False
    np.testing.assert_array_equal(
        dict(gguf_models.hugging_face_arrays(untied))["lm_head.weight"], theirs["model.embed_tokens.weight"]
    )


def test_what_is_no_plain_llama_is_refused_and_leaves_nothing(tmp_path):
    _, tensors = llama()
    path, norm = tmp_path / "model.gguf", ("F32", np.full(8, np.nan, np.float32))
    few = {name: one for name, one in tensors.items() if name != "blk.1.ffn_up.weight"}
    cases = {
        "tensor 'rope_freqs.weight' has no place in a Llama": (tensors | {"rope_freqs.weight": norm}, {}),
        "has no tensor 'blk.1.ffn_up.weight', which a Llama needs": (few, {}),
        "tensor 'blk.0.attn_q.weight' must have the shape [12, 8], not [8, 8]": (
            tensors,
            {"llama.attention.key_length": 6, "llama.rope.dimension_count": 6},
        ),
        "array 'output_norm.weight' holds NaN or infinite values, 8 of 8": (
            tensors | {"output_norm.weight": norm},
            {},
        ),
        "RoPE must turn all 4 entries of a head": (tensors, {"llama.rope.dimension_count": 2}),
        "llama.block_count must be a whole number from 1 to 20, not 4000000000": (
            tensors,
            {"llama.block_count": 4_000_000_000},
        ),
        "llama.attention.head_count must be a whole number of at least 1, not [2, 2]": (
            tensors,
            {"llama.attention.head_count": [2, 2]},
        ),
        "models that scale RoPE, here ['yarn'], are not": (tensors, {"llama.rope.scaling.type": ["yarn"]}),
    }
    for problem, (given, values) in cases.items():
        write(path, given, SIZES | values)
        with refusal(str(path), problem):
            gguf_models.write_hugging_face(path, tmp_path / "out")
        assert not (tmp_path / "out").exists()
    path.write_bytes(path.read_bytes().replace(b"\x05\0\0\0\0\0\0\0llama", b"\x05\0\0\0\0\0\0\0qwen2"))
    with refusal("models of the architecture 'qwen2' are not converted, only llama"):
        gguf_models.write_hugging_face(path, tmp_path / "out")
    (tmp_path / "file").write_text("")
    with refusal("is a file"):
        gguf_models.write_hugging_face(write(path, tensors, SIZES), tmp_path / "file")


def test_the_examples_of_the_page_run(tmp_path, monkeypatch):
    write(tmp_path / "SmolLM2-135M-Instruct.Q4_1.gguf", llama()[1], SIZES)
    monkeypatch.chdir(tmp_path)
    names = {}
    for text in re.findall(r"^```py\n(.*?)^```$", WEIGHTS_PAGE.read_text(), re.MULTILINE | re.DOTALL):
        exec(text, names)
    assert names["words"] == ["a", "b"] and (tmp_path / "smollm2/model.safetensors").is_file()
