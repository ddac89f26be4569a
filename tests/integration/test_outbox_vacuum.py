"""Rows that are gone, and that the database can't forget: told with who keeps them, and mended by what is told."""

from __future__ import annotations

import pytest

from cachebus.consumers.outbox import RelayOptions, create_tables, vacuum
from cachebus.consumers.outbox.postgres import PostgresOutbox
from cachebus.consumers.worker.source import Finding
from tests.conftest import connected
from tests.support.caches import until
from tests.support.changes import tell

GONE = [
    "INSERT INTO cachebus_outbox (command) SELECT '{}' FROM generate_series(1, 2000)",
    "DELETE FROM cachebus_outbox",
]


@pytest.fixture(autouse=True)
def few(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(vacuum, "MOST", 1000)


async def findings(database: str) -> list[Finding]:
    async with PostgresOutbox(database, "cachebus", RelayOptions()).opened() as session:
        return (await session.look()).findings


async def test_who_keeps_rows_that_are_gone_is_told(database: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(vacuum, "OLD_S", 0.0)
    await create_tables(database)
    await tell(database, ["ALTER TABLE cachebus_outbox SET (autovacuum_enabled = false)"])
    async with connected(database) as report:
        pid = await report.fetchval("SELECT pg_backend_pid()")
        await report.execute("SET application_name = 'report'; BEGIN ISOLATION LEVEL REPEATABLE READ; SELECT 1")
        await tell(database, [*GONE, "VACUUM cachebus_outbox"])
        [found] = await findings(database)
        assert found.assumption == "vacuum"
        assert f"each look passes them: a transaction of the session {pid} (report), begun " in found.problem
        assert found.remedy == f'SELECT pg_terminate_backend({pid}); VACUUM "cachebus_outbox";'
        assert not (found.stops or found.missed)

        async def is_mended() -> bool:
            """A session that is told to end takes a moment, and VACUUM does not wait for it."""
            await tell(database, [part for part in found.remedy.split(";") if part])
            return await findings(database) == []

        await until(is_mended)


async def test_one_that_has_written_and_stands_in_its_transaction_is_named(
    database: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It holds no snapshot, and an innocent session that was begun later must not be named in its place."""
    monkeypatch.setattr(vacuum, "OLD_S", 0.0)
    await create_tables(database)
    await tell(database, ["ALTER TABLE cachebus_outbox SET (autovacuum_enabled = false)", "CREATE TABLE other (a int)"])
    async with connected(database) as writer, connected(database) as innocent:
        pid = await writer.fetchval("SELECT pg_backend_pid()")
        await writer.execute("BEGIN; INSERT INTO other VALUES (1)")
        await tell(database, GONE)
        await innocent.execute("BEGIN ISOLATION LEVEL REPEATABLE READ; SELECT 1")
        await tell(database, ["VACUUM cachebus_outbox"])
        [found] = await findings(database)
        assert f"SELECT pg_terminate_backend({pid});" in found.remedy


async def test_where_nobody_is_seen_it_is_told_where_to_look(database: str) -> None:
    await create_tables(database)
    await tell(database, ["ALTER TABLE cachebus_outbox SET (autovacuum_enabled = false)", *GONE])
    [found] = await findings(database)
    assert "about 2000 rows that are gone" in found.problem
    vacuums, _, _ = found.remedy.partition(";")
    await tell(database, [vacuums])
    assert await findings(database) == []
