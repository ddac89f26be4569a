"""Invalidations straight to L2, for write paths that read nothing: the same scripts, no memory, no subscription."""

from __future__ import annotations

import asyncio
from collections.abc import Collection, Iterable
from contextlib import suppress
from functools import partial
from types import TracebackType
from typing import Self

from cachebus.assembly.factory import kafka_bus, redis_store, route_of
from cachebus.base.budget import Budget
from cachebus.base.clock import OtherClock, monotonic
from cachebus.base.home import Home
from cachebus.cascade import Cascade
from cachebus.core.membership import Confirmed, MembershipView
from cachebus.core.ports import Caller, Change, ProbeReply, Store
from cachebus.errors import CacheBusError, ConfigError, InvalidationFailed, L2Unavailable
from cachebus.keys.key import Keyspace
from cachebus.keys.plan import Plan
from cachebus.observe import Counters
from cachebus.producers.base import Order, Producer
from cachebus.producers.publishing import Publisher
from cachebus.producers.refusing import Refusals, named, told
from cachebus.producers.repeating import Repeating
from cachebus.receipt import Receipt
from cachebus.resp import ended, heard
from cachebus.settings import Settings
from cachebus.writing.confirm import Confirmer, check_wait
from cachebus.writing.resend_buffer import ResendBuffer

_NOBODY = Caller("", 0, b"")
_NOBODYS_LINE = "-"
_AT_ONCE_S = 0.05
_TIDY_S = 10.0
"""How often what is too old to be repeated goes while nobody calls."""


class DirectProducer(Producer):
    """`async with DirectProducer.open(url) as producer: await producer.invalidate("agent_config", "a7", "acme")`.

    Namespace and shard count must be those of the caches. Each call is one atomic step in L2 and returns its receipt,
    or raises `InvalidationFailed` when it is not sure to have happened. A lost connection is reopened by the next call.

    A producer that has just opened has yet to learn which nodes there are: its first `wait="nodes"` on a shard lasts
    the whole staleness bound, the largest that any cache has. One that meets another epoch than before (a failover)
    repeats there what it was called for since that epoch was born, within the last minute: in a task of its own, so no
    call waits for it or fails by it.

    With `bus="kafka"` it publishes there what L2 has taken. It waits for no broker: what Kafka does not take, the
    caches find by their probes, within the staleness bound.
    """

    def __init__(self, settings: Settings | str | None = None, cascades: Iterable[Cascade] = ()) -> None:
        self.settings = Settings.of(settings)
        if self.settings.url.get_secret_value().startswith("memory://"):
            raise ConfigError("a producer needs a shared store: memory:// is inside one process")
        super().__init__(self.settings.shards, cascades)
        self._store: Store | None = None
        self._home: Home
        self._publisher: Publisher | None = None
        self._repeating: Repeating | None = None
        self._reaching: list[asyncio.Task[None]] = []
        """Connects to those primaries that nobody waited for."""
        self._views = [MembershipView() for _ in range(self.settings.shards)]
        self._confirmer: Confirmer | None = None
        self._counters = Counters()
        self._resend_buffer = ResendBuffer(
            monotonic, Keyspace(self.settings.shards), self.settings.resend_max_bytes, self._counters
        )
        self._timer: asyncio.TimerHandle | None = None
        self._epochs: dict[int, bytes] = {}
        """By shard: as of `Repeating`."""
        self._refusals = Refusals(monotonic)

    @classmethod
    def open(cls, settings: Settings | str | None = None, cascades: Iterable[Cascade] = ()) -> Self:
        """A producer for the store at a URL or of settings, to be entered; `ConfigError`."""
        return cls(settings, cascades)

    async def __aenter__(self) -> Self:
        store = redis_store(self.settings, route_of(self.settings, monotonic), monotonic)
        publisher = None
        if self.settings.bus == "kafka":
            publisher = Publisher(kafka_bus(self.settings, monotonic, None, self._counters), monotonic)
        try:
            # Refused here, if at all: where the caches have another number of shards, what this producer says of most
            # tenants would go to shards that nobody reads, which have nothing that could refuse it.
            await self._met(store)
            if publisher is not None:
                await publisher.open()
        except BaseException:
            await _closed(store, publisher)
            raise
        self._store, self._publisher, self._home = store, publisher, Home()
        self._repeating = Repeating(
            self._resend_buffer, self._epochs, partial(self._reached_and_asked, store), partial(self._said, store)
        )
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.aclose()

    async def aclose(self) -> None:
        """Let end within `close_timeout_s` what is being repeated, and give the connection back. Closing twice is
        harmless. `ConfigError` elsewhere than where it was opened."""
        elsewhere = self._store is not None and not self._home.here
        if elsewhere and not self._home.gone:
            raise self._home.close_elsewhere("producer")
        store, self._store, self._confirmer = self._store, None, None
        publisher, self._publisher = self._publisher, None
        repeating, self._repeating = self._repeating, None
        reaching, self._reaching = self._reaching, []
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        if elsewhere:
            raise self._home.close_elsewhere("producer")
        if store is not None:
            try:
                if repeating is not None:
                    await repeating.close(self.settings.close_timeout_s)
            finally:
                for each in reaching:
                    each.cancel()
                await _closed(store, publisher)
                await ended(*reaching)

    @property
    def takes_any(self) -> bool:
        """Whether any primary is connected to that does not refuse all."""
        return self._takes_elsewhere(frozenset())

    def beside(self, shard: int) -> list[int]:
        """The shards that lie where this one does, it among them."""
        store, place = self._live(), self._live().lies_at(shard)
        return [each for each in range(self.settings.shards) if each == shard or store.lies_at(each) == place]

    def goes_on_without(self, shard: int) -> bool:
        """Whether another primary than the shard's is connected to, and does not refuse all."""
        return self._takes_elsewhere({self._live().lies_at(shard)})

    def _takes_elsewhere(self, places: Collection[object]) -> bool:
        store = self._live()
        return any(
            store.reaches(each) and (place := store.lies_at(each)) not in places and place not in self._refusals
            for each in range(self.settings.shards)
        )

    async def reaches(self, shard: int) -> bool:
        """Whether the shard's primary is connected to, or can be at once; else it is tried, and nobody waits."""
        store = self._live()
        if not store.reaches(shard):
            with suppress(CacheBusError, TimeoutError):
                async with asyncio.timeout(_AT_ONCE_S):
                    await store.reach(shard)
        return store.reaches(shard)

    async def send(self, plan: Plan, wait: str | None = None) -> Receipt:
        """Apply a plan: what the verbs do with theirs; `InvalidationFailed`."""
        check_wait(wait)
        store, repeating = self._live(), self._repeating
        place = store.lies_at(plan.shard)
        try:
            budget = Budget(monotonic, self.settings.l2_timeout_s)
            if not store.reaches(plan.shard):
                await budget.bounds(store.reach(plan.shard))
            change = await budget.spent_on(self._said(store, plan, probe=bool(wait)))
        except L2Unavailable as error:
            self._refusals.refused({place, store.lies_at(plan.shard)}, error)
            raise InvalidationFailed(f"the invalidation is not sure to have happened: {told(error)}") from error
        self._refusals.took(store.lies_at(plan.shard))
        if repeating is not None:
            repeating.heard(plan.shard, change.epoch)
        nodes = Confirmed()
        if wait:
            nodes = await self._waits(store).wait(plan.shard, change, lambda: _NOBODY)
        return Receipt(
            plan.shard,
            change.epoch.decode(),
            change.seq,
            targets=dict(plan.targets),
            confirmed=nodes.confirmed,
            lapsed=nodes.lapsed,
        )

    async def probe(self) -> None:
        """Look whether each primary of L2 takes what it is given, and is still in the epochs in which this producer has
        spoken, and repeat in others what they may lack: for those who may say nothing for a while; `L2Unavailable`,
        which names those that are away or refuse."""
        store = self._live()
        # The first tells whether all are laid out as this producer believes.
        one_of_each = {store.lies_at(each): each for each in range(self.settings.shards)}
        self._refusals.only(one_of_each.keys())
        shards = {0, *self._epochs, *one_of_each.values()}
        looks = (self._look(store, shard) for shard in shards)
        troubles = [one for one in await asyncio.gather(*looks, return_exceptions=True) if one is not None]
        for trouble in troubles:
            if not isinstance(trouble, L2Unavailable):
                raise trouble
        if troubles:
            raise L2Unavailable("; ".join(dict.fromkeys(map(str, troubles))))

    async def probe_one(self, shard: int) -> None:
        """As `probe`, the shard's primary alone; `L2Unavailable`."""
        await self._look(self._live(), shard)

    async def _look(self, store: Store, shard: int) -> None:
        budget, place = Budget(monotonic, self.settings.l2_timeout_s), store.lies_at(shard)
        try:
            await budget.bounds(store.reach(shard))
            reply, _ = await budget.spent_on(self._asked(store, shard))
            # A primary that is read-only, or lacks replicas, answers what reads: only what would write tells.
            await budget.spent_on(store.forget(shard, _NOBODY, _NOBODYS_LINE, lives=False))
        except L2Unavailable as error:
            self._refusals.refused({place, store.lies_at(shard)}, error, looked=True)
            raise L2Unavailable(named(place, error)) from error
        self._refusals.took(store.lies_at(shard), looked=True)
        if self._repeating is not None and reply.epoch != self._epochs.get(shard, reply.epoch):
            await self._repeating.once(shard)

    async def _met(self, store: Store) -> None:
        """Return when a shard has answered, and go on to reach the others; `L2Unavailable` where none can be reached,
        `ProtocolMismatch`."""
        shards = range(self.settings.shards)
        reaching = {asyncio.create_task(store.reach(shard), name="cachebus-reach"): shard for shard in shards}
        trouble: Exception = L2Unavailable(f"no answer in {self.settings.connect_timeout_s:g} s")
        lacking = set(reaching)
        for each in reaching:
            each.add_done_callback(heard)
        try:
            with suppress(TimeoutError):
                async with asyncio.timeout(self.settings.connect_timeout_s):
                    while lacking:
                        done, lacking = await asyncio.wait(lacking, return_when=asyncio.FIRST_COMPLETED)
                        for reached in sorted(done, key=reaching.__getitem__):
                            try:
                                reached.result()
                                await self._asked(store, reaching[reached])
                            except L2Unavailable as error:
                                trouble = L2Unavailable(told(error))
                            else:
                                self._reaching = [task for task in reaching if not task.done()]
                                return
            raise trouble
        except BaseException:
            await ended(*reaching)
            raise

    async def _send(self, order: Order, wait: str | None) -> Receipt:
        return await self.send(order.plan, wait)

    async def _said(self, store: Store, plan: Plan, *, probe: bool = False) -> Change:
        called_s = monotonic()
        body = plan.body("", probe=probe)
        change = await store.invalidate(plan.shard, _NOBODY, plan.keys, plan.scopes, body)
        if self._publisher is not None:
            await self._publisher.publish(plan.shard, change, body)
        self._resend_buffer.note(plan, change.epoch, called_s)
        if self._timer is None:
            self._timer = asyncio.get_running_loop().call_later(_TIDY_S, self._keep_tidy)
        return change

    def _keep_tidy(self) -> None:
        """Give memory back while nobody calls; a producer has no heartbeat that would."""
        self._resend_buffer.forget_old()
        again = bool(self._resend_buffer) and self._store is not None
        self._timer = asyncio.get_running_loop().call_later(_TIDY_S, self._keep_tidy) if again else None

    async def _reached_and_asked(self, store: Store, shard: int) -> tuple[ProbeReply, OtherClock]:
        await store.reach(shard)
        return await self._asked(store, shard)

    @staticmethod
    async def _asked(store: Store, shard: int) -> tuple[ProbeReply, OtherClock]:
        """Where the shard stands, and what its server's clock shows; `L2Unavailable`."""
        clock, sent_at_s = OtherClock(), monotonic()
        reply = await store.probe(shard, _NOBODY, with_invalidated=False)
        clock.heard(reply.server_us / 1e6, sent_at_s, monotonic())
        return reply, clock

    def _waits(self, store: Store) -> Confirmer:
        if self._confirmer is None:
            self._confirmer = Confirmer(
                store,
                monotonic,
                self.settings.staleness_bound_s,
                self._views,
                keep_without_l2=self.settings.keep_without_l2,
            )
        return self._confirmer

    def _live(self) -> Store:
        if self._store is None:
            raise ConfigError("this producer is not open: use it inside `async with DirectProducer.open(...)`")
        if not self._home.here:
            raise self._home.elsewhere("producer")
        return self._store


async def _closed(store: Store, publisher: Publisher | None) -> None:
    try:
        if publisher is not None:
            await publisher.close()
    finally:
        await store.close()
