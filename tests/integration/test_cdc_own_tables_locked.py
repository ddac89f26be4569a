"""A slot's worker while somebody keeps its own tables locked: changes go on, and it says who that is."""

from __future__ import annotations

import asyncio
import re
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager

import asyncpg
import pytest

from cachebus.consumers.cdc.slot import locks
from cachebus.consumers.cdc.slot.postgres import SlotWorker
from cachebus.consumers.worker import table_locks, watcher
from cachebus.consumers.worker.apply import Carried
from cachebus.consumers.worker.preflight import preflight
from cachebus.keys.plan import Plan
from tests.support.caches import until
from tests.support.cdc_surroundings import TABLE, Away, Looks, at_work, following, worker
from tests.support.changes import Heard, fetched, tell
from tests.support.worker_health import why

PUT = "INSERT INTO o VALUES ('{}', 'acme')"
HELD = "SELECT count(*) FROM cachebus_cdc_held"
ENDS = "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE application_name LIKE 'cachebus-cdc%'"
DEAD, SLOTS = "cachebus_cdc_dead", "cachebus_cdc_slots"
ALL = "D acme o"
ALL_OF_THEM = DEAD, "cachebus_cdc_held", SLOTS
BEHIND = "SELECT confirmed_flush_lsn >= '{}' FROM pg_replication_slots"
NOW = "SELECT pg_current_wal_flush_lsn()::text"


@pytest.fixture(autouse=True)
def _looks_often(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(watcher, "LOOK_EVERY_S", 0.1)
    monkeypatch.setattr(table_locks, "REST_S", 0.5)
    monkeypatch.setattr(table_locks, "LONGEST", "200ms")


@asynccontextmanager
async def locking(database: str, *sql: str) -> AsyncIterator[list[int]]:
    """Sessions that are idle with these locks; their PIDs."""
    sessions = [await asyncpg.connect(database) for _ in sql]
    try:
        for session, one in zip(sessions, sql, strict=True):
            await session.execute(f"BEGIN; {one}")
        yield [session.get_server_pid() for session in sessions]
    finally:
        for session in sessions:
            await session.close()


@pytest.mark.parametrize(
    ("table", "sql"),
    [
        *((table, [f"LOCK TABLE {table}"]) for table in ALL_OF_THEM),
        (SLOTS, [f"LOCK TABLE {SLOTS} IN SHARE MODE"]),
        (SLOTS, [f"SELECT FROM {SLOTS} FOR UPDATE"]),
        (SLOTS, 2 * [f"SELECT FROM {SLOTS} FOR SHARE"]),
        (SLOTS, [f"UPDATE {SLOTS} SET whole = whole"]),
        (SLOTS, [f"SAVEPOINT a; UPDATE {SLOTS} SET whole = whole; RELEASE a"]),
    ],
    ids=[*ALL_OF_THEM, "from writing", "a row", "a row that several share", "a row that is changed", "in a savepoint"],
)
async def test_while_a_table_is_locked_changes_go_on_and_who_locks_it_is_told(
    database: str, redis_url: str, table: str, sql: list[str]
) -> None:
    async with following(database, redis_url) as (one, heard, _):
        await until_at_work(one, heard, database)
        async with locking(database, *sql) as pids:
            for number in range(40):
                await tell(database, [PUT.format(number)])
                await until(lambda number=number: heard.has("o", str(number)))  # type: ignore[misc]
                assert one.health.is_up("database")
            await until(lambda: all(f"SELECT pg_terminate_backend({pid});" in why(one, "storage") for pid in pids))
            assert table in why(one, "storage")
            assert one.health.is_up("database")
            written = await fetched(database, NOW)
            await tell(database, [PUT.format("last")])
            await until(lambda: heard.has("o", "last"))
            for remedy in re.findall(r"SELECT pg_terminate_backend\(\d+\);", why(one, "storage")):
                await tell(database, [remedy])
            await until(lambda: one.health.ready)
            await until(lambda: fetched(database, BEHIND.format(written)))


async def until_at_work(one: SlotWorker, heard: Heard, database: str) -> None:
    """Whether what it was sent is applied."""
    await until(lambda: one.follows and one.health.ready)
    await tell(database, [PUT.format("first")])
    await until(lambda: heard.has("o", "first"))


async def test_a_locked_table_does_not_hold_up_a_drain(database: str, redis_url: str) -> None:
    await tell(database, TABLE)
    one = worker(database, redis_url)
    heard = Heard(one)
    async with asyncio.TaskGroup() as tasks:
        running = tasks.create_task(one.run())
        await until_at_work(one, heard, database)
        async with locking(database, f"LOCK TABLE {', '.join(ALL_OF_THEM)}"):
            await until(lambda: why(one, "storage"))
            await tell(database, [PUT.format("last")])
            await until(lambda: heard.has("o", "last"))
            one.drain()
            await asyncio.wait_for(running, 5)


async def test_letters_are_held_while_their_table_is_locked(database: str, redis_url: str) -> None:
    async with following(database, redis_url) as (one, heard, _):
        await until_at_work(one, heard, database)
        async with locking(database, f"LOCK TABLE {DEAD}"):
            await tell(database, [PUT.format("q" * 600), PUT.format("behind")])
            await until(lambda: heard.has("o", "behind"))
            await until(lambda: fetched(database, f"{HELD} HAVING count(*) = 1"))


async def test_what_waits_while_nothing_can_be_held_is_applied_once_its_primary_answers(
    database: str, redis_url: str
) -> None:
    async with following(database, redis_url) as (one, heard, away):
        await until_at_work(one, heard, database)
        async with locking(database, "LOCK TABLE cachebus_cdc_held"):
            away.lasts = True
            await tell(database, [PUT.format("a")])
            await until(lambda: why(one, "storage"))
            assert not heard.has("o", "a")
            away.lasts = False
            await until(lambda: heard.has("o", "a"))
            assert one.health.is_up("database")


@pytest.mark.parametrize(
    ("table", "sql"),
    [
        (SLOTS, f"SELECT FROM {SLOTS} FOR UPDATE"),
        *(("cachebus_cdc_held", f"LOCK TABLE cachebus_cdc_held IN {mode} MODE") for mode in ("SHARE", "EXCLUSIVE")),
    ],
    ids=["the row of the slot", "from writing", "from all but reading"],
)
async def test_who_keeps_what_waits_from_being_held_is_told_while_it_does(
    database: str, redis_url: str, table: str, sql: str
) -> None:
    async with following(database, redis_url) as (one, heard, away):
        await until_at_work(one, heard, database)
        async with locking(database, sql) as [pid]:
            away.lasts = True
            await tell(database, [PUT.format("a")])
            await until(lambda: f"SELECT pg_terminate_backend({pid});" in why(one, "storage"))
            assert f"{table}: the session {pid}" in why(one, "storage")
            looks = Looks(one)
            await until(lambda: looks.count >= 10)
            assert f"the session {pid} " in why(one, "storage")
            await tell(database, [f"SELECT pg_terminate_backend({pid})"])
            await until(lambda: fetched(database, f"{HELD} HAVING count(*) = 1"))
            await until(lambda: one.health.is_up("storage"))
        away.lasts = False
        await until(lambda: heard.has("o", "a"))
        await until(lambda: one.health.ready)


@pytest.mark.parametrize("savepoint", ["", "SAVEPOINT a; "])
async def test_who_keeps_rows_that_are_held_from_being_removed_is_told_once_that_is_refused_twice(
    database: str, redis_url: str, savepoint: str
) -> None:
    """They are applied, and come again."""
    async with following(database, redis_url) as (one, heard, away):
        await until_at_work(one, heard, database)
        away.lasts = True
        await tell(database, [PUT.format("a")])
        await until(lambda: fetched(database, f"{HELD} HAVING count(*) = 1"))
        change = f"{savepoint}UPDATE cachebus_cdc_held SET at = at{'; RELEASE a' if savepoint else ''}"
        async with locking(database, change) as [pid]:
            away.lasts = False
            await until(lambda: f"SELECT pg_terminate_backend({pid});" in why(one, "storage"))
            assert f"cachebus_cdc_held: the session {pid} (" in why(one, "storage")
            await tell(database, [f"SELECT pg_terminate_backend({pid})"])
            await until(lambda: one.health.ready)
        await until(lambda: fetched(database, HELD.replace("count(*)", "count(*) = 0")))


async def test_what_keeps_the_slots_row_from_being_written_is_told_also_where_nobody_has_that_locked(
    database: str, redis_url: str
) -> None:
    """A trigger may wait for anything."""
    function = "CREATE FUNCTION waits() RETURNS trigger LANGUAGE plpgsql AS"
    waits = f"{function} $$ BEGIN PERFORM pg_advisory_xact_lock(7); RETURN NEW; END $$"
    trigger = f"CREATE TRIGGER waits BEFORE UPDATE ON {SLOTS} FOR EACH ROW EXECUTE FUNCTION waits()"
    async with following(database, redis_url) as (one, heard, _):
        await until_at_work(one, heard, database)
        async with locking(database, "SELECT pg_advisory_xact_lock(7)"):
            await tell(database, [waits, trigger, PUT.format("a")])
            await until(lambda: table_locks.UNTOLD in why(one, "storage"))
            assert heard.has("o", "a")
        await until(lambda: one.health.ready)


async def test_who_keeps_letters_from_being_set_aside_is_told(database: str, redis_url: str) -> None:
    async with following(database, redis_url) as (one, heard, _):
        await until_at_work(one, heard, database)
        async with locking(database, f"LOCK TABLE {DEAD} IN SHARE MODE") as [pid]:
            await tell(database, [PUT.format("q" * 600)])
            await until(lambda: f"SELECT pg_terminate_backend({pid});" in why(one, "storage"))
            assert DEAD in why(one, "storage")
            await tell(database, [f"SELECT pg_terminate_backend({pid})"])
            await until(lambda: one.health.is_up("storage"))


async def test_what_was_held_is_tried_once_the_table_is_unlocked(database: str, redis_url: str) -> None:
    async with following(database, redis_url) as (one, heard, away):
        await until_at_work(one, heard, database)
        away.lasts = True
        await tell(database, [PUT.format("a")])
        await until(lambda: fetched(database, f"{HELD} HAVING count(*) = 1"))
        async with locking(database, "LOCK TABLE cachebus_cdc_held"):
            await until(lambda: why(one, "storage"))
            await tell(database, [ENDS])
            await until(lambda: not one.follows)
            away.lasts = False
            await tell(database, [PUT.format("b")])
            await until(lambda: heard.has("o", "b"), within_s=20)
            assert not heard.has("o", "a")
        await until(lambda: heard.has("o", "a"))


async def test_while_what_is_remembered_is_locked_a_worker_makes_nothing_anew(database: str, redis_url: str) -> None:
    """Another search_path must not make it begin elsewhere: what was held would be lost from sight."""
    await tell(database, [*TABLE, "CREATE SCHEMA shop"])
    first = worker(database, redis_url)
    async with at_work(first):
        await until(lambda: first.follows and first.health.ready)
    name = database.rpartition("/")[2]
    await tell(database, [f'ALTER DATABASE "{name}" SET search_path = shop'])
    one = worker(database, redis_url)
    heard = Heard(one)
    async with locking(database, f"LOCK TABLE public.{SLOTS}") as [pid], at_work(one):
        await until(lambda: f"SELECT pg_terminate_backend({pid});" in why(one, "database"))
        assert "has locked it" in why(one, "database")
        checked = {it.what: it.findings for it in await preflight(worker(database, redis_url))}
        assert f"SELECT pg_terminate_backend({pid});" in str(checked["database"])
        assert await fetched(database, "SELECT count(*) FROM pg_tables WHERE schemaname = 'shop'") == 0
        await tell(database, [f"SELECT pg_terminate_backend({pid})", PUT.format("a").replace("o ", "public.o ")])
        await until(lambda: one.health.ready and heard.has("o", "a"), within_s=20)
        assert await fetched(database, "SELECT count(*) FROM pg_tables WHERE schemaname = 'shop'") == 0


@pytest.mark.parametrize("changes", [False, True])
async def test_while_its_row_is_locked_what_is_made_up_for_is_let_go_of_once_and_it_is_red(
    database: str, redis_url: str, changes: bool
) -> None:
    """That it is made up for can't be stored. Nothing else need be written to see who has it locked."""
    async with following(database, redis_url) as (one, heard, _):
        before, looks = heard.asked[ALL], Looks(one)
        async with locking(database, f"SELECT FROM {SLOTS} FOR UPDATE") as [pid]:
            await tell(database, ["ALTER TABLE o ADD COLUMN x int DEFAULT 1"])
            await until(lambda: f"the session {pid} " in why(one, "storage"))
            last = looks.count + 10
            for number in range(10):
                if changes:
                    await tell(database, [f"INSERT INTO o VALUES ('{number}', 'acme')"])
            await until(lambda: looks.count >= last)
            assert not one.health.ready
            assert heard.asked[ALL] == before + 1
        await until(lambda: one.health.ready)
        last = looks.count + 3
        await until(lambda: looks.count >= last)
        assert heard.asked[ALL] == before + 1
        await until(lambda: fetched(database, f"SELECT NOT tables -> 'public.o' ? 'owed' FROM {SLOTS}"))


async def test_who_locks_the_row_of_another_slot_is_not_told_once_its_own_is_free(
    database: str, redis_url: str
) -> None:
    """The slot has no reason to go on meanwhile: what was held is let go of, and nothing changes."""
    await tell(database, TABLE)
    one = worker(database, redis_url)
    heard, away, looks = Heard(one), Away(one), Looks(one)
    more = f"INSERT INTO {SLOTS} (slot, namespace, lsn, whole, tables) VALUES ('another', 'n', '0/0', true, '{{}}')"
    async with at_work(one):
        away.lasts = False
        await until_at_work(one, heard, database)
        away.lasts = True
        await tell(database, [PUT.format("a"), more])
        await until(lambda: fetched(database, f"{HELD} HAVING count(*) = 1"))
        async with locking(database, f"SELECT FROM {SLOTS} WHERE slot = 'another' FOR UPDATE"):
            async with locking(database, f"SELECT FROM {SLOTS} WHERE slot = 'cachebus_cdc' FOR UPDATE") as [pid]:
                away.lasts = False
                await until(lambda: f"the session {pid} " in why(one, "storage"))
            await until(lambda: fetched(database, HELD.replace("count(*)", "count(*) = 0")))
            last = looks.count + 3
            await until(lambda: looks.count >= last)
            assert one.health.is_up("storage")


async def test_what_is_missed_while_a_row_is_locked_is_let_go_of_once_by_who_stands_by(
    database: str, redis_url: str
) -> None:
    """It can store nothing: that it has let go of it must not be forgotten as if it had."""
    await tell(database, TABLE)
    first, second = worker(database, redis_url), worker(database, redis_url)
    async with at_work(first):
        await until_at_work(first, Heard(first), database)
        async with at_work(second):
            await until(lambda: second.source.older.furthest and second.health.is_up("database"))
            heard, looks = Heard(second), Looks(second)
            async with locking(database, f"SELECT FROM {SLOTS} FOR UPDATE"):
                before = heard.asked[ALL]
                await tell(database, ["ALTER TABLE o ADD COLUMN x int DEFAULT 1"])
                await until(lambda: heard.asked[ALL] > before)
                last = looks.count + 10
                await until(lambda: looks.count >= last)
                assert heard.asked[ALL] == before + 1
        await until(lambda: first.health.ready)


async def test_what_could_not_be_let_go_of_and_is_by_now_is_not_told_while_that_cant_be_stored(
    database: str, redis_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with following(database, redis_url) as (one, heard, _):
        await until_at_work(one, heard, database)
        async with locking(database, f"SELECT FROM {SLOTS} FOR UPDATE") as [pid]:
            with monkeypatch.context() as patch:
                patch.setattr(one._applier, "carry", _refused)
                await tell(database, ["ALTER TABLE o ADD COLUMN x int DEFAULT 1"])
                await until(lambda: "what changes may have touched can't be let go of" in str(one.health.as_dict()))
            await until(lambda: f"the session {pid} " in why(one, "storage"))
            await until(lambda: heard.asked[ALL])
            await until(lambda: "can't be let go of" not in str(one.health.as_dict()))


async def _refused(plans: Sequence[Plan], within_s: float | None = None) -> Carried:
    return Carried(failed={place: ValueError("refused") for place in range(len(plans))})


async def test_a_loss_that_cant_be_stored_is_counted_only_once_it_is(database: str, redis_url: str) -> None:
    """Each session that begins meanwhile finds it anew. What is made up for by then would not count otherwise."""
    await tell(database, TABLE)
    one = worker(database, redis_url)
    async with at_work(one):
        await until(lambda: one.follows and one.health.ready)
    source = worker(database, redis_url).source
    async with source.opened() as session:
        await session.look()
        reader = session._reader
        async with locking(database, f"SELECT FROM {SLOTS} FOR UPDATE"):
            for _ in range(2):
                with pytest.raises(locks.LOCKED):
                    await reader._pass_by()
            assert source.losses == 0
        reader._now = await fetched(database, NOW)
        await reader._pass_by()
        assert source.losses == await fetched(database, f"SELECT losses FROM {SLOTS}") > 0
