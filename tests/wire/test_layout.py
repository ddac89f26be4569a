"""How L2 looks from outside, on a real server: for `doctor`, for people with `redis-cli`, and for older nodes."""

from __future__ import annotations

from collections.abc import AsyncIterator

import pytest

from cachebus import event as events
from cachebus.clock import monotonic
from cachebus.keys import Keyspace
from cachebus.l2.redis import RedisStore
from cachebus.ports import Caller
from cachebus.record import Record
from cachebus.resp import Connection, Fixed, parse_address

key = Keyspace(1).key("doc", 7, "acme", agent_id="a:7")


@pytest.fixture
async def store(redis_url: str) -> AsyncIterator[RedisStore]:
    store = RedisStore(
        Fixed(parse_address(redis_url), 1), namespace="prod", shards=1, bus="redis", timeout_s=10.0,
        connect_timeout_s=10.0, clock=monotonic, marks_max=10, log_max=10,
    )  # fmt: skip
    await store.connect()
    yield store
    await store.close()


@pytest.fixture
async def redis(redis_url: str) -> AsyncIterator[Connection]:
    connection = await Connection.open(
        parse_address(redis_url), timeout_s=10.0, connect_timeout_s=10.0, clock=monotonic
    )
    yield connection
    connection.close()


def mapping(flat: list[bytes]) -> dict[bytes, bytes]:
    return dict(zip(flat[::2], flat[1::2], strict=True))


async def test_what_lies_in_redis(store: RedisStore, redis: Connection) -> None:
    probe = await store.probe(0, Caller("node-1", 0, b""), marks=False)
    caller = Caller("node-1", probe.seq, probe.epoch)
    body = events.encode_body([], ["T\x1facme"], "node-1")
    change = await store.invalidate(0, caller, [], ["T\x1facme"], body)
    info = await redis.call("INFO", "replication")
    found = mapping(await redis.call("HGETALL", "{prod:0}:meta"))
    assert found[b"register"] == probe.register != b""
    assert 0 <= probe.server_us - int(found[b"born"]) < 60_000_000
    assert found == {
        b"server": info.split(b"master_replid:")[1][:40],
        b"epoch": probe.epoch,
        b"seq": b"2",
        b"floor": b"0",
        b"marks": b"1",
        b"born": found[b"born"],
        b"register": found[b"register"],
        b"facts": b"protocol=1 shards=1 bus=redis",
    }
    assert await redis.call("ZRANGE", "{prod:0}:marks", "0", "-1", "WITHSCORES") == [b"T\x1facme", b"2"]
    ((entry_id, fields),) = await redis.call("XRANGE", "{prod:0}:log", "-", "+")
    assert entry_id == b"2-0"
    assert fields[0] == b"e"
    assert fields[1] == events.encode(change.epoch, 2, 0, events.decode(fields[1]).published_us, body)
    lines = mapping(await redis.call("HGETALL", "{prod:0}:nodes"))
    assert list(lines) == [b"node-1"]
    applied, _, at_us = lines[b"node-1"].partition(b":")
    assert applied == b"1"
    assert 0 <= int(at_us) - probe.server_us < 60_000_000


async def test_leases(store: RedisStore, redis: Connection) -> None:
    ann, bob = Caller("ann", 0, b""), Caller("bob", 0, b"")
    granted = await store.lease(key, ann, "ann-1f", 60_000)
    name = "{prod:0}:l:acme:doc:agent:a%3A7:7"
    assert await redis.call("GET", name) == granted.epoch + b":ann-1f"
    await store.lease(key, bob, "bob-0", 60_000)
    assert await redis.call("GET", name) == granted.epoch + b":ann-1f:w", "somebody waits"
    assert 50_000 < await redis.call("PTTL", name) <= 60_000
    record = Record(0, 0, b"v", created_ms=1, epoch=granted.epoch, seq=granted.seq)
    await store.fill(key, ann, "ann-1f", record, 0, b"")
    assert await redis.call("GET", "{prod:0}:r:acme:doc:agent:a%3A7:7") == record.encode()


async def test_counters(store: RedisStore, redis: Connection) -> None:
    await store.counter(key, Caller("", 0, b""), 5, "request-1", 0)
    assert await redis.call("GET", "{prod:0}:c:acme:doc:agent:a%3A7:7") == b"5"
    assert await redis.call("GET", "{prod:0}:q:acme:doc:agent:a%3A7:7:request-1") == b"5"
