"""The part `items` of a worker's health: it is down where all that comes is set aside, and says what is so."""

from __future__ import annotations

import secrets
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import asyncpg
import pytest

from cachebus.consumers.outbox import OutboxRelay, RelayOptions, create_tables
from cachebus.consumers.outbox.dead import has_letters
from cachebus.consumers.outbox.postgres import PostgresOutbox
from cachebus.consumers.outbox.sqlite import SqliteOutbox
from cachebus.consumers.worker import watcher
from cachebus.consumers.worker.in_a_row import ALL_DEAD
from cachebus.consumers.worker.source import NOTHING
from cachebus.producers.outbox.table import OutboxTable
from cachebus.tools.servers.kafka import KafkaServer
from tests.support.at_work import at_work, invalidation
from tests.support.caches import quick, until
from tests.support.cdc_surroundings import TABLE, given, worker
from tests.support.cdc_surroundings import at_work as slot_at_work
from tests.support.changes import fetched, running, tell
from tests.support.commands import dead_topic, made, producing, setup, worker_of
from tests.support.commands import invalidation as command
from tests.support.memory_source import MemorySource
from tests.support.outbox import QUICKLY
from tests.support.outbox import running as outbox_at_work
from tests.support.worker_health import why
from tests.support.written import asked

BAD = b"?"


@pytest.fixture(autouse=True)
def _looks_often(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(watcher, "LOOK_EVERY_S", 0.02)


async def test_where_all_that_comes_is_set_aside_it_is_told_with_what_helps(redis_url: str) -> None:
    source = MemorySource()
    async with at_work(source, redis_url) as worker:
        await until(lambda: worker.health.ready)
        source.put(*[BAD] * (ALL_DEAD - 1))
        await until(lambda: not source.rows)
        assert worker.health.ready
        source.put(BAD)
        await until(lambda: not worker.health.ready)
        told = why(worker, "items")
        assert "the last 20 could not be applied, one after the other: " in told and "JSON" in told
        assert "they lie in a list; once that is mended" in told
        assert told.endswith("cachebus worker replay-dead test")
        source.put(invalidation(1), BAD)
        await until(lambda: worker.health.ready)


async def test_what_is_set_aside_in_turn_with_what_is_applied_is_not_all(redis_url: str) -> None:
    """In one batch: it was told that the last 20 could not be applied, one after the other."""
    source = MemorySource()
    async with at_work(source, redis_url) as worker:
        await until(lambda: worker.health.ready)
        source.put(*[BAD if number % 5 == 0 else invalidation(number) for number in range(5 * ALL_DEAD)])
        await until(lambda: worker.meters.count("applied") == 4 * ALL_DEAD)
        assert worker.meters.count("dead") == ALL_DEAD
        assert worker.health.is_up("items")
        source.put(*[invalidation(number) for number in range(5)], *[BAD] * ALL_DEAD)
        await until(lambda: not worker.health.is_up("items"))
        source.put(*[BAD] * ALL_DEAD, invalidation(1))
        await until(lambda: worker.health.is_up("items"))


async def test_all_of_one_place_is_told_where_the_others_are_well(redis_url: str) -> None:
    source = MemorySource()
    source.origins = lambda number: "ab"[number % 2]
    async with at_work(source, redis_url) as worker:
        await until(lambda: worker.health.ready)
        for number in range(ALL_DEAD):
            source.put(BAD, invalidation(number))
        await until(lambda: "the last 20 of b could not be applied" in why(worker, "items"))
        source.put(invalidation(1))
        await until(lambda: worker.health.is_up("items"))


async def test_what_is_ignored_says_nothing_of_what_caches_need(redis_url: str) -> None:
    """Whoever shares a topic with others, whose messages are ignored, was green though all of its own were dead."""
    source = MemorySource()
    async with at_work(source, redis_url) as worker:
        await until(lambda: worker.health.ready)
        source.put(*[row for _ in range(ALL_DEAD) for row in (BAD, NOTHING)])
        await until(lambda: not worker.health.is_up("items"))
        assert worker.meters.count("ignored") == ALL_DEAD


async def test_it_is_up_again_once_no_letter_is_left(redis_url: str) -> None:
    source = MemorySource()
    source.is_seen = True
    async with at_work(source, redis_url) as worker:
        await until(lambda: worker.health.ready)
        source.put(*[BAD] * ALL_DEAD)
        await until(lambda: not worker.health.ready)
        source.dead.pop()
        source.asked_s.clear()
        await until(lambda: len(source.asked_s) > 2)
        assert not worker.health.ready, "some are left"
        source.dead.clear()
        await until(lambda: worker.health.ready)


@pytest.fixture(params=["postgresql", "sqlite"])
def outbox(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """The URL of an outbox."""
    if request.param == "sqlite":
        return f"sqlite:///{tmp_path / 'outbox.db'}"
    url: str = request.getfixturevalue("database")
    return url


async def test_of_an_outbox_each_data_type_counts_and_no_tenant_is_told(outbox: str, redis_url: str) -> None:
    """A service of which all commands were refused was not told where others had theirs applied."""
    await create_tables(outbox)
    async with outbox_at_work(OutboxRelay(outbox, quick(redis_url), options=QUICKLY)) as relay:
        await until(lambda: relay.health.ready)
        bad, good = invalidation("x" * 600, data_type="broken"), invalidation("1")
        no_type = invalidation("x" * 600, data_type="ann@example.com")
        await written(outbox, *[row.decode() for _ in range(ALL_DEAD) for row in (bad, no_type, good)])
        await until(lambda: f"the last {ALL_DEAD} of the type broken could not be applied" in why(relay, "items"))
        assert not [word for word in ("acme", "ann", "xxx") if word in why(relay, "items")]
        await written(outbox, invalidation("1", data_type="broken").decode())
        await until(lambda: relay.health.is_up("items"))


async def written(outbox: str, *commands: str) -> None:
    """Rows of an outbox, one behind the other."""
    await asked(outbox, *(f"INSERT INTO cachebus_outbox (command) VALUES ('{one}')" for one in commands))


async def test_what_cant_be_set_aside_is_told_until_it_was_looked_for(
    outbox: str, redis_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A relay that polls every hour was green after two minutes and a half."""
    for source in PostgresOutbox, SqliteOutbox:
        monkeypatch.setattr(source, "again_s", 0.01)
    await create_tables(outbox)
    await written(outbox, invalidation("x" * 600).decode())
    await asked(outbox, "DROP TABLE cachebus_outbox_dead")
    options = RelayOptions(poll_interval_s=3600, hold_s=1.0)
    async with outbox_at_work(OutboxRelay(outbox, quick(redis_url), options=options)) as relay:
        await until(lambda: "can be neither applied" in why(relay, "dead"))
        looks, check = list[bool](), relay._dead_letters.check_recovery

        def checked() -> None:
            check()
            looks.append(relay.health.is_up("dead"))

        idle = list[int]()
        relay.meters.idles = lambda: idle.append(1)  # type: ignore[method-assign]
        await until(lambda: len(idle) > 2)
        relay._dead_letters.check_recovery = checked  # type: ignore[method-assign]
        await until(lambda: len(looks) > 2)
        assert not any(looks)


async def test_a_relay_that_may_not_read_the_dead_says_so(database: str) -> None:
    await create_tables(database)
    role, table = f"items_{secrets.token_hex(4)}", OutboxTable.of("cachebus_outbox")
    connection = await asyncpg.connect(database)
    try:
        await connection.execute(
            f"CREATE ROLE {role}; GRANT INSERT ON cachebus_outbox_dead TO {role}; INSERT INTO cachebus_outbox_dead "
            "(namespace, row_id, command, reason, attempts, created_at) VALUES ('cachebus', 1, '', '', 1, now())"
        )

        async def lie(namespace: str = "cachebus", within_s: float = 60.0) -> bool | None:
            await connection.execute(f"SET ROLE {role}")
            try:
                return await has_letters(connection, table, namespace, within_s)
            finally:
                await connection.execute("RESET ROLE")

        assert await lie() is None
        await connection.execute(f"GRANT SELECT ON cachebus_outbox_dead TO {role}")
        assert await lie() is True
        assert await lie("another") is False
        await connection.execute("UPDATE cachebus_outbox_dead SET died_at = now() - interval '2 minutes'")
        assert await lie() is False, "an older one, which somebody has left there"
        assert await lie(within_s=180.0) is True
        await connection.execute("ALTER TABLE cachebus_outbox_dead ENABLE ROW LEVEL SECURITY")
        assert await lie(within_s=180.0) is None, "they may be hidden"
        await connection.execute("DROP TABLE cachebus_outbox_dead")
        assert await lie() is None
    finally:
        await connection.execute(f"DROP OWNED BY {role}; DROP ROLE {role}")
        await connection.close()


async def test_a_slot_that_another_worker_has_by_now_is_its_to_tell(database: str, redis_url: str) -> None:
    """Red for as long as it stood by, though the one that followed the slot applied all."""
    await tell(database, TABLE)
    bad = f"INSERT INTO o SELECT repeat('x', 600) || n, 'acme' FROM generate_series(1, {ALL_DEAD}) AS n"
    async with slot_at_work(first := worker(database, redis_url)):
        await until(lambda: first.follows)
        async with slot_at_work(second := worker(database, redis_url)):
            await until(lambda: second.health.is_up("database"))
            await tell(database, [bad])
            await until(lambda: not first.health.is_up("items"))
            first.source._connected = away  # type: ignore[method-assign]
            leads = "locktype = 'advisory' AND objsubid = 1 AND granted"
            await tell(database, [f"SELECT pg_terminate_backend(pid) FROM pg_locks WHERE {leads}"])
            await until(lambda: second.follows, within_s=30)
            assert not first.health.is_up("items"), "it knows of nobody else yet"
            del first.source._connected
            await until(lambda: first.health.is_up("items"), within_s=30)


@asynccontextmanager
async def away(_: int) -> AsyncIterator[asyncpg.Connection]:
    """No connection is to be had."""
    raise ConnectionRefusedError
    yield


async def test_of_a_slot_each_table_counts_and_letters_that_are_gone_do_not(database: str, redis_url: str) -> None:
    await tell(database, [*TABLE, *(sql.replace(" o ", " p ") for sql in TABLE)])
    mixed = "INSERT INTO {} SELECT CASE WHEN n % 50 = 0 THEN repeat('x', 600) ELSE '' END || n, 'acme' FROM {}"
    bad, good = "INSERT INTO o VALUES (repeat('x', 600) || '{}', 'acme')", "INSERT INTO p VALUES ('{}', 'acme')"
    async with slot_at_work(one := worker(database, redis_url, given("o", "p"))):
        await until(lambda: one.health.ready)
        await tell(database, [mixed.format("o", f"generate_series(1, {50 * ALL_DEAD}) AS n")])
        await until(lambda: one.meters.count("applied") + one.meters.count("dead") == 50 * ALL_DEAD)
        assert one.meters.count("dead") == ALL_DEAD
        assert await fetched(database, f"SELECT count(*) = {ALL_DEAD} FROM cachebus_cdc_dead")
        assert one.health.is_up("items")
        await tell(database, [sql.format(number) for number in range(ALL_DEAD) for sql in (bad, good)])
        await until(lambda: " of public.o could not be applied" in why(one, "items"))
        assert "they lie in the table cachebus_cdc_dead; " in why(one, "items")
        assert why(one, "items").endswith("cachebus worker replay-dead cdc")
        await tell(database, ["DELETE FROM cachebus_cdc_dead"])
        await until(lambda: one.health.ready)


async def test_a_partition_of_which_all_is_set_aside_is_told_where_others_are_well(
    kafka: KafkaServer, redis_url: str
) -> None:
    settings = setup(redis_url, kafka.address)
    await made(settings)
    async with running(worker := worker_of(settings)), producing(settings) as producer:
        await until(lambda: worker.health.ready)
        topic = settings.kafka_commands_topic
        for number in range(ALL_DEAD):
            await producer.send_and_wait(topic, b"nonsense", partition=0)
            await producer.send_and_wait(topic, command(number), partition=1)
        await until(lambda: f"the last {ALL_DEAD} of {topic}/0 could not be applied" in why(worker, "items"))
        assert f"they lie in the topic {dead_topic(settings)}; " in why(worker, "items")
        await producer.send_and_wait(topic, command("x"), partition=0)
        await until(lambda: worker.health.ready)
