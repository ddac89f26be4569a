"""A workload of nodes over one source: random writes and reads, all written down, and held against the promises."""

from __future__ import annotations

import asyncio
import os
import random
from collections.abc import Callable, Sequence
from contextlib import suppress
from itertools import product
from typing import Any, NamedTuple, TypeVar

from cachebus import Cache, CacheBusError, InvalidationFailed, L2Unavailable, Receipt

T = TypeVar("T")
Clock = Callable[[], float]
LEVELS: list[dict[str, str]] = [{"tenant_id": "acme", "agent_id": "a", "collection_id": "c"}, {"tenant_id": "acme"}]


class Written(NamedTuple):
    """A write that returned: the version that it brought, when it was sure to hold, and on which node."""

    version: int
    returned_s: float
    receipt: Receipt
    node: Cache


class Mix:
    """Weights drawn once: some lives have hardly any writes, some only tags, some have loaders that take for ever."""

    def __init__(self, dice: random.Random) -> None:
        self.dice = dice
        self.write_pause_s = dice.choice((0.1, 0.5, 2.0))
        self.keys = dice.choice((2, 4, 20))
        self.slow_s = dice.choice((0.002, 0.02, 0.2))
        self.very_slow = dice.choice((0.0, 0.02, 0.2))
        self.calm_s = dice.choice((0.5, 1.0, 4.0))
        self._weights: dict[object, float] = {}

    def pick(self, choices: Sequence[T]) -> T:
        """One of them, always with the same weights, half of which are about nothing."""
        weights = [self._weights.setdefault(choice, self.dice.random() ** 4 + 1e-3) for choice in choices]
        return self.dice.choices(choices, weights)[0]


class JudgedWorkload:
    """Keys with a version each. A write raises the version in the source, then tells the cache; loads read the source.

    `bound_s` is D. `broken` collects what should never have been seen, in words.
    """

    def __init__(self, clock: Clock, bound_s: float, mix: Mix) -> None:
        self.clock, self.bound_s, self.mix, self.dice = clock, bound_s, mix, mix.dice
        self.keys = [f"k{i}" for i in range(mix.keys)]
        self.source = dict.fromkeys(self.keys, 0)
        self.written: dict[str, list[Written]] = {key: [] for key in self.keys}
        self.broken: list[str] = []
        self.reads = self.answered = self.writes = self.loads = 0
        self._locks = {key: asyncio.Lock() for key in self.keys}

    # -- writing ------------------------------------------------------------------------------------------------

    async def write(self, cache: Cache) -> None:
        """One write of a random key by a random verb, repeated until it has returned."""
        key = self.dice.choice(self.keys)
        async with self._locks[key]:
            version = self.source[key] = self.source[key] + 1
            verb = self.mix.pick(("set", "invalidate", "scope", "tag", "tenant"))
            while True:
                try:
                    receipt = await self._write(cache, verb, key, version)
                    break
                except (InvalidationFailed, L2Unavailable):
                    await asyncio.sleep(self.dice.uniform(0, 0.05))
            self.writes += 1
            self.written[key].append(Written(version, self.clock(), receipt, cache))

    async def _write(self, cache: Cache, verb: str, key: str, version: int) -> Receipt:
        if verb == "set":
            await cache.set("config", key, version, tags=[key], **LEVELS[0])
            return await cache.set("config", key, version, tags=[key], **LEVELS[1])
        if verb == "invalidate":
            return await cache.invalidate("config", key, tenant_id="acme", contexts="all")
        if verb == "tag":
            return await cache.invalidate_tags([key], tenant_id="acme")
        return await cache.invalidate_scope("acme", "config" if verb == "scope" else None)

    # -- reading ------------------------------------------------------------------------------------------------

    async def read(self, cache: Cache, who: str) -> None:
        """One read of a random key by a random verb, now and then with the receipt of its latest write."""
        key, level = self.dice.choice(self.keys), self.dice.choice(LEVELS)
        verb = "load" if self.dice.random() < 0.4 else self.mix.pick(("get", "l2", "many", "search"))
        written = self.written[key]
        after = written[-1] if written and self.dice.random() < 0.1 else None
        started_s = self.clock()
        owed = self._owed(written, cache, started_s, after)
        self.reads += 1
        try:
            version = await self._read(cache, verb, key, level, None if after is None else after.receipt)
        except CacheBusError:
            return  # nothing was said, so nothing wrong was
        if version is None:
            return
        self.answered += 1
        for promise, least in owed.items():
            if version < least.version:
                self.broken.append(
                    f"{promise}: {verb} of {key} on {who} at {started_s:.4f} gave {version}, but {least.version} "
                    f"({least.receipt}) had returned {started_s - least.returned_s:.4f} s before"
                )

    def _owed(
        self, written: list[Written], cache: Cache, started_s: float, after: Written | None
    ) -> dict[str, Written]:
        """By promise, the write that a read must not be older than."""
        newest = reversed(written)
        found = {
            "bounded staleness": next((w for w in newest if w.returned_s + self.bound_s < started_s), None),
            "own writes": next((w for w in reversed(written[-50:]) if w.node is cache), None),
            "session": after,
        }
        return {promise: least for promise, least in found.items() if least is not None}

    async def _read(self, cache: Cache, verb: str, key: str, level: dict[str, str], after: Receipt | None) -> Any:
        if verb == "many":
            return (await cache.get_many("config", {key, *self.keys[:3]}, after=after, **level)).get(key)
        if verb == "search":
            return await cache.get("config", key, search_hierarchy=True, after=after, **level)
        if verb != "load":
            return await cache.get("config", key, use_memory=verb == "get", after=after, **level)

        async def load() -> int:
            self.loads += 1
            await asyncio.sleep(self.dice.uniform(0, self.mix.slow_s))
            version = self.source[key]
            slowness = 3 * self.bound_s if self.dice.random() < self.mix.very_slow else self.mix.slow_s
            await asyncio.sleep(self.dice.uniform(0, slowness))
            return version

        return await cache.get_or_load("config", key, load, tags=[key], after=after, **level)

    # -- lives --------------------------------------------------------------------------------------------------

    async def read_on(self, cache: Cache, who: str, until_s: float, pause_s: float = 0.03) -> None:
        """Read at random until the time comes."""
        while self.clock() < until_s:
            await self.read(cache, who)
            await asyncio.sleep(self.dice.uniform(0, pause_s))

    async def write_on(self, caches: list[Cache], until_s: float) -> None:
        """Write at random, on any node, until the time comes."""
        while self.clock() < until_s:
            await self.write(self.dice.choice(caches))
            await asyncio.sleep(self.dice.uniform(0, self.mix.write_pause_s))

    async def rest(self, caches: list[Cache]) -> None:
        """D after the last write, every node and L2 must agree with the source, or hold nothing."""
        await asyncio.sleep(self.bound_s * 1.01)
        for i, key, use_memory, level in product(range(len(caches)), self.keys, (True, False), LEVELS):
            with suppress(L2Unavailable):
                found = await caches[i].get("config", key, use_memory=use_memory, **level)
                if found not in (None, self.source[key]):
                    where = "L1" if use_memory else "L2"
                    self.broken.append(f"at rest: {where} of node {i} has {found} of {key}, not {self.source[key]}")

    def verdict(self, replay: str) -> None:
        """Fail with what was broken, and the command that replays it."""
        told = [f"{len(self.broken)} broken promises", *self.broken[:10], f"replay: {replay}"]
        assert not self.broken, "\n".join(told)
        assert self.answered, f"nothing was read; replay: {replay}"


def seeds(count: int) -> list[int]:
    """The seeds to run: the first few, or those in CACHEBUS_SEED, as "7" or, to look for new faults, "1-500"."""
    first, _, last = os.environ.get("CACHEBUS_SEED", f"1-{count}").partition("-")
    return list(range(int(first), int(last or first) + 1))


def seed_to_try() -> int:
    """One that was never run before, or the one in CACHEBUS_SEED. Printed: pytest shows it when the test fails."""
    given = os.environ.get("CACHEBUS_SEED")
    seed = int(given.partition("-")[0]) if given else random.SystemRandom().randrange(10**9)
    print(f"CACHEBUS_SEED={seed}")
    return seed


def replay_of(test_file: str, seed: int) -> str:
    """The command that runs one seed again."""
    return f"CACHEBUS_SEED={seed} python -m pytest {test_file}"
