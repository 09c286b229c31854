"""Tries what a long run must survive, and saves the figures in scripts/results/endure.json.

python scripts/endure.py kills      # 100 times kill -9 in one run; 15 minutes
python scripts/endure.py cost       # what checkpoints take of the time and of the disk; 8 minutes
python scripts/endure.py soak       # half an hour at full load: memory, drift
"""

import argparse
import filecmp
import json
import os
import random
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import psutil

from sa_jax import bench

ROOT = Path(__file__).resolve().parents[1]
RESULT = ROOT / "scripts" / "results" / "endure.json"
KILLS, ROUNDS = 100, 5


def start(workdir: Path, config: str, **macros: Any) -> subprocess.Popen:
    """A run of `configs/CONFIG.gin` with macros overridden, its messages in a pipe."""
    bindings = [f"--gin_bindings={name}={value!r}" for name, value in macros.items()]
    command = [sys.executable, str(ROOT / "scripts/run.py"), f"--gin_file={ROOT / 'configs' / config}.gin"]
    return subprocess.Popen(
        [*command, f"--workdir={workdir}", *bindings],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
        cwd=ROOT,
    )


def finish(process: subprocess.Popen) -> str:
    """Its messages; raises where it fails."""
    _, said = process.communicate()
    if process.returncode:
        raise SystemExit(f"endure: a run ended with {process.returncode}: {said}")
    return said


def kills(folder: Path) -> dict[str, Any]:
    """Kills one run again and again, and compares its end with that of a run left alone."""
    settings = {"WEIGHTS": "random", "NUM_STEPS": 4_000_000, "NUM_SAMPLES": 300, "CHECKPOINT_SECONDS": 0.5}
    os.environ |= {"JAX_COMPILATION_CACHE_DIR": str(folder / "compiled")}
    os.environ |= {"JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0"}
    finish(start(folder / "alone", "digits", **settings))
    draw, workdir, resumed, lost, damaged = random.Random(0), folder / "killed", 0, [], 0
    for number in range(KILLS):
        process = start(workdir, "digits", **settings)
        assert process.stderr is not None
        for line in iter(process.stderr.readline, ""):
            resumed += "going on from step" in line
            damaged += "is damaged" in line
            if "going on from step" in line or (number == 0 and "memory" in line):
                break
        time.sleep(draw.uniform(0.1, 1.5))
        if process.poll() is not None:
            raise SystemExit(f"endure: the run ended before it was killed {KILLS} times")
        process.kill()
        process.wait()
        newest = [path.stat().st_mtime for path in workdir.glob("checkpoints/*/[0-9]*") if path.name.isdecimal()]
        lost.append(time.time() - max(newest))
        print(f"kill {number + 1}: {lost[-1]:.2f} s after the newest checkpoint", flush=True)
    said = finish(start(workdir, "digits", **settings))
    resumed += "going on from step" in said
    same = all(filecmp.cmp(folder / "alone" / name, workdir / name, False) for name in ("masks.npz", "trace.csv"))
    return {
        "kills": KILLS,
        "resumed": resumed,
        "damaged_checkpoints_left_out": damaged,
        "checkpoint_seconds": settings["CHECKPOINT_SECONDS"],
        "most_seconds_since_the_newest_checkpoint": max(lost),
        "same_bits": same,
    }


def cost(folder: Path) -> dict[str, Any]:
    """Annealing with and without checkpoints in turns; and the size of one of 64 chains."""
    rates: dict[float, list[float]] = {0: [], 3: []}
    for number in range(ROUNDS):
        for every, found in rates.items():
            workdir = folder / f"{every}-{number}"
            macros = {"DENSITY": 0.05, "NUM_CHAINS": 2, "NUM_STEPS": 200_000, "CHECKPOINT_SECONDS": every}
            finish(start(workdir, "mlpnet_mnist", **macros))
            found.append(json.loads((workdir / "result.json").read_text())["anneal_seconds"])
            print(f"checkpoints every {every} s: {found[-1]:.1f} s", flush=True)
    slower = statistics.median(rates[3]) / statistics.median(rates[0]) - 1
    macros = {"DENSITY": 0.05, "NUM_CHAINS": 64, "NUM_SAMPLES": 100, "NUM_STEPS": 100_000, "CHECKPOINT_SECONDS": 1}
    process, workdir = start(folder / "large", "lenet300_mnist", WEIGHTS="random", **macros), folder / "large"
    while not (steps := [p for p in workdir.glob("checkpoints/*/[0-9]*") if p.name.isdecimal()]):
        if process.poll() is not None:
            raise SystemExit(f"endure: no checkpoint was made: {process.communicate()[1]}")
        time.sleep(0.1)
    process.terminate()
    process.communicate()
    steps = [p for p in workdir.glob("checkpoints/*/[0-9]*") if p.name.isdecimal()]
    size = max(sum(f.stat().st_size for f in step.rglob("*") if f.is_file()) for step in steps)
    return {
        "seconds_without": rates[0],
        "seconds_with_one_every_3_s": rates[3],
        "share_of_time_every_3_s": slower,
        "bytes_of_64_chains_784_300_100_10": size,
        "exit_code": process.returncode,
    }


def soak(folder: Path, minutes: float = 30) -> dict[str, Any]:
    """A long run of as many chains as there are cores: its memory over time, and its drift."""
    macros = {"DENSITY": 0.05, "NUM_CHAINS": os.cpu_count() or 1, "NUM_SAMPLES": 10_000}
    macros |= {"NUM_STEPS": round(minutes * 60 * 1_500) // 1_000 * 1_000, "CHECKPOINT_SECONDS": 30}
    process, sizes, begin = start(folder / "run", "lenet300_mnist", **macros), [], time.time()
    watched = psutil.Process(process.pid)
    while process.poll() is None:
        try:
            sizes.append((time.time() - begin, watched.memory_info().rss))
        except psutil.NoSuchProcess:
            break
        time.sleep(5)
    finish(process)
    result = json.loads((folder / "run/result.json").read_text())
    annealing = [size for at, size in sizes if 120 < at < sizes[-1][0] - 60]
    quarter = max(len(annealing) // 4, 1)
    return {
        "minutes": result["anneal_seconds"] / 60,
        "chains": result["num_chains"],
        "first_quarter_bytes": statistics.median(annealing[:quarter]),
        "last_quarter_bytes": statistics.median(annealing[-quarter:]),
        "max_energy_drift": result["max_energy_drift"],
        "best_energy": result["best_energy"],
        "not_finite_proposals": result["not_finite_proposals"],
    }


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=["kills", "cost", "soak"])
    what = parser.parse_args().what
    with tempfile.TemporaryDirectory() as folder:
        found = {"kills": kills, "cost": cost, "soak": soak}[what](Path(folder)) | {"machine": bench.machine()}
    before = json.loads(RESULT.read_text()) if RESULT.exists() else {}
    RESULT.write_text(json.dumps(before | {what: found}, indent=1) + "\n")
    print(json.dumps(found, indent=1))


if __name__ == "__main__":
    main()
