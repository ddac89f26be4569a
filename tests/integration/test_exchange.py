"""A value that is changed by what it is: whatever others do in between, nothing of theirs is lost or comes back."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any

import pytest

from cachebus import Cache, L2Unavailable, Policy
from cachebus.calls import set_request
from cachebus.writing import exchange as exchanges
from cachebus.writing.exchange import Exchanger, PresentValue
from tests.support.caches import key_of, nodes, parts

Before = Callable[[], Awaitable[Any]]


class Interrupted:
    """A writer, before whose next `set` others do something, once."""

    def __init__(self, writer: Any, before: list[Before]) -> None:
        self._writer, self._before = writer, before

    async def set(self, request: Any) -> Any:
        if self._before:
            await self._before.pop(0)()
        return await self._writer.set(request)


def one_more(present: PresentValue) -> PresentValue:
    """The number, and one; its lifetime stays."""
    return present._replace(value=present.value + 1)  # type: ignore[operator]


async def added(cache: Cache, *before: Before) -> PresentValue | None:
    """Add one to a number by this node, before whose attempts others do something."""
    whole = parts(cache)
    writer: Any = Interrupted(whole.writer, list(before))
    exchanger = Exchanger(whole.writing.exchanger._fetch, writer, enabled=True)
    return await exchanger.exchange(set_request(whole, key_of(cache, "n", "x", "acme"), None, None, ()), one_more)


async def test_it_is_there_for_all_nodes_at_once_as_by_a_set(redis_url: str) -> None:
    async with nodes(redis_url) as (one, two):
        receipt = await one.set("n", "x", 1, "acme", ttl=20, tags=["all"], wait="nodes")
        assert await two.get("n", "x", "acme", after=receipt) == 1
        changed = await added(one)
        assert changed is not None and changed.value == 2
        assert changed.left_s is not None and 10 < changed.left_s <= 20
        assert await one.get("n", "x", "acme") == 2
        await one.invalidate("other", "y", "acme", wait="nodes")
        assert await two.get("n", "x", "acme") == 2
        await two.invalidate_tags(["all"], "acme", wait="nodes")
        assert await one.get("n", "x", "acme") is None, "its tags have stayed"


async def test_what_is_set_in_between_is_changed_instead(redis_url: str) -> None:
    async with nodes(redis_url) as (one, two):
        await one.set("n", "x", 1, "acme")
        changed = await added(one, *(lambda value=value: two.set("n", "x", value, "acme") for value in (10, 20)))
        assert changed is not None and changed.value == 21
        assert await two.get("n", "x", "acme", use_memory=False) == 21


@pytest.mark.parametrize("how", ["key", "scope", "tag", "type"])
async def test_what_is_invalidated_in_between_does_not_come_back(redis_url: str, how: str) -> None:
    async with nodes(redis_url) as (one, two):
        await one.set("n", "x", 1, "acme", tags=["all"])
        gone: dict[str, Before] = {
            "key": lambda: two.invalidate("n", "x", "acme"),
            "scope": lambda: two.invalidate_scope("acme"),
            "tag": lambda: two.invalidate_tags(["all"], "acme"),
            "type": lambda: two.invalidate_type("n"),
        }
        assert await added(one, gone[how]) is None
        for node in (one, two):
            assert await node.get("n", "x", "acme", use_memory=False) is None


async def test_what_a_load_has_filled_in_between_is_changed_instead(redis_url: str) -> None:
    async with nodes(redis_url) as (one, two):
        await one.set("n", "x", 1, "acme")

        async def replaced() -> None:
            await two.invalidate("n", "x", "acme")
            await two.get_or_load("n", "x", lambda: 5, "acme")

        changed = await added(one, replaced)
        assert changed is not None and changed.value == 6


async def test_nothing_is_made_of_nothing(redis_url: str) -> None:
    policies = {"n": Policy(negative_ttl_s=10)}
    async with nodes(redis_url, 1, policies=policies) as (one,):
        assert await added(one) is None
        assert await one.get_or_load("n", "x", lambda: None, "acme") is None
        assert await added(one) is None, "nor of what is known not to be there"


async def test_all_who_add_at_once_are_counted(redis_url: str) -> None:
    async with nodes(redis_url) as caches:
        await caches[0].set("n", "x", 0, "acme")
        await asyncio.gather(*(added(caches[i % 2]) for i in range(16)))
        assert await caches[0].get("n", "x", "acme", use_memory=False) == 16


async def test_who_is_never_quick_enough_is_told(redis_url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(exchanges, "_PAUSE_MAX_S", 0.0)
    async with nodes(redis_url) as (one, two):
        await one.set("n", "x", 0, "acme")
        others = (lambda: two.set("n", "x", 7, "acme") for _ in range(exchanges.TRIES_MAX))
        with pytest.raises(L2Unavailable, match="again and again"):
            await added(one, *others)
        assert await one.get("n", "x", "acme", use_memory=False) == 7


async def test_a_cache_that_is_off_has_nothing(redis_url: str) -> None:
    async with Cache.open("memory://off") as cache:
        off = Exchanger(parts(cache).writing.exchanger._fetch, parts(cache).writer, enabled=False)
        assert (
            await off.exchange(set_request(parts(cache), key_of(cache, "n", "x", "acme"), None, None, ()), one_more)
            is None
        )
