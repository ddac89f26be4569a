"""Commits of which the log tells and that nobody sees yet: they wait for a synchronous standby, and nobody for them."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from typing import Any

import pytest

from cachebus.consumers.cdc.slot import session
from cachebus.consumers.cdc.slot.peek import Peek
from cachebus.consumers.worker import watcher
from cachebus.tools.servers.postgres import PostgresServer
from tests.conftest import connected
from tests.support.caches import until
from tests.support.cdc_slot import ORDER, THE_END, worker
from tests.support.cdc_too_large import STORY
from tests.support.changes import END, SCHEMA, Heard, fetched, running, tell
from tests.support.worker_health import why

CONFIRMED = "SELECT confirmed_flush_lsn >= $1::text::pg_lsn FROM pg_replication_slots"
HERE = "SELECT pg_current_wal_lsn()::text"
WAITS = "SELECT wait_event = 'SyncRep' FROM pg_stat_activity WHERE pid = $1"


@pytest.fixture(autouse=True)
def _looks_often(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(watcher, "LOOK_EVERY_S", 0.05)
    monkeypatch.setattr(session, "UNSEEN_S", 0.1)


@pytest.fixture
def alone() -> Iterator[str]:
    """A server whose synchronous standby is away: who asks for it waits."""
    with PostgresServer(settings={"synchronous_standby_names": "nobody", "synchronous_commit": "local"}) as server:
        yield server.url


@asynccontextmanager
async def unseen(database: str, statement: str) -> AsyncIterator[asyncio.Event]:
    """Committed, and seen by nobody until the event is set."""
    seen = asyncio.Event()
    async with connected(database) as writer:
        await writer.execute("SET synchronous_commit = on")
        committing = asyncio.create_task(writer.execute(statement))
        pid = writer.get_server_pid()
        await until(lambda: fetched(database, WAITS, pid))

        async def acknowledge() -> None:
            await seen.wait()
            await fetched(database, "SELECT pg_cancel_backend($1)", pid)
            await committing

        letting = asyncio.create_task(acknowledge())
        try:
            yield seen
        finally:
            seen.set()
            await letting


async def test_it_is_applied_when_it_is_seen_and_all_else_at_once(alone: str, redis_url: str) -> None:
    await tell(alone, [SCHEMA])
    one = worker(alone, redis_url, batch=20)  # much less than goes on behind it
    heard = Heard(one)
    async with running(one):
        await tell(alone, [ORDER.format(1)])
        async with unseen(alone, ORDER.format(2)) as seen:
            await tell(alone, [*(ORDER.format(number) for number in range(1000, 1060)), THE_END])
            await until(lambda: heard.has(*END))
            assert all(heard.has("order", str(number)) for number in range(1000, 1060))
            assert not heard.has("order", "2"), "who loads it now loads the old one"
            await until(lambda: "commits are in the log that nobody sees" in why(one, "slot"))
            assert not await fetched(alone, CONFIRMED, await fetched(alone, HERE)), "killed now, it is told again"
            oldest = "cachebus_worker_oldest_seconds", {"worker": "cdc"}
            await until(lambda: (one.meters.registry.get_sample_value(*oldest) or 0) > 0.1)
            seen.set()
            await until(lambda: heard.has("order", "2"))
        await until(lambda: one.health.ready)
        here = await fetched(alone, HERE)
        await tell(alone, [ORDER.format(3)])
        await until(lambda: fetched(alone, CONFIRMED, here))
        assert max(heard.asked[f"K acme:order:{number}"] for number in (1, 2, 3, *range(1000, 1060), 99)) == 1


async def test_one_that_nobody_sees_comes_again_after_a_restart_of_the_worker(alone: str, redis_url: str) -> None:
    await tell(alone, [SCHEMA])
    first, second = worker(alone, redis_url), worker(alone, redis_url)
    before, heard = Heard(first), Heard(second)
    async with running(first), unseen(alone, ORDER.format(2)) as seen:
        await tell(alone, [ORDER.format(3)])
        await until(lambda: before.has("order", "3"))
        assert not before.has("order", "2")
        first.drain()
        await until(lambda: not first.follows)
        working = asyncio.create_task(second.run())
        await until(lambda: heard.has("order", "3"))
        assert not heard.has("order", "2")
        seen.set()
        await until(lambda: heard.has("order", "2"))
        second.drain()
        await working


async def test_of_several_each_is_applied_when_it_is_seen(alone: str, redis_url: str) -> None:
    await tell(alone, [SCHEMA])
    one = worker(alone, redis_url)
    heard = Heard(one)
    many = "INSERT INTO shop.orders SELECT g, 'acme', 1, '' FROM generate_series(2000, 4500) g"
    async with running(one), unseen(alone, ORDER.format(2)) as first, unseen(alone, many) as second:
        await tell(alone, [ORDER.format(3)])
        await until(lambda: heard.has("order", "3"))
        second.set()
        await until(lambda: heard.has("order", "4500"))
        assert heard.has("order", "2000")
        assert not heard.has("order", "2")
        first.set()
        await until(lambda: heard.has("order", "2"))
        assert heard.asked["K acme:order:3"] == heard.asked["K acme:order:2000"] == 1


async def test_what_is_passed_by_is_made_up_for_once_it_is_seen(alone: str, redis_url: str) -> None:
    """Before, who loads it loads, and keeps, the old rows."""
    *before, large, _, _ = STORY
    await tell(alone, [SCHEMA])
    one = worker(alone, redis_url)
    heard = Heard(one)
    whole = "SELECT whole FROM cachebus_cdc_slots"
    async with running(one):
        await tell(alone, before)
        await until(lambda: heard.has("order", "1"))
        async with connected(alone) as idle, unseen(alone, large) as seen:
            await idle.execute("BEGIN")
            await idle.execute("CREATE TABLE elsewhere ()")  # a transaction that does not commit is not waited for
            await until(lambda: heard.asked["D globex order"])
            await until(lambda: "waits for the transactions that ran then" in why(one, "slot"))
            assert not await fetched(alone, whole)
            early = heard.asked["D globex order"]
            seen.set()
            await until(lambda: fetched(alone, whole))
            assert heard.asked["D globex order"] > early
            await until(lambda: one.health.ready)


async def test_what_was_passed_by_is_waited_for_by_the_next_worker_as_well(alone: str, redis_url: str) -> None:
    *before, large, _, _ = STORY
    await tell(alone, [SCHEMA])
    whole = "SELECT whole FROM cachebus_cdc_slots"
    async with running(worker(alone, redis_url)):
        await tell(alone, before)
    second = worker(alone, redis_url)
    async with unseen(alone, large) as seen:
        async with running(first := worker(alone, redis_url)):
            await until(lambda: "waits for the transactions that ran then" in why(first, "slot"))
        heard = Heard(second)
        working = asyncio.create_task(second.run())
        await until(lambda: "waits for the transactions that ran then" in why(second, "slot"))
        await until(lambda: heard.asked["D globex order"])
        assert not await fetched(alone, whole)
        early = heard.asked["D globex order"]
        seen.set()
        await until(lambda: fetched(alone, whole))
        assert heard.asked["D globex order"] > early
        second.drain()
        await working


async def test_one_of_a_table_that_no_rule_is_for_keeps_nothing(alone: str, redis_url: str) -> None:
    await tell(alone, [SCHEMA, "CREATE PUBLICATION cachebus_cdc FOR ALL TABLES"])
    one = worker(alone, redis_url)
    async with running(one), unseen(alone, "INSERT INTO shop.unruled VALUES (1)"):
        here = await fetched(alone, HERE)
        await tell(alone, [ORDER.format(1)])
        await until(lambda: fetched(alone, CONFIRMED, here))
        assert one.health.ready


async def test_what_goes_on_behind_it_is_read_a_few_times_over_and_not_once_a_batch(
    alone: str, redis_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    told, read = 0, Peek.read

    def counted(peek: Peek, rows: Any) -> Any:
        nonlocal told
        told += len(rows)
        return read(peek, rows)

    monkeypatch.setattr(Peek, "read", counted)
    await tell(alone, [SCHEMA])
    async with running(worker(alone, redis_url)):
        pass
    async with unseen(alone, ORDER.format(2)):
        await tell(alone, ["SET synchronous_commit = local", *(ORDER.format(n) for n in range(1000, 2000)), THE_END])
        told, heard = 0, Heard(one := worker(alone, redis_url, batch=20))
        async with running(one):
            await until(lambda: heard.has(*END))
        assert told < 6 * 3 * 1002, "each has a row of its own, its begin and its end"
