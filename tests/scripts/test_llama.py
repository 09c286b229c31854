"""The Llama of the scripts: against a plain one in NumPy, in the layout of llama.cpp, and its moments."""

import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from sa_jax.files import gguf_files, gguf_models
from sa_jax.pruning.moments import collect_recorded
from tests.scripts import llama_files
from tests.scripts.llama_files import HEADS, KEY_HEADS, WIDTH

pytest.importorskip("gguf", reason="needs gguf")
sys.path.insert(0, str(Path(__file__).parents[2] / "scripts"))
import llama

IDS = np.random.default_rng(1).integers(250, size=(6, 7)).astype(np.int32)


@pytest.fixture
def model(tmp_path):
    content = gguf_files.read(llama_files.write_llama(tmp_path / "model.gguf", llama_files.tensors()))
    config = llama.config_of(gguf_models.hugging_face_config(content))
    return config, {name: jnp.asarray(array) for name, array in gguf_models.hugging_face_arrays(content)}


def reference(arrays, ids):
    """Logits of one window, head by head and token by token, with RoPE of adjacent pairs as in llama.cpp."""
    arrays = {name.removesuffix(".weight"): array.astype(float) for name, array in arrays.items()}
    size = WIDTH // HEADS

    def normalised(x, name):
        return x / np.sqrt((x**2).mean(-1, keepdims=True) + 2.0**-17) * arrays[name]

    def turned(x):
        angles = np.arange(len(x))[:, None] * 100.0 ** (-np.arange(size // 2) * 2 / size)
        return (x[:, ::2] + 1j * x[:, 1::2]) * np.exp(1j * angles)

    x = arrays["token_embd"][ids]
    for block in range(llama_files.BLOCKS):
        at = f"blk.{block}."
        a, mixed = normalised(x, f"{at}attn_norm"), []
        for head in range(HEADS):
            mine, shared = (slice(h * size, (h + 1) * size) for h in (head, head * KEY_HEADS // HEADS))
            query, key = (
                turned(a @ arrays[f"{at}attn_{one}"][rows].T) for one, rows in (("q", mine), ("k", shared))
            )
            value = a @ arrays[f"{at}attn_v"][shared].T
            rows = []
            for token in range(len(ids)):
                shares = np.exp((query[token] @ key[: token + 1].conj().T).real / np.sqrt(size))
                rows.append(shares / shares.sum() @ value[: token + 1])
            mixed.append(np.array(rows))
        x = x + np.concatenate(mixed, 1) @ arrays[f"{at}attn_output"].T
        b = normalised(x, f"{at}ffn_norm")
        gate, up = (b @ arrays[f"{at}ffn_{one}"].T for one in ("gate", "up"))
        x = x + (gate / (1 + np.exp(-gate)) * up) @ arrays[f"{at}ffn_down"].T
    return normalised(x, "output_norm") @ arrays.get("output", arrays["token_embd"]).T


@pytest.mark.parametrize("own_head", [False, True])
def test_logits_and_perplexity_are_those_of_a_plain_implementation(tmp_path, own_head):
    arrays = llama_files.tensors(own_head)
    content = gguf_files.read(llama_files.write_llama(tmp_path / "model.gguf", arrays))
    config = llama.config_of(gguf_models.hugging_face_config(content))
    params = {name: jnp.asarray(array) for name, array in gguf_models.hugging_face_arrays(content)}
    wanted = np.stack([reference(arrays, window) for window in IDS])
    found = llama.logits(config, params, llama.forward(config, params, jnp.asarray(IDS)))
    np.testing.assert_allclose(found, wanted, rtol=2e-3, atol=2e-3)
    shares = np.exp(wanted) / np.exp(wanted).sum(-1, keepdims=True)
    right = np.take_along_axis(shares[:, :-1], IDS[:, 1:, None], 2)
    assert llama.perplexity(config, params, IDS) == pytest.approx(np.exp(-np.log(right).mean()), rel=1e-3)


def test_the_tokenizer_splits_digits_and_gives_back_any_text(tmp_path):
    content = gguf_files.read(llama_files.write_llama(tmp_path / "model.gguf", llama_files.tensors()))
    tokenizer, vocabulary = llama.tokenizer_of(content.metadata), llama_files.tokens()
    found = tokenizer.encode("abc 12")
    assert [vocabulary[number] for number in found.ids] == ["abc", "Ġ", "1", "2"]  # '12' is never merged
    text = "Two  spaces,\ttabs\nand “ünïcödé” 你好"
    assert b"".join(bytes_of(vocabulary[number]) for number in tokenizer.encode(text).ids).decode() == text
    with pytest.raises(ValueError, match="only"):
        llama.tokenizer_of({"tokenizer.ggml.model": "llama"})


def bytes_of(token):
    """The bytes that the letters of byte-level BPE stand for, as GPT-2 numbers them."""
    plain = [*range(33, 127), *range(161, 173), *range(174, 256)]
    others = [byte for byte in range(256) if byte not in plain]
    letters = {chr(byte): byte for byte in plain} | {chr(256 + n): byte for n, byte in enumerate(others)}
    return bytes(letters[letter] for letter in token)


@pytest.mark.parametrize(("sequential", "corrected"), [(False, False), (True, False), (True, True)])
def test_blocks_are_pruned_on_the_moments_of_the_whole_network(model, sequential, corrected):
    config, params = model
    seen = {}

    def prune(name, weight, moments):
        seen[name] = moments
        return weight * (jnp.arange(weight.shape[1]) % 2)

    def forward(params, ids, record):
        return llama.forward(config, params, ids, record)

    pruned = llama.prune_blocks(config, params, IDS, prune, sequential, corrected)
    assert len(pruned) == len(seen) == 14
    first = {name: array for name, array in pruned.items() if ".0." in name}
    before = {**params, **first} if sequential else params  # the second block is still dense when it is pruned
    for block, upstream in (("layers.0", params), ("layers.1", before)):
        wanted = collect_recorded(forward, upstream, [{"ids": IDS}], dense=params if corrected else None)
        for name in (name for name in seen if block in name):
            assert (seen[name].change is None) == (not corrected)
            jax.tree.map(
                lambda one, other: np.testing.assert_allclose(one, other, rtol=1e-3, atol=1e-4),
                seen[name],
                wanted[name],
            )
    assert seen["model.layers.1.mlp.gate_proj"].gram is seen["model.layers.1.mlp.up_proj"].gram
