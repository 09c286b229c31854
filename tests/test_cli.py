"""The command line as a user types it: good runs, and a message of one line with exit code 2 for each mistake."""

import ast
import json
import re
import runpy
import shutil
import sys
from pathlib import Path

import numpy as np
import pytest

import sa_jax
from sa_jax import cli

ROOT = Path(__file__).parents[1]
OTHERS = {"compare_digits", "compare_lenet300", "compare_lenet300_polish", "compare_mlpnet"}
OTHERS |= {"paper", "paper_schedules", "layers"}
CONFIGS = [path for path in sorted(ROOT.glob("configs/*.gin")) if path.stem not in OTHERS]
DIGITS = str(ROOT / "configs/digits.gin")
TINY = ["WEIGHTS='random'", "HIDDEN=[12]", "DENSITY=0.05", "NUM_STEPS=400", "NUM_SAMPLES=200"]


def arguments(workdir, *bindings, gin_file=DIGITS):
    return ["run", f"--gin_file={gin_file}", *(f"--gin_bindings={b}" for b in bindings), f"--workdir={workdir}"]


@pytest.mark.slow
def test_run_with_overridden_macros(tmp_path, capsys):
    assert cli.main(arguments(tmp_path / "run", *TINY)) == 0
    output = capsys.readouterr()
    result = json.loads((tmp_path / "run" / "result.json").read_text())
    assert result["kept"] == 44 and result["total"] == 888 and result["num_steps"] == 400
    assert "44 of 888 branches kept" in output.out and str(tmp_path / "run" / "report.html") in output.out
    assert f"  {result['worth']}\n" in output.out
    # No progress display where there is no terminal.
    assert output.err.startswith("sa-jax: needs ") and output.err.count("\n") == 1

    # The settings it leaves behind are the run.
    again = arguments(tmp_path / "again", gin_file=tmp_path / "run" / "operative.gin")
    assert cli.main(again) == 0
    for name in ("masks.npz", "trace.csv", "operative.gin"):
        assert (tmp_path / "run" / name).read_bytes() == (tmp_path / "again" / name).read_bytes()

    assert cli.main(again) == 2
    assert "already holds a run's result" in capsys.readouterr().err
    assert cli.main([*again, "--overwrite"]) == 0


@pytest.mark.slow
def test_script_is_the_same_command(tmp_path, monkeypatch):
    monkeypatch.setattr(sys, "argv", ["run.py", *arguments(tmp_path / "run", *TINY)[1:]])
    with pytest.raises(SystemExit) as exit:
        runpy.run_path(str(ROOT / "scripts/run.py"), run_name="__main__")
    assert exit.value.code == 0
    assert (tmp_path / "run" / "result.json").exists()


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_every_config_opens_with_the_same_macros(path, capsys):
    text = path.read_text()
    names = [line.split(" = ")[0] for line in text.splitlines() if line[:1].isupper()]
    assert tuple(names) == cli.MACROS
    # Found from anywhere, and everyday overriding is enough.
    name = f"configs/{path.name}"
    assert cli.main(["run", f"--gin_file={name}", "--gin_bindings=NUM_STEPS=77", "--dry_run"]) == 0
    printed = capsys.readouterr().out
    assert "NUM_STEPS = 77" in printed and "run.num_steps = %NUM_STEPS" in printed


def test_all_configs_are_there():
    assert [path.stem for path in CONFIGS] == [
        "digits",
        "lenet300_fashion",
        "lenet300_mnist",
        "mlpnet_mnist",
        "mlpnet_mnist_derivative_free",
        "mlpnet_mnist_long",
        "mlpnet_mnist_nudge",
        "random_weights_mnist",
    ]


@pytest.mark.slow
def test_a_schedule_of_ones_own(tmp_path, monkeypatch, capsys):
    (tmp_path / "my_schedules.py").write_text(
        "import gin\n@gin.configurable\ndef sawtooth(step):\n    return 0.01 * (1 - (step % 100) / 100)\n"
    )
    (tmp_path / "own.gin").write_text(
        f"import my_schedules\ninclude '{DIGITS}'\nrun.schedule = @my_schedules.sawtooth\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    assert cli.main(arguments(tmp_path / "run", *TINY, gin_file=tmp_path / "own.gin")) == 0
    assert json.loads((tmp_path / "run" / "result.json").read_text())["schedule"] == "sawtooth"


BAD_BINDINGS = {
    "DENSITY=0": "DENSITY must be a finite number above 0 and at most 1, or None to search for it, not 0",
    "DENSITY=1.5": "DENSITY must be a finite number above 0 and at most 1, or None to search for it, not 1.5",
    "DENSITY='half'": "DENSITY must be a finite number above 0 and at most 1",
    "DENSITY=1e-9": "density 1e-09 keeps 0 of 2720 branches; the least that keeps one is 0.00037",
    "run.target_accuracy=0.9": "set DENSITY = None to search for the density, or remove run.target_accuracy",
    "run.tolerance=-0.1": "run.tolerance must be a finite number of at least 0 and below 1, not -0.1",
    "NUM_STEPS=0": "NUM_STEPS must be a whole number from 1 to 2147483647, or None to choose it by run.budget",
    "NUM_STEPS=1e5": "NUM_STEPS must be a whole number from 1 to 2147483647, or None to choose it by run.budget",
    "NUM_CHAINS=0": "NUM_CHAINS must be a whole number of at least 1, not 0",
    "SEED='a'": "SEED must be a whole number from 0",
    "HIDDEN=32": "HIDDEN must be a list of whole numbers such as [300, 100], not 32",
    "DATASET='mnits'": "unknown dataset 'mnits'; known: digits, mnist, fashion_mnist, or the path of an .npz",
    "DATASET='none.npz'": "file none.npz is not there",
    "WEIGHTS='none.npz'": "file none.npz is not there",
    "DENSTY=0.1": "no setting uses DENSTY; did you mean DENSITY?",
    "SPEED=3": "no setting uses SPEED; did you mean SEED?",
    "run.densty=0.1": "run has no setting 'densty'; did you mean density?",
    "ran.density=0.1": "unknown name 'ran'",
    "density=0.1": "did you mean DENSITY?",
    "DENSITY=0.1, SEED=1": "give --gin_bindings once for each",
    "DENSITY=%DENSITY": "a name refers to itself",
    "run.schedule=@geometric": "the built-in schedules are given by name, such as 'geometric'",
    "run.initializer=['he_normal']": "run.initializer must be one of",
    "HIDDEN=[100_000_000_000]": "HIDDEN gives 7,400,000,000,000 branches, but at most 134,217,728 are possible",
    "DENSITY=%DENSTY": "%DENSTY is used, but has no value; did you mean DENSITY?",
    "DATASET=mnist": "text needs quotes",
    "HIDDEN=[32,": "a bracket or a quote is not closed",
    "DENSITY=": "a value is not a Python literal",
    "DENSITY 0.1": "not of the form NAME = value",
    "run.schedule=@nothing": "unknown name '@nothing'",
    "import nothing_of_the_kind": "No module named 'nothing_of_the_kind'",
    "include 'nothing.gin'": "gin file nothing.gin is not there",
}


@pytest.mark.parametrize("binding", BAD_BINDINGS)
def test_bad_bindings(binding, tmp_path, capsys):
    assert cli.main(arguments(tmp_path / "run", binding)) == 2
    output = capsys.readouterr()
    assert output.err.count("\n") == 1 and output.err.startswith("sa-jax: ") and output.out == ""
    assert BAD_BINDINGS[binding] in output.err
    assert not (tmp_path / "run").exists()


def test_bad_gin_files(tmp_path, capsys):
    (tmp_path / "bad.gin").write_text("DENSITY = 0.1\nSEED = = 3\n")
    (tmp_path / "binary.gin").write_bytes(b"\xff\xfe\x00")
    for name, message in {
        "bad.gin": "line 2",
        "binary.gin": "is not a text file",
        "none.gin": "none.gin is not there",
        "": "is not there",
    }.items():
        assert cli.main(arguments(tmp_path / "run", gin_file=tmp_path / name)) == 2
        error = capsys.readouterr().err
        assert message in error and error.count("\n") == 1
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        ([], "required: COMMAND"),
        (["prune"], "invalid choice: 'prune'"),
        (["run"], "required: --gin_file"),
        (["run", "--gin_file=a", "--fast"], "unrecognized arguments: --fast"),
    ],
)
def test_bad_command_lines(argv, message, capsys):
    with pytest.raises(SystemExit) as exit:
        cli.main(argv)
    error = capsys.readouterr().err
    assert exit.value.code == 2 and message in error and error.count("\n") == 1


def test_version(capsys):
    with pytest.raises(SystemExit) as exit:
        cli.main(["--version"])
    assert exit.value.code == 0 and capsys.readouterr().out == f"sa-jax {sa_jax.__version__}\n"


# Words in capitals that are not settings: forms and formats, places in help texts, an environment variable.
CAPITALS = {"CRC", "CSV", "DIR", "HOST", "IDX", "LAYER", "NM", "ONNX", "PORT", "SA_JAX_DATA"}


def quoted(node):
    """The text of a literal, and '…' for what a message fills in."""
    if isinstance(node, ast.JoinedStr | ast.BinOp):
        return "".join(map(quoted, node.values if isinstance(node, ast.JoinedStr) else (node.left, node.right)))
    return node.value if isinstance(node, ast.Constant) and isinstance(node.value, str) else "…"


def messages():
    """The texts of errors, with their places: of `InputError`, and the names that the checks are given."""
    for path in sorted(ROOT.glob("sa_jax/**/*.py")):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Call):
                name, _, last = ast.unparse(node.func).rpartition(".")
                if last == "InputError" or (last in ("whole", "number", "choice") and name in ("", "checks")):
                    yield f"{path.relative_to(ROOT)}:{node.lineno}", " ".join(map(quoted, node.args))


def test_errors_name_settings_that_exist():
    found = list(messages())
    assert len(found) > 200
    for place, text in found:
        names = set(re.findall(r"\b[A-Z][A-Z_]+\b", text))
        assert names <= {*cli.MACROS, *CAPITALS}, f"{place}: {text}"
        for command, setting in re.findall(r"\b(run|compare|layers)\.(\w+)", text):
            known = {"run": cli.SETTINGS, "compare": cli.COMPARE_SETTINGS, "layers": cli.LAYERS_SETTINGS}[command]
            assert setting in known, f"{place}: {text}"


def test_workdir_is_asked_for(capsys):
    assert cli.main(["run", f"--gin_file={DIGITS}"]) == 2
    assert "--workdir=DIR is missing" in capsys.readouterr().err


def own_data(path, **changes):
    numbers = np.random.default_rng(0)
    arrays = {"x": numbers.normal(size=(60, 5)), "y": np.arange(60) % 3} | changes
    np.savez(path, **arrays)
    return f"DATASET='{path}'"


@pytest.mark.slow
def test_data_of_ones_own(tmp_path):
    binding = own_data(tmp_path / "own.npz")
    assert cli.main(arguments(tmp_path / "run", *TINY, binding, "DENSITY=0.3")) == 0
    result = json.loads((tmp_path / "run" / "result.json").read_text())
    assert result["sizes"] == [5, 12, 3] and result["dataset"] == "own"


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"x": np.full((60, 5), np.nan)}, "holds NaN or infinite values"),
        ({"x": np.full((60, 5), np.inf)}, "holds NaN or infinite values"),
        ({"y": np.arange(60) - 1}, "must be whole numbers from 0"),
        ({"y": np.arange(59)}, "must hold one label for each of the 60 rows"),
        ({"x": np.array(["a"] * 60).reshape(60, 1)}, "must hold numbers"),
        ({"y": None}, "Object arrays cannot be loaded"),
    ],
)
def test_bad_data(tmp_path, capsys, changes, message):
    binding = own_data(tmp_path / "own.npz", **changes)
    assert cli.main(arguments(tmp_path / "run", *TINY, binding)) == 2
    error = capsys.readouterr().err
    assert message in error and error.count("\n") == 1
    assert not (tmp_path / "run").exists()


def test_a_truncated_download_is_named(tmp_path, monkeypatch, capsys):
    (tmp_path / "mnist").mkdir()
    names = ("train-images-idx3", "train-labels-idx1", "t10k-images-idx3", "t10k-labels-idx1")
    for name in names:
        (tmp_path / "mnist" / f"{name}-ubyte").write_bytes(bytes([0, 0, 8, 1, 0, 0, 0, 9, 1, 2]))
    monkeypatch.setenv("SA_JAX_DATA", str(tmp_path))
    assert cli.main(arguments(tmp_path / "run", *TINY, "DATASET='mnist'")) == 2
    error = capsys.readouterr().err
    assert "train-images-idx3-ubyte is truncated" in error and error.count("\n") == 1
    shutil.rmtree(tmp_path / "mnist")
    assert not list(tmp_path.iterdir())


def test_compare_command_line(tmp_path, capsys):
    shown = ["compare", "--gin_file=configs/compare_digits.gin", "--dry_run"]
    assert cli.main(shown) == 0
    assert "compare.methods" in capsys.readouterr().out
    assert cli.main(shown[:2]) == 2
    assert "--workdir=DIR is missing" in capsys.readouterr().err
    assert cli.main([*shown, "--gin_bindings=compare.epoch=3"]) == 2
    assert "compare has no setting 'epoch'; did you mean epochs?" in capsys.readouterr().err
    assert cli.main([*shown, "--gin_bindings=SEED=3"]) == 2
    assert "no setting uses SEED; did you mean SEEDS?" in capsys.readouterr().err
    assert cli.main([*shown[:2], f"--workdir={tmp_path}", "--jobs=0"]) == 2
    assert "--jobs must be a whole number of at least 1, not 0" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("words", "parts"),
    [
        (["--coordinator=127.0.0.1:1"], ["--num_processes is missing"]),
        (["--coordinator=x", "--num_processes=2", "--process_id=0"], ["--coordinator must be HOST:PORT"]),
        (
            ["--coordinator=x:1", "--num_processes=2", "--process_id=2"],
            ["--process_id must be a whole number from 0 to 1, not 2"],
        ),
    ],
)
def test_processes_that_cannot_meet_are_refused(words, parts, tmp_path, capsys):
    code = cli.main(["run", "--gin_file=configs/digits.gin", f"--workdir={tmp_path / 'run'}", *words])
    assert code == 2 and not (tmp_path / "run").exists()
    said = capsys.readouterr().err
    assert all(part in said for part in parts)
