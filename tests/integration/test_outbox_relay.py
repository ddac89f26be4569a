"""From committed rows to every cache: what the relay does with them, and what becomes of it when something is away."""

from __future__ import annotations

import asyncio
import json
import os
import signal
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from datetime import timedelta
from functools import partial
from pathlib import Path
from typing import Any

import asyncpg
import pytest

from cachebus import Cache, Cascade, ConfigError, ProtocolMismatch
from cachebus.consumers.outbox import OutboxRelay, RelayOptions, create_tables, replay
from cachebus.consumers.outbox.database import TROUBLE
from cachebus.consumers.outbox.postgres import PostgresOutbox, PostgresSession
from cachebus.consumers.worker.cascades import load_cascades
from cachebus.consumers.worker.source import Left
from cachebus.producers import Outbox, OutboxProducer
from cachebus.tools.servers.postgres import PostgresServer
from cachebus.tools.servers.redis import EmbeddedServer
from tests.conftest import connected
from tests.support.caches import fill, gone, nodes, until
from tests.support.command import descendants
from tests.support.logs import told as lines_told
from tests.support.outbox import QUICKLY, invalidation, put, running, settings, waiting
from tests.support.pages import DOCS, file

SELDOM = RelayOptions(poll_interval_s=3600)


@pytest.fixture
async def tables(database: str) -> str:
    """A database with an outbox."""
    await create_tables(database)
    return database


@pytest.fixture
async def caches(redis_url: str) -> AsyncIterator[list[Cache]]:
    """Three nodes."""
    async with nodes(redis_url, 3) as opened:
        yield opened


def relay_of(database: str, redis_url: str, options: RelayOptions = QUICKLY, **more: Any) -> OutboxRelay:
    """A relay for those nodes."""
    return OutboxRelay(database, settings(redis_url, **more), options=options)


async def applied(relay: OutboxRelay, count: int) -> None:
    """Until it has applied so many."""
    await until(lambda: relay.meters.count("applied") >= count)


# -- what is committed, and only that --------------------------------------------------------------------------


async def test_what_is_committed_reaches_every_node_and_what_is_not_none(
    tables: str, redis_url: str, caches: list[Cache]
) -> None:
    await fill(caches, "written", "undone", "cascaded", "other")
    outbox = Outbox(settings(redis_url), [Cascade("page", to=[("config", "{resource_id}")])])
    async with running(relay_of(tables, redis_url)) as relay, connected(tables) as connection:
        async with connection.transaction():
            producer = OutboxProducer(connection, outbox)
            await producer.invalidate("config", "written", "acme")
            await producer.invalidate("page", "cascaded", "acme")
        transaction = connection.transaction()
        await transaction.start()
        await OutboxProducer(connection, outbox).invalidate("config", "undone", "acme")
        await transaction.rollback()
        await gone(caches, "written", "cascaded")
        await until(lambda: _none(tables))
        await until(lambda: relay.meters.count("applied") == 2)
    for cache in caches:
        assert await cache.get("config", "undone", "acme") == "old"
        assert await cache.get("config", "other", "acme") == "old"


async def test_cascades_of_the_relays_own_are_followed_too(tables: str, redis_url: str, caches: list[Cache]) -> None:
    await fill(caches, "x")
    relay = OutboxRelay(tables, settings(redis_url), [Cascade("page", to=[("config", "{resource_id}")])], QUICKLY)
    async with running(relay), connected(tables) as connection:
        await put(connection, invalidation("x", data_type="page"))
        await gone(caches, "x")


async def test_the_cascades_of_the_documentations_file_are_followed_for_rows_of_plain_sql_and_no_others_are(
    tables: str, redis_url: str, tmp_path: Path
) -> None:
    path = tmp_path / "cascades.toml"
    path.write_text(file(DOCS / "outbox.md", "cascades.toml"))
    cascades = load_cascades(path)
    async with nodes(redis_url, 1) as (cache,):
        cache.register(*cascades)  # which no relay hears of
        for relay, then in (
            (relay_of(tables, redis_url), [1, 1]),
            (OutboxRelay(tables, settings(redis_url), cascades, QUICKLY), [None, None]),
        ):
            for data_type, resource_id in (("document", "7"), ("embedding", "doc:7"), ("query_result", "q")):
                await cache.set(data_type, resource_id, 1, tenant_id="acme")
            async with running(relay), connected(tables) as connection:
                await put(connection, invalidation("7", data_type="document"))
                await applied(relay, 1)
            await until(lambda: _gives(cache, "document", "7", None))
            for value, (data_type, resource_id) in zip(
                then, (("embedding", "doc:7"), ("query_result", "q")), strict=True
            ):
                await until(partial(_gives, cache, data_type, resource_id, value))


async def test_after_an_outage_nodes_read_what_l2_has_until_the_row_is_applied_or_the_write_was_told_directly(
    tables: str, own_server: EmbeddedServer
) -> None:
    """As the page on outages says."""
    source = {"row": 1, "both": 1}

    async def load(resource_id: str) -> int:
        return source[resource_id]

    async def read(cache: Cache, resource_id: str) -> int:
        return await cache.get_or_load("price", resource_id, load, tenant_id="acme")

    async with nodes(own_server.url, 2, pending_max=10) as (writer, other), connected(tables) as connection:
        for cache, resource_id in ((writer, "row"), (writer, "both"), (other, "row"), (other, "both")):
            assert await read(cache, resource_id) == 1
        own_server.pause()
        await until(lambda: not writer.health().coherent and not other.health().coherent)
        for resource_id in source:
            async with connection.transaction():
                await OutboxProducer(connection, Outbox(settings(own_server.url))).invalidate(
                    "price", resource_id, "acme"
                )
                source[resource_id] = 2
        assert (await writer.invalidate("price", "both", tenant_id="acme")).status == "pending"
        assert await read(writer, "both") == 2
        own_server.resume()
        await until(lambda: writer.ready() and other.ready())
        assert await writer.drain()
        await until(partial(_reads, read, other, "both", 2))
        assert [await read(writer, "both"), await read(writer, "row"), await read(other, "row")] == [2, 1, 1]
        async with running(relay_of(tables, own_server.url)):
            for cache in (writer, other):
                await until(partial(_reads, read, cache, "row", 2))


async def _reads(read: Callable[[Cache, str], Awaitable[int]], cache: Cache, resource_id: str, value: int) -> bool:
    return await read(cache, resource_id) == value


async def _gives(cache: Cache, data_type: str, resource_id: str, value: int | None) -> bool:
    return await cache.get(data_type, resource_id, tenant_id="acme") == value


async def _none(database: str) -> bool:
    return await waiting(database) == 0


async def test_a_transaction_that_commits_long_after_later_ones_is_not_skipped(
    tables: str, redis_url: str, caches: list[Cache]
) -> None:
    await fill(caches, "early", "late")
    async with running(relay_of(tables, redis_url)) as relay, connected(tables) as slow, connected(tables) as quick:
        transaction = slow.transaction()
        await transaction.start()
        await put(slow, invalidation("early"))  # the lower id
        for number in range(20):
            await put(quick, invalidation(f"n{number}"))
        await put(quick, invalidation("late"))
        await gone(caches, "late")
        await applied(relay, 21)
        assert await caches[1].get("config", "early", "acme") == "old"
        await transaction.commit()
        await gone(caches, "early")
        await until(lambda: _none(tables))


async def test_rows_for_other_caches_are_left_alone(tables: str, redis_url: str) -> None:
    async with connected(tables) as connection:
        await put(connection, invalidation("x"), "nonsense", namespace="elsewhere")
        async with running(relay_of(tables, redis_url)) as relay:
            await put(connection, invalidation("x"))
            await applied(relay, 1)
        assert await waiting(tables, "elsewhere") == 2
        async with running(relay_of(tables, redis_url, namespace="elsewhere")) as other:
            await applied(other, 1)
            await until(lambda: other.meters.count("dead") == 1)


async def test_a_row_waits_until_it_is_due(tables: str, redis_url: str) -> None:
    async with running(relay_of(tables, redis_url)) as relay, connected(tables) as connection:
        inserts = "INSERT INTO cachebus_outbox (command, due_at) VALUES ($1, clock_timestamp() + $2) RETURNING due_at"
        for due_in in (timedelta(hours=1), timedelta(hours=-1)):
            await connection.fetchval(inserts, invalidation("x"), due_in)
        due_at = await connection.fetchval(inserts, invalidation("y"), timedelta(seconds=0.3))
        await applied(relay, 2)
        assert await connection.fetchval("SELECT clock_timestamp() >= $1", due_at)
        await until(lambda: _left(tables, 1))
        assert (lag := relay.meters.registry.get_sample_value("cachebus_worker_lag_seconds_sum", {"worker": "outbox"}))
        assert lag < 60  # from when they were due


async def _left(database: str, count: int) -> bool:
    return await waiting(database) == count


# -- waking up -------------------------------------------------------------------------------------------------


async def test_a_commit_wakes_it_up(tables: str, redis_url: str) -> None:
    async with running(relay_of(tables, redis_url, SELDOM)) as relay, connected(tables) as connection:
        await until(lambda: relay.health.ready)
        for number in range(1, 4):
            await put(connection, invalidation("x"))
            await applied(relay, number)


async def test_without_notifications_it_looks_by_itself(tables: str, redis_url: str) -> None:
    await create_tables(tables, notify=False)
    async with connected(tables) as connection:
        assert await connection.fetchval("SELECT count(*) FROM pg_trigger WHERE NOT tgisinternal") == 0
        async with running(relay_of(tables, redis_url)) as relay:
            await until(lambda: relay.health.ready)
            await put(connection, invalidation("x"))
            await applied(relay, 1)


async def test_the_tables_may_be_made_again_and_by_several_at_once(database: str, redis_url: str) -> None:
    async with connected(database) as connection:
        await connection.execute("CREATE SCHEMA app")
        await asyncio.gather(*[create_tables(database, "app.invalidations") for _ in range(4)])
        await put_into(connection, '"app"."invalidations"', invalidation("x"), "nonsense")
        await create_tables(database, "app.invalidations")
        options = RelayOptions(table="app.invalidations", poll_interval_s=3600)
        async with running(relay_of(database, redis_url, options)) as relay:
            await applied(relay, 1)
            await put_into(connection, '"app"."invalidations"', invalidation("y"))
            await applied(relay, 2)
        assert await connection.fetchval('SELECT command FROM "app"."invalidations_dead"') == "nonsense"


async def test_rows_that_lie_while_l2_is_away_need_no_poll_to_be_applied(database: str) -> None:
    await create_tables(database)
    server = EmbeddedServer()
    port = server.port
    async with connected(database) as connection:
        await put(connection, invalidation("x"))
        options = RelayOptions(poll_interval_s=3600)
        async with running(relay_of(database, f"redis://127.0.0.1:{port}/0", options)) as relay:
            await until(lambda: relay.health.is_up("database"))
            await asyncio.to_thread(server.start)
            try:
                await applied(relay, 1)
            finally:
                await asyncio.to_thread(server.stop)


async def put_into(connection: asyncpg.Connection, table: str, *commands: str) -> None:
    """Write rows into a table of that name."""
    await connection.executemany(f"INSERT INTO {table} (command) VALUES ($1)", [(one,) for one in commands])


async def test_a_missing_table_is_waited_for_and_the_remedy_told(database: str, redis_url: str) -> None:
    with lines_told("WARNING") as told:
        async with running(relay_of(database, redis_url)) as relay:
            await until(lambda: told)
            assert "--create-table" in told[0]
            part = relay.health.as_dict()["parts"]["table"]
            assert not part["up"]
            assert "cachebus_outbox" in part["why"]
            await create_tables(database)
            await until(lambda: relay.health.ready)
            async with connected(database) as connection:
                await put(connection, invalidation("x"))
            await applied(relay, 1)
        (_, over) = told
        assert "is in order again" in over


async def test_an_address_that_is_none_ends_it(redis_url: str) -> None:
    for url in ("oracle://localhost/x", "cachebus", ""):
        with pytest.raises(ConfigError, match="must be a URL like"):
            relay_of(url, redis_url)
    for url in ("postgresql://localhost:port/x", "postgresql://localhost/x?sslmode=s3cret"):
        with pytest.raises(ConfigError, match="database"):
            await relay_of(url, redis_url).run()


async def test_the_address_may_be_as_sqlalchemy_writes_it(tables: str, redis_url: str) -> None:
    url = tables.replace("postgresql://", "postgresql+asyncpg://")
    async with running(relay_of(url, redis_url)) as relay:
        await until(lambda: relay.health.ready)


# -- poison ----------------------------------------------------------------------------------------------------

POISON = {
    "secret": "Invalid JSON",
    "": "Invalid JSON",
    '"secret"': "",
    "{}": "op",
    '{"op": "secret"}': "op",
    invalidation("x", secret=1): "secret",
    invalidation(""): "resource_id is empty",
    invalidation("secret", tenant_id=None): "tenant_id is needed",
    invalidation("secret", contexts="all", agent_id="a"): "contexts",
    invalidation("secret", data_type="needs collection"): "collection_id",
    '{"op": "tags", "tenant_id": "acme", "tags": []}': "tags",
    '{"op": "scope", "tenant_id": "acme", "agent_id": "a", "collection_id": "c"}': "at most one",
    "[" * 100_000: "recursion",
}


async def test_poison_is_set_aside_and_holds_up_nothing(tables: str, redis_url: str, caches: list[Cache]) -> None:
    await fill(caches, "a", "b")
    cascades = [Cascade("needs collection", to=[("config", "{collection_id}")])]
    relay = OutboxRelay(tables, settings(redis_url), cascades, QUICKLY)
    async with connected(tables) as connection:
        await put(connection, invalidation("a"), *POISON, invalidation("b"))
        with lines_told("WARNING") as told:
            async with running(relay):
                await gone(caches, "a", "b")
                await until(lambda: _none(tables))
                await until(lambda: relay.meters.count("dead") == len(POISON))
                await until(lambda: relay.meters.count("applied") == 3)  # of one all but what its cascade can't name
        rows = await connection.fetch("SELECT * FROM cachebus_outbox_dead ORDER BY row_id")
    assert [row["command"] for row in rows] == list(POISON)
    for row in rows:
        assert POISON[row["command"]] in row["reason"], row["reason"]
        assert row["attempts"] == 1
        assert row["created_at"] < row["died_at"]
    assert len(told) == 6  # some by name, and how many more
    assert "row 2 " in told[0]
    assert "secret" not in "".join(told).replace("secret: Extra", "")
    assert await waiting(tables) == 0


async def test_whatever_a_row_does_to_it_the_others_are_applied(
    tables: str, redis_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    relay = relay_of(tables, redis_url)
    real = relay._applier.plan_of

    def plan_of(command: str) -> Any:
        if "odd" in command:
            raise ZeroDivisionError("secret")
        return real(command)

    monkeypatch.setattr(relay._applier, "plan_of", plan_of)
    async with running(relay), connected(tables) as connection:
        await put(connection, invalidation("odd"), invalidation("x"))
        await applied(relay, 1)
        await until(lambda: relay.meters.count("dead") == 1)
        assert await connection.fetchval("SELECT reason FROM cachebus_outbox_dead") == (
            "ZeroDivisionError while it was read"
        )


async def test_the_dead_come_back_with_their_time_and_count(tables: str, redis_url: str) -> None:
    good = json.dumps({"op": "invalidate", "tenant_id": "acme", "data_type": "page", "resource_id": "x"})
    refusing = [Cascade("page", to=[("config", "{collection_id}")])]
    async with connected(tables) as connection:
        await put(connection, good, "nonsense")
        await put(connection, "nonsense", namespace="elsewhere")
        async with running(OutboxRelay(tables, settings(redis_url), refusing, QUICKLY)) as relay:
            await until(lambda: relay.meters.count("dead") == 2)
        before = await connection.fetchval("SELECT created_at FROM cachebus_outbox_dead WHERE command = 'nonsense'")
        assert await replay(tables, "nowhere") == 0
        assert await replay(tables, "cachebus", limit=1) == 1
        assert await replay(tables, "cachebus") == 1
        assert await waiting(tables) == 2
        async with running(relay_of(tables, redis_url)) as mended:
            await applied(mended, 1)
            await until(lambda: mended.meters.count("dead") == 1)
        (left,) = await connection.fetch("SELECT * FROM cachebus_outbox_dead")
    assert (left["command"], left["attempts"], left["created_at"]) == ("nonsense", 2, before)
    assert await waiting(tables, "elsewhere") == 1


# -- sharing the work ------------------------------------------------------------------------------------------


async def test_several_share_the_work_and_do_none_of_it_twice(tables: str, redis_url: str) -> None:
    options = RelayOptions(batch=20, poll_interval_s=0.05)
    relays = [relay_of(tables, redis_url, options) for _ in range(2)]
    async with connected(tables) as connection, running(relays[0]), running(relays[1]):
        for relay in relays:
            await until(lambda r=relay: r.health.ready)
        await put(connection, *[invalidation(f"n{number}") for number in range(1000)])
        await until(lambda: sum(relay.meters.count("applied") for relay in relays) == 1000)
        await until(lambda: _none(tables))
    assert all(relay.meters.count("applied") > 0 for relay in relays)
    assert sum(relay.meters.count("applied") for relay in relays) == 1000


async def test_what_another_has_in_hand_is_passed_over_until_he_lets_it_go(
    tables: str, redis_url: str, caches: list[Cache]
) -> None:
    await fill(caches, "held", "free")
    async with running(relay_of(tables, redis_url)) as first:
        await until(lambda: first.health.ready)
        identity = first.source.identity()
    async with connected(tables) as connection, hand_at(tables, identity) as hand:
        await put(connection, invalidation("held"))
        await hand.take()
        async with running(relay_of(tables, redis_url)) as relay:
            await put(connection, invalidation("free"))
            await gone(caches, "free")
            assert await caches[0].get("config", "held", "acme") == "old"
            await applied(relay, 1)
            await hand.fail()
            await gone(caches, "held")


class Hand:
    """Takes rows as a relay does, and fails."""

    def __init__(self, database: Any) -> None:
        self._database = database
        self._failed = asyncio.Event()
        self._taken = asyncio.Event()
        self._task: asyncio.Task[None] | None = None

    async def take(self) -> None:
        """Take all that is there."""
        self._task = asyncio.create_task(self._hold())
        await self._taken.wait()

    async def _hold(self) -> None:
        assert (await self._database.take(100, ())).items
        self._taken.set()
        await self._failed.wait()
        await self._database._connection.close()
        raise ZeroDivisionError

    async def fail(self) -> None:
        """As a relay that is killed."""
        assert self._task is not None
        self._failed.set()
        await asyncio.wait([self._task])
        assert isinstance(self._task.exception(), ZeroDivisionError)


@asynccontextmanager
async def hand_at(url: str, identity: str) -> AsyncIterator[Hand]:
    """A hand that can take rows, for this L2."""
    async with session_at(url, hold_s=60) as session:
        session._known.identity = lambda: identity
        yield Hand(session)


@asynccontextmanager
async def session_at(url: str, **options: Any) -> AsyncIterator[PostgresSession]:
    """A relay's session."""
    async with PostgresOutbox(url, "cachebus", RelayOptions(**options)).opened() as session:
        assert isinstance(session, PostgresSession)
        yield session


async def test_rows_in_the_hands_of_one_that_is_frozen_are_freed_by_the_database(
    tables: str, redis_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("cachebus.consumers.outbox.postgres.IDLE_GRACE_S", 0.05)

    async def frozen() -> None:
        async with session_at(tables, hold_s=0.05) as session:
            batch = await session.take(10, ())
            assert len(batch.items) == 1
            async with running(relay_of(tables, redis_url)) as relay:
                await applied(relay, 1)
            await session.acknowledge(batch, Left())

    async with connected(tables) as connection:
        await put(connection, invalidation("x"))
    with pytest.raises(TROUBLE):
        await frozen()
    assert await waiting(tables) == 0


# -- what is away ----------------------------------------------------------------------------------------------


async def test_while_the_database_is_away_it_waits_and_says_so_and_then_goes_on(
    tables: str, redis_url: str, postgres: PostgresServer, caches: list[Cache]
) -> None:
    await fill(caches, "before", "after")
    with lines_told("WARNING") as told:
        async with running(relay_of(tables, redis_url)) as relay:
            await until(lambda: relay.health.ready)
            await asyncio.to_thread(postgres.kill)
            await until(lambda: not relay.health.is_up("database"))
            assert not relay.health.ready
            assert relay.health.live
            await until(lambda: relay._retry._tries > 3)
            await asyncio.to_thread(postgres.start)
            async with connected(tables) as connection:
                await put(connection, invalidation("after"))
            await gone(caches, "after")
            await until(lambda: relay.health.ready)
    away, back = told
    assert "database is out of reach" in away and "database is back" in back


async def test_a_database_that_hangs_is_given_up_and_tried_again(
    tables: str, redis_url: str, postgres: PostgresServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("cachebus.consumers.outbox.database.COMMAND_TIMEOUT_S", 0.3)
    monkeypatch.setattr("cachebus.consumers.outbox.database.CONNECT_TIMEOUT_S", 0.3)
    monkeypatch.setattr("cachebus.consumers.outbox.database.CLOSE_TIMEOUT_S", 0.1)
    async with running(relay_of(tables, redis_url)) as relay:
        await until(lambda: relay.health.ready)
        # Each connection has a process of its own there.
        pids = [postgres.pid, *descendants(postgres.pid)]
        for pid in pids:
            os.kill(pid, signal.SIGSTOP)
        try:
            await until(lambda: not relay.health.is_up("database"))
            await until(lambda: relay._retry._tries > 1)
        finally:
            for pid in pids:
                os.kill(pid, signal.SIGCONT)
        async with connected(tables) as connection:
            await put(connection, invalidation("x"))
        await applied(relay, 1)


async def test_while_redis_hangs_no_transaction_stays_open_and_nothing_is_lost(
    tables: str, own_server: EmbeddedServer
) -> None:
    async with nodes(own_server.url, 2) as caches, connected(tables) as connection:
        await fill(caches, "x")
        options = RelayOptions(poll_interval_s=0.02, hold_s=0.3)
        async with running(relay_of(tables, own_server.url, options)) as relay:
            await until(lambda: relay.health.ready)
            own_server.pause()
            await put(connection, invalidation("x"), "nonsense")
            await until(lambda: in_transaction(connection))  # taken, and not yet known to be in vain
            await until(lambda: not relay.health.is_up("l2"))
            await until(lambda: none_in_transaction(connection))
            for _ in range(50):  # many times as long as it looks for rows, and it looks how all stands now and then
                await asyncio.sleep(0.01)
                assert not await in_transaction(connection, longer_than_s=0.4)
            assert relay.meters.count("applied") == 0
            assert invalidation("x") in [
                row[0] for row in await connection.fetch("SELECT command FROM cachebus_outbox")
            ]
            own_server.resume()
            await gone(caches, "x")
            await until(lambda: relay.meters.count("dead") == relay.meters.count("applied") == 1)
            await until(lambda: relay.health.ready)
        assert await connection.fetchval("SELECT count(*) FROM cachebus_outbox_dead") == 1


async def in_transaction(connection: asyncpg.Connection, longer_than_s: float = 0.0) -> bool:
    """Whether a relay has a transaction open, for longer than this."""
    return bool(
        await connection.fetchval(
            "SELECT count(*) FROM pg_stat_activity WHERE application_name = 'cachebus outbox' "
            "AND datname = current_database() "
            "AND clock_timestamp() - xact_start > make_interval(secs => $1)",
            longer_than_s,
        )
    )


async def none_in_transaction(connection: asyncpg.Connection) -> bool:
    """Whether none has."""
    return not await in_transaction(connection)


async def test_a_restart_of_redis_that_forgets_everything_loses_no_row(tables: str, own_server: EmbeddedServer) -> None:
    async with connected(tables) as connection, running(relay_of(tables, own_server.url)) as relay:
        await until(lambda: relay.health.ready)
        await asyncio.to_thread(own_server.kill)
        await put(connection, *[invalidation(f"n{number}") for number in range(100)])
        await until(lambda: not relay.health.is_up("l2"))
        await asyncio.to_thread(own_server.start)
        await applied(relay, 100)
        await until(lambda: _none(tables))


async def test_rows_that_were_applied_and_not_let_go_come_again_and_are_counted(
    tables: str, redis_url: str, postgres: PostgresServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    relay = relay_of(tables, redis_url)
    real, ended = relay._applier.carry, []

    async def apply(plans: Any, within_s: float | None = None) -> Any:
        carried = await real(plans, within_s)
        if plans and not ended:
            ended.append(1)
            async with connected(postgres.url) as other:
                await other.execute(
                    "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE application_name = 'cachebus outbox'"
                )
        return carried

    monkeypatch.setattr(relay._applier, "carry", apply)
    async with running(relay), connected(tables) as connection:
        await until(lambda: relay.health.ready)
        await put(connection, invalidation("x"))
        await until(lambda: relay.meters.count("again") == 1)
    assert relay.meters.count("applied") == 0
    assert await waiting(tables) == 0


# -- the end ---------------------------------------------------------------------------------------------------


async def test_draining_finishes_what_is_in_hand_and_takes_no_more(
    tables: str, redis_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    relay = relay_of(tables, redis_url, RelayOptions(batch=3))
    real, begun, go_on = relay._applier.carry, asyncio.Event(), asyncio.Event()

    async def apply(plans: Any, within_s: float | None = None) -> Any:
        if plans:
            begun.set()
            await go_on.wait()
        return await real(plans, within_s)

    monkeypatch.setattr(relay._applier, "carry", apply)
    async with connected(tables) as connection:
        await put(connection, *[invalidation(f"n{number}") for number in range(10)])
        run = asyncio.create_task(relay.run())
        await begun.wait()
        relay.drain()
        await asyncio.sleep(0)
        assert not run.done()
        go_on.set()
        await run
    await until(lambda: relay.meters.count("applied") == 3)
    assert await waiting(tables) == 7


async def test_draining_ends_at_once_where_nothing_is_in_hand(tables: str, redis_url: str) -> None:
    idle = relay_of(tables, redis_url, SELDOM)
    run = asyncio.create_task(idle.run())
    await until(lambda: idle.health.ready)
    idle.drain()
    async with asyncio.timeout(2):
        await run


async def test_also_while_redis_was_never_there(tables: str) -> None:
    relay = relay_of(tables, "redis://127.0.0.1:1/0")
    run = asyncio.create_task(relay.run())
    await until(lambda: not relay.health.is_up("l2"))
    relay.drain()
    async with asyncio.timeout(2):
        await run


async def test_all_that_is_away_is_told_at_once() -> None:
    relay = relay_of("postgresql://127.0.0.1:1/x", "redis://127.0.0.1:1/0")
    async with running(relay):
        for part in ("database", "l2"):
            await until(lambda p=part: "not connected yet" not in relay.health.as_dict()["parts"][p]["why"])


async def test_what_no_waiting_helps_against_ends_it(tables: str, redis_url: str) -> None:
    async with nodes(redis_url, 1), connected(tables) as connection:
        await put(connection, invalidation("x"))
        with pytest.raises(ProtocolMismatch):
            await relay_of(tables, redis_url, shards=4).run()
        assert await waiting(tables) == 1


# -- figures ---------------------------------------------------------------------------------------------------


async def test_backlog_and_lag_are_told(tables: str, redis_url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("cachebus.consumers.worker.watcher.LOOK_EVERY_S", 0.05)
    relay = relay_of(tables, redis_url)

    def figure(name: str) -> float:
        return relay.meters.registry.get_sample_value(f"cachebus_worker_{name}", {"worker": "outbox"}) or 0.0

    async with connected(tables) as connection:
        async with connection.transaction():
            # Old ones, held by another: they wait, and are seen to.
            await connection.execute(
                "INSERT INTO cachebus_outbox (command, created_at) SELECT $1, clock_timestamp() - interval '90 s' "
                "FROM generate_series(1, 12000)",
                invalidation("x"),
            )
        async with connection.transaction():
            await connection.execute("SELECT 1 FROM cachebus_outbox FOR UPDATE")
            async with running(relay):
                await until(lambda: figure("backlog") == 12_000)
                assert 90 <= figure("oldest_seconds") < 120
        async with running(relay):
            await until(lambda: figure("backlog") == 0)
            assert figure("oldest_seconds") == 0
    assert figure("lag_seconds_count") == 12_000
    assert 90 <= figure("lag_seconds_sum") / 12_000 < 120
    assert figure("batch_size_count") >= 24
