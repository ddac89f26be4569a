"""Django's cache interface where several call at once, a step fails, or Django's own verbs would do less."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from inspect import iscoroutinefunction, signature
from typing import Any

import pytest
from django.core.cache import cache, caches
from django.core.cache.backends.base import BaseCache
from django.test import override_settings

from cachebus import InvalidationFailed, NotSerializable
from cachebus.django import CacheBackend, blocking_cache, close_caches
from cachebus.django.shared import SharedCache
from cachebus.tools.servers.redis import EmbeddedServer
from tests.support.django_shop.project import configured, entry


@pytest.fixture
def server(redis_url: str) -> Iterator[str]:
    """Django over a real server, with two nodes."""
    configured()
    said = {
        "default": entry(redis_url),
        "elsewhere": entry(redis_url, node_name="elsewhere"),
        "brief": entry(redis_url, more={"TIMEOUT": 0.05, "KEY_PREFIX": "brief"}),
    }
    with override_settings(CACHES=said):
        yield redis_url
        close_caches()


def _confirmed(alias: str) -> None:
    """Until all nodes have applied what was written by this alias."""
    blocking_cache(alias).invalidate("nothing", "x", "django", wait="nodes")


def test_increments_of_many_threads_and_nodes_are_all_counted(server: str) -> None:
    cache.set("n", 0)

    def add(i: int) -> int:
        return int(caches["elsewhere" if i % 2 else "default"].incr("n"))

    with ThreadPoolExecutor(6) as pool:
        answers = list(pool.map(add, range(60)))
    assert sorted(answers) == list(range(1, 61)), "each is told another number"
    _confirmed("elsewhere")
    assert cache.get("n") == 60


def test_incr_keeps_the_lifetime_and_touch_sets_it(server: str) -> None:
    brief = caches["brief"]
    brief.set("n", 1, 20)
    brief.incr("n")
    brief.add("gone", 1)
    threading.Event().wait(0.06)
    assert (brief.get("n"), brief.get("gone")) == (2, None)
    assert brief.touch("n", 0.05)
    threading.Event().wait(0.06)
    assert brief.get("n") is None
    assert not brief.touch("n")
    with pytest.raises(ValueError, match="not found"):
        brief.incr("n")


def test_of_deletes_at_once_one_is_told_that_it_removed_the_value(server: str) -> None:
    """So a value may be a token that is used once."""
    together = threading.Barrier(4)

    def take(i: int) -> bool:
        together.wait()
        return bool(caches["elsewhere" if i % 2 else "default"].delete("token"))

    with ThreadPoolExecutor(4) as pool:
        for turn in range(15):
            cache.set("token", turn)
            assert sum(pool.map(take, range(4))) == 1
            assert cache.get("token") is None
    assert not cache.delete("token")


def test_what_a_delete_has_taken_and_not_yet_invalidated_is_absent(server: str) -> None:
    taken = SharedCache.exchange

    def pause(self: SharedCache, *args: Any) -> Any:
        """Between the steps of a delete, others come."""
        found = taken(self, *args)
        with pytest.MonkeyPatch.context() as inner:
            inner.setattr(SharedCache, "exchange", taken)
            others = caches["elsewhere"]
            assert not any((others.delete("k"), others.touch("k"), others.get("k"), others.get_many(["k"])))
            with pytest.raises(ValueError, match="not found"):
                others.incr("k")
            assert others.get_or_set("k", lambda: 2) == 2
        return found

    cache.set("k", 1)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(SharedCache, "exchange", pause)
        assert cache.delete("k")
    _confirmed("default")
    assert caches["elsewhere"].get("k") is None


def test_a_delete_in_an_outage_waits_for_the_server(own_server: EmbeddedServer) -> None:
    configured()
    said = {"default": entry(own_server.url, pending_max=10), "hasty": entry(own_server.url, node_name="hasty")}
    with override_settings(CACHES=said):
        cache.set_many({"k": 1, "brief": 1})
        caches["hasty"].set("hasty", 1)
        own_server.pause()
        assert not cache.delete("k"), "who removes it is not known"
        assert not cache.touch("brief", 0)
        with pytest.raises(InvalidationFailed):
            caches["hasty"].delete("hasty")
        own_server.resume()
        assert blocking_cache().drain(30)
        assert cache.get_many(["k", "brief"]) == {}
        close_caches()


def test_get_many_gives_each_key_as_it_was_asked_for(server: str) -> None:
    cache.set_many({1: "a", "k": ["b"]})
    found = cache.get_many([1, "1", "k", "k", "absent"])
    assert found == {1: "a", "1": "a", "k": ["b"]}


def test_set_many_is_one_step_and_checks_before_it_stores(server: str) -> None:
    with pytest.raises(NotSerializable):
        cache.set_many({"a": 1, "b": object()})
    assert cache.get("a") is None
    numbers = {f"k{i}": i for i in range(600)}
    assert cache.set_many(numbers, timeout=None) == []
    assert cache.get_many(numbers) == numbers
    assert cache.set_many({}) == []
    assert cache.set_many(numbers, timeout=0) == []
    assert cache.get_many(numbers) == {}
    caches["brief"].set_many({"k": 1})
    threading.Event().wait(0.06)
    assert caches["brief"].get("k") is None


def test_each_async_twin_is_the_sync_verb_whatever_djangos_own_does() -> None:
    """Before 6.1 those of BaseCache read and then store."""
    twins = [name for name in dir(BaseCache) if iscoroutinefunction(getattr(BaseCache, name)) and name[0] == "a"]
    assert len(twins) >= 16
    for name in twins:
        twin, verb = getattr(CacheBackend, name), getattr(BaseCache, name[1:])
        assert (twin.__module__, twin.__name__) == ("cachebus.django.awaited", name)
        assert signature(twin) == signature(verb)
        assert signature(twin) == signature(getattr(BaseCache, name))


async def test_async_twins_are_atomic(server: str) -> None:
    await cache.aset("n", 0, timeout=30)
    assert sorted(await asyncio.gather(*(cache.aincr("n") for _ in range(20)))) == list(range(1, 21))
    left_s = (await asyncio.to_thread(blocking_cache().look, "django", cache.resource_id("n"), "django")).ttl_left_s
    assert left_s is not None
    assert 0 < left_s <= 30
    calls: list[int] = []
    await asyncio.gather(*(cache.aget_or_set("k", lambda: calls.append(1) or 5) for _ in range(10)))
    assert (len(calls), await cache.aget("k")) == (1, 5)
