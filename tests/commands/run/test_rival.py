"""The rival: as much time as annealing took, the energy of annealing, the best run on validation samples."""

import dataclasses
from types import SimpleNamespace
from typing import Any, cast

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from sa_jax import baselines, pruning
from sa_jax.baselines import DEFAULT_BUDGET, Found
from sa_jax.commands.run import rival
from sa_jax.commands.run.records import Annealed
from sa_jax.commands.run.settings import RunConfig
from sa_jax.files import datasets
from sa_jax.networks import masks, mlp
from tests.commands.run.runs import SMALL

SECONDS_OF_EPOCH = 0.01
EPOCHS_OF = dataclasses.replace(SMALL, rival="edge_popup_momentum")


class Ground:
    """A small problem, and a method that takes a known time and whose masks are numbered by their epochs."""

    def __init__(self, monkeypatch, name="edge_popup_momentum"):
        self.dataset = datasets.load_dataset("digits")
        shapes = mlp.MLP([3, 10]).init(jax.random.key(0), self.dataset.train.inputs[:1])["params"]
        self.network = mlp.network_of(shapes)[1]
        self.seconds, self.tasks = 0.0, []

        def find(task):
            amount = task.budget.epochs
            self.tasks.append(task)
            self.seconds += SECONDS_OF_EPOCH * amount + (5.0 if len(self.tasks) == 1 else 0.0)  # compiling
            return Found(jnp.arange(self.network.total) < amount, task.network)

        monkeypatch.setitem(baselines.METHODS, name, baselines.METHODS[name]._replace(find=find))

    def find(self, allowed, config=EPOCHS_OF, best=None, stop=lambda: False):
        mask = masks.random(jax.random.key(1), self.network.total, 20)
        problem = SimpleNamespace(logit_scale=np.float32(2.5))
        times = {"cpu_seconds": allowed, "work_seconds": allowed, "search_seconds": 0.0, "anneal_seconds": allowed}
        annealed = cast(Annealed, SimpleNamespace(mask=np.asarray(mask), problem=problem, **times))

        def on_validation(mask):
            return -abs(int(mask.sum()) - best) if best else 0.0

        train = self.dataset.train
        return rival.find(config, self.network, train, annealed, on_validation, stop, lambda: self.seconds)


@pytest.mark.parametrize("allowed", [1.0, 10.0, 100.0, 1000.0])
def test_steps_fill_the_time_that_annealing_took(monkeypatch, allowed):
    ground = Ground(monkeypatch)
    found = ground.find(allowed)
    epochs = [task.budget.epochs for task in ground.tasks]
    assert epochs[:2] == [1, 1] and epochs[1:] == sorted(epochs[1:])  # the first one compiles
    assert found.seconds == pytest.approx(SECONDS_OF_EPOCH * sum(epochs[1:]))
    # Nearly all of the time, most of it in the last run, and never more.
    assert 0.85 * allowed < found.seconds <= found.allowed_seconds == allowed
    assert epochs[-1] * SECONDS_OF_EPOCH > 0.6 * allowed
    batches = len(ground.dataset.train.labels) // 256
    assert found.steps == epochs[-1] * batches and found.by_time and found.clock == "CPU"


def test_the_best_run_on_validation_samples_counts(monkeypatch):
    ground = Ground(monkeypatch)
    found = ground.find(10.0, best=16)
    assert int(found.mask.sum()) == 16
    assert found.steps == 16 * (len(ground.dataset.train.labels) // 256)
    assert found.seconds > 8.5


def test_a_request_to_stop_and_too_little_time_leave_the_shortest_run(monkeypatch):
    for allowed, stop in ((100.0, True), (0.001, False)):
        ground = Ground(monkeypatch)
        found = ground.find(allowed, stop=lambda stop=stop: stop)
        assert [task.budget.epochs for task in ground.tasks] == [1, 1]
        assert found.steps == len(ground.dataset.train.labels) // 256


def test_a_method_without_steps_runs_once(monkeypatch):
    ground = Ground(monkeypatch, "snip")
    found = ground.find(100.0, dataclasses.replace(SMALL, rival="snip"))
    assert {task.budget for task in ground.tasks} == {DEFAULT_BUDGET}
    assert found.steps == 0 and not found.by_time


def test_it_minimises_the_energy_of_annealing(monkeypatch):
    ground = Ground(monkeypatch)
    ground.find(0.001)
    task, train = ground.tasks[-1], ground.dataset.train
    assert repr(task.energy) == repr(pruning.guiding_energy(2.5, SMALL.options)) and task.num_kept == 20
    np.testing.assert_array_equal(task.y, train.labels)
    assert task.x.shape == train.inputs.shape  # all samples, not only those in the energy of annealing

    ground.find(0.001, dataclasses.replace(EPOCHS_OF, energy="kl_to_teacher"))
    task, logits = ground.tasks[-1], mlp.forward(ground.network, jnp.asarray(train.inputs))
    assert type(task.energy).__name__ == "KlToTeacher" and task.energy.logit_scale == 2.5
    np.testing.assert_allclose(task.y, pruning.teacher_of(logits))

    ground = Ground(monkeypatch, "snip")  # takes labels, and no energy
    ground.find(0.001, dataclasses.replace(SMALL, rival="snip", energy="kl_to_teacher"))
    np.testing.assert_array_equal(ground.tasks[-1].y, logits.argmax(-1))


@pytest.mark.parametrize("name", RunConfig._other_methods())
def test_each_method_that_may_be_the_rival_has_its_effort(name):
    """A method whose mask depends on a budget is listed with that budget."""
    effort: Any = rival.EFFORTS.get(name)
    searches = baselines.METHODS[name].minimises_energy or name in ("edge_popup", "movement", "l0_gates")
    assert (effort is not None) == searches and (effort is None or effort in DEFAULT_BUDGET._fields)
