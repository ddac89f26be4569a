"""The writes of one node: a change is committed to the source, then invalidated by one of all the verbs that do so."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from contextlib import suppress
from functools import partial
from random import Random
from typing import Any, Final

from cachebus import Cache, CacheBusError, Receipt
from cachebus.base.choices import Wait
from cachebus.base.clock import Clock
from cachebus.cascade import Target
from cachebus.keys.key import shard_of
from cachebus.tools.demo.traffic import Pace
from cachebus.tools.verify.fleet.anomalies import ADD_REFUSED, Anomalies
from cachebus.tools.verify.fleet.command_queue import CommandQueue
from cachebus.tools.verify.fleet.guarded_writes import GUARDED, GuardedWriter
from cachebus.tools.verify.fleet.history_log import VERB_SHIFT, WAITED, HistoryLog
from cachebus.tools.verify.fleet.items import NO_CONTEXTS, TAGS, TENANTS, SourceItem, by_popularity, popularity
from cachebus.tools.verify.fleet.source_of_truth import RECENT, SourceOfTruth, Token

KEY, EVERY_CONTEXT, TAG, TYPE, CONTEXT, TENANT, SET, DELETE, ADD, SETTLED = range(10)
CLAIM, FEW, BY_WORKER, EVERY_TENANT, EVERYTHING, SEVERAL, SET_SEVERAL = 11, 12, 13, 14, 15, 16, 17
VERBS: Final = (
    "invalidate",
    "invalidate(contexts=all)",
    "invalidate_tags",
    "invalidate_scope(type)",
    "invalidate_scope(type, context)",
    "invalidate_scope(tenant)",
    "set",
    "delete",
    "add",
    "invalidate, repeated later",
    "write_guard",
    "add of what was absent",
    "invalidate_targets",
    "invalidate, by a worker",
    "invalidate_type",
    "clear",
    "invalidate_many",
    "set_many",
)
WEIGHTS: Final = {
    KEY: 46,
    EVERY_CONTEXT: 6,
    TAG: 3,
    TYPE: 1,
    CONTEXT: 2,
    TENANT: 0.1,
    SET: 26,
    DELETE: 5,
    ADD: 4,
    GUARDED: 15,
    CLAIM: 4,
    FEW: 3,
    BY_WORKER: 8,
    EVERY_TENANT: 0.5,
    EVERYTHING: 0.05,
    SEVERAL: 3,
    SET_SEVERAL: 3,
}
GUARDED_TYPE: Final = "deed"
"""A type that is written behind guards only, so that no other write soon replaces what an abandoned one has left."""
GUARDED_TYPE_SHARE: Final = 0.7
"""The share of guarded writes that are of this type."""
WAIT_SHARE: Final = 0.12
"""The share of writes with `wait="nodes"`."""
ENDS_LEASES: Final = frozenset(
    {KEY, EVERY_CONTEXT, SET, DELETE, ADD, SETTLED, GUARDED, CLAIM, FEW, BY_WORKER} | {SEVERAL, SET_SEVERAL}
)
"""Verbs that name a key, and so end a fill lease on it. The others leave a mark in L2."""
VALUE_WRITES: Final = frozenset({SET, ADD, CLAIM, SET_SEVERAL})
"""Verbs that bring a value. One whose outcome is unknown may still arrive later."""
WRITERS: Final = 8
REPEAT_S: Final = 0.1
SKEW: Final = 0.6

NOT_OWN: Final = frozenset({BY_WORKER})
"""Verbs that the node's own cache learns of by the bus only: until then it may give the old value."""
NO_CHANGE: Final = frozenset({ADD})
"""Verbs that change nothing at the source."""
SCOPES: Final = frozenset({EVERY_CONTEXT, TAG, TYPE, CONTEXT, TENANT, EVERY_TENANT, EVERYTHING})
OF_ALL_TENANTS: Final = frozenset({EVERY_TENANT, EVERYTHING})
OF_ALL_TYPES: Final = frozenset({TAG, TENANT, EVERYTHING})

WriteCall = Callable[[Wait | None], Awaitable[Any]]
"""Makes the call, with what it is to wait for."""


class Writers:
    """Writes at a pace until told to stop."""

    def __init__(
        self,
        caches: Sequence[Cache],
        items: Sequence[SourceItem],
        source: SourceOfTruth,
        log: HistoryLog,
        anomalies: Anomalies,
        guards: GuardedWriter,
        rng: Random,
        clock: Clock,
        *,
        node: int,
        nodes: int,
        rate: float,
        read_own: Callable[[SourceItem], Awaitable[None]],
        order_seed: str,
        commands: CommandQueue,
    ) -> None:
        self._caches, self._items, self._source, self._log = caches, items, source, log
        self._anomalies, self._guards, self._commands = anomalies, guards, commands
        self._rng, self._clock, self._read_own = rng, clock, read_own
        self._pace = Pace(rate, clock)
        self._rate = rate
        self._rank = {item: place for place, item in enumerate(by_popularity(items[1:], order_seed))}
        self._stopping = False
        self._busy: set[int] = set()
        self._shared = [item for item in items[1:] if not item.owned and item.data_type != GUARDED_TYPE]
        self._deeds = [item for item in items[1:] if item.data_type == GUARDED_TYPE]
        self._owned = [item for item in items[1:] if item.owned][node - 1 :: nodes]
        self._in_contexts = [item for item in self._shared if item.contexts != NO_CONTEXTS]
        self._claimed = [item for item in self._owned if item.data_type == "claim"]
        self._hot = {
            id(group): self._weighed(group) for group in (self._shared, self._in_contexts, self._owned, self._claimed)
        }
        self.written = self.repeated = 0

    def stop(self) -> None:
        """Begin no further write; those under way are repeated no more."""
        self._stopping = True
        self._pace.open()

    async def run(self) -> None:
        """Run until stopped."""
        if not self._rate:
            return
        async with asyncio.TaskGroup() as group:
            pacing = group.create_task(self._pace.run())
            writers = [group.create_task(self._write_on()) for _ in range(WRITERS)]
            await asyncio.wait(writers)
            pacing.cancel()

    async def abandon_guard(self, after_s: float) -> None:
        """Write behind a guard, and abandon it after its commit, so many seconds after it was entered."""
        item = self._rng.choice([item for item in self._deeds if item.cache_index == 0])
        await self._guards.write(item, self._read_own, abandon_after_s=after_s)

    async def settle(self, numbers: Sequence[int]) -> None:
        """Invalidate these items again, as their last invalidation may not have happened. Returns when all have."""
        self._stopping = False
        for number in numbers:
            item = self._items[number]
            version = self._source.versions[number]
            await self._perform(SETTLED, {item: version}, partial(self._invalidate, item))

    async def _write_on(self) -> None:
        while True:
            await self._pace.turn()
            if self._stopping:
                return
            (verb,) = self._rng.choices(list(WEIGHTS), list(WEIGHTS.values()))
            if verb in (SET, DELETE, ADD, CLAIM, SET_SEVERAL):
                await self._write_owned(verb)
            elif verb == GUARDED:
                await self._write_guarded()
            elif verb == BY_WORKER:
                await self._invalidate_by_worker()
            else:
                await self._write_shared(verb)

    # -- what to write ------------------------------------------------------------------------------------------------

    def _weighed(self, items: list[SourceItem]) -> list[float]:
        items.sort(key=self._rank.__getitem__)  # what is often read is often written
        return popularity(len(items), SKEW)

    def _pick(self, items: list[SourceItem]) -> SourceItem:
        return self._rng.choices(items, cum_weights=self._hot[id(items)])[0]

    async def _write_owned(self, verb: int) -> None:
        items = self._claimed if verb == CLAIM else self._owned
        if not items:
            return
        item = self._pick(items)
        if item.number in self._busy:
            return
        self._busy.add(item.number)
        try:
            if verb == CLAIM:
                await self._claim(item)
            elif verb == SET_SEVERAL:
                await self._put_several(item)
            else:
                await self._put(verb, item)
        finally:
            self._busy.discard(item.number)
        await self._read_back([item])

    async def _put(self, verb: int, item: SourceItem) -> None:
        """`set`, `add` or a removal."""
        version = self._source.versions[item.number] if verb == ADD else self._source.raise_version(item.number)
        value = item.value(version)
        if value is None and verb == ADD:
            return
        if verb == DELETE or value is None:
            await self._perform(DELETE, {item: version}, partial(self._invalidate, item))
        elif verb == ADD:
            await self._perform(ADD, {item: version}, lambda _: self._add(item, value))
        else:
            await self._perform(
                SET,
                {item: version},
                lambda wait: self._cache(item).set(
                    item.data_type, item.resource_id, value, *item.place, tags=item.tags, wait=wait
                ),
            )

    async def _put_several(self, first: SourceItem) -> None:
        """`set_many` of this item and others like it."""
        kind = first.cache_index, first.tenant, first.data_type, first.contexts, first.tags
        alike = [
            item
            for item in self._owned
            if item.number not in self._busy
            and (item.cache_index, item.tenant, item.data_type, item.contexts, item.tags) == kind
        ]
        several = [first, *self._rng.sample(alike, min(3, len(alike)))]
        self._busy.update(item.number for item in several)
        try:
            versions = {item: self._source.raise_version(item.number) for item in several}
            values = {item.resource_id: item.value(version) for item, version in versions.items()}
            there = {one: value for one, value in values.items() if value is not None}
            gone = [item for item in several if item.resource_id not in there]
            for item in gone:
                await self._perform(DELETE, {item: versions.pop(item)}, partial(self._invalidate, item))
            if versions:
                await self._perform(
                    SET_SEVERAL,
                    versions,
                    lambda wait: self._cache(first).set_many(
                        first.data_type, there, *first.place, tags=first.tags, wait=wait
                    ),
                )
        finally:
            self._busy.difference_update(item.number for item in several[1:])

    async def _claim(self, item: SourceItem) -> None:
        """Remove the item at the source, then bring it back by `add`. A cached "not found" must not be in its way."""
        while item.value(self._source.versions[item.number]) is not None:
            version = self._source.raise_version(item.number)
            await self._perform(DELETE, {item: version}, partial(self._invalidate, item))
        await self._read_own(item)
        version = self._source.raise_version(item.number)
        at_s = self._clock()
        added = await self._perform(CLAIM, {item: version}, lambda _: self._add(item, item.value(version)))
        if added is False:
            with suppress(CacheBusError):
                there = await self._cache(item).get(item.data_type, item.resource_id, *item.place, use_memory=False)
                if there is None:
                    self._anomalies.note(ADD_REFUSED, item, at_s, verb=CLAIM)
            await self._perform(DELETE, {item: version}, partial(self._invalidate, item))

    def _cache(self, item: SourceItem) -> Cache:
        return self._caches[item.cache_index]

    def _add(self, item: SourceItem, value: Any) -> Awaitable[bool]:
        return self._cache(item).add(item.data_type, item.resource_id, value, None, *item.place, tags=item.tags)

    def _invalidate(self, item: SourceItem, wait: Wait | None = None) -> Awaitable[Receipt]:
        return self._cache(item).invalidate(item.data_type, item.resource_id, *item.place, wait=wait)

    async def _write_guarded(self) -> None:
        item = self._rng.choice(self._deeds if self._rng.random() < GUARDED_TYPE_SHARE else self._shared)
        if await self._guards.write(item, self._read_own):
            self.written += 1
            await self._read_back([item])

    async def _invalidate_by_worker(self) -> None:
        item = self._pick(self._shared)
        if item.cache_index == 0:
            version = self._source.raise_version(item.number)
            await self._perform(BY_WORKER, {item: version}, lambda _: self._commands.invalidate(item))

    async def _write_shared(self, verb: int) -> None:
        items, call = self._choose_write(verb)
        versions = {item: self._source.raise_version(item.number) for item in items}
        await self._perform(verb, versions, call)
        await self._read_back(items)

    def _choose_write(self, verb: int) -> tuple[list[SourceItem], WriteCall]:
        """The items that change, and the call that invalidates them."""
        item = self._pick(self._in_contexts if verb in (EVERY_CONTEXT, CONTEXT) else self._shared)
        cache, cache_index = self._cache(item), item.cache_index
        tenant = item.tenant or TENANTS[0]
        if verb == EVERY_CONTEXT:
            family = [
                i
                for i in self._shared
                if (i.cache_index, i.tenant, i.data_type, i.resource_id) == (cache_index, *item[1:4])
            ]
            return family, lambda wait: cache.invalidate(
                item.data_type, item.resource_id, item.tenant, contexts="all", wait=wait
            )
        if verb == TAG:
            # Owned items of the tag lose what is cached of them, as they may at any time. They do not change.
            tag = f"t{self._rng.randrange(TAGS)}"
            tagged = self._sample(cache_index, lambda i: tag in i.tags and i.tenant == tenant)
            tags = [tag, f"plan:{tag[1:]}", *(f"of nothing {self._rng.randrange(1000)}" for _ in range(3))]
            return tagged, lambda wait: cache.invalidate_tags(tags, tenant, wait=wait)
        if verb == TYPE:
            alike = self._sample(cache_index, lambda i: (i.tenant, i.data_type) == (item.tenant, item.data_type))
            return alike, lambda wait: cache.invalidate_scope(item.tenant, item.data_type, wait=wait)
        if verb == CONTEXT:
            agent = f"a{self._rng.randrange(3)}"
            within = self._sample(
                cache_index, lambda i: i.tenant == tenant and i.data_type == "answer" and i.contexts[0] == agent
            )
            return within, lambda wait: cache.invalidate_scope(tenant, "answer", agent_id=agent, wait=wait)
        if verb == TENANT:
            of_tenant = self._sample(cache_index, lambda i: i.tenant == tenant)
            return of_tenant, lambda wait: cache.invalidate_scope(tenant, wait=wait)
        if verb == EVERY_TENANT:
            everywhere = self._sample(cache_index, lambda i: i.data_type == item.data_type)
            return everywhere, lambda wait: cache.invalidate_type(item.data_type, wait=wait)
        if verb == EVERYTHING:
            return self._sample(cache_index, lambda _: True), lambda wait: cache.clear(wait=wait)
        if verb == FEW:
            few = self._sample(cache_index, lambda i: i.tenant == item.tenant)
            targets = [Target(i.data_type, i.resource_id, *i.contexts) for i in few]
            return few, lambda wait: cache.invalidate_targets(targets, item.tenant, wait=wait)
        if verb == SEVERAL:
            alike = self._sample(
                cache_index,
                lambda i: (i.tenant, i.data_type, i.contexts) == (item.tenant, item.data_type, item.contexts),
            )
            ids = [i.resource_id for i in alike]
            return alike, lambda wait: cache.invalidate_many(item.data_type, ids, *item.place, wait=wait)
        return [item], partial(self._invalidate, item)

    def _sample(self, cache_index: int, fits: Callable[[SourceItem], bool]) -> list[SourceItem]:
        found = [item for item in self._shared if item.cache_index == cache_index and fits(item)]
        return self._rng.sample(found, min(3, len(found)))

    # -- invalidating -------------------------------------------------------------------------------------------------

    async def _perform(self, verb: int, versions: dict[SourceItem, int], call: WriteCall) -> object:
        """Call until it returns, and record when. Until then it promises nothing. Returns what the call returned."""
        called_s, failed_s = self._clock(), 0.0
        waits = verb not in (ADD, CLAIM, SETTLED, BY_WORKER) and self._rng.random() < WAIT_SHARE
        named = (verb | (WAITED if waits else 0)) << VERB_SHIFT
        codes = {item: (item.number | named, version) for item, version in versions.items()}
        places = {item: self._log.add(*code, called_s, 0.0, 0.0, 0, 0) for item, code in codes.items()}
        while True:
            try:
                receipt = await call("nodes" if waits else None)
                break
            except CacheBusError:
                failed_s = self._clock()
                for item, code in codes.items():
                    self._log.change(places[item], *code, called_s, 0.0, failed_s, 0, 0)
                self.repeated += 1
                if self._stopping:
                    return None
                await asyncio.sleep(REPEAT_S)
        if receipt is False and verb == CLAIM:
            return receipt  # nothing was stored, so no cache was told
        returned_s = self._clock()
        for item, code in codes.items():
            part = self._part_of(item, receipt)
            epoch, seq = (0, 0) if part is None else (int(part.epoch, 16), part.seq)
            self._log.change(places[item], *code, called_s, returned_s, failed_s, epoch, seq)
            if epoch:
                self._source.leave(item.number, Token(item.number, versions[item], str(part)))
                self._source.recent[self._rng.randrange(RECENT)] = item.number
        self.written += 1
        return receipt

    def _part_of(self, item: SourceItem, receipt: object) -> Receipt | None:
        """The receipt in the item's shard; None for what has none."""
        if not isinstance(receipt, Receipt):
            return None
        return receipt.of(shard_of(item.tenant or "", self._cache(item).settings.shards))

    async def _read_back(self, items: list[SourceItem]) -> None:
        if self._rng.random() < 0.5 and not self._stopping:
            for item in items:
                await self._read_own(item)
