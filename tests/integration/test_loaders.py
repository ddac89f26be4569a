"""Loaders as functions: what they are called with, and what they must not be or give, by every way to name one."""

from __future__ import annotations

import asyncio
import functools
import re
import textwrap
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from cachebus import Cache, CacheManager, ConfigError, Policy, cached, get_with_cache_aside, lifespan
from tests.support.caches import nodes, quick

PAGE = (Path(__file__).parents[2] / "docs" / "loaders.md").read_text()
POLICIES = {"keen": Policy(retries=5, retry_on=(Exception,), retry_backoff_s=60)}


@pytest.fixture
async def cache(redis_url: str) -> AsyncIterator[Cache]:
    """The process-wide cache, open."""
    async with lifespan(quick(redis_url, policies=POLICIES)) as opened:
        yield opened


async def cursor(resource_id: str) -> Iterator[int]:
    """As a driver gives one."""
    await asyncio.sleep(0)
    return iter([1, 2, 3])


async def rows(resource_id: str) -> AsyncIterator[int]:
    """An async generator."""
    yield 1


def rows_at_once(resource_id: str) -> Iterator[int]:
    """A generator."""
    yield 1


# -- arguments -------------------------------------------------------------------------------------------


async def test_an_optional_parameter_keeps_its_default(cache: Cache) -> None:
    async def user(user_id: str, include_deleted: Any = False) -> list[Any]:
        return [user_id, include_deleted]

    async def mine(page: int = 1, tenant_id: str = "", **more: Any) -> list[Any]:
        return [page, tenant_id, sorted(more)]

    assert await cache.get_or_load("user", "u1", user, tenant_id="acme") == ["u1", False]
    assert await cache.get_or_load("user", "u2", mine, tenant_id="acme") == [1, "acme", ["ctx", "resource_id"]]
    assert await cache.get_or_load("conf", "missing", {"present": 1}.get, tenant_id="acme") is None
    assert (await get_with_cache_aside("user", "u3", "acme", user))[0] == ["u3", False]
    assert (await get_with_cache_aside("user", "u4", "acme", None, user))[0] == ["u4", False]


async def test_a_loader_that_cant_be_called_is_refused_at_the_call(cache: Cache) -> None:
    async def needy(user_id: str, session: Any, pool: Any, clock: Any) -> None:
        raise AssertionError("not to be called")

    for bad, said in ((needy, "needs clock too"), (rows, "generator"), (rows_at_once, "generator"), (5, "a function")):
        with pytest.raises(ConfigError, match=said):
            await cache.get_or_load("user", "u1", bad, tenant_id="acme")  # type: ignore[arg-type]
        with pytest.raises(ConfigError, match=said):
            await get_with_cache_aside("user", "u1", "acme", bad)  # type: ignore[arg-type]
        with pytest.raises(ConfigError, match=said):
            await get_with_cache_aside("user", "u1", "acme", None, bad)  # type: ignore[arg-type]
    assert cache.stats().loads == 0


async def test_the_pages_loaders_are_given_what_it_says(cache: Cache) -> None:
    scope: dict[str, Any] = {}
    code = next(code for code in re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL) if "by_order" in code)
    exec(code.replace(": ...", ": return dict(locals())"), scope)
    for name, given in (
        ("by_order", {"user_id": "u1", "tenant": "acme"}),
        ("by_name", {"session_id": "u1", "ctx": None}),
        ("with_option", {"user_id": "u1", "include_deleted": False}),
    ):
        assert await cache.get_or_load(name, "u1", scope[name], tenant_id="acme") == given


async def test_the_pages_loader_has_a_session_of_its_own(cache: Cache) -> None:
    opened: list[tuple[str, str]] = []

    @asynccontextmanager
    async def sessions() -> AsyncIterator[Any]:
        async def get_agent(tenant_id: str, agent_id: str) -> Any:
            opened.append((tenant_id, agent_id))
            return SimpleNamespace(id=agent_id, name="A")

        yield SimpleNamespace(get_agent=get_agent)

    code = next(code for code in re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL) if "sessions()" in code)
    scope: dict[str, Any] = {"sessions": sessions, "cache": cache}
    exec("async def page():\n" + textwrap.indent(code, "    ") + "\n    return agent", scope)
    assert await scope["page"]() == await scope["page"]() == {"id": "a7", "name": "A"}
    assert opened == [("acme", "a7")]


# -- what can be read only once --------------------------------------------------------------------------


async def test_an_iterator_reaches_none_of_its_callers_and_no_memory(redis_url: str) -> None:
    """Both would hold the same one, and whoever reads it first leaves nothing to the other."""
    async with nodes(redis_url, 2, policies=POLICIES, lease_ms=60_000) as (a, b):
        asked = [a.get_or_load("keen", "q", cursor, tenant_id="acme") for _ in range(3)]
        for result in await asyncio.gather(*asked, return_exceptions=True):
            assert isinstance(result, ConfigError)
            assert "cursor gave an iterator" in str(result)
        assert a.stats().loads == 1, "they shared the load, and it was not tried again"
        assert await a.get("keen", "q", tenant_id="acme") is None
        # The lease is free: another node need not wait for its end.
        assert await asyncio.wait_for(b.get_or_load("keen", "q", lambda: [1], tenant_id="acme"), 10) == [1]


async def test_cache_aside_tells_of_an_iterator_rather_than_generate(cache: Cache) -> None:
    for functions in ((cursor, lambda: 1), (lambda: None, cursor)):
        with pytest.raises(ConfigError, match="cursor gave an iterator"):
            await get_with_cache_aside("user", "q", "acme", *functions)
    with pytest.raises(ConfigError, match="iter gave an iterator"):
        await get_with_cache_aside("user", "q", "acme", lambda: [1], serializer=iter)
    assert await CacheManager.get("user", "q", "acme") is None
    assert (await get_with_cache_aside("user", "q", "acme", lambda: [1]))[0] == [1]


# -- the decorator ---------------------------------------------------------------------------------------

decorate = cached("rows", resource_id="x", tenant_id="acme")


def sync() -> int:
    """No coroutine function."""
    return 1


@pytest.mark.parametrize(
    ("function", "said"),
    [
        (rows, "function rows is a generator"),
        (rows_at_once, "function rows_at_once is a generator"),
        (functools.partial(rows, "x"), "function rows is a generator"),
        (sync, "sync is none"),
        (lambda: 1, "is none"),
    ],
)
def test_what_cant_be_shared_is_refused_where_it_is_decorated(function: Callable[..., Any], said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        decorate(function)


def in_thread(function: Callable[..., Any]) -> Callable[..., Awaitable[Any]]:
    """A wrapper that is no coroutine function, and yet async."""

    @functools.wraps(function)
    def wrapper(*args: Any) -> Awaitable[Any]:
        return asyncio.to_thread(function, *args)

    return wrapper


async def test_wrappers_and_partials_are_judged_by_what_they_give(cache: Cache) -> None:
    assert await decorate(in_thread(sync))() == 1

    async def number(of: int) -> int:
        return of

    other = cached("number", resource_id="{of}", tenant_id="acme")
    assert await other(functools.partial(number, of=2))() == 2
    assert await other(functools.partial(number))(3) == 3
    passes = functools.wraps(number)(lambda of: of)
    with pytest.raises(ConfigError, match="number is none"):
        await other(passes)(4)
    with pytest.raises(ConfigError, match="cursor: values can't be decoded into"):
        await cached("rows", resource_id="{resource_id}", tenant_id="acme")(cursor)("q")


async def test_a_decorated_function_starts_a_task(cache: Cache) -> None:
    async def one() -> int:
        return 1

    async with asyncio.TaskGroup() as group:
        task = group.create_task(decorate(one)())
    assert task.result() == 1
