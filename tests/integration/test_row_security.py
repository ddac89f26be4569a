"""Row-level security that hides rows from a worker is told, by command, and the SQL that is told mends it."""

from __future__ import annotations

from collections.abc import AsyncIterator

import asyncpg
import pytest

from cachebus.consumers.cdc.slot import own_tables, storage
from cachebus.consumers.outbox import OutboxRelay, RelayOptions, create_tables
from cachebus.consumers.outbox.postgres import PostgresOutbox
from cachebus.consumers.worker.source import Finding
from tests.conftest import connected
from tests.support.caches import until
from tests.support.outbox import QUICKLY, invalidation, put, running, settings

ROLE = "shut_out_of_the_tests"
EACH = "".join(
    f"CREATE POLICY p_{command} ON T FOR {command} TO {{{command}}} {check};"
    for command, check in {
        "select": "USING (true)",
        "insert": "WITH CHECK (true)",
        "update": "USING (true)",
        "delete": "USING (true)",
    }.items()
)
ALL = dict.fromkeys(("select", "insert", "update", "delete"), "PUBLIC")
WHOLE = "CREATE POLICY whole ON T USING (true) WITH CHECK (true);"
HIDES = {
    "no policy": "SELECT 1;",
    "another role's alone": "CREATE POLICY app ON T TO pg_monitor USING (true) WITH CHECK (true);",
    "a name that is taken": "CREATE POLICY cachebus ON T TO pg_monitor USING (true); CREATE POLICY cachebus_2 ON T "
    "TO pg_monitor USING (true);",
    "a restrictive one": f"{WHOLE} CREATE POLICY few ON T AS RESTRICTIVE USING (namespace = 'no');",
    "restrictive ones with odd names": f'{WHOLE} CREATE POLICY "a B" ON T AS RESTRICTIVE FOR UPDATE USING (false); '
    'CREATE POLICY "c""D" ON T AS RESTRICTIVE FOR SELECT USING (false);',
    "a restrictive one alone": "CREATE POLICY few ON T AS RESTRICTIVE USING (namespace = 'no');",
    "a part of the rows": "CREATE POLICY part ON T USING (namespace = 'no');",
    "an update of another role's": EACH.format_map({**ALL, "update": "pg_monitor"}),
    "a select of another role's": EACH.format_map({**ALL, "select": "pg_monitor"}),
    "a delete of another role's": EACH.format_map({**ALL, "delete": "pg_monitor"}),
    "an update that may not be written": f"{EACH.format_map({**ALL, 'update': 'pg_monitor'})}"
    "CREATE POLICY marks ON T FOR UPDATE USING (true) WITH CHECK (waits_for = 7);",
}
SHOWS = {
    "for each command": EACH.format_map(ALL),
    "for all": WHOLE,
    "for a role that it has": "CREATE POLICY mine ON T TO group_of_the_tests USING (true);",
    "a restrictive one of another role": f"{WHOLE} CREATE POLICY x ON T AS RESTRICTIVE TO pg_monitor USING (false);",
    "a restrictive one that restricts nothing": f"{WHOLE} CREATE POLICY x ON T AS RESTRICTIVE USING (true);",
    "a restrictive one for a command that is not needed": f"{WHOLE} CREATE POLICY x ON T AS RESTRICTIVE FOR INSERT "
    "WITH CHECK (false);",
}


@pytest.fixture
async def owner(database: str) -> AsyncIterator[asyncpg.Connection]:
    """The connection of who may do all; the tables are there, and the role with its rights."""
    await create_tables(database)
    async with connected(database) as connection:
        await connection.execute(
            f"CREATE ROLE {ROLE} LOGIN; CREATE ROLE group_of_the_tests; GRANT group_of_the_tests TO {ROLE};"
            f"GRANT SELECT, UPDATE, DELETE ON cachebus_outbox TO {ROLE};"
            f"GRANT INSERT ON cachebus_outbox_dead TO {ROLE};"
            f"GRANT SELECT, INSERT, UPDATE ON cachebus_outbox_relays TO {ROLE};"
        )
        try:
            yield connection
        finally:
            await connection.execute(f"DROP OWNED BY {ROLE}, group_of_the_tests; DROP ROLE {ROLE}, group_of_the_tests")


def as_role(database: str) -> str:
    """The URL of the database for the role."""
    return database.replace("//postgres@", f"//{ROLE}@")


async def seen(database: str) -> tuple[list[Finding], int]:
    """What a relay of the role finds, and how many rows it takes."""
    async with PostgresOutbox(as_role(database), "cachebus", RelayOptions()).opened() as session:
        return (await session.look()).findings, len((await session.take(10, ())).items)


@pytest.mark.parametrize("name", HIDES)
async def test_what_hides_rows_from_a_relay_is_told_and_mended_by_what_is_told(
    database: str, owner: asyncpg.Connection, name: str
) -> None:
    await put(owner, invalidation("x"))
    assert await seen(database) == ([], 1)
    await owner.execute("ALTER TABLE cachebus_outbox ENABLE ROW LEVEL SECURITY")
    await owner.execute(HIDES[name].replace(" ON T ", " ON cachebus_outbox "))
    (finding,), _ = await seen(database)
    assert (finding.assumption, finding.subject) == ("rights", '"cachebus_outbox"')
    await owner.execute(finding.remedy)
    assert await seen(database) == ([], 1)


@pytest.mark.parametrize("name", SHOWS)
async def test_what_hides_no_row_is_not_told(database: str, owner: asyncpg.Connection, name: str) -> None:
    await put(owner, invalidation("x"))
    await owner.execute("ALTER TABLE cachebus_outbox ENABLE ROW LEVEL SECURITY")
    await owner.execute(SHOWS[name].replace(" ON T ", " ON cachebus_outbox "))
    assert await seen(database) == ([], 1)


async def test_a_table_of_the_dead_that_takes_no_row_of_the_relays_is_told(
    database: str, owner: asyncpg.Connection
) -> None:
    await owner.execute("ALTER TABLE cachebus_outbox_dead ENABLE ROW LEVEL SECURITY")
    (finding,), _ = await seen(database)
    assert (finding.subject, finding.stops) == ('"cachebus_outbox_dead"', False)
    await owner.execute(finding.remedy)
    assert await seen(database) == ([], 0)


@pytest.mark.parametrize("name", HIDES)
async def test_what_hides_rows_of_a_slots_tables_is_told_too(
    database: str, owner: asyncpg.Connection, name: str
) -> None:
    async with connected(as_role(database)) as relay:
        for table in storage.OWN_TABLES:
            await owner.execute(storage.MAKE[table])
            await owner.execute(f"GRANT ALL ON {table} TO {ROLE}")
        assert await own_tables.storage_findings(relay, {}) == []
        await owner.execute(f"ALTER TABLE {storage.SLOTS} ENABLE ROW LEVEL SECURITY")
        policies = HIDES[name].replace("waits_for", "losses").replace(" ON T ", f" ON {storage.SLOTS} ")
        await owner.execute(policies)
        (finding,) = await own_tables.storage_findings(relay, {})
        assert finding.subject == storage.SLOTS
        await owner.execute(finding.remedy)
        assert await own_tables.storage_findings(relay, {}) == []


async def test_what_is_read_slowly_is_read_in_the_end(
    owner: asyncpg.Connection, database: str, redis_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As where millions of rows that are gone are passed: here each row takes its time."""
    monkeypatch.setattr("cachebus.consumers.outbox.database.COMMAND_TIMEOUT_S", 0.1)
    await owner.execute(
        "CREATE FUNCTION slow() RETURNS boolean LANGUAGE plpgsql AS 'BEGIN PERFORM pg_sleep(0.15); RETURN true; END';"
        "CREATE POLICY slow ON cachebus_outbox USING (slow());"
        "ALTER TABLE cachebus_outbox ENABLE ROW LEVEL SECURITY"
    )
    relay = OutboxRelay(as_role(database), settings(redis_url), options=QUICKLY)
    async with running(relay):
        await put(owner, invalidation("x"))
        await until(lambda: relay.meters.count("applied") == 1)
        assert relay.source._known.patience > 1
