"""The examples of the pages run, their commands exist, and their tables are complete."""

import ast
import dataclasses
import itertools
import json
import re
import runpy
import shlex
import shutil
import subprocess
import sys
from contextlib import nullcontext
from itertools import cycle
from pathlib import Path

import jax
import pytest

from sa_jax import cli
from sa_jax.commands.compare.settings import CompareConfig
from sa_jax.commands.layers.settings import LayersConfig
from sa_jax.commands.run.settings import RunConfig
from tests.settings import READERS
from tests.test_structure import MAY_IMPORT

ROOT = Path(__file__).parents[1]
README = ROOT / "README.md"
INDEX = ROOT / "sa_jax/docs/index.md"
PAGES = [
    README,
    ROOT / "CONTRIBUTING.md",
    *sorted(ROOT.glob("sa_jax/**/*.md")),
    *(ROOT / folder / "README.md" for folder in ("configs", "scripts", "scripts/results")),
]
EXPORT = ROOT / "sa_jax/docs/export.md"  # its examples need other frameworks, and have a test in tests/export
STAND_ALONE = (README, EXPORT)
# Their examples make whole runs, the same whatever the settings of their callers; EXPORT has other tests.
WHOLE_COMMANDS = (EXPORT, *(ROOT / f"sa_jax/docs/{name}.md" for name in ("runs", "results", "your_model")))
# A command with this comment is not run here, for the reason that the reader sees. Its settings are resolved.
NEEDS = re.compile(r"# needs ")


def name_of(page):
    return str(page.relative_to(ROOT))


def blocks(page, *languages):
    """The language and the text of each block of a page, in order."""
    found = re.findall(r"^```(\w+)\n(.*?)^```$", page.read_text(), re.MULTILINE | re.DOTALL)
    return [(language, text) for language, text in found if language in languages]


def commands(text):
    """The commands of a shell block; a backslash at the end of a line continues it."""
    return [line for line in text.replace("\\\n", " ").splitlines() if line.split("#")[0].strip()]


def run_command(line, folder):
    """Runs a line of a shell block, with fewer steps than it says, or only checks it if it cannot be run here."""
    words = shlex.split(line, comments=True)
    program, arguments = words[0], words[1:]
    if program == "make":
        assert re.search(rf"^{arguments[0]}:", (ROOT / "Makefile").read_text(), re.MULTILINE), line
    elif program in ("pip", "git", "pre-commit") or words[:3] == ["python", "-m", "venv"]:
        pass  # would change the environment
    elif program == "sa-jax" and (NEEDS.search(line) or arguments[0] in ("bench", "compare")):  # or minutes
        if arguments[0] in ("run", "compare", "layers"):
            assert cli.main([*arguments, "--dry_run"]) == 0, line
    elif program == "sa-jax":
        fewer = ["--gin_bindings=NUM_STEPS=2_000"] if arguments[0] == "run" else []
        assert cli.main([*arguments, *fewer]) == 0, line
    elif program == "python" and arguments[0] != "-m":
        assert (ROOT / arguments[0]).is_file(), line
    elif NEEDS.search(line) or (program == "cc" and shutil.which("cc") is None):
        pass
    else:
        subprocess.run(line, shell=True, check=True, cwd=folder, timeout=120)


@pytest.mark.slow
@pytest.mark.parametrize("page", [page for page in PAGES if blocks(page, "python", "bash")], ids=name_of)
def test_blocks_run_from_top_to_bottom(page, tmp_path, monkeypatch):
    """The Python blocks of the README stand alone and have a test below."""
    monkeypatch.chdir(tmp_path)
    run_blocks(page, tmp_path, run_python=page not in STAND_ALONE)
    if "result.json" in page.read_text() and (tmp_path / "runs/demo/result.json").is_file():
        check_results(tmp_path / "runs/demo")


@pytest.mark.slow
@pytest.mark.parametrize(
    ("page", "setting"),
    [*zip((page for page in PAGES if blocks(page, "python") and page not in WHOLE_COMMANDS), cycle(READERS))],
    ids=lambda value: value if isinstance(value, str) else name_of(value),
)
def test_examples_run_under(page, setting, tmp_path, monkeypatch):
    """Readers have settings of their own; each page one, in turn. Without jit, the examples would take hours."""
    if "rbg keys" in setting and jax.__version_info__[:2] == (0, 7) and "shard_map" in page.read_text():
        pytest.skip("JAX 0.7 draws no rbg bits inside shard_map")
    monkeypatch.chdir(tmp_path)
    run_blocks(page, tmp_path, setting=setting)


def run_blocks(page, folder, run_python=True, setting="default"):
    """Runs them as a reader would: the Python blocks of a page share their names, the shell blocks a folder."""
    names = {}
    for language, text in blocks(page, "python", "bash"):
        if language == "bash":
            for line in commands(text):
                run_command(line, folder)
        elif run_python:
            if "legacy keys" in setting:
                text = text.replace("random.key(", "random.PRNGKey(")
            with READERS.get(setting, nullcontext)():
                exec(compile(text, name_of(page), "exec"), {} if page in STAND_ALONE else names)


def check_results(folder):
    """The tables of results.md name exactly the files and fields that a run has just written."""
    page = ROOT / "sa_jax/docs/results.md"
    assert rows_of(page, "field") == list(json.loads((folder / "result.json").read_text()))
    later = {"partial_masks.npz", "partial_report.html", "checkpoints/"}
    files = set(itertools.chain(*(re.findall(r"`([^`]+)`", cell) for cell in cells_of(page, "file"))))
    assert files == later | {path.name for path in folder.iterdir() if not path.name.startswith(".")}
    columns = (folder / "trace.csv").read_text().partition("\n")[0].split(",")
    assert all(f"`{column}`" in page.read_text() for column in columns)


def cells_of(page, head):
    """The first cells of the rows of all tables of a page whose first head is this."""
    tables = re.findall(rf"^\| {head} \|.*\n\|[-| ]+\n((?:\|.*\n)+)", page.read_text(), re.MULTILINE)
    assert tables
    return [re.split(r"(?<!\\) \| ", line[2:])[0] for table in tables for line in table.splitlines()]


def rows_of(page, head):
    return [cell.strip("`") for cell in cells_of(page, head)]


def test_every_macro_and_setting_has_its_line():
    page = ROOT / "configs/README.md"
    assert rows_of(page, "macro") == list(cli.MACROS)
    settings = {"run": RunConfig, "compare": CompareConfig, "layers": LayersConfig}
    named = [f"run.{macro.lower()}" for macro in cli.MACROS] + rows_of(page, "setting")
    known = [f"{name}.{field.name}" for name, one in settings.items() for field in dataclasses.fields(one)]
    assert sorted(named) == sorted(known)
    for name, one in settings.items():
        for field in dataclasses.fields(one):
            if field.default not in (dataclasses.MISSING, ""):
                line = re.search(rf"^.*`{name}\.{field.name}` \| `([^`]*)`", page.read_text(), re.MULTILINE)
                assert line and line[1] == repr(field.default), field.name


def test_every_config_and_script_has_its_line():
    configs = " ".join(cells_of(ROOT / "configs/README.md", "file"))
    assert set(re.findall(r"`(.*?)`", configs)) == {path.name for path in ROOT.glob("configs/*.gin")}
    scripts = [path.name for path in ROOT.glob("scripts/*") if path.suffix in (".py", ".sh")]
    assert sorted(rows_of(ROOT / "scripts/README.md", "script")) == sorted(scripts)


def text_of(node):
    """What an expression says, `…` for what it fills in."""
    if isinstance(node, ast.JoinedStr | ast.BinOp):
        parts = node.values if isinstance(node, ast.JoinedStr) else (node.left, node.right)
        return re.sub("…+", "…", "".join(map(text_of, parts)))
    return node.value if isinstance(node, ast.Constant) and isinstance(node.value, str) else "…"


def test_every_error_has_its_row_and_every_row_its_error():
    """A row quotes messages, or parts of them; those with no words of their own pass another's on."""
    cells = cells_of(ROOT / "sa_jax/docs/errors.md", "message")
    quotes = [quote.strip("… ") for cell in cells for quote in re.findall("`(.*?)`", cell)]
    said, errors = set(), {}
    for path in sorted(ROOT.glob("sa_jax/**/*.py")):
        nodes = list(ast.walk(ast.parse(path.read_text())))
        docstrings = {node.value for node in nodes if isinstance(node, ast.Expr)}
        said |= {text_of(node) for node in nodes if node not in docstrings}
        for node in nodes:
            if isinstance(node, ast.Call) and ast.unparse(node.func) == "InputError":
                errors[f"{name_of(path)}:{node.lineno}"] = text_of(node.args[0])
    assert len(errors) > 200 and min(map(len, quotes)) > 7  # a shorter one would stand in any error
    for place, text in errors.items():
        wordless = not re.search("[a-z]", text)
        assert wordless or any(quote in text for quote in quotes), f"{place}: no row of errors.md quotes {text!r}"
    for quote in quotes:
        assert any(quote in text for text in said), f"errors.md quotes {quote!r}, which nothing says"


def links_of(page):
    """The files that a page links to."""
    links = re.findall(r"\]\(([^)#\s]+)(?:#[^)]*)?\)", page.read_text())
    return {(page.parent / link).resolve(): link for link in links if not link.startswith("http")}


def test_links_lead_somewhere():
    for page in PAGES:
        for path, link in links_of(page).items():
            assert path.exists(), f"{name_of(page)}: {link}"


def test_every_page_is_linked_from_the_readme_or_the_index_and_is_on_the_site():
    linked = {README, INDEX, *links_of(README), *links_of(INDEX)}
    assert INDEX in links_of(README)
    nav = (ROOT / "mkdocs.yml").read_text().partition("\nnav:\n")[2].partition("\n\n")[0]
    on_site = set(re.findall(r"[\w/]+\.md", nav))
    for page in PAGES:
        assert page in linked, f"{name_of(page)} is linked neither from README.md nor from {name_of(INDEX)}"
        assert name_of(page) in on_site, f"{name_of(page)} is not in the navigation of mkdocs.yml"


def test_the_readme_is_short():
    assert len(README.read_text().splitlines()) <= 150


def test_contributing_says_what_each_package_may_import():
    page = (ROOT / "CONTRIBUTING.md").read_text()
    rows = re.findall(r"^\| `(\w+)` \| [^|]* \|(.*)\|$", page.partition("\n## The house\n")[2], re.MULTILINE)
    assert {name: set(re.findall(r"`(\w+)`", others)) for name, others in rows} == MAY_IMPORT


def readme_examples():
    return [text for _, text in blocks(README, "python")]


@pytest.mark.slow
@pytest.mark.parametrize("code", readme_examples(), ids=lambda code: re.findall(r"\w+\(", code)[-1])
def test_readme_examples_give_what_they_say(code, capsys):
    names = {}
    exec(compile(code, "README.md", "exec"), names)
    printed = capsys.readouterr().out
    if "length" in names:
        before, after = map(float, printed.split(" -> "))
        assert after < 0.5 * before
        assert sorted(names["result"].best.tolist()) == list(range(30))
        assert len([line for line in code.splitlines() if line]) <= 12
    else:
        assert float(printed) > 0.6


def test_figures_are_those_of_the_saved_results():
    script = runpy.run_path(str(ROOT / "scripts/results.py"))
    for path, text in script["rewritten_pages"]().items():
        assert text == path.read_text(), path
    assert (ROOT / "scripts/results/mlpnet_mnist.png").is_file()


IMPORTS = """
import sys
import jax
from sa_jax import anneal
print(*sorted({name.partition(".")[0] for name in sys.modules}))
"""


@pytest.mark.slow
def test_anneal_pulls_in_no_more_than_it_needs():
    done = subprocess.run(
        [sys.executable, "-c", IMPORTS], capture_output=True, text=True, check=True, env=None, cwd=ROOT
    )
    loaded = set(done.stdout.split())
    assert "sa_jax" in loaded
    assert not loaded & {"gin", "orbax", "matplotlib", "optax", "sklearn", "scipy", "numba", "psutil"}
