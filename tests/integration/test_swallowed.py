"""A database that takes a write and keeps nothing of it: a trigger that gives NULL, a rule, row-level security. Nothing
counts as stored that is not, and nothing goes on as if it were."""

from __future__ import annotations

import asyncio
import sqlite3
from collections.abc import Sequence
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from cachebus import Cache
from cachebus.consumers.cdc.slot import held, storage
from cachebus.consumers.cdc.slot.dead import TableOfDead
from cachebus.consumers.cdc.slot.held import HeldCommands
from cachebus.consumers.cdc.slot.own_tables import storage_findings
from cachebus.consumers.cdc.slot.postgres import SlotWorker
from cachebus.consumers.cdc.slot.storage import DEAD, HELD, MAKE, SLOTS, Swallowed
from cachebus.consumers.outbox.postgres import PostgresOutbox
from cachebus.consumers.outbox.sqlite import SqliteOutbox
from cachebus.consumers.worker import dead_letter_writer, watcher
from cachebus.consumers.worker.apply import Carried
from cachebus.consumers.worker.dead import DeadLetter
from cachebus.consumers.worker.preflight import preflight
from cachebus.consumers.worker.source import Item, WaitingItem
from cachebus.consumers.worker.source_worker import SourceWorker
from cachebus.keys.plan import Plan
from cachebus.producers.command import InvalidateScope
from tests.conftest import connected
from tests.contract.source_rigs import TOO_LONG, InPostgres, InSqlite, OnSlot
from tests.support.caches import quick, until
from tests.support.cdc_surroundings import at_work
from tests.support.changes import tell
from tests.support.worker_health import why

EATS = "CREATE FUNCTION eats() RETURNS trigger LANGUAGE plpgsql AS 'BEGIN RETURN NULL; END'"
EATEN = "CREATE TRIGGER eats BEFORE {1} ON {0} FOR EACH ROW EXECUTE FUNCTION eats()"
RULE = "CREATE RULE eats AS ON {1} TO {0} DO INSTEAD NOTHING"


@pytest.fixture(autouse=True)
def _looks_often(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(watcher, "LOOK_EVERY_S", 0.1)
    for outbox in (PostgresOutbox, SqliteOutbox):
        monkeypatch.setattr(outbox, "again_s", 0.3)
    monkeypatch.setattr(held, "AGAIN_S", 0.3)
    monkeypatch.setattr(dead_letter_writer, "REST_S", 0.1)
    monkeypatch.setattr(dead_letter_writer, "REST_MAX_S", 0.2)


def remedy(one: SourceWorker, part: str = "storage") -> list[str]:
    return [sql for sql in why(one, part).partition("to mend it: ")[2].split(";") if sql.strip()]


async def none_left(rig: InPostgres | InSqlite) -> bool:
    return not await rig.left()


async def absent(cache: Cache, number: str) -> bool:
    return await cache.get("config", number, tenant_id="acme") is None


@pytest.fixture
async def slot(database: str, redis_url: str, tmp_path: Path) -> OnSlot:
    """Changes of a table, and what may eat what a worker writes."""
    rig = OnSlot(database)
    await rig.begin(quick(redis_url), tmp_path)
    await tell(database, [EATS])
    return rig


async def stays_so(one: SourceWorker, rig: InPostgres) -> None:
    for _ in range(8):
        await asyncio.sleep(0.1)
        assert not one.health.ready
        assert await rig.left()


@pytest.mark.parametrize("how", [EATEN, RULE], ids=["trigger", "rule"])
async def test_a_slot_goes_nowhere_while_nobody_keeps_where(slot: OnSlot, database: str, how: str) -> None:
    async with Cache(slot.settings) as cache, at_work(one := slot.worker()):
        await until(lambda: one.health.ready)
        await cache.set("config", "1", "old", tenant_id="acme")
        await tell(database, [how.format(SLOTS, "UPDATE")])
        await slot.put(["1"])
        await until(lambda: f"{SLOTS}: " in why(one, "storage"))
        await stays_so(one, slot)
        await until(lambda: remedy(one))
        await tell(database, remedy(one))
        await until(lambda: one.health.ready)
        await until(lambda: absent(cache, "1"))
        await until(lambda: none_left(slot))


async def test_a_dead_letter_that_is_not_there_is_held(slot: OnSlot, database: str) -> None:
    async with at_work(one := slot.worker()):
        await until(lambda: one.health.ready)
        await tell(database, [EATEN.format(DEAD, "INSERT")])
        await slot.put(["1", TOO_LONG])
        await until(lambda: DEAD in why(one, "dead"))
        await stays_so(one, slot)
        await tell(database, [f"DROP TRIGGER eats ON {DEAD}"])
        await until(lambda: none_left(slot))
        assert len(await slot.dead()) == 1
        await until(lambda: one.health.ready)


async def test_a_trigger_that_keeps_dead_letters_out_is_named_with_what_helps(slot: OnSlot, database: str) -> None:
    """Nothing else is held up by it, and a check warns of it."""
    async with Cache(slot.settings) as cache, at_work(one := slot.worker()):
        await until(lambda: one.health.ready)
        await cache.set("config", "1", "old", tenant_id="acme")
        await tell(database, [EATEN.format(DEAD, "INSERT")])
        await slot.put([TOO_LONG])
        await until(lambda: "of the triggers eats one gives NULL" in why(one, "storage"))
        assert DEAD in why(one, "dead")
        await slot.put(["1"])
        await until(lambda: absent(cache, "1"))
        warned = [warning for seen in await preflight(slot.worker()) for warning in seen.warnings]
        assert any(f"{DEAD} is to keep goes through triggers first (eats)" in warning for warning in warned)
        await tell(database, remedy(one))
        await until(lambda: one.health.ready)
        assert len(await slot.dead()) == 1


async def test_a_trigger_that_refuses_dead_letters_holds_up_nothing_else(slot: OnSlot, database: str) -> None:
    """As one that says that the table is full."""
    async with at_work(before := slot.worker()):
        await until(lambda: before.health.ready)
    await tell(
        database,
        [
            "CREATE FUNCTION refuses() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN RAISE 'the table is full'; END $$",
            f"CREATE TRIGGER refuses BEFORE INSERT ON {DEAD} FOR EACH ROW EXECUTE FUNCTION refuses()",
        ],
    )
    async with Cache(slot.settings) as cache, at_work(one := slot.worker()):
        await until(lambda: one.health.ready)
        await cache.set("config", "1", "old", tenant_id="acme")
        await slot.put([TOO_LONG])
        await until(lambda: "raised by refuses()" in why(one, "dead"))
        await slot.put(["1"])
        await until(lambda: absent(cache, "1"))


async def test_a_suspect_that_is_no_more_is_made_anew(slot: OnSlot, database: str) -> None:
    """Its trial failed at each look, before anybody saw that it was gone."""
    async with at_work(one := slot.worker()):
        await until(lambda: one.health.ready)
        await tell(database, [EATEN.format(DEAD, "INSERT")])
        await slot.put([TOO_LONG])
        await until(lambda: DEAD in why(one, "storage"))
        await tell(database, [f"DROP TABLE {DEAD}"])
        await until(lambda: one.health.ready)
        assert len(await slot.dead()) == 1


@pytest.mark.parametrize("event", ["INSERT", "UPDATE", "DELETE"])
async def test_nothing_goes_on_behind_what_is_held_and_is_not_there(slot: OnSlot, database: str, event: str) -> None:
    one = slot.worker()
    carry, is_away = one._applier.carry, True

    async def carried(plans: Sequence[Plan], within_s: float | None = None) -> Carried:
        return Carried(away=set(range(len(plans)))) if is_away else await carry(plans, within_s)

    one._applier.carry = carried  # type: ignore[method-assign]
    async with Cache(slot.settings) as cache, at_work(one):
        await until(lambda: one.health.ready)
        await cache.set("config", "1", "old", tenant_id="acme")
        if event != "INSERT":
            await slot.put(["1"])
            await until(lambda: _is(database, 1))
        await tell(database, [EATEN.format(HELD, event)])
        if event == "DELETE":
            is_away = False
        else:
            await (tell(database, ["DELETE FROM configs"]) if event == "UPDATE" else slot.put(["1"]))
        await until(lambda: f"{HELD}: " in why(one, "storage"))
        await stays_so(one, slot)
        await until(lambda: remedy(one))
        await tell(database, remedy(one))
        await until(lambda: one.health.ready)
        is_away = False
        await until(lambda: none_left(slot))
        await until(lambda: absent(cache, "1"))


async def _is(database: str, count: int) -> bool:
    async with connected(database) as connection:
        return bool(await connection.fetchval(f"SELECT count(*) FROM {HELD}") == count)


async def test_nothing_is_begun_that_is_not_remembered(slot: OnSlot, database: str) -> None:
    await tell(database, [MAKE[SLOTS], EATEN.format(SLOTS, "INSERT")])
    async with at_work(one := slot.worker()):
        await until(lambda: f"{SLOTS}: " in why(one, "storage"))
        await until(lambda: remedy(one))
        assert not one.health.ready
        await tell(database, remedy(one))
        await until(lambda: one.health.ready)
        await slot.put(["1"])
        await until(lambda: none_left(slot))


async def test_a_lost_slot_is_made_anew_only_when_that_it_was_lost_is_remembered(slot: OnSlot, database: str) -> None:
    async with at_work(first := slot.worker()):
        await until(lambda: first.health.ready)
    await tell(database, ["SELECT pg_drop_replication_slot('cachebus_cdc')", EATEN.format(SLOTS, "UPDATE")])
    one = slot.worker()
    assert isinstance(one, SlotWorker)
    one.source.mending._names = one.source.names = one.source.names.__class__(
        one.source.names.slot, one.source.names.publication, one.source.names.namespace, "invalidate"
    )
    async with connected(database) as connection, at_work(one):
        await until(lambda: f"{SLOTS}: " in why(one, "storage"))
        await until(lambda: remedy(one))
        there = "SELECT count(*) FROM pg_replication_slots WHERE database = current_database()"
        assert await connection.fetchval(there) == 0
        await tell(database, remedy(one))
        await until(lambda: one.health.ready)
        assert await connection.fetchval(there) == 1


async def test_what_row_level_security_may_hide_is_told_before_it_does(database: str) -> None:
    role = f"small_{database[-12:]}"
    async with connected(database) as connection:
        await connection.execute(f"CREATE ROLE {role}")
        try:
            for table, sql in MAKE.items():
                await connection.execute(f"{sql}; GRANT ALL ON {table} TO {role}")
                await connection.execute(f"ALTER TABLE {table} ENABLE ROW LEVEL SECURITY")
            assert await storage_findings(connection, {}) == [], "it hides nothing from who owns them"
            await connection.execute(f"CREATE POLICY part ON {HELD} USING (slot <> 'cachebus_cdc')")
            await connection.execute(f"SET ROLE {role}")
            found = await storage_findings(connection, {})
            assert {one.subject for one in found if one.stops} == {SLOTS, DEAD, HELD}
            assert all("row-level security" in one.problem for one in found)
            for one in found:
                sql = one.remedy
                await connection.execute(f"RESET ROLE; {sql} SET ROLE {role}")
            assert await storage_findings(connection, {}) == []
            await connection.execute(f"RESET ROLE; CREATE POLICY few ON {SLOTS} AS RESTRICTIVE USING (false)")
            await connection.execute(f"SET ROLE {role}")
            (one,) = await storage_findings(connection, {})
            assert one.subject == SLOTS
        finally:
            await connection.execute(f"RESET ROLE; DROP OWNED BY {role}; DROP ROLE {role}")


async def test_a_row_of_several_that_is_eaten_is_noticed(database: str) -> None:
    picky = (
        "CREATE FUNCTION picks() RETURNS trigger LANGUAGE plpgsql AS "
        "$$ BEGIN IF NEW::text LIKE '%second%' THEN RETURN NULL; END IF; RETURN NEW; END $$"
    )
    async with connected(database) as connection:
        for sql in MAKE.values():
            await connection.execute(sql)
        await connection.execute(picky)
        for table in (DEAD, HELD):
            await connection.execute(EATEN.format(table, "INSERT").replace("eats()", "picks()"))
        held_rows, dead = HeldCommands(connection, "s", 1, lambda _: 0), TableOfDead(connection, "s")
        waiting = [
            WaitingItem(Item("0/1", None), [InvalidateScope(tenant_id=name, data_type="config")], frozenset({0}))
            for name in ("first", "second")
        ]
        await held_rows.put(waiting[:1])
        with pytest.raises(Swallowed, match=HELD):
            await held_rows.put(waiting)
        letters = [DeadLetter(name, "odd", "0/1", 1) for name in (b"first", b"second")]
        with pytest.raises(Swallowed, match=DEAD):
            await dead.put(letters)
        assert await connection.fetchval(f"SELECT count(*) FROM {DEAD}") == 0, "all of them or none"
        await dead.put(letters[:1])
        await dead.put(letters[:1])
        assert await connection.fetchval(f"SELECT attempts FROM {DEAD}") == 2


async def test_a_trial_leaves_nothing_behind(database: str) -> None:
    async with connected(database) as connection:
        for sql in MAKE.values():
            await connection.execute(sql)
        from cachebus.consumers.cdc.slot.making import SlotMaker
        from cachebus.consumers.cdc.slot.mending import Mending
        from cachebus.consumers.cdc.slot.slot import Names

        mending = Mending(Names("s", "p", "n", "stop"), SlotMaker("s", lambda: connected(database)))
        mending.suspects = {SLOTS, HELD, DEAD}
        assert await mending.look_at_suspects(connection) == []
        assert not mending.suspects
        for table in storage.OWN_TABLES:
            assert await connection.fetchval(f"SELECT count(*) FROM {table}") == 0


# -- an outbox ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("how", [EATEN, RULE], ids=["trigger", "rule"])
async def test_a_row_stays_whose_dead_letter_is_not_there(
    database: str, redis_url: str, tmp_path: Path, how: str
) -> None:
    rig = InPostgres(database)
    await rig.begin(quick(redis_url), tmp_path)
    await tell(database, [EATS, how.format("cachebus_outbox_dead", "INSERT")])
    async with Cache(rig.settings) as cache, at_work(one := rig.worker()):
        await cache.set("config", "1", "old", tenant_id="acme")
        await rig.put([TOO_LONG, "1"])
        await until(lambda: absent(cache, "1"))
        await until(lambda: "takes no rows, and says nothing" in why(one, "dead"))
        await stays_so(one, rig)
        assert await rig.left() == 1
        await tell(database, [f"DROP {'RULE' if how == RULE else 'TRIGGER'} eats ON cachebus_outbox_dead"])
        await until(lambda: none_left(rig))
        assert len(await rig.dead()) == 1
        await until(lambda: one.health.ready)


async def test_a_row_of_a_file_stays_whose_dead_letter_is_not_there(redis_url: str, tmp_path: Path) -> None:
    rig = InSqlite()
    await rig.begin(quick(redis_url), tmp_path)

    def told(sql: str) -> None:
        with closing(sqlite3.connect(tmp_path / "outbox.db", timeout=10)) as connection, connection:
            connection.execute(sql)

    told("CREATE TRIGGER eats BEFORE INSERT ON cachebus_outbox_dead BEGIN SELECT RAISE(IGNORE); END")
    async with Cache(rig.settings) as cache, at_work(one := rig.worker()):
        await cache.set("config", "1", "old", tenant_id="acme")
        await rig.put([TOO_LONG, "1", TOO_LONG])
        await until(lambda: absent(cache, "1"))
        await until(lambda: "a trigger keeps rows out of the table of the dead" in why(one, "dead"))
        assert await rig.left() == 2
        await asyncio.to_thread(told, "DROP TRIGGER eats")
        await until(lambda: _all_dead(rig))
        assert len(await rig.dead()) == 2
        await until(lambda: one.health.ready)


async def _all_dead(rig: InSqlite) -> Any:
    return not await rig.left()
