"""Rows that are large, and transactions of which no server can tell, since something in them is too large as text."""

from __future__ import annotations

from cachebus.consumers.cdc.slot.slices import SLICE_BYTES
from cachebus.consumers.worker.source import Left
from tests.support.caches import until
from tests.support.cdc_slot import ORDER, take, worker
from tests.support.cdc_too_large import STORY
from tests.support.changes import SCHEMA, Heard, fetched, running, tell


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
