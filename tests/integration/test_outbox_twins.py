"""Rows of an outbox that have one id: a table that was restored, or truncated, gives its ids again, and its key has
more than them. What is known of one row is said of no other."""

from __future__ import annotations

import asyncio
import sqlite3
from collections.abc import AsyncIterator, Collection
from contextlib import asynccontextmanager, closing
from pathlib import Path

import pytest

from cachebus.consumers.outbox import RelayOptions, create_tables
from cachebus.consumers.outbox.letting import RowsKept
from cachebus.consumers.outbox.postgres import PostgresOutbox, PostgresSession
from cachebus.consumers.outbox.sqlite import SqliteOutbox
from cachebus.consumers.worker.source import Item, Left
from tests.conftest import connected
from tests.support.changes import tell

FUNCTION = "CREATE FUNCTION keeps() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN RETURN NULL; END $$"
KEEPS = (
    "CREATE TRIGGER keeps BEFORE {} ON cachebus_outbox FOR EACH ROW WHEN (OLD.command ~ 'kept') "
    "EXECUTE FUNCTION keeps()"
)
MAY_MARK, MAY_NOT = "DELETE", "DELETE OR UPDATE"
PUT = (
    "INSERT INTO cachebus_outbox (id, command, due_at) OVERRIDING SYSTEM VALUE "
    "VALUES ({}, '{}', clock_timestamp() + interval '{} s')"
)


@asynccontextmanager
async def careful(database: str, keeps: str) -> AsyncIterator[PostgresSession]:
    """A relay's session that lets each row go by itself, since the database has kept row 7, which rests."""
    await create_tables(database, notify=False)
    await tell(database, [FUNCTION, KEEPS.format(keeps), PUT.format(7, "kept", -10)])
    source = PostgresOutbox(database, "cachebus", RelayOptions(poll_interval_s=0.001))
    async with source.opened() as session:
        with pytest.raises(RowsKept):
            await session.acknowledge(await session.take(10, ()), Left())
    async with source.opened() as session:
        assert isinstance(session, PostgresSession)
        assert await done(session) == ["kept"]
        assert source._known.careful
        yield session


def names(items: Collection[Item]) -> list[str]:
    """What is in these rows."""
    return sorted(item.raw.command for item in items)


async def done(session: PostgresSession) -> list[str]:
    """What it takes, and acknowledges."""
    session._rest_until_s = float("-inf")
    batch = await session.take(10, ())
    if batch.items:
        async with asyncio.timeout(10):
            await session.acknowledge(batch, Left())
    return names(batch.items)


async def left(database: str) -> list[str]:
    """What is in the table."""
    async with connected(database) as connection:
        return [row[0] for row in await connection.fetch("SELECT command FROM cachebus_outbox ORDER BY 1")]


async def test_two_rows_of_one_id_are_let_go_of_with_care(database: str) -> None:
    async with careful(database, MAY_MARK) as session:
        await tell(database, [PUT.format(8, "one", -2), PUT.format(8, "other", -1)])
        assert await done(session) == ["one", "other"]
        assert await left(database) == ["kept"]


async def test_of_two_rows_of_one_id_the_one_rests_that_is_kept(database: str) -> None:
    async with careful(database, MAY_MARK) as session:
        await tell(database, [PUT.format(8, "free", -2), PUT.format(8, "kept too", -1)])
        assert await done(session) == ["free", "kept too"]
        assert await left(database) == ["kept", "kept too"]
        await tell(database, [PUT.format(8, "later", -1)])
        batch = await session.take(10, ())
        assert [(item.raw.command, item.again) for item in batch.items] == [("later", False)]


async def test_a_row_that_rests_hides_no_other_of_its_id(database: str) -> None:
    async with careful(database, MAY_NOT) as session:
        assert await done(session) == []
        await tell(database, [PUT.format(7, "other", -1)])
        assert await done(session) == ["other"]
        assert await done(session) == []
        assert await left(database) == ["kept"]


async def test_what_is_due_at_once_as_nothing_keeps_it_any_more_is_no_other_row_of_its_id(database: str) -> None:
    async with careful(database, MAY_MARK) as session:
        await session.look()
        await tell(database, [PUT.format(7, "wanted later", 30), "DROP TRIGGER keeps ON cachebus_outbox"])
        await session.look()
        assert await done(session) == ["kept"]
        assert await left(database) == ["wanted later"]


async def test_a_file_whose_table_was_made_anew_hides_no_row_for_one_that_rested(tmp_path: Path) -> None:
    url = f"sqlite:///{tmp_path / 'o.db'}"
    keeps = "CREATE TRIGGER on_{0} BEFORE {0} ON cachebus_outbox BEGIN SELECT RAISE(IGNORE); END"
    await create_tables(url)
    with closing(sqlite3.connect(tmp_path / "o.db", isolation_level=None)) as connection:
        for sql in (
            keeps.format("DELETE"),
            keeps.format("UPDATE"),
            *["INSERT INTO cachebus_outbox (command) VALUES (1)"] * 3,
        ):
            connection.execute(sql)
        async with SqliteOutbox(url, "cachebus", RelayOptions(poll_interval_s=0.001)).opened() as session:
            await session.look()
            await session.acknowledge(await session.take(10, ()), Left())
            assert not (await session.take(10, ())).items
            connection.execute("DROP TABLE cachebus_outbox")
            await create_tables(url)
            connection.execute("INSERT INTO cachebus_outbox (command) VALUES ('other')")
            await session.look()
            assert [(item.raw.command, item.again) for item in (await session.take(10, ())).items] == [
                (b"other", False)
            ]
