"""The paper's experiment: its page holds the figures that were measured, and its script names what exists."""

import runpy
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from sa_jax import cli
from sa_jax.commands.compare import host as compare
from sa_jax.commands.compare.settings import Cell
from sa_jax.files.npz import npz_bytes

ROOT = Path(__file__).parents[2]


def row_of(method, density, accuracy, weights="pretrain", **more):
    names = {"dataset": "mnist", "network": "784-300-100-10", "weights": weights, "method": method, "seed": 0}
    figures = {
        "density": density,
        "test_accuracy": accuracy,
        "validation_accuracy": accuracy,
        "test_loss": 0.25,
        "cpu_seconds": 12.0,
    }
    return dict.fromkeys(compare.FIELDS) | names | figures | {"num_evaluations": 1000} | more


def save(folder, rows):
    (folder / "cells").mkdir(parents=True)
    (folder / "results.csv").write_text(compare.table_csv(rows, compare.FIELDS))
    steps = np.array([500, 1000])
    for row in rows:
        energy = np.array([[1.0, row["density"]]])
        trace = {"step": steps, "temperature": np.array([1e-3, 1e-5]), "energy": energy, "best_energy": energy}
        trace |= {"acceptance": np.array([[0.5, 0.1]])}
        arrays = {f"trace_{name}": values for name, values in trace.items()}
        cell = Cell("mnist", row["weights"], (300, 100), row["method"], row["density"], row["seed"])
        (folder / "cells" / f"{cell.name}.npz").write_bytes(npz_bytes(arrays))


@pytest.mark.slow
def test_page_and_pictures(tmp_path):
    rows = []
    for weights, accuracies in (("pretrain", (0.975, 0.95)), ("random", (0.9, 0.8))):
        rows.append(row_of("dense", 1.0, 0.98 if weights == "pretrain" else 0.1, weights))
        for density, accuracy in zip((0.1, 0.02), accuracies, strict=True):
            for method in ("random", "magnitude_global", "anneal", "anneal_random_start"):
                rows.append(row_of(method, density, accuracy - 0.1 * method.startswith("m"), weights))
    save(tmp_path / "in/main", rows)
    schedules = [row_of("dense", 1.0, 0.98), row_of("greedy", 0.02, 0.5), row_of("hot_fast", 0.02, 0.8765)]
    save(tmp_path / "in/schedules", schedules)
    command = [sys.executable, str(ROOT / "scripts/paper.py"), str(tmp_path / "in"), f"--out={tmp_path / 'out'}"]
    subprocess.run(command, check=True)
    text = (tmp_path / "out/paper.md").read_text()
    assert "Dense: 98.00 (0.250). Annealing stays within 1 point of it on validation images with up to 90" in text
    assert "| annealed, from the largest weights | 97.50 (0.25) | 95.00 (0.25) | 12 |" in text
    assert "| largest weights | 87.50 (0.25) | 85.00 (0.25) | 12 |" in text
    assert "| hot, fast | 1,000 | 0.0200, 87.65 |" in text
    for name in ("paper_accuracy.png", "paper_courses.png", "paper_schedules.png", "paper.csv"):
        assert (tmp_path / "out" / name).stat().st_size > 1_000


def test_claim_is_refused_where_nothing_is_kept():
    claim = runpy.run_path(str(ROOT / "scripts/paper.py"))["claim"]
    rows = [row_of("dense", 1.0, 0.98), row_of("anneal", 0.1, 0.9)]
    assert "At no percentage here" in claim([row | {"seed": "0"} for row in rows])


@pytest.mark.parametrize("quick", [False, True])
def test_script_compares_what_can_be_compared(quick):
    text = (ROOT / "scripts/reproduce_paper.sh").read_text()
    quoted = [line.strip() for line in text.splitlines() if line.strip().startswith("--gin_bindings=")]
    bindings = [line.split('"')[1] for line in quoted] if quick else []
    assert len(bindings) == (6 if quick else 0)
    for name in ("paper", "paper_schedules"):
        config = cli.load_config(f"configs/{name}.gin", bindings, cli.gin_compare, cli.COMPARE_MACROS)
        assert len(list(config.cells())) < (30 if quick else 400)
    assert subprocess.run(["bash", "-n", str(ROOT / "scripts/reproduce_paper.sh")]).returncode == 0
