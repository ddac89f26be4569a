"""The probe, and all that keeps a node alive: it renews leases, heals gaps, reconnects, and tidies memory.

One supervisor task owns these loops. A probe that fails costs only time: leases lapse by themselves, and the data
path then validates in L2 or loads from the source.
"""

from __future__ import annotations

import asyncio
import random
from collections import defaultdict
from collections.abc import Callable, Coroutine, Hashable
from contextlib import suppress
from functools import partial

import anyio
from loguru import logger

from cachebus.base.backoff import Backoff
from cachebus.base.budget import Late
from cachebus.base.clock import Clock, boottime_s, monotonic
from cachebus.core.node import Node
from cachebus.core.ports import About, Bus, ProbeReply, Store
from cachebus.core.shard import NO_EPOCH, Probed
from cachebus.errors import BusUnavailable, CacheBusError, L2Unavailable
from cachebus.listening.receive import Receiver
from cachebus.resp import ended

SWEEP_PAUSE_S = 0.002
SWEEP_REST_S = 0.02
"""After a sweep, for each of its slices: a flood of scope drops costs at most a twentieth of the loop's time."""
TIDY_S = 10.0
"""At least so often what is too old to be repeated goes, also while nothing happens."""
SUSPENDED_S = 0.1
STARTED_AT_ONCE = 16
BEGINNINGS_MAX = 256
"""Shards of one primary of which a node reads at once where they are."""
PASSING = ("BUSY", "CLUSTERDOWN", "LOADING", "MASTERDOWN", "NOREPLICAS", "READONLY", "TRYAGAIN")
"""In refusals that end by themselves, as during a failover: they may lie in the text of another."""


def _bounds(about: About) -> str:
    return (
        f"staleness_bound_s {about.bound_ms / 1000:g}, guard_max_s {about.guard_ms / 1000:g} and "
        f"keep_without_l2 {str(about.keeps_without_l2).lower()}"
    )


class Heartbeat:
    """Tends every shard of a node."""

    def __init__(self, node: Node, store: Store, bus: Bus, clock: Clock, *, interval_s: float, grace_s: float) -> None:
        self._node = node
        self._store = store
        self._bus = bus
        self._clock = clock
        self._interval_s = interval_s
        self._grace_s = grace_s
        self._attention = [asyncio.Event() for _ in node.shards]
        self._asked = [False] * len(node.shards)
        self._turns = [asyncio.Lock() for _ in node.shards]
        """Never two questions about a shard at once: the older answer would lead it back."""
        self._beginnings: defaultdict[Hashable, asyncio.Semaphore]
        self._beginnings = defaultdict(partial(asyncio.Semaphore, BEGINNINGS_MAX))
        """By primary: one that hangs keeps no other waiting."""
        self._awake_s = boottime_s() - monotonic()
        self._task: asyncio.Task[None] | None = None
        self._first = 0
        self._told: dict[str, str] = {}
        self.loose_replicas = [0] * len(node.shards)
        """By shard: as of `ProbeReply`, the most that were seen."""
        self._gone = [False] * len(node.shards)
        self._out_of_reach: dict[str, dict[int, str]] = {"L2": {}, "bus": {}}
        """By part and shard: why."""
        self._pauses = [Backoff() for _ in node.shards]
        """Those after probes that were refused."""
        store.on_changed = self.nudge
        self.receiver: Receiver
        self.repeat: Callable[[int], Coroutine[object, object, None]]
        """Repeats in a shard's new epoch what this node has invalidated since that was born."""
        self.judge_guards: Callable[[int], object] = lambda _shard: None
        """Looks whether a shard's new epoch has lost guards."""
        self.forget_old: Callable[[], None]
        """Gives back the memory of what need not be repeated any more."""
        self._repeated = [shard.epoch for shard in node.shards]
        self._moved = [asyncio.Event() for _ in node.shards]
        """Set when a shard has begun another epoch, in which something may have to be repeated."""

    def nudge(self, shard: int) -> None:
        """Tend the shard soon: something is missing."""
        self._attention[shard].set()

    def prompt(self, shard: int) -> None:
        """Probe the shard at once, with what is applied by now: somebody waits for this node's row."""
        self._asked[shard] = True
        self._attention[shard].set()

    async def attach(self, timeout_s: float, sooner_s: float) -> None:
        """Connect, listen, and only then read where every shard is, so that no event falls in between. What can't be
        had in `timeout_s` is left to the loops, as long as any shard is there: those that are wait for the others
        `sooner_s`. `L2Unavailable` or `BusUnavailable` where none is; `ProtocolMismatch`."""
        attaching = {
            asyncio.create_task(self._attach(shard.index), name="cachebus-attach"): shard.index
            for shard in self._node.shards
        }
        began_s, lacking, troubles = self._clock(), dict(attaching), dict[int, Exception]()
        try:
            while lacking:
                some = len(lacking) + len(troubles) < len(attaching)
                left_s = began_s + (min(sooner_s, timeout_s) if some else timeout_s) - self._clock()
                done, _ = await asyncio.wait(lacking, timeout=max(0.0, left_s), return_when=asyncio.FIRST_COMPLETED)
                if not done:
                    break
                for task in done:
                    shard = lacking.pop(task)
                    try:
                        task.result()
                    except (L2Unavailable, BusUnavailable) as error:
                        troubles[shard] = error
        finally:
            await ended(*attaching)
        for shard in lacking.values():
            why = self._out_of_reach["L2"].get(shard)
            troubles[shard] = L2Unavailable(why or f"no answer in {timeout_s:g} s")
        if len(troubles) == len(attaching):
            raise min(troubles.items())[1]
        for shard, trouble in troubles.items():
            self._lacks("L2", shard, str(trouble))
        self._first = self._store.opened + self._bus.opened

    @property
    def reconnects(self) -> int:
        """How many connections to L2 or the bus were opened since the start."""
        return max(0, self._store.opened + self._bus.opened - self._first)

    async def _attach(self, shard: int) -> None:
        """Goes on where a server accepts and then is silent or late, as one that many nodes or shards come to at once,
        or refuses for a reason that passes."""
        pauses = Backoff()
        while True:
            await self._store.reach(shard)
            await self._bus.listen(shard)
            try:
                await self._begin(shard, "start")
            except L2Unavailable as error:
                passes = isinstance(error, Late) or any(word in str(error) for word in PASSING)
                if self._store.reaches(shard) and not passes:
                    raise
                self._out_of_reach["L2"][shard] = str(error)
                await asyncio.sleep(pauses.next_s())
                pauses.longer()
            else:
                self._out_of_reach["L2"].pop(shard, None)
                return

    async def _begin(self, shard: int, why: str) -> None:
        """Read where the shard is; not of too many at once, as each takes several steps, and all wait in one line."""
        async with self._beginnings[self._store.lies_at(shard)]:
            await self.receiver.begin(shard, why)

    def start(self) -> None:
        """Begin to tend, in a task of its own."""
        self._task = asyncio.create_task(self._run(), name="cachebus-heartbeat")

    async def stop(self) -> None:
        """End all loops."""
        if self._task is not None:
            self.cancel()
            await asyncio.wait([self._task])
            self._task = None

    def cancel(self) -> None:
        """Have all loops end, and wait for nothing."""
        if self._task is not None:
            self._task.cancel()

    async def _run(self) -> None:
        async with anyio.create_task_group() as group:
            group.start_soon(self._for_ever, self._keep_tidy)
            next_s = self._clock()
            for shard in range(len(self._node.shards)):
                # Apart: one of L2 and the bus that hangs must not keep the other from coming back.
                group.start_soon(self._for_ever, partial(self._tend, shard))
                group.start_soon(self._for_ever, partial(self._listen, shard))
                # Apart: a full buffer takes longer to repeat than a lease lasts, and a probe must not wait for it.
                group.start_soon(self._for_ever, partial(self._repeat, shard))
                # Not all at the same instants; but where the loop is late, the last must not wait for a turn of each.
                next_s += self._interval_s / len(self._node.shards)
                if shard + 1 < len(self._node.shards) and (next_s > self._clock() or shard % STARTED_AT_ONCE == 0):
                    await asyncio.sleep(max(0.0, next_s - self._clock()))

    async def _for_ever(self, step: Callable[[], Coroutine[object, object, None]]) -> None:
        """Repeat a step whatever becomes of it: a bug in one must not end the others, and must be seen."""
        while True:
            try:
                await step()
            except L2Unavailable:
                await asyncio.sleep(self._interval_s * random.uniform(0.5, 1.0))
            except CacheBusError as error:  # as ProtocolMismatch, after somebody laid L2 out anew
                self._tell("heartbeat", str(error))
                await asyncio.sleep(self._interval_s)
            except Exception:  # noqa: BLE001 (logged with its trace; the loops must go on)
                logger.exception("a step of the heartbeat failed; it goes on")
                await asyncio.sleep(self._interval_s)

    # -- steps ----------------------------------------------------------------------------------------------------

    async def _listen(self, shard: int) -> None:
        """Hear the shard's events, until they may not arrive any more."""
        await self._bus.deaf(shard)
        try:
            await self._bus.listen(shard)
        except BusUnavailable as error:
            self._lacks("bus", shard, str(error))
            return
        self._has("bus", shard)
        self.nudge(shard)

    def lacks(self, shard: int) -> bool:
        """Whether the shard is known to be out of reach in L2."""
        return shard in self._out_of_reach["L2"] or not self._store.reaches(shard)

    def _lacks(self, part: str, shard: int, why: str) -> None:
        """Log what is out of reach once for each reason, not for each shard, nor each attempt."""
        lacking = self._out_of_reach[part]
        if why not in lacking.values():
            logger.warning("{} out of reach: {}", part, why)
        lacking[shard] = why

    def _has(self, part: str, shard: int) -> None:
        lacking = self._out_of_reach[part]
        if lacking.pop(shard, None) is not None and not lacking:
            logger.info("{}: all is well again", part)

    def _tell(self, name: str, trouble: str) -> None:
        """Log a change once, not each attempt."""
        if trouble != self._told.get(name, ""):
            self._told[name] = trouble
            if trouble:
                logger.warning("{}: {}", name, trouble)
            else:
                logger.info("{}: all is well again", name)

    async def _tend(self, shard: int) -> None:
        """One turn: connect, probe, heal, then rest until the next turn is due or something is missing."""
        try:
            await self._store.reach(shard)
            await self._turn(shard)
        except L2Unavailable as error:
            self._lacks("L2", shard, str(error))
            if "NOREPLICAS" in str(error):  # so it waits for some
                self.loose_replicas[shard], self._gone[shard] = 0, False
                self._tell_of_replicas()
            if self._store.reaches(shard):  # refused, so the server is there; for a connection `reach` waits
                await asyncio.sleep(self._pauses[shard].next_s())
                self._pauses[shard].longer()

    async def _turn(self, shard: int) -> None:
        attention = self._attention[shard]
        attention.clear()
        self._asked[shard] = False
        await self.probe(shard)
        self._has("L2", shard)
        self._pauses[shard].reset()
        if self._node.shards[shard].epoch != self._repeated[shard]:
            self._moved[shard].set()
        if self._asked[shard]:
            return  # the probe was sent before the event came: it did not tell of it
        try:
            async with asyncio.timeout(self._interval_s):
                await attention.wait()
        except TimeoutError:
            return
        async with self._turns[shard]:
            await self._heal(shard)

    async def probe(self, shard: int) -> None:
        """Ask where the shard stands, renew the lease or heal; `L2Unavailable`."""
        async with self._turns[shard]:
            await self._probe(shard)

    async def _probe(self, shard: int) -> None:
        self._notice_suspension()
        node = self._node
        view = node.shards[shard]
        if view.epoch == NO_EPOCH:
            await self._begin(shard, "start")
            return
        sent_at_s = self._clock()
        view.sending()
        reply = await self._store.probe(shard, node.caller(shard), with_invalidated=False)
        now_s = self._clock()
        node.counters.l2_latency.observe(now_s - sent_at_s)
        probed = node.probed(shard, reply, sent_at_s, now_s)
        self._compare_bounds(shard)
        self._look_at_replicas(shard, reply)
        if probed is Probed.FOREIGN:
            await self._begin(shard, "epoch")
        elif probed is Probed.BEHIND:
            await self._heal(shard)
        self.judge_guards(shard)

    def _look_at_replicas(self, shard: int, reply: ProbeReply) -> None:
        """Note how many replicas a primary has that would go on writing when it is cut off from them. That they have
        gone is the very danger, and no time ends it, nor does a new epoch: the most that were seen count until it
        waits for some."""
        known, now = self.loose_replicas[shard], reply.loose_replicas
        self.loose_replicas[shard] = seen = 0 if now < 0 else max(known, now)
        now = max(0, now)
        gone = now < seen
        if gone != self._gone[shard] or seen != known:  # to look at thousands of shards costs more than a probe
            self._gone[shard] = gone
            self._tell_of_replicas()

    def _tell_of_replicas(self) -> None:
        if any(self._gone):
            what, then = "replicas of a primary are gone", "if they were promoted, it goes on"
        else:
            what, then = "a primary has replicas", "cut off from them it goes on"
        self._tell(
            "replicas",
            f"{what}, and its min-replicas-to-write is 0: {then} acknowledging what is lost once one is promoted, and "
            "renewing leases (G1, G3, G4, G7); see `cachebus doctor`"
            if any(self.loose_replicas)
            else "",
        )

    def _compare_bounds(self, shard: int) -> None:
        """Say once, and again when it changes, that other nodes have a larger staleness bound or longer guards, or keep
        what they load alone."""
        own, largest = self._node.about, self._node.largest[shard]
        self._tell(
            "bounds",
            f"nodes of this namespace have, or had, {_bounds(largest)}, this one has {_bounds(own)}: waits for the "
            "nodes last as the largest, which is never lowered"
            if largest != own
            else "",
        )

    async def _repeat(self, shard: int) -> None:
        """Wait for another epoch, and repeat in it what has to be. If yet another one begins meanwhile, all of it that
        was acknowledged before is repeated once more."""
        await self._moved[shard].wait()
        self._moved[shard].clear()
        epoch = self._node.shards[shard].epoch
        if epoch != self._repeated[shard]:
            await self.repeat(shard)  # what fails is tried again when the next probe has been answered
            self._repeated[shard] = epoch

    async def _heal(self, shard: int) -> None:
        """Give a gap the time that a reordered message needs, then read the log."""
        view = self._node.shards[shard]
        if view.has_gap and self._grace_s:
            await self._be_patient(shard)
        if view.has_gap:
            await self.receiver.catch_up(shard)

    async def _be_patient(self, shard: int) -> None:
        """Wait for what is missing; who is asked to probe at once goes on as soon as it has come."""
        attention = self._attention[shard]
        with suppress(TimeoutError):
            async with asyncio.timeout(self._grace_s * random.uniform(0.8, 1.2)):
                while self._node.shards[shard].has_gap:
                    attention.clear()
                    await attention.wait()

    def _notice_suspension(self) -> None:
        """A suspended machine's monotonic clock stands still: what the lease promised has long run out."""
        awake_s = boottime_s() - monotonic()
        if awake_s - self._awake_s > SUSPENDED_S:
            logger.warning("this machine was suspended for {:.1f} s: leases are void", awake_s - self._awake_s)
            for shard in range(len(self._node.shards)):
                self._node.void(shard, "suspended")
        self._awake_s = awake_s

    async def _keep_tidy(self) -> None:
        """Sweep after drops, and now and then for what has expired, in steps that leave the loop to others."""
        for _ in range(60):
            await asyncio.sleep(min(self._interval_s, TIDY_S))
            self.forget_old()
            if self._node.groups.untidy:
                break
        slices, began_s = 0, self._clock()
        for _ in self._node.sweep():
            slices += 1
            await asyncio.sleep(SWEEP_PAUSE_S)
        self._node.settle_doubts(began_s)
        await asyncio.sleep(slices * SWEEP_REST_S)
