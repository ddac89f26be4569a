"""The pages, and the tests that they name."""

from __future__ import annotations

from functools import cache
from pathlib import Path

from docs.reference.generate import PAGES as GENERATED
from tests.support.pages import PAGES, ROOT

TESTS = ROOT / "tests"


AT_THE_TOP = [ROOT / name for name in ("README.md", "CHANGELOG.md", "CONTRIBUTING.md", "SECURITY.md")]


DOCUMENTS = [*AT_THE_TOP, ROOT / "examples" / "README.md", *PAGES]


@cache
def made(page: str) -> str:
    """A page of the reference, as it is made from the code."""
    return GENERATED[page]()


def name_of(path: Path) -> str:
    """How a document is shown among the tests."""
    return path.relative_to(ROOT).as_posix()
