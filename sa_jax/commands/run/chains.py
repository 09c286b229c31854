"""Runs independent chains: jitted chunks of steps, sharded over devices, traced and saved between chunks."""

import contextlib
import math
import time
from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import numpy as np

from sa_jax import checks, pruning
from sa_jax.commands import interrupts
from sa_jax.commands.compiling import compile_once
from sa_jax.commands.run import checkpoint, history
from sa_jax.commands.run.checkpoint import Checkpoints, Saved
from sa_jax.commands.run.processes import agreed, of_first, on_host
from sa_jax.commands.run.programs import CompiledRun, compile_run
from sa_jax.commands.run.records import Annealed, Progress, Saving, Stopped
from sa_jax.commands.run.settings import RunConfig
from sa_jax.networks import masks, mlp
from sa_jax.networks.mlp import Network
from sa_jax.pruning.problem import Problem
from sa_jax.types import InputError

# How often a run compares the energy with its full evaluation, and the largest difference allowed: absolute, or as
# a share of the energy, whichever is larger.
DRIFTS_MEASURED, MAX_DRIFT = 5, 1e-3


def anneal_chains(
    config: RunConfig,
    network: Network,
    x: np.ndarray,
    y: np.ndarray,
    num_kept: int,
    on_progress: Callable[[Progress], None],
    on_message: Callable[[str], None] = lambda message: None,
    mask: jax.Array | None = None,
    saving: Saving | None = None,
    validation: tuple[np.ndarray, np.ndarray] | None = None,
) -> Annealed:
    """Anneals `config.num_chains` chains, spread over the devices of all processes, in chunks.

    Chain `i` draws from `fold_in(key, i)` alone, so that neither the number of chains nor the length of the chunks
    changes a bit of it.

    Args:
      config: the settings.
      network: the fixed weights.
      x: inputs, float `[samples, features]`.
      y: labels, int `[samples]`.
      num_kept: number of branches that stay.
      on_progress: called after each chunk.
      on_message: called with the memory that the run needs, and with news of checkpoints.
      mask: initial mask, flat, bool `[total]`; None for the one that the options give.
      saving: where and when checkpoints are made, from which the chains resume; None for none.
      validation: inputs, float `[samples, features]`, and labels, int `[samples]`. Annealing ends early when it
        gains nothing on them. None to make all proposals.

    Raises:
      InputError: as for `compile_run`; or an energy that drifted from its full evaluation.
      Stopped: `saving.stop` asked for it; the chains are saved.
    """
    cpu_start, wall_start = time.process_time(), time.perf_counter()
    interrupts.defer(None)
    on_message("compiling the programs of annealing")
    compiled_run = compile_run(config, network, x, y, num_kept, on_message, mask)
    chains = _Chains(config, compiled_run, validation)
    compile_seconds = time.perf_counter() - wall_start
    on_message(f"annealing: {chains.num_steps:,} proposals on {compiled_run.num_samples:,} samples")
    with contextlib.ExitStack() as stack:
        checkpoints, last_saved = None, time.monotonic()
        if saving is not None and saving.every:
            interrupts.defer("stopping after the current chunk")
        if saving is not None:
            checkpoints = stack.enter_context(Checkpoints(saving.folder / str(num_kept), on_message))
            if saved := checkpoints.newest():
                on_message(f"resuming from step {saved.step:,} of {chains.num_steps:,}")
                chains.resume(saved)
        chains.begin(compile_seconds, cpu_start)
        while not chains.ended:
            on_progress(chains.advance())
            if saving is None or checkpoints is None or not saving.every or not chains.can_be_saved:
                continue
            stopped, due = agreed(saving.stop(), time.monotonic() - last_saved >= saving.every)
            if not (saving.probes if chains.ended else stopped or due):
                continue
            begun = checkpoints.save(chains.saved())
            last_saved = time.monotonic()
            if stopped and begun and checkpoints.wait():
                raise Stopped(chains.done, chains.num_steps, chains.annealed())
    return chains.annealed()


class _Chains:
    """The chains of a run at some step, and their history.

    Attributes:
      done: number of proposals that each chain has made.
      num_steps: number of proposals that are planned.
    """

    def __init__(
        self, config: RunConfig, compiled_run: CompiledRun, validation: tuple[np.ndarray, np.ndarray] | None
    ):
        self._config, self._compiled, self._validation = config, compiled_run, validation
        self.done, self.num_steps = 0, compiled_run.num_steps
        options, num_steps = config.options, self.num_steps
        self._temperature = jax.jit(lambda p, step: pruning.make_schedule(p, options, num_steps)(step))
        for done in range(compiled_run.chunk, num_steps + compiled_run.chunk, compiled_run.chunk):
            step = min(done, num_steps) - 1
            temperature = float(self._temperature(compiled_run.problem, step))
            checks.number(f"run.schedule at step {step:,}", temperature, least=0)
        full_energies = jax.jit(partial(_full_energies, options))
        lowered = full_energies.lower(compiled_run.problem, compiled_run.states.walk.position)
        self._full_energies = compile_once(lowered)
        self._validate = jax.jit(partial(_validation_energy, options))
        self._states, self._history = compiled_run.states, history.begun()
        self._num_accepted = np.zeros(config.num_chains, np.int64)
        self._note_mask()
        self._note_validation()

    def resume(self, saved: Saved) -> None:
        """Puts the chains and their history where a checkpoint was made."""
        compiled_run = self._compiled
        restore = jax.jit(checkpoint.restored, out_shardings=compiled_run.over_chains, donate_argnums=0)
        # Extra chains that fill the devices are copies of the last one.
        sources = np.minimum(np.arange(len(compiled_run.keys)), len(saved.chains["num_accepted"]) - 1)
        self._states = restore(self._states, {name: array[sources] for name, array in saved.chains.items()})
        self._history = history.restored(saved.trace, saved.figures)
        self.done, self._num_accepted = saved.step, saved.chains["num_accepted"]

    def begin(self, compile_seconds: float, cpu_start: float) -> None:
        """Starts the clock of annealing; that of the CPU time started before compiling."""
        self._compile_seconds, self._cpu_start = compile_seconds, cpu_start
        self._first, self._wall_start, self._work_start = self.done, time.perf_counter(), time.process_time()

    @property
    def ended(self) -> bool:
        """Whether all proposals are made, or more would gain nothing on the validation split."""
        validated = self._history.validated
        return self.done == self.num_steps or history.gains_nothing(
            validated, self._config.patience, self.num_steps
        )

    @property
    def can_be_saved(self) -> bool:
        """Whether a checkpoint can be made here.

        Just before a refresh it is smallest, because the refresh computes the rest again. Chains that have ended
        need no refresh.
        """
        return self.done % self._compiled.refresh_steps == 0 or self.ended

    def advance(self) -> Progress:
        """Runs a chunk and records it."""
        compiled_run, before = self._compiled, self.done
        steps = min(compiled_run.chunk, self.num_steps - before)
        self._states = compiled_run.compiled[steps](
            compiled_run.problem, compiled_run.keys, self._states, np.int32(before)
        )
        self.done += steps
        progress = self._note_entry(steps)
        if self._ends_part(before, history.VALIDATIONS):
            self._note_validation()
        if self.ended or self._ends_part(before, history.SNAPSHOTS):
            self._note_mask()
        # Just before a refresh the drift of the energy is largest.
        if self.ended or (self.can_be_saved and self._ends_part(before, DRIFTS_MEASURED)):
            self._note_drift()
        return progress

    def saved(self) -> Saved:
        """Returns what a checkpoint holds."""
        drifts = self._history.drifts
        figures = self._seconds() | ({"drift": max(drifts)} if drifts else {})
        arrays = self._of_chains(jax.jit(checkpoint.persistent_arrays)(self._states))
        return Saved(self.done, arrays, self._history.arrays(), figures)

    def annealed(self) -> Annealed:
        """Returns the best masks so far, and the figures."""
        compiled_run, states = self._compiled, self._states
        best, best_energy = self._of_chains((states.best, states.best_energy))
        best_masks, best_weights = best if self._config.options.nudge_share else (best, None)
        return Annealed(
            masks=best_masks,
            weights=None if best_weights is None else best_weights[best_energy.argmin()],
            problem=jax.tree.map(np.asarray, compiled_run.problem),
            start_energy=compiled_run.start_energy,
            best_energy=best_energy,
            num_accepted=self._num_accepted,
            num_not_finite=self._of_chains(states.num_not_finite),
            max_drift=max(self._history.drifts, default=math.nan),
            num_samples=compiled_run.num_samples,
            num_steps=self.done,
            planned_steps=self.num_steps,
            trace={name: values.T for name, values in self._history.trace.items()},
            snapshots=self._history.snapshots,
            memory_bytes=compiled_run.memory_bytes,
            chain_batch=compiled_run.chain_batch,
            compile_seconds=self._compile_seconds,
            anneal_seconds=self._seconds()["anneal"],
            cpu_seconds=self._seconds()["cpu"],
            work_seconds=self._seconds()["work"],
        )

    def _seconds(self) -> dict[str, float]:
        cpu = time.process_time()
        now = {"anneal": time.perf_counter() - self._wall_start}
        now |= {"cpu": cpu - self._cpu_start, "work": cpu - self._work_start}
        return {name: self._history.seconds[name] + passed for name, passed in now.items()}

    def _of_chains(self, tree: Any) -> Any:
        """The arrays on the host, without the extra chains that fill the devices."""
        return jax.tree.map(lambda leaf: on_host(leaf)[: self._config.num_chains], tree)

    def _ends_part(self, before: int, parts: int) -> bool:
        return history.ends_part(before, self.done, self.num_steps, parts)

    def _note_entry(self, steps: int) -> Progress:
        states, done = self._states, self.done
        walked = states.walk.energy, states.best_energy, states.num_accepted
        energy, best_energy, accepted = self._of_chains(walked)
        temperature = float(self._temperature(self._compiled.problem, done - 1))
        acceptance = (accepted - self._num_accepted) / steps
        self._num_accepted = accepted
        self._history.entries.append((done, temperature, energy, best_energy, acceptance))
        leader = int(best_energy.argmin())
        now, lowest, share = (float(values[leader]) for values in (energy, best_energy, acceptance))
        rate = (done - self._first) / (time.perf_counter() - self._wall_start)
        return Progress("annealing", done, self.num_steps, rate, now, lowest, temperature, share)

    def _note_mask(self) -> None:
        position = self._states.walk.position
        mask = position[0] if self._config.options.nudge_share else position
        self._history.noted.append((self.done, np.packbits(self._of_chains(mask), axis=-1)))

    def _note_validation(self) -> None:
        if self._validation is None:
            return
        leader = int(self._of_chains(self._states.best_energy).argmin())
        best = jax.tree.map(lambda leaf: self._of_chains(leaf)[leader], self._states.best)
        energy = np.asarray(self._validate(self._compiled.problem, best, *self._validation))
        # That of the first process, because all must end at the same step.
        self._history.validated.append((self.done, float(of_first(energy))))

    def _note_drift(self) -> None:
        energies = self._of_chains(self._states.walk.energy)
        whole = self._of_chains(self._full_energies(self._compiled.problem, self._states.walk.position))
        self._history.drifts.append(_checked_drift(self.done, energies, whole))


def _checked_drift(step: int, energies: np.ndarray, whole: np.ndarray) -> float:
    drift = float(np.abs(whole - energies).max())
    if not drift <= MAX_DRIFT * max(1.0, float(np.abs(whole).max())):  # NaN too
        raise InputError(
            f"after {step:,} steps the energy differs by {drift:.2g} from its full evaluation, which is too much: "
            "lower run.logit_scale or scale the weights down, and please report this network"
        )
    return drift


def _validation_energy(options: pruning.Options, problem: Problem, position: Any, x: Any, y: Any) -> jax.Array:
    network, mask = problem.network, position
    if options.nudge_share:
        mask, weights = position
        network = network._replace(kernels=tuple(masks.unflatten(weights, network.shapes)))
    targets = y
    if options.energy == "kl_to_teacher":
        targets = pruning.teacher_of(mlp.forward(problem.network, x, options.activation))
    logits = mlp.forward(mlp.masked(network, mask), x, options.activation)
    return pruning.guiding_energy(problem.logit_scale, options)(logits, targets)


def _full_energies(options: pruning.Options, problem: Problem, positions: Any) -> jax.Array:
    landscape = pruning.make_landscape(problem, options)
    return jax.lax.map(lambda position: landscape.init(position, problem.data).energy, positions)
