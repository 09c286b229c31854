"""Score search as the first stage of a run: it resumes, is told of what goes wrong, and uses what it should."""

import dataclasses
import functools
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from sa_jax import pruning
from sa_jax.commands.run import runner, score_stage
from sa_jax.commands.run.records import Saving, Stopped
from sa_jax.files import datasets
from sa_jax.networks.energies import cross_entropy
from sa_jax.pruning import scores
from sa_jax.types import InputError
from tests.commands.run.runs import SEARCHED, stop_after
from tests.conftest import refusal

NEVER = 10**9
NUM_KEPT = 189


@functools.cache
def loaded():
    dataset = datasets.load_dataset("digits")
    return dataset, runner.load_network(SEARCHED, dataset)[1]


def search(folder=None, stops_after=NEVER, config=SEARCHED, messages=None, every=60.0, progress=None):
    """Searches in this process alone; without a folder nothing is saved."""
    dataset, network = loaded()
    tell = (lambda message: None) if messages is None else messages.append
    show = (lambda one: None) if progress is None else progress.append
    saving = None if folder is None else Saving(folder, every, stop_after(stops_after))
    return score_stage.search(config, network, *dataset.train, NUM_KEPT, show, tell, saving)


def saved_in(folder):
    with np.load(folder / f"score_search-{NUM_KEPT}.npz") as arrays:
        return dict(arrays)


@pytest.fixture(scope="module")
def whole():
    return search().mask


def test_parts_give_the_mask_of_a_search_made_at_once(whole):
    """With the logit scale that annealing calibrates on its samples, and minibatches of all samples."""
    dataset, network = loaded()
    few = [jnp.asarray(array[: SEARCHED.num_samples]) for array in dataset.train]
    scale, _ = pruning.calibrated_search(network, *few, NUM_KEPT, SEARCHED.options)
    settings = scores.ScoreSettings(SEARCHED.score_steps)
    key = jax.random.fold_in(jax.random.key(SEARCHED.seed), 3)
    samples = map(jnp.asarray, dataset.train)
    expected = scores.found_mask(key, network, *samples, NUM_KEPT, cross_entropy(scale), "relu", settings)
    assert whole.sum() == NUM_KEPT and np.sum(expected & whole) > 0.97 * NUM_KEPT  # programs may round otherwise


@pytest.mark.parametrize("changes", [{}, {"estimates": "gradient", "energy": "kl_to_teacher"}], ids=["", "other"])
def test_a_search_that_is_stopped_after_each_part_ends_as_one_that_is_not(changes, tmp_path):
    config = dataclasses.replace(SEARCHED, **changes)
    messages, progress = [], []
    for step in (100, 200, 300):
        with pytest.raises(Stopped, match=rf"^the score search was stopped after {step} of 350 steps$") as stopped:
            search(tmp_path, 1, config, messages, progress=progress)
        assert stopped.value.annealed is None and saved_in(tmp_path)["step"] == step
    with pytest.raises(Stopped, match="after 350 of 350 steps"):
        search(tmp_path, 1, config, messages, progress=progress)
    assert [one for one in messages if "resuming" in one] == [
        f"resuming score search from step {step} of 350" for step in (100, 200, 300)
    ]
    assert messages[0] == "score search: 350 steps"
    assert [one.step for one in progress] == [100, 200, 300, 350]
    assert all(one.searching and one.num_steps == 350 and 0 < one.energy < 10 for one in progress)
    np.testing.assert_array_equal(search(tmp_path, config=config).mask, search(config=config).mask)


def test_a_search_that_has_ended_is_not_made_again(whole, tmp_path, monkeypatch):
    first = search(tmp_path)
    before = saved_in(tmp_path)
    monkeypatch.setattr(score_stage, "_compiled", lambda *ignored: pytest.fail("searched again"))
    messages = []
    again = search(tmp_path, messages=messages)
    np.testing.assert_array_equal(again.mask, whole)
    np.testing.assert_array_equal(again.mask, first.mask)
    assert (again.num_steps, again.seconds) == (350, before["seconds"]) and again.cpu_seconds > 0
    assert messages == ["score search: its mask was saved"]


def test_seconds_before_a_stop_are_counted(tmp_path):
    with pytest.raises(Stopped):
        search(tmp_path, 1)
    arrays = saved_in(tmp_path)
    arrays |= {"seconds": np.array(1_000.0), "cpu_seconds": np.array(2_000.0)}
    np.savez(tmp_path / f"score_search-{NUM_KEPT}.npz", **arrays)
    found = search(tmp_path)
    assert 1_000 < found.seconds < 1_900 and 2_000 < found.cpu_seconds < 2_900


def test_a_search_is_saved_as_often_as_was_asked(tmp_path):
    search(tmp_path / "rarely", every=60.0)  # its folder is made where it is needed
    search(tmp_path / "never", every=0.0)
    assert list(saved_in(tmp_path / "rarely")) == ["mask", "scores", "seconds", "cpu_seconds", "work_seconds"]
    assert not (tmp_path / "never").exists()
    with pytest.raises(Stopped):
        search(tmp_path / "often", 2, every=1e-9)
    assert saved_in(tmp_path / "often")["step"] == 200


@pytest.mark.parametrize("damage", [lambda all: all[: len(all) // 2], lambda all: all[:-300] + bytes(300)])
def test_a_damaged_file_is_told_and_skipped(damage, whole, tmp_path):
    with pytest.raises(Stopped):
        search(tmp_path, 2)
    (path,) = tmp_path.iterdir()
    path.write_bytes(damage(path.read_bytes()))
    messages = []
    np.testing.assert_array_equal(search(tmp_path, messages=messages).mask, whole)
    (told,) = (message for message in messages if "damaged" in message)
    assert told.startswith("the saved score search is damaged (") and told.endswith(") and is skipped")
    assert "mask" in saved_in(tmp_path)


def test_a_full_disk_costs_nothing_but_the_file(whole, tmp_path, monkeypatch):
    def full(*ignored):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "write_bytes", full)
    messages = []
    # Nor does it stop where that would lose what it has found.
    np.testing.assert_array_equal(search(tmp_path, 1, messages=messages).mask, whole)
    assert len([one for one in messages if "No space left on device; the run continues" in one]) == 4
    assert not list(tmp_path.iterdir())


def test_a_search_that_does_not_fit_is_refused_before_it_begins(monkeypatch):
    monkeypatch.setattr(score_stage, "free_memory", lambda device: 20_000)
    monkeypatch.setattr(scores, "mask_of", lambda *ignored: pytest.fail("searched"))
    with refusal("score search needs", "MB of memory, but only 0.0 MB are free: lower HIDDEN"):
        search()


def test_an_energy_that_is_not_finite_is_refused(monkeypatch):
    dataset, network = loaded()
    huge = network._replace(kernels=tuple(1e38 * kernel for kernel in network.kernels))
    with refusal("the energy of score search is not finite for these weights and inputs"):
        score_stage.search(SEARCHED, huge, *dataset.train, NUM_KEPT, print, print, None)


def test_the_teacher_needs_no_labels():
    """Neither the search, nor annealing, nor the decision to end it."""
    config = dataclasses.replace(SEARCHED, energy="kl_to_teacher", move="informed")
    assert not config.uses_labels and not config.uses_gradients
    dataset, network = loaded()
    wrong = [split._replace(labels=(split.labels + 3) % 10) for split in (dataset.train, dataset.validation)]
    unlabelled = dataset._replace(train=wrong[0], validation=wrong[1])
    one, other = (runner.anneal_density(config, data, network)[0] for data in (dataset, unlabelled))
    np.testing.assert_array_equal(one.searched.mask, other.searched.mask)
    np.testing.assert_array_equal(one.masks, other.masks)
    assert one.num_steps == other.num_steps


def test_the_error_rate_is_searched_by_the_cross_entropy(whole):
    config = dataclasses.replace(SEARCHED, energy="error_rate", move="informed")
    np.testing.assert_array_equal(search(config=config).mask, whole)
    annealed, _ = runner.anneal_density(config, *loaded())
    assert annealed.best_energy.min() <= annealed.start_energy <= 1


def test_all_chains_start_from_the_mask_that_was_found(whole):
    annealed, _ = runner.anneal_density(dataclasses.replace(SEARCHED, num_chains=3), *loaded())
    for mask in (annealed.searched.mask, annealed.problem.mask):
        np.testing.assert_array_equal(mask, whole)
    np.testing.assert_array_equal(annealed.snapshots["masks"][0], np.packbits([whole] * 3, axis=-1))
    assert len({mask.tobytes() for mask in annealed.masks}) == 3
    assert annealed.cpu_seconds > annealed.searched.cpu_seconds > 0
    assert annealed.search_seconds == annealed.searched.seconds > 0


def test_all_branches_may_be_kept():
    annealed, _ = runner.anneal_density(dataclasses.replace(SEARCHED, density=1.0), *loaded())
    assert annealed.mask.all()


def test_steps_are_chosen_by_the_proposals():
    progress = []
    search(config=dataclasses.replace(SEARCHED, score_steps=None, num_steps=130), progress=progress)
    assert [one.step for one in progress] == [100, 200, 300, 400, 500, 520]
    with pytest.raises(InputError, match=r"run.score_steps must be a whole number"):
        dataclasses.replace(SEARCHED, score_steps="many")
