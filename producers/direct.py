"""Invalidations straight to L2, for write paths that read nothing: the same scripts, no memory, no subscription."""

from __future__ import annotations

from collections.abc import Iterable
from types import TracebackType
from typing import Self

from cachebus.cascade import Cascade
from cachebus.clock import monotonic
from cachebus.confirm import Confirmed, Confirmer, Watch, check_wait
from cachebus.errors import ConfigError, InvalidationFailed, L2Unavailable
from cachebus.factory import kafka_bus, redis_store, route_of
from cachebus.journal import Journal
from cachebus.observe import Counters
from cachebus.plan import Plan
from cachebus.ports import Caller, Change, Store
from cachebus.receipt import Receipt
from cachebus.settings import Settings
from producers.base import Order, Producer
from producers.publishing import Publisher

_NOBODY = Caller("", 0, b"")


class DirectProducer(Producer):
    """`async with DirectProducer.open(url) as producer: await producer.invalidate("agent_config", "a7", "acme")`.

    Namespace and shard count must be those of the caches. Each call is one atomic step in L2 and returns its receipt,
    or raises `InvalidationFailed` when it is not sure to have happened. A lost connection is reopened by the next call.

    A producer that has just opened has yet to learn which nodes there are: its first `wait="nodes"` on a shard lasts
    the whole staleness bound, the largest that any cache has. One that meets another epoch than before
    (a failover, a restart) repeats there what it said in the last minute.

    With `bus="kafka"` it publishes there what L2 has taken. It waits for no broker: what Kafka does not take, the
    caches find by their probes, within the staleness bound.
    """

    def __init__(self, settings: Settings | str | None = None, cascades: Iterable[Cascade] = ()) -> None:
        self.settings = Settings.of(settings)
        if self.settings.url.get_secret_value().startswith("memory://"):
            raise ConfigError("a producer needs a shared store: memory:// is inside one process")
        super().__init__(self.settings.shards, cascades)
        self._store: Store | None = None
        self._publisher: Publisher | None = None
        self._watches = [Watch() for _ in range(self.settings.shards)]
        self._journal = Journal(monotonic)
        self._epochs: dict[int, bytes] = {}
        """By shard: the epoch in which all that was said of it has been said."""

    @classmethod
    def open(cls, settings: Settings | str | None = None, cascades: Iterable[Cascade] = ()) -> Self:
        """A producer for the store at a URL or of settings, to be entered; `ConfigError`."""
        return cls(settings, cascades)

    async def __aenter__(self) -> Self:
        store = redis_store(self.settings, route_of(self.settings, monotonic), monotonic)
        publisher = None
        if self.settings.bus == "kafka":
            publisher = Publisher(kafka_bus(self.settings, monotonic, None, Counters()), monotonic)
        try:
            await store.connect()
            # Refused here, if at all: where the caches have another number of shards, what this producer says of most
            # tenants would go to shards that nobody reads, which have nothing that could refuse it.
            await store.probe(0, _NOBODY, marks=False)
            if publisher is not None:
                await publisher.open()
        except BaseException:
            await _closed(store, publisher)
            raise
        self._store, self._publisher = store, publisher
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.aclose()

    async def aclose(self) -> None:
        """Give the connection back. Closing twice is harmless."""
        store, self._store = self._store, None
        publisher, self._publisher = self._publisher, None
        if store is not None:
            await _closed(store, publisher)

    async def send(self, plan: Plan, wait: str | None = None) -> Receipt:
        """Apply a plan: what the verbs do with theirs; `InvalidationFailed`."""
        check_wait(wait)
        store = self._live()
        try:
            change = await self._said(store, plan, probe=bool(wait))
            if self._epochs.setdefault(plan.shard, change.epoch) != change.epoch:
                await self._repeat(store, plan.shard, change.epoch)
        except L2Unavailable as error:
            raise InvalidationFailed(f"the invalidation is not sure to have happened: {error}") from error
        nodes = Confirmed()
        if wait:
            confirmer = Confirmer(store, monotonic, self.settings.staleness_bound_s, self._watches)
            nodes = await confirmer.wait(plan.shard, change, lambda: _NOBODY)
        return Receipt(
            plan.shard, change.epoch.decode(), change.seq, targets=dict(plan.targets),
            confirmed=nodes.confirmed, lapsed=nodes.lapsed,
        )  # fmt: skip

    async def probe(self) -> None:
        """Look whether L2 is there and still in the epochs in which this producer has spoken, and repeat there what it
        said lately: for those who may say nothing for a while; `L2Unavailable`."""
        store = self._live()
        await store.connect()
        for shard in {0, *self._epochs}:  # the first tells whether all are laid out as this producer believes
            reply = await store.probe(shard, _NOBODY, marks=False)
            if reply.epoch != self._epochs.get(shard, reply.epoch):
                await self._repeat(store, shard, reply.epoch)

    async def _send(self, order: Order, wait: str | None) -> Receipt:
        return await self.send(order.plan, wait)

    async def _said(self, store: Store, plan: Plan, *, probe: bool = False) -> Change:
        await store.connect()
        body = plan.body("", probe=probe)
        change = await store.invalidate(plan.shard, _NOBODY, plan.keys, plan.names, body)
        if self._publisher is not None:
            await self._publisher.publish(plan.shard, change, body)
        self._journal.note(plan, change.epoch)
        return change

    async def _repeat(self, store: Store, shard: int, epoch: bytes) -> None:
        """Say again what was said before this epoch began: what was acknowledged may have been lost with the server
        that did. `L2Unavailable`: the next call begins it anew."""
        asked_s = monotonic()
        for plan in self._journal.lost(shard, epoch):
            await self._said(store, plan)
        self._journal.repeated(shard, epoch, asked_s)
        self._epochs[shard] = epoch

    def _live(self) -> Store:
        if self._store is None:
            raise ConfigError("this producer is not open: use it inside `async with DirectProducer.open(...)`")
        return self._store


async def _closed(store: Store, publisher: Publisher | None) -> None:
    try:
        if publisher is not None:
            await publisher.close()
    finally:
        await store.close()
