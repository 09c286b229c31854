"""The script that prunes SmolLM2, on a tiny random model of its shape and on its own small texts."""

import gzip
import io
import json
import struct
import sys
import tarfile
import zlib
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest

from tests.scripts import llama_files

pytest.importorskip("gguf", reason="needs gguf")
sys.path.insert(0, str(Path(__file__).parents[2] / "scripts"))
import prune_smollm
import smollm

METHODS = ("magnitude", "wanda")


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """A folder with a tiny model and two texts, and a script whose tables are small."""
    llama_files.write_llama(tmp_path / "model.gguf", llama_files.tensors())
    for name, letters in (("one", "abc 12\n"), ("two", "cab 21\n"), ("three", "bca 3\n")):
        draw = np.random.default_rng(len(name))
        (tmp_path / f"{name}.txt").write_text("".join(draw.choice(list(letters), 400)))
    for name, value in (("CALIBRATED", 4), ("EVALUATED", 2), ("LENGTH", 8)):
        monkeypatch.setattr(smollm, name, value)
    for name, value in (("PATTERNS", ("unit:0.5", "2:4")), ("SEEDS", (0, 1)), ("SWEEPS", 0.1)):
        monkeypatch.setattr(prune_smollm, name, value)
    monkeypatch.setattr(prune_smollm, "ProcessPoolExecutor", lambda jobs, context: ThreadPoolExecutor(jobs))
    return tmp_path


def run(monkeypatch, folder, *arguments):
    texts = [f"--calibration={folder / 'one.txt'}", f"--evaluation={folder / 'two.txt'}"]
    monkeypatch.setattr(sys, "argv", ["prune_smollm.py", str(folder), *texts, *arguments])
    prune_smollm.main()


@pytest.mark.slow
def test_writes_tables_and_measures_only_what_is_missing(folder, monkeypatch):
    chosen = {name: prune_smollm.METHODS[name]._replace(seeds=(0, 1)) for name in METHODS}
    monkeypatch.setattr(prune_smollm, "METHODS", chosen)
    run(monkeypatch, folder, f"--evaluation={folder / 'three.txt'}")
    written = (folder / "smollm.md").read_text()
    assert written.count("| Wanda |") == 3 and "perplexity, three" in written and "**" in written
    assert "Calibrated on 4 windows of 8 tokens, drawn with the seeds 0, 1 from" in written
    result = json.loads((folder / "smollm.json").read_text())
    assert len(result["rows"]) == 1 + 2 * 2 * 2 and result["tokens"]["two"] == 2 * 8
    files = sorted(folder.glob("cells/*/*.json"))
    before = {path: path.stat().st_mtime_ns for path in files}
    files[3].unlink()
    run(monkeypatch, folder, f"--evaluation={folder / 'three.txt'}")
    assert {path for path in files if path.stat().st_mtime_ns != before[path]} == {files[3]}
    assert (folder / "smollm.md").read_text().count("| Wanda |") == 3
    run(monkeypatch, folder, "--dense_inputs", "--cell=wanda,2:4,1")  # other settings have a folder of their own
    assert len(list(folder.glob("cells/*"))) == 2


@pytest.mark.slow
def test_every_method_keeps_the_same_share(folder):
    tokens = prune_smollm.tokens_for(folder, folder / "one.txt", [folder / "two.txt"])
    model, errors = smollm.load(folder), {}
    for name, method in prune_smollm.METHODS.items():
        row = prune_smollm.measure(model, tokens, prune_smollm.Cell(name, "unit:0.5", 0), dense_inputs=True)
        assert row["kept"] == pytest.approx(0.5, abs=0.01) and len(row["layer_errors"]) == 14
        assert np.isfinite(row["perplexity"]["two"]), method.label
        errors[name] = row["layer_error"]
    assert errors["anneal_refit"] < errors["anneal"] < errors["magnitude"]


def test_calibration_and_measurement_must_have_other_texts(folder, monkeypatch, capsys):
    for arguments, part in (
        ([f"--evaluation={folder / 'one.txt'}"], "must not be both"),
        ([f"--evaluation={folder / 'four.txt'}"], "there is no file"),
    ):
        with pytest.raises(SystemExit):
            run(monkeypatch, folder, *arguments)
        assert part in capsys.readouterr().err
    (folder / "two.txt").write_text("abc")
    with pytest.raises(SystemExit, match=r"two has 1 tokens; at least 16 are needed"):
        run(monkeypatch, folder)
    (folder / "model.gguf").unlink()
    with pytest.raises(SystemExit, match=r"must hold one \.gguf file, not 0"):
        run(monkeypatch, folder)


def test_windows_lie_within_the_text():
    tokens = np.arange(100, dtype=np.int32)
    spread = smollm.spread_windows(tokens, 4, 10)
    assert spread[:, 0].tolist() == [0, 30, 60, 90] and (np.diff(spread) == 1).all()
    drawn = smollm.drawn_windows(tokens, 0, 500, 10)
    assert set(drawn[:, 0]) == set(range(91)) and (np.diff(drawn) == 1).all()
    np.testing.assert_array_equal(drawn, smollm.drawn_windows(tokens, 0, 500, 10))


def test_texts_come_out_of_their_packages():
    file = gzip.compress(b"word\n  A {cross\n  reference} and\n  more.\n\n  Next")
    with io.BytesIO() as packed, tarfile.open(fileobj=packed, mode="w:xz") as archive:
        entry = tarfile.TarInfo("./a/b.dict.dz")
        entry.size = len(file)
        archive.addfile(entry, io.BytesIO(file))
        archive.close()
        content = packed.getvalue()

    def part(name, content):
        return f"{name:<48}{len(content):<10}`\n".encode() + content + b"\n" * (len(content) % 2)

    package = b"!<arch>\n" + part("debian-binary", b"2.0\n1") + part("data.tar.xz", content)
    text = smollm.prose(smollm.entries_of_dictd(smollm.member(package, "a/b.dict.dz")))
    assert text == "word A cross reference and more.\n\nNext"


def test_lines_come_out_of_a_database_of_r():
    def vector(*lines):
        head = b"X\n" + struct.pack(">iii", 3, 0x40201, 0x30500) + struct.pack(">i", 5) + b"UTF-8"
        texts = (struct.pack(">ii", 0x40009, len(line)) + line.encode() for line in lines)
        body = head + struct.pack(">ii", 16, len(lines)) + b"".join(texts)
        return struct.pack(">i", len(body)) + zlib.compress(body)

    assert smollm.lines_of_r(vector("EMMA", "", "by") + vector("END")) == "EMMA\n\nby\nEND"
