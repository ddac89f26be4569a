"""What another client sends, or has left, that is in the right format and makes no sense: nothing old is served."""

from __future__ import annotations

import asyncio

import pytest

from cachebus import ConfigError, Settings
from cachebus.base.clock import monotonic
from cachebus.core.ports import Caller
from cachebus.keys.key import bucket_of, is_scope
from cachebus.wire import event as events
from tests.support.caches import D_S, deaf, nodes, parts, past, quick, until

PRODUCER = Caller("", 0, b"")
SHAPELESS = ("X", "", "T", "D\x1facme", "I\x1facme\x1fdoc", "Q\x1facme", "N\x1facme")


async def test_an_event_with_a_scope_of_no_known_shape_is_lost_and_not_applied(redis_url: str) -> None:
    """Counted as applied, it would hide that what it replaced is still served."""
    async with nodes(redis_url) as (a, b):
        for turn, shapeless in enumerate(SHAPELESS):
            await a.set("doc", "1", turn, "acme")
            assert await b.get("doc", "1", "acme") == turn
            names = [shapeless, "T\x1facme"]
            body = events.encode_body([events.WritePart([], names, "another client")])
            await parts(a).store.invalidate(0, PRODUCER, [], names, body)
            told_s = monotonic()
            await past(told_s + D_S)
            assert await b.get("doc", "1", "acme") is None
        assert b.stats().events_corrupt > 0
        assert b.ready()


def test_every_scope_of_ours_has_a_shape() -> None:
    for name in ("N", "Y\x1fdoc", "T\x1facme", "D\x1facme\x1fdoc", "I\x1facme\x1fdoc\x1f7", "G\x1facme\x1ftag"):
        assert is_scope(name)
    for shape in "AVC":
        assert is_scope(f"T{shape}\x1facme\x1fc")
        assert is_scope(f"D{shape}\x1facme\x1fdoc\x1fc")
    assert not any(map(is_scope, SHAPELESS))


async def test_a_mark_that_is_no_text_keeps_no_node_from_beginning(redis_url: str) -> None:
    async with nodes(redis_url, 1) as (a,):
        await a.invalidate_scope("acme")
        await (
            parts(a)
            .store._links.of(0)
            .call(  # type: ignore[attr-defined]
                "ZADD", f"{{cachebus:0}}:marks:{bucket_of('acme')}", "7", b"G\x1facme\x1f\xff"
            )
        )
        async with nodes(redis_url, 1) as (b,):
            assert b.ready()


async def test_ids_in_all_contexts_are_invalidated_though_nobody_knows_where_contexts_are(redis_url: str) -> None:
    async with nodes(redis_url) as (a, b):
        await a.set("doc", "1", 1, "acme", agent_id="a7")
        assert await b.get("doc", "1", "acme", agent_id="a7") == 1
        await parts(a).store._links.of(0).call("HDEL", "{cachebus:0}:meta", "contexts")  # type: ignore[attr-defined]
        receipt = await a.invalidate("doc", "1", "acme", contexts="all")
        assert await b.get("doc", "1", "acme", agent_id="a7", after=receipt) is None
        await a.set("doc", "1", 2, "acme", agent_id="a7")
        assert await b.get("doc", "1", "acme", agent_id="a7", use_memory=False) == 2


async def test_an_own_write_answered_in_another_epoch_has_the_node_ask_at_once(redis_url: str) -> None:
    """The new epoch's seq may be far below what the node has applied in its own."""
    async with nodes(redis_url, 1, staleness_bound_s=60.0, probe_interval_s=30.0, gap_grace_s=0.02) as (a,):
        for turn in range(20):
            await a.invalidate("doc", turn, "acme")
        with deaf(a):
            store = parts(a).store
            await store._links.of(0).call("FLUSHALL")  # type: ignore[attr-defined]
            body = events.encode_body([events.WritePart([], [], "producer")])
            await store.invalidate(0, PRODUCER, [], [], body)
            await a.invalidate("doc", 1, "acme")
            await until(a.ready)


async def test_a_flood_of_corrupt_messages_costs_a_probe_a_second_at_most(redis_url: str) -> None:
    async with nodes(redis_url, 1, staleness_bound_s=60.0, probe_interval_s=30.0, gap_grace_s=0.02) as (a,):
        link = parts(a).store._links.of(0)  # type: ignore[attr-defined]
        sent = 0
        probe = parts(a).store.probe

        async def counted(*args: object, **kwargs: object) -> object:
            nonlocal sent
            sent += 1
            return await probe(*args, **kwargs)  # type: ignore[arg-type]

        parts(a).store.probe = counted  # type: ignore[method-assign]
        began_s = monotonic()
        for _ in range(300):
            await link.call("PUBLISH", "{cachebus:0}:events:0", b"CB2" + bytes(80))
        await until(lambda: a.stats().events_corrupt == 300)
        assert sent <= 2 + (monotonic() - began_s)


async def test_two_who_ask_where_a_shard_stands_take_turns(redis_url: str) -> None:
    async with nodes(redis_url, 1) as (a,):
        store, under_way, most = parts(a).store, 0, 0
        probe = store.probe

        async def counted(*args: object, **kwargs: object) -> object:
            nonlocal under_way, most
            under_way += 1
            most = max(most, under_way)
            try:
                return await probe(*args, **kwargs)  # type: ignore[arg-type]
            finally:
                under_way -= 1

        store.probe = counted  # type: ignore[method-assign]
        await asyncio.gather(*(a.probe() for _ in range(20)))
        assert most == 1


def test_a_longest_guard_and_marks_have_a_maximum() -> None:
    for wrong in ({"guard_max_s": 1e16}, {"max_invalidated_scopes": 10**7}):
        with pytest.raises(ConfigError):
            Settings(**wrong)
    assert quick("redis://127.0.0.1/0", guard_max_s=86_400).guard_max_s == 86_400
