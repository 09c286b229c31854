"""What a long run survives: sentences on what scripts/endure.py measures."""

from typing import Any


def sentences(result: dict[str, Any]) -> str:
    """Kills, the cost of checkpoints, a long run, damaged inputs, and what ran them."""
    machine = result["kills"]["machine"]
    return (
        f"As `scripts/endure.py` found it: {kills(result['kills'])} {checkpoints(result['cost'])} "
        f"{long_run(result['soak'])} {damaged_inputs(result['fuzz'])} "
        f"{machine['processor']}, jax {machine['versions']['jax']}."
    )


def kills(found: dict[str, Any]) -> str:
    """How often a run was killed, went on, and what it lost."""
    same = "ended with" if found["same_bits"] else "did NOT end with"
    return (
        f"killed by `kill -9` {found['kills']} times at random, with checkpoints "
        f"every {found['checkpoint_seconds']:g} s, a run went on {found['resumed']} times, lost at most "
        f"{found['most_seconds_of_annealing_lost']:.1f} s of annealing each time, and {same} the bits of one "
        f"left alone."
    )


def checkpoints(cost: dict[str, Any]) -> str:
    """What checkpoints cost in time and bytes."""
    every_3_s, size = cost["share_of_time_every_3_s"], cost["bytes_of_64_chains_784_300_100_10"] / 1e6
    return (
        f"A checkpoint every 3 s took {every_3_s:.1%} more time (median of "
        f"{len(cost['seconds_without'])} rounds in turns), so that one every 30 s takes {every_3_s / 10:.1%}; "
        f"one of 64 chains of 784-300-100-10 takes {size:.1f} MB."
    )


def long_run(soak: dict[str, Any]) -> str:
    """Memory and energy of a long run."""
    first, last = soak["bytes"][0] / 1e9, soak["bytes"][-1] / 1e9
    return (
        f"In {soak['minutes']:.0f} minutes of "
        f"{soak['chains']} chains memory went from {first:.3f} to {last:.3f} GB, and the energy was never further "
        f"off than {soak['max_energy_drift']:.1g}."
    )


def damaged_inputs(fuzz: dict[str, Any]) -> str:
    """How damaged files and settings were met."""
    counted = [found for kind, found in fuzz.items() if kind != "machine"]
    read, refused = (sum(found[name] for found in counted) for name in ("read", "refused"))
    return (
        f"Of {read + refused:,} damaged files and settings {refused:,} "
        f"were refused in one line and {read:,} read; none did anything else."
    )
