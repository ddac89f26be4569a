"""The writes of one node: a change is committed to the source, then the cache is told in one of all possible ways."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from functools import partial
from random import Random
from typing import Any, Final

from cachebus import Cache, CacheBusError, Receipt
from cachebus.cli.lab.traffic import Pace
from cachebus.cli.verify.items import TAGS, TENANTS, Item, popularity
from cachebus.cli.verify.tape import VERB_SHIFT, Tape
from cachebus.cli.verify.truth import RECENT, Token, Truth
from cachebus.clock import Clock

KEY, EVERY_CONTEXT, TAG, TYPE, CONTEXT, TENANT, SET, DELETE, ADD, SETTLED = range(10)
VERBS: Final = (
    "invalidate", "invalidate(contexts=all)", "invalidate_tags", "invalidate_scope(type)",
    "invalidate_scope(type, context)", "invalidate_scope(tenant)", "set", "delete", "add", "invalidate, repeated later",
)  # fmt: skip
WEIGHTS: Final = (50, 5, 3, 1, 2, 0.1, 28, 5, 4)
ENDS_LEASES: Final = frozenset({KEY, EVERY_CONTEXT, SET, DELETE, ADD, SETTLED})
"""Those that name a key, and so end a load's lease on it; the others leave a mark."""
PUTS: Final = frozenset({SET, ADD})
"""Those that bring a value along. One whose outcome is unknown may still arrive later."""
WRITERS: Final = 8
REPEAT_S: Final = 0.1
SKEW: Final = 0.6

Call = Callable[[], Awaitable[Any]]


class Writers:
    """Writes at a pace until told to stop."""

    def __init__(
        self, cache: Cache, items: Sequence[Item], truth: Truth, tape: Tape, dice: Random, clock: Clock,
        *, node: int, nodes: int, rate: float, read_own: Callable[[Item], Awaitable[None]],
    ) -> None:  # fmt: skip
        self._cache, self._items, self._truth, self._tape = cache, items, truth, tape
        self._dice, self._clock, self._read_own = dice, clock, read_own
        self._pace = Pace(rate, clock)
        self._rate = rate
        self._stopping = False
        self._busy: set[int] = set()
        self._shared = [item for item in items[1:] if not item.owned]
        self._owned = [item for item in items[1:] if item.owned][node - 1 :: nodes]
        self._hot = {id(group): self._weighed(group) for group in (self._shared, self._owned)}
        self.written = self.repeated = 0

    def stop(self) -> None:
        """Begin no further write; those under way are repeated no more."""
        self._stopping = True
        self._pace.open()

    async def run(self) -> None:
        """Until stopped."""
        if not self._rate:
            return
        async with asyncio.TaskGroup() as group:
            drum = group.create_task(self._pace.drum())
            writers = [group.create_task(self._walk()) for _ in range(WRITERS)]
            await asyncio.wait(writers)
            drum.cancel()

    async def settle(self, numbers: Sequence[int]) -> None:
        """Tell the cache of items whose last write it may not have heard of; until that has returned."""
        self._stopping = False
        for number in numbers:
            item = self._items[number]
            version = self._truth.versions[number]
            await self._told(SETTLED, {item: version}, partial(self._invalidate, item))

    async def _walk(self) -> None:
        while True:
            await self._pace.turn()
            if self._stopping:
                return
            (verb,) = self._dice.choices(range(len(WEIGHTS)), WEIGHTS)
            if verb in (SET, DELETE, ADD):
                await self._write_owned(verb)
            else:
                await self._write_shared(verb)

    # -- what to write ------------------------------------------------------------------------------------------------

    def _weighed(self, items: list[Item]) -> list[float]:
        Random(len(items)).shuffle(items)  # what is often written is not what is often read
        return popularity(len(items), SKEW)

    def _pick(self, items: list[Item]) -> Item:
        return self._dice.choices(items, cum_weights=self._hot[id(items)])[0]

    async def _write_owned(self, verb: int) -> None:
        item = self._pick(self._owned)
        if item.number in self._busy:
            return
        self._busy.add(item.number)
        try:
            version = self._truth.versions[item.number] if verb == ADD else self._truth.raise_version(item.number)
            await self._told(verb, {item: version}, lambda: self._put(verb, item, version))
        finally:
            self._busy.discard(item.number)
        await self._look_at_own([item])

    def _put(self, verb: int, item: Item, version: int) -> Awaitable[Any]:
        if verb == DELETE:
            return self._invalidate(item)
        value = item.value(version)
        if verb == ADD:
            return self._cache.add(item.data_type, item.resource_id, value, None, *item.place, tags=item.tags)
        return self._cache.set(item.data_type, item.resource_id, value, *item.place, tags=item.tags)

    def _invalidate(self, item: Item) -> Awaitable[Receipt]:
        return self._cache.invalidate(item.data_type, item.resource_id, *item.place)

    async def _write_shared(self, verb: int) -> None:
        items, call = self._planned(verb)
        versions = {item: self._truth.raise_version(item.number) for item in items}
        await self._told(verb, versions, call)
        await self._look_at_own(items)

    def _planned(self, verb: int) -> tuple[list[Item], Call]:
        """What changes, and how the cache is told."""
        cache, item = self._cache, self._pick(self._shared)
        tenant = item.tenant or TENANTS[0]
        if verb == EVERY_CONTEXT:
            family = [i for i in self._shared if (i.tenant, i.data_type, i.resource_id) == item[1:4]]
            return family, lambda: cache.invalidate(item.data_type, item.resource_id, item.tenant, contexts="all")
        if verb == TAG:
            # The owned ones of a tag lose what is cached of them, as they may at any time, and do not change.
            tag = f"t{self._dice.randrange(TAGS)}"
            return self._some(lambda i: tag in i.tags and i.tenant == tenant), lambda: cache.invalidate_tags(
                [tag, f"plan:{tag[1:]}"], tenant
            )
        if verb == TYPE:
            alike = self._some(lambda i: (i.tenant, i.data_type) == (item.tenant, item.data_type))
            return alike, lambda: cache.invalidate_scope(item.tenant, item.data_type)
        if verb == CONTEXT:
            agent = f"a{self._dice.randrange(3)}"
            within = self._some(lambda i: i.tenant == tenant and i.contexts[0] == agent)
            return within, lambda: cache.invalidate_scope(tenant, "answer", agent_id=agent)
        if verb == TENANT:
            return self._some(lambda i: i.tenant == tenant), lambda: cache.invalidate_scope(tenant)
        return [item], lambda: self._invalidate(item)

    def _some(self, fits: Callable[[Item], bool]) -> list[Item]:
        found = [item for item in self._shared if fits(item)]
        return self._dice.sample(found, min(3, len(found)))

    # -- telling the cache --------------------------------------------------------------------------------------------

    async def _told(self, verb: int, versions: dict[Item, int], call: Call) -> None:
        """Call until it returns, and write down when: before that nothing is promised of it."""
        called_s, failed_s = self._clock(), 0.0
        marks = {item: (item.number | verb << VERB_SHIFT, version) for item, version in versions.items()}
        places = {item: self._tape.add(*mark, called_s, 0.0, 0.0, 0, 0) for item, mark in marks.items()}
        while True:
            try:
                receipt = await call()
                break
            except CacheBusError:
                failed_s = self._clock()
                for item, mark in marks.items():
                    self._tape.change(places[item], *mark, called_s, 0.0, failed_s, 0, 0)
                self.repeated += 1
                if self._stopping:
                    return
                await asyncio.sleep(REPEAT_S)
        returned_s = self._clock()
        epoch, seq = (int(receipt.epoch, 16), receipt.seq) if isinstance(receipt, Receipt) else (0, 0)
        for item, mark in marks.items():
            self._tape.change(places[item], *mark, called_s, returned_s, failed_s, epoch, seq)
            if epoch:
                self._truth.leave(item.number, Token(item.number, versions[item], str(receipt)))
                self._truth.recent[self._dice.randrange(RECENT)] = item.number
        self.written += 1

    async def _look_at_own(self, items: list[Item]) -> None:
        if self._dice.random() < 0.5 and not self._stopping:
            for item in items:
                await self._read_own(item)
