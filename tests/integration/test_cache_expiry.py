"""How values age: over memory, by a clock that the test turns."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from cachebus import TTL_PERMANENT, Cache, LoadTimeout, Policy
from tests.support.aging import D_S, aging
from tests.support.caches import Source, asked, data_calls, until


async def seen(cache: Cache, data_type: str = "config", resource_id: str = "x") -> tuple[Any, Any]:
    """What L1 or L2 gives, and what L2 alone gives."""
    through = await cache.get(data_type, resource_id, tenant_id="acme")
    return through, await cache.get(data_type, resource_id, tenant_id="acme", use_memory=False)


async def test_a_ttl_ends_in_both_levels_on_every_node() -> None:
    async with aging() as world:
        a, b = world.nodes
        await a.set("config", "x", 1, tenant_id="acme", ttl=10)
        assert await seen(b) == (1, 1)
        for _ in range(3):
            await world.pass_s(3)
            assert [await seen(a), await seen(b)] == [(1, 1), (1, 1)]
        await world.pass_s(1.1)
        assert [await seen(a), await seen(b)] == [(None, None), (None, None)]


async def test_a_types_ttl_and_its_defaults() -> None:
    async with aging(quick=Policy(ttl_s=10)) as world:
        a = world.nodes[0]
        for data_type in ("quick", "token_counter", "anything", "embedding"):
            await a.set(data_type, "x", 1, tenant_id="acme")
        await a.set("anything", "forever", 1, tenant_id="acme", ttl=TTL_PERMANENT)
        ages = {"quick": 10, "token_counter": 300, "anything": 3600, "embedding": 86400}
        passed = 0.0
        for data_type, age in ages.items():
            await world.pass_s(age * 0.9 - passed)
            assert await seen(a, data_type) == (1, 1)
            await world.pass_s(age * 0.1 + 0.1)
            passed = age + 0.1
            assert await seen(a, data_type) == (None, None)
        assert await seen(a, "anything", "forever") == (1, 1)


async def test_a_loads_ttl() -> None:
    async with aging() as world:
        source = Source(x=1)
        for cache in world.nodes:
            assert await cache.get_or_load("config", "x", source.load, tenant_id="acme", ttl=10) == 1
        assert source.calls == 1
        await world.pass_s(10.1)
        assert await world.nodes[1].get_or_load("config", "x", source.load, tenant_id="acme", ttl=10) == 1
        assert source.calls == 2


async def test_jitter_only_shortens() -> None:
    async with aging(jittery=Policy(ttl_s=100, ttl_jitter=0.5)) as world:
        a = world.nodes[0]
        ids = list(range(200))
        for i in ids:
            await a.set("jittery", i, 1, tenant_id="acme")
        await world.pass_s(49)
        assert len(await a.get_many("jittery", ids, tenant_id="acme")) == 200
        await world.pass_s(26)
        assert 50 < len(await a.get_many("jittery", ids, tenant_id="acme")) < 150
        await world.pass_s(25.1)
        assert await a.get_many("jittery", ids, tenant_id="acme") == {}


async def test_a_shorter_life_in_memory_asks_l2_again() -> None:
    async with aging(brief=Policy(l1_ttl_s=5)) as world:
        a = world.nodes[0]
        await a.set("brief", "x", 1, tenant_id="acme")
        with asked(a) as counts:
            await world.pass_s(4)
            assert await a.get("brief", "x", tenant_id="acme") == 1
            assert data_calls(counts) == 0
            await world.pass_s(2)
            assert await a.get("brief", "x", tenant_id="acme") == 1
            assert data_calls(counts) == 1


async def test_not_found_is_kept_for_its_own_time() -> None:
    async with aging(negative=Policy(negative_ttl_s=10)) as world:
        source = Source()
        for _ in range(2):
            for cache in world.nodes:
                assert await cache.get_or_load("negative", "x", source.load, tenant_id="acme") is None
        assert source.calls == 1
        await world.pass_s(10.1)
        source.values["x"] = 1
        assert await world.nodes[1].get_or_load("negative", "x", source.load, tenant_id="acme") == 1


async def test_an_add_that_has_expired_frees_its_key() -> None:
    async with aging() as world:
        a, b = world.nodes
        assert await a.add("job", "x", 1, 10, tenant_id="acme")
        await world.pass_s(9)
        assert not await b.add("job", "x", 2, 10, tenant_id="acme")
        await world.pass_s(1.1)
        assert await b.add("job", "x", 2, 10, tenant_id="acme")
        assert await a.get("job", "x", tenant_id="acme") == 2


async def test_a_value_without_a_lease_lives_for_d_at_most() -> None:
    async with aging(1) as world:
        a = world.nodes[0]
        source = Source(x=1)
        world.fleet.away = True
        world.clock.advance(D_S)
        for _ in range(3):
            assert await a.get_or_load("config", "x", source.load, tenant_id="acme") == 1
        assert source.calls == 1
        world.clock.advance(D_S + 0.01)
        assert await a.get_or_load("config", "x", source.load, tenant_id="acme") == 1
        assert source.calls == 2


# -- refresh ahead ---------------------------------------------------------------------------------------


async def test_past_its_soft_ttl_one_node_refreshes_and_all_serve_on() -> None:
    async with aging(3, soft=Policy(ttl_s=100, soft_ttl_s=10)) as world:
        source = Source(x=1)

        async def everybody() -> list[Any]:
            return [await c.get_or_load("soft", "x", source.load, tenant_id="acme") for c in world.nodes * 2]

        assert await everybody() == [1] * 6
        await world.pass_s(11)
        source.values["x"] = 2
        source.hold()
        assert await everybody() == [1] * 6
        await source.asked.wait()
        assert await everybody() == [1] * 6
        assert source.calls == 2
        source.release()

        async def fresh() -> bool:
            await world.pass_s(0.5)  # who has found another one at it looks again in about a second
            return await everybody() == [2] * 6

        await until(fresh)
        assert source.calls == 2
        assert sum(c.stats().types["soft"].refreshes for c in world.nodes) == 1
        assert all(c.stats().flights == 0 for c in world.nodes)


async def test_a_refresh_that_fails_leaves_what_is_there_until_it_expires() -> None:
    async with aging(1, soft=Policy(ttl_s=100, soft_ttl_s=10, retries=0)) as world:
        a = world.nodes[0]
        source = Source(x=1)
        await a.get_or_load("soft", "x", source.load, tenant_id="acme")
        await world.pass_s(11)
        source.error = RuntimeError("down")
        assert await a.get_or_load("soft", "x", source.load, tenant_id="acme") == 1
        await until(lambda: source.calls == 2 and not a.stats().flights)
        assert await a.get("soft", "x", tenant_id="acme") == 1
        await world.pass_s(90)
        with pytest.raises(RuntimeError, match="down"):
            await a.get_or_load("soft", "x", source.load, tenant_id="acme")


async def test_a_refresh_never_covers_what_was_set_or_invalidated_meanwhile() -> None:
    for change in ("set", "invalidate", "tag"):
        async with aging(2, soft=Policy(ttl_s=100, soft_ttl_s=10, tags=("t",))) as world:
            a, b = world.nodes
            source = Source(x=1)
            await a.get_or_load("soft", "x", source.load, tenant_id="acme")
            await world.pass_s(11)
            source.hold()
            assert await a.get_or_load("soft", "x", source.load, tenant_id="acme") == 1
            await source.asked.wait()
            if change == "set":
                await b.set("soft", "x", 3, tenant_id="acme")
            elif change == "tag":
                await b.invalidate_tags(["t"], tenant_id="acme")
            else:
                await b.invalidate("soft", "x", tenant_id="acme")
            source.release()
            await until(lambda a=a: not a.stats().flights)
            expected = (3, 3) if change == "set" else (None, None)
            assert [await seen(a, "soft"), await seen(b, "soft")] == [expected, expected], change


# -- fail-safe -------------------------------------------------------------------------------------------

SAFE = Policy(ttl_s=10, fail_safe_s=100, retries=0)


async def test_an_expired_value_is_the_fallback_for_a_failing_source() -> None:
    async with aging(safe=SAFE) as world:
        source = Source(x=1)
        a, b = world.nodes
        await a.get_or_load("safe", "x", source.load, tenant_id="acme")
        await world.pass_s(20)
        source.error = RuntimeError("down")
        for cache in (a, b):  # one has it in its memory, the other finds it in L2
            assert await cache.get("safe", "x", tenant_id="acme") is None
            assert await cache.get_or_load("safe", "x", source.load, tenant_id="acme") == 1
            assert cache.stats().types["safe"].fallbacks == 1
        source.error, source.values["x"] = None, 2
        assert await a.get_or_load("safe", "x", source.load, tenant_id="acme") == 1, "its source rests"
        assert source.calls == 2, "one has asked it since it failed, over all nodes"
        await world.pass_s(15)

        async def again() -> bool:
            return [await c.get_or_load("safe", "x", source.load, tenant_id="acme") for c in (a, b)] == [2, 2]

        await until(again)
        assert source.calls == 3


async def test_fail_safe_ends() -> None:
    async with aging(safe=SAFE) as world:
        source = Source(x=1)
        await world.nodes[0].get_or_load("safe", "x", source.load, tenant_id="acme")
        await world.pass_s(111)
        source.error = RuntimeError("down")
        for cache in world.nodes:
            with pytest.raises(RuntimeError, match="down"):
                await cache.get_or_load("safe", "x", source.load, tenant_id="acme")


@pytest.mark.parametrize("how", ["key", "scope", "tag", "tenant", "contexts"])
async def test_fail_safe_never_serves_what_was_invalidated(how: str) -> None:
    async with aging(safe=SAFE) as world:
        source = Source(x=1)
        a, b = world.nodes
        for cache in (a, b):
            await cache.get_or_load("safe", "x", source.load, tenant_id="acme", tags=["t"])
        await world.pass_s(20)
        if how == "key":
            await a.invalidate("safe", "x", tenant_id="acme")
        elif how == "contexts":
            await a.invalidate("safe", "x", tenant_id="acme", contexts="all")
        elif how == "tag":
            await a.invalidate_tags(["t"], tenant_id="acme")
        else:
            await a.invalidate_scope("acme", None if how == "tenant" else "safe")
        await world.fleet.settle()
        source.error = RuntimeError("down")
        for cache in (a, b):
            with pytest.raises(RuntimeError, match="down"):
                await cache.get_or_load("safe", "x", source.load, tenant_id="acme")


@pytest.mark.parametrize("how", ["key", "scope", "tag"])
@pytest.mark.parametrize("reader", [0, 1], ids=["from L1", "from L2"])
async def test_fail_safe_does_not_serve_what_is_invalidated_while_the_load_runs(how: str, reader: int) -> None:
    async with aging(3, safe=SAFE) as world:
        source = Source()
        a, b = world.nodes[reader], world.nodes[2]
        await world.nodes[0].set("safe", "x", 1, tenant_id="acme", tags=["t"])
        await world.pass_s(20)
        source.error = RuntimeError("down")
        source.hold()

        async def read() -> Any:
            return await a.get_or_load("safe", "x", source.load, tenant_id="acme")

        reading = asyncio.create_task(read())
        await source.asked.wait()
        if how == "key":
            await b.invalidate("safe", "x", tenant_id="acme")
        elif how == "scope":
            await b.invalidate_scope("acme", "safe")
        else:
            await b.invalidate_tags(["t"], tenant_id="acme")
        await world.fleet.settle()
        source.release()
        with pytest.raises(RuntimeError, match="down"):
            await reading


async def test_a_slow_load_is_stood_in_for_and_goes_on() -> None:
    slow = Policy(ttl_s=10, fail_safe_s=100, load_soft_timeout_s=0.02, load_timeout_s=10)
    async with aging(slow=slow) as world:
        source = Source(x=1)
        a, b = world.nodes
        await a.get_or_load("slow", "x", source.load, tenant_id="acme")
        await world.pass_s(11)
        source.values["x"] = 2
        source.hold()
        for _ in range(3):
            assert await a.get_or_load("slow", "x", source.load, tenant_id="acme") == 1
        waiting = asyncio.create_task(b.get_or_load("slow", "x", source.load, tenant_id="acme"))
        await until(lambda: b.stats().flights)  # it holds nothing itself, so it waits for a's load
        source.release()
        assert await waiting == 2

        async def fresh() -> bool:
            return [await seen(c, "slow") for c in (a, b)] == [(2, 2), (2, 2)]

        await until(fresh)
        assert source.calls == 2


async def test_without_a_stand_in_a_slow_load_is_waited_for_and_given_up() -> None:
    slow = Policy(ttl_s=10, fail_safe_s=100, load_soft_timeout_s=0.01, load_timeout_s=0.05, retries=0)
    async with aging(1, slow=slow) as world:
        source = Source(x=1)
        source.hold()
        with pytest.raises(LoadTimeout, match=r"0\.05 s"):
            await world.nodes[0].get_or_load("slow", "x", source.load, tenant_id="acme")
        assert world.nodes[0].stats().types["slow"].load_errors == 1
