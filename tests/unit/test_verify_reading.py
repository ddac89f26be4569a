"""What the readers of a run ask for, as far as the judge goes by it."""

from __future__ import annotations

import asyncio
from pathlib import Path
from random import Random
from typing import Any

import pytest

from cachebus.base.clock import monotonic
from cachebus.tools.verify.fleet import reading
from cachebus.tools.verify.fleet.disturbances import EVERY_S, LoopLag
from cachebus.tools.verify.fleet.items import make_items
from cachebus.tools.verify.fleet.reading import ANY_TOKEN, TOKEN, Readers
from cachebus.tools.verify.fleet.source_of_truth import Token


class Slow:
    """A cache that answers no first caller in time, and writes down what it was asked."""

    def __init__(self) -> None:
        self.asked: list[dict[str, Any]] = []

    async def get_or_load(self, *_: Any, **how: Any) -> list[int]:
        """The second caller's answer."""
        self.asked.append(how)
        if len(self.asked) == 1:
            await asyncio.Event().wait()
        return [1, 7]

    get = get_or_load


class Notes:
    """What the judge is told."""

    given_up = 0

    def note(self, _item: Any, verb: int, value: list[int], *_: Any, **__: Any) -> int:
        """An answer."""
        assert verb == TOKEN
        return value[1]


class Loads:
    """Loaders for every item."""

    def __init__(self, count: int) -> None:
        self.special = self.ordinary = [None] * count


async def test_who_gives_up_a_read_with_a_token_asks_again_with_it(tmp_path: Path, monkeypatch: Any) -> None:
    """What comes is held against the token."""
    monkeypatch.setattr(reading, "LIMITED_SHARE", 1.0)
    items, cache = make_items(), Slow()
    held: list[tuple[Any, ...]] = []
    tokens: Any = type("Tokens", (), {"add": lambda _, *fields: held.append(fields)})()
    notes: Any = Notes()
    loads: Any = Loads(len(items))
    monkeypatch.setattr(Readers, "_function", lambda *_: None)
    caches: Any = [cache, cache]
    readers = Readers(caches, items, None, loads, notes, tokens, Random(1), 0.0, monotonic, "x")  # type: ignore[arg-type]
    item = next(i for i in items[1:] if i is not None)
    assert await readers._after(item, Token(item.number, 7, "a-token"), ANY_TOKEN) == 7
    assert [how.get("after") for how in cache.asked] == ["a-token", "a-token"]
    assert notes.given_up == 1
    assert [fields[1] for fields in held] == [7]


def test_a_stall_of_the_loop_counts_before_it_is_noted() -> None:
    """An answer that came during a stall is handled first."""
    now_s = 100.0
    lag = LoopLag(lambda: now_s)
    now_s = 100.5
    lag.note(now_s, 0.4)
    now_s = 101.5
    assert lag.since(99.0) == pytest.approx(0.4 + 1.0 - EVERY_S)
    assert lag.since(101.3) == pytest.approx(0.2 - EVERY_S)
    lag.note(now_s, 0.9)
    assert lag.since(101.0) == pytest.approx(0.9)
