"""Work that is kept up, whatever ends it."""

from __future__ import annotations

import ast
import asyncio
from collections import Counter
from pathlib import Path

import pytest

from cachebus.base import kept as module
from cachebus.base.kept import kept
from tests.support.caches import until
from tests.support.logs import told


@pytest.fixture(autouse=True)
def _at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "AGAIN_S", 0.0)


class Work:
    """Ends as it is told to, the first time."""

    def __init__(self, ends_with: BaseException) -> None:
        self.ends_with = ends_with
        self.begun = 0

    async def do(self) -> None:
        self.begun += 1
        if self.begun == 1:
            raise self.ends_with
        await asyncio.Event().wait()


@pytest.mark.parametrize("ends_with", [ValueError("bug"), ExceptionGroup("of a group", [OSError()])])
async def test_what_raises_begins_anew_and_is_told(ends_with: Exception) -> None:
    work = Work(ends_with)
    with told("ERROR") as lines:
        task = kept(work.do, "the work")
        await until(lambda: work.begun == 2)
        task.cancel()
        await asyncio.wait([task])
    assert task.cancelled()
    assert [line.splitlines()[0] for line in lines] == ["the work has ended; it begins anew"]


async def test_a_cancellation_that_is_not_its_own_ends_nothing() -> None:
    work = Work(asyncio.CancelledError())
    with told("ERROR") as lines:
        task = kept(work.do, "the work")
        await until(lambda: work.begun == 2)
        task.cancel()
        await asyncio.wait([task])
    assert lines == ["the work: what it waited for was cancelled; it begins anew"]


async def test_what_answers_its_end_by_raising_something_else_ends_too() -> None:
    begun = list[int]()

    async def work() -> None:
        begun.append(1)
        if len(begun) > 1:
            return
        try:
            await asyncio.Event().wait()
        finally:
            raise OSError("closing failed")

    with told("ERROR") as lines:
        task = kept(work, "the work")
        await until(lambda: bool(begun))
        task.cancel()
        await asyncio.wait([task])
    assert begun == [1] and task.cancelled()
    assert len(lines) == 1 and lines[0].startswith("the work was ended, and raised instead:")
    assert "closing failed" in lines[0]


async def test_what_returns_is_done() -> None:
    async def one() -> None:
        return

    await kept(one, "the work")


def test_no_two_have_one_name() -> None:
    """The log could not say which of them began anew."""
    names = Counter[str]()
    for floor in ("cachebus", "consumers", "producers"):
        for path in (Path(__file__).parents[2] / floor).rglob("*.py"):
            for node in ast.walk(ast.parse(path.read_text())):
                if isinstance(node, ast.Call) and ast.unparse(node.func) in ("keep", "kept") and len(node.args) > 1:
                    names[ast.unparse(node.args[1])] += 1
    assert names.total() > 2
    assert [name for name, count in names.items() if count > 1 and name.startswith("'")] == []
