"""Rows that are fetched while those before them are applied: none is lost, told twice, or passed before it is done."""

from __future__ import annotations

import pytest

from cachebus.consumers.cdc.slot.postgres import PostgresSource
from cachebus.consumers.cdc.slot.session import SlotSession
from cachebus.consumers.worker.source import Left
from tests.support.caches import until
from tests.support.cdc_slot import take, worker
from tests.support.changes import SCHEMA, fetched, running, tell

COUNT = 700
AT_ONCE = 500
FIRST = AT_ONCE - 2
"""The first slice also tells that a transaction begins, and of the table."""
MANY = f"INSERT INTO shop.orders SELECT g, 'acme', 1, '' FROM generate_series(1, {COUNT}) g"
WHERE_IT_IS = "SELECT confirmed_flush_lsn::text FROM pg_replication_slots WHERE slot_name = 'cachebus_cdc'"
END_ITS_READER = """
SELECT count(pg_terminate_backend(pid)) FROM pg_locks WHERE locktype = 'advisory' AND objsubid = 1 AND granted
  AND database = (SELECT oid FROM pg_database WHERE datname = current_database())
"""


async def source_of(database: str, redis_url: str) -> PostgresSource:
    """One with a slot, and changes of one transaction in it."""
    await tell(database, [SCHEMA])
    async with running(worker(database, redis_url)):
        pass
    await tell(database, [MANY])
    source = worker(database, redis_url).source
    source.identity = lambda: "1"
    return source


def numbers(items: list[object]) -> list[int]:
    return [item.number for item in items]  # type: ignore[attr-defined]


async def fetched_ahead(session: SlotSession) -> None:
    peek = session._reader.peek
    assert peek is not None
    assert peek.slices._ahead is not None, "what is behind it is asked for"
    await until(lambda: not peek.slices.is_fetching)


async def test_the_slot_stays_before_what_was_only_fetched(database: str, redis_url: str) -> None:
    source = await source_of(database, redis_url)
    async with source.opened() as session:
        assert isinstance(session, SlotSession)
        await session.look()
        first = await take(session, AT_ONCE)
        assert numbers(first.items) == list(range(1, FIRST + 1))
        before = await fetched(database, WHERE_IT_IS)
        await fetched_ahead(session)  # to the peek's end
        await session.acknowledge(first, Left())
        assert await fetched(database, WHERE_IT_IS) == before
        rest = await take(session, AT_ONCE)
        assert numbers(rest.items) == list(range(FIRST + 1, COUNT + 1))
        await session.acknowledge(rest, Left())
        assert await fetched(database, WHERE_IT_IS) != before


@pytest.mark.parametrize("waits", [True, False])
async def test_what_is_left_is_told_again_with_all_behind_it(database: str, redis_url: str, *, waits: bool) -> None:
    source = await source_of(database, redis_url)
    async with source.opened() as session:
        assert isinstance(session, SlotSession)
        await session.look()
        first = await take(session, AT_ONCE)
        if waits:
            await fetched_ahead(session)
        await session.acknowledge(first, Left(undone=first.items[300:]))
        told = list[int]()
        while not told or told[-1] < COUNT:
            batch = await take(session, AT_ONCE)
            told += numbers(batch.items)
            await session.acknowledge(batch, Left())
        assert told == list(range(301, COUNT + 1))


async def test_a_session_that_ends_meanwhile_lets_go_of_the_slot(database: str, redis_url: str) -> None:
    source = await source_of(database, redis_url)
    for _ in range(3):
        async with source.opened() as session:
            assert isinstance(session, SlotSession)
            await session.look()
            batch = await take(session, AT_ONCE)
            assert numbers(batch.items) == list(range(1, FIRST + 1))
            peek = session._reader.peek
            assert peek is not None
            ahead = peek.slices._ahead
        assert ahead is not None
        assert ahead.cancelled()


async def test_a_connection_that_breaks_meanwhile_loses_nothing(database: str, redis_url: str) -> None:
    source = await source_of(database, redis_url)
    async with source.opened() as session:
        assert isinstance(session, SlotSession)
        await session.look()
        first = await take(session, AT_ONCE)
        assert await fetched(database, END_ITS_READER) == 1
        await session.acknowledge(first, Left())
        peek = session._reader.peek
        assert peek is not None
        await peek.slices.drop_ahead()
        with pytest.raises(source.trouble):
            await take(session, AT_ONCE)
    async with source.opened() as session:
        await session.look()
        assert numbers((await take(session, AT_ONCE)).items) == list(range(FIRST + 1, COUNT + 1))
