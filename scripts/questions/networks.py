"""How fast proposals are on small and large networks: table of what `sa-jax bench` measures and draws."""

from typing import Any

from sa_jax.commands.bench import proposals

from .timing import SAMPLES


def table(result: dict[str, Any]) -> str:
    """The speed of all networks at density 0.05, one chain on one core, then a sentence on cores and chains."""
    lines = [
        "| network | full evaluation | compiled loop | here | of the ceiling | full / here | compiled / here |",
        "|---|---|---|---|---|---|---|",
    ]
    chosen = [row for row in result["rows"] if row["samples"] == SAMPLES]
    largest = [row for row in chosen if row["mask"] == "largest weights" and row["density"] == 0.05]
    single = [row for row in largest if row["chains"] == row["cores"] == 1]
    for network in dict.fromkeys(row["network"] for row in single):
        lines.append(line_of(network, {row["method"]: row for row in single if row["network"] == network}))
    machine = result["machine"]
    return "\n".join(lines) + (
        f"\n\n{cores_and_chains(largest)} {widths(chosen)} One core of {machine['processor']}, "
        f"jax {machine['versions']['jax']}; `scripts/results/bench.json` holds all rows."
    )


def line_of(network: str, by_method: dict[str, dict[str, Any]]) -> str:
    """A network's line: microseconds per proposal by method, and their ratios."""
    naive, compiled, here = (by_method[name]["microseconds"] for name in ("naive", "compiled", "incremental"))
    return (
        f"| {network} | {naive:,.0f} | {compiled:,.0f} | **{here:,.0f}** "
        f"| {by_method['incremental']['ceiling_fraction']:.0%} | {naive / here:,.0f} | {compiled / here:.2f} |"
    )


def cores_and_chains(largest: list[dict[str, Any]]) -> str:
    """What a second core brings, and what 64 chains on one core do."""
    times = {
        (row["network"], row["chains"], row["cores"]): row["microseconds"]
        for row in largest
        if row["method"] == "incremental"
    }
    cores = [
        times[network, chains, 1] / times[network, chains, 2]
        for network, chains, cores in times
        if cores == 2 and (network, chains, 1) in times
    ]
    many = [
        times[network, 1, 1] / taken
        for (network, chains, cores), taken in times.items()
        if (chains, cores) == (64, 1)
    ]
    return (
        f"Two cores made {min(cores):.2f} to {max(cores):.2f} times the proposals of one; with 64 chains one "
        f"core made {min(many):.2f} to {max(many):.2f} times those of one chain."
    )


def widths(chosen: list[dict[str, Any]]) -> str:
    """How the time grows with the width of a network, at as many branches per unit."""
    single = [row for row in chosen if row["chains"] == row["cores"] == 1 and row["method"] == "incremental"]
    by_width = [row for row in single if row["mask"] != "largest weights"]
    narrow, *_, wide = sorted(by_width, key=lambda row: int(row["network"].split("-")[1]))
    return (
        f"From {narrow['network']} to {wide['network']}, {proposals.WIDTHS_FAN_OUT} branches kept per unit, "
        f"the time grew from {narrow['microseconds']:.0f} to {wide['microseconds']:.0f} us."
    )
