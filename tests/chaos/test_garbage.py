"""What others write under cachebus's names: random bytes on the channel, in the log, in records, leases and meta."""

from __future__ import annotations

import asyncio
import random
import socket
from collections.abc import AsyncIterator, Awaitable
from typing import Any

import pytest

from cachebus import Cache
from cachebus.base.clock import monotonic
from cachebus.keys.key import bucket_of
from cachebus.tools.servers.redis import EmbeddedServer
from cachebus.wire.event import WritePart, encode, encode_body
from tests.support.caches import D_S, deaf, heard, nodes, past, until
from tests.support.logs import told

CHANNEL, LOG = "{cachebus:0}:events:0", "{cachebus:0}:log"
RECORD, LEASE = "{cachebus:0}:r:acme:config:", "{cachebus:0}:l:acme:config:"


@pytest.fixture
async def pair(redis_server: EmbeddedServer) -> AsyncIterator[list[Cache]]:
    """Two nodes over one server."""
    async with nodes(redis_server.url) as caches:
        yield caches


def send(server: EmbeddedServer, *commands: tuple[str | bytes, ...]) -> list[str]:
    """Send commands with arguments of any bytes; the first lines of the replies."""
    with socket.create_connection(("127.0.0.1", server.port), 5) as connection, connection.makefile("rb") as said:
        replies = []
        for command in commands:
            args = [arg.encode() if isinstance(arg, str) else arg for arg in command]
            packed = b"".join(b"$%d\r\n%s\r\n" % (len(arg), arg) for arg in args)
            connection.sendall(b"*%d\r\n%s" % (len(args), packed))
            replies.append(said.readline().decode().strip())
        return replies


def noise(seed: int, count: int = 60) -> list[bytes]:
    """Random bytes, and what looks like an event or a record and is none."""
    dice = random.Random(seed)
    good = encode(b"a" * 16, 7, 0, encode_body([WritePart(["x"], [])]))
    record = b"\xcb\x02" + bytes(61)
    found = [
        b"",
        b"CB2",
        b"CBW",
        b"CBW\xff\xfe",
        b"CBQ",
        b"CBA" + bytes(60),
        b"CBH",
        b"CBN" + bytes(60),
        good[:40],
        good[:-1],
        good + b"x",
        b"CB2" + bytes(60),
        record,
    ]
    for _ in range(count):
        kind = dice.randrange(3)
        if kind == 0:
            found.append(dice.randbytes(dice.randrange(200)))
        else:
            damaged = bytearray(good if kind == 1 else record + dice.randbytes(30))
            for _ in range(dice.randrange(1, 4)):
                damaged[dice.randrange(len(damaged))] = dice.randrange(256)
            found.append(bytes(damaged))
    return found


async def coherent(pair: list[Cache]) -> None:
    """Both nodes hear each other's writes, and agree."""
    for cache in pair:
        receipt = await cache.set("config", "check", cache.stats().node, tenant_id="acme")
        await heard(pair, receipt)
        for other in pair:
            for use_memory in (True, False):
                found = await other.get("config", "check", tenant_id="acme", use_memory=use_memory)
                assert found == cache.stats().node


@pytest.mark.parametrize("seed", [1, 2])
async def test_random_bytes_on_the_channel_are_counted_and_change_nothing(
    redis_server: EmbeddedServer, pair: list[Cache], seed: int
) -> None:
    a, b = pair
    await a.set("config", "x", 1, tenant_id="acme")
    send(redis_server, *(("PUBLISH", CHANNEL, message) for message in noise(seed)))
    await coherent(pair)
    stats = b.stats()
    assert stats.events_corrupt + stats.messages_unknown > 60
    assert min(stats.events_corrupt, stats.messages_unknown) > 10
    assert a.stats().bus_connected
    assert b.stats().bus_connected
    await past(monotonic() + D_S)
    assert await b.get("config", "x", tenant_id="acme") == 1


async def test_an_event_from_nowhere_costs_a_flush_at_most(redis_server: EmbeddedServer, pair: list[Cache]) -> None:
    """Well-formed, of this epoch, and far ahead: as a program of another version might send it."""
    a, b = pair
    await a.set("config", "x", 1, tenant_id="acme")
    epoch = a.stats().shards[0].epoch.encode()
    for seq in (a.stats().shards[0].applied + 5, 2**62):
        send(redis_server, ("PUBLISH", CHANNEL, encode(epoch, seq, 0, encode_body([WritePart(["x"], ["T\x1fother"])]))))
        await until(lambda: all(c.stats().shards[0].gap == 0 and c.stats().gaps for c in pair))
        await coherent(pair)
    send(redis_server, ("PUBLISH", CHANNEL, encode(b"f" * 16, 3, 0, encode_body([WritePart([], [])]))))
    await until(lambda: b.stats().events_foreign)
    await until(lambda: all(cache.ready() for cache in pair))
    await coherent(pair)
    assert "epoch" not in b.stats().flushes, "only L2 moves a node into another epoch"


@pytest.mark.parametrize("entry_id", ["*", "next", "beside", "far"])
async def test_a_foreign_entry_in_the_log_is_got_over(
    redis_server: EmbeddedServer, pair: list[Cache], entry_id: str
) -> None:
    """The log's ids are ours: with one that is beyond them no further event could be logged."""
    a, b = pair
    receipt = await a.set("config", "x", "old", tenant_id="acme")
    await heard(pair, receipt)
    beside = f"{receipt.seq}-{2**60}"
    where = {"*": "*", "next": f"{receipt.seq + 1}-0", "beside": beside, "far": f"{2**61}-0"}[entry_id]
    assert send(redis_server, ("XADD", LOG, where, "e", b"junk"))[0].startswith("$")
    with deaf(b):
        await heard([b], await a.set("config", "x", "new", tenant_id="acme"))
        assert await b.get("config", "x", tenant_id="acme") == "new"
    await coherent(pair)
    before = b.stats().flushes
    with deaf(b):
        receipt = await a.invalidate("config", "x", tenant_id="acme")
        await heard([b], receipt)
    assert b.stats().flushes == before  # the log is of use again
    assert await b.get("config", "x", tenant_id="acme") is None


@pytest.mark.parametrize("fields", [("e", b"junk"), ("x", b"y"), ("e", b"1", "f", b"2")], ids=["junk", "name", "more"])
async def test_a_damaged_entry_in_the_log_is_a_flush(
    redis_server: EmbeddedServer, pair: list[Cache], fields: tuple[str | bytes, ...]
) -> None:
    a, b = pair
    await heard(pair, await a.set("config", "x", "old", tenant_id="acme"))
    with deaf(b):
        receipt = await a.set("config", "x", "new", tenant_id="acme")
        send(redis_server, ("DEL", LOG), ("XADD", LOG, f"{receipt.seq}-0", *fields))
        await heard([b], receipt)
        assert await b.get("config", "x", tenant_id="acme") == "new"
    assert b.stats().flushes["gap"] == 1


@pytest.mark.parametrize("seed", [1, 2])
async def test_random_bytes_in_records_are_misses_and_overwritten(
    redis_server: EmbeddedServer, pair: list[Cache], seed: int
) -> None:
    a, b = pair
    await a.set("config", "good", 1, tenant_id="acme")
    junk = noise(seed)
    send(redis_server, *(("SET", RECORD + str(i), data) for i, data in enumerate(junk)))
    ids = [str(i) for i in range(len(junk))]
    assert await a.get_many("config", [*ids, "good"], tenant_id="acme") == {"good": 1}
    for i in ids:
        assert await b.get("config", i, tenant_id="acme", use_memory=False) is None
    assert a.stats().records_corrupt > 0
    for i in ids:
        assert await b.get_or_load("config", i, lambda i=i: f"new {i}", tenant_id="acme") == f"new {i}"
        assert await a.get("config", i, tenant_id="acme") == f"new {i}"
    await coherent(pair)


async def test_a_record_cut_short_or_with_a_damaged_payload_is_a_miss(
    redis_server: EmbeddedServer, pair: list[Cache]
) -> None:
    a, b = pair
    for length in (61, 63, 64, 70, 100):
        await a.set("config", "x", {"name": "v" * 200}, tenant_id="acme", tags=["t"])
        assert send(redis_server, ("GETRANGE", RECORD + "x", "0", str(length - 1)))[0] == f"${length}"
        whole = _get(redis_server, RECORD + "x")
        send(redis_server, ("SET", RECORD + "x", whole[:length]))
        assert await b.get("config", "x", tenant_id="acme", use_memory=False) is None
        assert await b.get_or_load("config", "x", lambda: "new", tenant_id="acme", use_memory=False) == "new"
        assert await b.get("config", "x", tenant_id="acme", use_memory=False) == "new"


@pytest.mark.parametrize("tags", [None, ["t"]], ids=["plain", "tagged"])
async def test_a_record_that_answers_for_another_key_is_a_miss(
    redis_server: EmbeddedServer, pair: list[Cache], tags: list[str] | None
) -> None:
    """As an answer that comes for another question: whole, of this epoch, and another tenant's."""
    a, b = pair
    await a.set("config", "x", "evil's", tenant_id="evil", tags=tags)
    whole, where = _get(redis_server, "{cachebus:0}:r:evil:config:x"), {"tenant_id": "acme", "use_memory": False}
    receipt = await a.invalidate("config", "other", tenant_id="acme")

    async def swapped() -> None:
        send(redis_server, ("SET", RECORD + "x", whole))

    await swapped()
    assert await b.get("config", "x", **where) is None
    assert await b.get("config", "x", tenant_id="acme") is None, "as for L1"
    assert await b.get("config", "x", tenant_id="acme", after=receipt) is None
    assert await b.get_many("config", ["x", "y"], tenant_id="acme") == {}
    with deaf(b):
        ahead = await a.invalidate("config", "other", tenant_id="acme")
        assert await b.get_many("config", ["x"], tenant_id="acme", after=ahead) == {}, "judged by the script"
        assert b.stats().records_corrupt == 5
    assert await b.get_or_load("config", "x", lambda: "own", agent_id="a7", search_hierarchy=True, **where) == "own"
    await swapped()
    assert await b.get_or_load("config", "x", lambda: "own", **where) == "own", "what the lease gave"
    assert await b.get("config", "x", **where) == "own", "it was written over"
    assert b.stats().l2_errors == 0


async def test_a_damaged_record_is_told_whoever_judges_it_and_counted_once_a_read(
    redis_server: EmbeddedServer, pair: list[Cache]
) -> None:
    a, b = pair
    await a.set("broken", "x", "own", tenant_id="acme")
    whole = _get(redis_server, "{cachebus:0}:r:acme:broken:x")

    async def unread(reads: Awaitable[Any]) -> int:
        send(redis_server, ("SET", "{cachebus:0}:r:acme:broken:x", whole[:-1]))
        before = b.stats().types["broken"].serialization_errors if "broken" in b.stats().types else 0
        await reads
        return b.stats().types["broken"].serialization_errors - before

    with told("WARNING", of="a broken in L2 can't be read") as lines, deaf(b):
        ahead = await a.invalidate("config", "other", tenant_id="acme")
        assert await unread(b.get("broken", "x", tenant_id="acme", after=ahead)) == 1, "judged by the script"
        assert len(lines) == 1
    assert await unread(b.get_or_load("broken", "x", lambda: "new", "acme", use_memory=False)) == 1, "by lease, too"


def _get(server: EmbeddedServer, key: str) -> bytes:
    import redis

    with redis.Redis(port=server.port, protocol=2) as client:
        found = client.get(key)
    assert isinstance(found, bytes)
    return found


@pytest.mark.parametrize("make", [("LPUSH", "junk"), ("HSET", "a", "b"), ("SADD", "junk")], ids=lambda make: make[0])
async def test_a_key_of_another_kind_in_a_records_place_is_a_miss(
    redis_server: EmbeddedServer, pair: list[Cache], make: tuple[str, ...]
) -> None:
    a = pair[0]
    send(redis_server, (make[0], RECORD + "x", *make[1:]), (make[0], LEASE + "y", *make[1:]))
    for _ in range(30):  # alone, as a GET, and among others, as an MGET
        assert await a.get("config", "x", tenant_id="acme") is None
    assert await a.get_many("config", ["x", "y"], tenant_id="acme") == {}
    assert await a.get_or_load("config", "x", lambda: 1, tenant_id="acme") == 1
    assert await a.get_or_load("config", "y", lambda: 1, tenant_id="acme") == 1
    await coherent(pair)
    assert a.stats().l2_errors == 0


async def test_a_key_of_another_kind_in_place_of_cachebuss_own_is_removed(redis_server: EmbeddedServer) -> None:
    async def scenario(name: str) -> None:
        namespace = name.replace(":", "-")
        async with nodes(redis_server.url, namespace=namespace) as pair:
            a = pair[0]
            await heard(pair, await a.set("config", "x", "old", tenant_id="acme", tags=["t"]))
            await a.invalidate_tags(["t"], tenant_id="acme")
            own = f"{{{namespace}:0}}:{name}"
            send(redis_server, ("DEL", own), ("SET", own, "junk"))
            await past(monotonic() + D_S)
            for cache in pair:
                assert await cache.get("config", "x", tenant_id="acme") is None
                assert await cache.get("config", "x", tenant_id="acme", use_memory=False) is None
            await until(lambda: all(cache.ready() for cache in pair))
            await coherent(pair)

    marks = f"marks:{bucket_of('acme')}"
    await asyncio.gather(*map(scenario, ("meta", marks, "buckets", "log", "nodes", "guards")))
