"""Rows of an outbox that wait for one primary of several: they hold up nobody, and are told of."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest

from cachebus import Cache
from cachebus.base.clock import monotonic
from cachebus.consumers.outbox import OutboxRelay, RelayOptions, create_tables
from cachebus.tools.servers.redis_group import ask
from tests.conftest import connected
from tests.support.caches import nodes, quick, until
from tests.support.outbox import invalidation, put, running, waiting
from tests.support.primaries import SHARDS, Town, no_answer
from tests.support.servers import any_binary

MANY = 20_000


@pytest.fixture
async def town() -> AsyncIterator[Town]:
    """Three primaries."""
    async with Town(any_binary(), replicas=0) as town:
        yield town


@asynccontextmanager
async def at_work(town: Town, database: str) -> AsyncIterator[tuple[OutboxRelay, Cache]]:
    """A relay, and a cache without memory beside it."""
    await create_tables(database)
    relay = OutboxRelay(database, quick(town.url, shards=SHARDS), options=RelayOptions(poll_interval_s=0.05))
    async with nodes(town.url, 1, shards=SHARDS) as (cache,), running(relay):
        await until(lambda: relay.health.ready)
        yield relay, cache


async def lag_s(town: Town, database: str, cache: Cache, tenant: str) -> float:
    """How long a healthy tenant's row takes."""
    await cache.set("config", "x", "old", tenant)

    async def gone() -> bool:
        return await cache.get("config", "x", tenant, use_memory=False) is None

    async with connected(database) as connection:
        await put(connection, invalidation("x", tenant_id=tenant))
    began_s = monotonic()
    await until(gone)
    return monotonic() - began_s


def figure(relay: OutboxRelay, name: str) -> float:
    """One of the relay's."""
    return relay.meters.registry.get_sample_value(f"cachebus_worker_{name}", {"worker": "outbox"}) or 0.0


async def test_many_rows_for_one_that_is_away_hold_up_no_healthy_tenant_and_are_written_once(
    town: Town, database: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("cachebus.consumers.worker.watcher.LOOK_EVERY_S", 0.2)
    first, healthy = town.servers[0], town.tenants[1]
    async with at_work(town, database) as (relay, cache), connected(database) as connection:
        first.kill()
        with no_answer(first.port):
            await connection.execute(
                "INSERT INTO cachebus_outbox (command, created_at) "
                "SELECT $1, clock_timestamp() - interval '100 s' FROM generate_series(1, $2)",
                invalidation("y", tenant_id=town.tenants[0]),
                MANY,
            )
            lags = [await lag_s(town, database, cache, healthy) for _ in range(5)]
            await until(lambda: figure(relay, "held") == figure(relay, "backlog") == MANY)
            assert figure(relay, "oldest_seconds") >= 100
            assert relay.health.ready
            where = "SELECT ctid::text FROM cachebus_outbox WHERE id = 77"
            before = await connection.fetchval(where)
            for _ in range(20):
                lags.append(await lag_s(town, database, cache, healthy))
                await asyncio.sleep(0.1)
            assert await connection.fetchval(where) == before, "it is written once"
            assert await waiting(database) == MANY
        first.start()
        await until(lambda: relay.meters.count("applied") == MANY + len(lags), within_s=60)
        await until(lambda: figure(relay, "held") == figure(relay, "backlog") == figure(relay, "oldest_seconds") == 0)
        assert figure(relay, "lag_seconds_sum") > 100 * MANY
        print(f"lag of a healthy tenant: {max(lags[:5]):.2f} s at first, {max(lags[5:]):.2f} s later")


async def test_one_that_holds_back_what_is_written_holds_up_no_other(town: Town, database: str) -> None:
    """It answers all the while, so it is tried again and again."""
    async with at_work(town, database) as (relay, cache), connected(database) as connection:
        await ask(town.servers[0], "CLIENT", "PAUSE", "60000", "WRITE")
        await put(connection, *[invalidation("y", tenant_id=town.tenants[0])] * 3000)
        lags = []
        for _ in range(30):
            lags.append(await lag_s(town, database, cache, town.tenants[1]))
            await asyncio.sleep(0.1)
        assert await waiting(database) == 3000
        await ask(town.servers[0], "CLIENT", "UNPAUSE")
        await until(lambda: relay.meters.count("applied") == 3000 + len(lags))
        print(f"lag of a healthy tenant: {sorted(lags)[-5:]}")


async def test_a_row_that_waits_is_taken_by_whoever_comes_after(town: Town, database: str) -> None:
    """Also where that one counts shards otherwise."""
    async with at_work(town, database) as (relay, _), connected(database) as connection:
        town.servers[0].kill()
        await put(connection, invalidation("y", tenant_id=town.tenants[0]))

        async def waits() -> bool:
            return bool(await connection.fetchval("SELECT count(*) FROM cachebus_outbox WHERE waits_for >= 0"))

        await until(waits)
        await connection.execute("UPDATE cachebus_outbox SET waits_for = 1023")
    town.servers[0].start()
    async with at_work(town, database) as (relay, _):
        await until(lambda: relay.meters.count("applied") == 1)
