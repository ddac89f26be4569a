"""The producer that invalidates in L2 itself, for code that writes and never reads: it uses a cache's scripts, and has
no L1 and no subscription."""

from __future__ import annotations

import asyncio
from collections.abc import Collection, Iterable
from contextlib import suppress
from types import TracebackType
from typing import Self

from cachebus.base.choices import Wait
from cachebus.base.unicode import is_unicode
from cachebus.cascade import Cascade
from cachebus.core.membership import Confirmed
from cachebus.errors import CacheBusError, ConfigError, InvalidationFailed, L2Unavailable
from cachebus.keys.plan import Plan
from cachebus.producers.base import Order, Producer
from cachebus.producers.refusals import reason_of
from cachebus.producers.session import ProducerMemory, ProducerSession
from cachebus.receipt import Receipt
from cachebus.settings import Settings
from cachebus.writing.confirm import check_wait
from cachebus.writing.every_shard import invalidate_in_every_shard

_AT_ONCE_S = 0.05


class DirectProducer(Producer):
    """Invalidates in L2 itself: `async with DirectProducer.open(url) as producer: await producer.invalidate(...)`.

    Namespace and shard count must be those of the caches. Each call is one atomic step in L2 and returns its receipt,
    or raises `InvalidationFailed` when it is not sure to have happened. A lost connection is reopened by the next call.

    1. A producer that has just opened has yet to learn which nodes there are: its first `wait="nodes"` on a shard lasts
       the whole staleness bound, the largest that any cache has.
    2. If a call finds another epoch than before (a failover), the producer repeats there what it sent since that epoch
       was born, within the last minute. It does so in a task of its own: no call waits for it, or fails by it.
    3. With `bus="kafka"` it publishes there what L2 has taken. It waits for no broker: if Kafka does not take an event,
       the caches find it by their probes, within the staleness bound.
    """

    def __init__(
        self, settings: Settings | str | None = None, cascades: Iterable[Cascade] = (), *, name: str = "producer"
    ) -> None:
        """As `open`. `name`: what it is called in the log, in front of the process's name."""
        if not is_unicode(name):
            raise ConfigError("name is not valid Unicode: it has a lone surrogate")
        self._name = name
        self.settings = Settings.of(settings)
        if self.settings.url.get_secret_value().startswith("memory://"):
            raise ConfigError("a producer needs a shared store: memory:// is inside one process")
        super().__init__(self.settings, cascades)
        self._memory = ProducerMemory(self.settings)
        self._session: ProducerSession | None = None

    @classmethod
    def open(cls, settings: Settings | str | None = None, cascades: Iterable[Cascade] = ()) -> Self:
        """A producer, to be entered.

        `settings`: a URL, settings, or None for those of the environment. `cascades`: what else is invalidated with a
        resource; declare the same ones as in the caches. Raises `ConfigError`. Entering it raises `L2Unavailable` if no
        primary can be reached, and `ProtocolMismatch` if the caches have another layout.
        """
        return cls(settings, cascades)

    async def __aenter__(self) -> Self:
        session = ProducerSession(self.settings, self._memory, self._name)
        await session.begin()
        self._session = session
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.aclose()

    async def aclose(self) -> None:
        """Give repetitions under way `close_timeout_s` to end, then disconnect. Closing twice is harmless. Raises
        `ConfigError` in another process or event loop than it was opened in."""
        session = self._session
        if session is None:
            return
        if not session.home.here:
            if session.home.gone:
                self._session = None
                session.abandon()
            raise session.home.close_elsewhere("producer")
        self._session = None
        await session.end(self.settings.close_timeout_s)

    # -- what workers ask -----------------------------------------------------------------------------------------

    @property
    def identity(self) -> str:
        """What tells this L2 from all others, a text that lies in it; "" before it was probed."""
        return self._memory.identity

    @property
    def takes_any(self) -> bool:
        """Whether any primary is connected, and does not refuse writes."""
        return self._takes_elsewhere(frozenset())

    def beside(self, shard: int) -> list[int]:
        """The shards that lie on the same primary as this one, itself among them."""
        store = self._live().store
        place = store.lies_at(shard)
        return [each for each in range(self.settings.shards) if each == shard or store.lies_at(each) == place]

    def goes_on_without(self, shard: int) -> bool:
        """Whether another primary than the shard's is connected, and does not refuse writes."""
        return self._takes_elsewhere({self._live().store.lies_at(shard)})

    def _takes_elsewhere(self, places: Collection[object]) -> bool:
        session = self._live()
        store, refusals = session.store, session.refusals
        return any(
            store.reaches(each) and (place := store.lies_at(each)) not in places and place not in refusals
            for each in range(self.settings.shards)
        )

    async def reaches(self, shard: int) -> bool:
        """Whether the shard's primary is connected. If not, connecting is tried for a moment, and nobody waits
        longer."""
        store = self._live().store
        if not store.reaches(shard):
            with suppress(CacheBusError, TimeoutError):
                async with asyncio.timeout(_AT_ONCE_S):
                    await store.reach(shard)
        return store.reaches(shard)

    async def probe(self) -> None:
        """Check whether each primary takes writes, and lets this user publish, and whether its shards are still in the
        epochs that this producer knows. Where they are not, repeat what may be lost. A worker that has nothing to send
        calls this now and then.

        Raises `L2Unavailable`, which names the primaries that are away or refuse.
        """
        session = self._live()
        one_of_each = {session.store.lies_at(each): each for each in range(self.settings.shards)}
        session.refusals.only(one_of_each.keys())
        # Shard 0 is always probed: it tells whether the layout is the one that this producer assumes.
        looks = (session.look(shard) for shard in {0, *self._memory.epochs, *one_of_each.values()})
        troubles = [one for one in await asyncio.gather(*looks, return_exceptions=True) if one is not None]
        for trouble in troubles:
            if not isinstance(trouble, L2Unavailable):
                raise trouble
        if troubles:
            raise L2Unavailable("; ".join(dict.fromkeys(map(str, troubles))))

    async def probe_one(self, shard: int) -> None:
        """As `probe`, for one shard's primary alone; `L2Unavailable`."""
        await self._live().look(shard)

    # -- invalidating ---------------------------------------------------------------------------------------------

    async def send(self, plan: Plan, wait: Wait | None = None) -> Receipt:
        """Apply a plan, as the verbs do with theirs. `wait`: None, or "nodes" to return when no node can serve what was
        replaced. `InvalidationFailed` when it is not sure to have happened."""
        check_wait(wait)
        session = self._live()
        try:
            change = await session.invalidate(plan, probe=bool(wait))
        except L2Unavailable as error:
            raise InvalidationFailed(f"the invalidation is not sure to have happened: {reason_of(error)}") from error
        nodes = await session.wait_for_nodes(plan.shard, change) if wait else Confirmed()
        return Receipt(
            plan.shard,
            change.epoch.decode(),
            change.seq,
            targets=dict(plan.targets),
            confirmed=nodes.confirmed,
            lapsed=nodes.lapsed,
        )

    async def invalidate_type(self, data_type: str, *, wait: Wait | None = None, reason: str | None = None) -> Receipt:
        """Say that a data type is replaced, whatever the tenant. As `Cache.invalidate_type`."""
        plans = [plan.because(reason) for plan in self._orders.planner.type_of_all_tenants(data_type)]
        return await invalidate_in_every_shard(plans, lambda plan: self.send(plan, wait))

    async def clear(self, *, wait: Wait | None = None, reason: str | None = None) -> Receipt:
        """Say that everything is replaced, of all tenants. As `Cache.clear`."""
        plans = [plan.because(reason) for plan in self._orders.planner.everything()]
        return await invalidate_in_every_shard(plans, lambda plan: self.send(plan, wait))

    async def _send(self, order: Order, wait: Wait | None) -> Receipt:
        return await self.send(order.plan, wait)

    def _live(self) -> ProducerSession:
        if self._session is None:
            raise ConfigError("this producer is not open: use it inside `async with DirectProducer.open(...)`")
        if not self._session.home.here:
            raise self._session.home.elsewhere("producer")
        return self._session
