"""Loaders that decide: how long a value lives, that it isn't kept, with which tags, that the old one is still right.
Whatever they decide, an invalidation wins."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

import pytest

from cachebus import (
    Cache,
    ConfigError,
    DontCache,
    Fresh,
    NotModified,
    Policy,
    Previous,
    cached,
    get_with_cache_aside,
    lifespan,
)
from cachebus.testing import FakeClock, Fleet
from tests.support.aging import aging
from tests.support.caches import Source, heard, key_of, nodes, parts, quick, until

SAFE = Policy(ttl_s=10, fail_safe_s=1000, retries=0)


class Deciding(Source):
    """A source whose loader decides: `decide` makes of the value what it returns."""

    def __init__(self, decide: Callable[[Any], Any] = Fresh, **values: Any) -> None:
        super().__init__(**values)
        self.decide = decide

    async def load(self, resource_id: str) -> Any:
        return self.decide(await super().load(resource_id))


class Conditional(Source):
    """A source that is asked whether anything was modified since a version; it says so as of when it was asked."""

    def __init__(self, **values: Any) -> None:
        super().__init__(**values)
        self.told: list[Previous[Any] | None] = []
        self.tags: tuple[str, ...] = ()

    async def load(self, resource_id: str, previous: Previous[Any] | None) -> Any:  # type: ignore[override]
        self.told.append(previous)
        value = await super().load(resource_id)
        version = f"v-{value}"
        if previous is not None and previous.version == version:
            return NotModified()
        return Fresh(value, version=version, tags=self.tags)


def load(cache: Cache, source: Source, data_type: str = "config", **more: Any) -> asyncio.Task[Any]:
    return asyncio.create_task(cache.get_or_load(data_type, "x", source.load, tenant_id="acme", **more))


# -- lifetimes ----------------------------------------------------------------------------------------------------


async def test_its_lifetimes_count_on_every_node() -> None:
    async with aging(2, config=Policy(ttl_s=1000, l1_ttl_s=500)) as world:
        a, b = world.nodes
        source = Deciding(lambda value: Fresh(value, ttl_s=50, l1_ttl_s=5), x=1)
        assert await load(a, source) == 1
        assert await b.get("config", "x", "acme") == 1
        await world.pass_s(6)
        for cache in (a, b):
            seen = await cache.look("config", "x", "acme")
            assert (seen.level, seen.value) == ("l2", 1), "out of memory"
        await world.pass_s(45)
        assert await a.get("config", "x", "acme") is None


async def test_a_soft_ttl_of_its_own_has_it_refreshed() -> None:
    async with aging(1, config=Policy(ttl_s=1000)) as world:
        (a,) = world.nodes
        source = Deciding(lambda value: Fresh(value, soft_ttl_s=5), x=1)
        await load(a, source)
        source.values["x"] = 2
        await world.pass_s(6)
        assert await load(a, source) == 1
        await until(lambda: a.stats().fills == 2)
        assert await load(a, source) == 2


async def test_the_shortest_of_the_callers_and_its_own_counts() -> None:
    async with aging(1, config=Policy(ttl_s=10)) as world:
        (a,) = world.nodes
        assert await load(a, Deciding(lambda value: Fresh(value, ttl_s=100), x=1)) == 1
        await world.pass_s(50)
        assert await a.get("config", "x", "acme") == 1, "longer than the type's"
        await a.delete("config", "x", "acme")
        await load(a, Deciding(lambda value: Fresh(value, ttl_s=100), x=1), ttl=20)
        await world.pass_s(21)
        assert await a.get("config", "x", "acme") is None


@pytest.mark.parametrize("negative_ttl_s", [None, 5])
async def test_none_lives_as_long_as_not_found(negative_ttl_s: float | None) -> None:
    async with aging(1, config=Policy(negative_ttl_s=negative_ttl_s)) as world:
        (a,) = world.nodes
        source = Deciding(lambda value: Fresh(value, ttl_s=1000))
        for _ in range(2):
            assert await load(a, source) is None
        assert source.calls == (2 if negative_ttl_s is None else 1)
        await world.pass_s(6)
        await load(a, source)
        assert source.calls == (3 if negative_ttl_s is None else 2)


async def test_set_takes_the_value_itself() -> None:
    async with Fleet(1) as fleet:
        for decided in (Fresh(1), DontCache(1), NotModified()):
            with pytest.raises(ValueError, match="set takes the value itself"):
                await fleet.caches[0].set("config", "x", decided, "acme")


# -- not kept -----------------------------------------------------------------------------------------------------


async def test_what_is_not_to_be_cached_is_for_those_who_wait(redis_url: str) -> None:
    async with nodes(redis_url, 2, policies={"config": SAFE}) as (a, b):
        source = Deciding(DontCache, x={"n": (1, 2)})
        source.hold()
        readers = [load(a, source) for _ in range(3)]
        await source.asked.wait()
        await asyncio.sleep(0)
        source.release()
        assert await asyncio.gather(*readers) == [{"n": [1, 2]}] * 3, "as any node would decode it"
        assert source.calls == 1
        assert (await a.look("config", "x", "acme")).absent
        assert (await b.look("config", "x", "acme")).absent
        await load(a, source)
        assert source.calls == 2
        thing = object()
        assert await load(a, Deciding(DontCache, x=thing)) is thing
        assert a.stats().types["config"].serialization_errors == 0


async def test_what_is_not_to_be_cached_takes_the_former_value_away() -> None:
    async with aging(2, config=SAFE) as world:
        a, b = world.nodes
        await load(a, Source(x="old"))
        await world.pass_s(11)
        assert (await a.look("config", "x", "acme")).is_fallback
        assert await load(a, Deciding(DontCache, x="new")) == "new"
        for cache in (a, b):
            assert (await cache.look("config", "x", "acme")).absent
        failing = Source()
        failing.error = OSError("away")
        with pytest.raises(OSError, match="away"):
            await load(a, failing)


# -- the old one is still right -----------------------------------------------------------------------------------


async def test_not_modified_gives_the_old_value_a_new_life() -> None:
    async with aging(2, config=SAFE) as world:
        a, b = world.nodes
        source = Conditional(x="old")
        source.tags = ("t",)
        assert await load(a, source, tags=["mine"]) == "old"
        await world.pass_s(11)
        assert await load(b, source) == "old"
        assert source.told[0] is None
        told = source.told[1]
        assert told is not None
        assert (told.value, told.version, set(told.tags)) == ("old", "v-old", {"t", "mine"})
        assert 10 <= told.age_s <= 12
        await world.pass_s(5)
        for cache in (a, b):
            seen = await cache.look("config", "x", "acme")
            assert (seen.value, seen.version, set(seen.tags)) == ("old", "v-old", {"t", "mine"})
            assert seen.found
        assert b.stats().types["config"].not_modified == 1
        await a.invalidate_tags(["mine"], "acme")
        await world.fleet.settle()
        assert (await b.look("config", "x", "acme")).absent, "its old tags live on"


async def test_its_own_lifetimes_live_on_and_grow_no_longer() -> None:
    async with aging(1, config=Policy(ttl_s=1000, fail_safe_s=1000)) as world:
        (a,) = world.nodes

        async def loader(previous: Previous[int] | None) -> Any:
            return Fresh(1, ttl_s=20) if previous is None else NotModified()

        for _ in range(4):
            await a.get_or_load("config", "x", loader, "acme")
            left_s = (await a.look("config", "x", "acme")).ttl_left_s
            assert left_s is not None
            assert 18 <= left_s <= 20
            await world.pass_s(21)


async def test_so_does_that_of_the_call_which_has_loaded_it() -> None:
    async with aging(1, config=Policy(ttl_s=1000, fail_safe_s=1000)) as world:
        (a,) = world.nodes
        source, more = Conditional(x=1), {"ttl": 20}
        for number in range(4):
            await load(a, source, **more)
            left_s = (await a.look("config", "x", "acme")).ttl_left_s
            assert left_s is not None
            assert 18 <= left_s <= 20
            assert a.stats().types["config"].not_modified == number
            more = {}
            await world.pass_s(21)
        source.values["x"] = 2
        await load(a, source)
        left_s = (await a.look("config", "x", "acme")).ttl_left_s
        assert left_s is not None and left_s > 900, "what is loaded anew has the type's"


async def test_a_refresh_may_find_nothing_modified(redis_url: str) -> None:
    async with nodes(redis_url, 2, policies={"config": Policy(ttl_s=1000, soft_ttl_s=0.05)}, guard_max_s=0) as (a, b):
        source = Conditional(x="old")
        await load(a, source)
        before = await a.look("config", "x", "acme")

        async def refreshed() -> bool:
            await load(a, source)
            return a.stats().types["config"].not_modified > 0

        await until(refreshed)
        seen = await b.look("config", "x", "acme")
        assert (seen.value, seen.version, before.version) == ("old", "v-old", "v-old")
        assert source.told[1] is not None


async def test_tags_of_the_loader_do_not_gather_with_each_refresh() -> None:
    async with aging(1, config=Policy(ttl_s=1000, soft_ttl_s=5)) as world:
        (a,) = world.nodes
        source = Deciding(x=0)
        source.decide = lambda value: Fresh(value, tags=[f"of-{value}"])
        for number in range(4):
            source.values["x"] = number
            await load(a, source, tags=["mine"])
            await until(lambda n=number: a.stats().fills == n + 1)  # type: ignore[misc]
            assert (await a.look("config", "x", "acme")).tags == ("mine", f"of-{number}")
            await world.pass_s(6)


async def test_not_modified_without_a_previous_is_the_programs_error() -> None:
    async with Fleet(1) as fleet:
        (a,) = fleet.caches
        with pytest.raises(ConfigError, match="no `previous`"):
            await a.get_or_load("config", "x", NotModified, "acme")
        assert await a.get_or_load("config", "x", lambda: 1, "acme") == 1, "nothing cools down"


async def test_what_was_invalidated_is_not_offered(redis_url: str) -> None:
    async with nodes(redis_url, 2, policies={"config": Policy(ttl_s=0.05, fail_safe_s=1000)}, guard_max_s=0) as (a, b):
        source = Conditional(x="old")
        for how in ("key", "tag", "scope"):
            source.tags = ("t",)
            await load(a, source)
            await until(lambda: _is_fallback(a))
            if how == "key":
                receipt = await b.invalidate("config", "x", "acme")
            elif how == "tag":
                receipt = await b.invalidate_tags(["t"], "acme")
            else:
                receipt = await b.invalidate_scope("acme", "config")
            source.told.clear()
            assert await load(a, source, after=receipt) == "old"
            assert source.told == [None], how


async def asking(cache: Cache, source: Source) -> asyncio.Task[Any]:
    """A read that waits for its source. L2 gives the old value until its own clock says that it has expired."""
    while True:
        reader, asked = load(cache, source), asyncio.create_task(source.asked.wait())
        await asyncio.wait({reader, asked}, return_when=asyncio.FIRST_COMPLETED)
        asked.cancel()
        if source.asked.is_set():
            return reader


async def _is_fallback(cache: Cache) -> bool:
    return (await cache.look("config", "x", "acme")).is_fallback


@pytest.mark.parametrize("where", ["here", "elsewhere"])
@pytest.mark.parametrize("how", ["key", "tag", "scope", "guard"])
async def test_what_is_invalidated_meanwhile_is_not_given_as_if_it_were_right(
    redis_url: str, how: str, where: str
) -> None:
    """1. A loads, and is offered "old", version v-old. Its source reads, and finds nothing modified.
    2. Somebody writes "new" to the source, and invalidates.
    3. The source's answer comes. L2 refuses the fill: A asks again, and offers nothing."""
    policy = Policy(ttl_s=0.05, fail_safe_s=1000)
    async with nodes(redis_url, 2, policies={"config": policy}, guard_max_s=0) as (a, b):
        source = Conditional(x="old")
        source.tags = ("t",)
        await load(a, source)
        await until(lambda: _is_fallback(a))
        source.hold()
        source.told.clear()
        reader = await asking(a, source)
        writer = a if where == "here" else b
        source.values["x"] = "new"
        if how == "key":
            await writer.invalidate("config", "x", "acme")
        elif how == "tag":
            await writer.invalidate_tags(["t"], "acme")
        elif how == "scope":
            await writer.invalidate_scope("acme")
        else:
            plan = parts(writer).planner.one(key_of(writer, "config", "x", "acme"))
            await parts(writer).writer.guard(plan, "k" * 16, 10_000)
            await parts(writer).writer.unguard(plan, "k" * 16)
        source.release()
        assert await reader == "new"
        assert [told is None for told in source.told] == [False, True]
        assert await load(b, source) == "new"


async def test_a_refresh_that_was_overtaken_leaves_no_old_value() -> None:
    async with aging(2, config=Policy(ttl_s=1000, soft_ttl_s=5)) as world:
        a, b = world.nodes
        source = Conditional(x="old")
        await load(a, source)
        await world.pass_s(6)
        source.hold()
        assert await load(a, source) == "old"
        await source.asked.wait()
        source.values["x"] = "new"
        await b.invalidate("config", "x", "acme")
        source.release()
        await until(lambda: not a.stats().flights)
        assert await load(a, source) == "new"
        assert source.told[-1] is None


async def test_without_l2_an_old_value_lives_on_only_while_it_might_be_a_fallback() -> None:
    async with aging(2, config=SAFE) as world:
        a, b = world.nodes
        source = Conditional(x="old")
        await load(a, source)
        await world.pass_s(11)
        world.fleet.away = True
        assert await load(a, source) == "old"
        assert source.told[1] is not None
        world.fleet.away = False
        await world.pass_s(1)
        await a.set("config", "y", 1, "acme")
        # Now the lease ends while the source is asked: nobody knows what was invalidated meanwhile.
        await load(b, Conditional(x="old"))
        await world.pass_s(11)
        world.fleet.away = True
        source.hold()
        source.told.clear()
        reader = load(b, source)
        await source.asked.wait()
        world.clock.advance(3)
        source.release()
        assert await reader == "old"
        assert [told is None for told in source.told] == [False, True]


async def test_what_was_made_without_the_source_is_not_offered() -> None:
    """It is nothing that the source knows of."""
    told = []

    def fails() -> Any:
        raise OSError

    def again(previous: Any) -> Any:
        told.append(previous)
        return "fetched"

    policy = Policy(fail_safe_s=100, fail_safe_throttle_s=0.01, retries=0)
    async with lifespan(quick("memory://made", policies={"config": policy})) as cache:
        made, metrics = await get_with_cache_aside("config", "x", "acme", fails, lambda: "made")
        assert (made, metrics["source"]) == ("made", "generation")

        async def over() -> bool:
            return (await cache.look("config", "x", "acme")).absent

        await until(over)
        assert (await get_with_cache_aside("config", "x", "acme", again))[0] == "fetched"
    assert told == [None]


# -- tags that are known after the load ---------------------------------------------------------------------------


@pytest.mark.parametrize("where", ["here", "elsewhere"])
async def test_who_has_invalidated_a_tag_joins_no_load_that_may_carry_it(redis_url: str, where: str) -> None:
    """1. A's load reads "old".
    2. Its tag is invalidated, and the caller of that reads: it may not be given what was read before.
    3. The load ends, and says that its value carries the tag. L2 refuses the fill."""
    async with nodes(redis_url, 2) as (a, b):
        source = Deciding(lambda value: Fresh(value, tags=["t"]), x="old")
        source.hold()
        first = load(a, source)
        await source.asked.wait()
        source.values["x"] = "new"
        receipt = await (a if where == "here" else b).invalidate_tags(["t"], "acme")
        second = load(a, source, after=receipt)
        await until(lambda: a.stats().flights == 2)
        source.release()
        assert (await first, await second) == ("old", "new")
        assert await b.get("config", "x", "acme", after=receipt) == "new"
        assert a.stats().fills_rejected == 1


@pytest.mark.parametrize("kept_by", ["l2", "an outage"])
@pytest.mark.parametrize("is_back", [False, True])
async def test_what_was_kept_goes_without_l2_too(kept_by: str, is_back: bool) -> None:
    """Who is answered "nothing" or "don't keep it" is not given the old value by the next read."""
    for answer in (None, DontCache("once"), Fresh(None), {1: object()}):
        async with Fleet(1, staleness_bound_s=5.0) as fleet:
            (a,) = fleet.caches
            source = Source(x="old")
            fleet.away = kept_by == "an outage"
            assert await load(a, source) == "old"
            fleet.away = not is_back
            given = await a.get_or_load("config", "x", lambda answer=answer: answer, "acme", refresh=True)
            assert given == getattr(answer, "value", answer)
            assert await a.get_or_load("config", "x", lambda: "anew", "acme") == "anew"


async def test_without_l2_neither() -> None:
    async with Fleet(1, pending_max=10, staleness_bound_s=5.0) as fleet:
        (a,) = fleet.caches
        source = Deciding(lambda value: Fresh(value, tags=["t"]), x="old")
        fleet.away = True
        source.hold()
        first = load(a, source)
        await source.asked.wait()
        source.values["x"] = "new"
        receipt = await a.invalidate_tags(["t"], "acme")
        assert receipt.status == "pending"
        second = load(a, source)
        await until(lambda: source.calls == 2)
        source.release()
        assert (await first, await second) == ("old", "new")
        source.values["x"] = "newer"
        assert await load(a, source) == "newer", "what L2 has yet to hear of is blocked, be it told late"
        fleet.away = False
        await a.drain(5.0)


async def test_other_tenants_tags_and_other_scopes_keep_nobody_from_joining() -> None:
    async with Fleet(1) as fleet:
        (a,) = fleet.caches
        source = Source(x=1)
        source.hold()
        first = load(a, source)
        await source.asked.wait()
        await a.invalidate("config", "other", "acme")
        await a.invalidate_scope("acme", "page")
        await a.invalidate_tags(["t"], "umbrella")
        second = load(a, source)
        await fleet.settle()
        source.release()
        assert (await first, await second, source.calls) == (1, 1, 1)


async def test_a_late_tag_invalidates_on_every_node(redis_url: str) -> None:
    async with nodes(redis_url, 2, policies={"config": Policy(tags=["type"])}) as (a, b):
        source = Deciding(lambda value: Fresh(value, tags=["late"]), x=1)
        for tag in ("late", "type", "mine"):
            assert await load(a, source, tags=["mine"]) == 1
            assert set((await b.look("config", "x", "acme")).tags) == {"late", "type", "mine"}
            receipt = await a.invalidate_tags([tag], "acme")
            assert await a.get("config", "x", "acme") is None
            await heard([b], receipt)
            assert await b.get("config", "x", "acme") is None


async def test_more_tags_than_a_record_takes_are_told_and_the_value_is_given(caplog: pytest.LogCaptureFixture) -> None:
    async with Fleet(1) as fleet:
        (a,) = fleet.caches
        source = Deciding(lambda value: Fresh(value, tags=[f"t{i}" for i in range(254)]), x=1)
        assert await load(a, source, tags=["mine"]) == 1
        assert len((await a.look("config", "x", "acme")).tags) == 255
        await a.clear()
        assert await load(a, source, tags=["mine", "too"]) == 1
        assert (await a.look("config", "x", "acme")).absent
        assert a.stats().types["config"].serialization_errors == 1
        assert "give it 256 tags, and a record takes 255" in caplog.text


@pytest.mark.parametrize("sweeps", [False, True])
async def test_a_guard_on_a_late_tag_that_ends_by_its_time_hides_what_was_loaded_under_it(
    redis_url: str, sweeps: bool
) -> None:
    """1. A writer guards the tag. A loads, and reads "old": nobody knows of the tag yet, so it has the fill lease.
    2. The writer commits "new", and is killed. Its guard ends by its time. Who reads then joins A's load.
    3. A's load ends, and tells the tag: L2 refuses the fill, and who has come later loads again."""
    async with nodes(redis_url, 2, guard_max_s=0) as (a, b):
        source = Deciding(lambda value: Fresh(value, tags=["t"]), x="old")
        writer = parts(b).writer
        plan = parts(b).planner.tags("acme", ["t"])
        receipt = await writer.guard(plan, "k" * 16, 400)
        await heard([a], receipt)
        source.hold()
        first = load(a, source)
        await source.asked.wait()
        source.values["x"] = "new"
        asked = Deciding(lambda value: Fresh(value, tags=["t"]), x=1)

        async def over() -> bool:
            return (
                await b.get_or_load("page", "x", asked.load, "acme", tags=["t"]) == 1
                and (await b.look("page", "x", "acme")).found
            )

        await until(over)
        if sweeps:  # all that was left of it
            await writer.guard(parts(b).planner.tags("acme", ["other"]), "o" * 16, 1)
        second = load(a, source)
        await asyncio.sleep(0)
        assert sweeps or a.stats().flights == 1, "it has joined"
        source.release()
        assert (await first, await second) == ("old", "new")
        assert await load(b, source) == "new"


# -- its other ways in --------------------------------------------------------------------------------------------


async def test_a_cached_function_decides_too(redis_url: str) -> None:
    async with Cache(quick(redis_url, guard_max_s=0)) as cache:
        calls: list[Any] = []

        @cached("price", resource_id="{sku}", tenant_id="acme", cache=cache)
        async def price(
            sku: str, *, previous: Previous[dict[str, int]] | None = None
        ) -> Fresh[dict[str, int]] | NotModified:
            calls.append(previous)
            if previous is not None:
                return NotModified()
            return Fresh({"cents": 5}, soft_ttl_s=0.03, tags=[f"sku:{sku}"], version="e1")

        assert await price("a") == {"cents": 5}
        assert (await cache.look(**price.key("a"))).tags == ("sku:a",)

        async def refreshed() -> bool:
            await price("a")
            return len(calls) > 1

        await until(refreshed)
        assert calls[1].version == "e1"
        await cache.invalidate_tags(["sku:a"], "acme")
        assert await price.get("a") is None


def test_a_cached_function_is_given_previous_by_nobody_else() -> None:
    with pytest.raises(ConfigError, match="put `previous` behind"):

        @cached("price", resource_id="{sku}:{size}", tenant_id="acme")
        async def price(sku: str, previous: object = None, size: int = 1) -> int:
            return size


async def test_results_come_as_what_is_around_them_says() -> None:
    from dataclasses import dataclass

    @dataclass
    class Price:
        cents: int

    async with Cache("memory://results") as cache:

        @cached("price", resource_id="{sku}", tenant_id="acme", cache=cache)
        async def price(sku: str) -> Fresh[Price] | DontCache[Price] | NotModified | None:
            return Fresh(Price(5))

        Price.__module__ = __name__
        for _ in range(2):
            assert await price("a") == Price(5)


async def test_hooks_of_cache_aside_see_the_value() -> None:
    seen: list[Any] = []

    def serializer(value: Any) -> Any:
        seen.append(value)
        return {"inside": value}

    async def fetch(previous: Previous[str] | None) -> Any:
        seen.append(previous if previous is None else previous.value)
        return Fresh("text", soft_ttl_s=0.03, version="1", tags=["t"]) if previous is None else NotModified()

    async def read() -> Any:
        return await get_with_cache_aside(
            "doc", "x", "acme", fetch, serializer=serializer, deserializer=lambda v: v["inside"]
        )

    async with lifespan(quick("memory://hooks")) as cache:
        assert (await read())[0] == "text"
        assert seen == [None, "text"]

        async def refreshed() -> bool:
            assert (await read())[0] == "text"
            return cache.stats().types["doc"].not_modified == 1

        await until(refreshed)
        assert seen[2:] == ["text"], "as its functions know it, and not serialized twice"
        value, metrics = await get_with_cache_aside("doc", "y", "acme", lambda: DontCache(1), serializer=str)
        assert (value, metrics["source"]) == ("1", "database")
        assert (await cache.look("doc", "y", "acme")).absent
        value, metrics = await get_with_cache_aside("doc", "z", "acme", lambda: Fresh(None), lambda: Fresh(2, ttl_s=5))
        assert (value, metrics["source"]) == (2, "generation")
        left_s = (await cache.look("doc", "z", "acme")).ttl_left_s
        assert left_s is not None
        assert left_s <= 5


async def test_of_a_batch_each_value_is_decided() -> None:
    async with Fleet(1) as fleet:
        (a,) = fleet.caches

        async def load_all(ids: list[int]) -> dict[int, Any]:
            return {1: Fresh("one", ttl_s=5, tags=["t"]), 2: DontCache("two"), 3: "three"}

        assert await a.get_or_load_many("config", [1, 2, 3], load_all, "acme") == {1: "one", 2: "two", 3: "three"}
        seen = [await a.look("config", one, "acme") for one in (1, 2, 3)]
        assert [one.tags for one in seen] == [("t",), (), ()]
        assert [one.found for one in seen] == [True, False, True]
        with pytest.raises(ConfigError, match="takes `previous`"):
            await a.get_or_load_many("config", [7], lambda ids, previous: {}, "acme")
        with pytest.raises(ConfigError, match="no `previous`"):
            await a.get_or_load_many("config", [7], lambda ids: {7: NotModified()}, "acme")


async def test_the_clock_may_be_anything() -> None:
    async with Fleet(1, clock=FakeClock(5.0)) as fleet:
        (a,) = fleet.caches
        await load(a, Source(x=1))
        assert (await a.look("config", "x", "acme")).age_s is not None
