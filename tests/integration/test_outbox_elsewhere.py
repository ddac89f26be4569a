"""Rows that lie in another table than a relay's are told, also by a relay that was started since."""

from __future__ import annotations

import pytest

from cachebus.consumers.outbox import RelayOptions, create_tables, elsewhere
from cachebus.consumers.outbox.postgres import PostgresOutbox
from cachebus.consumers.worker.source import Finding
from tests.conftest import connected
from tests.support.changes import tell
from tests.support.outbox import invalidation, put, waiting

MOVED = {
    "renamed": ["ALTER TABLE cachebus_outbox RENAME TO before"],
    "renamed with the dead": [
        "ALTER TABLE cachebus_outbox RENAME TO before",
        "ALTER TABLE cachebus_outbox_dead RENAME TO before_dead",
    ],
    "in another schema": ["CREATE SCHEMA old", "ALTER TABLE cachebus_outbox SET SCHEMA old"],
}


@pytest.fixture(autouse=True)
def at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """Rows need not lie for long to be told."""
    monkeypatch.setattr(elsewhere, "UNSERVED_S", 0)


async def findings(database: str, table: str = "public.cachebus_outbox") -> list[Finding]:
    """What a relay finds that is started now."""
    async with PostgresOutbox(database, "cachebus", RelayOptions(table)).opened() as session:
        return (await session.look()).findings


@pytest.mark.parametrize("how", MOVED)
async def test_rows_in_a_table_that_was_swapped_before_the_start_are_told_and_can_be_moved(
    database: str, how: str
) -> None:
    await create_tables(database)
    async with connected(database) as connection:
        await put(connection, invalidation("x"), invalidation("y"))
    await tell(database, MOVED[how])
    await create_tables(database)
    (found,) = await findings(database)
    assert (found.assumption, found.stops) == ("table", False)
    assert "where no relay is" in found.problem
    await tell(database, [found.remedy])
    assert await findings(database) == []
    assert await waiting(database) == 2


async def test_rows_of_another_namespace_stay_where_its_relay_is(database: str) -> None:
    await create_tables(database)
    await create_tables(database, "second")
    async with connected(database) as connection:
        insert = "INSERT INTO second (namespace, command) VALUES ($1, '')"
        await connection.executemany(insert, [("cachebus",), ("shop",), ("shop",)])
        async with PostgresOutbox(database, "shop", RelayOptions("second")).opened():
            (found,) = await findings(database)
            await connection.execute(found.remedy)
        assert await connection.fetchval("SELECT array_agg(namespace) FROM second") == ["shop", "shop"]
    assert await waiting(database) == 1


async def test_rows_of_a_namespace_without_a_relay_are_not_told_to_be_deleted(database: str) -> None:
    await create_tables(database)
    async with connected(database) as connection:
        await connection.execute("INSERT INTO cachebus_outbox (namespace, command) VALUES ('it''s', '')")
        (found,) = await findings(database, "cachebus_outbox")
        assert "delete" not in found.remedy.lower()
        assert "--namespace it's" in found.remedy
        await connection.execute(found.remedy[found.remedy.index("UPDATE") :])
    assert await findings(database, "cachebus_outbox") == []
    assert await waiting(database) == 1


async def test_a_copy_that_nobody_writes_to_and_a_table_of_another_relay_are_not_told(database: str) -> None:
    await create_tables(database)
    await create_tables(database, "other")
    async with connected(database) as connection:
        await put(connection, invalidation("x"))
        await tell(database, ["CREATE TABLE copied AS SELECT * FROM cachebus_outbox"])
        await connection.execute("INSERT INTO other (command) SELECT command FROM copied")
        async with PostgresOutbox(database, "cachebus", RelayOptions("other")).opened():
            assert await findings(database) == []
        (found,) = await findings(database)
        assert "public.other" in found.problem


async def test_rows_elsewhere_stay_told_while_another_writer_has_their_table_locked(database: str) -> None:
    await create_tables(database)
    await create_tables(database, "second")
    async with connected(database) as writes:
        await writes.execute("INSERT INTO second (command) VALUES ('')")
        async with PostgresOutbox(database, "cachebus", RelayOptions("public.cachebus_outbox")).opened() as session:
            (found,) = (await session.look()).findings
            assert "where no relay is" in found.problem
            await writes.execute("BEGIN; LOCK TABLE second IN ACCESS EXCLUSIVE MODE")
            assert (await session.look()).findings == [found]
            await writes.execute("TRUNCATE second; COMMIT")
            assert (await session.look()).findings == []
