"""The invalidate call beside the bare script; how soon another process has applied it; and floods of events."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from statistics import median
from typing import Any, Final

import redis.asyncio

from cachebus import Cache, Settings
from cachebus.base.clock import monotonic, perf_counter
from cachebus.l2.names import ShardNames
from cachebus.wire import event as events
from tests.bench.children import Talk, talking
from tests.bench.other_node import left_alone
from tests.bench.rounds import Contender, p99, race
from tests.bench.rows import Row, at_least, at_most
from tests.bench.run import Bench

CALLS: Final = 100
BLOCK: Final = 25
"""Messages of one kind in a row."""
PAYLOAD_BYTES: Final = 128
"""About as many as an event of one key has."""
WRITERS: Final = 200


async def rows(bench: Bench) -> list[Row]:
    """The call, the way to another node, and floods."""
    async with redis_py(bench) as theirs:
        found = await the_call(bench, theirs)
        async with talking("tests.bench.other_node", bench.server.url) as other:
            await other.ask(do="place")  # it listens when it answers
            found += await the_way(bench, theirs, other)
            found += await the_flood(bench, other)
    heard = found[-1].peers["redis-py pub/sub"]
    return [*found, await from_the_log(bench, heard)]


@asynccontextmanager
async def redis_py(bench: Bench) -> AsyncIterator[redis.asyncio.Redis]:
    """A client of redis-py's."""
    client = redis.asyncio.Redis(port=bench.server.port)
    try:
        yield client
    finally:
        await client.aclose()


def settings(bench: Bench, namespace: str) -> Settings:
    """Those of a cache in a corner of its own, so that no node hears what another is measured by."""
    return Settings(url=bench.server.url, namespace=namespace)


# -- the call ------------------------------------------------------------------------------------------------


async def the_call(bench: Bench, theirs: redis.asyncio.Redis) -> list[Row]:
    """Ours hears its own events meanwhile; nobody hears those of the bare script."""
    async with Cache.open(settings(bench, "call")) as cache:
        arguments = await arguments_of(cache)
        elsewhere: list[Any] = [a.replace("{call:", "{bare:") if isinstance(a, str) else a for a in arguments]

        async def ours(ids: Sequence[str]) -> None:
            for one in ids:
                await cache.invalidate("agent_config", one, "acme")

        async def bare(ids: Sequence[str]) -> None:
            for _ in ids:
                await theirs.evalsha(*elsewhere)

        contenders = [Contender("ours", ours, None, CALLS), Contender("redis-py", bare, None, CALLS)]
        times = await race(contenders, 2 * bench.scale.io_rounds, between=cache.probe, progress=bench.progress)
    return [
        Row(
            "invalidate.call",
            "invalidate: share of the time of redis-py's EVALSHA of the same script",
            times["ours"] / times["redis-py"],
            "x",
            at_most(0.7),
            {"redis-py": 1.0},
            f"{times['ours'] * 1e6:.0f} us beside {times['redis-py'] * 1e6:.0f}",
        )
    ]


async def arguments_of(cache: Cache) -> list[Any]:
    """The arguments of the EVALSHA that an invalidation of ours sends."""
    connection: Any = cache._live().store._links.of(0)  # type: ignore[attr-defined]
    real, seen = connection.script, []

    async def spy(script: Any, keys: Sequence[Any], args: Sequence[Any], *more: Any) -> Any:
        seen.append([script.sha, len(keys), *keys, *args])
        return await real(script, keys, args, *more)

    connection.script = spy
    await cache.invalidate("agent_config", "agent-1", "acme")
    connection.script = real
    return seen[0]


# -- the way to another node -----------------------------------------------------------------------------------


async def the_way(bench: Bench, theirs: redis.asyncio.Redis, other: Talk) -> list[Row]:
    """From before the call to when the other process has applied it; and from PUBLISH to the message there.

    Both processes read one clock, which `monotonic` is on one machine.
    """
    ours_s: list[float] = []
    theirs_s: list[float] = []
    async with Cache.open(settings(bench, "way")) as cache:

        async def one_of_ours(number: int) -> tuple[int, float]:
            started = monotonic()
            receipt = await cache.invalidate("agent_config", f"agent-{number % 100}", "acme")
            return receipt.seq, started

        async def one_of_theirs(number: int) -> tuple[int, float]:
            started = monotonic()
            await theirs.publish("bare", b"%0*d" % (PAYLOAD_BYTES, number))
            return number, started

        await _block(one_of_ours, range(BLOCK), other, "applied")
        await _block(one_of_theirs, range(BLOCK), other, "heard")
        for first in range(BLOCK, bench.scale.messages + BLOCK, BLOCK):
            numbers = range(first, first + BLOCK)
            ours_s += await _block(one_of_ours, numbers, other, "applied")
            theirs_s += await _block(one_of_theirs, numbers, other, "heard")
            bench.progress.step(f"message {first} of {bench.scale.messages}")
    return [
        _way("invalidate.applied_p50", "p50", median(ours_s), median(theirs_s), 0.8),
        _way("invalidate.applied_p99", "p99", p99(ours_s), p99(theirs_s), 1.0),
    ]


async def _block(
    send: Callable[[int], Awaitable[tuple[int, float]]], numbers: range, other: Talk, what: str
) -> list[float]:
    """Send some, and give the seconds that each took to arrive."""
    sent = [await send(number) for number in numbers]
    arrived = dict(await other.ask(do=what, until=sent[-1][0]))
    return [arrived[str(number)] - started for number, started in sent]


def _way(name: str, which: str, ours_s: float, theirs_s: float, goal: float) -> Row:
    return Row(
        name,
        f"invalidate -> applied in another process, {which}: share of redis-py's PUBLISH -> message",
        ours_s / theirs_s,
        "x",
        at_most(goal),
        {"redis-py": 1.0},
        f"{ours_s * 1e3:.2f} ms beside {theirs_s * 1e3:.2f}",
    )


# -- floods ----------------------------------------------------------------------------------------------------


async def the_flood(bench: Bench, other: Talk) -> list[Row]:
    """As many events as the server can send on, at once; what the other process takes of them in a second."""
    ours: list[float] = []
    theirs: list[float] = []
    count = bench.scale.flood
    epoch, seq = await other.ask(do="place")
    body = events.encode_body([events.WritePart(["acme\x1fagent_config\x1fagent-1\x1e\x1e\x1e"], [], "somebody")])
    for turn in range(bench.scale.flood_rounds):
        first = seq + 1 + turn * count
        messages = [events.encode(epoch.encode(), first + n, 0, body) for n in range(count)]
        for who, channel, rates in (("ours", ShardNames("flood", 0).channel, ours), ("redis-py", "flood", theirs)):
            await other.ask(do="watch", who=who, count=count)
            await _publish(bench.server.port, channel, messages)
            rates.append(await other.ask(do="rate"))
        bench.progress.step(f"flood {turn + 1} of {bench.scale.flood_rounds}")
    ours_hz, theirs_hz = median(ours), median(theirs)
    return [
        Row(
            "flood.applied",
            "a flood: events a second that a node applies, beside what redis-py's pub/sub takes",
            ours_hz / theirs_hz,
            "x",
            at_least(1.0),
            {"redis-py pub/sub": theirs_hz},
            f"{ours_hz:,.0f} events/s",
        )
    ]


async def _publish(port: int, channel: str, messages: Sequence[bytes]) -> None:
    """Send all as fast as the server takes them."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    head = b"*3\r\n$7\r\nPUBLISH\r\n$%d\r\n%s\r\n" % (len(channel), channel.encode())
    writer.write(b"".join(b"%s$%d\r\n%s\r\n" % (head, len(message), message) for message in messages))
    left = len(messages)
    while left:
        left -= (await reader.read(1 << 16)).count(b"\n")
    writer.close()
    await writer.wait_closed()


async def from_the_log(bench: Bench, heard_hz: float) -> Row:
    """A node that the bus has told nothing reads what it missed from the log."""
    count, rates = bench.scale.flood, []
    async with Cache.open(left_alone(bench.server.url, "log")) as deaf, Cache.open(settings(bench, "log")) as writer:
        parts: Any = deaf._live()
        parts.bus._listener = lambda shard, message: None
        for turn in range(max(1, bench.scale.flood_rounds // 3)):
            bench.progress.step(f"log {turn + 1}")
            await asyncio.gather(*[_invalidate(writer, count // WRITERS) for _ in range(WRITERS)])
            view = parts.node.shards[0]
            view.highest_seq = view.applied + count // WRITERS * WRITERS
            missing = view.highest_seq - view.applied
            started = perf_counter()
            await parts.listening.catch_up.read_log(0)
            rates.append(missing / (perf_counter() - started))
            assert not view.has_gap and not deaf.stats().flushes.get("gap")
    return Row(
        "flood.log",
        "behind: events a second that a node reads from the log, beside the same",
        median(rates) / heard_hz,
        "x",
        at_least(1.0),
        {},
        f"{median(rates):,.0f} events/s",
    )


async def _invalidate(cache: Cache, count: int) -> None:
    for number in range(count):
        await cache.invalidate("agent_config", f"agent-{number % 100}", "acme")
