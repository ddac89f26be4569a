"""A relay that lets each row go by itself, since the database has kept one, beside another writer of the table: what is
the writer's stays the writer's, and it is not blamed for what the database keeps."""

from __future__ import annotations

from collections.abc import AsyncIterator, Collection
from contextlib import asynccontextmanager

import asyncpg
import pytest

from cachebus.consumers.outbox import RelayOptions, create_tables, locked
from cachebus.consumers.outbox.letting import RowsKept
from cachebus.consumers.outbox.postgres import PostgresOutbox, PostgresSession
from cachebus.consumers.worker.source import Finding, Item, Left
from tests.conftest import connected
from tests.support.changes import tell

KEEPS = (
    "CREATE FUNCTION keeps() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN RETURN NULL; END $$",
    (
        "CREATE TRIGGER keeps BEFORE DELETE ON cachebus_outbox FOR EACH ROW WHEN (OLD.command = 'kept') "
        "EXECUTE FUNCTION keeps()"
    ),
)
INSERTS = "INSERT INTO cachebus_outbox (command) VALUES ('{}')"
LOCKS = "SELECT FROM cachebus_outbox WHERE command = '{}' FOR UPDATE"


async def put(database: str, *names: str) -> None:
    """Write rows."""
    await tell(database, [INSERTS.format(name) for name in names])


@pytest.fixture
async def source(database: str) -> PostgresOutbox:
    """A relay's, that is careful by now: the database has kept a row, which rests."""
    await create_tables(database, notify=False)
    await tell(database, KEEPS)
    await put(database, "kept")
    source = PostgresOutbox(database, "cachebus", RelayOptions(poll_interval_s=0.001))
    async with opened(source) as session:
        with pytest.raises(RowsKept):
            await session.acknowledge(await session.take(10, ()), Left())
    async with opened(source) as session:
        assert await done(session) == ["kept"]
    assert source._known.careful
    return source


@asynccontextmanager
async def opened(source: PostgresOutbox) -> AsyncIterator[PostgresSession]:
    """A session of it."""
    async with source.opened() as session:
        assert isinstance(session, PostgresSession)
        yield session


def names(items: Collection[Item]) -> list[str]:
    """What is in these rows."""
    return sorted(item.raw.command for item in items)


async def done(session: PostgresSession) -> list[str]:
    """What it takes, and acknowledges."""
    batch = await session.take(10, ())
    if batch.items:
        await session.acknowledge(batch, Left())
    return names(batch.items)


async def left(database: str) -> list[str]:
    """What is in the table, as far as it is committed."""
    async with connected(database) as connection:
        return [row[0] for row in await connection.fetch("SELECT command FROM cachebus_outbox ORDER BY 1")]


async def found(session: PostgresSession, assumption: str) -> list[Finding]:
    """What it finds about this."""
    return [one for one in (await session.look()).findings if one.assumption == assumption]


async def pid_of(connection: asyncpg.Connection) -> int:
    """The number of its process."""
    pid: int = await connection.fetchval("SELECT pg_backend_pid()")
    return pid


async def test_it_leaves_what_a_writer_has_and_takes_it_afterwards(database: str, source: PostgresOutbox) -> None:
    """1. A writer has a row, and writes one. 2. It is not blamed for what the database keeps. 3. It commits."""
    await put(database, "free", "had")
    async with opened(source) as session, connected(database) as writer:
        await writer.execute(f"BEGIN; {LOCKS.format('had')}; {INSERTS.format('new')}")
        assert await done(session) == ["free"]
        assert await left(database) == ["had", "kept"]
        assert await found(session, "locks") == []
        (kept,) = await found(session, "removal")
        assert "DROP TRIGGER keeps" in kept.remedy
        assert "pg_terminate_backend" not in kept.remedy
        await writer.execute("COMMIT")
        assert await done(session) == ["had", "new"]
        assert await left(database) == ["kept"]


@pytest.mark.parametrize("savepoint", [False, True])
async def test_it_names_a_writer_that_keeps_a_row_for_long_and_not_for_the_row_that_rests(
    database: str, source: PostgresOutbox, monkeypatch: pytest.MonkeyPatch, *, savepoint: bool
) -> None:
    monkeypatch.setattr(locked, "LOCKED_S", 0.0)
    sql = "SAVEPOINT a; {}; RELEASE a" if savepoint else "{}"
    await put(database, "had")
    async with opened(source) as session, connected(database) as writer:
        await writer.execute(f"BEGIN; {sql.format(LOCKS.format('kept'))}")
        assert await found(session, "locks") == [], "it is not due"
        await writer.execute(sql.format(LOCKS.format("had")))
        assert await done(session) == []
        (told,) = await found(session, "locks")
        assert told.remedy == f"SELECT pg_terminate_backend({await pid_of(writer)});"
        await writer.execute("ROLLBACK")
        assert await found(session, "locks") == []
        assert await done(session) == ["had"]


async def test_a_writer_that_locks_the_table_meanwhile_has_the_rows_come_again(
    database: str, source: PostgresOutbox
) -> None:
    """What was applied can't be removed then: not since the database keeps it."""
    await put(database, "one", "two")
    async with opened(source) as session, connected(database) as writer:
        batch = await session.take(10, ())
        await writer.execute("BEGIN; LOCK TABLE cachebus_outbox IN SHARE MODE")
        await session.acknowledge(batch, Left())
        assert await left(database) == ["kept", "one", "two"]
        (told,) = await found(session, "locks")
        assert f"the session {await pid_of(writer)} (" in told.problem
        await writer.execute("COMMIT")
        assert await found(session, "locks") == []
        session._rest_until_s = float("-inf")
        again = await session.take(10, ())
        assert names(again.items) == ["one", "two"]
        assert all(item.again for item in again.items)
        await session.acknowledge(again, Left())
        assert await left(database) == ["kept"]


async def test_a_writer_that_changes_the_rows_that_rest_has_them_taken_as_they_are_by_then(
    database: str, source: PostgresOutbox
) -> None:
    await tell(database, ["UPDATE cachebus_outbox SET command = 'changed', due_at = '-infinity'"])
    async with opened(source) as session:
        assert await done(session) == ["changed"]
        assert await left(database) == []
