"""Pages of the documentation, as tests run them: the blocks of code, and what is said to be printed behind each."""

from __future__ import annotations

import ast
import inspect
import re
import textwrap
from collections.abc import Iterator
from contextlib import redirect_stdout
from dataclasses import dataclass
from io import StringIO
from pathlib import Path
from typing import Any

from cachebus import Cache

ROOT = Path(__file__).parents[2]
DOCS = ROOT / "docs"
STAND_INS = sorted((DOCS / "reference").glob("*.md"))
"""What a checkout has in place of the reference, which is made from the code when the site is built."""
PAGES = sorted(set(DOCS.rglob("*.md")) - set(STAND_INS))
"""What is written by hand."""
EXAMPLE_URL = "redis://localhost:6379/0"
"""What pages say where any server is meant."""
_FENCE = re.compile(r"^```(\w*)(?: (?:title=\"([^\"]+)\"|[^\n]*))?\n(.*?)^```$", re.MULTILINE | re.DOTALL)


@dataclass(frozen=True)
class Block:
    """A fenced block of a page."""

    language: str
    title: str
    """The name of the file that it shows, or "" for statements."""
    code: str
    line: int
    """Of the page, where its code begins."""
    behind: int
    """Where it ends, in characters."""
    begin: int


def blocks(path: Path, language: str | None = None) -> list[Block]:
    """The blocks of a page, in order."""
    text = path.read_text()
    found = [
        Block(m[1], m[2] or "", m[3], text.count("\n", 0, m.start(3)) + 1, m.end(), m.start())
        for m in _FENCE.finditer(text)
    ]
    return [block for block in found if language in (None, block.language)]


def file(path: Path, title: str) -> str:
    """The one file of that name that a page shows."""
    (found,) = [block for block in blocks(path) if block.title == title]
    return found.code


def statements(path: Path) -> Iterator[tuple[Block, str | None]]:
    """The blocks of Python that are no files, each with what it is said to print: a block of text right behind it."""
    text = path.read_text()
    every = blocks(path)
    for block, after in zip(every, [*every[1:], None], strict=False):
        if block.language == "python" and not block.title:
            told = after is not None and after.language == "text" and not text[block.behind : after.begin].strip()
            yield block, after.code if after is not None and told else None


async def run_page(path: Path, url: str, *, also: dict[str, str] | None = None) -> dict[str, Any]:
    """Run a page's statements in order, as at the prompt of `python -m asyncio`; gives its names.

    What a block prints must be what is said behind it, where something is said. `also`: what is written otherwise than
    on the page, as times that a busy machine does not keep.
    """
    scope: dict[str, Any] = {"__name__": path.stem}
    try:
        for block, told in statements(path):
            code = "\n" * (block.line - 1) + block.code
            for old, new in {EXAMPLE_URL: url, **(also or {})}.items():
                code = code.replace(old, new)
            printed = StringIO()
            with redirect_stdout(printed):
                result = eval(compile(code, str(path), "exec", ast.PyCF_ALLOW_TOP_LEVEL_AWAIT), scope)
                if inspect.iscoroutine(result):
                    await result
            where = f"{path.relative_to(ROOT)}:{block.line}"
            assert told is None or printed.getvalue() == told, f"{where} prints\n{printed.getvalue()}"
    except BaseException:
        for thing in scope.values():
            if isinstance(thing, Cache):
                await thing.aclose()  # else the next test hears of what this one left open
        raise
    return scope


async def run_inside(code: str, names: dict[str, Any]) -> dict[str, Any]:
    """Run a block's statements inside a coroutine; gives its local variables."""
    body = textwrap.indent(code, "    ")
    scope: dict[str, Any] = dict(names)
    exec(f"async def block():\n{body}\n    return locals()", scope)
    found: dict[str, Any] = await scope["block"]()
    return found
