"""What one node sees of another's writes: at once with a receipt, soon by the bus, and within D whatever is lost."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AbstractContextManager, nullcontext
from typing import Any, cast

import pytest

from cachebus import Cache, Receipt
from cachebus.base.clock import monotonic
from cachebus.cascade import Target
from cachebus.core.ports import LogEntry
from cachebus.listening.catch_up import LOG_BATCH_BYTES, LOG_BATCH_MAX, next_count
from cachebus.testing import FakeClock, Faults, Fleet
from cachebus.tools.servers.redis import EmbeddedServer
from tests.support.caches import D_S, Source, asked, data_calls, deaf, heard, nodes, parts, past, until

Write = Callable[[Cache], Awaitable[Receipt]]
WRITES: dict[str, Write] = {
    "set": lambda cache: cache.set("config", "x", "new", tenant_id="acme"),
    "delete": lambda cache: cache.delete("config", "x", tenant_id="acme"),
    "contexts": lambda cache: cache.invalidate("config", "x", tenant_id="acme", contexts="all"),
    "type": lambda cache: cache.invalidate_scope("acme", "config"),
    "tenant": lambda cache: cache.invalidate_scope("acme"),
    "tag": lambda cache: cache.invalidate_tags(["t"], tenant_id="acme"),
}
Read = Callable[[Cache, Any], Awaitable[Any]]
READS: dict[str, Read] = {
    "get": lambda cache, after: cache.get("config", "x", tenant_id="acme", after=after),
    "search": lambda cache, after: cache.get("config", "x", "acme", "a", search_hierarchy=True, after=after),
    "get_or_load": lambda cache, after: cache.get_or_load("config", "x", lambda: "new", tenant_id="acme", after=after),
}


@pytest.fixture
async def pair(redis_url: str) -> AsyncIterator[list[Cache]]:
    """Two nodes over one server."""
    async with nodes(redis_url) as caches:
        yield caches


async def warmed(caches: list[Cache], value: Any = "old") -> None:
    """All hold the value in memory."""
    await caches[0].set("config", "x", value, tenant_id="acme", tags=["t"])
    for cache in caches:

        async def holds(cache: Cache = cache) -> bool:
            return await cache.get("config", "x", tenant_id="acme") == value

        await until(holds)


def replaced(write: str, read: str) -> Any:
    """What a read gives after the write."""
    return "new" if write == "set" or read == "get_or_load" else None


@pytest.mark.parametrize("write", WRITES)
@pytest.mark.parametrize("use_memory", [True, False], ids=["memory", "l2"])
async def test_own_writes_hold_at_once(pair: list[Cache], write: str, use_memory: bool) -> None:
    a = pair[0]
    await warmed(pair)
    with deaf(a):  # its own event comes over the bus about as early as the reply
        await WRITES[write](a)
        assert await a.get("config", "x", tenant_id="acme", use_memory=use_memory) == replaced(write, "get")


@pytest.mark.parametrize("read", READS)
@pytest.mark.parametrize("write", WRITES)
@pytest.mark.parametrize("hears", [True, False], ids=["hearing", "deaf"])
async def test_a_read_with_the_receipt_sees_the_write_at_once(
    pair: list[Cache], write: str, read: str, hears: bool
) -> None:
    a, b = pair
    await warmed(pair)
    silence: AbstractContextManager[None] = nullcontext() if hears else deaf(b)
    with silence:
        receipt = await WRITES[write](a)
        assert await READS[read](b, receipt) == replaced(write, read)
        assert await READS[read](b, str(receipt)) == replaced(write, read)
        found = await b.get_many("config", ["x"], tenant_id="acme", after=str(receipt))
        assert found.get("x") == replaced(write, read)


@pytest.mark.parametrize("read", READS)
async def test_a_deaf_node_whose_commands_work_serves_nothing_older_than_d(redis_url: str, read: str) -> None:
    async def scenario(write: str) -> None:
        async with nodes(redis_url, namespace=f"after-{write}") as pair:
            a, b = pair
            await warmed(pair)
            await READS[read](b, None)
            with deaf(b):
                await WRITES[write](a)
                await past(monotonic() + D_S)
                assert await READS[read](b, None) == replaced(write, read), write
                assert b.stats().catch_ups >= 1
                assert b.stats().flushes == {"start": 1}  # the log had what the bus did not bring

    await asyncio.gather(*map(scenario, WRITES))


async def test_what_was_missed_is_read_from_the_log_in_replies_that_fit_in_memory(pair: list[Cache]) -> None:
    """However many events there are, and however large each of them is."""
    a, b = pair
    store, replies, written = parts(b).store, [], asyncio.Event()
    log = store.log

    async def seen(shard: int, after: int, count: int) -> list[LogEntry]:
        await written.wait()
        entries = await log(shard, after, count)
        replies.append(sum(len(entry.message) for entry in entries))
        return entries

    store.log = seen  # type: ignore[method-assign]
    with deaf(b):
        for n in range(60):
            await a.invalidate_targets([Target("config", f"{n}-{i}-" + "x" * 400) for i in range(500)], "acme")
        written.set()
        await b.probe()
    view = parts(b).node.shards[0]
    assert view.applied == view.highest_seq == parts(a).node.shards[0].applied
    assert b.stats().flushes == {"start": 1}
    assert sum(replies) > 3 * LOG_BATCH_BYTES
    assert max(replies) <= LOG_BATCH_BYTES


async def test_who_reads_in_the_log_that_somebody_waits_for_the_nodes_probes_again_at_once() -> None:
    """The probe that found the gap told L2 of a position from before it."""
    clock = FakeClock()
    async with Fleet(2, clock=clock, staleness_bound_s=600.0, probe_interval_s=300.0) as fleet:
        a, b = fleet.caches
        attention, l2 = cast("Any", parts(b).listening.attention), fleet.world.shards[0]
        await until(lambda: attention._wanted[0]._waiters)
        fleet.faults = Faults(drop=1.0)
        before = l2.seq
        waiting = asyncio.create_task(a.invalidate("config", "x", "acme", wait="nodes"))
        await until(lambda: l2.seq > before)
        with asked(b) as calls:
            attention.nudge(0)
            await until(lambda: l2.rows[parts(b).node.id].applied > before)
        assert (calls["log"], calls["probe"]) == (1, 2)
        waiting.cancel()
        with pytest.raises(asyncio.CancelledError):
            await waiting


def probes_held_back(cache: Cache) -> tuple[asyncio.Event, asyncio.Event]:
    """Its probes are answered, and hear of it late: the first event is set by the answer, the second lets it come."""
    store, answered, go_on = parts(cache).store, asyncio.Event(), asyncio.Event()
    probe = store.probe

    async def probe_slowly(*args: Any, **more: Any) -> Any:
        reply = await probe(*args, **more)
        answered.set()
        await go_on.wait()
        return reply

    store.probe = probe_slowly  # type: ignore[method-assign]
    return answered, go_on


async def test_so_does_who_was_asked_to_while_something_was_missing_that_has_come_since() -> None:
    """The event that asks overtakes another one, while a probe is under way."""
    async with Fleet(2, clock=FakeClock(), staleness_bound_s=600.0, probe_interval_s=300.0, gap_grace_s=60.0) as fleet:
        a, b = fleet.caches
        attention, l2 = cast("Any", parts(b).listening.attention), fleet.world.shards[0]
        await until(lambda: attention._wanted[0]._waiters)
        answered, go_on = probes_held_back(b)
        attention.nudge(0)
        await answered.wait()
        ears, late = fleet.world.channels[0]._ears, list[bytes]()
        own = next(at for at, ear in enumerate(ears) if ear[2] == cast("Any", parts(b).bus)._listener)
        loop, shard, listener = ears[own]
        ears[own] = loop, shard, lambda _, message: late.append(message)
        await a.set("config", "y", 1, "acme")
        await until(lambda: late)
        ears[own] = loop, shard, listener
        waiting = asyncio.create_task(a.invalidate("config", "x", "acme", wait="nodes"))
        await until(lambda: parts(b).node.shards[0].has_gap)
        go_on.set()
        await until(lambda: attention._wanted[0]._waiters)
        listener(0, late[0])
        await until(lambda: l2.rows[parts(b).node.id].applied == l2.seq)
        waiting.cancel()
        with pytest.raises(asyncio.CancelledError):
            await waiting


async def test_an_epoch_that_is_heard_of_while_a_probe_is_under_way_is_not_taken_for_another_stores() -> None:
    async with Fleet(2, clock=FakeClock()) as fleet:
        a, b = fleet.caches
        answered, go_on = probes_held_back(b)
        probing = asyncio.create_task(b.probe())
        await answered.wait()
        fleet.world.shards[0].server += "'"
        receipt = await a.invalidate("config", "x", "acme")
        await fleet.settle()
        go_on.set()
        await probing
        await until(lambda: b.stats().shards[0].applied == receipt.seq)
        assert b.stats().shards[0].epoch == receipt.epoch == a.stats().shards[0].epoch


def test_how_much_of_the_log_to_ask_for_goes_by_what_came() -> None:
    def entries(size: int) -> list[LogEntry]:
        return [LogEntry(1, b"x" * 100), LogEntry(2, b"x" * size)]

    assert next_count(16, entries(100)) == 32
    assert next_count(900, entries(100)) == LOG_BATCH_MAX
    assert next_count(16, entries(LOG_BATCH_BYTES // 4)) == 4
    assert next_count(16, entries(2 * LOG_BATCH_BYTES)) == 1, "it goes on"
    assert next_count(1, entries(100)) == 2


async def test_a_receipt_is_a_header_string(pair: list[Cache]) -> None:
    receipt = await pair[0].set("config", "x", 1, tenant_id="acme")
    header = str(receipt)
    assert len(header) < 64
    assert header.isascii()
    assert header.isprintable()
    parsed = Receipt.parse(header)
    assert (parsed.shard, parsed.epoch, parsed.seq) == (receipt.shard, receipt.epoch, receipt.seq)
    assert parsed.position == receipt.position


async def test_a_receipt_that_the_node_has_applied_costs_no_round_trip(pair: list[Cache]) -> None:
    a, b = pair
    receipt = await a.set("config", "x", 1, tenant_id="acme")
    await until(lambda: b.stats().shards[0].applied >= receipt.seq)
    await b.get("config", "x", tenant_id="acme")
    for cache in pair:
        with asked(cache) as counts:
            assert await cache.get("config", "x", tenant_id="acme", after=receipt) == 1
        assert data_calls(counts) == 0


async def test_a_receipt_of_an_older_epoch_is_satisfied_by_the_takeover(
    pair: list[Cache], redis_server: EmbeddedServer
) -> None:
    a, b = pair
    receipt = await a.set("config", "x", "old", tenant_id="acme")
    redis_server.command("FLUSHALL")
    await a.probe()
    assert await b.get("config", "x", tenant_id="acme", after=receipt) is None
    await b.set("config", "x", "new", tenant_id="acme")
    assert await a.get("config", "x", tenant_id="acme", after=receipt) == "new"


async def test_a_receipt_of_another_shard_or_namespace_only_costs_a_round_trip(redis_url: str) -> None:
    async with nodes(redis_url, 1, shards=7) as (a,), nodes(redis_url, 1, namespace="other") as (other,):
        await a.set("config", "x", 1, tenant_id="acme")
        foreign = await a.set("config", "x", 2, tenant_id="elsewhere")
        strange = await other.set("config", "x", 3, tenant_id="acme")
        for receipt in (foreign, strange):
            assert await a.get("config", "x", tenant_id="acme", after=receipt) == 1


@pytest.mark.parametrize("write", WRITES)
async def test_the_bus_brings_a_write_in_milliseconds(pair: list[Cache], write: str) -> None:
    a, b = pair
    best_s = D_S
    for _ in range(5):
        await warmed(pair)
        moves: dict[tuple[int, str, int], float] = {}
        b.on_applied = lambda shard, epoch, seq, at_s, moves=moves: moves.setdefault((shard, epoch, seq), at_s)
        started_s = monotonic()
        receipt = await WRITES[write](a)
        await heard([b], receipt)
        best_s = min(best_s, moves[receipt.shard, receipt.epoch, receipt.seq] - started_s)
        assert await b.get("config", "x", tenant_id="acme") == replaced(write, "get")
    assert best_s < 0.05  # well before any probe would have brought it


async def test_a_set_over_an_invalidation_that_it_overtakes_is_not_kept(pair: list[Cache]) -> None:
    """a's set gets seq n, b's invalidation n + 1; a hears of that before its own reply, or after: both end the same."""
    a, b = pair
    for _ in range(30):
        set_, gone = await asyncio.gather(
            a.set("config", "x", "a's", tenant_id="acme"), b.invalidate("config", "x", tenant_id="acme")
        )
        await heard(pair, set_, gone)
        expected = "a's" if set_.seq > gone.seq else None
        for cache in (a, b):
            assert await cache.get("config", "x", tenant_id="acme") == expected


async def test_two_writers_of_a_key_leave_all_nodes_with_the_later(pair: list[Cache]) -> None:
    a, b = pair
    for i in range(30):
        receipts = await asyncio.gather(*(c.set("config", "x", [i, n], tenant_id="acme") for n, c in enumerate(pair)))
        last = max(range(2), key=lambda n: receipts[n].seq)
        await heard(pair, *receipts)
        assert await a.get("config", "x", tenant_id="acme") == [i, last]
        assert await b.get("config", "x", tenant_id="acme") == [i, last]


async def test_a_write_that_is_cancelled_is_not_believed_either_way(pair: list[Cache]) -> None:
    a, b = pair
    for write in WRITES.values():
        await warmed(pair)
        task = asyncio.ensure_future(write(a))
        await asyncio.sleep(0)
        task.cancel()
        await asyncio.wait([task])
        assert await a.get("config", "x", tenant_id="acme") == await b.get(
            "config", "x", tenant_id="acme", use_memory=False
        )


async def test_l1_and_l2_agree_at_rest(pair: list[Cache]) -> None:
    """After a storm of reads and writes from both nodes, each memory holds what L2 holds, or nothing."""
    source = Source(**{str(i): 0 for i in range(20)})
    version = 0

    async def storm(cache: Cache, seed: int) -> None:
        nonlocal version
        for step in range(60):
            key = str((seed * 7 + step * 3) % 20)
            if step % 5 == seed % 5:
                version += 1
                source.values[key] = version
                await cache.invalidate("config", key, tenant_id="acme")
            elif step % 7 == 0:
                await cache.invalidate_tags([f"t{step % 3}"], tenant_id="acme")
            else:
                tags = [f"t{int(key) % 3}"]
                await cache.get_or_load("config", key, source.load, tenant_id="acme", tags=tags)

    await asyncio.gather(*(storm(pair[seed % 2], seed) for seed in range(8)))
    a, b = pair
    head = max(cache.stats().shards[0].head for cache in pair)
    await until(lambda: all(cache.stats().shards[0].applied >= head for cache in pair))
    for key, value in source.values.items():
        found = [await c.get("config", key, tenant_id="acme", use_memory=m) for m in (True, False) for c in (a, b)]
        assert set(found) <= {None, value}, key
    for cache in pair:
        parts(cache).node.l1.check()
        shard = cache.stats().shards[0]
        flushed = cache.stats().events_flushed
        assert (shard.gap, flushed) == (0, 0)
