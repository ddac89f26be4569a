"""Rows of an outbox that something in the database keeps, though they were applied: nothing waits for them, they rest,
and the relay says what helps."""

from __future__ import annotations

import asyncio
import sqlite3
from collections.abc import AsyncIterator, Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import asyncpg
import pytest

from cachebus import Cache, ConfigError
from cachebus.consumers.outbox import OutboxRelay, RelayOptions, create_tables, elsewhere, letting, replay, standing
from cachebus.consumers.outbox.database import connected
from cachebus.consumers.outbox.letting import Resting
from cachebus.consumers.outbox.postgres import PostgresOutbox
from cachebus.consumers.outbox.sqlite import SqliteOutbox
from cachebus.consumers.worker import dead_letter_writer
from cachebus.consumers.worker.preflight import preflight
from cachebus.producers.outbox.table import OutboxTable
from cachebus.tools.servers.redis import EmbeddedServer
from tests.support.caches import nodes, until
from tests.support.logs import WITH_LEVEL, told
from tests.support.outbox import QUICKLY, invalidation, put, running, settings
from tests.support.outbox_rows import GOOD, gone
from tests.support.worker_health import why

SECRET = "a-row-of-somebody"
FUNCTION = "CREATE FUNCTION keeps() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN {} END $$"
TRIGGER = "CREATE TRIGGER keeps {} ON cachebus_outbox FOR EACH ROW WHEN (OLD.command ~ '{}') EXECUTE FUNCTION keeps()"
KEEPERS = {
    "does nothing": [FUNCTION.format("RETURN NULL;"), TRIGGER.format("BEFORE DELETE", SECRET)],
    "changes it instead": [
        FUNCTION.format("UPDATE cachebus_outbox SET attempts = 7 WHERE id = OLD.id; RETURN NULL;"),
        TRIGGER.format("BEFORE DELETE", SECRET),
    ],
    "raises": [
        FUNCTION.format("RAISE EXCEPTION 'never: %', OLD.command; RETURN NULL;"),
        TRIGGER.format("BEFORE DELETE", SECRET),
    ],
    "raises at the end": [
        FUNCTION.format("RAISE EXCEPTION 'never: %', OLD.command; RETURN NULL;"),
        TRIGGER.replace("CREATE", "CREATE CONSTRAINT")
        .replace("FOR", "DEFERRABLE INITIALLY DEFERRED FOR", 1)
        .format("AFTER DELETE", SECRET),
    ],
    "nothing else either": [FUNCTION.format("RETURN NULL;"), TRIGGER.format("BEFORE DELETE OR UPDATE", SECRET)],
    "a rule": [f"CREATE RULE keeps AS ON DELETE TO cachebus_outbox WHERE OLD.command ~ '{SECRET}' DO INSTEAD NOTHING"],
}


@pytest.fixture(autouse=True)
def _soon(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("cachebus.consumers.worker.watcher.LOOK_EVERY_S", 0.05)
    monkeypatch.setattr(PostgresOutbox, "again_s", 0.5)
    monkeypatch.setattr(SqliteOutbox, "again_s", 0.5)


@pytest.fixture
def said() -> Iterator[list[str]]:
    """What the log says."""
    with told(form=WITH_LEVEL) as lines:
        yield lines


@pytest.fixture
async def cache(redis_url: str) -> AsyncIterator[Cache]:
    """One that has a value which the good row invalidates."""
    async with nodes(redis_url, 1, l2_timeout_s=5.0) as (cache,):
        await cache.set("config", "good", 1, "acme")
        yield cache


async def left(connection: asyncpg.Connection) -> set[str]:
    """What waits."""
    return {row["command"] for row in await connection.fetch("SELECT command FROM cachebus_outbox")}


@pytest.mark.parametrize("keeper", KEEPERS)
async def test_a_row_that_the_database_keeps_is_told_and_costs_the_others_nothing(
    database: str, redis_url: str, cache: Cache, keeper: str, said: list[str]
) -> None:
    await create_tables(database)
    kept = [invalidation(f"{SECRET}-{number}") for number in range(30)]
    options = RelayOptions(batch=10, poll_interval_s=0.02, hold_s=1.0)
    async with connected(database) as connection:
        for sql in KEEPERS[keeper]:
            await connection.execute(sql)
        await put(connection, *kept, invalidation("1"), GOOD)
        async with running(OutboxRelay(database, settings(redis_url), options=options)) as relay:
            await gone(cache)
            await until(lambda: not relay.health.is_up("removal"), within_s=20)

            async def only_kept() -> bool:
                return await left(connection) == set(kept)

            await until(only_kept, within_s=20)
            await until(lambda: "keeps ON cachebus_outbox;" in why(relay, "removal"), within_s=20)
            remedy = why(relay, "removal").partition("to mend it: ")[2]
            assert all(relay.health.is_up(part) for part in ("table", "rights"))
            await until(lambda: relay.meters.count("again") >= 30, within_s=20)
            await connection.execute(remedy)

            async def none_left() -> bool:
                return not await left(connection)

            await until(none_left, within_s=20)
            await until(lambda: relay.health.ready, within_s=20)
    assert not [line for line in said if SECRET in line]


async def test_rows_that_are_kept_are_not_applied_over_and_over(
    database: str, redis_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(PostgresOutbox, "again_s", 60.0)
    await create_tables(database)
    async with connected(database) as connection:
        for sql in KEEPERS["nothing else either"]:
            await connection.execute(sql)
        await put(connection, *[invalidation(f"{SECRET}-{number}") for number in range(600)])
        async with running(OutboxRelay(database, settings(redis_url), options=QUICKLY)) as relay:

            def done() -> int:
                return relay.meters.count("applied") + relay.meters.count("again")

            await until(lambda: done() == 600, within_s=20)
            await put(connection, *[invalidation(str(number)) for number in range(5)])
            await until(lambda: done() == 605, within_s=20)
            assert await left(connection) == {invalidation(f"{SECRET}-{number}") for number in range(600)}


async def test_a_letter_of_a_row_that_is_kept_is_there_once(database: str, redis_url: str) -> None:
    await create_tables(database)
    async with connected(database) as connection:
        for sql in KEEPERS["does nothing"]:
            await connection.execute(sql)
        await put(connection, f"{SECRET}: no command")
        async with running(OutboxRelay(database, settings(redis_url), options=QUICKLY)) as relay:
            await until(lambda: relay.meters.count("dead") >= 3, within_s=20)
        assert await connection.fetchval("SELECT count(*) FROM cachebus_outbox_dead") == 1


async def test_a_table_of_the_dead_that_drops_what_comes_loses_no_row(database: str, redis_url: str) -> None:
    await create_tables(database)
    async with connected(database) as connection:
        await connection.execute(FUNCTION.format("RETURN NULL;"))
        await connection.execute(
            "CREATE TRIGGER drops BEFORE INSERT ON cachebus_outbox_dead FOR EACH ROW EXECUTE FUNCTION keeps()"
        )
        await put(connection, "no command", GOOD)
        async with running(OutboxRelay(database, settings(redis_url), options=QUICKLY)) as relay:
            await until(lambda: not relay.health.is_up("dead"), within_s=20)
            assert relay.meters.count("dead") == 0
        assert await left(connection) == {"no command"}


async def test_a_row_that_can_be_neither_set_aside_nor_marked_is_not_lost(database: str, redis_url: str) -> None:
    """The table of the dead is not there, and the outbox takes no UPDATE."""
    await create_tables(database)
    async with connected(database) as connection:
        await connection.execute(FUNCTION.format("RETURN NULL;"))
        await connection.execute(TRIGGER.format("BEFORE UPDATE", "no command"))
        await connection.execute("ALTER TABLE cachebus_outbox_dead RENAME TO away")
        await put(connection, "no command")
        async with running(OutboxRelay(database, settings(redis_url), options=QUICKLY)) as relay:
            await until(lambda: not relay.health.is_up("dead"), within_s=20)
            for number in range(1, 4):  # it comes again meanwhile
                await put(connection, GOOD)
                await until(lambda number=number: relay.meters.count("applied") == number, within_s=20)
                await until(lambda: rested(relay), within_s=20)
            assert await left(connection) == {"no command"}
            assert relay.meters.count("dead") == 0
            await connection.execute("ALTER TABLE away RENAME TO cachebus_outbox_dead")
            await until(lambda: relay.meters.count("dead") == 1, within_s=20)
        assert await connection.fetchval("SELECT count(*) FROM cachebus_outbox_dead") == 1


def rested(relay: OutboxRelay) -> bool:
    """Whether no row rests any more that the database keeps: it is taken again now."""
    source = relay.source
    assert isinstance(source, PostgresOutbox)
    return not source._known.now


async def test_what_the_outbox_drops_is_not_lost_as_it_is_brought_back(database: str) -> None:
    await create_tables(database)
    async with connected(database) as connection:
        await connection.execute(FUNCTION.format("RETURN NULL;"))
        await connection.execute(
            "CREATE TRIGGER drops BEFORE INSERT ON cachebus_outbox FOR EACH ROW EXECUTE FUNCTION keeps()"
        )
        await connection.execute(
            "INSERT INTO cachebus_outbox_dead (namespace, row_id, command, reason, attempts, created_at) "
            "VALUES ('cachebus', 1, 'x', 'y', 1, now())"
        )
        with pytest.raises(ConfigError, match="a trigger keeps rows out of the outbox"):
            await replay(database, "cachebus")
        assert await connection.fetchval("SELECT count(*) FROM cachebus_outbox_dead") == 1


def test_what_can_rest_by_itself_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(letting, "MOST", 10)
    now_s = 0.0
    resting = letting.Resting(60.0, lambda: now_s)
    resting.keep(range(10))
    assert resting.too_many
    now_s = 61.0
    assert not resting.too_many
    assert resting.now == []


def test_rows_that_were_kept_are_gone_once_they_would_have_come_again() -> None:
    """Nothing is looked for while L2 is away, or before the next poll: `removal` was green then."""
    now_s = 0.0
    resting = letting.Resting(60.0, lambda: now_s)
    assert not resting.has_some
    resting.refused()
    now_s = 3600.0
    assert resting.has_some
    resting.work_time.looked(through=False)
    assert resting.has_some, "others came first"
    now_s = 7200.0
    resting.work_time.looked(through=True)
    assert not resting.has_some


SQLITE = {
    "ignores": "BEFORE DELETE ON cachebus_outbox WHEN OLD.command LIKE '%{0}%' BEGIN SELECT RAISE(IGNORE); END",
    "changes it instead": (
        "BEFORE DELETE ON cachebus_outbox WHEN OLD.command LIKE '%{0}%' BEGIN "
        "UPDATE cachebus_outbox SET attempts = 7 WHERE id = OLD.id; SELECT RAISE(IGNORE); END"
    ),
    "raises": "BEFORE DELETE ON cachebus_outbox WHEN OLD.command LIKE '%{0}%' BEGIN SELECT RAISE(ABORT, 'never'); END",
    "rolls back": (
        "BEFORE DELETE ON cachebus_outbox WHEN OLD.command LIKE '%{0}%' BEGIN SELECT RAISE(ROLLBACK, 'never'); END"
    ),
}


@pytest.mark.parametrize("keeper", [*SQLITE, "nothing else either"])
async def test_likewise_in_sqlite(tmp_path: Path, redis_url: str, cache: Cache, keeper: str) -> None:
    url = f"sqlite:///{tmp_path / 'outbox.db'}"
    await create_tables(url)

    def asked(sql: str, *values: Any) -> list[Any]:
        with closing(sqlite3.connect(tmp_path / "outbox.db", timeout=10)) as connection, connection:
            return connection.execute(sql, values).fetchall()

    asked(f"CREATE TRIGGER keeps {SQLITE.get(keeper, SQLITE['ignores']).format(SECRET)}")
    if keeper not in SQLITE:
        asked(f"CREATE TRIGGER too {SQLITE['ignores'].format(SECRET).replace('DELETE', 'UPDATE')}")
    for number in range(30):
        asked("INSERT INTO cachebus_outbox (command) VALUES (?)", invalidation(f"{SECRET}-{number}"))
    for command in invalidation("1"), GOOD:
        asked("INSERT INTO cachebus_outbox (command) VALUES (?)", command)
    options = RelayOptions(batch=10, poll_interval_s=0.02, hold_s=1.0)
    async with running(OutboxRelay(url, settings(redis_url), options=options)) as relay:
        await gone(cache)
        await until(lambda: not relay.health.is_up("removal"), within_s=20)

        async def count(number: int) -> bool:
            return await asyncio.to_thread(asked, "SELECT count(*) FROM cachebus_outbox") == [(number,)]

        await until(lambda: count(30), within_s=20)
        await until(lambda: relay.meters.count("again") >= 30, within_s=20)
        assert relay.meters.count("applied") == 32
        await until(lambda: "to mend it: " in why(relay, "removal"), within_s=20)
        for sql in why(relay, "removal").partition("to mend it: ")[2].split(" DROP"):
            asked("DROP " + sql.removeprefix("DROP "))
        await until(lambda: count(0), within_s=20)
        await until(lambda: relay.health.ready, within_s=20)
    assert dead_letter_writer.PART in relay.health.parts


async def test_rows_that_wait_in_a_table_of_the_same_name_are_told(
    database: str, redis_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A schema that is found first has one as well, by a search_path that changed: writers and the relay disagree."""
    monkeypatch.setattr(elsewhere, "UNSERVED_S", 0)
    await create_tables(database)
    async with connected(database) as connection:
        await connection.execute("CREATE SCHEMA relay")
        await create_tables(database, "relay.cachebus_outbox")
        await put(connection, GOOD)
        await connection.execute(
            "DO $$ BEGIN EXECUTE format('ALTER DATABASE %I SET search_path = relay, public', current_database()); "
            "END $$"
        )
        async with running(OutboxRelay(database, settings(redis_url), options=QUICKLY)) as relay:
            await until(lambda: "found as relay.cachebus_outbox" in why(relay, "table"), within_s=20)
            assert "--table public.cachebus_outbox" in why(relay, "table")
            there = RelayOptions("public.cachebus_outbox", poll_interval_s=0.05)
            async with running(OutboxRelay(database, settings(redis_url), options=there)):
                await until(lambda: relay.health.ready, within_s=20)


async def test_a_relay_of_another_table_serves_no_namespace_of_this_one(
    database: str, redis_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(elsewhere, "UNSERVED_S", -1)
    await create_tables(database)
    await create_tables(database, "others")
    other = settings(redis_url, namespace="other")
    async with connected(database) as connection:
        await put(connection, GOOD, namespace="other")
        others = RelayOptions("others", poll_interval_s=0.05)
        async with running(OutboxRelay(database, other, options=others)) as there:
            await until(lambda: there.health.is_up("database"), within_s=20)
            async with running(OutboxRelay(database, settings(redis_url), options=QUICKLY)) as relay:
                await until(lambda: "'other'" in why(relay, "namespaces"), within_s=20)


async def test_relays_of_one_table_that_work_for_different_servers_say_so(
    database: str, redis_url: str, own_server: EmbeddedServer
) -> None:
    await create_tables(database)
    options = RelayOptions(poll_interval_s=0.05)
    one = OutboxRelay(database, settings(redis_url), options=options)
    other = OutboxRelay(database, settings(own_server.url), options=options)
    async with running(one), running(OutboxRelay(database, settings(redis_url), options=options)) as same:
        await until(lambda: one.health.ready and same.health.ready, within_s=20)
        async with running(other):
            await until(lambda: "different servers" in why(one, "stores"), within_s=20)
            await until(lambda: "different servers" in why(other, "stores"), within_s=20)
            new = OutboxRelay(database, settings(redis_url), options=options)
            (found,) = [seen for seen in await preflight(new) if seen.what == "stores"]
            assert found.findings
        await until(lambda: one.health.ready and same.health.ready, within_s=20)


async def test_a_row_with_the_number_of_one_that_was_kept_has_a_letter_of_its_own(
    database: str, redis_url: str
) -> None:
    await create_tables(database)
    odd = f'{{"op": "{SECRET} %s"}}'
    async with connected(database) as connection:
        for sql in KEEPERS["does nothing"]:
            await connection.execute(sql)

        async def letters() -> list[str]:
            found = await connection.fetch("SELECT command FROM cachebus_outbox_dead ORDER BY id")
            return [row["command"] for row in found]

        async with running(OutboxRelay(database, settings(redis_url), options=QUICKLY)) as relay:
            await put(connection, odd % "one")
            await until(lambda: relay.source._known.buried)
            await connection.execute("DROP TRIGGER keeps ON cachebus_outbox; TRUNCATE cachebus_outbox RESTART IDENTITY")
            await put(connection, odd % "two")

            async def is_gone() -> bool:
                return await connection.fetchval("SELECT count(*) FROM cachebus_outbox") == 0

            await until(is_gone)
            assert await letters() == [odd % "one", odd % "two"]


async def test_what_keeps_rows_of_a_partition_is_dropped_where_it_was_made(database: str) -> None:
    await create_tables(database)
    async with connected(database) as connection:
        await connection.execute("""\
            ALTER TABLE cachebus_outbox RENAME TO before;
            CREATE TABLE cachebus_outbox (LIKE before INCLUDING ALL) PARTITION BY LIST (namespace);
            CREATE TABLE part PARTITION OF cachebus_outbox DEFAULT;
            CREATE FUNCTION keep() RETURNS trigger LANGUAGE plpgsql AS 'BEGIN RETURN NULL; END';
            CREATE TRIGGER a BEFORE DELETE ON cachebus_outbox FOR EACH ROW EXECUTE FUNCTION keep();
            CREATE TRIGGER b BEFORE DELETE ON part FOR EACH ROW EXECUTE FUNCTION keep()""")
        resting = Resting(60)
        resting.refused()
        (found,) = await standing.of_removal(connection, OutboxTable.of("cachebus_outbox"), resting)
        assert found.remedy == "DROP TRIGGER a ON cachebus_outbox; DROP TRIGGER b ON part;"
        await connection.execute(found.remedy)


async def until_left(relay: OutboxRelay, connection: asyncpg.Connection, *commands: str) -> None:
    """What was kept has gone, these alone wait, and all is in order."""

    async def alone() -> bool:
        return await left(connection) == set(commands)

    await until(alone, within_s=20)
    await until(lambda: relay.health.ready, within_s=20)


@pytest.mark.parametrize("keeper", ["does nothing", "nothing else either"])
async def test_once_what_keeps_rows_has_gone_they_are_tried_again_at_once(
    database: str, redis_url: str, monkeypatch: pytest.MonkeyPatch, keeper: str
) -> None:
    """They rest for an hour, in the table or in memory. A row that a writer wants later waits."""
    monkeypatch.setattr(PostgresOutbox, "again_s", 3600.0)
    await create_tables(database)
    async with connected(database) as connection:
        for sql in KEEPERS[keeper]:
            await connection.execute(sql)
        await connection.execute(
            "INSERT INTO cachebus_outbox (command, due_at) VALUES ($1, now() + interval '2 h')", invalidation("later")
        )
        await put(connection, *[invalidation(f"{SECRET}-{number}") for number in range(30)])
        async with running(OutboxRelay(database, settings(redis_url), options=QUICKLY)) as relay:
            await until(lambda: "keeps ON" in why(relay, "removal"), within_s=20)
            await until(lambda: relay.source._known.marked or relay.source._known.now, within_s=20)
            await connection.execute("DROP TRIGGER keeps ON cachebus_outbox")
            await until_left(relay, connection, invalidation("later"))


async def test_so_they_are_in_sqlite(tmp_path: Path, redis_url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(SqliteOutbox, "again_s", 3600.0)
    url = f"sqlite:///{tmp_path / 'outbox.db'}"
    await create_tables(url)
    with closing(sqlite3.connect(tmp_path / "outbox.db", timeout=10, isolation_level=None)) as connection:
        connection.execute(f"CREATE TRIGGER keeps {SQLITE['ignores'].format(SECRET)}")
        connection.execute("INSERT INTO cachebus_outbox (command) VALUES (?)", (invalidation(SECRET),))
        async with running(OutboxRelay(url, settings(redis_url), options=QUICKLY)) as relay:
            await until(lambda: "keeps" in why(relay, "removal"), within_s=20)
            connection.execute("DROP TRIGGER keeps")
            count = connection.execute
            await until(lambda: count("SELECT count(*) FROM cachebus_outbox").fetchone() == (0,), within_s=20)
            await until(lambda: relay.health.ready, within_s=20)


async def test_a_policy_that_keeps_rows_is_named_and_they_are_tried_again_once_it_has_gone(
    database: str, redis_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(PostgresOutbox, "again_s", 3600.0)
    await create_tables(database)
    role = "kept_out_of_the_tests"
    async with connected(database) as connection:
        await connection.execute(f"""\
            CREATE ROLE {role} LOGIN; GRANT ALL ON ALL TABLES IN SCHEMA public TO {role};
            ALTER TABLE cachebus_outbox ENABLE ROW LEVEL SECURITY;
            CREATE POLICY may ON cachebus_outbox TO {role} USING (true);
            CREATE POLICY no_del ON cachebus_outbox AS RESTRICTIVE FOR DELETE USING (command !~ '{SECRET}')""")
        try:
            await put(connection, invalidation(SECRET))
            url = database.replace("//postgres@", f"//{role}@")
            async with running(OutboxRelay(url, settings(redis_url), options=QUICKLY)) as relay:
                await until(lambda: "DROP POLICY no_del" in why(relay, "removal"), within_s=20)
                await until(lambda: relay.source._known.marked, within_s=20)
                await connection.execute(why(relay, "rights").partition("to mend it: ")[2])
                await until_left(relay, connection)
        finally:
            await connection.execute(f"DROP OWNED BY {role}; DROP ROLE {role}")
