"""docs/protocol.md says what the code does: its examples, its tables, and a client that was written from it."""

from __future__ import annotations

import asyncio
import json
import re
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import pytest

from cachebus import Cache, Receipt, Settings
from cachebus import event as events
from cachebus import record as records
from cachebus.cli.embedded import EmbeddedServer
from cachebus.errors import ProtocolMismatch
from cachebus.keys import Keyspace
from cachebus.ports import PROTOCOL
from cachebus.values import decode
from tests.support.caches import QUICK, Source, until
from tests.wire.foreign import Foreign, Key, Refused, Wire, from_document, read_event, read_record

ROOT = Path(__file__).parents[2]
TEXT = (ROOT / "docs" / "protocol.md").read_text()
SCRIPTS = {path.stem for path in (ROOT / "cachebus" / "l2" / "scripts").glob("[a-z]*.lua")}


def block(kind: str) -> str:
    """The one block of that kind."""
    found = re.findall(rf"```{kind}\n(.*?)```", TEXT, re.DOTALL)
    assert len(found) == 1, kind
    return str(found[0])


def hexdump(kind: str) -> bytes:
    """The bytes of a block, whose first column is hexadecimal."""
    return bytes.fromhex("".join(line.split()[0] for line in block(f"hex {kind}").splitlines()))


def table(heading: str) -> list[list[str]]:
    """The rows of the first table behind a line that begins so."""
    behind = TEXT[TEXT.index(heading) :]
    rows = re.search(r"(?:^\|.*\n)+", behind, re.MULTILINE)
    assert rows is not None
    return [[cell.strip().strip("`") for cell in row.strip("|").split("|")] for row in rows[0].splitlines()][2:]


def keys_told() -> list[dict[str, Any]]:
    decoder, text, found = json.JSONDecoder(), block("json keys"), []
    while text.strip():
        _, end = decoder.raw_decode(text := text.lstrip())
        found.append(from_document(text[:end]))
        text = text[end:]
    return found


# -- examples and tables ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("told", keys_told(), ids=lambda told: told["key"])
def test_keys(told: dict[str, Any]) -> None:
    ours = Keyspace(64).key(told["type"], told["id"], told["tenant"] or None, *told["contexts"])
    theirs = Key(told["tenant"], told["type"], told["id"], tuple(told["contexts"]))
    assert told["key"] == ours.l2 == theirs.key
    assert told["l1"] == ours.l1 == theirs.l1
    assert told["names"] == list(ours.names) == theirs.names
    assert told["shard of 64"] == ours.shard == theirs.shard(64)


def test_the_record() -> None:
    told, data = from_document(block("json record")), hexdump("record")
    assert read_record(data) == told
    ours = records.decode(data)
    assert ours.encode() == data
    assert decode(ours.codec, ours.payload) == told["value"]
    for name in ("flags", "codec", "seq", "created_ms", "soft_ms", "expires_ms", "tags"):
        assert getattr(ours, name) == told[name]
    assert ours.epoch.decode() == told["epoch"]
    assert ours.version.hex() == told["version"]


def test_the_event() -> None:
    told, data = from_document(block("json event")), hexdump("event")
    assert read_event(data) == told
    ours = events.decode(data)
    assert (ours.epoch.decode(), ours.seq, ours.floor, ours.published_us) == (
        told["epoch"], told["seq"], told["floor"], told["published_us"],
    )  # fmt: skip
    assert (list(ours.keys), list(ours.names), ours.origin) == (told["keys"], told["names"], told["origin"])


def test_a_receipt() -> None:
    (told,) = re.findall(r"such as `([0-9a-f.]+)`", TEXT)
    assert str(Receipt.parse(told)) == told


def test_the_protocols_number() -> None:
    assert f"This is protocol **{PROTOCOL}**." in TEXT


def test_every_script_is_in_the_table() -> None:
    told = {row[0] for row in table("| script |")}
    assert told == SCRIPTS, "a script is missing in the table of docs/protocol.md, or too much is there"


@pytest.mark.parametrize("script", sorted(SCRIPTS))
def test_the_table_has_every_argument_that_a_script_reads(script: str) -> None:
    (row,) = [row for row in table("| script |") if row[0] == script]
    source = (ROOT / "cachebus" / "l2" / "scripts" / f"{script}.lua").read_text()
    read = {int(number) for number in re.findall(r"ARGV\[(\d+)\]", source)}
    told = {int(number) for number in re.findall(r"\b(\d+)(?: …)?:", row[2])}
    assert read - told <= ({9, 10, 11, 12, 13, 14} if script == "read" else set()) | set(range(1, 9))
    keys = [part for part in row[1].split(", ") if part]
    assert max((int(n) for n in re.findall(r"KEYS\[(\d+)\]", source)), default=4) <= 4 + len(keys)


def test_every_name_of_a_shard_is_told() -> None:
    told = {row[0] for row in table("| name | type |")}
    prologue = (ROOT / "cachebus" / "l2" / "names.py").read_text()
    for name in re.findall(r"\{tag\}:([a-z]+)", prologue):
        assert any(f"{{ns:i}}:{name}" in line for line in told), f"{name} is missing in docs/protocol.md"


# -- beside real caches ----------------------------------------------------------------------------------------------


@pytest.fixture
def url(server_kinds: EmbeddedServer) -> str:
    return server_kinds.url


@pytest.fixture
async def cache(url: str) -> AsyncIterator[Cache]:
    async with Cache.open(Settings(url=url, **QUICK)) as opened:
        yield opened


@pytest.fixture
def foreign(url: str) -> Iterator[Foreign]:
    client = Foreign(url, "foreign-1")
    yield client
    client.close()


@pytest.fixture
def listener(url: str) -> Iterator[Wire]:
    """Subscribed to the channel."""
    wire = Wire(url)
    assert wire.call("SUBSCRIBE", "{cachebus:0}:events")[0] == b"subscribe"
    yield wire
    wire.close()


DOC = Key("acme", "doc", "7")
DEEP = Key("acme:eu", "doc", "a*b%/é", ("a7", None, "c:1"))


async def test_meta_has_the_fields_that_are_told(cache: Cache, foreign: Foreign) -> None:
    flat = foreign.wire.call("HGETALL", "{cachebus:0}:meta")
    there = {name.decode() for name in flat[::2]}
    told = {row[0] for row in table("**meta** has")}
    assert there <= told, f"docs/protocol.md does not tell of {there - told} in meta"
    assert {"server", "epoch", "seq", "floor", "marks", "facts"} <= there


async def test_its_invalidation_is_applied_by_a_cache(cache: Cache, foreign: Foreign) -> None:
    for resource_id in ("7", "8"):
        await cache.set("doc", resource_id, 1, tenant_id="acme")
    foreign.invalidate([DOC])
    await until(lambda: not _has(cache, "7"))
    assert await cache.get("doc", "7", tenant_id="acme") is None
    assert await cache.get("doc", "8", tenant_id="acme") == 1, "and no other key"


def _has(cache: Cache, resource_id: str) -> bool:
    parts = cache._parts
    assert parts is not None
    return f"acme\x1fdoc\x1f{resource_id}\x1e\x1e\x1e" in parts.node.l1.entries


async def test_its_invalidation_of_scopes_and_tags(cache: Cache, foreign: Foreign) -> None:
    await cache.set("doc", "7", 1, tenant_id="acme", tags=["t"])
    await cache.set("doc", "8", 1, tenant_id="acme", agent_id="a7")
    await cache.set("doc", "9", 1, tenant_id="acme")
    receipt = Receipt.parse(foreign.invalidate([], ("G\x1facme\x1ft", "DA\x1facme\x1fdoc\x1fa7")))
    assert await cache.get("doc", "7", tenant_id="acme", after=receipt) is None, "its receipt is a session token"
    assert await cache.get("doc", "8", tenant_id="acme", agent_id="a7", after=receipt) is None
    assert await cache.get("doc", "9", tenant_id="acme", after=receipt) == 1
    assert foreign.attach()["G\x1facme\x1ft"] == receipt.seq


async def test_a_producer_of_its_kind_leaves_no_line(url: str, cache: Cache) -> None:
    producer = Foreign(url)
    producer.invalidate([DOC])
    lines = producer.wire.call("HGETALL", "{cachebus:0}:nodes")
    assert len(lines) == 2, "the cache's own"
    assert re.fullmatch(rb"[0-9]+:[0-9]+", lines[1])
    producer.close()


@pytest.mark.parametrize("key", [DOC, DEEP], ids=["plain", "encoded"])
async def test_its_fill_is_read_by_a_cache(cache: Cache, foreign: Foreign, key: Key) -> None:
    tenant, data_type, resource_id = key.l1.split("\x1e")[0].split("\x1f")[:3]
    ids = {"agent_id": "a7", "collection_id": "c:1"} if key is DEEP else {}
    foreign.attach()
    outcome, epoch, seq, _ = foreign.lease(key, "foreign-1-0")
    assert outcome == "granted"
    assert foreign.fill(key, "foreign-1-0", {"limit": 100}, epoch, seq)
    source = Source()
    found = await cache.get_or_load(data_type, resource_id, source.load, tenant_id=tenant, **ids)
    assert found == {"limit": 100}
    assert source.calls == 0


async def test_its_fill_after_an_invalidation_is_refused(cache: Cache, foreign: Foreign) -> None:
    foreign.attach()
    _, epoch, seq, _ = foreign.lease(DOC, "foreign-1-0")
    await cache.invalidate_scope(tenant_id="acme", data_type="doc")
    assert not foreign.fill(DOC, "foreign-1-0", 1, epoch, seq)
    assert await cache.get("doc", "7", tenant_id="acme") is None


async def test_its_write_is_read_by_a_cache_and_the_caches_by_it(cache: Cache, foreign: Foreign) -> None:
    assert foreign.write(DOC, {"by": "foreign"})
    assert not foreign.write(DOC, 0, only_if_absent=True)
    assert await cache.get("doc", "7", tenant_id="acme", use_memory=False) == {"by": "foreign"}
    await cache.set("doc", "7", {"by": ["a", "cache"], "n": -5}, tenant_id="acme", tags=["t"])
    found = foreign.read(DOC)
    assert found is not None
    assert found["value"] == {"by": ["a", "cache"], "n": -5}
    assert found["tags"] == ["G\x1facme\x1ft"]
    # A guard that was lost when this epoch began might have stood for a minute: so long what is stored lives no longer.
    assert 59_000 < found["expires_ms"] - found["created_ms"] <= 60_001
    await cache.invalidate_tags(["t"], tenant_id="acme")
    assert foreign.read(DOC) is None


async def test_it_hears_a_caches_events_and_finds_them_in_the_log(
    cache: Cache, foreign: Foreign, listener: Wire
) -> None:
    foreign.attach()
    first = foreign.applied
    await cache.invalidate("doc", "7", tenant_id="acme", contexts="all")
    await cache.invalidate_scope(tenant_id="acme", data_type="doc")
    heard = [read_event((await asyncio.to_thread(listener.read))[2]) for _ in range(2)]
    assert [event["seq"] for event in heard] == [first + 1, first + 2]
    assert heard[0]["keys"] == [DOC.l1]
    assert heard[0]["names"] == ["I\x1facme\x1fdoc\x1f7"]
    assert (heard[1]["keys"], heard[1]["names"]) == ([], ["D\x1facme\x1fdoc"])
    assert foreign.log() == heard
    assert foreign.probe() == (foreign.epoch, foreign.applied)


async def test_it_waits_for_a_caches_load_and_is_woken(cache: Cache, foreign: Foreign, listener: Wire) -> None:
    foreign.attach()
    source = Source(**{"7": "loaded"})
    source.hold()
    load = asyncio.create_task(cache.get_or_load("doc", "7", source.load, tenant_id="acme"))
    await source.asked.wait()
    outcome, _, _, wait_ms = foreign.lease(DOC, "foreign-1-0")
    assert outcome == "wait"
    assert 0 < wait_ms <= 10_000
    source.release()
    assert await load == "loaded"
    message = (await asyncio.to_thread(listener.read))[2]
    assert message == b"CBW" + DOC.l1.encode()
    outcome, _, _, record = foreign.lease(DOC, "foreign-1-0")
    assert outcome == "hit"
    assert read_record(record)["value"] == "loaded"


async def test_a_cache_waits_for_its_load_and_is_woken(cache: Cache, foreign: Foreign) -> None:
    foreign.attach()
    _, epoch, seq, _ = foreign.lease(DOC, "foreign-1-0", 60_000)
    assert foreign.hold(DOC, "foreign-1-0", 60_000)
    assert not foreign.hold(DOC, "somebody-else", 60_000)
    source = Source(**{"7": "the cache's own"})
    load = asyncio.create_task(cache.get_or_load("doc", "7", source.load, tenant_id="acme"))
    await until(lambda: foreign.wire.call("GET", foreign.lease_of(DOC)).endswith(b":w"))
    assert foreign.fill(DOC, "foreign-1-0", "foreign", epoch, seq)
    assert await load == "foreign"
    assert source.calls == 0


async def test_a_takeover_voids_its_lease_and_its_place(cache: Cache, foreign: Foreign) -> None:
    foreign.attach()
    _, epoch, seq, _ = foreign.lease(DOC, "foreign-1-0")
    foreign.wire.call("DEL", "{cachebus:0}:meta")
    assert not foreign.fill(DOC, "foreign-1-0", 1, epoch, seq)
    now, _ = foreign.probe()
    assert now != epoch
    foreign.attach()
    foreign.applied += 5
    later, seq = foreign.probe()
    assert later != now, "a caller that has seen more begins another"
    assert seq == foreign.applied + 1
    await until(lambda: cache.stats().shards[0].epoch == later.decode())


async def test_counters_and_leaving(cache: Cache, foreign: Foreign) -> None:
    key = Key("acme", "hits", "7")
    foreign.attach()
    assert foreign.count(key, 5, "request-1") == 5
    assert foreign.count(key, 5, "request-1") == 5
    assert foreign.count(key, 2) == 7
    lines = foreign.wire.call("HGETALL", "{cachebus:0}:nodes")
    assert b"foreign-1" in lines
    foreign.leave()
    assert b"foreign-1" not in foreign.wire.call("HGETALL", "{cachebus:0}:nodes")


async def test_other_facts_are_refused_on_both_sides(url: str, cache: Cache) -> None:
    other = Foreign(url, "foreign-1", shards=4)
    with pytest.raises(Refused, match=re.escape("CACHEBUS protocol=1 shards=1 bus=redis | protocol=1 shards=4")):
        other.attach()
    other.wire.call("FLUSHALL")
    other.attach()
    with pytest.raises(ProtocolMismatch):
        async with Cache.open(Settings(url=url, **QUICK)):
            pass
    other.close()


def test_the_client_knows_nothing_of_cachebus() -> None:
    source = (Path(__file__).parent / "foreign.py").read_text()
    assert not re.search(r"^\s*(from|import)\s+(cachebus|msgspec|redis|hiredis)", source, re.MULTILINE)
