"""Tries what a long run must survive, and saves the figures in scripts/results/endure.json.

python scripts/endure.py kills      # 100 times kill -9 in one run; 25 minutes
python scripts/endure.py cost       # what checkpoints take of the time and of the disk; 8 minutes
python scripts/endure.py soak       # half an hour at full load: memory, drift
python scripts/endure.py fuzz       # 20,000 damaged files and settings: each read, or refused in one line
"""

import argparse
import copy
import dataclasses
import filecmp
import gzip
import io
import json
import os
import random
import shutil
import signal
import statistics
import struct
import subprocess
import sys
import tempfile
import time
import tracemalloc
import warnings
import zipfile
import zlib
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np
import psutil
import safetensors.numpy

from sa_jax import cli, export, files
from sa_jax.commands.bench import proposals
from sa_jax.commands.run import checkpoint
from sa_jax.commands.run.settings import RunConfig
from sa_jax.export.packed import pack
from sa_jax.files import datasets, keras_files, torch_files, torch_pickles
from sa_jax.files.npz import npz_bytes
from sa_jax.networks import mlp
from sa_jax.types import InputError

ROOT = Path(__file__).resolve().parents[1]
RESULT = ROOT / "scripts" / "results" / "endure.json"
KILLS, ROUNDS = 100, 5
SOAK_STEPS = 5_000_000  # more than half an hour's; the drift is measured at each fifth of them
FUZZED = {"data": 2_500, "weights": 2_000, "packed": 1_000, "gin": 2_000, "settings": 2_300, "checkpoint": 200}
FUZZED |= {"torch": 4_000, "keras": 4_000, "gguf": 2_000}
# Those whose files declare lengths, and the bytes that reading a file of a few kB may take.
OF_LENGTHS, MOST_BYTES = ("data", "weights", "torch", "keras", "gguf"), 1 << 24
NUMBERS = (None, True, False, -1, 0, 1, 3, 1.5, float("nan"), float("inf"), 10**20)
ODD = (*NUMBERS, "", "x", [], [0], [8, 4], {}, b"")


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


def made(workdir: Path) -> list[Path]:
    """The checkpoints of a run that are whole."""
    return [path for path in workdir.glob("checkpoints/*/[0-9]*") if path.name.isdecimal()]


def kills(folder: Path) -> dict[str, Any]:
    """Kills one run again and again, and compares its end with that of a run left alone."""
    settings = {"WEIGHTS": "random", "NUM_STEPS": 2_500_000, "NUM_SAMPLES": 300, "CHECKPOINT_SECONDS": 0.5}
    finish(start(folder / "alone", "digits", **settings))
    draw, workdir, resumed, lost, damaged = random.Random(0), folder / "killed", 0, [], 0
    for number in range(KILLS):
        process = start(workdir, "digits", **settings)
        assert process.stderr is not None
        for line in iter(process.stderr.readline, ""):
            resumed += "resuming from step" in line
            damaged += "is damaged" in line
            if "resuming from step" in line or (number == 0 and "memory" in line):
                break
        while not made(workdir) and process.poll() is None:
            time.sleep(0.05)
        begun = time.time()
        time.sleep(draw.uniform(0.1, 1.5))
        if process.poll() is not None:
            raise SystemExit(f"endure: the run ended before it was killed {KILLS} times")
        process.kill()
        process.wait()
        # What a life annealed before its first checkpoint began with the life.
        lost.append(time.time() - max(begun, *(path.stat().st_mtime for path in made(workdir))))
        print(f"kill {number + 1}: {lost[-1]:.2f} s of annealing since the newest checkpoint", flush=True)
    said = finish(start(workdir, "digits", **settings))
    resumed += "resuming from step" in said
    same = all(filecmp.cmp(folder / "alone" / name, workdir / name, False) for name in ("masks.npz", "trace.csv"))
    return {
        "kills": KILLS,
        "resumed": resumed,
        "damaged_checkpoints_left_out": damaged,
        "checkpoint_seconds": settings["CHECKPOINT_SECONDS"],
        "most_seconds_of_annealing_lost": max(lost),
        "same_bits": same,
    }


def cost(folder: Path) -> dict[str, Any]:
    """Annealing with and without checkpoints in turns; and the size of one of 64 chains."""
    rates: dict[float, list[float]] = {0: [], 3: []}
    for number in range(ROUNDS):
        for every, found in rates.items():
            workdir = folder / f"{every}-{number}"
            macros = {"DENSITY": 0.05, "NUM_CHAINS": 2, "NUM_STEPS": 10_000, "CHECKPOINT_SECONDS": every}
            finish(start(workdir, "mlpnet_mnist", **macros))
            found.append(json.loads((workdir / "result.json").read_text())["anneal_seconds"])
            print(f"checkpoints every {every} s: {found[-1]:.1f} s", flush=True)
    slower = statistics.median(b / a for a, b in zip(rates[0], rates[3], strict=True)) - 1
    macros = {"DENSITY": 0.05, "NUM_CHAINS": 64, "NUM_SAMPLES": 100, "NUM_STEPS": 100_000, "CHECKPOINT_SECONDS": 1}
    process, workdir = start(folder / "large", "lenet300_mnist", WEIGHTS="random", **macros), folder / "large"
    while not made(workdir):
        if process.poll() is not None:
            raise SystemExit(f"endure: no checkpoint was made: {process.communicate()[1]}")
        time.sleep(0.1)
    process.terminate()
    process.communicate()
    size = max(sum(f.stat().st_size for f in step.rglob("*") if f.is_file()) for step in made(workdir))
    return {
        "seconds_without": rates[0],
        "seconds_with_one_every_3_s": rates[3],
        "share_of_time_every_3_s": slower,
        "bytes_of_64_chains_784_300_100_10": size,
        "exit_code": process.returncode,
    }


def soak(folder: Path, minutes: float = 30) -> dict[str, Any]:
    """A run of as many chains as there are cores, stopped after so long: its memory over time, and its drift."""
    macros = {"DENSITY": 0.05, "NUM_CHAINS": os.cpu_count() or 1, "NUM_SAMPLES": 10_000, "NUM_STEPS": SOAK_STEPS}
    process = start(folder / "run", "lenet300_mnist", **macros, CHECKPOINT_SECONDS=30)
    watched, sizes, begin = psutil.Process(process.pid), [], time.time()
    while time.time() < begin + 60 * minutes:
        if process.poll() is not None:
            raise SystemExit(f"endure: the run ended early: {process.communicate()[1]}")
        sizes.append((time.time() - begin, watched.memory_info().rss))
        time.sleep(5)
    process.terminate()
    process.communicate()
    (place,) = (path for path in (folder / "run/checkpoints").iterdir() if path.is_dir())
    with checkpoint.Checkpoints(place, lambda message: None) as checkpoints:
        saved = checkpoints.newest()
    assert saved is not None
    annealing = [size for at, size in sizes if at > 120]
    part = max(len(annealing) // 8, 1)
    return {
        "minutes": minutes,
        "chains": macros["NUM_CHAINS"],
        "steps": saved.step,
        "bytes": [statistics.median(annealing[first : first + part]) for first in range(0, 8 * part, part)],
        "max_energy_drift": saved.figures["drift"],
        "not_finite_proposals": int(np.sum(saved.chains["num_not_finite"])),
        "exit_code": process.returncode,
    }


def damaged(content: bytes, draw: random.Random) -> bytes:
    """A file's content cut, with bytes changed, doubled, left out, or with digits made huge."""
    changed, kind = bytearray(content), draw.randrange(5)
    for _ in range(draw.choice((1, 1, 2, 8))):
        at = draw.choice((draw.randrange(len(changed)), draw.randrange(min(len(changed), 200))))
        if kind == 0:
            del changed[max(at, 1) :]
        elif kind == 1:
            changed[at] = draw.randrange(256)
        elif kind == 2:
            changed[at:at] = changed[at : at + draw.randrange(1, 20)]
        elif kind == 3:
            del changed[at : at + draw.randrange(1, 20)]
            changed = changed or bytearray(b" ")
        else:
            digits = [i for i, byte in enumerate(changed[:400]) if chr(byte).isdecimal()] or [at]
            changed[draw.choice(digits)] = ord("9")
    return bytes(changed)


def changed_member(content: bytes, draw: random.Random) -> bytes:
    """A zip archive with one member changed, its bytes or values of its JSON, and with right checksums."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(content)) as old, zipfile.ZipFile(buffer, "w") as new:
        chosen = draw.choice([member for member in old.namelist() if old.getinfo(member).file_size])
        for member in old.namelist():
            part = old.read(member)
            if member == chosen:
                bend = member.endswith(".json") and draw.random() < 0.9
                part = bent(part, draw) if bend else damaged(part, draw)
            new.writestr(member, part)
    return buffer.getvalue()


def bent(text: bytes, draw: random.Random) -> bytes:
    """A JSON text with some values replaced by others."""
    whole = [json.loads(text)]
    for _ in range(draw.choice((1, 1, 1, 3))):
        places, waiting = [], [whole]
        while waiting:
            node = waiting.pop()
            places += [(node, key) for key in (node if isinstance(node, dict) else range(len(node)))]
            waiting += [
                part
                for part in (node.values() if isinstance(node, dict) else node)
                if isinstance(part, dict | list)
            ]
        node, key = draw.choice(places)
        others = [part[name] for part, name in places]
        node[key] = copy.deepcopy(draw.choice((*ODD[:-1], "tanh", "Dense", *draw.choices(others, k=9))))
    return json.dumps(whole[0]).encode()


def old_torch(arrays: dict[str, np.ndarray]) -> bytes:
    """The content of a file of tensors as PyTorch wrote it before version 1.6."""
    parts = [b"\x80\x02\x8a\nl\xfc\x9cF\xf9 j\xa8P\x19.", b"\x80\x02M\xe9\x03.", b"\x80\x02}."]
    keys = b"".join(b"X" + struct.pack("<I", len(str(i))) + str(i).encode() for i in range(len(arrays)))
    parts += [torch_pickles.pickled(arrays), b"\x80\x02](" + keys + b"e."]
    parts += [struct.pack("<q", array.size) + array.tobytes() for array in arrays.values()]
    return b"".join(parts)


def keras_archive(kernels: list[np.ndarray], is_functional: bool) -> bytes:
    """The content of a .keras archive with layers between its Dense layers."""
    import h5py

    inputs, width = kernels[0].shape
    layers = [
        {"class_name": "InputLayer", "config": {"name": "in", "batch_shape": [None, 2, inputs // 2]}},
        {"class_name": "Rescaling", "config": {"name": "scale", "scale": 0.5, "offset": [1.0] * (inputs // 2)}},
        {"class_name": "Flatten", "config": {"name": "flat", "data_format": "channels_last"}},
        {
            "class_name": "Normalization",
            "config": {"name": "n", "axis": [-1], "mean": [1.0] * inputs, "variance": [2.0] * inputs},
        },
        {
            "class_name": "Dense",
            "config": {"name": "a", "units": width, "activation": "linear", "use_bias": False},
        },
        {
            "class_name": "BatchNormalization",
            "config": {"name": "b", "axis": -1, "epsilon": 1e-3, "scale": True, "center": True},
        },
        {"class_name": "Activation", "config": {"name": "act", "activation": "relu"}},
        {"class_name": "Dropout", "config": {"name": "drop", "rate": 0.5}},
        {
            "class_name": "Dense",
            "config": {"name": "c", "units": kernels[1].shape[1], "activation": "softmax", "use_bias": False},
        },
    ]
    config: dict[str, Any] = {"name": "net", "layers": layers}
    if is_functional:
        source = None
        for layer in layers:
            layer["name"] = layer["config"]["name"]
            tensor = {"class_name": "__keras_tensor__", "config": {"keras_history": [source, 0, 0]}}
            layer["inbound_nodes"] = [{"args": [tensor], "kwargs": {}}] if source else []
            source = layer["name"]
        config["output_layers"] = [source, 0, 0]
    content, archive = io.BytesIO(), io.BytesIO()
    with h5py.File(content, "w") as file:
        for name, arrays in {
            "dense": kernels[:1],
            "dense_1": kernels[1:],
            "batch_normalization": [np.full(width, value, np.float32) for value in (1, 2, 3, 4)],
        }.items():
            for number, array in enumerate(arrays):
                file[f"layers/{name}/vars/{number}"] = array
    with zipfile.ZipFile(archive, "w") as made:
        kind = "Functional" if is_functional else "Sequential"
        made.writestr("config.json", json.dumps({"class_name": kind, "config": config}))
        made.writestr("model.weights.h5", content.getvalue())
    return archive.getvalue()


def gguf(draw: random.Random) -> bytes:
    """A file that begins as GGUF does, with counts and lengths of which most lie."""

    def length() -> bytes:
        return struct.pack("<Q", draw.choice((0, 1, 3, 8, 2**31, 2**40, 2**63 - 1, 2**64 - 1)))

    content = b"GGUF" + struct.pack("<I", draw.choice((1, 2, 3, 2**32 - 1))) + length() + length()
    for _ in range(draw.randrange(4)):  # pairs of keys and values: text, an array of text, a number
        kind = draw.choice((8, 9, 4, 99))
        content += length() + b"general.name" + struct.pack("<I", kind)
        content += struct.pack("<I", 8) + length() if kind == 9 else length()
    for _ in range(draw.randrange(3)):  # tensors: name, number of axes, shape, type, offset
        content += length() + b"token_embd.weight" + struct.pack("<I", draw.choice((1, 2, 4, 2**32 - 1)))
        content += length() + length() + struct.pack("<I", draw.randrange(40)) + length()
    return content + draw.randbytes(draw.randrange(300))


def fuzz(folder: Path) -> dict[str, Any]:
    """Damaged inputs of each kind: how many were read and how many refused; all else is raised."""
    rng = np.random.default_rng(0)
    np.savez(folder / "data.npz", x=rng.random((40, 6), np.float32), y=rng.integers(0, 3, 40))
    kernels = {f"layer{i}/kernel": rng.random(s, np.float32) for i, s in enumerate(((6, 4), (4, 3)))}
    (folder / "weights.npz").write_bytes(npz_bytes(kernels))
    safetensors.numpy.save_file(kernels, folder / "weights.safetensors")
    matrices = [*kernels.values()]
    (folder / "weights.weights.h5").write_bytes(keras_files.sequential_bytes(matrices, [None, None]))
    (folder / "weights.pt").write_bytes(torch_files.torch_bytes(kernels))
    (folder / "old.pt").write_bytes(old_torch(kernels))
    for name, is_functional in (("sequential", False), ("functional", True)):
        (folder / f"{name}.keras").write_bytes(keras_archive(matrices, is_functional))
    network = mlp.Network(tuple(map(jnp.asarray, matrices)), (None, None))
    cleaned = export.clean(network, rng.random(network.total) < 0.6)
    (folder / "network.sajx").write_bytes(pack(export.quantize(cleaned, [3, 8])))
    for name, array in (("images", rng.integers(0, 255, (30, 4, 4))), ("labels", rng.integers(0, 9, 30))):
        header = struct.pack(">HBB", 0, 8, array.ndim) + struct.pack(f">{array.ndim}I", *array.shape)
        (folder / f"{name}.idx").write_bytes(header + array.astype(np.uint8).tobytes())
        (folder / f"{name}.idx.gz").write_bytes(gzip.compress(header + array.astype(np.uint8).tobytes()))
    chains = {"best": np.arange(50, dtype=np.uint8).reshape(2, 25)}
    saved = checkpoint.Saved(100, chains, {"step": np.arange(3)}, {"cpu": 1.0})
    with checkpoint.Checkpoints(folder / "run/checkpoints/7", lambda message: None) as checkpoints:
        checkpoints.save(saved)
    gin_text = (ROOT / "configs/digits.gin").read_bytes()
    fields = [field.name for field in dataclasses.fields(RunConfig)]

    def read(path: Path, content: bytes, by: Any) -> None:
        path.write_bytes(content)
        by(path)

    def load(path: Path) -> None:
        mlp.network_of(files.load(path))

    def one(kind: str, draw: random.Random) -> None:
        if kind == "data":
            name = draw.choice(("data.npz", "images.idx", "labels.idx.gz"))
            by = datasets.read_idx if "idx" in name else lambda path: datasets.load_dataset(str(path))
            read(folder / f"damaged-{name}", damaged((folder / name).read_bytes(), draw), by)
        elif kind == "weights":
            name = draw.choice(("weights.npz", "weights.safetensors", "weights.weights.h5"))
            read(folder / f"damaged-{name}", damaged((folder / name).read_bytes(), draw), load)
        elif kind == "torch":
            whole = (folder / draw.choice(("weights.pt", "old.pt"))).read_bytes()
            inside = zipfile.is_zipfile(io.BytesIO(whole)) and draw.random() < 0.6
            content = changed_member(whole, draw) if inside else damaged(whole, draw)
            read(folder / "damaged.pt", content, load)
        elif kind == "keras":
            whole = (folder / f"{draw.choice(('sequential', 'functional'))}.keras").read_bytes()
            content = changed_member(whole, draw) if draw.random() < 0.8 else damaged(whole, draw)
            read(folder / "damaged.keras", content, load)
        elif kind == "gguf":
            content = gguf(draw) if draw.random() < 0.5 else damaged(gguf(draw), draw)
            read(
                folder / f"damaged.{draw.choice(('gguf', 'npz', 'safetensors', 'pt', 'keras', 'h5'))}",
                content,
                load,
            )
        elif kind == "packed":
            content = damaged((folder / "network.sajx").read_bytes()[:-4], draw)
            # With a checksum that is right, so that the reader has to look at every number.
            content += struct.pack("<I", zlib.crc32(content))
            read(folder / "damaged.sajx", content, export.read_packed)
        elif kind == "gin":
            by = lambda path: cli.load_config(str(path), [], cli.gin_run, cli.MACROS)  # noqa: E731
            read(folder / "damaged.gin", damaged(gin_text, draw), by)
        elif kind == "settings":
            settings: dict[str, Any] = {draw.choice(fields): draw.choice(ODD) for _ in range(draw.choice((1, 2)))}
            RunConfig(**settings)
        else:
            shutil.rmtree(folder / "damaged", ignore_errors=True)
            shutil.copytree(folder / "run", folder / "damaged")
            paths = [path for path in (folder / "damaged").rglob("*") if path.is_file()]
            path = draw.choice(sorted(path for path in paths if path.stat().st_size))
            path.write_bytes(damaged(path.read_bytes(), draw))
            place = folder / "damaged/checkpoints/7"
            with checkpoint.Checkpoints(place, lambda message: None) as checkpoints:
                found = checkpoints.newest()
            if found is None:
                raise InputError("left out")
            np.testing.assert_array_equal(found.chains["best"], chains["best"])

    counts = {}
    for kind, number in FUZZED.items():
        refused = 0
        if kind in OF_LENGTHS:
            tracemalloc.start()
        for case in range(number):
            signal.alarm(20)  # a hang ends with a trace
            tracemalloc.reset_peak()
            before = tracemalloc.get_traced_memory()[0]
            try:
                with warnings.catch_warnings():
                    warnings.simplefilter("error")
                    one(kind, random.Random(f"{kind} {case}"))
            except InputError as error:
                assert "\n" not in str(error), error
                refused += 1
            except BaseException:
                print(f"{kind} case {case}", file=sys.stderr)
                raise
            taken = tracemalloc.get_traced_memory()[1] - before
            assert taken < MOST_BYTES, f"{kind} case {case} took {taken:,} bytes"
        tracemalloc.stop()
        signal.alarm(0)
        counts[kind] = {"read": number - refused, "refused": refused}
        print(kind, counts[kind], flush=True)
    return counts


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=["kills", "cost", "soak", "fuzz"])
    what = parser.parse_args().what
    with tempfile.TemporaryDirectory() as folder:
        measure = {"kills": kills, "cost": cost, "soak": soak, "fuzz": fuzz}[what]
        found = measure(Path(folder)) | {"machine": proposals.machine()}
    before = json.loads(RESULT.read_text()) if RESULT.exists() else {}
    RESULT.write_text(json.dumps(before | {what: found}, indent=1) + "\n")
    print(json.dumps(found, indent=1))


if __name__ == "__main__":
    main()
