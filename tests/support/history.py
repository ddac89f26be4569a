"""A town of nodes over one source: random writes and reads, all written down, and held against the promises."""

from __future__ import annotations

import asyncio
import os
import random
from collections.abc import Callable
from contextlib import suppress
from itertools import product
from typing import Any, NamedTuple

from cachebus import Cache, CacheBusError, InvalidationFailed, L2Unavailable, Receipt

Clock = Callable[[], float]
CONTEXTS = {"tenant_id": "acme", "agent_id": "a", "collection_id": "c"}


class Written(NamedTuple):
    """A write that returned: the version that it brought, and when it was sure to hold."""

    version: int
    returned_s: float
    receipt: Receipt


class Town:
    """Keys with a version each. A write raises the version in the source, then tells the cache; loads read the source.

    `bound_s` is D. `broken` collects what should never have been seen, in words.
    """

    def __init__(
        self, clock: Clock, bound_s: float, dice: random.Random, *, keys: int = 6, slow_s: float = 0.05
    ) -> None:
        self.clock, self.bound_s, self.dice = clock, bound_s, dice
        self.keys = [f"k{i}" for i in range(keys)]
        self.source = dict.fromkeys(self.keys, 0)
        self.written: dict[str, list[Written]] = {key: [] for key in self.keys}
        self.broken: list[str] = []
        self.reads = self.answered = self.loads = 0
        self._slow_s = slow_s
        self._locks = {key: asyncio.Lock() for key in self.keys}

    # -- writing ------------------------------------------------------------------------------------------------

    async def write(self, cache: Cache) -> None:
        """One write of a random key by a random verb, repeated until it has returned."""
        key = self.dice.choice(self.keys)
        async with self._locks[key]:
            version = self.source[key] = self.source[key] + 1
            verb = self.dice.choice((self._set, self._invalidate, self._scope, self._tag))
            while True:
                try:
                    receipt = await verb(cache, key, version)
                    break
                except (InvalidationFailed, L2Unavailable):
                    await asyncio.sleep(self.dice.uniform(0, 0.05))
            self.written[key].append(Written(version, self.clock(), receipt))

    async def _set(self, cache: Cache, key: str, version: int) -> Receipt:
        await cache.set("config", key, version, tags=[key], **CONTEXTS)
        # The wider levels hold older versions that a search may still find.
        return await cache.invalidate("config", key, tenant_id="acme")

    async def _invalidate(self, cache: Cache, key: str, version: int) -> Receipt:
        return await cache.invalidate("config", key, tenant_id="acme", contexts="all")

    async def _scope(self, cache: Cache, key: str, version: int) -> Receipt:
        which = self.dice.choice(({}, {"data_type": "config"}))
        return await cache.invalidate_scope("acme", **which)

    async def _tag(self, cache: Cache, key: str, version: int) -> Receipt:
        return await cache.invalidate_tags([key], tenant_id="acme")

    # -- reading ------------------------------------------------------------------------------------------------

    async def read(self, cache: Cache, who: str) -> None:
        """One read of a random key by a random verb, now and then with the receipt of the latest write."""
        key = self.dice.choice(self.keys)
        written = self.written[key]
        after = written[-1] if written and self.dice.random() < 0.2 else None
        verb = self.dice.choice((self._get, self._load, self._load, self._many, self._search))
        started_s = self.clock()
        self.reads += 1
        try:
            version = await verb(cache, key, None if after is None else after.receipt)
        except CacheBusError:
            return  # nothing was said, so nothing wrong was
        if version is None:
            return
        self.answered += 1
        settled = [w.version for w in written if w.returned_s + self.bound_s < started_s]
        if settled and version < settled[-1]:
            age_s = started_s - next(w.returned_s for w in written if w.version > version)
            self.broken.append(
                f"{started_s:.4f} {who}: {verb.__name__} of {key} gave {version}, replaced {age_s:.4f} s before"
            )
        if after is not None and version < after.version:
            self.broken.append(
                f"{started_s:.4f} {who}: {verb.__name__} of {key} after {after.receipt} (version {after.version}) "
                f"gave {version}"
            )

    async def _get(self, cache: Cache, key: str, after: Receipt | None) -> Any:
        level = self.dice.choice((CONTEXTS, {"tenant_id": "acme"}))
        return await cache.get("config", key, after=after, use_memory=self.dice.random() < 0.9, **level)

    async def _many(self, cache: Cache, key: str, after: Receipt | None) -> Any:
        return (await cache.get_many("config", self.keys, after=after, **CONTEXTS)).get(key)

    async def _search(self, cache: Cache, key: str, after: Receipt | None) -> Any:
        return await cache.get("config", key, search_hierarchy=True, after=after, **CONTEXTS)

    async def _load(self, cache: Cache, key: str, after: Receipt | None) -> Any:
        level = self.dice.choice((CONTEXTS, {"tenant_id": "acme"}))

        async def load() -> int:
            self.loads += 1
            await asyncio.sleep(self.dice.uniform(0, self._slow_s))
            version = self.source[key]
            slowness = 20 if self.dice.random() < 0.05 else 1
            await asyncio.sleep(self.dice.uniform(0, self._slow_s) * slowness)
            return version

        return await cache.get_or_load("config", key, load, tags=[key], after=after, **level)

    # -- lives --------------------------------------------------------------------------------------------------

    async def live(
        self, cache: Cache, who: str, until_s: float, *, writes: float = 0.15, pause_s: float = 0.02
    ) -> None:
        """Read and write at random until the time comes."""
        while self.clock() < until_s:
            if self.dice.random() < writes:
                await self.write(cache)
            else:
                await self.read(cache, who)
            await asyncio.sleep(self.dice.uniform(0, pause_s))

    async def rest(self, caches: list[Cache]) -> None:
        """D after the last write, every node and L2 must agree with the source, or hold nothing."""
        await asyncio.sleep(self.bound_s * 1.01)
        for i, key, use_memory in product(range(len(caches)), self.keys, (True, False)):
            for level in (CONTEXTS, {"tenant_id": "acme"}):
                with suppress(L2Unavailable):
                    found = await caches[i].get("config", key, use_memory=use_memory, **level)
                    if found not in (None, self.source[key]):
                        where = "L1" if use_memory else "L2"
                        self.broken.append(f"at rest, node {i}, {where}: {key} is {found}, not {self.source[key]}")

    def verdict(self, replay: str) -> None:
        """Fail with what was broken, and the command that replays it."""
        assert self.answered, "nothing was read"
        told = [f"{len(self.broken)} broken promises", *self.broken[:10], f"replay: {replay}"]
        assert not self.broken, "\n".join(told)


def seeds(count: int) -> list[int]:
    """The seeds to run: some fixed ones, or the one in CACHEBUS_SEED."""
    given = os.environ.get("CACHEBUS_SEED")
    return list(range(1, count + 1)) if given is None else [int(given)]


def replay_of(test_file: str, seed: int) -> str:
    """The command that runs one seed again."""
    return f"CACHEBUS_SEED={seed} python -m pytest {test_file}"
