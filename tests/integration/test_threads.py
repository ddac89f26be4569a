"""`BlockingCache`: its verbs over a real server, where loaders run, and what threads share."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Iterator
from contextlib import suppress
from contextvars import ContextVar
from typing import Any

import pytest

from cachebus import (
    BlockingCache,
    BlockingFunction,
    Cache,
    Cascade,
    ConfigError,
    Context,
    InvalidKey,
    L2Unavailable,
    LoadTimeout,
    Policy,
    TenantRequired,
    blocking,
    with_context,
)
from cachebus.base.log import logger
from cachebus.producers import BlockingProducer
from cachebus.threads.hit import name_of_ids
from cachebus.tools.servers.redis import EmbeddedServer
from tests.support.caches import quick
from tests.support.threads import Gate, given, threads, waited

me = threading.get_ident


@pytest.fixture
def cache(redis_url: str) -> Iterator[BlockingCache]:
    """An open one."""
    with BlockingCache.open(quick(redis_url)) as cache:
        yield cache


def test_the_verbs(cache: BlockingCache) -> None:
    receipt = cache.set("config", "x", {"a": 1}, "acme", tags=["t"])
    assert cache.get("config", "x", "acme") == {"a": 1}
    assert cache.get("config", "x", "acme", after=receipt, use_memory=False) == {"a": 1}
    assert cache.get("config", "y", "acme", default="none") == "none"
    assert cache.get_many("config", iter(["x", "y"]), "acme") == {"x": {"a": 1}}
    assert cache.get_targets([("config", "x"), ("config", "y")], "acme") == {("config", "x"): {"a": 1}}
    assert not cache.add("config", "x", 2, tenant_id="acme")
    assert cache.add("config", "y", 2, 60, "acme")
    cache.delete("config", "x", "acme")
    assert cache.get("config", "x", "acme") is None
    cache.set("config", "x", 3, "acme", tags=["t"])
    cache.invalidate_tags(["t"], "acme")
    assert cache.get("config", "x", "acme") is None
    assert cache.get("config", "y", "acme") == 2
    assert cache.invalidate_scope("acme", "config", wait="nodes").confirmed
    assert cache.get("config", "y", "acme") is None
    assert [cache.increment("hits", "acme", 2) for _ in range(3)] == [2, 4, 6]
    assert "x" in str(cache.explain("config", "x", "acme"))
    assert cache.ready() and cache.health().serving and cache.stats().invalidations
    assert cache.drain(1.0)
    cache.probe()
    cache.invalidate_type("config")
    cache.clear()


def test_many_at_once(cache: BlockingCache) -> None:
    calls = []

    def load(ids: list[int], tenant_id: str) -> dict[int, str]:
        calls.append((me(), ids, tenant_id))
        return {one: f"row {one}" for one in ids}

    assert cache.get_or_load_many("row", iter([1, 2]), load, "acme") == {1: "row 1", 2: "row 2"}
    assert cache.get_or_load("row", 3, tenant_id="acme", batch=load) == "row 3"
    assert calls == [(me(), [1, 2], "acme"), (me(), [3], "acme")]  # on this thread
    assert cache.set_many("row", {4: 4, 5: 5}, "acme").stored
    assert cache.get_many("row", range(6), "acme") == {1: "row 1", 2: "row 2", 3: "row 3", 4: 4, 5: 5}
    assert cache.invalidate_many("row", range(6), "acme").targets == {"row": 6}
    assert cache.get_many("row", range(6), "acme") == {}
    with pytest.raises(ConfigError, match="not both"):
        cache.get_or_load("row", 1, load, "acme", batch=load)  # type: ignore[call-overload]
    with pytest.raises(ConfigError, match="needs a loader"):
        cache.get_or_load("row", 1, tenant_id="acme")  # type: ignore[call-overload]


def test_wrong_arguments_raise_as_in_a_cache(cache: BlockingCache) -> None:
    with pytest.raises(ValueError, match="several"):
        cache.get_many("config", "xy", "acme")
    with pytest.raises(ValueError, match="several"):
        cache.get_or_load_many("config", "xy", lambda ids: {}, "acme")
    with pytest.raises(ValueError, match="several"):
        cache.invalidate_many("config", "xy", "acme")
    with pytest.raises(ValueError, match="several"):
        cache.get_targets("xy", "acme")  # type: ignore[type-var]
    with pytest.raises(TenantRequired):
        cache.get("config", "x")
    with pytest.raises(InvalidKey):
        cache.get("config", True, "acme")
    with pytest.raises(ValueError, match="nodes"):
        cache.invalidate("config", "x", "acme", wait="all")  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match="needs other"):
        cache.get_or_load("config", "x", lambda a, b, c, other: 1, "acme")
    with pytest.raises(ConfigError, match="iterator"):
        cache.get_or_load("config", "x", lambda: iter("ab"), "acme")
    with pytest.raises(ConfigError, match="timeout_s"):
        BlockingCache.open("memory://", timeout_s=0)


def test_another_nodes_write_is_heard(cache: BlockingCache, redis_url: str) -> None:
    with BlockingCache.open(quick(redis_url)) as other:
        cache.set("config", "x", 1, "acme")
        assert other.get("config", "x", "acme") == 1
        cache.set("config", "x", 2, "acme", wait="nodes")
        assert other.get("config", "x", "acme") == 2


def test_a_loader_runs_on_the_calling_thread(cache: BlockingCache) -> None:
    seen: list[Any] = []

    def load(resource_id: str, tenant_id: str, ctx: Context | None) -> int:
        seen.append((me(), resource_id, tenant_id, ctx))
        return 1

    assert cache.get_or_load("config", "x", load, "acme") == 1
    assert cache.get_or_load("config", "x", load, "acme") == 1
    assert seen == [(me(), "x", "acme", None)]


def test_an_error_of_a_loader_is_raised_as_it_is(cache: BlockingCache) -> None:
    class Broken(Exception):
        pass

    def load() -> int:
        raise Broken("db")

    with pytest.raises(Broken, match="db"):
        cache.get_or_load("config", "x", load, "acme")


def test_it_is_tried_again_on_the_same_thread(redis_url: str) -> None:
    policies = {"config": Policy(retries=2, retry_backoff_s=0.001)}
    calls: list[int] = []

    def load() -> int:
        calls.append(me())
        if len(calls) < 3:
            raise ConnectionError
        return 7

    with BlockingCache.open(quick(redis_url, policies=policies)) as cache:
        assert cache.get_or_load("config", "x", load, "acme") == 7
    assert calls == [me()] * 3


def test_others_join_and_wait(cache: BlockingCache) -> None:
    gate = Gate("value")
    with threads() as running:
        first = running.start(cache.get_or_load, "config", "x", gate, "acme")
        gate.has_begun()
        others = [running.start(cache.get_or_load, "config", "x", gate, "acme") for _ in range(10)]
        gate.open.set()
        assert [given(one) for one in (first, *others)] == ["value"] * 11
    assert len(gate.calls) == 1


def test_a_loader_reads_other_keys(cache: BlockingCache) -> None:
    where: list[int] = []

    def inner(resource_id: str) -> int:
        where.append(me())
        return len(resource_id)

    def outer() -> int:
        return cache.get_or_load("part", "abc", inner, "acme") + cache.get_or_load("part", "abcd", inner, "acme")

    assert cache.get_or_load("config", "x", outer, "acme") == 7
    assert where == [me(), me()]


def test_loads_that_wait_for_one_another_are_told(cache: BlockingCache) -> None:
    def itself() -> Any:
        return cache.get_or_load("config", "x", itself, "acme")

    with pytest.raises(ConfigError, match="waits for itself"):
        cache.get_or_load("config", "x", itself, "acme")


def test_threads_that_wait_for_one_another_crosswise_are_told(cache: BlockingCache) -> None:
    both = threading.Barrier(2, timeout=30)

    def loader(other: str) -> Any:
        def load() -> Any:
            both.wait()
            return cache.get_or_load("config", other, loader("none"), "acme")

        return load

    def ask(one: str, other: str) -> Any:
        try:
            return cache.get_or_load("config", one, loader(other), "acme")
        except ConfigError as error:
            return str(error)

    with threads(2) as running:
        asked = [running.start(ask, "a", "b"), running.start(ask, "b", "a")]
        assert all("waits for itself" in given(one) for one in asked)


def test_async_loaders_and_those_in_threads(cache: BlockingCache) -> None:
    where: list[str] = []

    async def on_the_loop() -> int:
        await asyncio.sleep(0)
        where.append(threading.current_thread().name)
        return 1

    def elsewhere(resource_id: str) -> str:
        where.append(threading.current_thread().name)
        return resource_id

    assert cache.get_or_load("config", "a", on_the_loop, "acme") == 1
    assert cache.get_or_load("config", "b", lambda: on_the_loop(), "acme")  # noqa: PLW0108 (it gives a coroutine) == 1
    assert cache.get_or_load("config", "c", blocking(elsewhere), "acme") == "c"
    assert where == ["cachebus-loop", "cachebus-loop", "cachebus-loader"]


def test_on_its_own_loop_it_raises(cache: BlockingCache) -> None:
    async def load() -> Any:
        return cache.get("config", "y", "acme")

    with pytest.raises(ConfigError, match="on the event loop that a synchronous call would wait for"):
        cache.get_or_load("config", "x", load, "acme")


async def test_on_another_loop_it_works_and_says_so(
    redis_url: str, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(logger, "_once", {})
    with BlockingCache.open(quick(redis_url)) as cache:
        assert cache.get_or_load("config", "x", lambda: 1, "acme") == 1
        assert cache.get_or_load("config", "y", lambda: 1, "acme") == 1
    assert caplog.text.count("was called in async code") == 1


def test_who_waits_too_long_is_told_and_the_load_goes_on_for_the_others(redis_url: str) -> None:
    gate = Gate("value")
    with (
        BlockingCache.open(quick(redis_url), timeout_s=0.2) as cache,
        BlockingCache.open(quick(redis_url)) as patient,
        threads() as running,
    ):
        first = running.start(patient.get_or_load, "config", "x", gate, "acme")
        gate.has_begun()
        with pytest.raises(LoadTimeout, match=r"0\.2 s"):  # for the other node's load
            cache.get_or_load("config", "x", lambda: "other", "acme")
        gate.open.set()
        assert given(first) == "value"


def test_a_loader_of_ones_own_thread_does_not_count_for_the_time_limit(redis_url: str) -> None:
    def slow() -> int:
        threading.Event().wait(0.6)
        return 1

    with BlockingCache.open(quick(redis_url), timeout_s=0.5) as cache:
        assert cache.get_or_load("config", "x", slow, "acme") == 1


class Interrupted(BaseException):
    """As Ctrl-C."""


def test_a_load_whose_thread_is_interrupted_goes_on_for_those_who_wait(cache: BlockingCache) -> None:
    gate, key = Gate(Interrupted()), name_of_ids("config", "x", "acme", None, None, None)
    with threads() as running:
        first = running.start(cache.get_or_load, "config", "x", gate, "acme")
        gate.has_begun()
        others = [running.start(cache.get_or_load, "config", "x", gate, "acme") for _ in range(3)]
        waited(lambda: cache._there._parts.loads.flights.find(key)._waiting == 4)  # type: ignore[union-attr]
        gate.open.set()
        with pytest.raises(Interrupted):
            given(first)
        waited(lambda: len(gate.calls) == 2)  # on a thread of its own, where it raises again
        for one in others:
            with pytest.raises(RuntimeError, match="raised Interrupted"):
                given(one)
    assert len(set(gate.calls)) == 2
    assert cache.get_or_load("config", "x", lambda: "new", "acme") == "new"


def test_a_load_that_outlasts_its_limit_on_ones_own_thread(redis_url: str, caplog: pytest.LogCaptureFixture) -> None:
    """Who has it on its thread is told once it ends; who joined, at once."""
    gate = Gate("late")
    policies = {"config": Policy(load_timeout_s=0.3)}
    with BlockingCache.open(quick(redis_url, policies=policies)) as cache, threads() as running:
        first = running.start(cache.get_or_load, "config", "x", gate, "acme")
        gate.has_begun()
        joined = running.start(cache.get_or_load, "config", "x", gate, "acme")
        with pytest.raises(LoadTimeout):
            given(joined)
        assert not first.done()
        assert cache.get_or_load("config", "x", lambda: "new", "acme") == "new"
        gate.open.set()
        with pytest.raises(LoadTimeout):
            given(first)
        assert cache.get("config", "x", "acme") == "new", "what came late is given to nobody"
    assert "goes on in its thread though nobody waits for it" in caplog.text


def test_a_refresh_and_a_load_that_must_not_hold_up_its_caller_run_apart(redis_url: str) -> None:
    where: list[str] = []

    def load() -> int:
        where.append(threading.current_thread().name)
        return len(where)

    policies = {
        "soft": Policy(ttl_s=60, soft_ttl_s=0.05),
        "slow": Policy(ttl_s=60, fail_safe_s=60, load_soft_timeout_s=0.1),
    }
    with BlockingCache.open(quick(redis_url, policies=policies)) as cache:
        assert cache.get_or_load("soft", "x", load, "acme") == 1
        waited(lambda: cache.get_or_load("soft", "x", load, "acme") > 1)
        assert where[0] == threading.current_thread().name and set(where[1:]) == {"cachebus-loader"}
        where.clear()
        cache.get_or_load("slow", "x", load, "acme")
        assert where == ["cachebus-loader"]


def test_closing_waits_for_loads_and_refuses_others(redis_url: str) -> None:
    gate = Gate("value")
    cache = BlockingCache.open(quick(redis_url))
    with threads() as running:
        first = running.start(cache.get_or_load, "config", "x", gate, "acme")
        gate.has_begun()
        closing = [running.start(cache.close) for _ in range(2)]
        waited(lambda: cache._there is None or cache._there._parts is None)
        with pytest.raises(ConfigError):
            cache.get("config", "y", "acme")
        gate.open.set()
        assert given(first) == "value"
        assert [given(one) for one in closing] == [None, None]
    with pytest.raises(ConfigError, match="is closed"):
        cache.get("config", "x", "acme")


def test_what_can_not_be_opened_is_told_to_all_and_tried_again(own_server: EmbeddedServer) -> None:
    url = own_server.url
    own_server.stop()
    cache = BlockingCache.open(quick(url, connect_timeout_s=0.3))
    with threads() as running:
        for one in [running.start(cache.get, "config", "x", "acme") for _ in range(8)]:
            with pytest.raises(L2Unavailable):
                given(one)
    own_server.start()
    assert cache.get("config", "x", "acme") is None
    cache.close()


def test_many_threads_open_one(redis_url: str) -> None:
    cache = BlockingCache.open(quick(redis_url))
    with threads() as running:
        each = [running.start(cache.get_or_load, "config", n % 4, lambda: 1, "acme") for n in range(64)]
        assert {given(one) for one in each} == {1}
    assert cache.stats().loads == 4
    assert [t.name for t in threading.enumerate()].count("cachebus-loop") == 1
    cache.close()


def test_context_variables_travel(cache: BlockingCache) -> None:
    user: ContextVar[str] = ContextVar("user", default="nobody")

    def load(ctx: Context) -> str:
        return f"{user.get()} of {ctx.tenant_id}"

    @with_context()
    def ask(tenant_id: str) -> Any:
        assert cache.get("config", "none") is None
        return cache.get_or_load("config", "x", load)

    user.set("ada")
    assert ask("acme") == "ada of acme"
    with Context("acme"):
        assert cache.get_or_load("config", "y", blocking(load)) == "ada of acme"


def test_a_write_guard(cache: BlockingCache) -> None:
    cache.set("config", "x", "old", "acme")
    with cache.write_guard([("config", "x")], "acme", db_timeout_s=1) as guard:
        assert cache.get_or_load("config", "x", lambda: "read in the block", "acme") == "read in the block"
        assert cache.get("config", "x", "acme") is None
    assert guard.receipt.seq and not guard.lost
    assert cache.get_or_load("config", "x", lambda: "new", "acme") == "new"
    with suppress(ZeroDivisionError), cache.write_guard([("config", "x")], "acme", db_timeout_s=1) as guard:
        guard.nothing_written()
        raise ZeroDivisionError
    assert cache.stats().guards_left == 0
    with pytest.raises(ConfigError):
        cache.write_guard([("config", "x")], "acme")


def test_cached_functions(cache: BlockingCache) -> None:
    calls: list[Any] = []

    @cache.cached("price", resource_id="{number}", tenant_id="acme", tags=["prices"])
    def price(number: int) -> dict[str, int]:
        calls.append(me())
        return {"price": number}

    class Shop:
        @cache.cached("dear", resource_id="{number}", tenant_id="acme")
        def dear(self, number: int) -> list[int]:
            calls.append(number)
            return [number]

    assert isinstance(price, BlockingFunction)
    assert [price(7), price(7), price.get(7)] == [{"price": 7}] * 3
    assert calls == [me()]
    price.invalidate(7)
    assert price.get(7) is None
    assert price.refresh(7) == {"price": 7}
    cache.invalidate_tags(["prices"], "acme")
    assert cache.get(**price.key(7)) is None
    assert Shop().dear(8) == Shop().dear(number=8) == [8]
    assert calls[2:] == [8]
    with pytest.raises(ConfigError, match="sync functions"):

        @cache.cached("price", tenant_id="acme", resource_id="x")
        async def never() -> None: ...


def test_what_is_declared_before_and_after_it_is_opened(redis_url: str) -> None:
    cache = BlockingCache.open(quick(redis_url))
    cache.register(Cascade("a", to=[("b", "{resource_id}")]), policies={"c": Policy(copy=True)})
    with pytest.raises(ConfigError):
        cache.register(Cascade("b", to=[("a", "{resource_id}")]))
    with cache:
        cache.register(Cascade("b", to=[("d", "{resource_id}")]))
        for data_type in "abd":
            cache.set(data_type, "x", 1, "acme")
        cache.invalidate("a", "x", "acme")
        assert [cache.get(data_type, "x", "acme") for data_type in "abd"] == [None] * 3
        cache.set("c", "x", [1], "acme")
        assert cache.get("c", "x", "acme") is not cache.get("c", "x", "acme")
    with cache:
        cache.set("d", "x", 1, "acme")
        cache.invalidate("a", "x", "acme")
        assert cache.get("d", "x", "acme") is None


def test_hooks_are_told_also_of_a_cache_that_is_opened_anew(redis_url: str) -> None:
    cache, told = BlockingCache.open(quick(redis_url)), []
    hook = cache.on("loaded", lambda event: told.append(event.key.resource_id))
    for name in ("a", "b"):
        with cache:
            cache.get_or_load("config", name, lambda: 1, "acme")
    assert told == ["a", "b"]
    hook.remove()
    with cache:
        cache.get_or_load("config", "c", lambda: 1, "acme")
    assert told == ["a", "b"]


def test_its_life(redis_url: str) -> None:
    cache = BlockingCache.open(quick(redis_url))
    assert cache.get("config", "x", "acme") is None  # opened by its first call
    cache.close()
    cache.close()
    with pytest.raises(ConfigError, match="is closed"):
        cache.get("config", "x", "acme")
    with cache, pytest.raises(ConfigError, match="open already"), cache:
        pass
    with pytest.raises(ConfigError, match="is closed"):
        cache.stats()


async def test_the_producer(redis_url: str) -> None:
    settings = quick(redis_url)
    async with Cache(settings) as cache:
        with BlockingProducer.open(settings, [Cascade("a", to=[("b", "{resource_id}")])]) as producer:
            for data_type in "abc":
                await cache.set(data_type, "x", 1, "acme")
            receipt = producer.invalidate("a", "x", "acme")
            assert [await cache.get(each, "x", "acme", after=receipt) for each in "abc"] == [None, None, 1]
            with Context("acme"):
                receipt = producer.invalidate_scope(data_type="c")
            assert await cache.get("c", "x", "acme", after=receipt) is None
            producer.probe()
            producer.invalidate_type("c")
            producer.clear()
        with pytest.raises(ConfigError, match="producer is closed"):
            producer.clear()
