"""A new node that takes over what is hot on a live one: what it reads, what it lets in, and what ends it."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from secrets import token_hex
from typing import Any

import pytest

from cachebus import Cache, Codec, L2Unavailable, Policy
from cachebus.base.clock import monotonic
from cachebus.core.ports import NodesReply
from cachebus.listening import heat, warm_up
from cachebus.listening.warm_up import BATCH_KEYS, WARM, warm_ones
from cachebus.tools.servers.kafka import KafkaServer
from cachebus.wire.heat import HotKey, HotQuestion
from tests.support.caches import asked, heard, key_of, nodes, parts, quick, until

POLICIES = {
    "elsewhere": Policy(l1=False),
    "gone": Policy(negative_ttl_s=60),
    "copied": Policy(copy=True),
    "soft": Policy(ttl_s=60, soft_ttl_s=0.01),
}
Opened = Callable[..., Any]


@pytest.fixture(autouse=True)
def _at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(warm_up, "JITTER_S", 0.0)


@pytest.fixture(params=["memory", "redis", "kafka"])
def where(request: pytest.FixtureRequest) -> dict[str, Any]:
    """Where a fleet has its L2 and its bus."""
    if request.param == "memory":
        return {"url": f"memory://warm-{token_hex(4)}"}
    url = request.getfixturevalue("redis_url")
    if request.param == "redis":
        return {"url": url}
    broker: KafkaServer = request.getfixturevalue("kafka")
    topic = f"warm-{token_hex(4)}"
    return {
        "url": url,
        "bus": "kafka",
        "kafka_bootstrap_servers": broker.address,
        "kafka_topic": topic,
        "connect_timeout_s": 30.0,
    }


def cache_of(url: str, **more: Any) -> Cache:
    """One with warm-up on, not yet open."""
    return Cache(quick(url, policies=POLICIES, warm_up=True, **more))


@asynccontextmanager
async def warm(url: str, **more: Any) -> AsyncIterator[Cache]:
    """A node that is over with its own warm-up, and says so in L2."""
    async with cache_of(url, **more) as cache:
        assert await cache.warmed(10)
        await cache.probe()
        yield cache


async def stored(cache: Cache, count: int, data_type: str = "price", **more: Any) -> None:
    """So many values in L2 and in this node's memory."""
    for number in range(count):
        await cache.set(data_type, number, {"n": number}, "acme", **more)


def held(cache: Cache) -> set[str]:
    """The ids of what is in memory."""
    return {name.split("\x1f")[2].split("\x1e")[0] for name in parts(cache).node.l1.entries}


class Hold:
    """Keeps what a node reads from L2 back, while it has been asked for."""

    def __init__(self, cache: Cache) -> None:
        self.begun, self.go_on = asyncio.Event(), asyncio.Event()
        fetch: Any = parts(cache).listening.warm_up._fetch
        read = fetch._read

        async def held_back(*given: Any) -> Any:
            found = await read(*given)
            self.begun.set()
            await self.go_on.wait()
            return found

        fetch._read = held_back


# -- what it takes over ------------------------------------------------------------------------------------------------


async def test_it_takes_over_what_is_hot_and_counts_no_read(where: dict[str, Any]) -> None:
    async with warm(**where) as old:
        await stored(old, 300)
        async with cache_of(**where) as new:
            with asked(new) as calls:
                assert await new.warmed(10)
            stats = new.stats()
            assert (stats.warmed, stats.warming, stats.l1_entries) == (300, False, 300)
            assert (stats.requests, stats.loads, stats.fills, stats.entries_refused) == (0, 0, 0, 0)
            assert calls["fill_lease"] == calls["fill"] == calls["write"] == 0
            with asked(new) as calls:
                for number in range(300):
                    assert await new.get("price", number, "acme") == {"n": number}
            assert calls["get"] == calls["read"] == 0, "all from memory"
            assert new.stats().l1_hits == 300
            assert old.stats().requests == 0, "nor does the old one count that it was asked"
            await old.set("price", 7, "new", "acme")
            await until(lambda: _reads(new, 7, "new"))


async def _reads(cache: Cache, number: int, value: Any) -> bool:
    return bool(await cache.get("price", number, "acme") == value)


async def test_the_hottest_come_first_and_no_more_than_wanted(redis_url: str) -> None:
    async with warm(redis_url) as old:
        await stored(old, 50)
        for number in (3, 33, 44):
            for _ in range(3):
                await old.get("price", number, "acme")
        await old.get("price", 21, "acme")
        async with cache_of(redis_url, warm_up_keys=4) as new:
            await new.warmed(10)
            assert held(new) == {"3", "33", "44", "21"}
        size = next(iter(parts(old).node.l1.entries.values())).size
        async with cache_of(redis_url, warm_up_bytes=10 * size) as new:
            await new.warmed(10)
            assert len(held(new)) == 10
            assert {"3", "33", "44", "21"} < held(new)


async def test_what_was_told_to_be_small_and_is_not_ends_it(redis_url: str) -> None:
    async with warm(redis_url) as old:
        for number in range(300):
            await old.set("price", number, "x" * 1000, "acme")
        lies = [HotKey(name, 1) for name in parts(old).node.l1.entries]
        _say(old, lies)
        async with cache_of(redis_url, warm_up_bytes=150_000) as new:
            await new.warmed(10)
            assert new.stats().warmed == 200, "the batch that reached it was the last"


def _say(cache: Cache, hot: Sequence[HotKey]) -> None:
    """Have a node tell these."""
    (answering,) = [
        step.__self__  # type: ignore[attr-defined]
        for step in parts(cache).listening.heartbeat._loops.of_the_node
        if isinstance(step.__self__, heat.HotAnswering)  # type: ignore[attr-defined]
    ]
    answering._found, answering._found_at_s = hot, float("inf")


async def test_only_what_belongs_into_memory_and_is_in_l2(redis_url: str) -> None:
    async with warm(redis_url) as old:
        await old.set("elsewhere", "1", 1, "acme")
        await old.get_or_load("gone", "2", lambda: None, tenant_id="acme")
        await old.set("copied", "3", [3], "acme", tags=["t"])
        await old.set("soft", "4", 4, "acme")
        await old.set("price", "5", None, "acme")
        await old.set("price", "6", 6, "other", agent_id="a", collection_id="c")
        await old.set("system", "7", 7)
        await stored(old, 1, "deleted")
        key = key_of(old, "deleted", 0, "acme")
        await old.get("price", "absent", "acme", search_hierarchy=True)
        lies = [HotKey(key_of(old, "elsewhere", "1", "acme").l1, 1), HotKey(key_of(old, "never", "1", "acme").l1, 1)]
        _say(old, [*(HotKey(entry.key, entry.size) for entry in parts(old).node.l1.entries.values()), *lies])
        await asyncio.to_thread(_delete, redis_url, key.l2)
        async with cache_of(redis_url) as new:
            await new.warmed(10)
            assert held(new) == {"2", "3", "4", "5", "6", "7"}
            with asked(new) as calls:
                assert await new.get_or_load("gone", "2", lambda: 1 / 0, tenant_id="acme") is None
                copies = [await new.get("copied", "3", "acme") for _ in range(2)]
                assert copies == [[3], [3]]
                assert copies[0] is not copies[1]
                assert await new.get("soft", "4", "acme") == 4
                assert await new.get("price", "5", "acme", default="?") is None
                assert await new.get("price", "6", "other", agent_id="a", collection_id="c") == 6
                assert await new.get("system", "7") == 7
            assert calls["get"] == calls["read"] == 0
            await heard([new], await old.invalidate_tags(["t"], "acme"))
            assert await new.get("copied", "3", "acme") is None


def _delete(url: str, l2: str) -> None:
    import redis

    with redis.Redis.from_url(url) as client:
        assert client.delete(f"{{cachebus:0}}:r:{l2}") == 1


async def test_names_that_are_none_or_of_nobody_are_passed_over(redis_url: str) -> None:
    async with warm(redis_url) as old:
        await stored(old, 3)
        good = [HotKey(name, 1) for name in parts(old).node.l1.entries]
        names = ("", "x", "\x1f\x1f", "a\x1fb\x1fc", "a\x1fb\x1fc\x1e\x1e\x1e\x1e", "\x1fprice\x1f1\x1e\x1e\x1e")
        rest = (
            "acme\x1fprice\x1f\x07\x1e\x1e\x1e",
            f"acme\x1f{'t' * 600}\x1f1\x1e\x1e\x1e",
            "other\x1fprice\x1f1\x1e\x1e\x1e",
        )
        _say(old, [HotKey(name, 1) for name in (*names, *rest)] + good * 3)
        async with cache_of(redis_url) as new:
            await new.warmed(10)
            assert new.stats().warmed == 3
            assert held(new) == {"0", "1", "2"}


async def test_over_several_shards_one_answer_tells_of_all(redis_url: str) -> None:
    async with warm(redis_url, shards=4) as old:
        for number in range(200):
            await old.set("price", number, number, f"t{number % 20}")
        async with cache_of(redis_url, shards=4) as new:
            await new.warmed(10)
            assert new.stats().warmed == 200
            assert {entry.group.shard for entry in parts(new).node.l1.entries.values()} == {0, 1, 2, 3}


# -- what it leaves alone ----------------------------------------------------------------------------------------------


async def test_it_evicts_nothing_and_replaces_nothing_that_came_meanwhile(redis_url: str) -> None:
    async with warm(redis_url) as old:
        await stored(old, 100)
        async with cache_of(redis_url, l1_max_entries=60) as new:
            hold = Hold(new)
            await asyncio.wait_for(hold.begun.wait(), 5)
            for number in range(40):
                await new.set("own", number, number, "acme")
            await new.set("price", 3, "mine", "acme")
            hold.go_on.set()
            await new.warmed(10)
            assert new.stats().l1_evictions == 0
            assert new.stats().l1_entries == 60
            assert all(key_of(new, "own", number, "acme").l1 in parts(new).node.l1.entries for number in range(40))
            assert await new.get("price", 3, "acme") == "mine"


@pytest.mark.parametrize("how", ["key", "tag", "scope", "tenant", "set", "epoch"])
@pytest.mark.parametrize("lease", ["live", "lapsed"])
async def test_what_is_replaced_while_it_is_read_does_not_enter(redis_url: str, how: str, lease: str) -> None:
    """The old values are on their way to the new node; it hears of the invalidation, and then they come."""
    async with warm(redis_url) as old:
        await stored(old, 20, tags=["t"])
        async with cache_of(redis_url) as new:
            if lease == "lapsed":  # so that L2 judges what is read
                parts(new).listening.warm_up._fetch.may_judge = lambda *_: False  # type: ignore[method-assign]
            hold = Hold(new)
            await asyncio.wait_for(hold.begun.wait(), 5)
            assert new.stats().warming
            assert not await new.warmed(0.01)
            if how == "epoch":
                await asyncio.to_thread(_flush, redis_url)
                await until(lambda: new.stats().flushes.get("epoch"))
            else:
                await heard([new], await _replaced(old, how))
            hold.go_on.set()
            assert await new.warmed(10)
            gone = {"3"} if how in ("key", "set") else {str(number) for number in range(20)}
            assert not held(new) & gone
            assert new.stats().entries_refused == len(gone)
            assert await new.get("price", 3, "acme") == ("new" if how == "set" else None)


async def _replaced(cache: Cache, how: str) -> Any:
    if how == "key":
        return await cache.invalidate("price", 3, "acme")
    if how == "set":
        return await cache.set("price", 3, "new", "acme")
    if how == "tag":
        return await cache.invalidate_tags(["t"], "acme")
    return await cache.invalidate_scope("acme", "price" if how == "scope" else None)


def _flush(url: str) -> None:
    import redis

    with redis.Redis.from_url(url) as client:
        client.flushall()


async def test_what_waits_on_this_node_for_l2_is_not_taken_over(redis_url: str) -> None:
    async with warm(redis_url) as old:
        await stored(old, 5)
        async with cache_of(redis_url, pending_max=10) as new:
            node = parts(new).node
            node.block(0, [key_of(new, "price", 3, "acme")], ())
            await new.warmed(10)
            assert held(new) == {"0", "1", "2", "4"}


# -- what ends it ------------------------------------------------------------------------------------------------------


async def test_it_is_off_unless_asked_for_and_then_neither_asks_nor_answers(redis_url: str) -> None:
    async with nodes(redis_url, 1, policies=POLICIES) as (old,):
        await stored(old, 5)
        await old.probe()
        async with cache_of(redis_url) as new:
            assert await new.warmed(2)
            assert held(new) == set()
            rows = (await parts(new).store.nodes(0, parts(new).node.caller(0))).rows
            assert old.stats().node in rows
            assert old.stats().node not in warm_ones(rows, None)
            question = HotQuestion.to(old.stats().node, "x", 10, 10**6)
            with parts(new).listening.receiver.hot.asking(question) as answer:
                async with parts(new).bus.answers(0, question.id.decode(), sharded=False):
                    await parts(new).store.publish(0, question.encode())
                    await old.set("price", 1, 2, "acme")  # which both hear behind it
                    await until(lambda: new.stats().shards[0].applied == old.stats().shards[0].applied)
                assert answer.keys == []
        async with nodes(redis_url, 1) as (plain,):
            assert await plain.warmed(0)
            assert not plain.stats().warming
            assert parts(plain).node.about.more == ()


@pytest.mark.parametrize("off", [{"enabled": False}, {"use_memory_cache": False}, {"l1_max_entries": 0}])
async def test_where_nothing_is_held_there_is_none(redis_url: str, off: dict[str, Any]) -> None:
    async with warm(redis_url) as old:
        await stored(old, 5)
        async with cache_of(redis_url, **off) as new:
            assert await new.warmed(0)
            assert (new.stats().warmed, new.stats().warming) == (0, False)


async def test_alone_it_is_over_at_once_and_silent(redis_url: str, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, logger="cachebus")
    began_s = monotonic()
    async with warm(redis_url) as new:
        assert monotonic() - began_s < 3
        assert new.stats().warmed == 0
    assert not [line for line in caplog.messages if "warm" in line]


async def test_what_it_has_come_to_is_told_once(redis_url: str, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, logger="cachebus")
    async with warm(redis_url) as old:
        await stored(old, 5)
        async with cache_of(redis_url) as new:
            await new.warmed(10)
            await until(lambda: [line for line in caplog.messages if "warmed" in line])
        (line,) = [line for line in caplog.messages if "warm" in line]
        assert line.startswith("warmed 5 keys in ")
        assert line.endswith(f"of 5 that are hot on {old.stats().node}")


async def test_a_silent_node_is_passed_over_for_another(redis_url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Killed, say, a moment after it had said that it answers."""
    monkeypatch.setattr(warm_up, "LATE_S", 0.2)
    async with warm(redis_url) as dead, warm(redis_url) as old:
        parts(dead).listening.receiver.hot.answers = False
        await stored(old, 5)
        silent, chosen = dead.stats().node, list[Any]()

        def choice(found: Sequence[Any]) -> Any:
            chosen.append(silent if silent in found else found[0])
            return chosen[-1]

        monkeypatch.setattr("cachebus.listening.warm_up.random.choice", choice)
        async with cache_of(redis_url) as new:
            await new.warmed(10)
            assert held(new) == {"0", "1", "2", "3", "4"}
        assert [one for one in chosen if one != 0] == [silent, old.stats().node]


async def test_of_who_dies_in_the_middle_what_has_come_is_taken(
    redis_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(warm_up, "PIECE_S", 0.2)
    monkeypatch.setattr("cachebus.wire.heat.FULL_BYTES", 1000)
    async with warm(redis_url) as old:
        await stored(old, 200)
        publish, sent = parts(old).store.publish, 0

        async def dying(shard: int, message: bytes, **more: Any) -> None:
            nonlocal sent
            sent += 1
            if sent <= 2:
                await publish(shard, message, **more)

        parts(old).store.publish = dying  # type: ignore[method-assign]
        async with cache_of(redis_url) as new:
            await new.warmed(10)
            assert sent > 4
            assert 20 < new.stats().warmed < 100


async def test_l2_that_is_away_for_a_while_is_waited_for_and_not_for_ever(redis_url: str) -> None:
    async with warm(redis_url) as old:
        await stored(old, 2 * BATCH_KEYS)
        async with cache_of(redis_url) as new:
            fetch: Any = parts(new).listening.warm_up._fetch
            read, calls = fetch.read, 0

            async def failing(*given: Any, **more: Any) -> Any:
                nonlocal calls
                calls += 1
                if calls in (2, 3):
                    raise L2Unavailable("it is away")
                return await read(*given, **more)

            fetch.read = failing
            await new.warmed(10)
            assert (calls, new.stats().warmed) == (4, 2 * BATCH_KEYS)
        async with cache_of(redis_url, warm_up_s=0.6) as new:
            nodes_of = parts(new).store.nodes

            async def away(*given: Any) -> NodesReply:
                raise L2Unavailable("it is away")

            parts(new).store.nodes = away  # type: ignore[method-assign]
            assert await new.warmed(5)
            assert new.stats().warmed == 0
            parts(new).store.nodes = nodes_of  # type: ignore[method-assign]
            await until(lambda: (WARM, True) in parts(new).node.about.more)


async def test_a_bus_that_carries_no_question_leaves_it_cold(redis_url: str) -> None:
    async with warm(redis_url) as old:
        await stored(old, 5)
        async with cache_of(redis_url) as new:

            async def lost(*given: Any, **more: Any) -> None:
                raise L2Unavailable("it is away")

            parts(new).store.publish = lost  # type: ignore[method-assign]
            assert await new.warmed(10)
            assert new.stats().warmed == 0
            assert await new.get("price", 3, "acme") == {"n": 3}


async def test_a_cache_that_closes_meanwhile_leaves_nothing_and_waits_for_nothing(redis_url: str) -> None:
    async with warm(redis_url) as old:
        await stored(old, 5 * BATCH_KEYS)
        async with AsyncExitStack() as stack:
            new = await stack.enter_async_context(cache_of(redis_url))
            hold = Hold(new)
            await asyncio.wait_for(hold.begun.wait(), 5)
            waiting = asyncio.create_task(new.warmed())
            await asyncio.sleep(0)
            began_s = monotonic()
            await new.aclose()
            assert monotonic() - began_s < 1.5
            assert await asyncio.wait_for(waiting, 1)


# -- many at once ------------------------------------------------------------------------------------------------------


async def test_eight_that_begin_together_get_one_answer_each(where: dict[str, Any]) -> None:
    async with warm(**where) as old:
        await stored(old, 250)
        sent: list[str] = []
        told, send = parts(old).node.id, heat.HotAnswering._send

        async def counted(self: Any, index: int, question: HotQuestion, piece: Any) -> None:
            assert question.answerer == told == self._node.id
            sent.append(question.asker)
            await send(self, index, question, piece)

        heat.HotAnswering._send = counted  # type: ignore[method-assign]
        try:
            async with AsyncExitStack() as stack:
                fleet = await asyncio.gather(*(stack.enter_async_context(cache_of(**where)) for _ in range(8)))
                assert all(await asyncio.gather(*(cache.warmed(15) for cache in fleet)))
                assert [cache.stats().warmed for cache in fleet] == [250] * 8
                assert sorted(sent) == sorted(cache.stats().node for cache in fleet)
        finally:
            heat.HotAnswering._send = send  # type: ignore[method-assign]


async def test_one_that_has_just_been_warmed_hands_on_what_it_was_told(redis_url: str) -> None:
    async with AsyncExitStack() as stack:
        old = await stack.enter_async_context(warm(redis_url))
        await stored(old, 100)
        second = await stack.enter_async_context(warm(redis_url))
        assert second.stats().warmed == 100
        await old.aclose()
        async with cache_of(redis_url) as third:
            await third.warmed(10)
            assert third.stats().warmed == 100


async def test_reads_need_not_wait_for_it(redis_url: str) -> None:
    async with warm(redis_url) as old:
        await stored(old, 5)
        async with cache_of(redis_url) as new:
            hold = Hold(new)
            await asyncio.wait_for(hold.begun.wait(), 5)
            assert new.ready()
            assert new.health().serving
            assert await new.get("price", 3, "acme") == {"n": 3}
            hold.go_on.set()
            await new.warmed(10)
            assert new.stats().warmed == 4


@pytest.mark.parametrize("codec", ["msgpack", "f32"])
async def test_what_is_encrypted_and_copied_for_each_caller_is_taken_over_as_it_is(
    redis_url: str, codec: Codec
) -> None:
    """Of some bytes any codec makes a value: that of a cipher's would be wrong in silence."""
    secrets, policies = {"2026-11": bytes(range(32))}, {"price": Policy(codec=codec, copy=True)}
    settings = quick(redis_url, warm_up=True, encryption=lambda: secrets, policies=policies)
    async with Cache(settings) as source:
        await source.set("price", 1, [1.0, 2.0, 3.0], "acme")
        assert await source.warmed(10)
        await source.probe()
        async with Cache(settings) as new:
            assert await new.warmed(10)
            assert new.stats().warmed == 1
            first = await new.get("price", 1, "acme")
            assert first == [1.0, 2.0, 3.0]
            assert await new.get("price", 1, "acme") is not first
            assert new.stats().l1_hits == 2
