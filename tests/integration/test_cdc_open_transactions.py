"""Transactions that wrote to a table before a slot's worker was told of it, and have not ended: PostgreSQL tells
nothing of what they wrote, and until they end whoever loads gets the old rows. It is made up for until they have."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager

import asyncpg
import pytest

from cachebus import Cache
from cachebus.consumers.cdc.slot import commits
from cachebus.consumers.cdc.slot.postgres import SlotWorker
from cachebus.consumers.cdc.slot.storage import lose
from cachebus.consumers.worker import watcher
from cachebus.consumers.worker.preflight import preflight
from cachebus.tools.servers.postgres import PostgresServer
from tests.conftest import connected
from tests.support.caches import quick, until
from tests.support.cdc_surroundings import Looks, at_work, given, gone, put, worker
from tests.support.changes import fetched, running, tell
from tests.support.worker_health import why

TABLE_OF = """
CREATE TABLE {0} (id int PRIMARY KEY, tenant_id text, x int); ALTER TABLE {0} REPLICA IDENTITY FULL;
INSERT INTO {0} VALUES (1, 'acme', 0)
"""
TABLE = TABLE_OF.format("o")
PUBLISHED = "SELECT EXISTS (SELECT FROM pg_publication_rel WHERE prrelid = 'o'::regclass AND prqual IS NULL)"
REMEMBERED = "SELECT tables ? 'public.o' AND NOT tables -> 'public.o' ? 'owed' FROM cachebus_cdc_slots"
OUT = "ALTER PUBLICATION cachebus_cdc DROP TABLE o"
UPDATE = "UPDATE o SET x = 1 WHERE id = 1"


@pytest.fixture(autouse=True)
def _looks_often(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(watcher, "LOOK_EVERY_S", 0.05)


@pytest.fixture(scope="module")
def preparing() -> Iterator[str]:
    """A server that prepares transactions."""
    with PostgresServer(settings={"max_prepared_transactions": "5"}) as server:
        yield server.url


async def looked_at(one: SlotWorker) -> None:
    """Several times from now on."""
    looks = Looks(one)
    await until(lambda: looks.count >= 4)


@asynccontextmanager
async def writing(database: str) -> AsyncIterator[asyncpg.Connection]:
    """A transaction that has written, and is committed at the end."""
    async with connected(database) as connection, connection.transaction():
        await connection.execute(UPDATE)
        yield connection


@pytest.mark.parametrize(
    ("away", "back"),
    [
        (OUT, ""),
        ("DROP PUBLICATION cachebus_cdc", ""),
        ("ALTER PUBLICATION cachebus_cdc SET TABLE o WHERE (id > 9)", "ALTER PUBLICATION cachebus_cdc SET TABLE o"),
        (f"DROP TABLE o; {TABLE}", ""),
    ],
)
async def test_what_was_written_before_a_table_was_published_is_made_up_for_once_it_is_committed(
    database: str, redis_url: str, away: str, back: str
) -> None:
    await tell(database, [TABLE])
    async with running(worker(database, redis_url)):
        pass
    await tell(database, [away])
    async with Cache(quick(redis_url)) as cache:
        async with writing(database):
            await tell(database, [back] if back else [])
            async with at_work(worker(database, redis_url)) as one:
                await looked_at(one)
                await put(cache)
        async with running(worker(database, redis_url)):  # it waits for whom the one before has waited
            await gone(cache)
            await until(lambda: fetched(database, REMEMBERED))


async def test_they_are_waited_for_by_the_worker_that_began(database: str, redis_url: str) -> None:
    await tell(database, [TABLE])
    async with Cache(quick(redis_url)) as cache, at_work(one := worker(database, redis_url)):
        await until(lambda: one.follows)
        await tell(database, [OUT])
        async with writing(database):
            await until(lambda: fetched(database, PUBLISHED))
            await looked_at(one)
            await put(cache)
        await gone(cache)
        await until(lambda: fetched(database, REMEMBERED))
        looks = Looks(one)
        await until(lambda: looks.let_be(cache))  # and then no more
        assert one.health.ready


async def test_one_that_stays_open_is_named_with_what_ends_it(
    database: str, redis_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(commits, "WAITS_S", 0.0)
    await tell(database, [TABLE])
    async with running(worker(database, redis_url)):
        pass
    await tell(database, [OUT])
    async with writing(database) as writer, at_work(worker(database, redis_url)) as one:
        pid = await writer.fetchval("SELECT pg_backend_pid()")
        await until(lambda: f"process {pid}" in why(one, "tables"))
        assert f"WHERE pid IN ({pid}); or SELECT pg_terminate_backend({pid});" in why(one, "tables")
        assert not await fetched(database, REMEMBERED)
        await looked_at(one)
        assert not one.health.ready
        await writer.execute("ROLLBACK; BEGIN")
        await until(lambda: one.health.ready)
        await until(lambda: fetched(database, REMEMBERED))


async def test_a_check_names_it_at_its_only_look(database: str, redis_url: str) -> None:
    """It said that changes go unnoticed, and neither by whom nor what ends that."""
    await tell(database, [TABLE])
    async with running(worker(database, redis_url)):
        pass
    await tell(database, [OUT, "ALTER PUBLICATION cachebus_cdc ADD TABLE o"])
    async with writing(database) as writer:
        pid = await writer.fetchval("SELECT pg_backend_pid()")
        checked = {one.what: one.findings for one in await preflight(worker(database, redis_url))}
        [finding] = checked["tables"]
        assert finding.problem.endswith(f": process {pid}")
        assert f"SELECT pg_terminate_backend({pid});" in finding.remedy


async def test_one_that_is_prepared_is_waited_for_under_its_name(
    preparing: str, redis_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(commits, "WAITS_S", 0.0)
    await tell(preparing, [TABLE])
    async with running(worker(preparing, redis_url)):
        pass
    await tell(preparing, [OUT, f"BEGIN; {UPDATE}; PREPARE TRANSACTION 'it''s'"])
    async with Cache(quick(redis_url)) as cache, at_work(worker(preparing, redis_url)) as one:
        await until(lambda: "COMMIT PREPARED 'it''s'; or ROLLBACK PREPARED 'it''s';" in why(one, "tables"))
        await looked_at(one)
        await put(cache)
        await tell(preparing, ["COMMIT PREPARED 'it''s'"])
        await gone(cache)
        await until(lambda: one.health.ready)


async def test_those_of_other_tables_are_not_waited_for(database: str, redis_url: str) -> None:
    await tell(database, [TABLE, "CREATE TABLE other (id int)"])
    async with running(worker(database, redis_url)):
        pass
    async with connected(database) as connection, connection.transaction():
        await connection.execute("INSERT INTO other VALUES (1)")
        await tell(database, [OUT])
        async with running(worker(database, redis_url)):
            await until(lambda: fetched(database, REMEMBERED))


async def test_what_was_missed_of_a_slot_waits_for_one_that_is_prepared_and_says_which(
    preparing: str, redis_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It may be about to commit, which others do not see yet."""
    monkeypatch.setattr(commits, "WAITS_S", 0.0)
    await tell(preparing, [TABLE_OF.format("p")])
    async with at_work(worker(preparing, redis_url, given("p"), slot="of_p")) as one, connected(preparing) as other:
        await until(lambda: one.health.ready and one.follows)
        await tell(preparing, ["BEGIN; UPDATE p SET x = 1; PREPARE TRANSACTION 'here'"])
        await lose(other, "of_p")
        await until(lambda: "the transactions that ran then: prepared as 'here'" in why(one, "slot"))
        assert "ROLLBACK PREPARED 'here';" in why(one, "slot")
        monkeypatch.setattr(commits, "WAITS_S", 5.0)
        checked = {one.what: one for one in await preflight(worker(preparing, redis_url, given("p"), slot="of_p"))}
        assert "ROLLBACK PREPARED 'here';" in checked["slot"].findings[0].remedy
        monkeypatch.setattr(commits, "WAITS_S", 0.0)
        await looked_at(one)
        assert not one.health.ready
        await tell(preparing, ["COMMIT PREPARED 'here'"])
        await until(lambda: one.health.ready)


async def test_what_was_missed_of_a_slot_waits_for_none_of_another_database(preparing: str, redis_url: str) -> None:
    await tell(preparing, [TABLE_OF.format("q"), "CREATE DATABASE elsewhere"])
    there = preparing.rpartition("/")[0] + "/elsewhere"
    async with at_work(worker(preparing, redis_url, given("q"), slot="of_q")) as one, connected(preparing) as other:
        await until(lambda: one.health.ready and one.follows)
        await tell(there, ["CREATE TABLE t (x int); BEGIN; INSERT INTO t VALUES (1); PREPARE TRANSACTION 'there'"])
        await lose(other, "of_q")
        await until(lambda: fetched(preparing, "SELECT whole FROM cachebus_cdc_slots WHERE slot = 'of_q'"))
        await until(lambda: one.health.ready)
        await tell(there, ["ROLLBACK PREPARED 'there'"])
