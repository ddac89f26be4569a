"""Rows in the caller's own transaction: over each kind of connection they are there if, and only if, it commits."""

from __future__ import annotations

import json
import sqlite3
from typing import Any

import asyncpg
import psycopg
import pytest
from sqlalchemy import create_engine
from sqlalchemy.exc import DBAPIError
from sqlalchemy.ext.asyncio import AsyncSession, create_async_engine
from sqlalchemy.orm import Session

from cachebus import Cascade, ConfigError, Context, InvalidKey, Settings, TenantRequired
from cachebus.consumers.outbox import create_tables
from cachebus.producers import Outbox, OutboxProducer, SyncOutboxProducer, SyncProducer
from cachebus.producers.command import Invalidate, InvalidateCoordinated, InvalidateScope, InvalidateTags, parse
from cachebus.producers.outbox.connections import Insert, writer
from tests.conftest import connected
from tests.support.outbox_connections import ASYNC, AUTOCOMMIT_SYNC, SYNC, Plain, style_of

OUTBOX = Outbox(Settings(), [Cascade("document", to=[("embedding", "doc:{resource_id}"), ("query_result", "*")])])
INTO_NOTHING = Outbox(Settings(), table="nowhere")


@pytest.fixture
async def tables(database: str) -> str:
    """A database with an outbox."""
    await create_tables(database)
    return database


async def commands(database: str) -> list[Any]:
    """What was written, in order."""
    async with connected(database) as connection:
        rows = await connection.fetch("SELECT namespace, command FROM cachebus_outbox ORDER BY id")
    assert {row["namespace"] for row in rows} <= {"cachebus"}
    return [parse(row["command"]) for row in rows]


# -- in the caller's transaction ---------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ASYNC)
async def test_a_row_is_there_if_and_only_if_its_transaction_commits(tables: str, kind: str) -> None:
    async with ASYNC[kind](tables) as (connection, commit, _):
        receipt = await OutboxProducer(connection, OUTBOX).invalidate("config", "kept", "acme", "a7")
        assert (receipt.status, receipt.stored, dict(receipt.targets)) == ("pending", False, {"config": 1})
        assert await commands(tables) == []
        await commit()
    async with ASYNC[kind](tables) as (connection, _, rollback):
        producer = OutboxProducer(connection, OUTBOX)
        await producer.invalidate("config", "undone", "acme")
        async with producer.together() as several:
            await several.invalidate_tags(["undone"], "acme")
            await several.invalidate_scope("acme")
        await rollback()
    (written,) = await commands(tables)
    assert written == Invalidate(tenant_id="acme", data_type="config", resource_id="kept", agent_id="a7")


@pytest.mark.parametrize("kind", SYNC)
async def test_the_sync_twin_likewise(tables: str, kind: str) -> None:
    with SYNC[kind](tables) as connection:
        producer = SyncOutboxProducer(connection, OUTBOX, paramstyle=style_of(kind))
        assert producer.invalidate("config", "kept", "acme").status == "pending"
        assert await commands(tables) == []
        connection.commit()
        producer.invalidate("config", "undone", "acme")
        with producer.together() as several:
            several.invalidate("config", "undone", "acme")
            several.invalidate("config", "undone too", "acme")
        connection.rollback()
    assert await commands(tables) == [Invalidate(tenant_id="acme", data_type="config", resource_id="kept")]


async def test_every_verb_becomes_its_command_with_all_that_it_entails(tables: str) -> None:
    with psycopg.connect(tables) as connection:
        both: list[Any] = [SyncOutboxProducer(connection, OUTBOX)]
        with both[0].together() as several:
            assert isinstance(several, SyncProducer)
            for producer in (*both, several):
                producer.invalidate("config", 7, "acme", contexts="all")
                producer.invalidate_scope("acme", "config", collection_id="c1")
                producer.invalidate_tags(["plan:pro"], "acme")
                producer.invalidate_coordinated("acme", "page", "p", [{"data_type": "config"}], collection_id="c")
                with Context(tenant_id="ambient"):
                    receipt = producer.invalidate("document", "d")
                assert dict(receipt.targets) == {"document": 1, "embedding": 1, "query_result": 1}
    once = await commands(tables)
    assert once[:5] == once[5:]
    exact, scope, tags, coordinated, cascaded = once[:5]
    assert exact == Invalidate(tenant_id="acme", data_type="config", resource_id="7", contexts="all")
    assert scope == InvalidateScope(tenant_id="acme", data_type="config", collection_id="c1")
    assert tags == InvalidateTags(tenant_id="acme", tags=("plan:pro",))
    assert isinstance(coordinated, InvalidateCoordinated)
    assert [(one.data_type, one.resource_id, one.collection_id) for one in coordinated.related] == [
        ("config", "*", "c")
    ]
    assert cascaded.tenant_id == "ambient"
    assert {(one.data_type, one.resource_id) for one in cascaded.related} == {
        ("embedding", "doc:d"),
        ("query_result", "*"),
    }


class Lazy:
    """As Django's: it connects when a cursor is asked for, and only then commits each statement by itself."""

    autocommit = False

    def __init__(self, url: str) -> None:
        self._url = url
        self.connection: Any = None

    def cursor(self) -> Any:
        """Connects."""
        if self.connection is None:
            self.connection, self.autocommit = psycopg.connect(self._url, autocommit=True), True
        return self.connection.cursor()


def test_one_that_commits_by_itself_once_it_has_connected_is_refused_at_once(tables: str) -> None:
    connection = Lazy(tables)
    producer = SyncOutboxProducer(connection, OUTBOX, paramstyle="format")
    for _ in range(2):
        with pytest.raises(ConfigError, match="commits"):
            producer.invalidate("config", "x", "acme")
    with connection.connection as real:
        assert real.execute("SELECT count(*) FROM cachebus_outbox").fetchone() == (0,)


async def test_what_is_wrong_raises_before_anything_is_written(tables: str) -> None:
    async with connected(tables) as connection, connection.transaction():
        producer = OutboxProducer(connection, OUTBOX)
        sync = SyncOutboxProducer(Plain(psycopg.connect(tables)), OUTBOX, paramstyle="format")
        for call, error in (
            (lambda p: p.invalidate("config", "", "acme"), InvalidKey),
            (lambda p: p.invalidate("config", "x"), TenantRequired),
            (lambda p: p.invalidate_scope("acme", "config", "a", "c"), InvalidKey),
            (lambda p: p.invalidate_tags([], "acme"), ValueError),
            (lambda p: p.invalidate("config", "x", "acme", contexts="some"), ValueError),
            (lambda p: p.invalidate("config", "x", "acme", wait="nodes"), ValueError),
            (lambda p: p.invalidate("config", "x", "acme", wait="soon"), ValueError),
        ):
            with pytest.raises(error):
                await call(producer)
            with pytest.raises(error):
                call(sync)

        async def fails() -> None:
            async with producer.together() as several:
                await several.invalidate("config", "x", "acme")
                raise RuntimeError

        with pytest.raises(RuntimeError):
            await fails()
        sync._connection._inner.close()
    assert await commands(tables) == []


async def test_several_rows_are_few_statements_and_need_no_many_round_trips(tables: str) -> None:
    async with connected(tables) as connection, connection.transaction():
        statements: list[str] = []
        connection.add_query_logger(lambda query: statements.append(query.query))
        async with OutboxProducer(connection, OUTBOX).together() as several:
            for number in range(1200):
                await several.invalidate("config", number, "acme")
    assert len([one for one in statements if one.startswith("INSERT")]) == 3
    assert [one.resource_id for one in await commands(tables)] == [str(number) for number in range(1200)]


# -- where there is no transaction, or no connection ---------------------------------------------------------------


@pytest.mark.parametrize("kind", AUTOCOMMIT_SYNC)
async def test_a_connection_that_commits_by_itself_is_refused(tables: str, kind: str) -> None:
    opened = AUTOCOMMIT_SYNC[kind](tables)
    with opened as connection:
        with pytest.raises(ConfigError, match="no transaction"):
            SyncOutboxProducer(connection, OUTBOX, paramstyle=style_of(kind)).invalidate("config", "x", "acme")
        if hasattr(connection, "engine"):
            connection.close()
            connection.engine.dispose()
    assert await commands(tables) == []


async def test_so_is_an_async_one(tables: str) -> None:
    engine = create_async_engine(tables.replace("postgresql:", "postgresql+asyncpg:"), isolation_level="AUTOCOMMIT")
    async with (
        connected(tables) as bare,
        await psycopg.AsyncConnection.connect(tables, autocommit=True) as other,
        AsyncSession(engine) as session,
    ):
        for connection in (bare, other, session):
            with pytest.raises(ConfigError, match="no transaction"):
                await OutboxProducer(connection, OUTBOX).invalidate("config", "x", "acme")
        async with other.transaction():  # a transaction of its own is one
            await OutboxProducer(other, OUTBOX).invalidate("config", "x", "acme")
    await engine.dispose()
    assert len(await commands(tables)) == 1


async def test_what_is_no_connection_of_the_kind_is_told_which_to_take(tables: str) -> None:
    async with connected(tables) as asynchronous:
        with psycopg.connect(tables) as synchronous:
            with pytest.raises(ConfigError, match="there is SyncOutboxProducer"):
                OutboxProducer(synchronous, OUTBOX)
            with pytest.raises(ConfigError, match="there is OutboxProducer"):
                SyncOutboxProducer(asynchronous, OUTBOX)
            with pytest.raises(ConfigError, match="paramstyle must be one of"):
                SyncOutboxProducer(Plain(synchronous), OUTBOX)
            with pytest.raises(ConfigError, match="the connection comes first"):
                OutboxProducer(OUTBOX, asynchronous)  # type: ignore[arg-type]
            with pytest.raises(ConfigError, match="the connection comes first"):
                SyncOutboxProducer(OUTBOX, synchronous)  # type: ignore[arg-type]
    for thing in (None, "postgresql://", object()):
        with pytest.raises(ConfigError):
            OutboxProducer(thing, OUTBOX)
        with pytest.raises(ConfigError):
            SyncOutboxProducer(thing, OUTBOX)


async def test_what_the_database_says_against_it_is_raised_as_its_driver_raises_it(tables: str) -> None:
    async with connected(tables) as connection:
        with pytest.raises(asyncpg.UndefinedTableError):
            async with connection.transaction():
                await OutboxProducer(connection, INTO_NOTHING).invalidate("config", "x", "acme")
    engine = create_engine(tables.replace("postgresql:", "postgresql+psycopg:"))
    with Session(engine) as session, pytest.raises(DBAPIError):
        SyncOutboxProducer(session, INTO_NOTHING).invalidate("config", "x", "acme")
    engine.dispose()


@pytest.mark.parametrize("style", ["qmark", "named"])
def test_paramstyles_that_another_database_speaks(style: str) -> None:
    connection = sqlite3.connect(":memory:")
    connection.execute("CREATE TABLE cachebus_outbox (namespace text, command text)")
    producer = SyncOutboxProducer(connection, OUTBOX, paramstyle=style)
    with producer.together() as several:
        for number in range(2):
            several.invalidate("config", f"'{number}", "acme")
    told = SyncOutboxProducer(connection, OUTBOX)  # sqlite3 tells its own
    told.invalidate("config", "'2", "acme")
    found = connection.execute("SELECT json_extract(command, '$.resource_id') FROM cachebus_outbox").fetchall()
    connection.close()
    assert found == [("'0",), ("'1",), ("'2",)]
    connection.close()


def test_paramstyles_that_no_driver_here_speaks() -> None:
    seen: list[Any] = []

    class Cursor:
        def execute(self, *statement: Any) -> None:
            seen.append(statement)

        def close(self) -> None:
            seen.append("closed")

    class Connection:
        cursor = Cursor

    writer(Connection(), "numeric")(Connection(), Insert("t"), [("n", "a"), ("n", "b")])
    assert seen == [("INSERT INTO t (namespace, command) VALUES (:1, :2), (:3, :4)", ["n", "a", "n", "b"]), "closed"]


async def test_without_an_outbox_the_environments_is_taken(tables: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CACHEBUS_NAMESPACE", "elsewhere")
    async with connected(tables) as connection:
        async with connection.transaction():
            await OutboxProducer(connection).invalidate("config", "x", "acme")
        row = await connection.fetchrow("SELECT namespace, command FROM cachebus_outbox")
    assert row["namespace"] == "elsewhere"
    assert json.loads(row["command"])["op"] == "invalidate"
