"""Measures annealing on one device, a GPU, a TPU or a CPU, in at most 8 minutes; writes a JSON file and a table.

    scripts/measure_accelerator.sh                         # 8 minutes; into runs/accelerator/accelerator.json
    scripts/measure_accelerator.sh --quick                 # a small part of it; under 40 seconds on two cores
    scripts/measure_accelerator.sh --seconds=240 --out=gpu.json

Four measurements, each on the default device alone, with XLA as the backend everywhere so that devices compare:

* Many chains of one network, vmapped: proposals per second of all chains, and the seconds to compile them.
* One chain whose proposals are evaluated several at once, after a greedy descent, where few are accepted.
* Score search: steps per second.
* Max-Cut by `from_energy`, which evaluates each cut in full: many chains, vmapped.

Networks and samples are those of `sa-jax bench`. `sa_jax.commands.bench.ceilings.count` says how many bytes a
proposal must move. Memory bandwidth is measured first, on a large array. The table shows the share of it that the
proposals need: at 100 % the memory allows no more. The arrays of few chains may fit into a cache that is faster
than the memory; then the share can be above 100 %.

A case is left out, with a line that says so, if it would probably pass the time limit. The file is written again
after each case.
"""

import argparse
import gc
import json
import statistics
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from sa_jax.annealing.chain import BLOCK_STEPS, init, run
from sa_jax.annealing.schedules import constant_schedule
from sa_jax.commands.bench.ceilings import count
from sa_jax.commands.bench.problems import LOGIT_SCALE, NETWORKS, synthesize
from sa_jax.commands.hardware import check_memory, free_memory, machine, program_bytes
from sa_jax.files import workdirs
from sa_jax.landscapes.mlp import masked_mlp
from sa_jax.moves.uniform import uniform_swap
from sa_jax.networks.energies import cross_entropy
from sa_jax.pruning import scores
from sa_jax.types import AnnealState, InputError, Landscape, PyTree

sys.path.insert(0, str(Path(__file__).resolve().parent))  # runpy.run_path, which tests use, leaves this folder out
from questions import vmapping

OUT = Path("runs/accelerator/accelerator.json")
DENSITY, SEED, LOW_TEMPERATURE = 0.05, 0, 1e-6
# Calls before the rounds: one to warm up, and one to choose the number of repetitions by.
UNTIMED, ROUNDS = 2, 3
# A walk has at most so many steps before it starts again, because the cost of a proposal changes along the walk.
MAX_STEPS = 1_000
# What the first case of a kind is expected to take: compiling is most of it.
FIRST_SECONDS = 30.0


class Plan(NamedTuple):
    """What to measure.

    Attributes:
      networks: layer sizes of each network.
      samples: number of samples that each proposal is evaluated on.
      chains: numbers of chains that are vmapped; 1 is a chain without vmap.
      parallel_proposals: numbers of proposals that one chain evaluates at once.
      descent_steps: greedy steps before that; a multiple of 100.
      vertices: of the graph whose cut is annealed.
      cut_chains: numbers of its chains.
      copy_bytes: size of the array whose copies are timed.
      round_seconds: time of a round of a case; one step, if that takes longer.
    """

    networks: tuple[tuple[int, ...], ...] = NETWORKS[:2]
    samples: int = 2_000
    chains: tuple[int, ...] = (1, 16, 256, 4_096)
    parallel_proposals: tuple[int, ...] = (1, 4, 16, 64)
    descent_steps: int = 10_000
    vertices: int = 128
    cut_chains: tuple[int, ...] = (1, 256, 4_096)
    copy_bytes: int = 1 << 30
    round_seconds: float = 0.5


QUICK = Plan(NETWORKS[:1], 500, (1, 16), (4,), 1_000, 128, (1, 256), 1 << 26, 0.1)


class Problem(NamedTuple):
    """What chains anneal.

    Attributes:
      name: how the table calls it.
      landscape_of: makes the landscape from `model`, whose arrays are so arguments of the compiled program.
      model: a pytree of arrays.
      position: where all chains start.
      data: see `anneal`.
      temperature: at which the chains stay.
      bytes_read: bytes that a proposal must read; None where they are not counted.
      bytes_written: bytes that an accepted proposal must write.
    """

    name: str
    landscape_of: Callable[[PyTree], Landscape]
    model: PyTree
    position: PyTree
    data: tuple
    temperature: float
    bytes_read: float | None = None
    bytes_written: float = 0.0


class Session:
    """The result so far, and the time that is left."""

    def __init__(self, seconds: float, save: Callable[[dict[str, Any]], None]) -> None:
        device = jax.devices()[0]
        self.device = device
        self.seconds = seconds
        self.begin = time.perf_counter()
        self.save = save
        self.result: dict[str, Any] = {
            "machine": machine(),
            "platform": device.platform,
            "device": device.device_kind,
            "backend": "xla",
            "seed": SEED,
            "rows": [],
            "left_out": [],
        }

    def try_case(
        self, name: str, case: Callable[[], dict[str, Any]], expected: float = FIRST_SECONDS
    ) -> dict[str, Any] | None:
        """Measures a case if time and memory allow.

        Args:
          name: name of the case.
          case: measures, and returns a row.
          expected: seconds that the case will probably take.

        Returns:
          The row; None if there is none.
        """
        begin = time.perf_counter()
        passed = begin - self.begin
        if passed + expected > self.seconds:
            self.leave_out(
                name, f"it may take {expected:.0f} s, and {max(self.seconds - passed, 0):.0f} s are left"
            )
            return None
        jax.clear_caches()
        gc.collect()  # frees the arrays of the last case on the device
        try:
            row = case()
        except (jax.errors.JaxRuntimeError, InputError) as error:  # as a rule, too little memory
            self.leave_out(name, str(error).splitlines()[0])
            return None
        row["wall_seconds"] = time.perf_counter() - begin
        self.result["rows"].append(row)
        self.save(self.result)
        print(
            f"{name}: {row['per_second']:,.0f} per second; {row['wall_seconds']:.0f} s",
            file=sys.stderr,
            flush=True,
        )
        return row

    def leave_out(self, name: str, reason: str) -> None:
        """Says that a case is not measured, and why."""
        self.result["left_out"].append({"case": name, "reason": reason})
        self.save(self.result)
        print(f"{name}: left out: {reason}", file=sys.stderr, flush=True)


class Walk:
    """Chains of a problem, compiled: they start again at the same position each time."""

    def __init__(self, problem: Problem, chains: int, steps: int, parallel_proposals: int = 1) -> None:
        """Compiles the chains.

        Args:
          problem: what they anneal.
          chains: number of chains, vmapped if there are several.
          steps: number of steps of each block, at most `BLOCK_STEPS`.
          parallel_proposals: number of proposals that each chain evaluates at once.
        """

        def start(model: PyTree, position: PyTree, data: tuple) -> AnnealState:
            state = init(problem.landscape_of(model), position, data)
            if chains == 1:
                return state
            return jax.tree.map(lambda leaf: jnp.broadcast_to(leaf, (chains, *leaf.shape)), state)

        def walk(keys, states, blocks, temperature, model, data):
            landscape, schedule = problem.landscape_of(model), constant_schedule(temperature)

            def one_block(block, states):
                def one_chain(key, state):
                    first = block * BLOCK_STEPS
                    rest = data, 0, parallel_proposals
                    return run(key, landscape, state, schedule, first, steps, *rest)[0]

                return (one_chain if chains == 1 else jax.vmap(one_chain))(keys, states)

            return jax.lax.fori_loop(0, blocks, one_block, states)

        self.chains, self.steps = chains, steps
        key = jax.random.key(SEED)
        self.keys = key if chains == 1 else jax.random.split(key, chains)
        arguments = problem.model, problem.position, problem.data
        begin = time.perf_counter()
        self.start = jax.jit(start).lower(*arguments).compile()
        jitted = jax.jit(walk, donate_argnums=1)
        states, numbers = jax.eval_shape(start, *arguments), (jnp.int32(1), jnp.float32(0))
        self.program = jitted.lower(self.keys, states, *numbers, problem.model, problem.data).compile()
        self.compile_seconds = time.perf_counter() - begin
        self.program_bytes = program_bytes(self.program)

    def run(self, problem: Problem, blocks: int) -> tuple[float, AnnealState]:
        """Makes some blocks of steps from the problem's position; returns their seconds, and the chains."""
        numbers = jnp.int32(blocks), jnp.float32(problem.temperature)
        begin = time.perf_counter()
        states = jax.block_until_ready(self.start(problem.model, problem.position, problem.data))
        self.start_seconds, begin = time.perf_counter() - begin, time.perf_counter()
        states = self.program(self.keys, states, *numbers, problem.model, problem.data)
        jax.block_until_ready(states)
        return time.perf_counter() - begin, states

    def measured(self, problem: Problem, round_seconds: float, bandwidth: float) -> dict[str, Any]:
        """Returns a row: proposals per second at the problem's position and temperature, and what they move."""
        acceptance = 0.0

        def call(blocks: int) -> float:
            nonlocal acceptance
            seconds, states = self.run(problem, blocks)
            acceptance = float(states.num_accepted.mean()) / (blocks * self.steps)
            return seconds

        blocks, seconds = repeated(call, MAX_STEPS // self.steps, round_seconds)
        steps = blocks * self.steps
        per_second = steps * self.chains / statistics.median(seconds)
        row = {
            "problem": problem.name,
            "chains": self.chains,
            "per_second": per_second,
            "steps": steps,
            "steps_at_once": self.steps,
            "seconds": seconds,
            "start_seconds": self.start_seconds,
            "acceptance": acceptance,
            "temperature": problem.temperature,
            "compile_seconds": self.compile_seconds,
            "program_bytes": self.program_bytes,
        }
        if problem.bytes_read is not None:
            moved = problem.bytes_read + acceptance * problem.bytes_written
            row |= {"bytes_per_proposal": moved, "bandwidth_share": per_second * moved / bandwidth}
        return row


def repeated(call: Callable[[int], float], most: int, seconds: float) -> tuple[int, list[float]]:
    """Returns a number of repetitions that takes about `seconds`, and the seconds of each round of so many.

    Args:
      call: makes a number of repetitions and returns their seconds.
      most: most repetitions of a round.
      seconds: time of a round; one repetition, if that takes longer.
    """
    call(1)
    number = max(1, min(int(seconds / call(1)), most))
    return number, [call(number) for _ in range(ROUNDS)]


def copied_per_second(size: int, seconds: float) -> float:
    """Returns the bytes that the device reads and writes per second when it negates a large array in place."""
    negated = jax.jit(jnp.negative, donate_argnums=0)

    def call(number: int) -> float:
        values = jax.block_until_ready(jnp.ones(size // 4, jnp.float32))
        begin = time.perf_counter()
        for _ in range(number):
            values = negated(values)
        jax.block_until_ready(values)
        return time.perf_counter() - begin

    number, times = repeated(call, 10_000, seconds)
    return 2 * size * number / min(times)


def network_problem(sizes: tuple[int, ...], samples: int) -> Problem:
    """Returns the masks of a network, as `sa-jax bench` anneals them."""
    synthetic, counted = synthesize(sizes, DENSITY, samples), count(sizes, DENSITY)
    arrays = (synthetic.network, synthetic.mask, (synthetic.inputs, synthetic.labels))
    network, mask, data = jax.tree.map(jnp.asarray, arrays)
    moved = samples * counted.read, samples * counted.written
    return Problem("-".join(map(str, sizes)), landscape_of, network, mask, data, counted.temperature, *moved)


def landscape_of(network: Any) -> Landscape:
    """Returns the landscape of a network's masks, evaluated by XLA on every device."""
    return masked_mlp(network, uniform_swap(), cross_entropy(LOGIT_SCALE), backend="xla")


def cut_problem(vertices: int) -> Problem:
    """Returns the cuts of a complete graph with random weights, each evaluated in full."""
    sides, data, temperature = vmapping.graph(vertices)
    name = f"Max-Cut, {vertices} vertices"
    return Problem(name, lambda _: vmapping.evaluated_cut(), (), sides, data, temperature)


def measure_chains(
    session: Session, problem: Problem, numbers: tuple[int, ...], round_seconds: float, bandwidth: float
) -> None:
    """Measures one number of chains after the other, each with the time and memory that the last one suggests."""
    last: dict[str, Any] | None = None
    for asked in numbers:
        chains, steps, expected = asked, BLOCK_STEPS, FIRST_SECONDS
        if last is not None:
            chains = fitting(asked, last, free_memory(session.device))
            if chains < asked:
                instead = f"; {chains:,} are measured instead" if chains > last["chains"] else ""
                session.leave_out(f"{problem.name}, chains: {asked:,}", f"they do not fit into memory{instead}")
            if chains <= last["chains"]:
                continue
            # Steps take so much longer if the device was busy with fewer chains already, and twice as long as that
            # if a cache is left behind.
            longer = chains / last["chains"]
            step_seconds = longer * statistics.median(last["seconds"]) / last["steps"]
            steps = max(1, min(int(round_seconds / step_seconds), BLOCK_STEPS))
            walk_seconds = max(round_seconds, step_seconds) + longer * last["start_seconds"]
            expected = last["compile_seconds"] + 2 * (UNTIMED + ROUNDS) * walk_seconds
        name = f"{problem.name}, chains: {chains:,}"

        def case(name=name, chains=chains, steps=steps):
            walk = Walk(problem, chains, steps)
            check_memory(name, walk.program_bytes, free_memory(session.device), "the number of chains")
            return {"kind": "chains"} | walk.measured(problem, round_seconds, bandwidth)

        last = session.try_case(name, case, expected) or last


def fitting(chains: int, last: dict[str, Any], free: int | None) -> int:
    """Halves a number of chains until they fit into memory.

    Args:
      chains: number of chains.
      last: the row of another number of them, which says what memory they need.
      free: free bytes of the device; None if unknown.
    """
    while free is not None and chains > 1 and chains * last["program_bytes"] / last["chains"] > free:
        chains //= 2
    return chains


def measure_parallel_proposals(session: Session, problem: Problem, plan: Plan, bandwidth: float) -> None:
    """Measures one chain by how many proposals it evaluates at once, from where a greedy descent ends."""
    descended: Problem | None = None
    expected = FIRST_SECONDS
    for number in plan.parallel_proposals:

        def case(number=number):
            nonlocal descended
            walk = Walk(problem, 1, BLOCK_STEPS, number)
            if descended is None:
                states = walk.run(problem._replace(temperature=0.0), plan.descent_steps // BLOCK_STEPS)[1]
                descended = problem._replace(position=states.walk.position, temperature=LOW_TEMPERATURE)
            row = {"kind": "parallel proposals", "parallel_proposals": number}
            return row | walk.measured(descended, plan.round_seconds, bandwidth)

        name = f"{problem.name}, proposals at once: {number}"
        row = session.try_case(name, case, expected)
        expected = row["wall_seconds"] if row else expected


def score_row(problem: Problem, round_seconds: float) -> dict[str, Any]:
    """Returns a row: steps per second of score search, as `found_mask` makes them."""
    network, (inputs, labels) = problem.model, problem.data
    settings = scores.ScoreSettings(MAX_STEPS)

    def search(key, network, inputs, labels, num_kept, num_steps):
        arguments = network, inputs, labels, num_kept, cross_entropy(LOGIT_SCALE), "relu", settings
        return scores.run(key, scores.init(network), *arguments, 0, num_steps).energy

    # A traced number of steps: one program makes short and long searches.
    arguments = jax.random.key(SEED), network, inputs.T, labels, problem.position.sum()
    begin = time.perf_counter()
    program = jax.jit(search).lower(*arguments, jnp.int32(1)).compile()
    compile_seconds = time.perf_counter() - begin

    def call(steps: int) -> float:
        begin = time.perf_counter()
        jax.block_until_ready(program(*arguments, jnp.int32(steps)))
        return time.perf_counter() - begin

    steps, seconds = repeated(call, MAX_STEPS, round_seconds)
    return {
        "kind": "score search",
        "problem": problem.name,
        "chains": 1,
        "per_second": steps / statistics.median(seconds),
        "steps": steps,
        "seconds": seconds,
        "batch_size": scores.BATCH_SIZE,
        "compile_seconds": compile_seconds,
        "program_bytes": program_bytes(program),
    }


def measure(plan: Plan, seconds: float, save: Callable[[dict[str, Any]], None] = lambda _: None) -> dict[str, Any]:
    """Measures what the time allows.

    Args:
      plan: what to measure.
      seconds: the time limit.
      save: called with the result so far after each case.
    """
    session = Session(seconds, save)
    bandwidth = copied_per_second(plan.copy_bytes, plan.round_seconds)
    session.result |= {"density": DENSITY, "samples": plan.samples, "copied_bytes_per_second": bandwidth}
    session.save(session.result)
    problems = [network_problem(sizes, plan.samples) for sizes in plan.networks]
    for problem in problems:
        measure_chains(session, problem, plan.chains, plan.round_seconds, bandwidth)
    for problem in problems:
        session.try_case(f"{problem.name}, score search", partial(score_row, problem, plan.round_seconds))
    measure_chains(session, cut_problem(plan.vertices), plan.cut_chains, plan.round_seconds, bandwidth)
    for problem in problems:
        measure_parallel_proposals(session, problem, plan, bandwidth)
    session.result["wall_seconds"] = time.perf_counter() - session.begin
    session.save(session.result)
    return session.result


def table(result: dict[str, Any]) -> str:
    """Returns the device and the rows as text; `bandwidth` is the share of the device's that proposals need."""
    lines = [
        f"{result['device']}, host {result['machine']['processor']}, jax {result['machine']['versions']['jax']}: "
        f"copies at {result['copied_bytes_per_second'] / 1e9:,.1f} GB/s, read and written bytes counted",
        f"{'what':<20}{'problem':<24}{'chains':>7}{'at once':>8}{'per second':>13}{'us a step':>12}"
        f"{'compile s':>10}{'MB':>10}{'accepted':>9}{'bandwidth':>10}",
    ]
    for row in result["rows"]:
        accepted, share = (f"{row[name]:.1%}" if name in row else "" for name in ("acceptance", "bandwidth_share"))
        lines.append(
            f"{row['kind']:<20}{row['problem']:<24}{row['chains']:>7,}{row.get('parallel_proposals', 1):>8}"
            f"{row['per_second']:>13,.0f}{1e6 * statistics.median(row['seconds']) / row['steps']:>12,.1f}"
            f"{row['compile_seconds']:>10.1f}{row['program_bytes'] / 1e6:>10,.1f}{accepted:>9}{share:>10}"
        )
    return "\n".join(lines + [f"left out: {one['case']}: {one['reason']}" for one in result["left_out"]])


def write(path: Path, result: dict[str, Any]) -> None:
    """Writes a result; the file is written whole or not at all."""
    workdirs.write_file(path, json.dumps(result, indent=1) + "\n")


def main(argv: list[str] | None = None) -> int:
    """Measures, prints the table, and returns the exit code."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="measure a small part")
    parser.add_argument("--seconds", type=float, default=480.0, help="time limit (default 480)")
    parser.add_argument("--out", type=Path, default=OUT, help=f"the JSON file to write (default {OUT})")
    arguments = parser.parse_args(argv)
    # Else a second run would read its programs from the disk, and report that as compile seconds.
    jax.config.update("jax_enable_compilation_cache", False)
    try:
        workdirs.make(arguments.out.parent)
        result = measure(QUICK if arguments.quick else Plan(), arguments.seconds, partial(write, arguments.out))
    except InputError as error:
        print(f"measure_accelerator: {error}", file=sys.stderr)
        return 2
    print(table(result))
    return 0


if __name__ == "__main__":
    sys.exit(main())
