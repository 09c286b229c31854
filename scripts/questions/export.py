"""How large, fast and accurate exported networks are: measuring, table."""

import sys
from typing import Any

from sa_jax.commands.bench import exports

from .saved import ROOT


def measure() -> dict[str, Any]:
    """Every exported form of 784-300-100-10 at six densities, annealed first unless runs/export holds them."""
    return exports.measure(exports.run_all(ROOT / "runs/export", False, tell), tell=tell)


def tell(message: str) -> None:
    """Tells the user how far the measurement is."""
    print(message, file=sys.stderr)


def table(result: dict[str, Any]) -> str:
    """Bytes, microseconds and accuracy by density and bits, then the dense network and all that was checked."""
    rows = result["rows"]
    lines = [
        "| kept | C, float32: kB | us | % right | C, 4 bits: kB | us | % right | packed: kB | masks over bound |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    smallest = {(row["density"], row["bits"]): row for row in rows if row["form"] == "smallest"}
    for density in sorted({row["density"] for row in rows if row["density"] < 1}, reverse=True):
        lines.append(line_of(smallest[density, 32], smallest[density, 4]))
    machine = result["machine"]
    return "\n".join(lines) + (
        f"\n\nThe dense network: {dense(rows)}. {exports.honest_line(result)} {checks(rows)} "
        f"One core of {machine['processor']}, medians of {exports.ROUNDS} "
        f"rounds in turns; {result['compiler']}; vectorized: {result['vectorized']}; one seed."
    )


def line_of(whole: dict[str, Any], few: dict[str, Any]) -> str:
    """A density's line, from the rows of its smallest forms: in float32, and with few bits."""
    over = few["mask_bytes"] / few["mask_entropy_bytes"] - 1
    packed = f"{few['packed_bytes'] / 1e3:.1f} | {over:+.1%}"
    return f"| {100 * whole['density']:g} % | {cells(whole)} | {cells(few)} | {packed} |"


def cells(row: dict[str, Any]) -> str:
    """Bytes, microseconds and accuracy."""
    return f"{row['bytes'] / 1e3:,.1f} | {row['microseconds']:.0f} | {100 * row['test_accuracy']:.1f}"


def dense(rows: list[dict[str, Any]]) -> str:
    """The dense network in each engine."""
    return "; ".join(
        f"{row['engine']}{', 8 bits' if row['bits'] == 8 else ''}: {row['bytes'] / 1e3:,.0f} kB, "
        f"{row['microseconds']:.0f} us, {100 * row['test_accuracy']:.1f} %"
        for row in rows
        if row["density"] == 1
    )


def checks(rows: list[dict[str, Any]]) -> str:
    """How far the programs' predictions and logits are from those of JAX."""
    int8 = [row for row in rows if row["engine"] == "onnxruntime" and row["bits"] == 8]
    wrong, wrong_int8 = (sum(row["other_predictions"] for row in some) for some in (rows, int8))
    worst = max(row["largest_relative_error"] for row in rows if row["engine"].startswith("C"))
    return (
        f"Of {len(rows)} programs, each over "
        f"all test images, {wrong - wrong_int8} predictions differ from JAX's with the same weights, but for "
        f"onnxruntime's 8 bits, where {wrong_int8} differ from those of float32; logits in C are off by at "
        f"most {worst:.1g} of the largest."
    )
