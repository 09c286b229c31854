"""Adds pages to the site that `make docs` builds: those outside `sa_jax/docs/`, and one page for each package.

MkDocs calls the functions `on_...` (`hooks` in mkdocs.yml). Griffe, which reads the docstrings, uses
`Doctests` and `NamedTuples`.
"""

import re
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any
from urllib.parse import unquote

import griffe
from mkdocs.config.defaults import MkDocsConfig
from mkdocs.plugins import get_plugin_logger
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

ROOT = Path(__file__).resolve().parents[1]
# Packages and modules that only the commands use.
INTERNAL = {"sa_jax.cli", "sa_jax.commands", "sa_jax.reports"}
PICTURES = (".png", ".svg")
LINK = re.compile(r"(?<=\]\()(?!\w+:|#)([^)#\s]+)")
DOCTEST = re.compile(r"^( *)>>> .*(?:\n *\S.*)*", re.MULTILINE)

log = get_plugin_logger("docs")


def on_config(config: MkDocsConfig) -> None:
    """Appends the API pages to the navigation."""
    assert config.nav is not None
    config.nav.append({"API": [{path: uri} for path, uri, _ in api_pages()]})


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Gives each page its path in the repository, so that links between pages work as on GitHub.

    The pages are those of `docs_dir` and of the navigation, with the pictures in their folders.
    """
    docs = [file for file in files if file.src_dir == config.docs_dir]
    found = {ROOT / uri for uri in uris_of(config.nav)} | {Path(file.abs_src_path or "") for file in docs}
    folders = {path.parent for path in found}
    found |= {path for folder in folders for path in folder.glob("*.*") if is_picture(path)}
    made = [file for file in files if file.src_dir != config.docs_dir]
    for path in sorted(found):
        if path.is_file():
            uri = path.relative_to(ROOT).as_posix()
            made.append(File(uri, str(ROOT), config.site_dir, config.use_directory_urls))
    made += [File.generated(config, uri, content=text) for _, uri, text in api_pages()]
    return Files(made)


def on_page_markdown(markdown: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Makes links to files of the repository that are not on the site lead to the repository."""

    def absolute(link: re.Match[str]) -> str:
        path = (ROOT / page.file.src_uri).parent / unquote(link[0])
        if not path.exists() or is_picture(path):
            return link[0]
        uri = path.resolve().relative_to(ROOT).as_posix()
        return link[0] if uri in files.src_uris else config.extra["repository"] + uri

    return LINK.sub(absolute, markdown)


def is_picture(path: Path) -> bool:
    """Whether a file is a picture, by its name."""
    return path.suffix in PICTURES


def uris_of(nav: Any) -> Iterator[str]:
    """All paths in a navigation, as it stands in mkdocs.yml."""
    if isinstance(nav, str):
        yield nav
    else:
        for part in nav.values() if isinstance(nav, dict) else nav:
            yield from uris_of(part)


@cache
def api_pages() -> list[tuple[str, str, str]]:
    """The pages of the API: path of the package or module, path of the page and its text."""
    package = griffe.load("sa_jax", search_paths=[ROOT])
    assert isinstance(package, griffe.Module)
    pages = []
    for module in pages_below(package):
        name = module.path.removeprefix("sa_jax").lstrip(".") or "index"
        pages.append((module.path, f"api/{name}.md", page_of(module)))
    return pages


def public_modules(package: griffe.Module) -> list[griffe.Module]:
    """The public modules and packages right inside a package, by name."""
    inner = (module for _, module in sorted(package.modules.items()) if not module.is_alias)
    return [module for module in inner if module.name[0] != "_" and module.path not in INTERNAL]


def pages_below(package: griffe.Module) -> Iterator[griffe.Module]:
    """A package and all packages inside, each of which has a page; so has each module right below `sa_jax`."""
    yield package
    for module in public_modules(package):
        if module.is_package or module.is_subpackage:
            yield from pages_below(module)
        elif package.parent is None:
            yield module


def page_of(module: griffe.Module) -> str:
    """The page of a package: what it exports, then its own names, then those of its modules."""
    if not (module.is_package or module.is_subpackage):
        return block(module.path, heading_level=1)
    own = [name for name in module.exports or () if is_own(module, str(name))]
    parts = [block(module.path, heading_level=1, members="[]"), exports_of(module)]
    parts += [block(f"{module.path}.{name}", show_root_full_path="false") for name in own]
    if module.parent is None:
        parts += [block(path, show_root_full_path="false") for path in of_internal(module)]
    if module.parent is not None:
        parts += [block(inner.path) for inner in public_modules(module) if not inner.is_subpackage]
    return "\n\n".join(part for part in parts if part)


def of_internal(package: griffe.Module) -> list[str]:
    """The paths of what a package exports from `INTERNAL`, which has no page of its own."""
    values = (package[str(name)] for name in package.exports or ())
    paths = [value.final_target.path for value in values if isinstance(value, griffe.Alias)]
    return [path for path in paths if path.startswith(tuple(f"{one}." for one in INTERNAL))]


def is_own(module: griffe.Module, name: str) -> bool:
    """Whether a name is defined in a package's `__init__.py`, with a docstring."""
    member = module.members.get(name)
    return bool(member and not member.is_alias and not member.is_module and member.has_docstring)


def block(path: str, heading_level: int = 2, **options: str) -> str:
    """What mkdocstrings replaces by the documentation of a name."""
    lines = [f"heading_level: {heading_level}", *(f"{option}: {value}" for option, value in options.items())]
    return "\n".join([f"::: {path}", "    options:", *(f"      {line}" for line in lines)])


def exports_of(module: griffe.Module) -> str:
    """A list of the names in `__all__`, each with the first line of its docstring."""
    rows = []
    for name in map(str, module.exports or ()):
        try:
            value = module[name]
            value = value.final_target if isinstance(value, griffe.Alias) else value
        except (KeyError, griffe.AliasResolutionError) as error:
            log.warning("%s.%s is in __all__ but was not found: %s", module.path, name, error)
            continue
        summary = value.docstring.value.strip().partition("\n")[0] if value.docstring else ""
        link = f"[`{name}`][{value.path}]" if summary else f"`{name}`"
        rows.append(f"- {link}: {summary}" if summary else f"- {link}")
    return "\n".join(rows)


class Doctests(griffe.Extension):
    """Shows the examples in docstrings as code."""

    def on_object(self, *, obj: griffe.Object, **kwargs: Any) -> None:
        """Puts a fence around each example of a docstring."""
        del kwargs
        if obj.docstring:
            obj.docstring.value = DOCTEST.sub(r"\1```pycon\n\g<0>\n\1```", obj.docstring.value)


class NamedTuples(griffe.Extension):
    """Shows the fields of a NamedTuple as the parameters of its signature."""

    def on_class(self, *, cls: griffe.Class, **kwargs: Any) -> None:
        """Adds the `__init__` that Python makes."""
        del kwargs
        if "NamedTuple" not in map(str, cls.bases):
            return
        init = griffe.Function("__init__", parameters=griffe.Parameters(griffe.Parameter("self")))
        for name, field in cls.attributes.items():
            if not field.is_alias and field.annotation is not None and "property" not in field.labels:
                kind = griffe.ParameterKind.positional_or_keyword
                default = None if field.value is None else str(field.value)
                annotation = field.annotation
                init.parameters.add(griffe.Parameter(name, annotation=annotation, kind=kind, default=default))
        cls.set_member("__init__", init)
