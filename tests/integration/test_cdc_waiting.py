"""A slot's worker and what takes its time: what is held for a primary that is away, an L2 that is slow, a worker that
is frozen, a database where nothing happens."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence
from dataclasses import replace
from typing import Any

import asyncpg
import pytest
from pydantic import SecretStr

from cachebus.consumers.cdc.rules.router import Router
from cachebus.consumers.cdc.slot import others, postgres, reader, storage
from cachebus.consumers.cdc.slot.held import HeldCommands
from cachebus.consumers.cdc.slot.postgres import SlotSource, SlotWorker
from cachebus.consumers.cdc.slot.replay import replay
from cachebus.consumers.worker import watcher
from cachebus.consumers.worker.apply import Carried
from cachebus.consumers.worker.source import Item, WaitingItem
from cachebus.keys.plan import Plan
from cachebus.producers.command import InvalidateScope, encode
from cachebus.tools.servers.postgres import PostgresServer
from cachebus.tools.servers.redis import EmbeddedServer
from tests.conftest import connected
from tests.support.caches import quick, until
from tests.support.changes import END, SCHEMA, Heard, fetched, fetched_is, rules, running, tell
from tests.support.worker_health import why

THE_END = f"INSERT INTO shop.orders VALUES ({END[1]}, 'acme', 1, '')"
MANY = "INSERT INTO shop.orders SELECT g, 'acme', 1, '' FROM generate_series(1000, {}) g"
DISTANCE = (
    "SELECT pg_wal_lsn_diff(pg_current_wal_lsn(), restart_lsn)::bigint FROM pg_replication_slots WHERE database = $1"
)


def worker(database: str, redis_url: str, **more: Any) -> SlotWorker:
    source = replace(SlotSource(SecretStr(database), poll_s=0.005), **more)
    return SlotWorker(quick(redis_url), rules(), source)


def waiting(tenant: str, shard: int = 0, sent_s: float = 1e9) -> WaitingItem:
    command = InvalidateScope(tenant_id=tenant, data_type="order")
    return WaitingItem(Item("0/1", None, sent_s), [command], frozenset({shard}))


@pytest.fixture
async def connection(database: str) -> AsyncIterator[asyncpg.Connection]:
    async with connected(database) as one:
        await one.execute(f"{storage.MAKE[storage.SLOTS]}; {storage.MAKE[storage.HELD]}")
        yield one


def held_by(connection: asyncpg.Connection, shards: int = 4) -> HeldCommands:
    return HeldCommands(connection, "s", shards, lambda command: int(str(command.tenant_id)) % shards)


async def test_a_command_is_held_once_however_often_it_is_asked_for(connection: asyncpg.Connection) -> None:
    held = held_by(connection)
    await held.put([waiting("1", sent_s=1e9 + 5)])
    for _ in range(3):
        await held.put([waiting("1"), waiting("1"), waiting("2")])
    count, oldest_s, _ = await held.figures()
    assert count == 2
    assert oldest_s > 1e8, "it has waited since the first of them was written"


async def test_what_was_asked_for_again_meanwhile_stays_held(connection: asyncpg.Connection) -> None:
    """1. It is taken. 2. A change asks for it once more. 3. What was taken is let go of: that was before the change."""
    held = held_by(connection)
    await held.put([waiting("1")])
    taken = await held.take(10, ())
    await held.put([waiting("1")])
    await held.acknowledge(taken)
    assert (await held.figures())[0] == 1
    await held.acknowledge(await held.take(10, ()))
    assert (await held.figures())[0] == 0


async def test_what_waits_for_a_primary_that_is_away_is_not_taken(connection: asyncpg.Connection) -> None:
    held = held_by(connection)
    await held.put([waiting(str(number)) for number in range(40)])
    assert {item.raw.shard for _ in range(8) for item in await held.take(5, {0, 1})} == {2, 3}, "the others by turns"
    assert not await held.take(5, {0, 1, 2, 3})
    again = held_by(connection)
    await again.found()
    assert len(await again.take(500, {0, 1, 2})) == 10


async def test_with_another_number_of_shards_all_are_tried(connection: asyncpg.Connection) -> None:
    await held_by(connection).put([waiting(str(number)) for number in range(8)])
    other = held_by(connection, shards=2)
    await other.found()
    assert len(await other.take(500, {0, 1})) == 8


async def test_a_held_row_that_cant_be_used_is_set_aside(database: str, redis_url: str) -> None:
    await tell(database, [SCHEMA])
    async with running(worker(database, redis_url)):
        pass
    good = encode(InvalidateScope(tenant_id="acme", data_type="order")).decode()
    put = "INSERT INTO cachebus_cdc_held (slot, digest, shards, shard, command) VALUES ('cachebus_cdc', $1, 1, 0, $2)"
    for number, command in enumerate(("no json", '{"op": "invalidate", "data_type": 7}', good)):
        await fetched(database, put, str(number), command)
    one = worker(database, redis_url)
    heard = Heard(one)
    async with running(one):
        await tell(database, [THE_END])
        await until(lambda: heard.has(*END))
        await until(lambda: heard.asked["D acme order"])
        await until(lambda: fetched_is(database, 0, "SELECT count(*) FROM cachebus_cdc_held"))
        assert one.meters.count("dead") == 2
        assert await fetched(database, "SELECT count(*) FROM cachebus_cdc_dead WHERE source LIKE 'held %'") == 2
        fixed = "UPDATE cachebus_cdc_dead SET payload = $1 WHERE payload = 'no json'"
        await fetched(database, fixed, good.replace("order", "note"))
        assert await replay(SecretStr(database), "cachebus_cdc", Router(rules()), one._applier) == (1, 1)
        assert heard.asked["D acme note"] == 1


async def test_a_transaction_makes_progress_however_slow_l2_is(database: str, redis_url: str) -> None:
    """Of each batch L2 does no more than 50 in its time: the worker goes on behind them, and begins nothing anew."""
    await tell(database, [SCHEMA])
    one = worker(database, redis_url)
    carry = one._applier.carry

    async def slow(plans: Sequence[Plan], within_s: float | None = None) -> Carried:
        carried = await carry(plans[:50], within_s)
        return Carried(carried.away, carried.late | set(range(50, len(plans))), carried.failed)

    one._applier.carry = slow  # type: ignore[method-assign]
    heard = Heard(one)
    async with running(one):
        await tell(database, [MANY.format(1999), THE_END])
        await until(lambda: heard.has(*END), within_s=60)
        assert {heard.asked[f"K acme:order:{number}"] for number in range(1000, 2000)} == {1}


async def test_what_was_begun_is_gone_on_with_after_a_reconnect(database: str, redis_url: str) -> None:
    """The slot can go behind whole transactions only: how much of one is done is remembered by the worker."""
    await tell(database, [SCHEMA])
    one = worker(database, redis_url, batch=100)
    heard = Heard(one)
    carry, ended = one._applier.carry, False

    async def disturbed(plans: Sequence[Plan], within_s: float | None = None) -> Carried:
        nonlocal ended
        if not ended and heard.has("order", "1700"):
            ended = True
            sql = (
                "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = $1 AND application_name LIKE $2"
            )
            await fetched(database, sql, database.rpartition("/")[2], "cachebus-cdc%")
        return await carry(plans, within_s)

    one._applier.carry = disturbed  # type: ignore[method-assign]
    async with running(one):
        await tell(database, [MANY.format(1999), THE_END])
        await until(lambda: heard.has(*END), within_s=60)
    assert ended
    assert {heard.asked[f"K acme:order:{number}"] for number in range(1000, 1700)} == {1}
    assert all(heard.has("order", str(number)) for number in range(1000, 2000))


async def test_no_transaction_is_open_while_nothing_is_taken(
    database: str, redis_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """L2 is known to be away when half of a look is done with."""
    monkeypatch.setattr(reader, "HOLD_S", 0.05)
    monkeypatch.setattr(reader, "KEEP_S", 0.05)
    await tell(database, [SCHEMA])
    one = worker(database, redis_url)
    heard, taking = Heard(one), True
    step = one._step

    async def stepped(session: Any) -> None:
        if heard.has("order", "1500") and not taking:
            await asyncio.sleep(0.01)
        else:
            one._limit = 100
            await step(session)

    one._step = stepped  # type: ignore[method-assign]
    opened = """
        SELECT count(*) FROM pg_stat_activity
        WHERE application_name LIKE 'cachebus-cdc%' AND datname = current_database() AND xact_start IS NOT NULL
    """
    async with running(one):
        taking = False
        await tell(database, [MANY.format(1999), THE_END])
        await until(lambda: heard.has("order", "1500"))
        await until(lambda: fetched_is(database, 0, opened))
        assert not heard.has(*END)
        taking = True
        await until(lambda: heard.has(*END))
        assert {heard.asked[f"K acme:order:{number}"] for number in range(1000, 2000)} == {1}


async def test_a_worker_that_is_frozen_loses_the_slot(
    database: str, redis_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its session says nothing any more, and the server ends it: a process that is stopped still acknowledges what is
    sent to it, so no keep-alive of TCP would."""
    monkeypatch.setattr(postgres, "LOCK_S", 1)
    await tell(database, [SCHEMA])
    first, second = worker(database, redis_url, poll_s=60.0), worker(database, redis_url)
    first.source._lock_s = 1
    monkeypatch.setattr(reader, "KEEP_S", 3600.0)
    heard = Heard(second)
    async with running(first):
        monkeypatch.setattr(reader, "KEEP_S", 0.1)
        async with asyncio.TaskGroup() as group:
            group.create_task(second.run())
            await until(lambda: second.follows)
            await tell(database, [THE_END])
            await until(lambda: heard.has(*END))
            second.drain()


async def test_a_worker_where_nothing_happens_keeps_its_session_and_its_slot_alive(
    database: str, redis_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(reader, "KEEP_S", 0.02)
    await tell(database, [SCHEMA])
    used = """
        SELECT to_jsonb(s) ->> 'inactive_since' FROM pg_replication_slots s WHERE database = current_database()
    """
    async with running(worker(database, redis_url, poll_s=60.0)):
        seen: set[str | None] = set()

        async def several() -> bool:
            seen.add(await fetched(database, used))
            return len(seen) > 5

        await until(several)


async def test_who_stands_by_says_that_the_other_does_nothing(
    database: str, redis_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(watcher, "LOOK_EVERY_S", 0.05)
    monkeypatch.setattr(others, "STILL_S", 0.2)
    await tell(database, [SCHEMA])
    async with running(worker(database, redis_url)):
        pass
    async with connected(database) as frozen:
        await frozen.execute("SELECT pg_advisory_lock(hashtextextended('cachebus-cdc cachebus_cdc', 0))")
        one = worker(database, redis_url)
        task = asyncio.create_task(one.run())
        await until(lambda: "does nothing with it" in why(one, "leader"))
        told = why(one, "leader")
        assert f"the session {frozen.get_server_pid()} from 127.0.0.1" in told
        await tell(database, [told[told.index("SELECT pg_terminate_backend") :]])
        await until(lambda: one.follows and one.health.is_up("leader"))
        one.drain()
        await asyncio.wait_for(task, 20)


async def test_after_a_burst_little_is_read_again(database: str, redis_url: str) -> None:
    """The server notes where it may begin to read every 15 seconds; till then each look reads the whole burst again."""
    await tell(database, [SCHEMA])
    one = worker(database, redis_url)
    heard = Heard(one)
    async with running(one):
        await tell(database, [MANY.format(20_000), THE_END])
        await until(lambda: heard.has(*END), within_s=60)

        async def near() -> bool:
            return bool(await fetched(database, DISTANCE, database.rpartition("/")[2]) < 100_000)

        await until(near)


async def test_a_backlog_is_told_in_bytes_and_changes(
    database: str, redis_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(watcher, "LOOK_EVERY_S", 0.05)
    await tell(database, [SCHEMA])
    one = worker(database, redis_url)
    carry, goes_on = one._applier.carry, asyncio.Event()

    async def waits(plans: Sequence[Plan], within_s: float | None = None) -> Carried:
        await goes_on.wait()
        return await carry(plans, within_s)

    def figure(name: str) -> float:
        return one.meters.registry.get_sample_value(name, {"worker": "cdc"}) or 0.0

    async with running(one):
        one._applier.carry = waits  # type: ignore[method-assign]
        await tell(database, [MANY.format(5000)])
        await until(lambda: 500 < figure("cachebus_worker_backlog") < 50_000)
        assert one.meters.registry.get_sample_value("cachebus_cdc_wal_behind_bytes") > 100_000
        await until(lambda: 0.2 < figure("cachebus_worker_oldest_seconds") < 60)
        goes_on.set()
        await until(lambda: figure("cachebus_worker_backlog") == 0)
        await until(lambda: figure("cachebus_worker_oldest_seconds") == 0)


async def test_the_backlog_falls_while_a_transaction_is_applied(
    database: str, redis_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The slot can only go behind its end: what is done with of it is no backlog all the same."""
    monkeypatch.setattr(watcher, "LOOK_EVERY_S", 0.05)
    await tell(database, [SCHEMA])
    one = worker(database, redis_url)
    carry, goes_on, done = one._applier.carry, asyncio.Event(), 0

    async def waits(plans: Sequence[Plan], within_s: float | None = None) -> Carried:
        nonlocal done
        if done > 6000:
            await goes_on.wait()
        carried = await carry(plans, within_s)
        done += len(plans) - len(carried.late)
        return carried

    def backlog() -> float:
        return one.meters.registry.get_sample_value("cachebus_worker_backlog", {"worker": "cdc"}) or 0.0

    async with running(one):
        one._applier.carry = waits  # type: ignore[method-assign]
        await tell(database, [MANY.format(10_000)])
        await until(lambda: done > 6000)
        behind = "cachebus_cdc_wal_behind_bytes"
        whole = one.source.changes_in
        await until(lambda: 0 < backlog() < 0.8 * whole(int(one.meters.registry.get_sample_value(behind) or 0)))
        goes_on.set()
        await until(lambda: backlog() == 0)


async def test_what_waits_while_l2_is_away_is_told(
    database: str, own_server: EmbeddedServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nothing is looked at then: what was seen last is not how it is."""
    monkeypatch.setattr(watcher, "LOOK_EVERY_S", 0.05)
    await tell(database, [SCHEMA])
    one = worker(database, own_server.url)

    def figure(name: str) -> float:
        return one.meters.registry.get_sample_value(name, {"worker": "cdc"}) or 0.0

    async with running(one):
        await until(lambda: figure("cachebus_worker_backlog") == 0)
        own_server.kill()
        await until(lambda: not one.health.is_up("l2"))
        await tell(database, [MANY.format(5000)])
        await until(lambda: figure("cachebus_worker_backlog") > 500)
        await until(lambda: figure("cachebus_worker_oldest_seconds") > 1)
        own_server.start()
        await until(lambda: figure("cachebus_worker_backlog") == 0 == figure("cachebus_worker_oldest_seconds"))


async def test_a_slot_that_nobody_used_for_too_long_is_lost_in_the_servers_words(redis_url: str) -> None:
    with PostgresServer(settings={"idle_replication_slot_timeout": "1s"}) as server:
        await tell(server.url, [SCHEMA])
        async with running(worker(server.url, redis_url)):
            pass

        async def lost() -> bool:
            await tell(server.url, ["CHECKPOINT"])
            return await fetched(server.url, "SELECT wal_status FROM pg_replication_slots") == "lost"

        await until(lost)
        one = worker(server.url, redis_url, on_lost_slot="stop")
        task = asyncio.create_task(one.run())
        await until(lambda: "invalidation_reason idle_timeout" in one.health.as_dict()["parts"]["slot"]["why"])
        one.drain()
        await asyncio.wait_for(task, 20)
