"""A client that was written from docs/protocol.md alone, beside real caches, on every kind of server."""

from __future__ import annotations

import asyncio
import re
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest

from cachebus import Cache, Receipt, Settings
from cachebus.errors import ProtocolMismatch
from cachebus.tools.servers.redis import EmbeddedServer
from tests.support.caches import D_S, PATIENCE_S, QUICK, Source, asked, deaf, never_poll, until, waiting_in
from tests.wire.foreign import Foreign, Key, Refused, Wire, mapping, read_event, read_record, write_parts

TEXT = (Path(__file__).parents[2] / "docs" / "protocol.md").read_text()
META = TEXT[TEXT.index("**meta** has") : TEXT.index("**Marks.**")]


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
    assert wire.call("SUBSCRIBE", "{cachebus:0}:events:0")[0] == b"subscribe"
    yield wire
    wire.close()


DOC = Key("acme", "doc", "7")
EIGHT = Key("acme", "doc", "8")
DEEP = Key("acme:eu", "doc", "a*b%/é", ("a7", None, "c:1"))


async def test_meta_has_the_fields_that_are_told(cache: Cache, foreign: Foreign) -> None:
    there = set(mapping(foreign.wire.call("HGETALL", "{cachebus:0}:meta")))
    told = set(re.findall(r"^\| `(\w+)` \|", META, re.MULTILINE))
    assert there <= told, f"docs/protocol.md does not tell of {there - told} in meta"
    assert {"server", "epoch", "seq", "facts", "born", "mode", "bound_ms", "guard_ms", "logged", "contexts"} <= there
    await cache.invalidate_scope(tenant_id="acme")
    async with cache.write_guard([("doc", "7")], tenant_id="acme", db_timeout_s=1):
        there = set(mapping(foreign.wire.call("HGETALL", "{cachebus:0}:meta")))
    assert there <= told
    assert {"marks", "guards", "guarded", "sweep"} <= there


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
    marks, low = foreign.attach()
    assert marks == {"G\x1facme\x1ft": receipt.seq, "DA\x1facme\x1fdoc\x1fa7": receipt.seq}
    assert not low


async def test_its_event_of_two_parts_from_a_later_version(cache: Cache, foreign: Foreign) -> None:
    """Each part is applied; what this version does not know in them is passed over."""
    receipts = [await cache.set("doc", i, 1, tenant_id="acme") for i in ("7", "8", "9")]
    await cache.set("other", "7", 1, tenant_id="acme")
    scope = "Y\x1fother"
    body = write_parts([[[DOC.l1], [], "", "", "", "later"], [[EIGHT.l1], [scope], "n", "why", "trace"]], {"later": 1})
    gone = [*foreign.lies(DOC)[1:2], *foreign.lies(EIGHT)[1:2]]
    seq = foreign.run("invalidate", gone, *foreign.events, body, scope)[1]
    await until(lambda: cache.stats().shards[0].applied == seq > receipts[-1].seq)
    assert _has(cache, "9")
    with asked(cache) as counts:
        for data_type, resource_id in (("doc", "7"), ("doc", "8"), ("other", "7")):
            assert await cache.get(data_type, resource_id, tenant_id="acme") is None
        assert counts["get"] + counts["read"] == 3, "none of them is in memory any more"


async def test_it_learns_of_a_low_watermark(url: str, foreign: Foreign, listener: Wire) -> None:
    """Of an event that raises one, and where it begins; L2 believes nothing below it."""
    async with Cache.open(Settings(url=url, max_invalidated_scopes=16, **QUICK)) as cache:
        await cache.set("doc", "7", "old", tenant_id="acme")
        assert foreign.read(DOC) is not None
        for i in range(17):
            receipt = await cache.invalidate_tags([f"t{i}"], tenant_id="acme")
    heard = [read_event((await asyncio.to_thread(listener.read))[2]) for _ in range(18)]
    assert [event["bucket"] for event in heard] == ["--"] * 17 + [DOC.bucket]
    assert heard[-1]["seq"] == receipt.seq
    low = heard[-1]["low"]
    marks, watermarks = foreign.attach()
    assert watermarks == {DOC.bucket: low}
    assert low < min(marks.values())
    assert foreign.read(DOC) is None, "its seq is lower, and nobody remembers what has replaced it"


async def test_a_producer_of_its_kind_leaves_no_line(url: str, cache: Cache) -> None:
    producer = Foreign(url)
    producer.invalidate([DOC])
    name, lines = producer.nodes()
    assert list(lines) == [cache.stats().node], "the cache's own"
    assert name
    assert lines[cache.stats().node]["bound_ms"] == D_S * 1000
    producer.close()


async def test_a_cache_hears_of_its_bound(cache: Cache, url: str) -> None:
    other = Foreign(url, "foreign-1", bound_ms=3_000)
    other.attach()
    await cache.probe()
    assert cache.stats().shards[0].bound_s == 3.0
    other.close()


@pytest.mark.parametrize("key", [DOC, DEEP], ids=["plain", "encoded"])
async def test_its_fill_is_read_by_a_cache(cache: Cache, foreign: Foreign, key: Key) -> None:
    tenant, data_type, resource_id = key.l1.split("\x1e")[0].split("\x1f")[:3]
    ids = {"agent_id": "a7", "collection_id": "c:1"} if key is DEEP else {}
    foreign.attach()
    outcome, epoch, seq, _ = foreign.fill_lease(key, "foreign-1-0")
    assert outcome == "granted"
    assert foreign.fill(key, "foreign-1-0", {"limit": 100}, epoch, seq)
    source = Source()
    found = await cache.get_or_load(data_type, resource_id, source.load, tenant_id=tenant, **ids)
    assert found == {"limit": 100}
    assert source.calls == 0


async def test_its_fill_after_an_invalidation_is_refused(cache: Cache, foreign: Foreign) -> None:
    foreign.attach()
    _, epoch, seq, _ = foreign.fill_lease(DOC, "foreign-1-0")
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
    seconds, us = map(int, foreign.wire.call("TIME"))
    assert 0 < found["expires_ms"] - seconds * 1000 - us / 1000 <= 60_000
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
    ours = {"origin": cache.stats().node, "reason": "", "trace": ""}
    assert heard[0]["parts"] == [{"keys": [DOC.l1], "scopes": ["I\x1facme\x1fdoc\x1f7"], **ours}]
    assert heard[1]["parts"] == [{"keys": [], "scopes": ["D\x1facme\x1fdoc"], **ours}]
    assert [event["left_out"] for event in heard] == [True, False], "nothing lies in a context"
    assert foreign.log() == heard
    assert foreign.probe() == (foreign.epoch, foreign.applied)


async def test_it_waits_for_a_caches_load_and_is_woken(cache: Cache, foreign: Foreign, listener: Wire) -> None:
    foreign.attach()
    source = Source(**{"7": "loaded"})
    source.hold()
    load = asyncio.create_task(cache.get_or_load("doc", "7", source.load, tenant_id="acme"))
    await source.asked.wait()
    outcome, _, _, wait_ms = foreign.fill_lease(DOC, "foreign-1-0")
    assert outcome == "wait"
    assert 0 < wait_ms <= 10_000
    source.release()
    assert await load == "loaded"
    message = (await asyncio.to_thread(listener.read))[2]
    assert message == b"CBW" + DOC.l1.encode()
    outcome, _, _, record = foreign.fill_lease(DOC, "foreign-1-0")
    assert outcome == "hit"
    assert read_record(DOC.key, record)["value"] == "loaded"


async def test_a_cache_waits_for_its_load_and_is_woken(
    cache: Cache, foreign: Foreign, monkeypatch: pytest.MonkeyPatch
) -> None:
    never_poll(monkeypatch)
    foreign.attach()
    _, epoch, seq, _ = foreign.fill_lease(DOC, "foreign-1-0", 60_000)
    assert foreign.hold(DOC, "foreign-1-0", 60_000)
    assert not foreign.hold(DOC, "somebody-else", 60_000)
    source = Source(**{"7": "the cache's own"})
    load = asyncio.create_task(cache.get_or_load("doc", "7", source.load, tenant_id="acme"))
    await until(lambda: waiting_in(cache))
    assert foreign.wire.call("GET", foreign.lies(DOC)[2]).startswith(b"w")
    assert foreign.fill(DOC, "foreign-1-0", "foreign", epoch, seq)
    assert await asyncio.wait_for(load, PATIENCE_S) == "foreign"
    assert source.calls == 0


async def test_a_takeover_voids_its_lease_and_its_place(cache: Cache, foreign: Foreign) -> None:
    foreign.attach()
    _, epoch, seq, _ = foreign.fill_lease(DOC, "foreign-1-0")
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
    assert foreign.count(key, 0) == 7
    assert foreign.count(key, 2**63 - 1) is None
    assert foreign.count(key, -(2**63) + 1) == 7 + 1 - 2**63
    name, lines = foreign.nodes()
    assert set(lines) == {"foreign-1", cache.stats().node}
    assert foreign.forget("foreign-1", lives=False)
    assert not foreign.forget("foreign-1", lives=False)
    assert foreign.once("nodes", [], foreign.facts, 0, "", "", "", "", 0, 0)[3][::2].count(b"foreign-1") == 0
    assert foreign.nodes()[0] == name
    foreign.forget("foreign-1", lives=True)
    assert foreign.nodes()[0] != name, "somebody who may live is missing in this set"


async def test_both_wait_for_each_other(cache: Cache, foreign: Foreign) -> None:
    """The line of one that has applied nothing is waited for, and the receipt names it."""
    foreign.attach()
    assert foreign.probe()[1] == foreign.applied
    receipt = await cache.invalidate("doc", "7", tenant_id="acme", wait="nodes")
    assert receipt.lapsed == ("foreign-1",)
    assert cache.stats().node in receipt.confirmed
    with deaf(cache):
        own = foreign.invalidate([DOC], probe=True)
        assert not foreign.waited(own)
    foreign.log()
    await until(lambda: foreign.waited(own))


async def test_a_guard_of_its_own_keeps_a_cache_from_storing(cache: Cache, foreign: Foreign) -> None:
    token = b"0123456789abcdef"
    receipt = foreign.guard(DOC, token, 60_000)
    assert not (await cache.set("doc", "7", "old", tenant_id="acme")).stored
    assert foreign.fill_lease(DOC, "foreign-1-0")[0] == "guarded"
    assert await cache.get("doc", "7", tenant_id="acme", after=receipt) is None
    foreign.guard(DOC, token, 0)
    assert (await cache.set("doc", "7", "new", tenant_id="acme")).stored


async def test_a_lease_of_its_own_that_rests(cache: Cache, foreign: Foreign) -> None:
    foreign.attach()
    assert foreign.fill_lease(DOC, "foreign-1-0")[0] == "granted"
    assert foreign.hold(DOC, "foreign-1-0", 60_000, rests=True)
    outcome, _, _, left_ms = foreign.fill_lease(DOC, "foreign-1-1", fallback=2)
    assert outcome == "resting"
    assert 0 < left_ms <= 60_000
    assert not foreign.hold(DOC, "foreign-1-0", 60_000), "who lets it rest holds it no more"
    source = Source(**{"7": "loaded"})
    assert await cache.get_or_load("doc", "7", source.load, tenant_id="acme") == "loaded", "it had nothing to give"


async def test_what_its_kind_of_message_is_not_known_changes_nothing(cache: Cache, foreign: Foreign) -> None:
    foreign.attach()
    await cache.set("doc", "7", 1, tenant_id="acme")
    for message in (b"CB3" + b"x" * 80, b"", b"CB"):
        foreign.wire.call("PUBLISH", foreign.channel, message)
    await until(lambda: cache.stats().messages_unknown == 3)
    assert _has(cache, "7")
    assert await cache.get("doc", "7", tenant_id="acme") == 1


async def test_databases_do_not_hear_each_other(cache: Cache, url: str) -> None:
    other = Foreign(f"{url.rsplit('/', 1)[0]}/3", "foreign-3")
    other.wire.call("SELECT", 3)
    assert other.channel.endswith(":3")
    repeated = cache.stats().events_foreign
    other.invalidate([DOC])
    await cache.set("doc", "8", 1, tenant_id="acme")
    assert cache.stats().events_foreign == repeated
    other.close()


async def test_other_facts_are_refused_on_both_sides(url: str, cache: Cache) -> None:
    other = Foreign(url, "foreign-1", shards=4)
    with pytest.raises(Refused, match=re.escape("CACHEBUS protocol=2 shards=1 bus=redis | protocol=2 shards=4")):
        other.attach()
    other.wire.call("FLUSHALL")
    other.attach()
    with pytest.raises(ProtocolMismatch):
        async with Cache.open(Settings(url=url, **QUICK)):
            pass
    other.close()
