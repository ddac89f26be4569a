"""The reads of one node, by every verb that reads. Each answer is recorded."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator, Sequence
from random import Random
from typing import Any, Final

from cachebus import Cache, CacheBusError, cached, get_with_cache_aside
from cachebus.base.clock import Clock
from cachebus.tools.demo.traffic import Pace
from cachebus.tools.verify.fleet.answers import Answers
from cachebus.tools.verify.fleet.data_types import QUICK_TTL_S
from cachebus.tools.verify.fleet.history_log import VERB_SHIFT, HistoryLog
from cachebus.tools.verify.fleet.items import SourceItem, by_popularity, popularity
from cachebus.tools.verify.fleet.loaders import Loaders, Odd
from cachebus.tools.verify.fleet.source_of_truth import RECENT, SESSIONS, SourceOfTruth, Token

LOAD, GET, L2, MANY, SEARCH, LOAD_L2, TOKEN, SESSION, OWN, ASIDE, CACHED, SEARCH_LOAD, TTL, LOAD_MANY, TICK = range(15)
VERBS: Final = (
    "get_or_load",
    "get",
    "get(use_memory=False)",
    "get_many",
    "get(search_hierarchy=True)",
    "get_or_load(use_memory=False)",
    "read(after=token)",
    "read(after=session)",
    "get_or_load of an own write",
    "get_with_cache_aside",
    "@cached",
    "get_or_load(search_hierarchy=True)",
    "get_or_load(ttl=)",
    "get_or_load_many",
    "get_or_load(batch=)",
)
WEIGHTS: Final = (66, 20, 1, 1, 1.5, 0.5, 1.5, 1, 0, 2, 2, 1, 1, 1, 1)
READERS: Final = 256
BATCH: Final = 512
SKEW: Final = 1.0
ADOPT_SHARE: Final = 0.1
"""How often a session turns to another item."""
RECENT_SHARE: Final = 0.2
"""The share of reads of an item that was written a moment ago."""
LIMITED_SHARE: Final = 0.03
"""The share of callers with a time limit of their own."""
LIMIT_S: Final = (0.0005, 0.03)
"""That limit, at least and at most."""
ANY_TOKEN, SESSION_TOKEN = 1, 2


class Readers:
    """Reads at a pace until told to stop."""

    def __init__(
        self,
        caches: Sequence[Cache],
        items: Sequence[SourceItem],
        source: SourceOfTruth,
        loaders: Loaders,
        answers: Answers,
        tokens: HistoryLog,
        rng: Random,
        rate: float,
        clock: Clock,
        order_seed: str,
    ) -> None:
        self._caches, self._items, self._source, self._loaders = caches, items, source, loaders
        self._answers, self._tokens = answers, tokens
        self._rng, self._clock = rng, clock
        self._pace = Pace(rate, clock)
        self._stopping = False
        self.begun = 0
        self._chosen = self._choose(order_seed)
        self._by_verb = (
            self._load,
            self._get,
            self._get_l2,
            self._many,
            self._search,
            self._load_l2,
            self._token,
            self._session,
            self._load,
            self._aside,
            self._cached,
            self._search_load,
            self._load_ttl,
            self._load_many,
            self._load_tick,
        )
        self._alike: dict[tuple[int, str | None, str], list[str]] = {}
        for item in items[1:]:
            if item.contexts == (None, None, None):
                self._alike.setdefault((item.cache_index, item.tenant, item.data_type), []).append(item.resource_id)
        self._by_name = {
            (i.cache_index, i.tenant, i.data_type, i.resource_id): i for i in items[1:] if i.general == i.number
        }
        self._functions = [item and self._function(item) for item in items]

    def stop(self) -> None:
        """Begin no further read."""
        self._stopping = True
        self._pace.open()

    async def run(self) -> None:
        """Run until stopped."""
        pacing = asyncio.create_task(self._pace.run())
        try:
            async with asyncio.TaskGroup() as group:
                for _ in range(READERS):
                    group.create_task(self._read_on())
        finally:
            pacing.cancel()

    async def own(self, item: SourceItem) -> None:
        """Read what this node has just written."""
        await self._ask(item, OWN, self._by_loading(item), loads=True)

    async def _read_on(self) -> None:
        turn, by_verb = self._pace.turn, self._by_verb
        for item, verb in self._chosen:  # shared by all readers
            await turn()
            if self._stopping:
                return
            self.begun += 1
            await by_verb[verb](self._recently_written(item) if self._rng.random() < RECENT_SHARE else item)

    def _choose(self, order_seed: str) -> Iterator[tuple[SourceItem, int]]:
        order = by_popularity(self._items[1:], order_seed)
        weights = popularity(len(order), SKEW)
        while True:
            items = self._rng.choices(order, cum_weights=weights, k=BATCH)
            yield from zip(items, self._rng.choices(range(len(WEIGHTS)), WEIGHTS, k=BATCH), strict=True)

    # -- the verbs ----------------------------------------------------------------------------------------------------

    def _by_loading(self, item: SourceItem, **how: Any) -> Any:
        loader = self._loaders.special if "use_memory" in how or "after" in how else self._loaders.ordinary
        return self._caches[item.cache_index].get_or_load(
            item.data_type, item.resource_id, loader[item.number], *item.place, tags=item.tags, **how
        )

    def _by_getting(self, item: SourceItem, **how: Any) -> Any:
        return self._caches[item.cache_index].get(item.data_type, item.resource_id, *item.place, **how)

    async def _ask(
        self,
        item: SourceItem,
        verb: int,
        question: Any,
        *,
        loads: bool = False,
        wider: int = 0,
        may_time_out: bool = True,
        after: str | None = None,
    ) -> int:
        """Await one read, and record its answer. Returns its version, 0 for none.

        `loads`, `wider`: as of `Answers.note`. `may_time_out`: whether the caller may have a time limit. A caller that
        gives up reads again at once, without a limit, `after` the same token.
        """
        limited = may_time_out and self._rng.random() < LIMITED_SHARE
        started_s = self._clock()
        try:
            async with asyncio.timeout(self._rng.uniform(*LIMIT_S) if limited else None) as limit:
                try:
                    value = await question
                finally:
                    if not loads:
                        self._answers.check_duration(item, verb, started_s)
        except asyncio.CancelledError:
            task = asyncio.current_task()
            if task is None or task.cancelling():
                raise
            self._answers.cancelled(item, verb, started_s)
            return 0
        except (CacheBusError, ConnectionError, Odd, TimeoutError) as error:
            if limit.expired():
                self._answers.given_up += 1
                again = self._by_loading(item, **({"after": after} if after else {}))
                return await self._ask(item, verb if after else LOAD, again, loads=True, may_time_out=False)
            self._answers.raised(item, verb, error, started_s)
            return 0
        return self._answers.note(item, verb, value, started_s, loads=loads, wider=wider)

    async def _load(self, item: SourceItem) -> None:
        await self._ask(item, LOAD, self._by_loading(item), loads=True)

    async def _get(self, item: SourceItem) -> None:
        await self._ask(item, GET, self._by_getting(item))

    async def _get_l2(self, item: SourceItem) -> None:
        await self._ask(item, L2, self._by_getting(item, use_memory=False))

    async def _load_l2(self, item: SourceItem) -> None:
        await self._ask(item, LOAD_L2, self._by_loading(item, use_memory=False), loads=True)

    async def _load_ttl(self, item: SourceItem) -> None:
        await self._ask(item, TTL, self._by_loading(item, ttl=QUICK_TTL_S), loads=True)

    async def _search(self, item: SourceItem) -> None:
        await self._ask(item, SEARCH, self._by_getting(item, search_hierarchy=True), wider=item.general)

    async def _search_load(self, item: SourceItem) -> None:
        question = self._by_loading(item, search_hierarchy=True)
        await self._ask(item, SEARCH_LOAD, question, loads=True, wider=item.general)

    async def _aside(self, item: SourceItem) -> None:
        """By the cache-aside helper. It uses the process-wide cache only, and returns an error instead of raising
        it."""
        if item.cache_index or item.tags:
            await self._load(item)
            return
        await self._ask(item, ASIDE, self._from_aside(item), loads=True, wider=item.general)

    async def _from_aside(self, item: SourceItem) -> Any:
        agent_id, conversation_id, collection_id = item.contexts
        value, metrics = await get_with_cache_aside(
            item.data_type,
            item.resource_id,
            item.tenant,
            self._loaders.ordinary[item.number],
            agent_id=agent_id,
            conversation_id=conversation_id,
            collection_id=collection_id,
        )
        if value is None and metrics["error"] is not None:
            raise metrics["error"]
        return value

    async def _cached(self, item: SourceItem) -> None:
        await self._ask(item, CACHED, self._functions[item.number](), loads=True)

    def _function(self, item: SourceItem) -> Any:
        agent, conversation, collection = item.contexts

        @cached(
            item.data_type,
            resource_id=item.resource_id,
            tenant_id=item.tenant,
            agent_id=agent,
            conversation_id=conversation,
            collection_id=collection,
            tags=item.tags,
            cache=self._caches[item.cache_index],
        )
        async def function() -> Any:
            return await self._loaders.ordinary[item.number]()

        return function

    async def _many(self, item: SourceItem) -> None:
        alike = self._alike[item.cache_index, item.tenant, item.data_type]
        ids = self._rng.sample(alike, min(3, len(alike)))
        started_s = self._clock()
        try:
            found = await self._caches[item.cache_index].get_many(item.data_type, ids, item.tenant)
        except CacheBusError as error:
            self._answers.raised(item, MANY, error, started_s)
            return
        for resource_id in ids:
            asked = self._by_name[item.cache_index, item.tenant, item.data_type, resource_id]
            self._answers.note(asked, MANY, found.get(resource_id), started_s)
        self.begun += len(ids) - 1

    def _together(self, item: SourceItem) -> dict[str, SourceItem]:
        """This item and some that a batch may load with it; none where its type does odd things, or it has contexts."""
        if item.data_type == "odd" or item.contexts != (None, None, None):
            return {}
        place = item.cache_index, item.tenant, item.data_type
        alike = [self._by_name[(*place, one)] for one in self._alike[place]]
        fitting = [one for one in alike if one.tags == item.tags]
        return {one.resource_id: one for one in (item, *self._rng.sample(fitting, min(5, len(fitting))))}

    async def _load_many(self, item: SourceItem) -> None:
        items = self._together(item)
        if not items:
            await self._load(item)
            return
        cache, loader = self._caches[item.cache_index], self._loaders.of_many(items)
        question = cache.get_or_load_many(item.data_type, list(items), loader, *item.place, tags=item.tags)
        started_s = self._clock()
        try:
            found = await question
        except (CacheBusError, ConnectionError, TimeoutError) as error:
            self._answers.raised(item, LOAD_MANY, error, started_s)
            return
        for resource_id, one in items.items():
            self._answers.note(one, LOAD_MANY, found.get(resource_id), started_s, loads=True)
        self.begun += len(items) - 1

    async def _load_tick(self, item: SourceItem) -> None:
        items = self._together(item)
        if not items:
            await self._load(item)
            return
        cache, loader = self._caches[item.cache_index], self._loaders.of_many(items)
        calls = [
            cache.get_or_load(one.data_type, one.resource_id, None, *one.place, tags=one.tags, batch=loader)
            for one in items.values()
        ]
        asking = [
            self._ask(one, TICK, call, loads=True, may_time_out=one is item)
            for one, call in zip(items.values(), calls, strict=True)
        ]
        await asyncio.gather(*asking)
        self.begun += len(items) - 1

    def _recently_written(self, item: SourceItem) -> SourceItem:
        """An item that was written a moment ago, most likely by another node; the given one if there is none yet."""
        return self._items[self._source.recent[self._rng.randrange(RECENT)] or item.number]

    async def _token(self, item: SourceItem) -> None:
        item = self._recently_written(item)
        token = self._source.find(item.number)
        if token is None:
            await self._get(item)
        else:
            await self._after(item, token, ANY_TOKEN)

    async def _session(self, item: SourceItem) -> None:
        """A read of a session, which moves from node to node with the newest token of what it has read."""
        slot = self._source.session(self._rng.randrange(SESSIONS))
        held = self._source.find(slot)
        if held is None or self._rng.random() < ADOPT_SHARE:
            item = self._recently_written(item)
            token = self._source.find(item.number)
            if token is not None:
                self._source.leave(slot, token)
            await self._get(item)
            return
        version = await self._after(self._items[held.item], held, SESSION_TOKEN)
        newest = self._source.find(held.item)
        if newest is not None and held.version < newest.version <= version:
            self._source.leave(slot, newest)

    async def _after(self, item: SourceItem, token: Token, kind: int) -> int:
        verb = TOKEN if kind == ANY_TOKEN else SESSION
        started_s = self._clock()
        loads = self._rng.random() < 0.5
        question = (self._by_loading if loads else self._by_getting)(item, after=token.text)
        version = await self._ask(item, verb, question, loads=loads, after=token.text)
        if version:
            self._tokens.add(item.number | verb << VERB_SHIFT, version, started_s, token.version, kind)
        return version
