"""The shape of the code: one direction of imports, no pickle, public functions that say what they do."""

import ast
import inspect
from pathlib import Path

import pytest

import sa_jax

ROOT = Path(__file__).parents[1]
# Each module imports only from those before it.
ORDER = [
    "types",
    "npz",
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
    "reconstruction",
    "allocation",
    "pruning",
    "pretrain",
    "baselines",
    "page",
    "charts",
    "report",
    "comparison",
    "workdirs",
    "checkpoint",
    "settings",
    "evaluation",
    "runner",
    "compiled",
    "bench",
    "significance",
    "grid",
    "compare",
    "layers",
    "export",
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
