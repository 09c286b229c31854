"""Chains of a run: what changes no bit of them, and when they end."""

import dataclasses

import jax
import numpy as np
import pytest

from sa_jax import pruning
from sa_jax.commands.run import evaluation, history, programs, runner
from sa_jax.commands.run.records import Saving, Stopped
from sa_jax.files import datasets
from sa_jax.networks import mlp
from tests.commands.run.runs import SEARCHED, SMALL, annealed, stop_after

# A last chunk that is shorter than the others.
UNEVEN = dataclasses.replace(SMALL, num_steps=3_500)
# So hot that nothing is gained after score search.
HOT = dataclasses.replace(
    SEARCHED, move="informed", num_steps=8_000, schedule="constant", temperature_start=1e6, patience=0.3
)


def from_search(config, **saving):
    """Anneals as `run` does, after score search, if there is one."""
    dataset = datasets.load_dataset(config.dataset)
    _, network = runner.load_network(config, dataset)
    return runner.anneal_density(config, dataset, network, **saving)[0]


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
    monkeypatch.setattr(programs, "MIN_CHUNK_STEPS", 300)
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
def test_annealing_that_gains_nothing_ends_early(tmp_path):
    """After three tenths of its proposals; at the same step where it was stopped and resumed."""
    whole = from_search(HOT)
    assert (whole.num_steps, whole.planned_steps) == (3_000, 8_000)
    assert whole.trace["step"].tolist() == [1_000, 2_000, 3_000]
    assert whole.snapshots["step"].tolist() == [0, 1_000, 2_000, 3_000] and whole.max_drift < 1e-3
    stops = 0
    while True:
        try:
            resumed = from_search(HOT, saving=Saving(tmp_path, 60.0, stop_after(1)))
            break
        except Stopped as stopped:
            stops += 1
            if stopped.annealed is not None:
                assert stopped.annealed.searched.num_steps == 350 and stopped.annealed.planned_steps == 8_000
                assert stopped.annealed.cpu_seconds > stopped.annealed.searched.cpu_seconds > 0
    assert stops == 6  # after each part of the search, and each chunk but the last
    assert resumed.num_steps == 3_000
    for name in ("masks", "best_energy", "num_accepted"):
        np.testing.assert_array_equal(getattr(whole, name), getattr(resumed, name))
    for name, values in whole.trace.items():
        np.testing.assert_array_equal(values, resumed.trace[name])
    for name, values in whole.snapshots.items():
        np.testing.assert_array_equal(values, resumed.snapshots[name])


@pytest.mark.slow
@pytest.mark.parametrize(
    "changes", [{"patience": 1}, {"start": "magnitude", "patience": 0.1}, {"start": "random"}]
)
def test_annealing_alone_or_with_patience_makes_all_proposals(changes):
    whole = from_search(dataclasses.replace(HOT, num_steps=3_000, **changes))
    assert whole.num_steps == whole.planned_steps == 3_000
    assert (whole.searched is None) == ("start" in changes)


@pytest.mark.slow
@pytest.mark.parametrize("changes", [{"nudge_share": 0.5}, {"energy": "kl_to_teacher"}, {"energy": "error_rate"}])
def test_any_run_is_validated(changes, monkeypatch):
    """Against the energy of the best mask, computed again from its definition."""
    config = dataclasses.replace(HOT, num_steps=1_000, schedule="geometric", temperature_start=None, **changes)
    seen = []
    monkeypatch.setattr(history, "gains_nothing", lambda validated, *ignored: bool(seen.append(validated)))
    found = from_search(config)
    dataset = datasets.load_dataset(config.dataset)
    _, network = runner.load_network(config, dataset)
    x, targets = dataset.validation.inputs, dataset.validation.labels
    if config.energy == "kl_to_teacher":
        targets = pruning.teacher_of(mlp.forward(network, x))
    moved = evaluation.network_with(network, found.weights)
    energy = pruning.guiding_energy(found.problem.logit_scale, config.options)
    expected = float(energy(mlp.forward(mlp.masked(moved, found.mask), x), targets))
    assert [step for step, _ in seen[-1]] == [0, 1_000]
    assert seen[-1][-1][1] == pytest.approx(expected, rel=1e-4)
