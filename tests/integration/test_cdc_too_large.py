"""Rows that are large, and transactions of which no server can tell, since something in them is too large as text."""

from __future__ import annotations

import asyncio

from cachebus.consumers.cdc.rules.rules import parse_rules
from cachebus.consumers.cdc.slot.peek import SLICE_BYTES
from cachebus.consumers.worker.source import Left
from tests.support.caches import until
from tests.support.cdc_slot import ORDER, done_beside, take, worker
from tests.support.cdc_too_large import STORY
from tests.support.changes import RULES, SCHEMA, Heard, fetched, running, tell

ADVANCE = "SELECT pg_replication_slot_advance('cachebus_cdc', pg_current_wal_flush_lsn())"


async def test_what_is_too_large_to_be_told_is_passed_by_and_made_up_for(database: str, redis_url: str) -> None:
    await tell(database, [SCHEMA])
    async with running(worker(database, redis_url)):
        pass
    await tell(database, STORY)
    one = worker(database, redis_url)
    heard = Heard(one)
    async with running(one):
        await until(lambda: heard.asked["D globex order"])
        assert heard.has("order", "1"), "what was before it"
        assert not heard.has("order", "2"), "what was behind it is passed by, too"
        await tell(database, [ORDER.format(3)])
        await until(lambda: heard.has("order", "3"))
        assert heard.asked["D globex order"] == 1
        assert await fetched(database, "SELECT whole FROM cachebus_cdc_slots")


async def test_where_nobody_can_name_what_it_changed_it_is_told_how_to_get_past_it(
    database: str, redis_url: str
) -> None:
    unnamed = parse_rules(RULES.replace('["acme", "globex"]', "[]").replace('"all"', '"ignore"'))
    await tell(database, [SCHEMA])
    async with running(worker(database, redis_url, unnamed)):
        pass
    await tell(database, STORY)
    one = worker(database, redis_url, unnamed)
    heard = Heard(one)
    task = asyncio.create_task(one.run())
    await until(lambda: "too large as text" in one.health.as_dict()["parts"]["slot"]["why"])
    assert ADVANCE in one.health.as_dict()["parts"]["slot"]["why"]
    assert heard.has("order", "1"), "what was before it"
    await until(lambda: done_beside(database, ADVANCE))
    await tell(database, [ORDER.format(3)])
    await until(lambda: heard.has("order", "3"), within_s=30)
    await until(lambda: one.health.is_up("slot"))
    one.drain()
    await asyncio.wait_for(task, 20)


async def test_large_rows_are_taken_a_few_at_a_time(database: str, redis_url: str) -> None:
    """However small those before them were, so that a batch takes no more memory than it must."""
    await tell(database, [SCHEMA])
    one = worker(database, redis_url)
    async with running(one):
        pass
    many = "INSERT INTO shop.orders SELECT g, 'acme', 1, repeat('x', {}) FROM generate_series({}, {}) g"
    await tell(database, [many.format(1, 1, 3000), many.format(150_000, 3001, 3200)])
    source = worker(database, redis_url).source
    sizes: list[int] = []
    async with source.opened() as session:
        await session.look()
        count = 0
        while count < 3200:
            batch = await take(session, 2000)
            sizes.append(sum(len(item.raw.data) for item in batch.items if item.raw is not None))
            count += len(batch.items)
            if batch.items:
                await session.acknowledge(batch, Left())
    assert sum(sizes) > 3 * SLICE_BYTES
    assert max(sizes) < SLICE_BYTES + 200_000
