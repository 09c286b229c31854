"""The command line as a user types it: good runs, and a message of one line with exit code 2 for each mistake."""

import ast
import json
import os
import re
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

import sa_jax
from sa_jax import cli, export
from sa_jax.files import workdirs

ROOT = Path(__file__).parents[1]
OTHERS = {"compare_digits", "compare_lenet300", "compare_mlpnet", "compare_wide"}
OTHERS |= {"paper", "paper_schedules", "layers"}
CONFIGS = [path for path in sorted(ROOT.glob("configs/*.gin")) if path.stem not in OTHERS]
DIGITS = str(ROOT / "configs/digits.gin")
TINY = ["run.rival=None", "WEIGHTS='random'", "HIDDEN=[12]", "DENSITY=0.05", "NUM_STEPS=400", "NUM_SAMPLES=200"]


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
    # Without a terminal there is no bar, but a line for what is being done.
    doing = [re.fullmatch(r"sa-jax: \d:\d\d  (.*)", line)[1] for line in output.err.splitlines()]
    doing = [line for line in doing if "steps/s" not in line]
    assert doing[0] == "network 64-12-10 with random weights, and 1,079 samples of digits"
    assert doing[1:3] == ["score search: 1,600 steps", "compiling the programs of annealing"]
    assert doing[-2] == "annealing: 400 proposals on 200 samples" and doing[-1].startswith("measuring")

    # The settings it leaves behind are the run.
    again = arguments(tmp_path / "again", gin_file=tmp_path / "run" / "operative.gin")
    assert cli.main(again) == 0
    for name in ("masks.npz", "trace.csv", "operative.gin"):
        assert (tmp_path / "run" / name).read_bytes() == (tmp_path / "again" / name).read_bytes()

    assert cli.main(again) == 2
    assert "already holds a run's result" in capsys.readouterr().err
    assert cli.main([*again, "--overwrite"]) == 0


@pytest.mark.slow
def test_script_is_the_same_command(tmp_path):
    subprocess.run([sys.executable, ROOT / "scripts/run.py", *arguments(tmp_path / "run", *TINY)[1:]], check=True)
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


def test_settings_need_no_quotes(capsys):
    words = ["--set", "DATASET=mnist", "--set", "HIDDEN=[30, 20]", "--set", "run.schedule=cosine"]
    assert cli.main(["run", f"--gin_file={DIGITS}", *words, "--gin_bindings=SEED=3", "--dry_run"]) == 0
    printed = capsys.readouterr().out
    for line in ("DATASET = 'mnist'", "HIDDEN = [30, 20]", "run.schedule = 'cosine'", "SEED = 3"):
        assert f"{line}\n" in printed


@pytest.mark.parametrize(
    ("setting", "binding"),
    [
        ("DATASET=mnist", "DATASET='mnist'"),
        ("DATASET='mnist'", "DATASET='mnist'"),
        ("WEIGHTS=~/my model.pt", "WEIGHTS='~/my model.pt'"),
        ("DENSITY=None", "DENSITY=None"),
        ("DENSITY=%OTHER", "DENSITY=%OTHER"),
        ("run.schedule=@mine.sawtooth", "run.schedule=@mine.sawtooth"),
        ("METHODS=[snip, obd, 3]", "METHODS=['snip', 'obd', 3]"),
        ("layers.pattern=2:4", "layers.pattern='2:4'"),
        ("DATASET=it's", "DATASET=it's"),
        ("DENSITY=", "DENSITY="),
        ("DENSITY 0.1", "DENSITY 0.1"),
    ],
)
def test_a_setting_is_a_binding_with_quotes_where_needed(setting, binding):
    assert cli.as_binding(setting) == binding


def test_the_export_formats_of_the_help_are_those_that_exist():
    assert tuple(export.FORMATS) == cli.EXPORT_FORMATS
    assert (export.FOLDERS, export.BUDGETED) == (cli.EXPORT_FOLDERS, cli.EXPORT_BUDGETED)


def test_help_loads_nothing_heavy():
    script = "import sys; from sa_jax import cli; cli.make_parser().format_help(); print('jax' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", script], capture_output=True, text=True).stdout == "False\n"


def test_the_shell_completes(tmp_path):
    environment = os.environ | {"_ARGCOMPLETE": "1", "_ARGCOMPLETE_IFS": "\n", "_ARGCOMPLETE_SUPPRESS_SPACE": "1"}
    environment |= {"COMP_LINE": "sa-jax run --gin_f", "COMP_POINT": "18", "COMP_TYPE": "9"}
    environment |= {"_ARGCOMPLETE_STDOUT_FILENAME": str(tmp_path / "words")}
    script = "from sa_jax.cli import entry_point; entry_point()"
    subprocess.run([sys.executable, "-c", script, "sa-jax"], env=environment, capture_output=True)
    assert (tmp_path / "words").read_text().strip() == "--gin_file"


def test_all_configs_are_there():
    assert [path.stem for path in CONFIGS] == [
        "digits",
        "lenet300_fashion",
        "lenet300_mnist",
        "mlpnet_mnist",
        "mlpnet_mnist_alone",
        "mlpnet_mnist_long",
        "mlpnet_mnist_nudge",
        "random_weights_mnist",
        "random_weights_mnist_long",
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
    "DENSITY=0.1, SEED=1": "give --set or --gin_bindings once for each",
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
        (["trim"], "invalid choice: 'trim'"),
        (["run"], "required: --gin_file"),
        (["run", "--gin_file=a", "--quick"], "sa-jax run: unrecognized arguments: --quick; see sa-jax run --help"),
        (["run", "--gin_file=a", "--workdri=b"], "--workdri=b; did you mean --workdir for --workdri?; see"),
        (["run", "--ginfile=a"], "required: --gin_file; did you mean --gin_file for --ginfile?; see"),
        (["compare", "--gin_file=a", "--job", "x"], "argument --jobs: invalid int value: 'x'; see"),
        (["export", "a", "--format=c", "--out=b", "--bit=4.5"], "invalid int value: '4.5'; see"),
    ],
)
def test_bad_command_lines(argv, message, capsys):
    with pytest.raises(SystemExit) as exit:
        cli.main(argv)
    error = capsys.readouterr().err
    assert exit.value.code == 2 and message in error and error.count("\n") == 1


def test_windows_text_files_are_read(tmp_path, capsys):
    """With a byte-order mark and its line ends, also where one includes another."""
    for name, text in (("base.gin", f"include '{DIGITS}'\r\nSEED = 7\r\n"), ("own.gin", "include 'base.gin'\r\n")):
        (tmp_path / name).write_bytes(b"\xef\xbb\xbf" + text.replace("'base", f"'{tmp_path}/base").encode())
    assert cli.main(["run", f"--gin_file={tmp_path / 'own.gin'}", "--dry_run"]) == 0
    assert "SEED = 7" in capsys.readouterr().out
    (tmp_path / "wide.gin").write_text("SEED = 7\n", encoding="utf-16")
    assert cli.main(["run", f"--gin_file={tmp_path / 'wide.gin'}", "--dry_run"]) == 2
    assert "wide.gin is not a text file in UTF-8\n" in capsys.readouterr().err


def test_configs_of_the_package_are_included_from_any_folder(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    Path("own.gin").write_text("include 'configs/digits.gin'\nSEED = 7\n")
    assert cli.main(["run", "--gin_file=own.gin", "--dry_run"]) == 0
    assert "SEED = 7" in capsys.readouterr().out
    # The user's own comes first.
    Path("configs").mkdir()
    Path("configs/digits.gin").write_text(f"include '{DIGITS}'\nHIDDEN = [3]\n")
    assert cli.main(["run", "--gin_file=own.gin", "--dry_run"]) == 0
    assert "HIDDEN = [3]" in capsys.readouterr().out


def test_the_home_folder_can_be_written_as_a_tilde(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    (tmp_path / "run").mkdir()
    (tmp_path / "run/result.json").write_text("{}")
    (tmp_path / "file").write_text("")
    (tmp_path / "base.gin").write_text(f"include '{DIGITS}'\n")
    (tmp_path / "own.gin").write_text("include '~/base.gin'\nSEED = 7\n")
    for argv, part in (
        (["run", "--gin_file=~/own.gin", "--dry_run"], "SEED = 7"),
        (["run", "--gin_file=~/own.gin", "--workdir=~/run"], f"{tmp_path}/run already holds a run's result"),
        (["run", "--gin_file=~/own.gin", "--gin_bindings=DATASET='~/x.npz'", "--workdir=~/new"], "~/x.npz is not"),
        (["export", "~/run", "--format=npz", "--out=~/file"], f"{tmp_path}/file exists"),
        (["export", "~/run", "--format=npz", "--out=~/new"], f"{tmp_path}/run/result.json is not a result"),
        (["bench", "--out=~/b.txt"], f"--out={tmp_path}/b.txt must end in .json"),
        (["bench", "export", "~/run", "--out=~/new"], f"{tmp_path}/run/result.json is not a result"),
        (["run", "--gin_file=~no_such_user/own.gin"], "the home folder that ~ stands for is not known"),
        (["bench", "--out=~no_such_user/b.json"], "the home folder that ~ stands for is not known"),
    ):
        cli.main(argv)
        assert part in "".join(capsys.readouterr()), argv
    assert {path.name for path in tmp_path.iterdir()} == {"run", "file", "base.gin", "own.gin"}


@pytest.mark.parametrize(
    "argv",
    [
        ["run", f"--gin_file={DIGITS}", "--workdir"],
        ["compare", "--gin_file=configs/compare_digits.gin", "--workdir"],
        ["export", "run", "--format=c", "--out"],
        ["bench", "export", "run", "--out"],
    ],
    ids=lambda argv: argv[0],
)
def test_a_folder_has_one_writer(argv, tmp_path, capsys):
    (tmp_path / "mine").write_text("")
    with workdirs.only_one(tmp_path):
        assert cli.main([*argv[:-1], f"{argv[-1]}={tmp_path}"]) == 2
    assert capsys.readouterr().err == f"sa-jax: another command is writing to {tmp_path}\n"
    assert {path.name for path in tmp_path.iterdir()} == {"mine"}


# Starts the command as the console does; a signal comes where a module is imported, or a function is called.
COMMAND = """
import os, signal, sys
place, number = sys.argv.pop(1), int(sys.argv.pop(1))
module, _, name = place.partition(":")

class Finder:
    def find_spec(self, wanted, *ignored):
        if wanted == module and not name:
            os.kill(os.getpid(), number)

sys.meta_path.insert(0, Finder())
from sa_jax.cli import entry_point
if name:
    import importlib
    home = importlib.import_module(module)
    function = getattr(home, name)

    def interrupted(*args, **kwargs):
        os.kill(os.getpid(), number)
        return function(*args, **kwargs)

    setattr(home, name, interrupted)
entry_point()
"""


def interrupted(place, number, *argv):
    """Runs a command, which gets a signal at a place; returns its exit code and the last line that it printed."""
    words = [sys.executable, "-c", COMMAND, place, str(int(number)), *argv]
    done = subprocess.run(words, capture_output=True, text=True, timeout=120, cwd=ROOT)
    assert "Traceback" not in done.stderr
    return done.returncode, done.stderr.splitlines()[-1]


NOTHING = (130, "sa-jax: interrupted; nothing was written")


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
@pytest.mark.parametrize(
    "place",
    [
        "flax",  # while the libraries are loaded
        "sa_jax.commands.run.runner",
        "sa_jax.networks.pretrain:pretrain",
        "sa_jax.commands.run.score_stage:search",
        "sa_jax.commands.run.chains:compile_run",
    ],
)
def test_a_run_can_be_interrupted_before_its_first_step(place, number, tmp_path):
    bindings = ["run.pretrain_epochs=1_000_000" if place.endswith("pretrain") else "WEIGHTS='random'"]
    bindings += ["run.start='magnitude'"] if place.endswith("compile_run") else []
    assert interrupted(place, number, *arguments(tmp_path / "new" / "run", *bindings)) == NOTHING
    assert not list(tmp_path.iterdir())


@pytest.mark.slow
def test_a_run_that_is_interrupted_after_its_score_search_resumes_there(tmp_path):
    argv = arguments(tmp_path, "WEIGHTS='random'", "CHECKPOINT_SECONDS=60", "run.score_steps=150")
    said = (75, "sa-jax: interrupted; repeat the command to resume from the last checkpoint")
    assert interrupted("sa_jax.commands.run.chains:compile_run", signal.SIGTERM, *argv) == said
    assert sorted(path.name for path in tmp_path.iterdir()) == ["checkpoints", "metrics.jsonl"]


@pytest.mark.slow
def test_an_interrupted_run_says_where_it_resumes(tmp_path):
    """Its folder holds a checkpoint; one that is only begun does not count."""
    argv = arguments(tmp_path, "WEIGHTS='random'", "CHECKPOINT_SECONDS=60", "run.start='magnitude'")
    begun = tmp_path / "checkpoints" / "136" / "1000.orbax-checkpoint-tmp"
    begun.mkdir(parents=True)
    assert interrupted("sa_jax.commands.run.chains:compile_run", signal.SIGTERM, *argv) == NOTHING
    assert not list(tmp_path.iterdir())
    (tmp_path / "checkpoints" / "136" / "1000").mkdir(parents=True)
    said = (75, "sa-jax: interrupted; repeat the command to resume from the last checkpoint")
    assert interrupted("sa_jax.commands.run.chains:compile_run", signal.SIGTERM, *argv) == said
    assert [path.name for path in tmp_path.iterdir()] == ["checkpoints"]


@pytest.mark.slow
def test_a_run_whose_steps_are_done_writes_its_results_before_it_ends(tmp_path):
    argv = arguments(tmp_path / "run", *TINY)
    code, said = interrupted("sa_jax.commands.run.evaluation:one_shot_masks", signal.SIGINT, *argv)
    message = "annealing has ended and the results are being written; interrupt again to stop immediately"
    assert (code, said) == (0, f"sa-jax: {message}") and (tmp_path / "run" / "result.json").exists()


@pytest.mark.slow
def test_a_comparison_can_be_interrupted(tmp_path):
    argv = ["compare", "--gin_file=configs/compare_digits.gin", f"--workdir={tmp_path / 'new'}"]
    for place in ("sa_jax.commands.compare.host", "sa_jax.commands.compare.host:as_completed"):
        assert interrupted(place, signal.SIGTERM, *argv) == NOTHING
        assert not list(tmp_path.iterdir())


@pytest.mark.slow
def test_pruning_layers_can_be_interrupted(tmp_path):
    numbers = np.random.default_rng(0)
    layers = {f"fc{i}": numbers.normal(size=(8, 8)).astype(np.float32) for i in range(2)}
    np.savez(tmp_path / "weights.npz", **{f"{name}.weight": weight for name, weight in layers.items()})
    np.savez(tmp_path / "grams.npz", **{name: weight.T @ weight for name, weight in layers.items()})
    files = [f"--gin_bindings=layers.{name}='{tmp_path / name}.npz'" for name in ("weights", "grams")]
    argv = ["layers", "--gin_file=configs/layers.gin", *files, f"--workdir={tmp_path / 'out'}"]
    for place in ("sa_jax.commands.layers.host", "sa_jax.commands.layers.host:check_layer"):
        assert interrupted(place, signal.SIGINT, *argv) == NOTHING
        assert not (tmp_path / "out").exists()
    resumable = (75, "sa-jax: interrupted; repeat the command to resume")
    assert interrupted("sa_jax.commands.layers.host:render_layers", signal.SIGTERM, *argv) == resumable


def test_version(capsys):
    with pytest.raises(SystemExit) as exit:
        cli.main(["--version"])
    assert exit.value.code == 0 and capsys.readouterr().out == f"sa-jax {sa_jax.__version__}\n"


# Words in capitals that are not settings: forms and formats, places in help texts, an environment variable.
CAPITALS = {
    "CPU",
    "JAX_PLATFORMS",
    "CRC",
    "CSV",
    "DIR",
    "GGUF",
    "HOST",
    "IDX",
    "LAYER",
    "NM",
    "ONNX",
    "PORT",
    "SA_JAX_DATA",
    "UTF",
}


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
            assert setting in cli.setting_names(command), f"{place}: {text}"


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


def test_compare_command_line(capsys):
    shown = ["compare", "--gin_file=configs/compare_digits.gin", "--dry_run"]
    assert cli.main(shown) == 0
    assert "compare.methods" in capsys.readouterr().out
    assert cli.main(shown[:2]) == 2
    assert "--workdir=DIR is missing" in capsys.readouterr().err
    assert cli.main([*shown, "--gin_bindings=compare.epoch=3"]) == 2
    assert "compare has no setting 'epoch'; did you mean epochs?" in capsys.readouterr().err
    assert cli.main([*shown, "--gin_bindings=SEED=3"]) == 2
    assert "no setting uses SEED; did you mean SEEDS?" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("command", "binding", "instead"),
    [("run", "DENSITY=0.1", "run.density"), ("compare", "SEEDS=[0]", "compare.seeds")],
)
def test_a_macro_that_the_file_lacks_is_named_with_its_setting(command, binding, instead, tmp_path, capsys):
    needed = {"compare": "methods = ['random']; densities = [0.1]; seeds = [1]; datasets = {'digits': [0, 1]}"}
    settings = needed.get(command, "tolerance = 0.01").split("; ")
    (tmp_path / "own.gin").write_text("".join(f"{command}.{setting}\n" for setting in settings))
    assert cli.main([command, f"--gin_file={tmp_path / 'own.gin'}", "--set", binding, "--dry_run"]) == 2
    assert f"has no macro {binding.partition('=')[0]}: set {instead}\n" in capsys.readouterr().err
