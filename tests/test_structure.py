"""The shape of the code: one direction of imports, no pickle, public functions that say what they do."""

import ast
import inspect
import re
from pathlib import Path

import pytest

import sa_jax

ROOT = Path(__file__).parents[1]
# Each module imports only from those before it.
ORDER = [
    "types",
    "npz",
    "workdirs",
    "torch_files",
    "keras_files",
    "layer_order",
    "weights",
    "masks",
    "patterns",
    "models",
    "data",
    "energies",
    "landscape",
    "moves",
    "incremental",
    "schedules",
    "anneal",
    "tempering",
    "testing",
    "inputs",
    "rows",
    "reconstruction",
    "allocation",
    "pruning",
    "kernels",
    "pretrain",
    "baselines",
    "page",
    "charts",
    "pictures",
    "report",
    "comparison",
    "checkpoint",
    "settings",
    "evaluation",
    "chains",
    "runner",
    "compiled",
    "bench",
    "significance",
    "grid",
    "compare",
    "layers",
    "export",
    "bench_export",
    "cli",
]


def files_of(name):
    """A module's file, or the files of a package's modules, which may import each other."""
    folder = ROOT / "sa_jax" / name
    return sorted(folder.glob("*.py")) if folder.is_dir() else [folder.with_suffix(".py")]


def imported(path):
    """The modules of the package that a file imports, wherever in the file."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom) and node.module == "sa_jax":
            yield from (alias.name for alias in node.names if alias.name in ORDER)
        elif isinstance(node, ast.ImportFrom) and (node.module or "").startswith("sa_jax."):
            yield node.module.split(".")[1]
        elif isinstance(node, ast.Import):
            yield from (alias.name.split(".")[1] for alias in node.names if alias.name.startswith("sa_jax."))


def test_imports_point_one_way():
    modules = {path.stem for path in ROOT.glob("sa_jax/*.py")} - {"__init__"}
    packages = {path.parent.name for path in ROOT.glob("sa_jax/*/__init__.py")}
    assert modules | packages == set(ORDER)
    for name in ORDER:
        others = {other for path in files_of(name) for other in imported(path)} - ({name} & packages)
        wrong = [other for other in others if ORDER.index(other) >= ORDER.index(name)]
        assert not wrong, f"{name} imports {wrong}"


def outside(name):
    for node in (node for path in files_of(name) for node in ast.walk(ast.parse(path.read_text()))):
        if isinstance(node, ast.Import):
            yield from (alias.name.split(".")[0] for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            yield (node.module or "").split(".")[0]


def test_optax_and_gin_stay_in_their_rooms():
    assert [name for name in ORDER if "optax" in outside(name)] == ["pretrain", "baselines"]
    assert [name for name in ORDER if "gin" in outside(name)] == ["cli"]
    assert [name for name in ORDER if "orbax" in outside(name)] == ["checkpoint"]
    assert not [name for name in ORDER if {"pickle", "shelve", "joblib"} & set(outside(name))]


@pytest.mark.parametrize("name", sa_jax.__all__)
def test_public_names_are_documented(name):
    value = getattr(sa_jax, name)
    assert value.__doc__ and value.__module__.startswith("sa_jax")
    if inspect.isfunction(value):
        hints = inspect.signature(value)
        assert hints.return_annotation is not inspect.Signature.empty
        for parameter in hints.parameters.values():
            assert parameter.annotation is not inspect.Parameter.empty, parameter


def public_functions():
    """Public functions and methods of the package, with their names."""
    for path in sorted(ROOT.glob("sa_jax/**/*.py")):
        for node in ast.parse(path.read_text()).body:
            inner = node.body if isinstance(node, ast.ClassDef) and not node.name.startswith("_") else ()
            for one in (node, *inner):
                if isinstance(one, ast.FunctionDef | ast.ClassDef) and not one.name.startswith("_"):
                    yield f"{path.relative_to(ROOT)}: {one.name}", one


def test_every_public_name_says_what_it_is():
    silent = [name for name, node in public_functions() if not ast.get_docstring(node)]
    assert not silent


def test_docstrings_agree_with_what_they_are_of():
    """Arguments listed are those there are, and whoever refuses input says so."""
    for name, node in public_functions():
        if isinstance(node, ast.ClassDef):
            continue
        text, arguments = ast.get_docstring(node) or "", node.args
        there = [one.arg for one in (*arguments.posonlyargs, *arguments.args, *arguments.kwonlyargs)]
        there += [f"*{arguments.vararg.arg}"] if arguments.vararg else []
        there += [f"**{arguments.kwarg.arg}"] if arguments.kwarg else []
        if section := re.search(r"^Args:\n((?:  .*\n?|\n)+)", text, re.MULTILINE):
            listed = re.findall(r"^  (\*{0,2}\w+):", section[1], re.MULTILINE)
            assert listed == [one for one in there if one not in ("self", "cls")], name
        raised = [one.exc for one in ast.walk(node) if isinstance(one, ast.Raise)]
        if any(isinstance(one, ast.Call) and ast.unparse(one.func) == "InputError" for one in raised):
            assert "InputError" in text or name.startswith("sa_jax/cli.py"), f"{name} raises, and does not say so"


def test_docstrings_of_arrays_say_their_shapes():
    for name, node in public_functions():
        if isinstance(node, ast.ClassDef) or name.startswith("sa_jax/compiled.py"):
            continue
        hints = [one.annotation for one in (*node.args.args, *node.args.kwonlyargs)] + [node.returns]
        arrays = [hint for hint in hints if hint and re.search(r"jax\.Array|np\.ndarray", ast.unparse(hint))]
        text = ast.get_docstring(node) or ""
        if arrays and not re.search(r"rguments (and\s+result )?as in", text):
            assert re.search(r"`\[.*?\]`|shape|scalar", text), f"{name} takes or gives an array of no shape"
