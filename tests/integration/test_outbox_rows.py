"""Whatever an outbox's row is like, it holds up no other: values at their types' limits, encodings, parts of tables."""

from __future__ import annotations

import secrets
from collections.abc import AsyncIterator

import pytest

from cachebus import Cache, ValueTooLarge
from cachebus.consumers.outbox import OutboxRelay, RelayOptions, create_tables, reading, replay
from cachebus.consumers.outbox.postgres import PostgresOutbox, PostgresSession
from cachebus.consumers.worker.source import Left
from cachebus.producers import Outbox, OutboxProducer
from cachebus.tools.servers.postgres import PostgresServer
from tests.conftest import connected
from tests.support.caches import nodes, until
from tests.support.outbox import QUICKLY, invalidation, put, running, settings, waiting
from tests.support.outbox_rows import GOOD, gone

BAD_VALUES = {
    "attempts": ("attempts", "2147483647"),
    "never": ("created_at", "'infinity'"),
    "always": ("created_at", "'-infinity'"),
    "late": ("created_at", "'290000-01-01'"),
    "early": ("created_at", "'4000-01-01 BC'"),
    "due early": ("due_at", "'4000-01-01 BC'"),
    "waits for nobody": ("waits_for", "2147483647"),
    "waits for less": ("waits_for", "-2147483648"),
    "id": ("id", "9223372036854775807"),
}


@pytest.fixture
async def cache(redis_url: str) -> AsyncIterator[Cache]:
    """One that has the good row's value."""
    async with nodes(redis_url, 1) as (cache,):
        await cache.set("config", "good", "old", "acme")
        yield cache


@pytest.mark.parametrize("namespaces", [1, 5])
async def test_a_backlog_beyond_what_is_counted_is_estimated_without_rows_of_other_namespaces(
    database: str, monkeypatch: pytest.MonkeyPatch, namespaces: int
) -> None:
    monkeypatch.setattr(reading, "_WAITS", reading._WAITS.replace(str(reading.COUNTED + 1), "101"))
    monkeypatch.setattr(reading, "COUNTED", 100)
    await create_tables(database)
    async with connected(database) as connection:
        await connection.execute(
            "INSERT INTO cachebus_outbox (namespace, command) "
            "SELECT CASE n % $1 WHEN 0 THEN 'cachebus' ELSE 'other' END, '' FROM generate_series(1, $1 * 2000) AS n",
            namespaces,
        )
    async with PostgresOutbox(database, "cachebus", RelayOptions()).opened() as session:
        backlog = (await session.look()).backlog
    assert backlog is not None and 1900 < backlog < 2100


async def emptied(database: str) -> None:
    """Until no row waits."""

    async def none() -> bool:
        return await waiting(database) == 0

    await until(none)


@pytest.mark.parametrize("command", ["nonsense", invalidation("x")], ids=["dead", "applied"])
@pytest.mark.parametrize(("column", "value"), BAD_VALUES.values(), ids=BAD_VALUES)
async def test_values_at_their_types_limits(
    database: str, redis_url: str, cache: Cache, column: str, value: str, command: str
) -> None:
    await create_tables(database)
    async with connected(database) as connection:
        await connection.execute(
            f"INSERT INTO cachebus_outbox (command, {column}) OVERRIDING SYSTEM VALUE VALUES ($1, {value})", command
        )
        await put(connection, GOOD)
        async with running(OutboxRelay(database, settings(redis_url), options=QUICKLY)) as relay:
            await gone(cache)
            await emptied(database)
            await until(lambda: relay.meters.count("dead") == (command == "nonsense"))
        if command == "nonsense":
            what = "command, attempts, created_at::text AS at"
            dead = await connection.fetchrow(f"SELECT {what} FROM cachebus_outbox_dead")
            assert dead["command"] == command
            assert dead["attempts"] == (2147483647 if column == "attempts" else 1)
            if column == "created_at":
                assert dead["at"].startswith(value.strip("'").split()[0])
            assert await replay(database, "cachebus") == 1


ENCODINGS = {
    "LATIN1": ('{"op":"invalidate","tenant_id":"acme","data_type":"t","resource_id":"1","\\u65e5":1}', None),
    "WIN1252": (None, b'{"\x81": 1}'),
    "SQL_ASCII": (None, b'{"\xff\xfe": 1}'),
}


@pytest.mark.parametrize("encoding", ENCODINGS)
async def test_encodings(postgres: PostgresServer, redis_url: str, cache: Cache, encoding: str) -> None:
    """What is in a database's encoding, or in none, is no reason to wait."""
    name, (text, raw) = f"test_{secrets.token_hex(6)}", ENCODINGS[encoding]
    async with connected(postgres.url) as connection:
        await connection.execute(f"CREATE DATABASE {name} ENCODING '{encoding}' LOCALE 'C' TEMPLATE template0")
    database = postgres.url_of(name)
    try:
        await create_tables(database)
        async with connected(database) as connection:
            await put(connection, *[invalidation(str(number)) for number in range(5)])
            if raw is None:
                await put(connection, text or "")
            else:
                sql = "INSERT INTO cachebus_outbox (command) VALUES (convert_from($1, $2))"
                await connection.execute(sql, raw, encoding)
            await put(connection, invalidation("\u00e9") if encoding == "LATIN1" else GOOD, GOOD)
            async with running(OutboxRelay(database, settings(redis_url), options=QUICKLY)) as relay:
                await gone(cache)
                await emptied(database)
                await until(lambda: relay.meters.count("dead") == 1)
            assert await replay(database, "cachebus") == 1
    finally:
        async with connected(postgres.url) as connection:
            await connection.execute(f"DROP DATABASE {name} WITH (FORCE)")


@pytest.mark.parametrize("size", [300_000, 60_000_000])
async def test_a_row_that_is_too_large_is_not_even_read(database: str, redis_url: str, cache: Cache, size: int) -> None:
    await create_tables(database)
    async with connected(database) as connection:
        await connection.execute("INSERT INTO cachebus_outbox (command) VALUES (repeat('[', $1))", size)
        await put(connection, GOOD)
        async with running(OutboxRelay(database, settings(redis_url), options=QUICKLY)) as relay:
            await gone(cache)
            await emptied(database)
            await until(lambda: relay.meters.count("dead") == 1)
        reason, kept = await connection.fetchrow("SELECT reason, length(command) FROM cachebus_outbox_dead")
    assert "longer than" in reason
    assert kept == (size if size < 1_000_000 else 1000)


async def test_a_row_that_is_too_large_is_not_written(database: str, redis_url: str) -> None:
    await create_tables(database)
    related = [{"data_type": "t", "resource_id": "x" * 400 + str(number)} for number in range(1000)]
    async with connected(database) as connection, connection.transaction():
        producer = OutboxProducer(connection, Outbox(settings(redis_url)))
        with pytest.raises(ValueTooLarge):
            await producer.invalidate_coordinated("acme", "t", "x", related)
    assert await waiting(database) == 0


PARTS = """\
DROP TABLE cachebus_outbox;
CREATE TABLE cachebus_outbox (
    namespace text NOT NULL DEFAULT 'cachebus', id bigint GENERATED BY DEFAULT AS IDENTITY, command text NOT NULL,
    created_at timestamptz NOT NULL DEFAULT clock_timestamp(), due_at timestamptz NOT NULL DEFAULT '-infinity',
    attempts integer NOT NULL DEFAULT 0, waits_for integer NOT NULL DEFAULT -1,
    PRIMARY KEY (namespace, waits_for, due_at, id)) PARTITION BY HASH (id);
CREATE TABLE part_0 PARTITION OF cachebus_outbox FOR VALUES WITH (MODULUS 3, REMAINDER 0);
CREATE TABLE part_1 PARTITION OF cachebus_outbox FOR VALUES WITH (MODULUS 3, REMAINDER 1);
CREATE TABLE part_2 PARTITION OF cachebus_outbox FOR VALUES WITH (MODULUS 3, REMAINDER 2);
"""


async def test_a_partitioned_table_loses_no_row(database: str, redis_url: str, cache: Cache) -> None:
    """Rows of several parts lie at the same places of theirs."""
    await create_tables(database)
    async with connected(database) as connection:
        await connection.execute(PARTS)
        await put(connection, *[invalidation(str(number)) for number in range(300)], "nonsense", GOOD)
        assert await connection.fetchval("SELECT count(DISTINCT tableoid) FROM cachebus_outbox") == 3
        options = RelayOptions(batch=7, poll_interval_s=0.05)
        async with running(OutboxRelay(database, settings(redis_url), options=options)) as relay:
            await gone(cache)
            await until(lambda: relay.meters.count("applied") == 301)
            await emptied(database)
            assert relay.health.ready
            await until(lambda: relay.meters.count("dead") == 1)
        assert await connection.fetchval("SELECT command FROM cachebus_outbox_dead") == "nonsense"


async def test_of_a_batch_only_what_is_let_go_of_is_gone(database: str) -> None:
    """Whatever part of the table it is in, and whatever its number."""
    await create_tables(database)
    async with connected(database) as connection:
        await connection.execute(PARTS)
        await connection.execute("INSERT INTO part_0 (id, command) SELECT id, '' FROM generate_series(1, 0) id")
        await put(connection, *[invalidation(str(number)) for number in range(9)])
        async with PostgresOutbox(database, "cachebus", RelayOptions()).opened() as session:
            batch = await session.take(100, ())
            assert len(batch.items) == 9
            undone = batch.items[::2]
            await session.acknowledge(batch, Left(undone=undone))
            left = await connection.fetch("SELECT id FROM cachebus_outbox ORDER BY id")
            assert [row[0] for row in left] == sorted(item.raw.id for item in undone)


async def test_rows_that_have_become_due_are_not_kept_from_it_by_rows_that_keep_coming(database: str) -> None:
    await create_tables(database)
    async with connected(database) as connection:
        await put(connection, *[invalidation(str(number)) for number in range(50)])
        await connection.execute(
            "INSERT INTO cachebus_outbox (command, due_at) VALUES ($1, clock_timestamp() - interval '1 s')", GOOD
        )
        await connection.execute("INSERT INTO cachebus_outbox (command, waits_for) VALUES ($1, 3)", "held")
        async with PostgresOutbox(database, "cachebus", RelayOptions()).opened() as session:
            await session.look()
            seen = []
            for _ in range(4):
                batch = await session.take(4, ())
                assert len(batch.items) == 4
                seen += [item.raw.command for item in batch.items]
                await put(connection, *[invalidation("more")] * 4)
                await session.acknowledge(batch, Left())
    assert GOOD in seen
    assert "held" in seen
    assert seen.count(GOOD) == seen.count("held") == 1
    assert len(seen) == 16


async def test_what_can_be_neither_applied_nor_set_aside_holds_up_nothing(
    database: str, redis_url: str, cache: Cache, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("cachebus.consumers.worker.watcher.LOOK_EVERY_S", 0.05)
    monkeypatch.setattr("cachebus.consumers.outbox.postgres.PostgresOutbox.again_s", 0.05)
    await create_tables(database)
    async with connected(database) as connection:
        await connection.execute("DROP TABLE cachebus_outbox_dead")
        await put(connection, "nonsense", GOOD)
        async with running(OutboxRelay(database, settings(redis_url), options=QUICKLY)) as relay:
            await gone(cache)
            await until(lambda: relay.meters.count("applied") == 1)
            assert await waiting(database) == 1
            await until(lambda: not relay.health.is_up("table"))
            assert "--create-table" in relay.health.as_dict()["parts"]["table"]["why"]
            await create_tables(database)
            await emptied(database)
            await until(lambda: relay.health.ready)
        assert await connection.fetchval("SELECT command FROM cachebus_outbox_dead") == "nonsense"


async def test_what_its_table_of_the_dead_refuses_is_not_lost(database: str, redis_url: str, cache: Cache) -> None:
    await create_tables(database)
    async with connected(database) as connection:
        await connection.execute(
            "ALTER TABLE cachebus_outbox_dead ADD CHECK (row_id <> 2), ADD CHECK (command <> 'odd')"
        )
        await put(connection, "nonsense", "never", "odd", GOOD)
        async with running(OutboxRelay(database, settings(redis_url), options=QUICKLY)) as relay:
            await gone(cache)
            await until(lambda: relay.meters.count("applied") == 1)
        dead = await connection.fetch("SELECT row_id, command FROM cachebus_outbox_dead ORDER BY row_id")
        assert [tuple(row) for row in dead] == [(1, "nonsense"), (3, "")]
        assert await connection.fetchval("SELECT command FROM cachebus_outbox") == "never"


READ = """\
SELECT coalesce(sum(i.idx_tup_read), 0) + min(t.seq_tup_read)
FROM pg_stat_user_indexes i JOIN pg_stat_user_tables t USING (relid) WHERE t.relname = 'cachebus_outbox'"""


async def test_idle_looks_read_no_row_that_is_not_due(database: str) -> None:
    await create_tables(database)
    async with connected(database) as connection:
        await connection.execute(
            "INSERT INTO cachebus_outbox (command, due_at) SELECT $1, now() + interval '1 day' "
            "FROM generate_series(1, 20000)",
            GOOD,
        )
        async with PostgresOutbox(database, "cachebus", RelayOptions()).opened() as session:
            assert isinstance(session, PostgresSession)
            assert not (await session.take(500, ())).items
            assert (await session.look()).backlog == 0
            await session._connection.fetchval("SELECT pg_stat_force_next_flush()")
            await session._connection.fetchval("SELECT 1")
            assert await connection.fetchval(READ) < 100


async def test_what_is_due_never_or_long_after_this_shows_in_a_figure(database: str) -> None:
    await create_tables(database)
    async with connected(database) as connection, PostgresOutbox(database, "cachebus", RelayOptions()).opened() as one:
        assert (await one.look()).latest_s == 0
        await connection.execute(
            "INSERT INTO cachebus_outbox (command, due_at) VALUES ('x', now() + interval '9 days')"
        )
        latest_s = (await one.look()).latest_s
        assert latest_s is not None and latest_s == pytest.approx(9 * 86400, abs=60)
        await connection.execute("INSERT INTO cachebus_outbox (command, due_at) VALUES ('x', 'infinity')")
        assert (await one.look()).latest_s == float("inf")
