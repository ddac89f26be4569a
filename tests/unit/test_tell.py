"""What follows a change that L2 has taken, for nodes and producers alike."""

from __future__ import annotations

import asyncio

import pytest

from cachebus.core.ports import Change
from cachebus.keys.key import Keyspace
from cachebus.keys.plan import Plan
from cachebus.observe import Counters
from cachebus.writing.resend_buffer import ResendBuffer
from cachebus.writing.tell import Teller

HERE, ELSEWHERE = b"a" * 16, b"b" * 16
CHANGE = Change(HERE, 1, True, b"head")


def buffer() -> ResendBuffer:
    return ResendBuffer(lambda: 100.0, Keyspace(1), 1 << 20, Counters())


def plan() -> Plan:
    made = Plan(0)
    made.scopes.append("T\x1facme")
    return made


class Hanging:
    """A bus that takes nothing."""

    async def publish(self, shard: int, message: bytes) -> None:
        await asyncio.Event().wait()


class Hearing:
    """A bus that keeps what it is given."""

    def __init__(self) -> None:
        self.heard: list[tuple[int, bytes]] = []

    async def publish(self, shard: int, message: bytes) -> None:
        self.heard.append((shard, message))


async def test_who_is_cancelled_while_it_publishes_repeats_it_after_a_failover_all_the_same() -> None:
    kept = buffer()
    telling = asyncio.create_task(Teller(kept, Hanging()).tell(plan(), CHANGE, b"body", 99.0))
    await asyncio.sleep(0)
    telling.cancel()
    with pytest.raises(asyncio.CancelledError):
        await telling
    with kept.lost(0, ELSEWHERE, 98.0) as plans:
        assert [scope for plan in plans for scope in plan.scopes] == ["T\x1facme"]


async def test_the_event_is_the_scripts_head_and_the_callers_body() -> None:
    bus = Hearing()
    await Teller(buffer(), bus).tell(plan(), CHANGE, b"body", 99.0)
    assert bus.heard == [(0, b"headbody")]


async def test_what_the_script_has_published_is_kept_and_not_published_again() -> None:
    kept = buffer()
    await Teller(kept, None).tell(plan(), CHANGE, b"body", 99.0)
    assert len(kept) == 1
