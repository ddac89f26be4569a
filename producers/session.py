"""A direct producer from its opening to its closing: its connections and tasks, and which event loop opened it."""

from __future__ import annotations

import asyncio
from contextlib import suppress

from cachebus.assembly.backends import kafka_bus, redis_store, route_of
from cachebus.base.budget import Budget
from cachebus.base.clock import OtherClock, monotonic
from cachebus.base.home import Home, name_here
from cachebus.base.ignored import ignore_error
from cachebus.base.log import logger
from cachebus.core.membership import Confirmed, MembershipView
from cachebus.core.ports import Caller, Change, ProbeReply
from cachebus.errors import L2Unavailable
from cachebus.keys.key import Keyspace
from cachebus.keys.plan import Plan
from cachebus.observe import Counters
from cachebus.producers.publisher import Publisher
from cachebus.producers.refusals import Refusals, named, reason_of
from cachebus.producers.repeat import ProducerResender
from cachebus.resp import ended
from cachebus.settings import Settings
from cachebus.wire.event import WAKE
from cachebus.writing.confirm import Confirmer
from cachebus.writing.resend_buffer import ResendBuffer
from cachebus.writing.tell import Teller

_NOBODY = Caller("", 0, b"")
"""A producer is no node: it applies nothing, and nobody waits for it."""
_NOBODYS_ROW = "-"
_HINT_OF_NOTHING = WAKE
"""The hint of a fill lease of no key: whoever hears it does nothing."""
_TIDY_S = 10.0
"""How often what is too old to be repeated is dropped while nobody calls."""


class ProducerMemory:
    """What a producer knows as long as it exists, whether it is open or closed."""

    def __init__(self, settings: Settings) -> None:
        self.counters = Counters()
        self.resend_buffer = ResendBuffer(
            monotonic, Keyspace(settings.shards), settings.resend_max_bytes, self.counters
        )
        self.memberships = [MembershipView() for _ in range(settings.shards)]
        self.epochs: dict[int, bytes] = {}
        """By shard, the epoch in which all is sent that was sent for it: see `ProducerResender`."""
        self.identity = ""
        """See `Store.identity`; "" before it was asked."""


class ProducerSession:
    """An open producer. It is begun and ended in the process and event loop that made it."""

    def __init__(self, settings: Settings, memory: ProducerMemory, name: str) -> None:
        self._settings = settings
        self._memory = memory
        self.home = Home()
        self._who = f"{name} {name_here(settings.node_name)}"
        self.store = redis_store(settings, route_of(settings, monotonic), monotonic)
        self._publisher: Publisher | None = None
        if settings.bus == "kafka":
            self._publisher = Publisher(kafka_bus(settings, monotonic, None, memory.counters), monotonic)
        self._teller = Teller(memory.resend_buffer, self._publisher)
        self.repeating = ProducerResender(memory.resend_buffer, memory.epochs, self._reach_and_ask, self._invalidate)
        self._confirmer = Confirmer(
            self.store,
            monotonic,
            settings.staleness_bound_s,
            memory.memberships,
            keep_without_l2=settings.keep_without_l2,
        )
        self._reaching: list[asyncio.Task[None]] = []
        """Tasks that connect to the primaries that `begin` did not wait for."""
        self.timer: asyncio.TimerHandle | None = None
        """When old changes are dropped next; None while there are none."""
        self.refusals = Refusals(monotonic)
        self._over = False

    async def begin(self) -> None:
        """Connect; `L2Unavailable`, `ProtocolMismatch`, `ConfigError`. If it fails, it disconnects.

        A wrong number of shards must be refused here. Later, invalidations would go to shards that no cache reads, and
        that hold nothing by which they could be refused.
        """
        logger.use(self._settings.logs)
        try:
            await self._meet()
            if self._publisher is not None:
                await self._publisher.open()
        except BaseException:
            await ended(*self._reaching)
            await self._disconnect()
            raise

    async def end(self, timeout_s: float) -> None:
        """Give repetitions under way `timeout_s` to end, then disconnect."""
        self.abandon()
        try:
            await self.repeating.close(timeout_s)
        finally:
            for task in self._reaching:
                task.cancel()
            await self._disconnect()
            await ended(*self._reaching)

    def abandon(self) -> None:
        """Stop the timer. Awaits nothing."""
        self._over = True
        if self.timer is not None:
            self.timer.cancel()
            self.timer = None

    # -- what it sends and asks -----------------------------------------------------------------------------------

    async def invalidate(self, plan: Plan, *, probe: bool) -> Change:
        """Apply a plan within the time that L2 is given; `L2Unavailable` when that is not sure to have happened."""
        budget, place = self._budget(), self.store.lies_at(plan.shard)
        try:
            if not self.store.reaches(plan.shard):
                await budget.bounds(self.store.reach(plan.shard))
            change = await budget.spent_on(self._invalidate(plan, probe=probe))
        except L2Unavailable as error:
            self.refusals.refused({place, self.store.lies_at(plan.shard)}, error)
            raise
        self.refusals.took(self.store.lies_at(plan.shard))
        self.repeating.heard(plan.shard, change.epoch)
        return change

    async def wait_for_nodes(self, shard: int, change: Change) -> Confirmed:
        """Return when no node can serve what the change replaced."""
        return await self._confirmer.wait(shard, change, lambda: _NOBODY)

    async def look(self, shard: int) -> None:
        """Check whether a shard takes writes; in a new epoch, repeat what it may lack. Raises `L2Unavailable`, which
        names the primary."""
        budget, place = self._budget(), self.store.lies_at(shard)
        try:
            await budget.bounds(self.store.reach(shard))
            reply, _ = await budget.spent_on(self._ask(shard))
            # A primary that is read-only, or lacks replicas, still answers reads: only a write tells.
            await budget.spent_on(self.store.forget(shard, _NOBODY, _NOBODYS_ROW, lives=False))
            if self._publisher is None:  # scripts publish: where this user may not, L2 takes no invalidation
                await budget.spent_on(self.store.publish(shard, _HINT_OF_NOTHING))
            if shard == 0:
                self._memory.identity = await budget.spent_on(self.store.identity())
        except L2Unavailable as error:
            self.refusals.refused({place, self.store.lies_at(shard)}, error, looked=True)
            raise L2Unavailable(named(place, error)) from error
        self.refusals.took(self.store.lies_at(shard), looked=True)
        if reply.epoch != self._memory.epochs.get(shard, reply.epoch):
            await self.repeating.once(shard)

    def _budget(self) -> Budget:
        return Budget(monotonic, self._settings.l2_timeout_s)

    async def _invalidate(self, plan: Plan, *, probe: bool = False) -> Change:
        """Apply a plan in L2, and tell of it."""
        called_s = monotonic()
        body = plan.body(self._who, probe=probe)
        change = await self.store.invalidate(plan.shard, _NOBODY, plan.keys, plan.scopes, body)
        if self.timer is None and not self._over:
            self._tidy_later()
        await self._teller.tell(plan, change, body, called_s)
        return change

    async def _ask(self, shard: int) -> tuple[ProbeReply, OtherClock]:
        """Probe a shard; returns the reply, and the clock of its server. `L2Unavailable`."""
        clock, sent_at_s = OtherClock(), monotonic()
        reply = await self.store.probe(shard, _NOBODY, with_invalidated=False)
        clock.learn(reply.server_us / 1e6, sent_at_s, monotonic())
        return reply, clock

    async def _reach_and_ask(self, shard: int) -> tuple[ProbeReply, OtherClock]:
        await self.store.reach(shard)
        return await self._ask(shard)

    # -- beginning and end ----------------------------------------------------------------------------------------

    async def _meet(self) -> None:
        """Return when one shard has answered; the others are connected in the background. `L2Unavailable` if none can
        be reached, `ProtocolMismatch`."""
        shards = range(self._settings.shards)
        reaching = {asyncio.create_task(self.store.reach(shard), name="cachebus-reach"): shard for shard in shards}
        for task in reaching:
            task.add_done_callback(ignore_error)
        try:
            await self._first_answer(reaching)
        except BaseException:
            await ended(*reaching)
            raise
        self._reaching = [task for task in reaching if not task.done()]

    async def _first_answer(self, reaching: dict[asyncio.Task[None], int]) -> None:
        trouble: Exception = L2Unavailable(f"no answer in {self._settings.connect_timeout_s:g} s")
        lacking = set(reaching)
        with suppress(TimeoutError):
            async with asyncio.timeout(self._settings.connect_timeout_s):
                while lacking:
                    done, lacking = await asyncio.wait(lacking, return_when=asyncio.FIRST_COMPLETED)
                    for reached in sorted(done, key=reaching.__getitem__):
                        try:
                            reached.result()
                            await self._ask(reaching[reached])
                        except L2Unavailable as error:
                            trouble = L2Unavailable(reason_of(error))
                        else:
                            return
        raise trouble

    async def _disconnect(self) -> None:
        try:
            if self._publisher is not None:
                await self._publisher.close()
        finally:
            await self.store.close()

    def _tidy_later(self) -> None:
        self.timer = asyncio.get_running_loop().call_later(_TIDY_S, self._tidy)

    def _tidy(self) -> None:
        """Drop what is too old to be repeated, and say what was not told: a producer has no heartbeat that would."""
        self._memory.resend_buffer.forget_old()
        logger.tell_withheld()
        self.timer = None
        if self._memory.resend_buffer and not self._over:
            self._tidy_later()
