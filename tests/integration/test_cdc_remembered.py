"""What a slot's worker remembers of what is to be made up for: over its sessions, over workers, and beside what others
do to its tables."""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from cachebus import Cache
from cachebus.consumers.cdc.rules.rules import RuleFile, parse_rules
from cachebus.consumers.cdc.slot.meaning import LESSENED
from cachebus.consumers.cdc.slot.mending import Mending
from cachebus.consumers.cdc.slot.session import SlotSession
from cachebus.consumers.cdc.slot.storage import lose
from cachebus.consumers.worker import watcher
from cachebus.consumers.worker.source import Finding
from tests.conftest import connected
from tests.support.caches import quick, until
from tests.support.cdc_slot import gone_on
from tests.support.cdc_surroundings import HEAD, RULE, Looks, at_work, gone, put, worker
from tests.support.changes import fetched, running, tell
from tests.support.worker_health import why

TABLE = ("CREATE TABLE o (id int PRIMARY KEY, tenant_id text, x int)", "ALTER TABLE o REPLICA IDENTITY FULL")
ROWS = "INSERT INTO o SELECT g, 'acme', 0 FROM generate_series(1, 9) g"
ENDS = "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE application_name LIKE 'cachebus-cdc%'"
DROPPED = "SELECT pg_drop_replication_slot('cachebus_cdc')"
WHOLE = "SELECT whole FROM cachebus_cdc_slots"
LESS = (
    "ALTER TABLE o REPLICA IDENTITY DEFAULT",
    "UPDATE o SET x = 1 WHERE id = 1",
    "ALTER TABLE o REPLICA IDENTITY FULL",
)
REWRITTEN = "ALTER TABLE o ALTER COLUMN x TYPE bigint USING x + 100"


@pytest.fixture(autouse=True)
def _looks_often(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(watcher, "LOOK_EVERY_S", 0.1)


def of_one_table(*data_types: str) -> RuleFile:
    """A rule for each of these, all of one table."""
    return parse_rules(HEAD + "".join(RULE.format("o", one) for one in data_types))


async def test_where_the_session_ends_as_a_doubt_is_made_up_for_the_table_is_compared_on(
    database: str, redis_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    made, ends = SlotSession.made_up, 1

    async def made_up(session: SlotSession, findings: Sequence[Finding]) -> None:
        nonlocal ends
        if ends and any(LESSENED in one.problem for one in findings):
            ends -= 1
            await tell(database, [ENDS])
        await made(session, findings)

    monkeypatch.setattr(SlotSession, "made_up", made_up)
    await tell(database, [*TABLE, ROWS])
    async with Cache(quick(redis_url)) as cache, at_work(one := worker(database, redis_url)):
        await until(lambda: one.health.ready and one.follows)
        await tell(database, LESS)
        await until(lambda: not ends)
        await until(lambda: not one.source.mending.doubts)
        await until(lambda: one.health.ready and one.follows)
        await put(cache, 2)
        await tell(database, [REWRITTEN])
        await gone(cache, 2)


async def test_a_table_that_is_in_doubt_is_compared_all_the_same(
    database: str, redis_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Here what is made up for is never stored."""

    async def never(*_: Any, **__: Any) -> None: ...

    await tell(database, [*TABLE, ROWS])
    async with Cache(quick(redis_url)) as cache, at_work(one := worker(database, redis_url)):
        await until(lambda: one.health.ready and one.follows)
        await put(cache, 2)
        monkeypatch.setattr(Mending, "made_up", never)
        monkeypatch.setattr(one._watcher._assumptions, "made_up", lambda _: None)
        await tell(database, LESS)
        await gone(cache, 2)
        looks = Looks(one)
        await until(lambda: looks.let_be(cache))
        await tell(database, [REWRITTEN])
        await gone(cache)


NO = "CREATE FUNCTION no() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN RAISE 'no'; END $$"
STOPS = "CREATE TRIGGER no BEFORE UPDATE ON cachebus_cdc_slots FOR EACH ROW EXECUTE FUNCTION no()"


async def test_where_nothing_may_be_remembered_the_worker_is_down_and_begins_no_session_after_the_other(
    database: str, redis_url: str
) -> None:
    """What is done is not told again: a session that begins with an empty batch has nothing to fail by."""
    await tell(database, [*TABLE, ROWS])
    async with at_work(one := worker(database, redis_url)):
        await until(lambda: one.health.ready and one.follows)
        await tell(database, [NO, STOPS, "UPDATE o SET x = 1 WHERE id = 1"])
        await until(lambda: "(the trigger no)" in why(one, "storage"))
        looks, was_ready, tries = Looks(one), False, set[int]()

        async def looked(cache: Cache) -> bool:
            nonlocal was_ready
            was_ready |= one.health.ready
            tries.add(one._retry._tries)
            return await looks.let_be(cache)

        async with Cache(quick(redis_url)) as cache:
            await until(lambda: looked(cache))
        assert not was_ready
        assert max(tries) <= 2
        await tell(database, ["DROP TRIGGER no ON cachebus_cdc_slots"])
        await until(lambda: one.health.ready and one.follows)


async def _is_killed_once_it_has_made_up(database: str, redis_url: str) -> None:
    """In a process of its own: by fewer rules, and killed right behind what it commits."""
    made = Mending.made_up

    async def made_up(self: Mending, *given: Any, **more: Any) -> None:
        await made(self, *given, **more)
        os.kill(os.getpid(), 9)

    Mending.made_up = made_up  # type: ignore[method-assign]
    await worker(database, redis_url, of_one_table("o")).run()


async def test_what_is_made_up_for_by_fewer_rules_is_remembered_as_that_at_once(database: str, redis_url: str) -> None:
    both = of_one_table("o", "p")
    await tell(database, [*TABLE, ROWS])
    async with running(worker(database, redis_url, both)):
        pass
    async with Cache(quick(redis_url)) as cache:
        await put(cache, 1, "p")
        await tell(database, [DROPPED, "UPDATE o SET x = 1 WHERE id = 1"])
        child = [sys.executable, "-m", "tests.integration.test_cdc_remembered", database, redis_url]
        killed = await asyncio.to_thread(
            subprocess.run, child, cwd=Path(__file__).parents[2], timeout=60, capture_output=True, check=False
        )
        assert killed.returncode == -9, killed.stderr.decode()[-2000:]
        assert await fetched(database, WHOLE)
        async with running(worker(database, redis_url, both)):
            await gone(cache, 1, "p")


async def test_a_worker_by_fewer_rules_that_takes_over_while_it_cant_look_leaves_what_it_does_not_tell(
    database: str, redis_url: str
) -> None:
    both = of_one_table("o", "p")
    await tell(database, [*TABLE, ROWS])
    async with Cache(quick(redis_url)) as cache:
        first, second = worker(database, redis_url, both), worker(database, redis_url, of_one_table("o"))
        leading = asyncio.create_task(first.run())
        await until(lambda: first.health.ready and first.follows)
        standing_by = asyncio.create_task(second.run())
        async with connected(database) as lock:
            looks = Looks(second)
            await until(lambda: looks.count > 2)
            await put(cache, 1, "p")
            await put(cache)
            await lock.execute("BEGIN; LOCK TABLE pg_catalog.pg_inherits IN ACCESS EXCLUSIVE MODE")
            await until(lambda: "can't be looked at" in why(second, "tables"))
            leading.cancel()
            await asyncio.gather(leading, return_exceptions=True)
            await until(lambda: second.follows)
            await tell(database, ["UPDATE o SET x = 1 WHERE id = 1"])
            await gone(cache)
            assert await cache.get("p", 1, tenant_id="acme") == "old"
            second.drain()
            await standing_by
        async with running(worker(database, redis_url, both)):
            await gone(cache, 1, "p")


@pytest.mark.parametrize(
    "left",
    [
        "DROP TABLE cachebus_cdc_slots",
        "DELETE FROM cachebus_cdc_slots",
        "DELETE FROM cachebus_cdc_slots; DROP PUBLICATION cachebus_cdc",
        "DROP TABLE cachebus_cdc_slots, cachebus_cdc_held, cachebus_cdc_dead",
    ],
)
async def test_where_an_earlier_worker_has_left_something_its_slot_is_a_lost_one(
    database: str, redis_url: str, left: str
) -> None:
    """Slot and what was remembered of it are removed while no worker looks."""
    await tell(database, [*TABLE, ROWS])
    async with Cache(quick(redis_url)) as cache:
        async with running(worker(database, redis_url)):
            pass
        await put(cache)
        await tell(database, [DROPPED, left, "UPDATE o SET x = 1 WHERE id = 1"])
        async with running(one := worker(database, redis_url)):
            await gone(cache)
            await until(lambda: fetched(database, WHOLE))
            assert await Looks(one).let_be(cache)


async def test_the_first_worker_of_another_namespace_finds_nothing_of_its_own_there(
    database: str, redis_url: str
) -> None:
    await tell(database, [*TABLE, ROWS])
    async with running(worker(database, redis_url)):
        pass
    async with Cache(quick(redis_url, namespace="second")) as cache:
        await put(cache)
        async with running(one := worker(database, redis_url, namespace="second")):
            assert await Looks(one).let_be(cache)


if __name__ == "__main__":
    asyncio.run(_is_killed_once_it_has_made_up(*sys.argv[1:]))


async def test_what_is_missed_while_something_is_made_up_for_is_made_up_for_too(database: str, redis_url: str) -> None:
    """1. Changes were missed: a look finds it. 2. More are missed. 3. What the look has found is made up for."""
    await tell(database, TABLE)
    async with gone_on(lambda: worker(database, redis_url)) as session, connected(database) as other:
        for again in (True, False):
            if again:
                await lose(other, "cachebus_cdc")
            found = [one for one in (await session.look()).findings if one.assumption == "slot"]
            assert [(one.missed, one.over) for one in found] == [(True, True)]
            if again:
                await lose(other, "cachebus_cdc")
            await session.made_up(found)
            assert await fetched(database, WHOLE) is not again
        assert not (await session.look()).findings
