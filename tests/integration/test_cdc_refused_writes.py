"""A database that refuses what a slot's worker writes into its own tables: who refuses it is told, and what helps, and
nothing goes on as if it were stored."""

from __future__ import annotations

from pathlib import Path

import pytest

from cachebus import Cache
from cachebus.consumers.cdc.slot.storage import DEAD, HELD, MAKE, SLOTS
from cachebus.consumers.worker import watcher
from cachebus.consumers.worker.source_worker import SourceWorker
from tests.contract.source_rigs import TOO_LONG, OnSlot
from tests.support.caches import quick, until
from tests.support.cdc_surroundings import Away, at_work
from tests.support.changes import fetched, tell
from tests.support.worker_health import why

RAISES = """
CREATE FUNCTION raises() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN RAISE 'alice may not %', NEW; END $$
"""
CALLS = """
CREATE FUNCTION raises() RETURNS trigger LANGUAGE plpgsql AS
$$ BEGIN INSERT INTO audit.gone VALUES (NEW.slot); RETURN NEW; END $$
"""
RAISED = "raised by raises() (the trigger raises)"
OTHER = "CREATE FUNCTION other() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN RETURN NEW; END $$"
BESIDE = f"CREATE TRIGGER beside BEFORE UPDATE ON {SLOTS} FOR EACH ROW EXECUTE FUNCTION other()"
BEFORE = "CREATE TRIGGER raises BEFORE INSERT OR UPDATE ON {} FOR EACH ROW {} EXECUTE FUNCTION raises()"
DEFERRED = (
    f"CREATE CONSTRAINT TRIGGER raises AFTER UPDATE ON {SLOTS} DEFERRABLE INITIALLY DEFERRED FOR EACH ROW "
    "EXECUTE FUNCTION raises()"
)


@pytest.fixture(autouse=True)
def _looks_often(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(watcher, "LOOK_EVERY_S", 0.1)


@pytest.fixture
async def slot(database: str, redis_url: str, tmp_path: Path) -> OnSlot:
    """Changes of a table."""
    rig = OnSlot(database)
    await rig.begin(quick(redis_url), tmp_path)
    return rig


def remedy(one: SourceWorker) -> str:
    return why(one, "storage").partition("to mend it: ")[2]


async def is_left(rig: OnSlot) -> bool:
    return bool(await rig.left())


async def absent(cache: Cache, number: str) -> bool:
    return await cache.get("config", number, tenant_id="acme") is None


@pytest.mark.parametrize(
    ("sql", "told"),
    [
        ([RAISES, BEFORE.format(SLOTS, "")], RAISED),
        ([RAISES, BEFORE.format(SLOTS, "WHEN (NEW.slot = 'cachebus_cdc')")], RAISED),
        ([CALLS, BEFORE.format(SLOTS, "")], RAISED),
        ([RAISES, OTHER, BESIDE, DEFERRED], RAISED),
        ([f"ALTER TABLE {SLOTS} ADD CONSTRAINT early CHECK (lsn < '0/1') NOT VALID"], "early"),
    ],
    ids=["raises", "of this slot alone", "a table that is not there", "as it commits", "a constraint"],
)
async def test_who_refuses_where_the_slot_is_by_now_is_named_with_what_helps(
    slot: OnSlot, database: str, sql: list[str], told: str
) -> None:
    async with Cache(slot.settings) as cache:
        async with at_work(one := slot.worker()):
            await until(lambda: one.health.ready)
            await cache.set("config", "1", "old", tenant_id="acme")
            await tell(database, sql)
            await slot.put(["1"])
            await until(lambda: f"{SLOTS}: what is written there is refused: " in why(one, "storage"))
            assert told in why(one, "storage")
            assert "alice" not in why(one, "storage")
            assert await is_left(slot)
        async with at_work(one := slot.worker()):  # nor is it forgotten by one that begins
            await until(lambda: told in why(one, "storage"))
            await until(lambda: one.health.is_up("database"))
            await tell(database, [remedy(one)])
            await until(lambda: one.health.ready)
            await until(lambda: absent(cache, "1"))
            await until(lambda: fetched(database, "SELECT count(*) = 1 FROM cachebus_cdc_slots"))
            await until(lambda: _is_done(slot))


async def _is_done(rig: OnSlot) -> bool:
    return not await rig.left()


async def test_a_column_that_asks_for_a_value_is_told_with_what_helps(slot: OnSlot, database: str) -> None:
    await tell(database, [MAKE[SLOTS], f'ALTER TABLE {SLOTS} ADD COLUMN "Who" text NOT NULL'])
    async with at_work(one := slot.worker()):
        await until(lambda: "NotNullViolationError" in why(one, "storage"))
        await tell(database, [remedy(one)])
        await until(lambda: one.health.ready)


async def test_who_refuses_to_hold_a_change_is_named_with_what_helps(slot: OnSlot, database: str) -> None:
    one = slot.worker()
    away = Away(one)  # type: ignore[arg-type]
    async with at_work(one):
        await until(lambda: one.health.ready)
        await tell(database, [RAISES, BEFORE.format(HELD, "")])
        await slot.put(["1"])
        await until(lambda: f"{HELD}: what is written there is refused: " in why(one, "storage"))
        assert await is_left(slot)
        await tell(database, [remedy(one)])
        away.lasts = False
        await until(lambda: one.health.ready)
        await until(lambda: _is_done(slot))


async def test_who_refuses_dead_letters_is_named_with_what_helps(slot: OnSlot, database: str) -> None:
    async with at_work(one := slot.worker()):
        await until(lambda: one.health.ready)
        await tell(database, [RAISES, BEFORE.format(DEAD, "")])
        await slot.put([TOO_LONG])
        await until(lambda: f"{DEAD}: what is written there is refused: " in why(one, "storage"))
        await tell(database, [remedy(one)])
        await until(lambda: one.health.is_up("storage"))


async def test_an_event_trigger_that_refuses_own_tables_is_named(slot: OnSlot, database: str) -> None:
    refuses = "CREATE FUNCTION no_ddl() RETURNS event_trigger LANGUAGE plpgsql AS $$ BEGIN RAISE 'never'; END $$"
    await tell(database, [refuses, "CREATE EVENT TRIGGER no_ddl ON ddl_command_start EXECUTE FUNCTION no_ddl()"])
    async with at_work(one := slot.worker()):
        await until(lambda: "this user may not make it (RaiseError: raised by no_ddl())" in why(one, "storage"))
        await tell(database, ["DROP EVENT TRIGGER no_ddl"])
        await until(lambda: one.health.ready)
