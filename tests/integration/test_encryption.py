"""Values that lie encrypted in Redis: what others see there, and what whoever may write there can do with it."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any

import pytest

from cachebus import Cache, Policy
from cachebus.resp import Connection
from cachebus.tools.servers.redis import EmbeddedServer
from cachebus.values import RAW
from cachebus.wire import record as records
from cachebus.wire.record import FLAG_ENCRYPTED, FLAG_NOT_FOUND, Record
from tests.support.caches import Source, nodes, parts
from tests.support.logs import told
from tests.support.secret_keys import Stored, connected, keys

POLICIES = {
    "doc": Policy(negative_ttl_s=60),
    "copied": Policy(copy=True),
    "raw": Policy(codec="raw", copy=True, l1=False),
    "zipped": Policy(compress_over_bytes=10),
    "away": Policy(l1=False),
}
SECRET = "a secret that is told to nobody"


@pytest.fixture
async def redis(server_kinds: EmbeddedServer) -> AsyncIterator[Connection]:
    async with connected(server_kinds.url) as connection:
        yield connection


@pytest.fixture
async def pair(server_kinds: EmbeddedServer) -> AsyncIterator[list[Cache]]:
    async with nodes(server_kinds.url, policies=POLICIES, encryption=keys("k1")) as caches:
        yield caches


async def absent(cache: Cache, resource_id: str = "7", data_type: str = "doc") -> bool:
    """Whether a read of L2 finds nothing, and a load is asked for."""
    source = Source(**{resource_id: "loaded"})
    found = await cache.get(data_type, resource_id, tenant_id="acme", use_memory=False)
    loaded = await cache.get_or_load(data_type, resource_id, source.load, tenant_id="acme", use_memory=False)
    return found is None and loaded == "loaded" and source.calls == 1


async def test_every_way_into_redis_is_encrypted(pair: list[Cache], redis: Connection) -> None:
    a, b = pair
    for data_type in POLICIES:
        value: Any = SECRET.encode() if data_type == "raw" else {"text": SECRET * 3}
        await a.set(data_type, "1", value, tenant_id="acme", tags=["t"])
        assert await a.get_or_load(data_type, "2", lambda value=value: value, tenant_id="acme") == value
        assert await a.add(data_type, "3", value, tenant_id="acme")
        for i in "123":
            assert await b.get(data_type, i, tenant_id="acme") == value
            assert await b.get(data_type, i, tenant_id="acme", use_memory=False) == value
            lies = Stored(redis, a, i, data_type)
            assert SECRET[:12].encode() not in await lies.read()
            assert (await lies.record()).flags == FLAG_ENCRYPTED
        assert await b.get_many(data_type, ["1", "2"], tenant_id="acme") == {"1": value, "2": value}
        parts(b).store.checked[0] = False  # the script is asked
        assert await b.get(data_type, "1", tenant_id="acme", use_memory=False) == value
    assert not a.stats().records_not_decrypted + b.stats().records_not_decrypted
    assert b.stats().records_corrupt == 0


async def test_batches_are_encrypted_too(pair: list[Cache], redis: Connection) -> None:
    a, b = pair
    values = {str(i): [SECRET, i] for i in range(5)}

    async def load(ids: list[str]) -> dict[str, Any]:
        return {i: values[i] for i in ids}

    assert await a.get_or_load_many("away", list(values), load, tenant_id="acme") == values
    for i in values:
        assert (await Stored(redis, a, i, "away").record()).is_encrypted
    assert await b.get_many("away", list(values), tenant_id="acme") == values
    source = Source()
    assert await b.get_or_load_many("away", list(values), source.load, tenant_id="acme") == values
    assert not source.calls


async def test_copies_are_made_of_what_was_decrypted(pair: list[Cache]) -> None:
    a, b = pair
    await a.set("copied", "1", [SECRET], tenant_id="acme")
    await a.set("raw", "1", SECRET.encode(), tenant_id="acme")
    for _ in range(2):
        found = await b.get_or_load("copied", "1", lambda: None, tenant_id="acme")
        assert found == [SECRET]
        found.append("mine")
        assert await b.get_or_load("raw", "1", lambda: None, tenant_id="acme") == SECRET.encode()
        assert await b.get("copied", "1", tenant_id="acme") == [SECRET]


async def test_no_copy_is_made_of_ciphertext(server_kinds: EmbeddedServer) -> None:
    """Of which any bytes are numbers, where they are as many as this key's id makes them."""
    policies = {"vector": Policy(codec="f32", copy=True, l1=False)}
    async with nodes(server_kinds.url, policies=policies, encryption=lambda: {"abc": bytes(32)}) as (a, b):
        await a.set("vector", "1", [1.0, 2.0], tenant_id="acme")
        for _ in range(2):
            assert await b.get_or_load("vector", "1", lambda: None, tenant_id="acme") == [1.0, 2.0]


async def test_not_found_is_encrypted_too(pair: list[Cache], redis: Connection) -> None:
    a, b = pair
    assert await a.get_or_load("doc", "7", lambda: None, tenant_id="acme") is None
    assert (await Stored(redis, a, "7").record()).flags == FLAG_ENCRYPTED | FLAG_NOT_FOUND
    source = Source()
    assert await b.get_or_load("doc", "7", source.load, tenant_id="acme") is None
    assert not source.calls


async def test_bits_that_were_flipped(pair: list[Cache], redis: Connection) -> None:
    """With a check that fits: else it is damage, which was found before."""
    a, b = pair
    await a.set("away", "7", SECRET, tenant_id="acme")
    lies = Stored(redis, a, "7", "away")
    good = await lies.record()
    size = len(good.payload)
    for at in (0, 1, 2, 3, 12, 26, 27, size // 2, size - 17, size - 16, size - 1):
        payload = bytearray(good.payload)
        payload[at] ^= 0x10
        await lies.put(_with(good, payload=bytes(payload)))
        assert await b.get("away", "7", tenant_id="acme") is None, at
    await lies.put(_with(good, payload=good.payload[:20]))
    assert await b.get("away", "7", tenant_id="acme") is None
    assert b.stats().records_not_decrypted == 12
    assert b.stats().records_corrupt == 0
    await lies.put(good)
    assert await b.get("away", "7", tenant_id="acme") == SECRET


@pytest.mark.parametrize(
    "changed",
    [
        {"flags": FLAG_ENCRYPTED | FLAG_NOT_FOUND},
        {"flags": FLAG_ENCRYPTED | records.FLAG_MAKESHIFT},
        {"codec": RAW},
        {"policy_version": 2},
        {"flags": 0},
    ],
)
async def test_what_reading_depends_on_can_not_be_changed(
    pair: list[Cache], redis: Connection, changed: dict[str, int]
) -> None:
    a, b = pair
    await a.set("away", "7", SECRET, tenant_id="acme")
    lies = Stored(redis, a, "7", "away")
    await lies.put(_with(await lies.record(), **changed))
    b.register(policies={"away": Policy(l1=False, version=changed.get("policy_version", 1))})
    assert await absent(b, data_type="away")


async def test_records_swapped_between_keys_types_and_tenants(pair: list[Cache], redis: Connection) -> None:
    a, b = pair
    await a.set("doc", "mine", SECRET, tenant_id="acme")
    mine = await Stored(redis, a, "mine").record()
    await a.set("away", "mine", "x", tenant_id="acme")
    await a.set("doc", "theirs", "x", tenant_id="acme")
    for there, data_type in (("theirs", "doc"), ("mine", "away")):
        lies = Stored(redis, a, there, data_type)
        await lies.put(_with(await lies.record(), payload=mine.payload))
        assert await absent(b, there, data_type)
    assert await b.get("doc", "mine", tenant_id="acme") == SECRET


async def test_records_swapped_between_namespaces(pair: list[Cache], redis: Connection, server_kinds: Any) -> None:
    a, _ = pair
    async with nodes(server_kinds.url, 1, namespace="other", encryption=keys("k1")) as (other,):
        await a.set("doc", "7", SECRET, tenant_id="acme")
        await other.set("doc", "7", "x", tenant_id="acme")
        lies = Stored(redis, other, "7")
        await lies.put(_with(await lies.record(), payload=(await Stored(redis, a, "7").record()).payload))
        assert await absent(other)


async def test_a_plain_record_is_refused(pair: list[Cache], redis: Connection) -> None:
    """Of an old node, or of an attacker who has no key."""
    a, b = pair
    await a.set("doc", "7", "x", tenant_id="acme")
    lies = Stored(redis, a, "7")
    good = await lies.record()
    for flags, payload in ((0, b"\xa6forged"), (FLAG_NOT_FOUND, b"")):
        await lies.put(_with(good, flags=flags, payload=payload))
        assert await absent(b)
        assert (await lies.record()).is_encrypted, "and what was loaded is"
    assert b.stats().records_not_decrypted >= 4
    assert "it is not encrypted, and encryption_required" in b.health().degraded[0]


async def test_it_is_told_once_a_minute(pair: list[Cache], redis: Connection) -> None:
    a, b = pair
    await a.set("away", "7", SECRET, tenant_id="acme")
    lies = Stored(redis, a, "7", "away")
    await lies.put(_with(await lies.record(), policy_version=1, codec=RAW))
    with told() as lines:
        for _ in range(20):
            assert await b.get("away", "7", tenant_id="acme") is None
    assert len(lines) == 1
    assert "does not authenticate" in lines[0]
    assert SECRET not in lines[0]


async def test_counters_and_what_goes_with_a_value_are_plain(pair: list[Cache], redis: Connection) -> None:
    """As SECURITY.md says."""
    a, b = pair
    assert await a.increment("seen", "acme", 41, "page") == 41
    assert await redis.call("HGET", "{cachebus:0}:c:acme:seen:page", "value") == b"41"
    assert await b.increment("seen", "acme", 1, "page") == 42
    await a.set("doc", "7", SECRET, tenant_id="acme", tags=["plan"])
    assert b"plan" in await Stored(redis, a, "7").read()
    log = await redis.call("XRANGE", "{cachebus:0}:log", "-", "+")
    assert SECRET.encode() not in repr(log).encode()


def _with(record: Record, **changed: Any) -> Record:
    """A record with these fields, and the rest of its own."""
    fields = {name: getattr(record, name) for name in Record.__struct_fields__}
    return Record(**{**fields, **changed})
