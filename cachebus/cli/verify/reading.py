"""The reads of one node: every way of reading there is, each answer written down with what was asked."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator, Sequence
from random import Random
from typing import Any, Final

from cachebus import Cache, CacheBusError
from cachebus.cli.lab.traffic import Pace
from cachebus.cli.verify.items import TENANTS, Item, popularity
from cachebus.cli.verify.loaders import Loaders
from cachebus.cli.verify.tape import VERB_SHIFT, Tape
from cachebus.cli.verify.truth import RECENT, SESSIONS, Token, Truth
from cachebus.clock import Clock

LOAD, GET, L2, MANY, SEARCH, LOAD_L2, TOKEN, SESSION, OWN = range(9)
VERBS: Final = (
    "get_or_load", "get", "get(use_memory=False)", "get_many", "get(search_hierarchy=True)",
    "get_or_load(use_memory=False)", "read(after=token)", "read(after=session)", "get_or_load of an own write",
)  # fmt: skip
WEIGHTS: Final = (74, 20, 1, 1, 1.5, 0.3, 1.5, 1, 0)
WALKERS: Final = 256
BATCH: Final = 512
SKEW: Final = 1.0
ADOPT: Final = 0.1
"""How often a session turns to another item."""
ANY_TOKEN, SESSION_TOKEN = 1, 2
TenantPlace: Final = {name: place for place, name in enumerate(("", *TENANTS), 1)}


class Readers:
    """Reads at a pace until told to stop."""

    def __init__(
        self, cache: Cache, items: Sequence[Item], truth: Truth, loaders: Loaders, tapes: dict[str, Tape],
        dice: Random, rate: float, clock: Clock, order_seed: str,
    ) -> None:  # fmt: skip
        self._cache, self._items, self._truth, self._loaders = cache, items, truth, loaders
        self._reads, self._tokens, self._strange = tapes["reads"], tapes["tokens"], tapes["strange"]
        self._dice, self._clock = dice, clock
        self._pace = Pace(rate, clock)
        self._stopping = False
        self.begun = self.answered = self.absent = self.failed = 0
        self._chosen = self._choose(order_seed)
        self._do = (
            self._load, self._get, self._get_l2, self._many, self._search, self._load_l2, self._token, self._session,
        )  # fmt: skip
        self._alike: dict[tuple[str | None, str], list[str]] = {}
        for item in items[1:]:
            if item.contexts == (None, None, None):
                self._alike.setdefault((item.tenant, item.data_type), []).append(item.resource_id)
        self._by_name = {(i.tenant, i.data_type, i.resource_id): i for i in items[1:] if i.general == i.number}

    def stop(self) -> None:
        """Begin no further read."""
        self._stopping = True
        self._pace.open()

    async def run(self) -> None:
        """Until stopped."""
        drum = asyncio.create_task(self._pace.drum())
        try:
            async with asyncio.TaskGroup() as group:
                for _ in range(WALKERS):
                    group.create_task(self._walk())
        finally:
            drum.cancel()

    async def own(self, item: Item) -> None:
        """Read what this node has just written."""
        await self._ask(item, OWN, self._by_loading(item))

    async def _walk(self) -> None:
        turn, do = self._pace.turn, self._do
        for item, verb in self._chosen:  # shared by all walkers
            await turn()
            if self._stopping:
                return
            self.begun += 1
            await do[verb](item)

    def _choose(self, order_seed: str) -> Iterator[tuple[Item, int]]:
        order = list(self._items[1:])
        Random(order_seed).shuffle(order)  # what is popular is so on all nodes
        weights = popularity(len(order), SKEW)
        while True:
            items = self._dice.choices(order, cum_weights=weights, k=BATCH)
            yield from zip(items, self._dice.choices(range(len(WEIGHTS)), WEIGHTS, k=BATCH), strict=True)

    # -- the ways of reading ------------------------------------------------------------------------------------------

    def _by_loading(self, item: Item) -> Any:
        return self._cache.get_or_load(
            item.data_type, item.resource_id, self._loaders.ordinary[item.number], *item.place, tags=item.tags
        )

    async def _ask(self, item: Item, verb: int, question: Any) -> int:
        started_s = self._clock()
        try:
            value = await question
        except (CacheBusError, ConnectionError):  # the other is the source's, when that is made to fail
            self.failed += 1
            return 0
        return self._note(item, verb, value, started_s)

    async def _load(self, item: Item) -> None:
        await self._ask(item, LOAD, self._by_loading(item))

    async def _get(self, item: Item) -> None:
        await self._ask(item, GET, self._cache.get(item.data_type, item.resource_id, *item.place))

    async def _get_l2(self, item: Item) -> None:
        await self._ask(item, L2, self._cache.get(item.data_type, item.resource_id, *item.place, use_memory=False))

    async def _load_l2(self, item: Item) -> None:
        loader = self._loaders.special[item.number]
        await self._ask(
            item, LOAD_L2,
            self._cache.get_or_load(
                item.data_type, item.resource_id, loader, *item.place, tags=item.tags, use_memory=False
            ),
        )  # fmt: skip

    async def _search(self, item: Item) -> None:
        await self._ask(
            item, SEARCH, self._cache.get(item.data_type, item.resource_id, *item.place, search_hierarchy=True)
        )

    async def _many(self, item: Item) -> None:
        ids = self._dice.sample(self._alike[item.tenant, item.data_type], 3)
        started_s = self._clock()
        try:
            found = await self._cache.get_many(item.data_type, ids, item.tenant)
        except CacheBusError:
            self.failed += 1
            return
        for resource_id in ids:
            asked = self._by_name[item.tenant, item.data_type, resource_id]
            self._note(asked, MANY, found.get(resource_id), started_s)
        self.begun += len(ids) - 1

    def _written(self, item: Item) -> Item:
        """An item that was written a moment ago, most likely by another node; this one if there is none yet."""
        return self._items[self._truth.recent[self._dice.randrange(RECENT)] or item.number]

    async def _token(self, item: Item) -> None:
        item = self._written(item)
        token = self._truth.find(item.number)
        if token is None:
            await self._get(item)
        else:
            await self._after(item, token, ANY_TOKEN)

    async def _session(self, item: Item) -> None:
        """A session goes from node to node, and takes the newest token for what it has read along."""
        slot = self._truth.session(self._dice.randrange(SESSIONS))
        held = self._truth.find(slot)
        if held is None or self._dice.random() < ADOPT:
            item = self._written(item)
            token = self._truth.find(item.number)
            if token is not None:
                self._truth.leave(slot, token)
            await self._get(item)
            return
        version = await self._after(self._items[held.item], held, SESSION_TOKEN)
        newest = self._truth.find(held.item)
        if newest is not None and held.version < newest.version <= version:
            self._truth.leave(slot, newest)

    async def _after(self, item: Item, token: Token, kind: int) -> int:
        verb = TOKEN if kind == ANY_TOKEN else SESSION
        started_s = self._clock()
        if self._dice.random() < 0.5:
            question = self._cache.get(item.data_type, item.resource_id, *item.place, after=token.text)
        else:
            loader = self._loaders.special[item.number]
            question = self._cache.get_or_load(
                item.data_type, item.resource_id, loader, *item.place, tags=item.tags, after=token.text
            )
        version = await self._ask(item, verb, question)
        if version:
            self._tokens.add(item.number | verb << VERB_SHIFT, version, started_s, token.version, kind)
        return version

    # -- what came of it ----------------------------------------------------------------------------------------------

    def _note(self, item: Item, verb: int, value: Any, started_s: float) -> int:
        """Write an answer down; gives its version, 0 for none."""
        if value is None:
            self.absent += 1
            return 0
        self.answered += 1
        found, version, tenant = value[:3]
        if (found != item.number and not (verb == SEARCH and found == item.general)) or tenant != (item.tenant or ""):
            place = TenantPlace.get(tenant, 0)
            self._strange.add(item.number | verb << VERB_SHIFT, found, version, place, started_s)
            return 0
        self._reads.add(found | verb << VERB_SHIFT, version, started_s)
        return int(version)
