"""Programs of a run's chains: the memory that they need, and the length of their chunks."""

import dataclasses

import pytest

from sa_jax.commands.run import programs, runner
from sa_jax.files import datasets
from tests.commands.run.runs import SMALL, annealed
from tests.conftest import refusal


@pytest.mark.slow
def test_a_run_that_does_not_fit_is_refused_before_it_begins(tmp_path, monkeypatch):
    monkeypatch.setattr(programs, "free_memory", lambda device: 20_000)
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


@pytest.mark.parametrize("refresh_steps", [1_000, 10_000])
@pytest.mark.parametrize("num_steps", [1, 250, 3_500, 99_999, 300_000, 2_000_000])
def test_chains_can_be_saved_at_every_refresh(num_steps, refresh_steps):
    chunk = programs.chunk_steps(num_steps, refresh_steps)
    assert chunk % refresh_steps == 0 or refresh_steps % chunk == 0 or chunk >= num_steps
    assert -(-num_steps // chunk) <= 2 * programs.CHUNKS
