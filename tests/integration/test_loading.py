"""Loading: one load for all who ask, on one node and over many; how loaders are called; what goes wrong in them."""

from __future__ import annotations

import asyncio
import functools
from collections.abc import AsyncIterator, Callable
from typing import Any

import pytest

from cachebus import Cache, Context, InvalidKey, LoadTimeout, Policy
from cachebus.base.clock import monotonic
from tests.support.caches import PATIENCE_S, Source, never_poll, nodes, until, waiting_in

POLICIES = {
    "brief": Policy(load_timeout_s=0.15, retries=0),
    "retried": Policy(retries=2, retry_backoff_s=0.001),
    "picky": Policy(retries=3, retry_backoff_s=0.001, retry_on=(KeyError,)),
    "hasty": Policy(retries=20, retry_backoff_s=0.02, load_timeout_s=0.2),
    "negative": Policy(negative_ttl_s=60),
}


@pytest.fixture
async def three(redis_url: str) -> AsyncIterator[list[Cache]]:
    """Three nodes over one server."""
    async with nodes(redis_url, 3, policies=POLICIES, lease_ms=300) as caches:
        yield caches


@pytest.fixture
async def patient(redis_url: str, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[list[Cache]]:
    """Three nodes that do not poll, and whose leases outlast any test."""
    never_poll(monkeypatch)
    async with nodes(redis_url, 3, policies=POLICIES, lease_ms=60_000) as caches:
        yield caches


@pytest.fixture
async def one(redis_url: str) -> AsyncIterator[Cache]:
    """A node alone."""
    async with nodes(redis_url, 1, policies=POLICIES, lease_ms=300) as (cache,):
        yield cache


def load(cache: Cache, source: Source, resource_id: str = "x", data_type: str = "config") -> asyncio.Task[Any]:
    """A caller of its own."""
    return asyncio.create_task(cache.get_or_load(data_type, resource_id, source.load, tenant_id="acme"))


# -- one load --------------------------------------------------------------------------------------------


async def test_fifty_callers_on_three_nodes_make_one_load(three: list[Cache]) -> None:
    source = Source(x={"a": 1})
    source.hold()
    callers = [load(three[i % 3], source) for i in range(50)]
    await source.asked.wait()
    await until(lambda: all(cache.stats().flights == 1 for cache in three))
    source.release()
    assert await asyncio.gather(*callers) == [{"a": 1}] * 50
    assert source.calls == 1
    assert sum(cache.stats().loads for cache in three) == 1
    assert all(cache.stats().flights == 0 for cache in three)


async def test_each_key_has_its_own_load(three: list[Cache]) -> None:
    source = Source(**{str(i): i for i in range(60)})
    callers = [load(three[i % 3], source, str(i % 60)) for i in range(180)]
    assert await asyncio.gather(*callers) == [i % 60 for i in range(180)]
    assert source.calls == 60


async def test_those_who_wait_on_another_node_are_woken_not_polled(patient: list[Cache]) -> None:
    source = Source(x=1)
    source.hold()
    first = load(patient[0], source)
    await source.asked.wait()
    second = load(patient[1], source)
    await until(lambda: waiting_in(patient[1]))
    source.release()
    assert await first == 1
    assert await asyncio.wait_for(second, PATIENCE_S) == 1
    assert source.calls == 1


async def test_a_load_longer_than_its_lease_keeps_it(three: list[Cache]) -> None:
    source = Source(x=1)
    source.hold()
    callers = [load(cache, source) for cache in three]
    await source.asked.wait()
    started_s = monotonic()
    await until(lambda: monotonic() > started_s + 0.8)
    assert source.calls == 1
    source.release()
    assert await asyncio.gather(*callers) == [1, 1, 1]
    assert source.calls == 1


async def test_a_load_that_fails_hands_the_lease_to_the_next(patient: list[Cache]) -> None:
    failing, good = Source(), Source(x=1)
    failing.error = RuntimeError("down")
    failing.hold()
    first = load(patient[0], failing)
    await failing.asked.wait()
    second = load(patient[1], good)
    await until(lambda: waiting_in(patient[1]))
    failing.release()
    with pytest.raises(RuntimeError, match="down"):
        await first
    assert await asyncio.wait_for(second, PATIENCE_S) == 1


async def test_an_invalidation_during_a_load_starts_another_for_those_who_come_later(three: list[Cache]) -> None:
    a, b, _ = three
    source = Source(x="old")
    source.hold()
    early = load(a, source)
    await source.asked.wait()
    source.values["x"] = "new"
    await b.invalidate("config", "x", tenant_id="acme")
    await until(lambda: a.stats().events_applied)
    late = load(a, source)
    await until(lambda: source.calls == 2)
    source.release()
    assert [await early, await late] == ["old", "new"]
    for cache in three:
        for use_memory in (True, False):
            assert await cache.get("config", "x", tenant_id="acme", use_memory=use_memory) == "new"
    assert a.stats().fills_rejected == 1


@pytest.mark.parametrize("how", ["tag", "type's tag", "scope", "contexts"])
async def test_a_flight_that_a_scope_or_tag_has_overtaken_is_joined_no_more(redis_url: str, how: str) -> None:
    async with nodes(redis_url, 2, policies={"config": Policy(tags=("t2",))}) as (a, b):
        source = Source(x="old")
        source.hold()

        def read(after: Any = None) -> asyncio.Task[Any]:
            return asyncio.create_task(
                a.get_or_load("config", "x", source.load, tenant_id="acme", tags=["t"], after=after)
            )

        early = read()
        await source.asked.wait()
        source.values["x"] = "new"
        if how == "scope":
            receipt = await b.invalidate_scope("acme", "config")
        elif how == "contexts":
            receipt = await b.invalidate("config", "x", tenant_id="acme", contexts="all")
        else:
            receipt = await b.invalidate_tags(["t" if how == "tag" else "t2"], tenant_id="acme")
        await until(lambda: a.stats().shards[0].applied >= receipt.seq)
        late = [read(), read(receipt)]
        for _ in range(5):
            await asyncio.sleep(0)  # they join the flight, if they ever do
        source.release()
        assert [await early, *[await one for one in late]] == ["old", "new", "new"]
        assert await b.get("config", "x", tenant_id="acme") == "new"


# -- how a loader is called ------------------------------------------------------------------------------


class Asked:
    """Loaders of every shape; each gives what it was called with."""

    def method(self, resource_id: Any, tenant_id: Any) -> Any:
        """Bound: `self` does not count."""
        return [resource_id, tenant_id]

    async def __call__(self, resource_id: Any) -> Any:
        """An object that is called."""
        return [resource_id]


async def _three(resource_id: Any, tenant_id: Any, ctx: Any) -> Any:
    return [resource_id, tenant_id, ctx if ctx is None else ctx.agent_id]


async def _star(*args: Any) -> Any:
    return [*args[:2], args[2].agent_id]


async def _keywords(**kwargs: Any) -> Any:
    return sorted(kwargs)


async def _some_by_name(resource_id: Any, *, ctx: Any) -> Any:
    return [resource_id, ctx.agent_id]


async def _own_keyword(resource_id: Any, *, limit: int = 7) -> Any:
    return [resource_id, limit]


async def _beyond(resource_id: Any, tenant_id: Any, ctx: Any, limit: int = 7) -> Any:
    return [resource_id, tenant_id, limit]


async def _first_and_rest(resource_id: Any, **rest: Any) -> Any:
    return [resource_id, *sorted(rest)]


async def _awaitable_later() -> Any:
    return "later"


SHAPES: dict[str, tuple[Callable[..., Any], Any]] = {
    "none": (lambda: "none", "none"),
    "one": (lambda resource_id: [resource_id], ["x"]),
    "two": (lambda resource_id, tenant_id: [resource_id, tenant_id], ["x", "acme"]),
    "three, async": (_three, ["x", "acme", "a7"]),
    "any": (_star, ["x", "acme", "a7"]),
    "keywords": (_keywords, ["ctx", "resource_id", "tenant_id"]),
    "one by name": (_some_by_name, ["x", "a7"]),
    "a keyword of its own": (_own_keyword, ["x", 7]),
    "a default beyond the three": (_beyond, ["x", "acme", 7]),
    "the rest by name": (_first_and_rest, ["x", "ctx", "tenant_id"]),
    "method": (Asked().method, ["x", "acme"]),
    "callable": (Asked(), ["x"]),
    "partial": (functools.partial(_three, ctx=None), ["x", "acme", None]),
    "sync that gives an awaitable": (lambda: _awaitable_later(), "later"),  # noqa: PLW0108
}


@pytest.mark.parametrize("shape", SHAPES)
async def test_a_loader_is_called_with_what_it_takes(one: Cache, shape: str) -> None:
    loader, expected = SHAPES[shape]
    with Context(tenant_id="acme", agent_id="a7"):
        assert await one.get_or_load("config", "x", loader) == expected
        assert await one.get_or_load("config", "x", loader) == expected


async def test_a_loader_sees_the_surrounding_context(one: Cache) -> None:
    from cachebus import context

    def loader() -> Any:
        around = context.current()
        return None if around is None else around.agent_id

    with Context(tenant_id="acme", agent_id="a7"):
        assert await one.get_or_load("config", "x", loader) == "a7"
    assert await one.get_or_load("system", "x", lambda resource_id, tenant_id: [tenant_id]) == [None]


async def test_a_loader_may_use_the_cache(one: Cache) -> None:
    async def outer() -> Any:
        inner = await one.get_or_load("config", "inner", lambda: 1, tenant_id="acme")
        return inner + 1

    assert await one.get_or_load("config", "outer", outer, tenant_id="acme") == 2


# -- what goes wrong -------------------------------------------------------------------------------------


async def test_what_a_loader_raises_reaches_every_caller_and_is_not_kept(one: Cache) -> None:
    source = Source(x=1)
    source.error = RuntimeError("down")
    results = await asyncio.gather(*(load(one, source, data_type="negative") for _ in range(5)), return_exceptions=True)
    assert [str(result) for result in results] == ["down"] * 5
    assert source.calls == 1
    source.error = None
    assert await load(one, source, data_type="negative") == 1
    counts = one.stats().types["negative"]
    assert (counts.loads, counts.load_errors) == (2, 1)


@pytest.mark.parametrize(
    ("data_type", "error", "attempts"),
    [
        ("retried", ConnectionError("x"), 3),
        ("retried", TimeoutError("x"), 3),
        ("retried", RuntimeError("x"), 1),
        ("picky", KeyError("x"), 4),
        ("picky", ConnectionError("x"), 1),
        ("brief", ConnectionError("x"), 1),
    ],
)
async def test_retries_are_for_the_errors_that_the_type_names(
    one: Cache, data_type: str, error: Exception, attempts: int
) -> None:
    source = Source()
    source.error = error
    with pytest.raises(type(error)):
        await load(one, source, data_type=data_type)
    assert source.calls == attempts
    assert one.stats().types[data_type].loads == 1


async def test_a_retry_that_succeeds_is_a_load_that_succeeded(one: Cache) -> None:
    attempts = 0

    def loader() -> int:
        nonlocal attempts
        attempts += 1
        if attempts < 3:
            raise ConnectionError("not yet")
        return attempts

    assert await one.get_or_load("retried", "x", loader, tenant_id="acme") == 3
    assert one.stats().types["retried"].load_errors == 0


@pytest.mark.parametrize("data_type", ["brief", "hasty"])
async def test_the_time_limit_holds_over_all_attempts(one: Cache, data_type: str) -> None:
    source = Source(x=1)
    source.error = ConnectionError("x")
    if data_type == "brief":
        source.hold()
    started_s = monotonic()
    with pytest.raises(LoadTimeout):
        await load(one, source, data_type=data_type)
    assert monotonic() - started_s < 2
    assert isinstance(LoadTimeout("x"), TimeoutError)
    source.error = None
    source.release()
    assert await load(one, source, data_type=data_type) == 1


async def test_a_loaders_own_timeout_is_not_taken_for_the_limit(one: Cache) -> None:
    async def loader() -> None:
        raise TimeoutError("the database's")

    with pytest.raises(TimeoutError, match="the database's") as caught:
        await one.get_or_load("brief", "x", loader, tenant_id="acme")
    assert not isinstance(caught.value, LoadTimeout)


async def test_a_waiter_is_not_held_for_longer_than_a_load_may_take(three: list[Cache]) -> None:
    source = Source(x=1)
    source.hold()
    slow = asyncio.create_task(three[0].get_or_load("config", "x", source.load, tenant_id="acme"))
    await source.asked.wait()
    three[1].register(policies={"config": Policy(load_timeout_s=0.1)})
    with pytest.raises(LoadTimeout, match="another node"):
        await three[1].get_or_load("config", "x", source.load, tenant_id="acme")
    source.release()
    assert await slow == 1


# -- callers that go away --------------------------------------------------------------------------------


async def test_a_caller_that_is_cancelled_does_not_fail_the_others(one: Cache) -> None:
    source = Source(x=1)
    source.hold()
    callers = [load(one, source) for _ in range(5)]
    await source.asked.wait()
    for caller in callers[:3]:  # the one that started the load among them
        caller.cancel()
    await asyncio.wait(callers[:3])
    assert all(caller.cancelled() for caller in callers[:3])
    source.release()
    assert await asyncio.gather(*callers[3:]) == [1, 1]
    assert source.calls == 1


async def test_a_load_that_nobody_waits_for_is_cancelled_and_its_lease_given_back(three: list[Cache]) -> None:
    ended = asyncio.Event()
    began = asyncio.Event()

    async def endless() -> None:
        began.set()
        try:
            await asyncio.Event().wait()
        finally:
            ended.set()

    callers = [asyncio.create_task(three[0].get_or_load("config", "x", endless, tenant_id="acme")) for _ in range(3)]
    await began.wait()
    for caller in callers:
        caller.cancel()
    await asyncio.wait(callers)
    await asyncio.wait_for(ended.wait(), 5)
    assert await asyncio.wait_for(load(three[1], Source(x=1)), 0.25) == 1
    assert three[0].stats().flights == 0


async def test_a_cancelled_waiter_for_another_nodes_load_leaves_that_alone(three: list[Cache]) -> None:
    source = Source(x=1)
    source.hold()
    first = load(three[0], source)
    await source.asked.wait()
    second = load(three[1], source)
    await until(lambda: three[1].stats().flights)
    second.cancel()
    await asyncio.wait([second])
    await until(lambda: not three[1].stats().flights)
    source.release()
    assert await first == 1
    assert await three[1].get("config", "x", tenant_id="acme") == 1


async def test_a_callers_own_time_limit_ends_only_its_waiting(one: Cache) -> None:
    source = Source(x=1)
    source.hold()
    patient = load(one, source)
    await source.asked.wait()
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(0.05):
            await load(one, source)
    source.release()
    assert await patient == 1


async def test_bad_input_is_refused_before_anything_is_loaded(one: Cache) -> None:
    source = Source(x=1)
    with pytest.raises(InvalidKey):
        await one.get_or_load("config", "", source.load, tenant_id="acme")
    with pytest.raises(ValueError, match="tags"):
        await one.get_or_load("config", "x", source.load, tenant_id="acme", tags="t")
    assert source.calls == 0
