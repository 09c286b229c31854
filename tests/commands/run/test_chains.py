"""Chains of a run: what changes no bit of them, and the memory that they need."""

import dataclasses

import jax
import numpy as np
import pytest

from sa_jax.commands.run import chains, runner
from sa_jax.files import datasets
from tests.commands.run.runs import SMALL, annealed
from tests.conftest import refusal

# A last chunk that is shorter than the others.
UNEVEN = dataclasses.replace(SMALL, num_steps=3_500)


@pytest.mark.slow
@pytest.mark.usefixtures("optimized")
def test_chain_count_changes_no_bit_of_a_chain():
    two = annealed(SMALL)
    for num_chains in (1, 3):
        other = annealed(dataclasses.replace(SMALL, num_chains=num_chains))
        shared = min(2, num_chains)
        for name in ("energy", "best_energy", "acceptance"):
            np.testing.assert_array_equal(two.trace[name][:shared], other.trace[name][:shared])
        np.testing.assert_array_equal(two.num_accepted[:shared], other.num_accepted[:shared])
        assert other.best_energy.shape == (num_chains,)


@pytest.mark.slow
@pytest.mark.usefixtures("optimized")
def test_chunk_length_changes_no_bit(monkeypatch):
    long = annealed(UNEVEN)
    monkeypatch.setattr(chains, "MIN_CHUNK_STEPS", 300)
    short = annealed(UNEVEN)
    assert len(short.trace["step"]) > len(long.trace["step"])
    np.testing.assert_array_equal(long.mask, short.mask)
    np.testing.assert_array_equal(long.best_energy, short.best_energy)
    np.testing.assert_array_equal(long.num_accepted, short.num_accepted)


@pytest.mark.slow
def test_nothing_compiles_between_chunks():
    compilations, seen = [], []

    def listen(event, duration, **_):
        if event.endswith("backend_compile_duration"):
            compilations.append(duration)

    jax.monitoring.register_event_duration_secs_listener(listen)
    jax.clear_caches()  # of what other tests have compiled
    annealed(UNEVEN, on_progress=lambda progress: seen.append(len(compilations)))
    assert len(seen) >= 4 and seen[0] > 0
    assert seen[-1] == seen[0]


@pytest.mark.slow
def test_chain_batches_walk_alike_up_to_rounding():
    config = dataclasses.replace(SMALL, num_chains=5, num_steps=1_500)
    alone = annealed(config)
    grouped = annealed(dataclasses.replace(config, chain_batch=2))
    assert (alone.chain_batch, grouped.chain_batch) == (1, 2)
    np.testing.assert_array_equal(alone.num_accepted, grouped.num_accepted)
    np.testing.assert_allclose(alone.best_energy, grouped.best_energy, rtol=1e-4)


@pytest.mark.slow
def test_a_run_that_does_not_fit_is_refused_before_it_begins(tmp_path, monkeypatch):
    monkeypatch.setattr(chains, "free_memory", lambda device: 20_000)
    messages = []
    with refusal("the run needs", "MB of memory", "only 0.0 MB are free", "lower NUM_SAMPLES"):
        runner.run(SMALL, tmp_path / "run", on_message=messages.append)
    assert any(message.startswith("needs ") for message in messages)
    assert not (tmp_path / "run").exists()


@pytest.mark.slow
def test_memory_is_stated_and_does_not_grow_with_the_steps():
    """Against the arrays that must exist on each of the two devices, for a network large enough to tell."""
    dataset = datasets.load_dataset("digits")
    config = dataclasses.replace(SMALL, hidden=(300, 300), weights="random", num_samples=1_000)
    short, long = (annealed(dataclasses.replace(config, num_steps=n), dataset) for n in (1_000, 4_000))
    assert short.memory_bytes == long.memory_bytes
    branches = 64 * 300 + 300 * 300 + 300 * 10
    fixed = 4 * branches * 2 + 4 * 1_000 * 64  # weights and saliency, inputs
    chain = branches * (1 + 1 + 4) + 4 * 1_000 * 610  # mask, best mask, index list, outputs
    assert fixed + chain < short.memory_bytes / 2 < 2.5 * (fixed + chain)
