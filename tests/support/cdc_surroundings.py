"""Tables, rules and publications around a slot's worker."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager, suppress
from typing import Any

from pydantic import SecretStr

from cachebus import Cache, L2Unavailable
from cachebus.consumers.cdc.rules.rules import RuleFile, parse_rules
from cachebus.consumers.cdc.slot.postgres import SlotSource, SlotWorker
from cachebus.consumers.worker.apply import Carried
from cachebus.consumers.worker.source_worker import SourceWorker
from cachebus.keys.plan import Plan
from tests.support.caches import quick, until
from tests.support.changes import Heard, fetched, running, tell

RULE = """
[[rule]]
table = "public.{}"
data_type = "{}"
resource_id = "{{id}}"
tenant_id = "{{tenant_id}}"
replica_identity = "full"
on_truncate = "all"
"""


HEAD = 'tenants = ["acme"]\n'
TABLE = "CREATE TABLE o (id text PRIMARY KEY, tenant_id text)", "ALTER TABLE o REPLICA IDENTITY FULL"


def given(*tables: str) -> RuleFile:
    return parse_rules(HEAD + "".join(RULE.format(name, name) for name in tables or ("o",)))


def worker(database: str, redis_url: str, rules: RuleFile | None = None, **more: Any) -> SlotWorker:
    namespace = more.pop("namespace", "cachebus")
    source = SlotSource(SecretStr(database), **{"poll_s": 0.005, **more})
    return SlotWorker(quick(redis_url, namespace=namespace), rules or given(), source)


@asynccontextmanager
async def at_work(one: SourceWorker) -> AsyncIterator[SourceWorker]:
    """Whether or not it is ready."""
    task = asyncio.create_task(one.run())
    try:
        yield one
        assert not task.done()
    finally:
        one.drain()
        await asyncio.wait_for(task, 20)


async def put(cache: Cache, number: int = 1, data_type: str = "o") -> None:
    async def stored() -> bool:
        with suppress(L2Unavailable):  # where this machine is busy
            await cache.set(data_type, number, "old", tenant_id="acme")
            return True
        return False

    await until(stored)


async def gone(cache: Cache, number: int = 1, data_type: str = "o") -> None:
    async def absent() -> bool:
        return await cache.get(data_type, number, tenant_id="acme") is None

    await until(absent)


class Looks:
    """The looks of a worker at its database, counted."""

    def __init__(self, one: SlotWorker) -> None:
        self.count = 0
        self._watcher: Any = one._watcher
        self._look = self._watcher.look
        self._watcher.look = self._counted

    async def _counted(self, session: Any) -> None:
        await self._look(session)
        self.count += 1

    async def let_be(self, cache: Cache) -> bool:
        """Whether what is cached outlives the next looks."""
        await put(cache)
        last = self.count + 3
        await until(lambda: self.count >= last)
        return await cache.get("o", 1, tenant_id="acme") == "old"


class Away:
    """A primary of L2 that is away, as its worker sees it."""

    def __init__(self, one: SlotWorker) -> None:
        self.lasts = True
        self._carry = one._applier.carry
        one._applier.carry = self._carried  # type: ignore[method-assign]

    async def _carried(self, plans: Sequence[Plan], within_s: float | None = None) -> Carried:
        return Carried(away=set(range(len(plans)))) if self.lasts else await self._carry(plans, within_s)


@asynccontextmanager
async def following(database: str, redis_url: str) -> AsyncIterator[tuple[SlotWorker, Heard, Away]]:
    """A worker of `TABLE` that is ready, and what it asks of an L2 that is not away by now."""
    await tell(database, TABLE)
    one = worker(database, redis_url)
    heard, away = Heard(one), Away(one)
    async with at_work(one):
        away.lasts = False
        await until(lambda: one.follows and one.health.ready)
        yield one, heard, away


async def lived_through(
    database: str, redis_url: str, table: str, story: list[str], rules: RuleFile | None = None
) -> int:
    """How many dead letters there are once a worker has come back that was away while this happened, and has let go of
    row 1 of a cache."""
    await tell(database, table.split(";"))
    async with running(worker(database, redis_url, rules)):
        pass
    async with Cache(quick(redis_url)) as cache:
        await put(cache)
        await tell(database, story)
        async with running(one := worker(database, redis_url, rules)):
            await gone(cache)
            looks = Looks(one)
            await until(lambda: looks.let_be(cache))  # it is made up for, and then no more
            assert one.health.ready
    return int(await fetched(database, "SELECT count(*) FROM cachebus_cdc_dead"))
