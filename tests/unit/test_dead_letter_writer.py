"""How long a worker waits for a place of its dead letters that takes nothing."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

import pytest

from cachebus.consumers.monitoring.health import WorkerHealth
from cachebus.consumers.worker import dead_letter_writer
from cachebus.consumers.worker.dead import DeadLetter
from cachebus.consumers.worker.dead_letter_writer import PART, RECOVERED_AFTER, DeadLetterWriter
from cachebus.consumers.worker.source import Item, NotSetAside
from cachebus.testing import FakeClock
from tests.support.memory_source import MemorySource

LETTER = NotSetAside(Item("1", None), DeadLetter(b"", "a reason", "1", 1))


class Place:
    """A session whose place hangs, until it does not."""

    hangs = True

    async def set_aside(self, letters: Sequence[DeadLetter]) -> None:
        if self.hangs:
            await asyncio.Event().wait()


async def test_what_is_not_looked_for_is_not_gone() -> None:
    """The part was green while L2 or the source was away, or between two polls, though nothing was mended."""
    clock, source, place = FakeClock(), MemorySource(), Place()
    health = WorkerHealth("test", (PART,))
    writer = DeadLetterWriter("test", source, health, clock)
    source.set_aside_s, source.again_s = 0.005, 60.0

    async def refused() -> None:
        writer.begin_batch()
        await writer.write(place, [LETTER])  # type: ignore[arg-type]
        clock.advance(0.1)
        writer.work_time.looked(through=True)
        writer.end_batch()

    await refused()
    clock.advance(3600.0)
    writer.check_recovery()
    assert not health.is_up(PART)
    writer.work_time.looked(through=False)
    writer.check_recovery()
    assert not health.is_up(PART), "others came, and it may be behind them"
    await refused()
    assert not health.is_up(PART), "it has come again, after an hour"
    clock.advance(RECOVERED_AFTER * source.again_s + 0.1)
    writer.work_time.looked(through=True)
    writer.check_recovery()
    assert health.is_up(PART)


async def test_after_it_waited_in_vain_it_waits_less_and_then_longer_each_time(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, lasts_s in {"REST_S": 0.0, "REST_MAX_S": 0.0, "BRIEF_S": 0.001}.items():
        monkeypatch.setattr(dead_letter_writer, name, lasts_s)
    source = MemorySource()
    source.set_aside_s = 0.005
    writer, place = DeadLetterWriter("test", source, WorkerHealth("test", (PART,))), Place()
    waits = list[float]()
    for _ in range(6):
        waits.append(writer._brief_s)
        assert await writer.write(place, [LETTER]) == [LETTER]  # type: ignore[arg-type]
    assert waits == [0.0, 0.001, 0.002, 0.004, 0.005, 0.005]
    place.hangs = False
    assert await writer.write(place, [LETTER]) == []  # type: ignore[arg-type]
    assert writer._brief_s == 0.0, "as long as ever"
    place.hangs = True
    await writer.write(place, [LETTER])  # type: ignore[arg-type]
    assert writer._brief_s == 0.001
