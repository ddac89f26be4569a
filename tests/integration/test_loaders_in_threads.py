"""`blocking(loader)` with an async cache: what it is given, what it sees, and what becomes of its thread."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Iterator
from contextvars import ContextVar
from functools import partial
from typing import Any

import pytest
from anyio import CapacityLimiter

from cachebus import ConfigError, Context, LoadTimeout, Policy, blocking
from tests.support.caches import nodes, until
from tests.support.threads import Gate


async def test_it_is_given_what_the_loader_takes(redis_url: str) -> None:
    def all_three(ctx: Context, tenant_id: str, resource_id: str) -> tuple[str, str, str]:
        assert threading.current_thread() is not threading.main_thread()
        return resource_id, tenant_id, str(ctx.agent_id)

    def one(number: int, more: int = 2) -> int:
        return number * more

    class Source:
        @blocking
        def load(self, resource_id: str) -> str:
            return f"by a method: {resource_id}"

    async with nodes(redis_url, 1) as (cache,):
        with Context("acme", agent_id="a"):
            assert await cache.get_or_load("config", "x", blocking(all_three)) == ["x", "acme", "a"]
        assert await cache.get_or_load("config", 7, blocking(one), "acme") == 14
        assert await cache.get_or_load("config", 8, blocking(partial(one, more=3)), "acme") == 24
        assert await cache.get_or_load("config", 9, blocking(lambda: "none of them"), "acme") == "none of them"
        assert await cache.get_or_load("config", 10, Source().load, "acme") == "by a method: 10"
        with pytest.raises(ConfigError, match="needs other"):
            await cache.get_or_load("config", "y", blocking(lambda a, b, c, other: 1), "acme")
        with pytest.raises(ConfigError, match="iterator"):
            await cache.get_or_load("config", "z", blocking(lambda: iter("ab")), "acme")


async def test_what_is_no_sync_function_is_refused() -> None:
    async def load() -> None: ...

    def many() -> Iterator[int]:
        yield 1

    for wrong, why in ((load, "async"), (many, "generator"), (7, "function")):
        with pytest.raises(ConfigError, match=why):
            blocking(wrong)  # type: ignore[arg-type]


async def test_context_variables_travel_and_errors_come_back(redis_url: str) -> None:
    user: ContextVar[str] = ContextVar("user")

    def broken() -> Any:
        raise StopIteration(user.get())

    user.set("ada")
    async with nodes(redis_url, 1) as (cache,):
        assert await cache.get_or_load("config", "x", blocking(user.get), "acme") == "ada"
        with pytest.raises(RuntimeError, match="StopIteration"):
            await cache.get_or_load("config", "y", blocking(broken), "acme")


async def test_a_thread_whose_load_is_over_goes_on_and_counts_until_it_ends(
    redis_url: str, caplog: pytest.LogCaptureFixture
) -> None:
    gate, limiter = Gate("late"), CapacityLimiter(1)
    policies = {"config": Policy(load_timeout_s=0.3, retries=0)}
    async with nodes(redis_url, 1, policies=policies) as (cache,):
        with pytest.raises(LoadTimeout):
            await cache.get_or_load("config", "x", blocking(gate, limiter=limiter), "acme")
        assert limiter.borrowed_tokens == 1
        assert "goes on in its thread though nobody waits for it" in caplog.text
        with pytest.raises(LoadTimeout):  # it waits for its turn, and takes none when it is not waited for any more
            await cache.get_or_load("config", "y", blocking(lambda: 1, limiter=limiter), "acme")
        assert limiter.borrowed_tokens == 1 and limiter.statistics().tasks_waiting == 0
        gate.open.set()
        await until(lambda: limiter.borrowed_tokens == 0)
        assert await cache.get_or_load("config", "x", blocking(lambda: 1, limiter=limiter), "acme") == 1
        assert await cache.get("config", "x", "acme") == 1


async def test_so_does_one_whose_callers_have_gone(redis_url: str) -> None:
    gate = Gate("late")
    async with nodes(redis_url, 1) as (cache,):
        asking = asyncio.ensure_future(cache.get_or_load("config", "x", blocking(gate), "acme"))
        await asyncio.to_thread(gate.has_begun)
        asking.cancel()
        with pytest.raises(asyncio.CancelledError):
            await asking
        assert await cache.get_or_load("config", "x", blocking(lambda: "new"), "acme") == "new"
        gate.open.set()


async def test_the_loop_goes_on_meanwhile_and_there_are_so_many_at_a_time(redis_url: str) -> None:
    gate, limiter = Gate(1), CapacityLimiter(2)
    async with nodes(redis_url, 1) as (cache,):
        load = blocking(gate, limiter=limiter)
        asking = [asyncio.ensure_future(cache.get_or_load("config", n, load, "acme")) for n in range(5)]
        await until(lambda: len(gate.calls) == 2 and limiter.statistics().tasks_waiting == 3)
        gate.open.set()
        assert await asyncio.gather(*asking) == [1] * 5
        assert len(gate.calls) == 5
