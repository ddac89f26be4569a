"""What relays are to remember, and the database does not keep: it is told, and the relay goes on as without it."""

from __future__ import annotations

import pytest

from cachebus import ConfigError
from cachebus.consumers.outbox import RelayOptions, create_tables, replay
from cachebus.consumers.outbox.knowledge import RelayKnowledge
from cachebus.consumers.outbox.postgres import PostgresOutbox, PostgresSession
from cachebus.consumers.worker.source import Finding, NotStored
from tests.conftest import connected
from tests.support.changes import tell

FUNCTION = "CREATE FUNCTION swallow() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN {} END $$"
TRIGGER = "CREATE TRIGGER swallows {} ON cachebus_outbox_relays FOR EACH ROW EXECUTE FUNCTION swallow()"
RULE = "CREATE RULE swallows AS ON {} TO cachebus_outbox_relays DO INSTEAD NOTHING"
SWALLOWS = {
    "a trigger that gives NULL": [FUNCTION.format("RETURN NULL;"), TRIGGER.format("BEFORE INSERT OR UPDATE")],
    "one of updates alone": [FUNCTION.format("RETURN NULL;"), TRIGGER.format("BEFORE UPDATE")],
    "one that writes another thing": [
        FUNCTION.format("NEW.l2 := 'mine'; RETURN NEW;"),
        TRIGGER.format("BEFORE INSERT OR UPDATE"),
    ],
    "one that deletes it": [
        FUNCTION.format("DELETE FROM cachebus_outbox_relays; RETURN NULL;"),
        TRIGGER.format("AFTER INSERT OR UPDATE"),
    ],
    "one that raises": [FUNCTION.format("RAISE 'alice@example.com';"), TRIGGER.format("BEFORE INSERT OR UPDATE")],
    "a rule of inserts": [RULE.format("INSERT")],
    "a rule of updates": [RULE.format("UPDATE")],
}


@pytest.fixture
async def tables(database: str) -> str:
    """A database with an outbox."""
    await create_tables(database)
    return database


def source(database: str) -> PostgresOutbox:
    """What a relay takes rows from."""
    return PostgresOutbox(database, "cachebus", RelayOptions())


async def findings(session: object) -> list[Finding]:
    """What the session finds."""
    assert isinstance(session, PostgresSession)
    return (await session.look()).findings


@pytest.mark.parametrize("how", SWALLOWS)
async def test_what_is_not_kept_is_told_and_mended_by_the_sql_that_is_told(tables: str, how: str) -> None:
    async with source(tables).opened() as session:
        assert await findings(session) == []
        await tell(tables, SWALLOWS[how])
        (found,) = await findings(session)
        assert (found.assumption, found.stops) == ("stores", False)
        assert "is not kept" in found.problem or "is refused" in found.problem
        assert "alice" not in str(found)
        assert (await session.take(1, ())).items == [], "it goes on"
        await tell(tables, [found.remedy])
        assert await findings(session) == []
        await session.take(1, ())
        assert await findings(session) == []
    async with connected(tables) as connection:
        assert await connection.fetchval("SELECT count(*) FROM cachebus_outbox_relays") == 1


async def test_a_trigger_that_keeps_what_is_written_is_not_told(tables: str) -> None:
    await tell(tables, [FUNCTION.format("RETURN NEW;"), TRIGGER.format("BEFORE INSERT OR UPDATE")])
    async with source(tables).opened() as session:
        assert await findings(session) == []
    async with connected(tables) as connection:
        assert await connection.fetchval("SELECT count(*) FROM cachebus_outbox_relays") == 0, "a look writes nothing"


async def test_a_write_that_is_swallowed_is_told_where_nothing_tells_of_it_before(tables: str) -> None:
    """As by a trigger that comes after the look."""
    known = RelayKnowledge(60)
    async with connected(tables) as connection:
        session = PostgresSession(connection, "cachebus", RelayOptions(), known)
        await session.begin()
        assert await findings(session) == []
        await tell(tables, SWALLOWS["a trigger that gives NULL"])
        await session.take(1, ())
        assert known.doubts.some
    async with connected(tables) as connection:
        session = PostgresSession(connection, "cachebus", RelayOptions(), known)
        await session.begin()
        (found,) = await findings(session)
        assert "is not kept" in found.problem


async def test_what_was_made_up_for_and_is_not_remembered_is_told(tables: str) -> None:
    async with source(tables).opened() as session:
        assert isinstance(session, PostgresSession)
        session._known.identity = lambda: "ours"
        assert await findings(session) == []
        await session.take(1, ())
        await tell(tables, ["UPDATE cachebus_outbox_relays SET missed = 1"])
        (missed,) = await findings(session)
        assert missed.over
        await tell(tables, SWALLOWS["one of updates alone"])
        with pytest.raises(NotStored):
            await session.made_up([missed])
        (found,) = await findings(session)
        assert not found.over
        await tell(tables, [found.remedy])
        assert await findings(session) == [missed]
        await session.made_up([missed])
        assert await findings(session) == []


async def test_letters_that_a_trigger_keeps_where_they_are_are_not_told_to_be_back(tables: str) -> None:
    on_the_dead = "CREATE TRIGGER keeps BEFORE DELETE ON cachebus_outbox_dead FOR EACH ROW EXECUTE FUNCTION swallow()"
    insert = (
        "INSERT INTO cachebus_outbox_dead (namespace, row_id, command, reason, attempts, created_at) "
        "SELECT 'cachebus', n, '', '', 1, now() FROM generate_series(1, 3) n"
    )
    await tell(tables, [insert, FUNCTION.format("RETURN NULL;"), on_the_dead])
    with pytest.raises(ConfigError, match=r"0 rows are back, and something keeps others in the table of the dead"):
        await replay(tables, "cachebus")
    await tell(tables, ["DROP TRIGGER keeps ON cachebus_outbox_dead"])
    assert await replay(tables, "cachebus", limit=2) == 2
    assert await replay(tables, "cachebus") == 1
