"""Rewrites the marked blocks of pages: what is between `<!-- NAME -->` and `<!-- end -->`."""

from collections.abc import Mapping
from pathlib import Path

from .saved import RESULTS, ROOT

DOCS = ROOT / "sa_jax" / "docs"
PAGES = (ROOT / "README.md", RESULTS / "README.md", DOCS / "chains.md", DOCS / "results.md")


def with_blocks(blocks: Mapping[str, str]) -> dict[Path, str]:
    """The texts of `PAGES` with these blocks, given by name, in place of the old ones."""
    pages = {path: path.read_text() for path in PAGES}
    for name, block in blocks.items():
        places = [path for path, text in pages.items() if f"<!-- {name} -->\n" in text]
        if len(places) != 1:
            raise SystemExit(f"{len(places)} pages have a block <!-- {name} --> ... <!-- end -->")
        pages[places[0]] = with_block(pages[places[0]], name, block)
    return pages


def with_block(page: str, name: str, block: str) -> str:
    """The text of a page with this block in place of the old one."""
    before, start, rest = page.partition(f"<!-- {name} -->\n")
    _, end, after = rest.partition("<!-- end -->")
    return before + start + block + "\n" + end + after
