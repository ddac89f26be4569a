"""A slot that a worker has not made, or of which nothing is remembered: what may have been missed is made up for."""

from __future__ import annotations

import re

import asyncpg
import pytest

from cachebus import Cache
from cachebus.consumers.worker import assumptions, watcher
from cachebus.consumers.worker.preflight import preflight
from cachebus.tools.servers.postgres import PostgresServer
from tests.conftest import connected
from tests.support.caches import quick, until
from tests.support.cdc_slot import done_beside
from tests.support.cdc_surroundings import Looks, at_work, gone, put, worker
from tests.support.changes import fetched, running, tell
from tests.support.worker_health import why

TABLE = "CREATE TABLE o (id int PRIMARY KEY, tenant_id text, x int); ALTER TABLE o REPLICA IDENTITY FULL"
MADE = "SELECT pg_create_logical_replication_slot('cachebus_cdc', 'pgoutput')"
DROPPED = "SELECT pg_drop_replication_slot('cachebus_cdc')"
NONE = "SELECT NOT EXISTS (SELECT FROM pg_replication_slots)"
FORGOTTEN = "DELETE FROM cachebus_cdc_slots"


@pytest.fixture(autouse=True)
def _looks_often(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(watcher, "LOOK_EVERY_S", 0.05)


@pytest.mark.parametrize("of", ["CREATE PUBLICATION cachebus_cdc", "CREATE PUBLICATION cachebus_cdc FOR TABLE o", ""])
async def test_before_a_worker_begins_on_a_slot_that_others_have_made_is_made_up_for(
    database: str, redis_url: str, of: str
) -> None:
    """Its tables may not have been published all the while."""
    await tell(database, [TABLE, *filter(None, [of]), MADE])
    async with Cache(quick(redis_url)) as cache:
        await put(cache)
        await tell(database, ["INSERT INTO o VALUES (2, 'acme', 0)"])
        async with running(one := worker(database, redis_url)):
            await gone(cache)
            looks = Looks(one)
            await until(lambda: looks.let_be(cache))  # it is made up for, and then no more
            assert one.health.ready


async def test_before_a_worker_begins_on_a_slot_that_it_makes_nothing_is_made_up_for(
    database: str, redis_url: str
) -> None:
    await tell(database, [TABLE])
    async with Cache(quick(redis_url)) as cache:
        await put(cache)
        async with running(one := worker(database, redis_url)):
            assert await Looks(one).let_be(cache)


@pytest.mark.parametrize(
    "story",
    [
        [DROPPED, FORGOTTEN],
        [DROPPED, "DROP TABLE cachebus_cdc_slots, cachebus_cdc_held, cachebus_cdc_dead"],
        [f"{DROPPED}; {MADE}", FORGOTTEN],
        [FORGOTTEN],
    ],
)
async def test_a_slot_that_is_removed_with_what_is_remembered_while_a_worker_follows_it_is_a_lost_one(
    database: str, redis_url: str, story: list[str]
) -> None:
    await tell(database, [TABLE])
    async with Cache(quick(redis_url)) as cache, at_work(one := worker(database, redis_url)):
        await until(lambda: one.health.ready and one.follows)
        await put(cache)
        for sql in story:
            await until(lambda sql=sql: done_beside(database, sql))
        await gone(cache)
        await until(lambda: one.health.ready and one.follows, within_s=30)
        await put(cache)
        await tell(database, ["INSERT INTO o VALUES (1, 'acme', 0)"])
        await gone(cache)


async def test_it_stays_a_lost_one_for_who_is_to_stop_there(database: str, redis_url: str) -> None:
    await tell(database, [TABLE])
    async with at_work(one := worker(database, redis_url, on_lost_slot="stop")):
        await until(lambda: one.health.ready and one.follows)
        await until(lambda: done_beside(database, DROPPED))
        await tell(database, [FORGOTTEN])
        await until(lambda: "lost: " in why(one, "slot"))
    async with Cache(quick(redis_url)) as cache:
        await put(cache)
        async with running(worker(database, redis_url)):
            await gone(cache)
    assert await fetched(database, "SELECT whole FROM cachebus_cdc_slots")


async def test_while_a_slot_can_not_be_made_who_is_waited_for_is_told_and_caches_go_on_being_let_go_of(
    redis_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The server makes none until all have ended that have written, in any database."""
    with PostgresServer() as server:
        await tell(server.url, [TABLE, "CREATE TABLE other (id int)", "CREATE DATABASE second"])
        async with running(worker(server.url, redis_url)):
            pass
        await tell(server.url, [DROPPED])
        monkeypatch.setattr(assumptions, "MAKE_UP_EVERY_S", 0.1)
        async with Cache(quick(redis_url)) as cache, connected(server.url_of("second")) as writer:
            await writer.execute("BEGIN; SELECT pg_current_xact_id()")
            pid = await writer.fetchval("SELECT pg_backend_pid()")
            await put(cache)
            async with at_work(one := worker(server.url, redis_url)):
                await until(lambda: f"have written must end, in any database: process {pid}" in why(one, "slot"))
                assert f"pid IN ({pid})" in why(one, "slot")
                await gone(cache)
                await put(cache)
                await gone(cache)
            assert await fetched(server.url, NONE), "a worker that ends leaves nothing half done"
            async with at_work(two := worker(server.url, redis_url)):
                await until(lambda: str(pid) in why(two, "slot"))
                await writer.execute("COMMIT")
                await until(lambda: two.health.ready and two.follows)
                assert await fetched(server.url, "SELECT whole FROM cachebus_cdc_slots")
                await put(cache)
                await tell(server.url, ["INSERT INTO o VALUES (1, 'acme', 0)"])
                await gone(cache)


async def test_where_all_slots_are_in_use_those_that_nobody_uses_are_told(redis_url: str) -> None:
    with PostgresServer(settings={"max_replication_slots": "1"}) as server:
        await tell(server.url, [TABLE, "SELECT pg_create_physical_replication_slot('old')"])
        async with at_work(one := worker(server.url, redis_url)):
            await until(lambda: "all are taken (max_replication_slots = 1)" in why(one, "slot"))
            [sql] = re.findall("SELECT pg_drop_replication_slot.*?;", why(one, "slot"))
            await tell(server.url, [sql])
            await until(lambda: one.health.ready and one.follows)


async def test_slots_that_other_workers_follow_are_not_told_as_unused(redis_url: str) -> None:
    """Between two peeks no session uses a slot: its worker has its lock, in whichever database."""
    with PostgresServer(settings={"max_replication_slots": "2"}) as server:
        await tell(server.url, [TABLE, "CREATE DATABASE second"])
        second = server.url_of("second")
        await tell(second, [TABLE])
        async with at_work(here := worker(server.url, redis_url, namespace="here")):
            async with at_work(there := worker(second, redis_url, namespace="there")):
                await until(lambda: here.follows and there.follows)
                async with at_work(one := worker(server.url, redis_url)):
                    used = "; here_cdc of the database postgres, there_cdc of the database second are used now"
                    await until(lambda: f"all are taken (max_replication_slots = 2){used}" in why(one, "slot"))
                    assert "pg_drop" not in why(one, "slot")
                    checked = {it.what: it.findings for it in await preflight(worker(server.url, redis_url))}
                    assert used in str(checked["slot"])
            async with at_work(one := worker(server.url, redis_url)):
                await until(lambda: "these now: SELECT pg_drop_replication_slot('there_cdc');)" in why(one, "slot"))


async def test_who_stands_by_and_a_check_say_who_holds_up_that_the_slot_is_made(redis_url: str) -> None:
    with PostgresServer(settings={"max_prepared_transactions": "2"}) as server:
        prepared = "BEGIN; CREATE TABLE other (id int); PREPARE TRANSACTION 'it''s'"
        await tell(server.url, [TABLE, prepared])
        async with at_work(one := worker(server.url, redis_url)):
            says = (
                "let the coordinator of 'it''s' decide; else, in the database postgres: COMMIT PREPARED 'it''s'; or "
                "ROLLBACK PREPARED 'it''s';"
            )
            await until(lambda: says in why(one, "slot"))
            async with at_work(two := worker(server.url, redis_url)):
                await until(lambda: says in why(two, "slot"))
                checked = {it.what: it.findings for it in await preflight(worker(server.url, redis_url))}
                assert says in checked["slot"][0].remedy
                await tell(server.url, ["ROLLBACK PREPARED 'it''s'"])
                await until(lambda: one.health.ready and two.health.ready)


async def test_while_a_slot_can_not_be_made_the_oldest_grows_older(redis_url: str) -> None:
    """What is written meanwhile is told by nobody, and no backlog can be counted."""
    with PostgresServer() as server:
        await tell(server.url, [TABLE, "CREATE DATABASE second"])
        async with connected(server.url_of("second")) as writer, at_work(one := worker(server.url, redis_url)):
            await until(lambda: one.follows and one.health.ready)
            await writer.execute("BEGIN; SELECT pg_current_xact_id()")
            await until(lambda: dropped(server.url))
            await until(lambda: "is being made" in why(one, "slot"))
            told = one.meters._oldest_now_s()
            assert told > 0
            await until(lambda: one.meters._oldest_now_s() > told + 0.5)
            await writer.execute("COMMIT")
            await until(lambda: one.health.ready and one.follows)
            await until(lambda: one.meters._oldest_now_s() < 0.5)


async def dropped(database: str) -> bool:
    """Whether it could be: the worker has the slot in use now and then."""
    try:
        await tell(database, [DROPPED])
    except asyncpg.ObjectInUseError:
        return False
    return True
