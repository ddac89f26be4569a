"""The write guard: between a database's commit and the invalidation that tells of it a process may die.

Before the transaction the guard invalidates, and leaves its token on everything that the write replaces. While it
stands nobody caches any of that: whoever reads reads the source. Leaving the block in order takes the token away and
invalidates once more. Killed anywhere in between, the process leaves a token that ends by itself, later than the
database would have let the transaction commit: nothing older than the commit was kept.
"""

from __future__ import annotations

import secrets
from collections import deque
from types import TracebackType
from typing import Self

from loguru import logger

from cachebus.base.clock import Clock
from cachebus.core.node import Node
from cachebus.errors import ConfigError
from cachebus.keys.plan import Plan
from cachebus.receipt import NOTHING_DONE, Receipt
from cachebus.settings import Settings
from cachebus.writing.resend_buffer import born_s
from cachebus.writing.write import Writer

MARGIN_S = 1.0


def guard_time_s(
    settings: Settings, timeout_s: float | None, db_timeout_s: float | None, largest_bound_s: float
) -> float:
    """For how long a guard stands at most; `ConfigError` where that can't keep the promise. Whichever node has the
    largest staleness bound may serve its memory for so long before it hears of the guard."""
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


class Guards:
    """The guards of one cache that stand, or may: another epoch of their shard, in which none of them does, is noticed
    whenever a probe tells of it, also behind their block."""

    def __init__(self, node: Node) -> None:
        self.node = node
        self._standing: list[dict[WriteGuard, None]] = [{} for _ in node.shards]
        self._left: deque[WriteGuard] = deque()
        self._judged = [shard.epoch for shard in node.shards]

    def stands(self, guard: WriteGuard) -> None:
        """It has been put up."""
        self._standing[guard._shard][guard] = None

    def ended(self, guard: WriteGuard) -> None:
        """Nothing can become of it any more."""
        self._standing[guard._shard].pop(guard, None)

    def left(self, guard: WriteGuard) -> None:
        """It stands until its time is over, if it stands."""
        self._left.append(guard)
        while self._left and self._left[0]._over:
            self.ended(self._left.popleft())

    def judge(self, shard: int) -> None:
        """To be called when a probe may have told of another epoch."""
        epoch = self.node.shards[shard].epoch
        if epoch != self._judged[shard]:
            undecided = [guard for guard in tuple(self._standing[shard]) if not guard._judged()]
            if not undecided:
                self._judged[shard] = epoch


class WriteGuard:
    """`async with cache.write_guard(...) as guard:` around a transaction; see `Cache.write_guard`."""

    def __init__(
        self, writer: Writer, guards: Guards, plan: Plan, time_s: float, clock: Clock, *, wait: bool, enabled: bool
    ) -> None:
        self._writer = writer
        self._guards = guards
        self._node = guards.node
        self._plan = plan
        self._shard = plan.shard
        self._time_s = time_s
        self._clock = clock
        self._wait = wait
        self._enabled = enabled
        self._began_s = self._stood_s = 0.0
        self._epoch = b""
        self._token = ""
        self.receipt: Receipt = NOTHING_DONE
        """The receipt of the guard itself inside the block, of the invalidation at its end behind it."""
        self.lost = False
        """Whether L2 is known to have begun another epoch while the guard stood (by a failover, a restart, a backup
        that gave it another replication id), which loses all guards: known behind a block that ended well; else, where
        L2 could not be asked, once it has answered again. What was loaded while it lacked this one lives for
        `guard_max_s` from then at the longest."""

    async def __aenter__(self) -> Self:
        if not self._enabled:
            return self
        if self._token:
            raise ConfigError("a write guard is for one block: ask for another one")
        self._token = secrets.token_hex(8)
        # From before it is asked for: whatever time the answer takes is time in which the guard may have stood.
        self._began_s = self._clock()
        self.receipt = await self._writer.guard(self._plan, self._token, int(self._time_s * 1000))
        self._stood_s, self._epoch = self._clock(), self.receipt.epoch.encode()
        self._guards.stands(self)
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if not self._enabled:
            return
        if kind is not None:
            # A COMMIT that raised, or was cancelled, may have happened, or may yet: only time tells.
            self._left(kind.__name__)
            return
        late = self._clock() - self._began_s >= self._time_s
        if late:
            self._node.counters.guards_left += 1
            logger.warning("a block outlasted its write guard of {:g} s: had this process died, no guard", self._time_s)
        try:
            self.receipt = await self._writer.unguard(self._plan, self._token, wait=self._wait)
        except BaseException as failed:
            self._left(type(failed).__name__, counted=late)
            raise
        if self.receipt.status == "pending":  # which stands for no epoch yet
            self._left("an end that waits for L2", counted=late)
            return
        self._guards.ended(self)
        if self.receipt.epoch.encode() != self._epoch:
            self._is_lost()

    def _left(self, why: str, *, counted: bool = False) -> None:
        """Its end did not take it away, as far as is known. It may have been lost before, which is told at once where
        that is known, or whenever it comes to be."""
        if self._judged() and self.lost:
            return
        self._guards.left(self)
        self._node.counters.guards_left += not counted
        logger.info("a write guard is left standing, for {}", why)

    @property
    def _over(self) -> bool:
        """Whether it is known to have stood to the end of its time."""
        view = self._node.shards[self._shard]
        return self.lost or (view.epoch == self._epoch and view.fresh_as_of_s >= self._until_s)

    def _judged(self) -> bool:
        """Look whether another epoch has begun; False where no probe that was sent later than it has been answered."""
        view = self._node.shards[self._shard]
        if view.fresh_as_of_s < self._stood_s:
            return False
        if view.epoch != self._epoch:
            self._guards.ended(self)
            if born_s(self._node.born_us[self._shard], self._node.server_clocks[self._shard]) < self._until_s:
                self._is_lost()
        return True

    @property
    def _until_s(self) -> float:
        return self._began_s + self._time_s

    def _is_lost(self) -> None:
        if not self.lost:
            self.lost = True
            self._node.counters.guards_lost += 1
            logger.warning("a write guard was lost with its epoch: what is loaded meanwhile may live for guard_max_s")
