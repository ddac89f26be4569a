"""The types that users see, by mypy and by pyright, each at its strictest: right uses pass, and no wrong one does."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from collections import defaultdict
from collections.abc import Callable, Mapping
from functools import cache
from importlib.util import find_spec
from pathlib import Path

import pytest

from tests.support.require import require

ROOT = Path(__file__).parents[2]
HERE = Path(__file__).parent
RIGHT = ("api.py", "inferred.py")
WRONG = "wrong.py"
MARK = re.compile(r"  # ([\w-]+) \| (\w+)$")

Found = Mapping[str, Mapping[int, set[str]]]
"""The codes of errors, by line, by file."""


def ran(module: str, *arguments: str) -> str:
    """What a checker says. Of errors, that is: whatever else goes wrong fails the test."""
    done = subprocess.run(
        [sys.executable, "-m", module, *arguments], cwd=ROOT, capture_output=True, text=True, timeout=300, check=False
    )
    assert done.returncode in (0, 1), done.stdout + done.stderr
    return done.stdout


@cache
def mypy() -> Found:
    """The errors that mypy finds, by the settings of this project, which are strict."""
    require(find_spec("mypy"), "mypy", "pip install 'cachebus[dev]'")
    paths = [str(HERE / name) for name in (*RIGHT, WRONG)]
    lines = ran("mypy", "--output", "json", "--cache-dir", ".mypy_cache", *paths).splitlines()
    errors = [json.loads(line) for line in lines if line.startswith("{")]
    found: dict[str, dict[int, set[str]]] = defaultdict(lambda: defaultdict(set))
    for error in errors:
        if error["severity"] == "error":
            found[Path(error["file"]).name][error["line"]].add(error["code"])
    return found


@cache
def pyright() -> Found:
    """The errors that pyright finds. It comes as basedpyright, whose wheels bring all that it needs to run."""
    require(find_spec("basedpyright"), "basedpyright", "pip install 'cachebus[test]'")
    project = HERE / "pyrightconfig.json"
    said = json.loads(ran("basedpyright", "--outputjson", "--pythonpath", sys.executable, "--project", str(project)))
    found: dict[str, dict[int, set[str]]] = defaultdict(lambda: defaultdict(set))
    for one in said["generalDiagnostics"]:
        found[Path(one["file"]).name][one["range"]["start"]["line"] + 1].add(one.get("rule", one["message"]))
    assert said["summary"]["filesAnalyzed"] >= len(RIGHT) + 1
    return found


CHECKERS: dict[str, Callable[[], Found]] = {"mypy": mypy, "pyright": pyright}


def marked(checker: str) -> dict[int, set[str]]:
    """What is wrong on each line, by the marks behind them."""
    which = list(CHECKERS).index(checker)
    text = (HERE / WRONG).read_text()
    lines = enumerate(text.splitlines(), 1)
    marks = {n: {mark[which + 1]} for n, line in lines if (mark := MARK.search(line))}
    assert len(marks) == text.count("  # "), "a mark is written otherwise than the others"
    return marks


@pytest.mark.parametrize("checker", CHECKERS)
def test_right_uses_are_accepted(checker: str) -> None:
    found = CHECKERS[checker]()
    assert {name: dict(found[name]) for name in RIGHT if name in found} == {}


@pytest.mark.parametrize("checker", CHECKERS)
def test_wrong_uses_are_refused(checker: str) -> None:
    """Each of them, and for the reason that stands behind it. What follows from an error may be one, too."""
    expected, found = marked(checker), CHECKERS[checker]().get(WRONG, {})
    assert {line: codes & expected.get(line, codes) for line, codes in found.items()} == expected


def test_every_file_here_is_looked_at() -> None:
    here = {path.name for path in HERE.glob("*.py")}
    assert here == {*RIGHT, WRONG, Path(__file__).name, "__init__.py"}
