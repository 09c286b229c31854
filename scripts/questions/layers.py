"""How fast linear layers are annealed: table of what scripts/bench_layers.py measures."""

from typing import Any


def table(result: dict[str, Any]) -> str:
    """Draws and proposals per second by layer, then what follows for a large model."""
    lines = [
        "| layer | draws/s | proposals/s | of copying | two cores, draws/s | float16, draws/s | its error |",
        "|---|---|---|---|---|---|---|",
    ]
    by_case = {(row["outputs"], row["inputs"], row["gram"], row["cores"]): row for row in result["rows"]}
    copies = {int(size): rate for size, rate in result["ceilings"]["copy_bytes_per_second"].items()}
    firsts = [row for row in result["rows"] if (row["gram"], row["cores"]) == ("float32", 1)]
    for first in firsts:
        layer = first["outputs"], first["inputs"]
        half, both = by_case[*layer, "float16", 1], by_case.get((*layer, "float32", 2))
        lines.append(line_of(first, half, both, copies))
    return "\n".join(lines) + f"\n\n{circumstances(result, firsts)} {forecast(result['forecast'])}"


def line_of(
    first: dict[str, Any], half: dict[str, Any], both: dict[str, Any] | None, copies: dict[int, float]
) -> str:
    """A layer's line: in float32 on one core, then in float16, and on both cores where that was measured."""
    gram_bytes = 4 * first["inputs"] ** 2
    copying = copies[min((size for size in copies if size >= gram_bytes), default=max(copies))]
    on_both = "" if both is None else f"{both['draws_per_second'] / 1e3:,.0f} k"
    return (
        f"| {first['outputs']}x{first['inputs']} | {first['draws_per_second'] / 1e3:,.0f} k "
        f"| {first['proposals_per_second'] / 1e6:,.0f} M | {first['gram_bytes_per_second'] / copying:.0%} "
        f"| {on_both} "
        f"| {half['draws_per_second'] / 1e3:,.0f} k | {half['layer_error'] / first['layer_error'] - 1:+.2%} |"
    )


def circumstances(result: dict[str, Any], firsts: list[dict[str, Any]]) -> str:
    """What ran the measurement, and how fast the other annealer was, where it was there."""
    machine = result["machine"]
    text = (
        f"One core of {machine['processor']}, jax {machine['versions']['jax']}; medians of "
        f"{result['rounds']} rounds."
    )
    flips = [row["flips_per_second"] for row in firsts if row["flips_per_second"]]
    if not flips:
        return text
    return f"{text} dwave-samplers tried {flips[0] / 1e6:.1f} million flips a second in turns with the first."


def forecast(ahead: dict[str, Any]) -> str:
    """What a sweep over a large model would move and hold."""
    return (
        f"On paper, a model of {ahead['weights'] / 1e9:.1f} billion such "
        f"weights moves {ahead['bytes_per_sweep_float16'] / 1e12:,.0f} TB of float16 Gram matrices per sweep, "
        f"{ahead['hours_at_memory_bandwidth'] * 60:.1f} minutes at 3.35 TB/s, and holds "
        f"{ahead['largest_gram_bytes_float16'] / 1e6:,.0f} MB of them at a time."
    )
