"""Commits of which the log tells and that nobody sees yet: they wait for a synchronous standby, and nobody for them."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterator
from contextlib import AsyncExitStack, asynccontextmanager
from typing import Any

import pytest

from cachebus import Cache
from cachebus.consumers.cdc.slot import others
from cachebus.consumers.cdc.slot.peek import Peek
from cachebus.consumers.worker import watcher
from cachebus.consumers.worker.source import Batch, Left, Session
from cachebus.tools.servers.postgres import PostgresServer
from tests.conftest import connected
from tests.support.caches import quick, until
from tests.support.cdc_slot import ORDER, THE_END, done_beside, gone_on, worker
from tests.support.cdc_surroundings import Looks, at_work, given, gone, put
from tests.support.cdc_too_large import STORY
from tests.support.changes import END, SCHEMA, Heard, fetched, running, tell
from tests.support.worker_health import why

CONFIRMED = "SELECT confirmed_flush_lsn >= $1::text::pg_lsn FROM pg_replication_slots"
HERE = "SELECT pg_current_wal_lsn()::text"
WAITS = "SELECT wait_event = 'SyncRep' FROM pg_stat_activity WHERE pid = $1"


@pytest.fixture(autouse=True)
def _looks_often(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(watcher, "LOOK_EVERY_S", 0.05)
    monkeypatch.setattr(others, "UNSEEN_S", 0.1)


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


async def test_a_peek_forgets_nothing_of_what_lies_behind_its_end(alone: str, redis_url: str) -> None:
    """1. Two are passed over, and what is behind them is done in part.
    2. The server can't tell a later one: transactions are asked for one at a time, and the first of the two is told.
    3. The second one is visible from now on. It is not done, though more behind it is."""
    *_, alter, large, _, _ = STORY
    await tell(alone, [SCHEMA, STORY[1]])
    async with gone_on(lambda: worker(alone, redis_url)) as session:
        reader: Any = session._reader  # type: ignore[attr-defined]
        async with unseen(alone, ORDER.format(1)), unseen(alone, ORDER.format(2)) as second:
            await tell(alone, [f"BEGIN; {ORDER.format(3)}; {ORDER.format(4)}; COMMIT"])
            batch = await until(lambda: _taken(session))
            assert _orders(batch) == {"3", "4"}
            await session.acknowledge(batch, Left(undone=batch.items[1:]))
            await tell(alone, [alter, large])
            await until(lambda: _is_asked_for_singly(session))
            second.set()
            await until(lambda: fetched(alone, "SELECT true FROM shop.orders WHERE id = 2"))
            told = set[str]()

            async def has_told_the_second() -> bool:
                batch = await session.take(1000, ())
                told.update(_orders(batch))
                if batch.items:
                    await session.acknowledge(batch, Left())
                return "2" in told

            await until(has_told_the_second)
            assert reader.passed.unseen, "the first is waited for"


async def _is_asked_for_singly(session: Any) -> bool:
    """Whether one transaction was looked at by itself."""
    batch = await session.take(1000, ())
    assert not batch.items
    return bool(session._reader._singly and session._reader._again)


async def _taken(session: Session) -> Batch | None:
    batch = await session.take(1000, ())
    return batch if batch.items else None


def _orders(batch: Batch) -> set[str]:
    """The ids of the rows that it tells of."""
    return {str(change.new["id"]) for item in batch.items for change in item.raw.changes()}


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


TABLE = "CREATE TABLE {0} (id int PRIMARY KEY, tenant_id text); ALTER TABLE {0} REPLICA IDENTITY FULL"
STOLEN = """
SELECT count(*) FROM pg_logical_slot_get_binary_changes('cachebus_cdc', NULL, NULL,
  'proto_version', '1', 'publication_names', 'cachebus_cdc')
"""
SEEN_LATE = "waits for the transactions that ran then"


async def stolen(database: str) -> None:
    """Others read all that the slot has."""
    await until(lambda: done_beside(database, STOLEN))


async def test_a_second_loss_is_not_made_up_for_before_it_is_seen_though_the_first_is(
    alone: str, redis_url: str
) -> None:
    """Neither is of this worker's doing: others have read from the slot, twice."""
    await tell(alone, [TABLE.format("o")])
    async with Cache(quick(redis_url)) as cache, at_work(one := worker(alone, redis_url, given())):
        await until(lambda: one.health.ready and one.follows)
        async with unseen(alone, "INSERT INTO o VALUES (1, 'acme')") as first:
            await stolen(alone)
            await until(lambda: SEEN_LATE in why(one, "slot"))
            async with unseen(alone, "INSERT INTO o VALUES (2, 'acme')") as second:
                await stolen(alone)
                looks = Looks(one)
                await until(lambda: looks.count > 2)
                first.set()
                await until(lambda: fetched(alone, "SELECT true FROM o WHERE id = 1"))
                last = looks.count + 3
                await until(lambda: looks.count >= last)
                assert not await fetched(alone, "SELECT whole FROM cachebus_cdc_slots")
                assert not one.health.is_up("slot")  # of two reasons the one that lasts for long is told
                await put(cache, 2)
                second.set()
                await gone(cache, 2)
        await until(lambda: one.health.ready)


async def test_what_others_read_is_made_up_for_while_commits_wait_for_a_standby(
    alone: str, redis_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The part `slot` has a warning then: it does not hide what is missed."""
    monkeypatch.setattr(watcher, "LOOK_EVERY_S", 0.5)  # longer than until the warning
    row = "INSERT INTO o VALUES ({}, 'acme') ON CONFLICT (id) DO UPDATE SET tenant_id = 'acme'"
    await tell(alone, [TABLE.format("o")])
    async with Cache(quick(redis_url)) as cache, at_work(one := worker(alone, redis_url, given())):
        await until(lambda: one.health.ready and one.follows)
        async with AsyncExitStack() as waiting:
            for number in range(1, 5):  # the worker may be the first who reads one of them
                await put(cache, number)
                read = f"{row.format(number)}; COMMIT; {STOLEN}"
                await until(lambda read=read: done_beside(alone, read))
                await waiting.enter_async_context(unseen(alone, row.format(-number)))
                await until(lambda: "commits are in the log that nobody sees" in why(one, "slot"))
                await gone(cache, number)
        await until(lambda: one.health.ready)


async def test_who_takes_over_waits_for_what_was_passed_by_while_another_one_led(alone: str, redis_url: str) -> None:
    """1. The slot is passed by twice. Between, the one that leads ends.
    2. What was seen of it by the one that stood by says nothing of the second time."""
    await tell(alone, [TABLE.format("o")])
    first, second = worker(alone, redis_url, given()), worker(alone, redis_url, given())
    leading = asyncio.create_task(first.run())
    await until(lambda: first.health.ready and first.follows)
    async with Cache(quick(redis_url)) as cache, at_work(second):
        looks = Looks(second)
        async with unseen(alone, "INSERT INTO o VALUES (1, 'acme')") as one:
            await stolen(alone)
            await until(lambda: SEEN_LATE in why(first, "slot"))
            last = looks.count + 2
            await until(lambda: looks.count >= last)
            leading.cancel()
            await asyncio.gather(leading, return_exceptions=True)
            async with unseen(alone, "INSERT INTO o VALUES (2, 'acme')") as two:
                await stolen(alone)
                await until(lambda: second.follows)
                one.set()
                await until(lambda: fetched(alone, "SELECT true FROM o WHERE id = 1"))
                last = looks.count + 3
                await until(lambda: looks.count >= last)
                assert not await fetched(alone, "SELECT whole FROM cachebus_cdc_slots")
                await put(cache, 2)
                two.set()
                await gone(cache, 2)
        await until(lambda: second.health.ready)


async def test_one_of_a_table_that_no_rule_is_for_keeps_nothing(alone: str, redis_url: str) -> None:
    await tell(alone, [SCHEMA, "CREATE PUBLICATION cachebus_cdc FOR ALL TABLES"])
    one = worker(alone, redis_url)
    async with running(one), unseen(alone, "INSERT INTO shop.unruled VALUES (1)"):
        here = await fetched(alone, HERE)
        await tell(alone, [ORDER.format(1)])
        await until(lambda: fetched(alone, CONFIRMED, here))
        assert one.health.ready


async def test_one_that_came_before_its_tables_rule_is_made_up_for_once_it_is_seen(alone: str, redis_url: str) -> None:
    """Who followed the slot then has gone behind it, as no rule was for it."""
    await tell(alone, [TABLE.format("o"), TABLE.format("p"), "CREATE PUBLICATION cachebus_cdc FOR TABLE o, p"])
    async with Cache(quick(redis_url)) as cache, AsyncExitStack() as stack:
        async with running(worker(alone, redis_url, given("p"))):
            seen = await stack.enter_async_context(unseen(alone, "INSERT INTO o VALUES (1, 'acme')"))
            here = await fetched(alone, HERE)
            await tell(alone, ["INSERT INTO p VALUES (1, 'acme')"])
            await until(lambda: fetched(alone, CONFIRMED, here))
        async with at_work(worker(alone, redis_url, given("o", "p"))) as one:
            looks = Looks(one)
            await until(lambda: looks.count >= 4)
            await put(cache)
            seen.set()
            await gone(cache)
            await until(lambda: one.health.ready)


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
