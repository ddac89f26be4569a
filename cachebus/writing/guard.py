"""The write guard: between a database's commit and the invalidation that tells of it a process may die.

1. Before the transaction the guard invalidates, and leaves its token in L2 on everything that the write replaces.
2. While the token stands nobody caches any of that: whoever reads reads the source.
3. Leaving the block in order takes the token away, and invalidates once more.
4. Killed anywhere in between, the process leaves a token that ends by itself, later than the database would have let
   the transaction commit: nothing older than the commit was kept.
"""

from __future__ import annotations

import secrets
from collections import deque
from types import TracebackType
from typing import Any, Self

from cachebus.base.home import Home
from cachebus.base.log import logger
from cachebus.core.node import Node
from cachebus.core.shard import Shard
from cachebus.errors import CacheBusError, ConfigError
from cachebus.keys.plan import Plan
from cachebus.receipt import Receipt, disabled_receipt, pending_receipt
from cachebus.settings import Settings
from cachebus.writing.resend_buffer import born_s
from cachebus.writing.watched import WatchedSession
from cachebus.writing.write import Writer

MARGIN_S = 1.0


def guard_time_s(
    settings: Settings, timeout_s: float | None, db_timeout_s: float | None, largest_bound_s: float
) -> float:
    """For how long a guard stands at most, in seconds; `ConfigError` where that can't keep the promise.

    `largest_bound_s`: of the fleet. Whichever node has it may serve its memory for so long before it hears of the
    guard.
    """
    db_s = settings.db_timeout_s if db_timeout_s is None else db_timeout_s
    if db_s is None:
        raise ConfigError(
            "a write guard must outlast the transaction: say how long the database lets one live, by db_timeout_s "
            "(CACHEBUS_DB_TIMEOUT_S), and see that the database holds to it (as by transaction_timeout)"
        )
    bound_s = max(settings.staleness_bound_s, largest_bound_s)
    wanted_s = db_s + bound_s + MARGIN_S if timeout_s is None else timeout_s
    if not max(db_s, bound_s) < wanted_s <= settings.guard_max_s:
        raise ConfigError(
            f"a write guard of {wanted_s:g} s: timeout_s must exceed db_timeout_s ({db_s:g}) and staleness_bound_s "
            f"({bound_s:g}, the largest of the fleet), and may not exceed guard_max_s ({settings.guard_max_s:g}, "
            "CACHEBUS_GUARD_MAX_S)"
        )
    return wanted_s


class StandingGuard:
    """One guard that stands in L2, or may: since when and until when, and in which epoch."""

    __slots__ = ("epoch", "lost", "shard", "since_s", "until_s")

    def __init__(self, index: int, epoch: bytes, since_s: float, until_s: float) -> None:
        self.shard = index
        self.epoch = epoch
        self.since_s = since_s
        """When L2 had answered that it stands."""
        self.until_s = until_s
        self.lost = False
        """Whether it is known that its epoch ended before it did."""

    def is_over(self, shard: Shard) -> bool:
        """Whether it is known to have stood to the end of its time, or to be lost."""
        return self.lost or (shard.epoch == self.epoch and shard.fresh_as_of_s >= self.until_s)

    def lose(self) -> None:
        """Its epoch has ended before it did."""
        self.lost = True


class Guards:
    """The guards of one cache that stand, or may. Another epoch of their shard, in which none of them stands, is
    noticed whenever a probe tells of it, also behind their block."""

    def __init__(self, node: Node, writer: Writer, *, enabled: bool) -> None:
        self.node = node
        self.writer = writer
        self.enabled = enabled
        """False: a guard's block is only a block."""
        self._standing: list[dict[StandingGuard, None]] = [{} for _ in node.shards]
        self._abandoned: deque[StandingGuard] = deque()
        """Those that nobody will take away."""
        self._judged = [shard.epoch for shard in node.shards]
        """By shard: the last epoch in which it was looked which guards were lost."""

    def stand(self, index: int, epoch: bytes, until_s: float) -> StandingGuard:
        """Note a guard that was put up."""
        standing = StandingGuard(index, epoch, self.node.clock(), until_s)
        self._standing[index][standing] = None
        return standing

    def end(self, standing: StandingGuard) -> None:
        """Forget a guard: nothing can become of it any more."""
        self._standing[standing.shard].pop(standing, None)

    def leave(self, standing: StandingGuard, why: str, *, counted: bool = False) -> None:
        """A guard's end did not take it away, as far as is known: it stands until its time is over. It may have been
        lost before, which is told at once where that is known, or whenever it comes to be."""
        if self._is_judged(standing) and standing.lost:
            return
        self._abandoned.append(standing)
        while self._abandoned and self._abandoned[0].is_over(self.node.shards[self._abandoned[0].shard]):
            self.end(self._abandoned.popleft())
        self.node.counters.guards_left += not counted
        logger.info("a write guard is left standing, for {}", why)

    def lose(self, standing: StandingGuard) -> None:
        """A guard is lost with its epoch."""
        if not standing.lost:
            standing.lose()
            self.node.counters.guards_lost += 1
            logger.warning("a write guard was lost with its epoch: what is loaded meanwhile may live for guard_max_s")

    def judge(self, index: int) -> None:
        """Look which guards are lost; to be called when a probe may have told of another epoch."""
        epoch = self.node.shards[index].epoch
        if epoch != self._judged[index]:
            undecided = [standing for standing in tuple(self._standing[index]) if not self._is_judged(standing)]
            if not undecided:
                self._judged[index] = epoch

    def _is_judged(self, standing: StandingGuard) -> bool:
        """Look whether another epoch has begun; False where no probe that was sent later than the guard stood has been
        answered."""
        shard = self.node.shards[standing.shard]
        if shard.fresh_as_of_s < standing.since_s:
            return False
        if shard.epoch != standing.epoch:
            self.end(standing)
            born_us, clock = self.node.born_us[standing.shard], self.node.server_clocks[standing.shard]
            if born_s(born_us, clock) < standing.until_s:
                self.lose(standing)
        return True


class WriteGuard:
    """One block in which a transaction is guarded: `async with cache.write_guard(...) as guard:`.

    Made by `Cache.write_guard`, for one block. Entering raises `InvalidationFailed` when the guard is not sure to
    stand; nothing has been written then. Leaving in order raises `InvalidationFailed` when the invalidation at its end
    is not sure to have happened. An exception in the block passes. It leaves the guard to its time-out, since a COMMIT
    that raised may have happened, unless it is known that none was sent: see `nothing_written` and `watch`.
    """

    def __init__(self, guards: Guards, plan: Plan, time_s: float, home: Home, *, wait: bool) -> None:
        """`plan`: what is guarded. `time_s`: how long the guard stands at most, in seconds. `home`: where its cache is
        open. `wait`: as of `Writer`."""
        self._home = home
        self._guards = guards
        self._plan = plan
        self._time_s = time_s
        self._wait = wait
        self._began_s = 0.0
        self._token = ""
        self._standing: StandingGuard | None = None
        self._nothing_written = False
        self._watched: WatchedSession | None = None
        self.receipt: Receipt = pending_receipt(plan.shard) if guards.enabled else disabled_receipt(plan.shard)
        """The receipt of the guard itself inside the block, of the invalidation at its end behind it."""

    @property
    def lost(self) -> bool:
        """Whether L2 is known to have begun another epoch while the guard stood, which loses all guards: by a failover,
        a restart, a backup that gave it another replication id.

        It is known behind a block that ended well; else, where L2 could not be asked, once it has answered again. What
        was loaded while it lacked this guard lives for `guard_max_s` from then at the longest.
        """
        return self._standing is not None and self._standing.lost

    def nothing_written(self) -> None:
        """Say that no COMMIT was sent, nor will be: an exception then takes the guard away as a block's end in order
        does. To be called in the block, as before a validation error is raised."""
        self._nothing_written = True

    def watch(self, session: Any) -> None:
        """Have a session of SQLAlchemy's tell whether a COMMIT was tried, so that an exception before the first one
        takes the guard away. To be called in the block, before the session's first commit there.

        - `session`: a `Session` or `AsyncSession` through which all of the block's writes go

        Raises `ConfigError` for anything else, and for a second one.
        """
        if self._watched is not None:
            raise ConfigError("a write guard watches one session")
        self._watched = WatchedSession(session)

    async def __aenter__(self) -> Self:
        guards = self._guards
        if not self._home.here:
            raise self._home.elsewhere("write guard")
        guards.writer.record(self._plan)
        if not guards.enabled:
            return self
        if self._token:
            raise ConfigError("a write guard is for one block: ask for another one")
        self._token = secrets.token_hex(8)
        # From before it is asked for: whatever time the answer takes is time in which the guard may have stood.
        self._began_s = guards.node.clock()
        self.receipt = await guards.writer.guard(self._plan, self._token, int(self._time_s * 1000))
        epoch = self.receipt.epoch.encode()
        self._standing = guards.stand(self._plan.shard, epoch, self._began_s + self._time_s)
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        guards, standing = self._guards, self._standing
        tried = self._watched is None or self._watched.end()
        if standing is None:
            return
        if kind is not None:
            if self._nothing_written or not tried:
                await self._withdraw(standing, kind.__name__)
            else:
                # A COMMIT that raised, or was cancelled, may have happened, or may yet: only time tells.
                guards.leave(standing, kind.__name__)
            return
        late = self._is_late()
        try:
            self.receipt = await guards.writer.unguard(self._plan, self._token, wait=self._wait)
        except BaseException as failed:
            guards.leave(standing, type(failed).__name__, counted=late)
            raise
        if self.receipt.status == "pending":  # which stands for no epoch yet
            guards.leave(standing, "an end that waits for L2", counted=late)
            return
        guards.end(standing)
        if self.receipt.epoch.encode() != standing.epoch:
            guards.lose(standing)

    async def _withdraw(self, standing: StandingGuard, why: str) -> None:
        """Take the guard away behind a block that wrote nothing; what went wrong there passes, whatever becomes of
        this."""
        guards = self._guards
        try:
            self.receipt = await guards.writer.unguard(self._plan, self._token)
        except CacheBusError:
            guards.leave(standing, why)
        except BaseException:
            guards.leave(standing, why)
            raise
        else:
            if self.receipt.status == "pending":
                guards.leave(standing, why)
            else:
                guards.end(standing)

    def _is_late(self) -> bool:
        """Whether the block has outlasted its guard, which is counted and logged."""
        guards = self._guards
        late = guards.node.clock() - self._began_s >= self._time_s
        if late:
            guards.node.counters.guards_left += 1
            logger.warning("a block outlasted its write guard of {:g} s: had this process died, no guard", self._time_s)
        return late
