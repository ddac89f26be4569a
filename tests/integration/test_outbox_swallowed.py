"""Rows that the database swallows: it raises nothing, and there is no row. A producer raises, and a relay tells of what
may do so."""

from __future__ import annotations

import sqlite3
from contextlib import closing
from pathlib import Path
from typing import Any

import psycopg
import pytest
from sqlalchemy import create_engine

from cachebus import ConfigError, Settings
from cachebus.consumers.outbox import OutboxRelay, RelayOptions, create_tables
from cachebus.consumers.outbox.kinds import source_of
from cachebus.consumers.worker.source import Look
from cachebus.producers import Outbox, OutboxProducer, SyncOutboxProducer
from tests.conftest import connected
from tests.support.caches import nodes, until
from tests.support.changes import tell
from tests.support.logs import told as lines_told
from tests.support.outbox import invalidation, put, running, settings, waiting
from tests.support.outbox_connections import ASYNC, SYNC, style_of

OUTBOX = Outbox(Settings())
RULE = "CREATE RULE swallows AS ON INSERT TO cachebus_outbox DO INSTEAD NOTHING"
FUNCTION = "CREATE FUNCTION swallow() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN {} END $$"
TRIGGER = "CREATE TRIGGER swallows BEFORE INSERT ON cachebus_outbox FOR EACH ROW EXECUTE FUNCTION swallow()"
SOME = "IF NEW.command LIKE '%odd%' THEN RETURN NULL; END IF; RETURN NEW;"
SWALLOWS = {"rule": [RULE], "trigger": [FUNCTION.format("RETURN NULL;"), TRIGGER]}
LITE = """\
CREATE TRIGGER swallows BEFORE INSERT ON cachebus_outbox WHEN NEW.command LIKE '%odd%'
BEGIN SELECT RAISE(IGNORE); END"""


@pytest.fixture
async def tables(database: str) -> str:
    """A database with an outbox."""
    await create_tables(database)
    return database


# -- producers -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("how", SWALLOWS)
@pytest.mark.parametrize("kind", ASYNC)
async def test_a_row_that_the_database_swallows_raises(tables: str, kind: str, how: str) -> None:
    await tell(tables, SWALLOWS[how])
    async with ASYNC[kind](tables) as (connection, _, rollback):
        producer = OutboxProducer(connection, OUTBOX)
        with pytest.raises(ConfigError, match=r"inserted 0 of 1 rows into .*cachebus worker check outbox"):
            await producer.invalidate("config", "x", "acme")
        await rollback()


@pytest.mark.parametrize("how", SWALLOWS)
@pytest.mark.parametrize("kind", SYNC)
async def test_so_it_does_for_the_sync_twin(tables: str, kind: str, how: str) -> None:
    await tell(tables, SWALLOWS[how])
    with SYNC[kind](tables) as connection:
        producer = SyncOutboxProducer(connection, OUTBOX, paramstyle=style_of(kind))
        with pytest.raises(ConfigError, match="inserted 0 of 1 rows"):
            producer.invalidate("config", "x", "acme")
        connection.rollback()


async def test_rows_that_a_trigger_puts_into_a_child_are_written_where_that_is_said(
    tables: str, redis_url: str
) -> None:
    """As tables were partitioned once: the database counts none."""
    goes = "INSERT INTO part (namespace, id, command) VALUES (NEW.namespace, NEW.id, NEW.command); RETURN NULL;"
    await tell(tables, ["CREATE TABLE part () INHERITS (cachebus_outbox)", FUNCTION.format(goes), TRIGGER])
    child = Outbox(Settings(), counts_rows=False)
    async with nodes(redis_url, 1) as (cache,), running(OutboxRelay(tables, settings(redis_url))):
        await cache.set("config", "x", 1, tenant_id="acme")
        async with connected(tables) as connection, connection.transaction():
            with pytest.raises(ConfigError, match="counts_rows=False"):
                await OutboxProducer(connection, OUTBOX).invalidate("config", "y", "acme")
            await OutboxProducer(connection, child).invalidate("config", "x", "acme")

        async def is_gone() -> bool:
            return await cache.get("config", "x", "acme") is None

        await until(is_gone)


async def test_so_does_one_of_several_rows(tables: str) -> None:
    await tell(tables, [FUNCTION.format(SOME), TRIGGER])

    async def several() -> None:
        async with connected(tables) as connection, connection.transaction():
            together = OutboxProducer(connection, OUTBOX).together()
            async with together as producer:
                for number in ("1", "odd", "3"):
                    await producer.invalidate("config", number, "acme")

    with pytest.raises(ConfigError, match="inserted 2 of 3 rows"):
        await several()
    assert await waiting(tables) == 0


async def test_so_does_a_row_in_a_pipeline_which_tells_later_what_was_done(tables: str) -> None:
    await tell(tables, SWALLOWS["trigger"])
    async with await psycopg.AsyncConnection.connect(tables) as connection:
        async with connection.pipeline():
            with pytest.raises(ConfigError, match="inserted 0 of 1 rows"):
                await OutboxProducer(connection, OUTBOX).invalidate("config", "x", "acme")
        await connection.rollback()
    with psycopg.connect(tables) as sync:
        with sync.pipeline(), pytest.raises(ConfigError, match="inserted 0 of 1 rows"):
            SyncOutboxProducer(sync, OUTBOX).invalidate("config", "x", "acme")
        sync.rollback()


async def test_a_connection_that_has_met_a_rule_writes_again_once_it_is_dropped(tables: str) -> None:
    """What was prepared under a rule stays nothing."""
    async with connected(tables) as connection:
        producer = OutboxProducer(connection, OUTBOX)

        async def invalidated() -> None:
            async with connection.transaction():
                await producer.invalidate("config", "x", "acme")

        await invalidated()
        await tell(tables, [RULE])
        for _ in range(2):
            with pytest.raises(ConfigError, match="inserted 0 of 1 rows"):
                await invalidated()
        await tell(tables, ["DROP RULE swallows ON cachebus_outbox"])
        await invalidated()
    assert await waiting(tables) == 2


async def test_so_does_a_row_that_sqlite_swallows(tmp_path: Path) -> None:
    url = f"sqlite:///{tmp_path / 'o.db'}"
    await create_tables(url)
    with closing(sqlite3.connect(tmp_path / "o.db")) as connection:
        connection.execute(LITE)
        refused(connection, None)
        refused(connection, "qmark")
    engine = create_engine(url)
    with engine.connect() as connection:
        refused(connection, None)
    engine.dispose()


def refused(connection: Any, paramstyle: Any) -> None:
    """A row that is swallowed, after one that is not."""
    producer = SyncOutboxProducer(connection, OUTBOX, paramstyle=paramstyle)
    producer.invalidate("config", "fine", "acme")
    with pytest.raises(ConfigError, match="inserted 0 of 1 rows"):
        producer.invalidate("config", "odd", "acme")
    with pytest.raises(ConfigError, match="inserted 1 of 2 rows"):
        several(producer)
    connection.rollback()


def several(producer: SyncOutboxProducer) -> None:
    """Two rows, of which one is swallowed."""
    with producer.together() as both:
        both.invalidate("config", "odd", "acme")
        both.invalidate("config", "fine", "acme")


# -- relays ----------------------------------------------------------------------------------------------------


async def look_at(url: str) -> Look:
    """What a look alone finds."""
    async with source_of(url, "cachebus", RelayOptions()).opened() as session:
        return await session.look()


@pytest.mark.parametrize(
    "does",
    [
        "NOTHING",
        "INSERT INTO audit (command) VALUES (NEW.command)",
        "(INSERT INTO audit (command) VALUES (NEW.command); DELETE FROM audit WHERE false)",
    ],
)
async def test_a_relay_tells_of_a_rule_that_surely_swallows_rows(tables: str, does: str) -> None:
    await tell(tables, ["CREATE TABLE audit (command text)", RULE.replace("NOTHING", does)])
    look = await look_at(tables)
    (found,) = look.findings
    assert (found.assumption, found.missed, found.stops) == ("inserts", True, False)
    await tell(tables, [found.remedy])
    assert (await look_at(tables)).findings == []


async def test_what_was_swallowed_meanwhile_is_made_up_for(
    tables: str, redis_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("cachebus.consumers.worker.watcher.LOOK_EVERY_S", 0.05)
    async with nodes(redis_url, 1) as (cache,), running(OutboxRelay(tables, settings(redis_url))) as relay:
        await until(lambda: relay.health.ready)
        await tell(tables, [RULE])
        await until(lambda: not relay.health.is_up("inserts"))
        await cache.set("config", "x", 1, tenant_id="acme")
        async with connected(tables) as connection:
            await put(connection, invalidation("x"))
        await tell(tables, ["DROP RULE swallows ON cachebus_outbox"])

        async def is_gone() -> bool:
            return await cache.get("config", "x", "acme") is None

        await until(is_gone)
        await until(lambda: relay.health.ready)


@pytest.mark.parametrize(
    "sql",
    [
        f"{RULE}; ALTER TABLE cachebus_outbox DISABLE RULE swallows",
        f"{RULE.replace('INSERT', 'DELETE')}; ALTER TABLE cachebus_outbox DISABLE RULE swallows",
        f"{RULE.replace('INSTEAD', 'ALSO')}",
        """\
        CREATE TABLE part () INHERITS (cachebus_outbox);
        CREATE RULE goes AS ON INSERT TO cachebus_outbox DO INSTEAD
            INSERT INTO part (namespace, id, command) VALUES (NEW.namespace, NEW.id, NEW.command)""",
        """\
        CREATE TABLE part () INHERITS (cachebus_outbox);
        CREATE TABLE below () INHERITS (part);
        CREATE RULE goes AS ON INSERT TO cachebus_outbox DO INSTEAD
            INSERT INTO below (namespace, id, command) VALUES (NEW.namespace, NEW.id, NEW.command)""",
    ],
)
async def test_a_rule_that_swallows_nothing_is_not_told(tables: str, sql: str) -> None:
    await tell(tables, [sql])
    assert (await look_at(tables)).findings == []


@pytest.mark.parametrize(
    "does",
    [
        "WHERE NEW.namespace = 'nobody' DO INSTEAD NOTHING",
        "DO INSTEAD INSERT INTO other (namespace, command) VALUES (NEW.namespace, NEW.command)",
        "DO INSTEAD SELECT puts(NEW.command)",
    ],
)
async def test_of_a_rule_that_may_swallow_rows_it_warns(tables: str, does: str) -> None:
    rule = f"CREATE RULE swallows AS ON INSERT TO cachebus_outbox {does}"
    puts = "CREATE FUNCTION puts(text) RETURNS void LANGUAGE sql AS $$ SELECT $$"
    await tell(tables, ["CREATE TABLE other (LIKE cachebus_outbox INCLUDING ALL)", puts, rule])
    look = await look_at(tables)
    assert look.findings == []
    (warning,) = look.warnings
    assert "the rule 'swallows' may swallow rows" in warning


@pytest.mark.parametrize("hides", ["LOCK TABLE cachebus_outbox", "DROP TABLE cachebus_outbox"])
async def test_a_look_that_does_not_get_so_far_has_not_seen_a_rule_gone(tables: str, hides: str) -> None:
    """What is over is made up for, and all caches are empty then."""
    await tell(tables, [RULE])
    async with source_of(tables, "cachebus", RelayOptions()).opened() as session, connected(tables) as other:
        assert [finding.assumption for finding in (await session.look()).findings] == ["inserts"]
        async with other.transaction():
            await other.execute(hides)
            assert {"locks", "inserts"} == {finding.assumption for finding in (await session.look()).findings}


async def test_a_relay_warns_of_a_trigger_that_may_swallow_rows(tables: str) -> None:
    await tell(tables, SWALLOWS["trigger"])
    source = source_of(tables, "cachebus", RelayOptions())
    with lines_told("WARNING") as told:
        for _ in range(2):
            async with source.opened() as session:
                look = await session.look()
                assert look.findings == []
                (warning,) = look.warnings
    assert len(told) == 1, "once"
    assert warning in told[0]
    await tell(tables, [warning.partition("If it does: ")[2]])
    assert (await look_at(tables)).warnings == []


DELETES = FUNCTION.format("DELETE FROM cachebus_outbox WHERE id = NEW.id; RETURN NULL;")
EMPTIES = FUNCTION.format("DELETE FROM cachebus_outbox; RETURN NULL;")
NOTIFIES = FUNCTION.format("PERFORM pg_notify('x', ''); RETURN NULL;")
AFTER = TRIGGER.replace("BEFORE", "AFTER")


@pytest.mark.parametrize(
    "sql", [[DELETES, AFTER], [NOTIFIES, AFTER], [EMPTIES, AFTER.replace("EACH ROW", "EACH STATEMENT")]]
)
async def test_of_a_trigger_that_runs_after_rows_are_inserted_it_warns_without_alarm(
    tables: str, sql: list[str]
) -> None:
    await tell(tables, sql)
    look = await look_at(tables)
    assert look.findings == []
    (warning,) = look.warnings
    assert "That is as it should be, unless it removes them" in warning
    await tell(tables, [warning.partition("If it does: ")[2]])
    assert list((await look_at(tables)).warnings) == []


async def test_a_trigger_that_notifies_once_a_statement_is_not_told(tables: str) -> None:
    await tell(tables, [NOTIFIES, AFTER.replace("EACH ROW", "EACH STATEMENT")])
    assert list((await look_at(tables)).warnings) == []


@pytest.mark.parametrize("due_at", ["'infinity'", "now() + interval '2 years'"])
async def test_rows_that_a_trigger_has_due_never_are_told_and_taken_by_what_is_told(tables: str, due_at: str) -> None:
    await tell(tables, [FUNCTION.format(f"NEW.due_at := {due_at}; RETURN NEW;"), TRIGGER])
    async with connected(tables) as connection:
        await put(connection, invalidation("x"), invalidation("y"))
        await put(connection, invalidation("x"), namespace="other's")
        await connection.execute("DROP TRIGGER swallows ON cachebus_outbox")
        await connection.execute(
            "INSERT INTO cachebus_outbox (command, due_at) VALUES ('', now() + interval '300 days')"
        )
        look = await look_at(tables)
        assert (look.findings, look.backlog) == ([], 0)
        (warning,) = look.warnings
        assert "due never" in warning
        await connection.execute(warning.partition("and then: ")[2])
    look = await look_at(tables)
    assert (list(look.warnings), look.backlog) == ([], 2)


async def test_so_are_those_of_sqlite(tmp_path: Path) -> None:
    url = f"sqlite:///{tmp_path / 'o.db'}"
    await create_tables(url)
    with closing(sqlite3.connect(tmp_path / "o.db", isolation_level=None)) as connection:
        connection.execute("INSERT INTO cachebus_outbox (command, due_at) VALUES ('', 9e999), ('', '2999-01-01')")
        (warning,) = (await look_at(url)).warnings
        assert "due never" in warning
        connection.execute(warning.partition("and then: ")[2])
        due = connection.execute("SELECT due_at FROM cachebus_outbox ORDER BY id").fetchall()
    assert due == [(0.0,), ("2999-01-01",)]
    assert (await look_at(url)).warnings == []


async def test_it_warns_of_one_of_a_partition(database: str) -> None:
    await create_tables(database)
    await tell(
        database,
        [
            "ALTER TABLE cachebus_outbox RENAME TO before",
            "CREATE TABLE cachebus_outbox (LIKE before INCLUDING ALL) PARTITION BY LIST (namespace)",
            "CREATE TABLE part PARTITION OF cachebus_outbox DEFAULT",
            FUNCTION.format("RETURN NULL;"),
            TRIGGER,
            TRIGGER.replace("swallows", "other").replace("cachebus_outbox", "part"),
        ],
    )
    warnings = (await look_at(database)).warnings
    assert [warning.partition("If it does: ")[2] for warning in warnings] == [
        "DROP TRIGGER other ON part;",
        "DROP TRIGGER swallows ON cachebus_outbox;",
    ]


async def test_a_relay_of_sqlite_warns_too(tmp_path: Path) -> None:
    url = f"sqlite:///{tmp_path / 'o.db'}"
    await create_tables(url)
    with closing(sqlite3.connect(tmp_path / "o.db")) as connection:
        connection.execute(
            "CREATE TRIGGER fine AFTER INSERT ON cachebus_outbox BEGIN DELETE FROM cachebus_outbox_dead WHERE 0; END"
        )
        assert (await look_at(url)).warnings == []
        for does in ("DELETE FROM cachebus_outbox", "UPDATE cachebus_outbox SET due_at = 9e999"):
            connection.execute(
                f"CREATE TRIGGER after AFTER INSERT ON cachebus_outbox BEGIN {does} WHERE id = NEW.id; END"
            )
            (warning,) = (await look_at(url)).warnings
            assert "unless it removes them" in warning
            connection.execute(warning.partition("If it does: ")[2])
        connection.execute(LITE.replace("cachebus_outbox", "CacheBus_Outbox"))
        look = await look_at(url)
        (warning,) = look.warnings
        connection.execute(warning.partition("If it does: ")[2])
    assert look.findings == []
    assert (await look_at(url)).warnings == []
