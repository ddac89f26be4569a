"""From committed rows of an outbox to every cache, at least once."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Final

from loguru import logger
from prometheus_client import Gauge

from cachebus.cascade import Cascade
from cachebus.clock import monotonic
from cachebus.errors import ConfigError
from cachebus.plan import Plan
from cachebus.settings import Settings
from consumers.apply import REFUSED, Applier
from consumers.outbox.database import TROUBLE, DeadRow, OutboxRow, RelayConnection, checked_url, connected, told
from consumers.patience import Patience
from consumers.worker import Worker
from producers.outbox.table import DEFAULT, OutboxTable

IDLE_GRACE_S: Final = 5.0
AWAY_S: Final = 1.0
"""So long rows wait whose primary is away, while others' go on."""
LOOK_EVERY_S: Final = 5.0
WITHOUT_L2_S: Final = 0.25
NAMED: Final = 5
"""Rows that are named in the log when a batch has more of them that can't be applied."""
REASON_MAX: Final = 500


@dataclass(frozen=True, slots=True)
class RelayOptions:
    """How a relay works; `ConfigError` for what can't be."""

    table: str = DEFAULT
    """"NAME" or "SCHEMA.NAME"."""
    batch: int = 500
    """The most rows that are in hand at a time."""
    poll_interval_s: float = 0.25
    """How often it looks for rows unasked: notifications are only a hint, and may be turned off."""
    hold_s: float = 5.0
    """How long a batch may be in hand while L2 does not answer: then its rows are free again, since an open
    transaction keeps the database from vacuuming."""

    def __post_init__(self) -> None:
        OutboxTable.of(self.table)
        if not 1 <= self.batch <= 10_000:
            raise ConfigError("an outbox relay's batch must be 1 to 10000 rows")
        if not (0.001 <= self.poll_interval_s <= 3600 and 0.05 <= self.hold_s <= 300):
            raise ConfigError("an outbox relay polls every 0.001 to 3600 s, and holds rows for 0.05 to 300 s")


class OutboxRelay(Worker):
    """Takes rows, applies them in L2, and only then lets them go; several share a table's work. `ConfigError`.

    Killed anywhere, its rows come again to whoever is there. What can't be applied is moved to the table of the dead
    with the reason; rows of other namespaces are left alone.
    """

    def __init__(
        self, database_url: str, settings: Settings, cascades: Iterable[Cascade] = (),
        options: RelayOptions | None = None,
    ) -> None:  # fmt: skip
        super().__init__("outbox", ("database", "l2"))
        self._url = checked_url(database_url)
        self._namespace = settings.namespace
        self._options = options or RelayOptions()
        self._table = OutboxTable.of(self._options.table)
        self._applier = Applier(settings, self.health, self.meters, cascades)
        self._patience = Patience("database", self.health)
        self._oldest_s = Gauge(
            "cachebus_worker_oldest_seconds", "How long the oldest row has waited, as last looked at", ["worker"],
            registry=self.meters.registry,
        ).labels(self.name)  # fmt: skip
        self._limit = self._options.batch
        self._woken = asyncio.Event()
        self._in_hand = asyncio.Lock()
        self._looked_s = float("-inf")
        self._unsure: set[int] = set()
        """Ids of rows that were applied and may not have been let go: they come again."""

    async def run(self) -> None:
        """Work, until drained; `ConfigError` for a URL that can't be read."""
        store = asyncio.create_task(self._hold_the_store(), name="cachebus-outbox-l2")
        work = asyncio.create_task(self._work(), name="cachebus-outbox")
        asked = asyncio.create_task(self._draining.wait(), name="cachebus-outbox-drain")
        try:
            await asyncio.wait((store, work, asked), return_when=asyncio.FIRST_COMPLETED)
            if asked.done():
                async with self._in_hand:  # the batch under way is the last
                    work.cancel()
        finally:
            for task in (work, store, asked):  # in this order: the work needs the store
                task.cancel()
                await asyncio.wait((task,))
        for task in (store, work):
            if not task.cancelled():
                task.result()

    async def _hold_the_store(self) -> None:
        """Connect to L2, however long that takes, while the database is seen to as well."""
        async with self._applier.opened():
            await asyncio.Event().wait()

    async def _work(self) -> None:
        while True:
            try:
                await self._work_there()
            except TROUBLE as error:
                await self._patience.wait(told(error))

    async def _work_there(self) -> None:
        """Work on one connection, until that fails."""
        idle_limit_s = self._options.hold_s + IDLE_GRACE_S
        async with connected(
            self._url, self._table, self._namespace, idle_limit_s=idle_limit_s, on_rows=self._woken.set
        ) as database:
            logger.info("outbox: connected, {} for the caches of {}", self._table.rows, self._namespace)
            while True:
                await self._look(database)
                self._woken.clear()
                # While L2 is not there, or not yet, nothing is taken: the rows lie well where they are.
                full = self.health.is_up("l2") and await self._batch(database)
                self._patience.over()
                if not full:
                    await self._rest()

    async def _rest(self) -> None:
        """Until rows may have come; or a little, where there may be some that lie only while L2 is not there."""
        pause_s = self._options.poll_interval_s
        with suppress(TimeoutError):
            async with asyncio.timeout(pause_s if self.health.is_up("l2") else min(pause_s, WITHOUT_L2_S)):
                await self._woken.wait()

    async def _look(self, database: RelayConnection) -> None:
        now_s = monotonic()
        if now_s - self._looked_s >= LOOK_EVERY_S:
            self._looked_s = now_s
            backlog = await database.backlog()
            self.meters.backlog.set(backlog.rows)
            self._oldest_s.set(backlog.oldest_s)

    async def _batch(self, database: RelayConnection) -> bool:
        """Take some rows, apply them, let them go. True where there may be more of them."""
        async with self._in_hand:
            try:
                async with database.taken(self._limit) as rows:
                    taken_s = monotonic()
                    good, dead = self._sorted(rows)
                    await database.bury(dead)
                    again = len(self._unsure.intersection(good))
                    away = await self._applied(list(good.values()))
                    waiting = [row for row in rows if row.id in good and good[row.id].shard in away]
                    await database.put_back(waiting, AWAY_S)
                    good = {number: plan for number, plan in good.items() if plan.shard not in away}
                    took_s = monotonic() - taken_s
                    self._unsure.update(good)
            except _HeldTooLong:
                # L2 is away, which is in the log, or so slow that less at a time is better.
                self._limit = max(1, self._limit // 2)
                return False
            self._unsure.clear()
        self._account([row for row in rows if row.id in good], dead, again, took_s)
        full, self._limit = len(rows) == self._limit, self._options.batch
        return full

    def _sorted(self, rows: Sequence[OutboxRow]) -> tuple[dict[int, Plan], list[DeadRow]]:
        """What the rows address, by id; and those that address nothing that can be, each with the reason."""
        plans: dict[int, Plan] = {}
        dead: list[DeadRow] = []
        for row in rows:
            try:
                plans[row.id] = self._applier.plan_of(row.command)
            except REFUSED as error:
                dead.append(DeadRow(row, str(error)[:REASON_MAX]))
            except Exception as error:  # noqa: BLE001 -- whatever one row does to us, those behind it must not wait
                dead.append(DeadRow(row, f"{type(error).__name__} while it was read"))
        return plans, dead

    async def _applied(self, plans: Sequence[Plan]) -> set[int]:
        """Which shards are away, where one primary of several is; `_HeldTooLong` where all of L2 is."""
        try:
            async with asyncio.timeout(self._options.hold_s):
                return await self._applier.apply_around(plans)
        except TimeoutError:
            raise _HeldTooLong from None

    def _account(self, applied: Sequence[OutboxRow], dead: Sequence[DeadRow], again: int, took_s: float) -> None:
        for row in applied:
            self.meters.lag_s.observe(max(0.0, row.age_s + took_s))
        self.meters.done("applied", len(applied) - again)
        self.meters.done("again", again)
        self.meters.done("dead", len(dead))
        for row, reason in dead[:NAMED]:
            logger.warning("outbox: row {} is set aside (attempt {}): {}", row.id, row.attempts + 1, reason)
        if len(dead) > NAMED:
            logger.warning("outbox: so are {} more, see {}", len(dead) - NAMED, self._table.dead)


class _HeldTooLong(Exception):
    """L2 did not answer while rows were in hand."""
