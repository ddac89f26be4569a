"""What a relay assumes of its tables: told while it is not so, with the SQL that mends it, and mended by that."""

from __future__ import annotations

import asyncpg
import pytest

from cachebus.consumers.outbox import OutboxRelay, RelayOptions, create_tables
from cachebus.consumers.outbox.postgres import PostgresOutbox, PostgresSession
from cachebus.consumers.worker.source import Finding, Look
from tests.conftest import connected
from tests.support.caches import until
from tests.support.logs import told as lines_told
from tests.support.outbox import QUICKLY, invalidation, put, running, settings, waiting

ROLE = "relay_of_the_tests"
BROKEN = {
    "it is not there": ("DROP TABLE cachebus_outbox", "table", True),
    "what can't be applied lies": ("DROP TABLE cachebus_outbox_dead", "table", False),
    "unlogged": ("ALTER TABLE cachebus_outbox SET UNLOGGED", "table", False),
    "no index": ("ALTER TABLE cachebus_outbox DROP CONSTRAINT cachebus_outbox_pkey", "table", False),
    "waits_for: it is not there": ("ALTER TABLE cachebus_outbox DROP COLUMN waits_for", "columns", True),
    "attempts: it is not there": ("ALTER TABLE cachebus_outbox DROP COLUMN attempts", "columns", True),
    'dead".reason: it is not there': ("ALTER TABLE cachebus_outbox_dead DROP COLUMN reason", "columns", False),
    "of the type jsonb": (
        "ALTER TABLE cachebus_outbox ALTER COLUMN command TYPE jsonb USING command::jsonb",
        "columns",
        True,
    ),
    "has no default": ("ALTER TABLE cachebus_outbox ALTER COLUMN waits_for DROP DEFAULT", "columns", False),
    "does not know it": ('ALTER TABLE cachebus_outbox_dead ADD COLUMN "O dd" int NOT NULL', "columns", False),
    "does not fire": ("ALTER TABLE cachebus_outbox DISABLE TRIGGER cachebus_outbox_notify", "trigger", False),
}


async def look_at(database: str) -> Look:
    """What a look alone finds."""
    async with PostgresOutbox(database, "cachebus", RelayOptions()).opened() as session:
        return await session.look()


@pytest.mark.parametrize("problem", BROKEN)
async def test_what_is_wrong_is_told_and_the_remedy_mends_it(database: str, problem: str) -> None:
    sql, assumption, stops = BROKEN[problem]
    await create_tables(database)
    assert (await look_at(database)).findings == []
    async with connected(database) as connection:
        await connection.execute(sql)
        first, *more = (await look_at(database)).findings
        assert problem in str(first)
        assert (first.assumption, first.stops, first.missed) == (assumption, stops, False)
        for finding in (first, *more):  # with a column its index goes
            await mended(database, connection, finding)
    assert (await look_at(database)).findings == []


async def mended(database: str, connection: asyncpg.Connection, finding: Finding) -> None:
    """Do what the finding says."""
    if finding.remedy.startswith("cachebus worker outbox"):
        assert finding.remedy == "cachebus worker outbox --create-table --table cachebus_outbox"
        await create_tables(database)
    else:
        await connection.execute(finding.remedy)


async def test_rights(database: str) -> None:
    async with connected(database) as connection:
        await connection.execute("CREATE SCHEMA app")
        await create_tables(database, "app.o")
        await connection.execute(f"CREATE ROLE {ROLE} LOGIN")
        options = RelayOptions(table="app.o")
        try:
            url = database.replace("//postgres@", f"//{ROLE}@")

            async def findings() -> list[Finding]:
                async with PostgresOutbox(url, "cachebus", options).opened() as session:
                    return (await session.look()).findings

            (finding,) = await findings()
            assert "schema may not be used" in str(finding) and finding.stops
            await connection.execute(f"GRANT USAGE ON SCHEMA app TO {ROLE}")
            found = await findings()
            assert [one.stops for one in found] == [True, False, False]
            for finding in found:
                await connection.execute(finding.remedy)
            assert await findings() == []
            await connection.execute("ALTER TABLE app.o ENABLE ROW LEVEL SECURITY")
            (finding,) = await findings()
            assert "row-level security" in str(finding)
            await connection.execute(finding.remedy)
            assert await findings() == []
        finally:
            await connection.execute(f"DROP OWNED BY {ROLE}; DROP ROLE {ROLE}")


@pytest.fixture
def often(monkeypatch: pytest.MonkeyPatch) -> None:
    """Relays look at their tables all the time."""
    monkeypatch.setattr("cachebus.consumers.worker.watcher.LOOK_EVERY_S", 0.05)
    monkeypatch.setattr("cachebus.consumers.worker.source_worker.STOPPED_S", 0.05)


@pytest.mark.usefixtures("often")
@pytest.mark.parametrize("problem", [name for name, (_, _, stops) in BROKEN.items() if stops])
async def test_what_breaks_while_it_works_is_told_and_once_mended_it_goes_on(
    database: str, redis_url: str, problem: str
) -> None:
    sql, assumption, _ = BROKEN[problem]
    await create_tables(database)
    async with connected(database) as connection, running(relay_of(database, redis_url)) as relay:
        await put(connection, invalidation("x"))
        await until(lambda: relay.meters.count("applied") == 1)
        await until(lambda: relay.health.ready)
        await connection.execute(sql)
        await until(lambda: not relay.health.is_up(assumption))
        assert problem in relay.health.as_dict()["parts"][assumption]["why"]
        for finding in (await look_at(database)).findings:
            await mended(database, connection, finding)
        await put(connection, invalidation("x"))
        await until(lambda: relay.meters.count("applied") == 2)
        await until(lambda: relay.health.ready)


def relay_of(database: str, redis_url: str) -> OutboxRelay:
    """A relay."""
    return OutboxRelay(database, settings(redis_url), options=QUICKLY)


async def swapped(connection: asyncpg.Connection, database: str) -> None:
    """Another table in the place of the one there was, as a migration does."""
    async with connection.transaction():
        await connection.execute("ALTER TABLE cachebus_outbox RENAME TO before")
        await connection.execute("CREATE TABLE cachebus_outbox (LIKE before INCLUDING ALL)")


@pytest.mark.usefixtures("often")
async def test_rows_in_a_table_that_was_swapped_for_another_are_told_and_can_be_moved(
    database: str, redis_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    await create_tables(database)
    async with connected(database) as connection, running(relay_of(database, redis_url)) as relay:
        await until(lambda: relay.health.ready)
        await swapped(connection, database)
        await connection.execute("INSERT INTO before (command) VALUES ($1)", invalidation("x"))
        await until(lambda: not relay.health.is_up("table"))
        why = relay.health.as_dict()["parts"]["table"]["why"]
        assert "rows lie in public.before" in why
        assert relay.meters.count("applied") == 0
        await connection.execute(why.partition("to mend it: ")[2])
        await until(lambda: relay.meters.count("applied") == 1)
        await until(lambda: relay.health.ready)
        with lines_told("ERROR") as told:
            await connection.execute("DROP TABLE before")  # which has none any more
            await put(connection, invalidation("x"))
            await until(lambda: relay.meters.count("applied") == 2)
            await looked(monkeypatch)
        assert told == []


async def looked(monkeypatch: pytest.MonkeyPatch) -> None:
    """When it has looked at its tables once more, and thought about it."""
    look, times = PostgresSession.look, 0

    async def looks(session: PostgresSession) -> Look:
        nonlocal times
        times += 1
        return await look(session)

    monkeypatch.setattr(PostgresSession, "look", looks)
    await until(lambda: times > 1)


@pytest.mark.usefixtures("often")
async def test_rows_that_went_with_their_table_are_told_as_missed(database: str, redis_url: str) -> None:
    await create_tables(database)
    with lines_told("WARNING") as told:
        async with connected(database) as connection, running(relay_of(database, redis_url)) as relay:
            await until(lambda: relay.health.ready)
            async with connection.transaction():
                await connection.execute("DROP TABLE cachebus_outbox")
            await create_tables(database)
            await until(lambda: any("nobody can name" in line for line in told))
            await put(connection, invalidation("x"))
            await until(lambda: relay.meters.count("applied") == 1)
            await until(lambda: relay.health.ready)
    assert any("made anew" in line for line in told)


async def test_rows_that_go_with_their_table_while_an_earlier_one_is_made_up_for_are_told_as_missed(
    database: str,
) -> None:
    async def made_anew() -> None:
        async with connected(database) as connection:
            await connection.execute("DROP TABLE cachebus_outbox")
        await create_tables(database)

    await create_tables(database)
    async with PostgresOutbox(database, "cachebus", RelayOptions()).opened() as session:
        assert not (await session.look()).findings
        await made_anew()
        first = (await session.look()).findings
        await made_anew()
        second = (await session.look()).findings
        assert [one.over for one in second] == [True]
        assert first != second, "it is due by itself"
        await made_anew()
        await session.made_up(second)
        assert [one.over for one in (await session.look()).findings] == [True]


async def test_rows_of_a_namespace_that_nobody_serves_are_told(database: str, redis_url: str) -> None:
    """Their writers are set up for other caches than any relay is."""
    await create_tables(database)
    async with connected(database) as connection:
        for name in ("b", "a", "a", "c'\n"):
            await connection.execute(
                "INSERT INTO cachebus_outbox (namespace, command, created_at) VALUES ($1, '', now() - interval '1 h')",
                name,
            )
        await put(connection, invalidation("x"), namespace="young")
        found = (await look_at(database)).findings
        assert [(one.assumption, one.stops) for one in found] == [("namespaces", False)] * 3
        assert "'a'" in str(found[0])
        assert "\n" not in "".join(map(str, found))
        async with PostgresOutbox(database, "a", RelayOptions()).opened() as other:
            assert len((await look_at(database)).findings) == 2
            assert len((await other.look()).findings) == 2
            assert await waiting(database, "a") == 2
