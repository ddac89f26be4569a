"""`BlockingCache.get_or_load_many`: one call, several calls of its loader. The caller's thread runs one at a time, and
holds up none of the others."""

from __future__ import annotations

import threading
from typing import Any

import pytest

from cachebus import BlockingCache, Policy
from tests.support.caches import quick
from tests.support.threads import PATIENCE_S, Gate, given, threads, waited


def _name() -> str:
    return threading.current_thread().name


def test_a_refresh_runs_apart_and_its_caller_does_not_wait(redis_url: str) -> None:
    where: dict[tuple[int, ...], str] = {}
    release, refreshes = threading.Event(), False

    def load(ids: list[int]) -> dict[int, Any]:
        where[tuple(ids)] = _name()
        if refreshes and ids == [1]:
            assert release.wait(PATIENCE_S)
            return {1: "new"}
        return dict.fromkeys(ids, "old")

    policies = {"soft": Policy(ttl_s=60, soft_ttl_s=0.02)}
    with BlockingCache.open(quick(redis_url, policies=policies), timeout_s=PATIENCE_S) as cache:
        cache.get_or_load_many("soft", [1], load, "acme")
        assert where == {(1,): _name()}
        refreshes = True
        waited(lambda: cache.look("soft", 1, "acme").is_stale)
        assert cache.get_or_load_many("soft", [1, 2], load, "acme") == {1: "old", 2: "old"}
        waited(lambda: where[1,] == "cachebus-loader")
        assert where[2,] == _name()
        release.set()
        waited(lambda: cache.get("soft", 1, "acme") == "new")


@pytest.mark.parametrize("reads", [False, True], ids=["alone", "reading the other id"])
def test_a_second_call_does_not_queue_behind_the_first(redis_url: str, reads: bool) -> None:
    """1. Another node loads id 2. So the loader is called for id 1 alone, on the thread that has asked.
    2. The other node's load fails. The loader is called for id 2, while that thread is busy."""
    other, where = Gate(OSError("down")), {}
    second = threading.Event()
    with BlockingCache.open(quick(redis_url)) as cache, BlockingCache.open(quick(redis_url)) as node, threads() as run:
        failing = run.start(node.get_or_load, "row", 2, other, "acme")
        other.has_begun()

        def load(ids: list[int]) -> dict[int, Any]:
            where[tuple(ids)] = _name()
            if ids == [2]:
                second.set()
                return {2: "two"}
            other.open.set()
            assert second.wait(PATIENCE_S)
            return {1: cache.get_or_load("row", 2, lambda: "its own", "acme") if reads else "one"}

        assert cache.get_or_load_many("row", [1, 2], load, "acme") == {1: "two" if reads else "one", 2: "two"}
        assert where == {(1,): _name(), (2,): "cachebus-loader"}
        with pytest.raises(OSError, match="down"):
            given(failing)
