"""Threads that read from one memory while others write, over a real server, and the event loop is held up: every read
is held against the history of all writes."""

from __future__ import annotations

import random
import sys
import threading
from collections.abc import Iterator
from typing import Any, NamedTuple

import pytest

from cachebus import BlockingCache, CacheBusError, Policy
from cachebus.base.clock import monotonic
from cachebus.threads.loop import loop_thread
from tests.support.caches import D_S, quick
from tests.support.threads import given, threads

LIFE_S = 6.0
KEYS = 3
_pause = threading.Event()


class Past(NamedTuple):
    """A write that has returned: from when on which nodes give nothing older."""

    version: int
    here_s: float
    node: BlockingCache


class Life:
    """Keys with a version each. A write raises it in the source, then says so by some verb; loads read the source."""

    def __init__(self, nodes: list[BlockingCache], seed: int) -> None:
        self.nodes, self.seed = nodes, seed
        self.until_s = monotonic() + LIFE_S
        self.source = [0] * KEYS
        self.past: list[list[Past]] = [[] for _ in range(KEYS)]
        self.locks = [threading.Lock() for _ in range(KEYS)]
        self.broken: list[str] = []
        self.reads = self.writes = self.loads = 0

    def write(self, number: int) -> None:
        """Until the end; one write of a key after another."""
        dice = random.Random(self.seed * 100 + number)
        while monotonic() < self.until_s:
            key, node = dice.randrange(KEYS), dice.choice(self.nodes)
            with self.locks[key]:
                version = self.source[key] = self.source[key] + 1
                while not self.told(dice, node, key, version):
                    pass
                self.past[key].append(Past(version, monotonic(), node))
            self.writes += 1
            _pause.wait(dice.choice((0.0, 0.001, 0.05)))

    def told(self, dice: random.Random, node: BlockingCache, key: int, version: int) -> bool:
        """Whether it is sure that nodes were told; else it is tried again."""
        verb = dice.randrange(4)
        try:
            if verb == 0:
                node.invalidate("doc", key, "acme")
            elif verb == 1:
                node.invalidate_tags([f"t{key}"], "acme")
            elif verb == 2:
                node.invalidate_scope("acme", "doc")
            else:
                node.set("doc", key, version, "acme", tags=[f"t{key}"])
        except CacheBusError:
            return False
        return True

    def read(self, number: int) -> None:
        """Until the end; one read after another, each held against what had been written."""
        dice = random.Random(self.seed * 1000 + number)
        seen: dict[tuple[int, BlockingCache], int] = {}
        while monotonic() < self.until_s:
            key, node = dice.randrange(KEYS), dice.choice(self.nodes)
            began_s, past = monotonic(), list(self.past[key])[-40:]
            try:
                value = node.get_or_load("doc", key, lambda key=key: self.load(key), "acme", tags=[f"t{key}"])
            except CacheBusError:
                continue
            self.reads += 1
            must = max((w.version for w in past if w.here_s + D_S < began_s or w.node is node), default=0)
            if value < must:
                self.broken.append(f"key {key}: read {value}, and {must} had been written")
            before = seen.get((key, node), 0)
            if value < before:
                self.broken.append(f"key {key}: read {value} behind {before} on the same node")
            seen[key, node] = value

    def load(self, key: int) -> int:
        """What the source has."""
        self.loads += 1
        return self.source[key]

    def hold_up(self) -> None:
        """Now and then the event loop stands still for longer than D: all leases lapse, then events come at once."""
        dice = random.Random(self.seed)
        while monotonic() < self.until_s:
            _pause.wait(dice.uniform(0.1, 0.6))
            loop_thread().loop.call_soon_threadsafe(_pause.wait, D_S * dice.uniform(0.5, 1.6))


@pytest.fixture(autouse=True)
def _threads_change_often() -> Iterator[None]:
    before = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    yield
    sys.setswitchinterval(before)


@pytest.mark.parametrize("seed", [1, 2])
@pytest.mark.parametrize("held_up", [False, True], ids=["calm", "held up"])
def test_no_read_is_older_than_d_or_an_own_write(redis_url: str, seed: int, held_up: bool) -> None:
    more: dict[str, Any] = {"policies": {"doc": Policy(ttl_s=60)}, "l2_timeout_s": 5.0}
    with (
        BlockingCache.open(quick(redis_url, **more)) as one,
        BlockingCache.open(quick(redis_url, **more)) as other,
        threads() as running,
    ):
        life = Life([one, other], seed)
        begun = [running.start(life.read, number) for number in range(4)]
        begun += [running.start(life.write, number) for number in range(2)]
        begun += [running.start(life.hold_up)] if held_up else []
        for each in begun:
            given(each)
        hits = one.stats().l1_hits + other.stats().l1_hits
        one._there._parts.node.l1.check()  # type: ignore[union-attr]
    assert not life.broken, life.broken[:5]
    assert life.writes > 3 and life.reads > 50 and hits > 10
