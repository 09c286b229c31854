"""How near annealing comes to the true optimum: sentences and table of what scripts/optimum.py measures."""

from typing import Any

OTHERS = {
    "greedy": "greedy descent",
    "restarted": "greedy descent restarted now and then",
    "random": "random search",
}


def sentences(result: dict[str, Any]) -> str:
    """Annealing and other searches against all masks of small networks."""
    most = max(row["budget"] for row in result["rows"])
    found = {row["search"]: row for row in result["rows"] if row["budget"] == most}
    annealing = found["annealing"]
    others = ", ".join(
        f"{found[search]['found']:.0%} and {found[search]['mean_gap']:.2%} for {label}"
        for search, label in OTHERS.items()
    )
    return (
        f"On {result['networks']} random networks small enough to try all {result['masks']:,} masks, annealing "
        f"found the true optimum on {annealing['found']:.0%} of them with {most:,} proposals. Its mean gap was "
        f"{annealing['mean_gap']:.2%} of what lies between the optimum and the mean of all masks; {others}."
    )


def chains_table(result: dict[str, Any]) -> str:
    """Independent chains on one network: their energies, and how alike their masks are."""
    lines = [
        "| kept | best energies | spread | Jaccard of two masks | of two random ones | with the start |",
        "|---|---|---|---|---|---|",
    ]
    for row in result["rows"]:
        energies, overlap = row["best_energy_per_chain"], row["mask_overlap"]
        low, high = min(energies), max(energies)
        lines.append(
            f"| {100 * row['density']:g} % | {low:.4f} to {high:.4f} | {(high - low) / low:.1%} "
            f"| {overlap['jaccard_mean']:.2f} | {overlap['jaccard_of_random']:.2f} "
            f"| {overlap['jaccard_with_start']:.2f} |"
        )
    return "\n".join(lines)
