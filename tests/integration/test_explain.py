"""`cache.explain` beside caches that live: what L2 has, what replaced it, who holds it, and until when."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import pytest

from cachebus import Cache, Explanation, L2Unavailable, Policy
from cachebus.base.clock import monotonic
from cachebus.listening.explanation import Holder
from cachebus.listening.inquiries import Inquiries
from cachebus.tools.servers.redis import EmbeddedServer
from cachebus.wire.inquiry import QUESTION, Inquiry
from tests.support.caches import D_S, heard, key_of, nodes, parts, until

POLICIES = {
    "soft": Policy(ttl_s=60, soft_ttl_s=0.01),
    "short": Policy(ttl_s=0.2, fail_safe_s=60),
    "gone": Policy(negative_ttl_s=60),
    "copied": Policy(copy=True),
}


@pytest.fixture(params=["memory", "redis"])
async def pair(request: pytest.FixtureRequest, redis_url: str) -> AsyncIterator[list[Cache]]:
    """Two nodes over one store."""
    url = redis_url if request.param == "redis" else f"memory://explain-{id(request)}"
    async with nodes(url, policies=POLICIES, db_timeout_s=5.0) as caches:
        yield caches


def node_of(found: Explanation, cache: Cache) -> Holder:
    """What is said of one node; there is only one of that name."""
    (mine,) = [holder for holder in found.nodes if holder.node == cache.stats().node]
    return mine


async def both_hold(pair: list[Cache], value: Any = 1, data_type: str = "price", **more: Any) -> None:
    """Both have it in memory, and have heard of all that was before."""
    receipt = await pair[0].set(data_type, "7", value, "acme", **more)
    await heard(pair, receipt)
    for cache in pair:
        assert await cache.get(data_type, "7", "acme", after=receipt) == value


async def test_what_is_fresh(pair: list[Cache]) -> None:
    a = pair[0]
    await both_hold(pair, tags=["t", "u"])
    for asker in pair:
        found = await asker.explain("price", "7", "acme")
        assert (found.case, found.cached, found.stored.state) == ("not_replaced", True, "valid")
        assert found.stored.tags == ("t", "u")
        assert found.stored.seq == found.seq == found.events[0].seq
        assert found.stored.expires_at is not None
        assert found.events[0].origin == a.stats().node
        assert [holder.node for holder in found.nodes] == sorted(cache.stats().node for cache in pair)
        for cache in pair:
            mine = node_of(found, cache)
            assert (mine.answered, mine.holds, mine.serves, mine.replaced) == (True, "value", True, False)
            assert mine.seq == found.seq == mine.applied
            assert mine.hit_path
            assert mine.until is not None
            assert mine.lease_until is not None
            assert 0 < (mine.lease_until - found.at).total_seconds() <= D_S + 0.1
        assert found.notes == ()
    told = found.as_dict()
    assert told["verdict"] == found.verdict == str(found).splitlines()[0]
    assert told["nodes"][0]["node"] == found.nodes[0].node


async def test_it_changes_nothing_and_counts_as_no_read(pair: list[Cache]) -> None:
    a, b = pair
    await both_hold(pair)
    await both_hold(pair, data_type="copied", value={"x": 1})
    entry = parts(b).node.l1.entries[key_of(b, "price", "7", "acme").l1]
    before = b.stats().types, entry.freq, entry.group.hits, len(parts(b).node.l1.entries), b.stats().events_applied
    for _ in range(5):
        await a.explain("price", "7", "acme")
    after = b.stats().types, entry.freq, entry.group.hits, len(parts(b).node.l1.entries), b.stats().events_applied
    assert before == after
    assert not node_of(await a.explain("copied", "7", "acme"), b).hit_path, "each caller gets a copy of its own"


async def test_an_entry_that_was_replaced_stays_where_it_lies(pair: list[Cache]) -> None:
    """A retired entry goes when it is read, or swept: not because somebody asked about it."""
    a, b = pair
    await both_hold(pair, tags=["t"])
    parts(b).node.sweep = lambda: iter(())  # type: ignore[method-assign]
    await heard(pair, await a.invalidate_tags(["t"], "acme"))
    for _ in range(2):
        found = await a.explain("price", "7", "acme")
        mine = node_of(found, b)
        assert (mine.holds, mine.why_not, mine.serves, mine.hit_path) == ("value", "replaced", False, False)
        assert found.stored.state == "invalidated"
        assert (found.case, found.cached) == ("nothing", False)
    assert b.stats().lost_to_watermarks == 0


@pytest.mark.parametrize("how", ["key", "contexts", "tag", "type", "tenant", "all tenants", "all"])
async def test_by_what_it_was_invalidated(pair: list[Cache], how: str) -> None:
    a, b = pair
    await both_hold(pair, tags=["t"])
    why: dict[str, Any] = {"reason": f"by {how}"}
    if how == "key":
        await a.invalidate("price", "7", "acme", **why)
    elif how == "contexts":
        await a.invalidate("price", "7", "acme", contexts="all", **why)
    elif how == "tag":
        await a.invalidate_tags(["t"], "acme", **why)
    elif how == "type":
        await a.invalidate_scope("acme", "price", **why)
    elif how == "tenant":
        await a.invalidate_scope("acme", **why)
    elif how == "all tenants":
        await a.invalidate_type("price", **why)
    else:
        await a.clear(**why)
    words = {
        "tag": "invalidated by seq {}: tag t of acme",
        "type": "invalidated by seq {}: all price of acme",
        "tenant": "invalidated by seq {}: all of acme",
        "all tenants": "invalidated by seq {}: all price of all tenants",
        "all": "invalidated by seq {}: everything",
    }.get(how, "nothing lies under this key")
    await until(lambda: node_does_not_hold(b))
    found = await b.explain("price", "7", "acme")
    assert found.stored.says.startswith(words.format(found.seq))
    assert found.events[0].reason == f"by {how}"
    assert found.events[0].origin == a.stats().node
    assert found.events[0].seq == found.seq
    assert found.case == "nothing"
    assert not any(holder.serves or holder.replaced for holder in found.nodes)


async def node_does_not_hold(cache: Cache) -> bool:
    """Whether a read there finds nothing."""
    return await cache.get("price", "7", "acme") is None


async def test_what_others_do_is_not_told(pair: list[Cache]) -> None:
    a, _ = pair
    await both_hold(pair, tags=["t"])
    mine = (await a.explain("price", "7", "acme")).events
    await a.invalidate("price", "8", "acme")
    await a.invalidate("stock", "7", "acme")
    await a.invalidate("price", "7", "acme", agent_id="x")
    await a.invalidate_scope("acme", "price", agent_id="x")
    await a.invalidate_tags(["u"], "acme")
    await a.invalidate_tags(["t"], "globex")
    await a.invalidate_type("stock")
    found = await a.explain("price", "7", "acme")
    assert found.events == mine
    assert found.case == "not_replaced"


async def test_replaced_an_instant_ago_on_a_node_that_has_not_heard(pair: list[Cache]) -> None:
    """It serves what was replaced until its lease ends, which is no later than was said."""
    a, b = pair
    await both_hold(pair)
    on_event = parts(b).listening.receiver
    on_event._on_event = lambda shard, message: None  # type: ignore[method-assign]
    parts(b).listening.catch_up.heal = _never  # type: ignore[method-assign, assignment]
    began_s = monotonic()
    await a.set("price", "7", 2, "acme")
    found = await a.explain("price", "7", "acme")
    mine = node_of(found, b)
    assert (found.case, mine.serves, mine.replaced, mine.hit_path) == ("replaced_is_served", True, True, True)
    assert found.verdict.startswith(f"node {mine.node} serves seq {mine.seq} until at most ")
    assert f"seq {found.seq} replaced it" in found.verdict
    assert a.stats().node in found.verdict
    assert mine.seq == found.seq - 1
    assert mine.until is not None
    left_s = (mine.until - found.at).total_seconds()
    assert 0 < left_s <= D_S
    assert await b.get("price", "7", "acme") == 1
    reads = []
    while await b.get("price", "7", "acme") != 2:
        reads.append(monotonic())
        await asyncio.sleep(0.001)
    assert reads[-1] - began_s <= D_S
    assert reads[-1] <= monotonic_of(found, mine, began_s)


async def _never(shard: int) -> None:
    return None


def monotonic_of(found: Explanation, mine: Holder, began_s: float) -> float:
    """No earlier than when the node's time is over, on this process's clock."""
    assert mine.until is not None
    replaced = found.events[0].at
    return began_s + (mine.until - replaced).total_seconds() + 0.1


async def test_a_guard(pair: list[Cache]) -> None:
    a, b = pair
    await both_hold(pair, tags=["t"])
    async with a.write_guard([("price", "7")], "acme", reason="import"):
        await until(lambda: b.stats().shards[0].applied == a.stats().shards[0].applied)
        found = await b.explain("price", "7", "acme")
        assert (found.case, found.cached) == ("guarded", False)
        (guard,) = found.guards
        assert guard.on in ("this key", "acme | price | 7 in every context")
        assert (guard.origin, guard.reason) == (a.stats().node, "import")
        assert guard.began_at == found.events[0].at
        assert 0 < (guard.until - found.at).total_seconds() <= 60
        assert "it is guarded by a write that began" in found.verdict
        assert (await b.explain("price", "8", "acme")).guards == ()
        assert (await b.explain("price", "7", "globex")).guards == ()
    async with a.write_guard(tenant_id="acme", tags=["t"]):
        await both_hold_guarded(b)
    found = await b.explain("price", "7", "acme")
    assert found.guards == ()
    assert found.case == "nothing"


async def both_hold_guarded(cache: Cache) -> None:
    """A tag is only known of what lies there."""
    assert (await cache.explain("price", "7", "acme")).guards == ()


async def test_a_guard_on_what_lies_there(pair: list[Cache]) -> None:
    a, b = pair
    async with a.write_guard(tenant_id="acme", scopes=["price"]):
        (guard,) = (await b.explain("price", "7", "acme")).guards
        assert guard.on == "all price of acme"


async def test_expired_soft_and_absent(pair: list[Cache]) -> None:
    a, b = pair
    await both_hold(pair, data_type="soft")
    await until(lambda: soft_is_over(a, b))
    await a.set("short", "7", 1, "acme")
    assert await b.get("short", "7", "acme") == 1
    await until(lambda: is_expired(a))
    found = await a.explain("short", "7", "acme")
    mine = node_of(found, b)
    assert (mine.holds, mine.serves, mine.why_not, mine.hit_path) == ("value", False, "expired", False)
    # After a takeover nothing is a fallback for a while: guards may have been lost.
    kept = parts(b).node.fallback(key_of(b, "short", "7", "acme"), monotonic()) is not None
    assert mine.fallback is kept is ("while the source fails it is given all the same" in mine.says)
    assert (found.case, found.cached) == ("nothing", kept)
    assert await a.get_or_load("gone", "7", lambda: None, "acme") is None
    found = await b.explain("gone", "7", "acme")
    assert (found.stored.state, found.case, found.cached) == ("not_found", "not_replaced", True)
    assert node_of(found, a).holds == "not_found"
    for ids in (("price", "7", "globex"), ("stock", "7", "acme"), ("price", "never", "acme")):
        found = await a.explain(*ids)
        assert (found.case, found.cached, found.stored.state) == ("nothing", False, "none")
        assert found.events == ()


async def soft_is_over(a: Cache, b: Cache) -> bool:
    found = await a.explain("soft", "7", "acme")
    mine = node_of(found, b)
    over = "to have it loaded anew" in mine.says
    assert mine.hit_path is not over
    assert mine.serves
    assert found.case == "not_replaced"
    return over and "the next read has it loaded anew" in found.stored.says  # a node rounds its times down


async def is_expired(cache: Cache) -> bool:
    return (await cache.explain("short", "7", "acme")).stored.state == "expired"


async def test_remembered_absence_is_nothing_held(pair: list[Cache]) -> None:
    a, b = pair
    assert await b.get("price", "7", "acme", agent_id="x", search_hierarchy=True) is None
    found = await a.explain("price", "7", "acme", agent_id="x")
    assert node_of(found, b).holds == "absent"
    assert not node_of(found, b).serves
    assert not found.cached
    await both_hold(pair)
    assert (await a.explain("price", "7", "acme", agent_id="x")).stored.state == "none", "contexts are other keys"


async def test_only_memory_has_it(pair: list[Cache]) -> None:
    """L2 has evicted it."""
    a, b = pair
    await both_hold(pair)
    await evict(a)
    found = await a.explain("price", "7", "acme")
    assert (found.case, found.cached, found.stored.state) == ("only_in_l1", True, "none")
    assert node_of(found, b).serves


async def evict(cache: Cache) -> None:
    """As L2 does where memory is short."""
    store: Any = parts(cache).store
    key = key_of(cache, "price", "7", "acme")
    if hasattr(store, "_shards"):
        del store._shards[key.shard].records[key.l2]
    else:
        await store._running.plain(key.shard, "DEL", store._names[key.shard].record(key))


async def test_an_invalidation_that_waits_is_told(pair: list[Cache]) -> None:
    a, b = pair
    await both_hold(pair)
    key = key_of(b, "price", "7", "acme")
    parts(b).node.block(key.shard, [key], [])
    found = await a.explain("price", "7", "acme")
    assert found.case == "waiting"
    assert found.verdict.startswith(f"node {b.stats().node} has an invalidation of it that L2 has yet to hear of")
    parts(b).node.unblock(key.shard, [key], [])
    parts(b).node.block(key.shard, [], [key.scopes[3]])
    assert (await a.explain("price", "7", "acme")).case == "waiting"
    assert (await a.explain("stock", "7", "acme")).case == "nothing"


async def test_the_log_is_read_to_its_end_and_no_further_than_needed(pair: list[Cache]) -> None:
    a, b = pair
    await both_hold(pair)
    for number in range(300):
        await a.invalidate("other", number, "acme")
    found = await b.explain("price", "7", "acme")
    assert len(found.events) == 1
    assert found.events_read >= 301
    for number in range(8):
        await a.set("price", "7", number, "acme")
    found = await b.explain("price", "7", "acme")
    assert [event.seq for event in found.events] == [found.seq - i for i in range(5)]
    assert found.events_read < 301


async def test_since_when_it_can_tell(pair: list[Cache]) -> None:
    a, b = pair
    await both_hold(pair)
    whole = (await b.explain("price", "7", "acme")).since
    for number in range(3):
        await a.invalidate("other", number, "acme")
    store: Any = parts(a).store
    shard = key_of(a, "price", "7", "acme").shard
    if hasattr(store, "_shards"):
        messages = store._shards[shard].messages
        for seq in sorted(messages)[:-2]:
            del messages[seq]
    else:
        await store._running.plain(shard, "XTRIM", store._names[shard].log, "MAXLEN", "2")
    found = await b.explain("price", "7", "acme")
    assert whole.log_begins_seq is not None
    assert (found.since.log_begins_seq, found.events) == (found.seq - 1, ())
    assert whole.log_begins_seq < found.seq - 1
    assert found.since.epoch_began == whole.epoch_began
    assert str(found).count("\nsince  the log goes back to seq ") == 1
    if not hasattr(store, "_shards"):
        assert found.since.epoch_began is not None
        assert found.since.log_begins is not None
        assert found.since.epoch_began <= found.since.log_begins <= found.at


async def test_what_an_epoch_that_has_just_begun_cuts_short(pair: list[Cache]) -> None:
    """L2 has lost its guards: what is stored until they must have ended expires then, whatever its type says."""
    a = pair[0]
    await both_hold(pair)
    store: Any = parts(a).store
    shard = key_of(a, "price", "7", "acme").shard
    if hasattr(store, "_shards"):
        store._shards[shard].meta_server = "another"
    else:
        await store._running.plain(shard, "FLUSHALL")
    for cache in pair:
        await cache.probe()
    await both_hold(pair, 2, ttl=86_400)
    found = (await a.explain("price", "7", "acme")).stored
    assert found.cut_short
    assert found.expires_at is not None
    assert found.created_at is not None
    assert (found.expires_at - found.created_at).total_seconds() <= a.settings.guard_max_s
    assert "sooner than its TTL says: L2 was empty or had lost its data" in found.says


async def test_a_node_that_answers_nobody_is_silent(pair: list[Cache]) -> None:
    a, b = pair
    await both_hold(pair)
    await heard(pair, await a.set("price", "9", 1, "acme"))
    await b.probe()
    parts(b).listening.receiver.inquiries._answers = False  # as one of an earlier version
    began_s = monotonic()
    found = await a.explain("price", "7", "acme")
    assert 0.9 < monotonic() - began_s < 1.9
    mine = node_of(found, b)
    assert (mine.answered, mine.replaced) == (False, False)
    assert "does not answer" in mine.says
    assert node_of(found, a).answered
    assert found.case == "not_replaced"


async def test_without_l2_it_says_so(redis_url: str) -> None:
    async with nodes(f"memory://away-{monotonic()}", 1) as (a,):
        store: Any = parts(a).store
        store._shards.away = True
        with pytest.raises(L2Unavailable):
            await a.explain("price", "7", "acme")
        store._shards.away = False


async def test_of_a_cache_that_is_off_it_says_so(redis_url: str) -> None:
    async with nodes(redis_url, 1, enabled=False) as (cache,):
        await cache.probe()  # as all verbs of one that is off, it asks nobody
        with pytest.raises(L2Unavailable, match=r"the cache is off \(enabled=False\)"):
            await cache.explain("price", "7", "acme")


async def test_a_flood_of_questions_is_answered_in_part_and_breaks_nothing(redis_server: EmbeddedServer) -> None:
    """From somebody else, who may publish: at most so many answers come, and reads and events go on."""
    async with nodes(redis_server.url) as (a, b):
        await both_hold([a, b])
        store = parts(a).store
        sent: list[str] = []
        publish = parts(b).store.publish

        async def counted(shard: int, message: bytes, *, to: str = "", sharded: bool = False) -> None:
            sent.append(to)
            await publish(shard, message, to=to, sharded=sharded)

        parts(b).store.publish = counted  # type: ignore[method-assign]
        began_s = monotonic()
        l1 = key_of(a, "price", "7", "acme").l1
        for _ in range(2000):
            await store.publish(0, Inquiry.about(l1).encode())
            await store.publish(0, QUESTION + b"garbage")
        receipt = await a.set("price", "7", 2, "acme")
        await heard([b], receipt)
        took_s = monotonic() - began_s
        assert 0 < len(sent) <= 20 + 10 * took_s + 1
        assert await b.get("price", "7", "acme") == 2
        assert b.stats().events_corrupt == b.stats().messages_unknown == 0


async def test_a_question_of_a_key_of_another_shard_finds_nothing(redis_url: str) -> None:
    async with nodes(redis_url, 2, shards=4) as (a, b):
        await both_hold([a, b])
        key = key_of(a, "price", "7", "acme")
        inquiries: Inquiries = parts(a).listening.receiver.inquiries
        for shard in range(4):
            question = Inquiry.about(key.l1)
            with inquiries.asking(question) as asked:
                async with parts(a).bus.answers(shard, question.id.decode(), sharded=False):
                    await parts(a).store.publish(shard, question.encode())
                    await asked.next()
            (said,) = asked.said.values()
            assert said.answer.holds == ("value" if shard == key.shard else "")
