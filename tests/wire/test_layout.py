"""How L2 looks from outside, on a real server: for `doctor`, for people with `redis-cli`, and for older nodes."""

from __future__ import annotations

import struct
from collections.abc import AsyncIterator
from hashlib import sha1

import msgspec
import pytest

from cachebus.base.clock import monotonic
from cachebus.base.patience import Patience
from cachebus.core.ports import About, Caller, FillLeaseOutcome, Largest
from cachebus.core.requests import FallbackKind, FillLeaseRequest, FillRequest, GuardRequest
from cachebus.keys.key import Keyspace, bucket_of
from cachebus.l2.layout import Layout
from cachebus.l2.redis import RedisStore
from cachebus.resp import Connection, Fixed, parse_address
from cachebus.tools.servers.redis import EmbeddedServer
from cachebus.wire import event as events
from cachebus.wire.event import WritePart
from cachebus.wire.record import Record
from tests.support.caches import until

key = Keyspace(1).key("doc", 7, "acme", agent_id="a:7")
NOBODY = Caller("", 0, b"")
MARKS = "{prod:0}:marks:29"
LEASE, COUNTER = "{prod:0}:l:acme:doc:agent:a%3A7:7", "{prod:0}:c:acme:doc:agent:a%3A7:7"
DAY_US = 86_400_000_000


@pytest.fixture
async def store(server_kinds: EmbeddedServer) -> AsyncIterator[RedisStore]:
    store = RedisStore(
        Fixed(parse_address(server_kinds.url), 1),
        Layout("prod", 1, "redis", max_invalidated_scopes=16, log_max=10),
        Patience(10.0, 10.0, monotonic),
    )
    await store.connect()
    yield store
    await store.close()


@pytest.fixture
async def redis(server_kinds: EmbeddedServer) -> AsyncIterator[Connection]:
    connection = await Connection.open(parse_address(server_kinds.url), Patience(10.0, 10.0, monotonic))
    yield connection
    connection.close()


def mapping(flat: list[bytes]) -> dict[bytes, bytes]:
    return dict(zip(flat[::2], flat[1::2], strict=True))


def body_of(*scopes: str) -> bytes:
    return events.encode_body([WritePart([], list(scopes), "node-1")])


async def test_meta_and_the_log(store: RedisStore, redis: Connection) -> None:
    about = About(2000, 60_000)
    probe = await store.probe(
        0, Caller("node-1", 0, b"", about, Largest(2000, 60_000, keeps_without_l2=True)), with_invalidated=False
    )
    body = body_of("T\x1facme")
    change = await store.invalidate(0, Caller("node-1", probe.seq, probe.epoch, about), [], ["T\x1facme"], body)
    info = await redis.call("INFO", "replication")
    found = mapping(await redis.call("HGETALL", "{prod:0}:meta"))
    assert 0 <= probe.server_us - int(found[b"born"]) < DAY_US
    ((entry_id, fields),) = await redis.call("XRANGE", "{prod:0}:log", "-", "+")
    logged = b"%d" % (len(fields[1]) + 64)
    assert found == {
        b"facts": b"protocol=2 shards=1 bus=redis",
        b"server": info.split(b"master_replid:")[1][:40],
        b"epoch": probe.epoch,
        b"seq": b"2",
        b"born": found[b"born"],
        b"mode": b"plain",
        b"bound_ms": b"2000",
        b"guard_ms": b"60000",
        b"alone": b"1",
        b"synced": (await redis.call("INFO", "stats")).split(b"sync_full:")[1].split(b"\r")[0],
        b"replicas": b"0",
        b"looked": found[b"looked"],
        b"logged": logged,
        b"contexts": b"0" * 256,
        b"marks": b"1",
    }
    assert entry_id == b"2-" + logged
    assert fields[0] == b"e"
    assert fields[1] == change.event_header + body
    published_us = events.decode(fields[1]).published_us
    assert change.event_header == events.EventHeader(change.epoch, 2, published_us).encode(body)


async def test_nodes_and_the_name_of_their_set(store: RedisStore, redis: Connection) -> None:
    about = About(500, 0, (("a", 1),), keeps_without_l2=False)
    probe = await store.probe(0, Caller("node-1", 0, b"", about), with_invalidated=False)
    await store.probe(0, Caller("node-1", 1, probe.epoch, about), with_invalidated=False)
    lines = mapping(await redis.call("HGETALL", "{prod:0}:nodes"))
    assert set(lines) == {b"node-1", b"#"}
    assert lines[b"#"] == probe.nodes_name
    line = msgspec.msgpack.decode(lines[b"node-1"])
    assert list(line) == ["applied", "epoch", "at_us", "bound_ms", "guard_ms", "more"]
    assert 0 <= line.pop("at_us") - probe.server_us < DAY_US
    more = {"a": 1, "keep_alone": False}
    assert line == {"applied": 1, "epoch": probe.epoch.decode(), "bound_ms": 500, "guard_ms": 0, "more": more}
    await store.nodes(0, NOBODY)
    assert len(await redis.call("HGETALL", "{prod:0}:nodes")) == 4, "a producer leaves none"


async def test_marks_by_bucket(store: RedisStore, redis: Connection) -> None:
    long = f"G\x1facme\x1f{'x' * 500}"
    await store.invalidate(0, NOBODY, [], ["T\x1facme", long], body_of("T\x1facme", long))
    await store.invalidate(0, NOBODY, [], ["T\x1facme", "N", "Y\x1fdoc"], body_of("T\x1facme", "N", "Y\x1fdoc"))
    assert await redis.call("ZRANGE", MARKS, "0", "-1", "WITHSCORES") == [long.encode(), b"2", b"T\x1facme", b"3"]
    wide = await redis.call("ZRANGE", "{prod:0}:marks:**", "0", "-1", "WITHSCORES")
    assert wide == [b"N", b"3", b"Y\x1fdoc", b"3"]
    assert mapping(await redis.call("HGETALL", "{prod:0}:buckets")) == {
        b".": b"",
        b"29": bytes.fromhex("00000002 00000003 0000000000000000"),
        b"**": bytes.fromhex("00000002 00000002 0000000000000000"),
    }
    assert await redis.call("HGET", "{prod:0}:meta", "marks") == b"5"
    many = [f"G\x1fzen\x1f{i}" for i in range(12)]
    change = await store.invalidate(0, NOBODY, [], many, body_of(*many))
    zen = bucket_of("zen")
    event = events.decode(change.event_header + body_of(*many))
    assert event.low == (zen, 4), "the largest bucket loses its own"
    state = await redis.call("HGET", "{prod:0}:buckets", zen)
    assert state == struct.pack(">IIQ", 11, 11, 4)
    found = mapping(await redis.call("HGETALL", "{prod:0}:meta"))
    assert (found[b"marks"], found[b"trimmed"]) == (b"16", b"1")


async def test_types_in_contexts(store: RedisStore, redis: Connection) -> None:
    scope = "I\x1facme\x1fdoc\x1f7"
    change = await store.invalidate(0, NOBODY, [], [scope], body_of(scope))
    assert events.decode(change.event_header + body_of(scope)).left_out
    assert await redis.call("EXISTS", MARKS) == 0
    await store.fill_lease(key, Caller("ann", 0, b""), FillLeaseRequest("ann-1f", 60_000))
    flags = await redis.call("HGET", "{prod:0}:meta", "contexts")
    at = int(sha1(b"doc").hexdigest()[:2], 16)
    assert flags == b"0" * at + b"1" + b"0" * (255 - at)
    change = await store.invalidate(0, NOBODY, [], [scope], body_of(scope))
    assert not events.decode(change.event_header + body_of(scope)).left_out
    assert await redis.call("ZSCORE", MARKS, scope) == b"3"


async def test_leases(store: RedisStore, redis: Connection) -> None:
    ann, bob = Caller("ann", 0, b""), Caller("bob", 0, b"")
    granted = await store.fill_lease(key, ann, FillLeaseRequest("ann-1f", 60_000))
    assert await redis.call("GET", LEASE) == b"h" + granted.epoch + b"ann-1f"
    await store.fill_lease(key, bob, FillLeaseRequest("bob-0", 60_000))
    assert await redis.call("GET", LEASE) == b"w" + granted.epoch + b"ann-1f", "somebody waits"
    assert 50_000 < await redis.call("PTTL", LEASE) <= 60_000
    record = Record(0, 0, b"v", created_ms=1, epoch=granted.epoch, seq=granted.seq)
    await store.fill(key, ann, FillRequest("ann-1f", record, 0))
    assert await redis.call("GET", "{prod:0}:r:acme:doc:agent:a%3A7:7") == record.encode(key.l2)
    assert await redis.call("EXISTS", LEASE) == 0


async def test_a_lease_that_rests(store: RedisStore, redis: Connection) -> None:
    ann, bob = Caller("ann", 0, b""), Caller("bob", 0, b"")
    granted = await store.fill_lease(key, ann, FillLeaseRequest("ann-1f", 60_000))
    store.cool_down(key, "ann-1f", 5_000)

    async def rests() -> bool:
        return bytes(await redis.call("GET", LEASE))[:1] == b"r"

    await until(rests)
    reply = await store.fill_lease(key, bob, FillLeaseRequest("bob-0", 60_000, fallback=FallbackKind.OWN))
    assert reply.outcome is FillLeaseOutcome.COOLING_DOWN
    assert await redis.call("GET", LEASE) == b"r" + granted.epoch + b"ann-1f"
    assert 0 < reply.wait_ms <= 5_000


async def test_guards(store: RedisStore, redis: Connection) -> None:
    probe = await store.probe(0, NOBODY, with_invalidated=False)
    token = "0123456789abcdef"
    await store.guard(0, NOBODY, GuardRequest([key], ["D\x1facme\x1fdoc"], token, 5_000), body_of())
    guards = mapping(await redis.call("HGETALL", "{prod:0}:guards"))
    assert set(guards) == {b"K\x1facme\x1fdoc\x1f7\x1fa:7\x1e\x1e", b"D\x1facme\x1fdoc"}
    found = mapping(await redis.call("HGETALL", "{prod:0}:meta"))
    ends_us = int(found[b"guards"])
    assert found[b"guarded"] == b"2"
    assert 5_000_000 <= ends_us - probe.server_us < DAY_US
    assert set(guards.values()) == {token.encode() + struct.pack(">Q", ends_us)}


async def test_counters(store: RedisStore, redis: Connection) -> None:
    probe = await store.probe(0, NOBODY, with_invalidated=False)
    await store.counter(key, NOBODY, 5, "request-1", 0)
    counter = mapping(await redis.call("HGETALL", COUNTER))
    assert set(counter) == {b"value", b"rrequest-1"}
    assert counter[b"value"] == b"5"
    until_us, _, answered = counter[b"rrequest-1"].partition(b":")
    assert answered == b"5"
    assert 60_000_000 <= int(until_us) - probe.server_us < DAY_US
