"""Workers on a slot, and the rows of their tests."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import replace
from typing import Any

import asyncpg
from pydantic import SecretStr

from cachebus.consumers.cdc.rules.rules import RuleFile
from cachebus.consumers.cdc.slot.postgres import SlotSource, SlotWorker
from cachebus.consumers.worker.source import Batch, Session
from tests.support.caches import quick
from tests.support.changes import END, rules, running, tell

ORDER = "INSERT INTO shop.orders VALUES ({}, 'acme', 1, '')"


THE_END = ORDER.format(END[1])


def worker(database: str, redis_url: str, given: RuleFile | None = None, **more: Any) -> SlotWorker:
    source = replace(SlotSource(SecretStr(database), poll_s=0.005), **more)
    return SlotWorker(quick(redis_url), given or rules(), source)


async def done_beside(database: str, sql: str) -> bool:
    """Whether this was done to a slot that a worker follows, which has it in use now and then."""
    try:
        await tell(database, [sql])
    except asyncpg.ObjectInUseError:
        return False
    return True


async def take(session: Session, limit: int = 1000) -> Batch:
    """As a worker takes."""
    batch = await session.take(limit, ())
    if not session.look_again:
        return batch
    session.look_again = False
    await session.look()
    return await session.take(limit, ())


@asynccontextmanager
async def gone_on(make: Callable[[], SlotWorker]) -> AsyncIterator[Session]:
    """The session of a second worker, where a first one has begun and ended: it has looked, and leads."""
    async with running(make()):
        pass
    async with make().source.opened() as session:
        await session.look()
        await take(session)
        yield session
