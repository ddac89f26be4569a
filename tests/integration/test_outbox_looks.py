"""What a relay's look finds is not green at the next one only because that did not get so far; and what was told is
green at once where it was obeyed."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest

from cachebus.consumers.outbox import RelayOptions, create_tables
from cachebus.consumers.outbox.letting import RowsKept
from cachebus.consumers.outbox.postgres import PostgresOutbox, PostgresSession
from cachebus.consumers.worker.source import Finding, Left
from tests.conftest import connected
from tests.support.changes import tell
from tests.support.outbox import invalidation, put, waiting

GRANTS = (
    "GRANT SELECT, UPDATE, DELETE ON cachebus_outbox TO limited",
    "GRANT INSERT ON cachebus_outbox_dead TO limited",
    "GRANT SELECT, INSERT, UPDATE ON cachebus_outbox_relays TO limited",
)
REVOKED = {
    "DELETE": "REVOKE DELETE ON cachebus_outbox FROM limited",
    "UPDATE and DELETE": "REVOKE UPDATE, DELETE ON cachebus_outbox FROM limited",
    "USAGE": "REVOKE USAGE ON SCHEMA public FROM limited, public",
}


@pytest.fixture
async def limited(database: str) -> AsyncIterator[str]:
    """The database, with the tables, for a role that has the rights that a relay needs."""
    await create_tables(database)
    await tell(database, ["CREATE ROLE limited LOGIN", "GRANT USAGE ON SCHEMA public TO limited", *GRANTS])
    yield database.replace("//postgres@", "//limited@")
    await tell(database, ["DROP OWNED BY limited", "DROP ROLE limited"])


@asynccontextmanager
async def opened(source: PostgresOutbox) -> AsyncIterator[PostgresSession]:
    """A session of it."""
    async with source.opened() as session:
        assert isinstance(session, PostgresSession)
        yield session


async def found(session: PostgresSession) -> dict[str, Finding]:
    """What a look finds, by assumption."""
    return {finding.assumption: finding for finding in (await session.look()).findings}


@pytest.mark.parametrize("right", REVOKED)
async def test_rows_that_a_missing_right_has_kept_are_let_go_of_once_it_is_given(
    database: str, limited: str, right: str
) -> None:
    table = "public.cachebus_outbox"
    source = PostgresOutbox(limited, "cachebus", RelayOptions(table, poll_interval_s=0.001))
    async with connected(database) as connection:
        await put(connection, invalidation("x"))
    async with opened(source) as session:
        assert await found(session) == {}
        batch = await session.take(10, ())
        await tell(database, [REVOKED[right]])
        with pytest.raises(RowsKept):
            await session.acknowledge(batch, Left())
    async with opened(source) as session:
        told = await found(session)
        assert told["rights"].stops
        if right != "USAGE":
            assert told["rights"].remedy in told["removal"].remedy
        await tell(database, [told["rights"].remedy])
        assert await found(session) == {}
        await session.acknowledge(await session.take(10, ()), Left())
        assert await waiting(database) == 0
        assert await found(session) == {}


async def test_what_was_found_lasts_while_a_look_finds_the_table_locked(database: str, limited: str) -> None:
    source = PostgresOutbox(limited, "cachebus", RelayOptions())
    async with connected(database) as other, opened(source) as session:
        await other.execute("REVOKE UPDATE ON cachebus_outbox FROM limited")
        await other.execute("CREATE RULE r AS ON INSERT TO cachebus_outbox DO INSTEAD NOTHING")
        before = await found(session)
        assert before["rights"].stops
        await other.execute("GRANT UPDATE ON cachebus_outbox TO limited")
        await other.execute("ALTER TABLE cachebus_outbox ALTER due_at SET DEFAULT 'infinity'")
        before = await found(session)
        assert set(before) == {"columns", "inserts"}
        await other.execute("BEGIN; LOCK TABLE cachebus_outbox")
        locked = await found(session)
        async with opened(source) as anew:
            assert await found(anew) == locked
        assert locked.pop("locks").problem
        assert locked == before
        await other.execute("DROP RULE r ON cachebus_outbox; COMMIT")
        assert set(await found(session)) == {"columns"}
