"""The shape of the code: one direction of imports, no pickle, public functions that say what they do."""

import ast
import importlib
import inspect
import re
import subprocess
import sys
from pathlib import Path

import pytest

import sa_jax

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "sa_jax"
# What each package, or module beside the packages, may import of the others. Within a package anything goes that
# imports one way.
ENGINE = {"types", "checks", "annealing"}
MASKS = ENGINE | {"networks", "moves", "landscapes", "pruning"}
MAY_IMPORT = {
    "types": set(),
    "checks": {"types"},
    "annealing": {"types", "checks"},
    "testing": ENGINE,
    "networks": {"types", "checks"},
    "moves": {"types", "checks"},
    "landscapes": ENGINE | {"networks", "moves"},
    "pruning": ENGINE | {"networks", "moves", "landscapes"},
    "baselines": MASKS,
    "files": {"types", "checks", "networks"},
    "export": ENGINE | {"networks", "files"},
    "reports": {"types", "checks", "networks", "baselines"},
    "commands": MASKS | {"testing", "baselines", "files", "export", "reports"},
    "cli": {"types", "checks", "files", "export", "commands"},
}
# Who alone uses these packages.
ROOMS = {
    "optax": {"networks/pretrain.py", "baselines/trained.py"},
    "gin": {"cli.py"},
    "orbax": {"commands/run/checkpoint.py"},
    "numba": {"commands/bench/compiled.py"},
    "pickle": set(),
    "shelve": set(),
    "joblib": set(),
}


def room_of(path):
    """The package that a file belongs to, or the module that it is."""
    return path.relative_to(PACKAGE).parts[0].removesuffix(".py")


def imported(path):
    """The full names that a file imports, wherever in the file."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom) and node.level == 0:
            yield from (f"{node.module}.{alias.name}" for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            raise AssertionError(f"{path}: a relative import")
        elif isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)


def rooms_imported(path):
    """The packages of this library that a file imports, its own left out."""
    for name in imported(path):
        parts = name.split(".")
        if parts[0] == "sa_jax" and len(parts) > 1:
            # What `sa_jax` itself hands up may be anything: inside the package nobody asks for it.
            assert parts[1] in MAY_IMPORT or parts[1] == "__version__", f"{path}: {name}"
            yield parts[1]


def files():
    return [path for path in sorted(PACKAGE.glob("**/*.py")) if path != PACKAGE / "__init__.py"]


@pytest.mark.slow
def test_each_package_imports_only_what_its_wall_lets_through():
    assert {room_of(path) for path in files() if "docs" not in path.parts} == set(MAY_IMPORT)
    for path in files():
        room = room_of(path)
        wrong = {other for other in rooms_imported(path) if other != room} - MAY_IMPORT[room]
        assert not wrong, f"{path.relative_to(ROOT)} imports {sorted(wrong)}"


def test_the_walls_themselves_let_nothing_round_in_a_circle():
    left = dict(MAY_IMPORT)
    while left:
        free = [room for room, others in left.items() if not others & set(left)]
        assert free, f"{sorted(left)} import each other"
        for room in free:
            del left[room]


@pytest.mark.slow
def test_modules_of_a_package_import_one_way():
    """A module may import its package's siblings, as long as none of them leads back to it."""
    graph = {}
    for path in files():
        name = ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")
        others = set()
        for one in imported(path):
            parent = one.rpartition(".")[0]
            others |= {target for target in (one, parent) if module_file(target)}
        graph[name] = others - {name}
    for name in graph:
        assert name not in reachable(graph, name), f"{name} imports itself by way of others"


def module_file(name):
    """Whether a dotted name is a plain module of this library: packages only hand up what is in them."""
    return (ROOT / name.replace(".", "/")).with_suffix(".py").is_file()


def reachable(graph, start):
    found, ahead = set(), list(graph[start])
    while ahead:
        one = ahead.pop()
        if one not in found:
            found.add(one)
            ahead += graph.get(one, ())
    return found


@pytest.mark.slow
@pytest.mark.parametrize("name", ROOMS)
def test_each_of_these_is_used_in_its_room_alone(name):
    users = {
        str(path.relative_to(PACKAGE)) for path in files() if name in {one.split(".")[0] for one in imported(path)}
    }
    assert users == ROOMS[name]


def test_no_module_is_hidden_by_a_function_of_its_name():
    """`sa_jax.x.y` is the module y wherever there is one."""
    for path in files():
        if path.name == "__init__.py":
            package = importlib.import_module(".".join(path.parent.relative_to(ROOT).parts))
            modules = {one.stem for one in path.parent.glob("*.py")} | {
                one.parent.name for one in path.parent.glob("*/__init__.py")
            }
            for name in modules - {"__init__"}:
                if hasattr(package, name):
                    assert inspect.ismodule(getattr(package, name)), f"{package.__name__}.{name}"


@pytest.mark.slow
def test_tests_lie_where_their_modules_do():
    """The tests of sa_jax/pruning/linear.py are tests/pruning/test_linear.py."""
    missing = []
    for path in files():
        own = [node for node in ast.parse(path.read_text()).body if isinstance(node, ast.FunctionDef)]
        public = [node.name for node in own if not node.name.startswith("_")]
        place = path.relative_to(PACKAGE)
        if path.name == "__init__.py" or not public or place.parts[:2] == ("landscapes", "mlp"):
            continue
        if not (ROOT / "tests" / place.parent / f"test_{path.name}").is_file():
            missing.append(str(place))
    assert not missing, missing


LOADED = """
import sys
import jax
before = set(sys.modules)
{what}
print(*sorted({{name.partition(".")[0] for name in set(sys.modules) - before}}))
"""


@pytest.mark.slow
@pytest.mark.parametrize("what", ["import sa_jax", "from sa_jax import anneal, from_energy, geometric_schedule"])
def test_the_import_is_light(what):
    """JAX and numpy are loaded, and the rest on first use."""
    command = [sys.executable, "-c", LOADED.format(what=what)]
    done = subprocess.run(command, capture_output=True, text=True, check=True, cwd=ROOT)
    loaded = set(done.stdout.split())
    assert "sa_jax" in loaded
    heavy = {"flax", "safetensors", "optax", "gin", "orbax", "matplotlib", "sklearn", "scipy", "numba", "psutil"}
    assert not loaded & heavy


def test_every_public_name_is_there():
    for name in sa_jax.__all__:
        assert getattr(sa_jax, name) is not None
    with pytest.raises(AttributeError, match="no attribute 'annealing_'"):
        _ = sa_jax.annealing_


@pytest.mark.parametrize("name", sa_jax.__all__)
def test_public_names_are_documented(name):
    value = getattr(sa_jax, name)
    if name == "__version__":
        return
    place = value.__name__ if inspect.ismodule(value) else value.__module__
    assert value.__doc__ and place.startswith("sa_jax")
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


@pytest.mark.slow
def test_every_public_name_says_what_it_is():
    silent = [name for name, node in public_functions() if not ast.get_docstring(node)]
    assert not silent


@pytest.mark.slow
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


@pytest.mark.slow
def test_docstrings_of_arrays_say_their_shapes():
    for name, node in public_functions():
        if isinstance(node, ast.ClassDef) or name.startswith("sa_jax/commands/bench/compiled.py"):
            continue
        hints = [one.annotation for one in (*node.args.args, *node.args.kwonlyargs)] + [node.returns]
        arrays = [hint for hint in hints if hint and re.search(r"jax\.Array|np\.ndarray", ast.unparse(hint))]
        text = ast.get_docstring(node) or ""
        if arrays and not re.search(r"rguments (and\s+result )?as in", text):
            assert re.search(r"`\[.*?\]`|shape|scalar", text), f"{name} takes or gives an array of no shape"
