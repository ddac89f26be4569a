"""Commands into L2: those of one shard in one script, tried until it has happened."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Collection, Iterable, Sequence
from contextlib import asynccontextmanager, suppress
from typing import Final

from loguru import logger

from cachebus.cascade import Cascade
from cachebus.clock import monotonic
from cachebus.errors import CacheBusError, InvalidationFailed, InvalidKey, L2Unavailable
from cachebus.plan import Plan, Planner, joined
from cachebus.settings import Settings
from consumers.health import Health
from consumers.meters import Meters
from consumers.patience import TELL_EVERY_S, Patience
from producers.base import Orders
from producers.command import Command, InvalidCommand, parse
from producers.direct import DirectProducer

LOOK_EVERY_S: Final = 1.0

REFUSED: Final = (InvalidCommand, InvalidKey, ValueError)
"""What `Applier.plan_of` raises for a command that will never be applicable: a dead letter's reason."""


class Applier:
    """Applies commands as the caches' own verbs would, cascades included. Opened by `async with`.

    Invalidations commute and may be repeated, so any number of them are joined into one, and none need an order.
    """

    def __init__(self, settings: Settings, health: Health, meters: Meters, cascades: Iterable[Cascade] = ()) -> None:
        self._settings = settings
        self._cascades = tuple(cascades)
        self._planner: Planner = Orders(settings.shards, self._cascades).planner
        self._meters = meters
        self._patience = Patience("l2", health)
        self._producer = DirectProducer(settings)
        self._tell_from_s = float("-inf")

    @asynccontextmanager
    async def opened(self) -> AsyncIterator[Applier]:
        """Connected to L2, however long that takes; looks after the connection until it is left."""
        while True:
            try:
                await self._producer.__aenter__()
            except L2Unavailable as error:
                await self._patience.wait(error)
            else:
                break
        self._patience.over()
        looking = asyncio.create_task(self._look(), name="cachebus-applier")
        try:
            yield self
        finally:
            looking.cancel()
            with suppress(asyncio.CancelledError):
                await looking
            await self._producer.aclose()

    def plan_of(self, command: Command | bytes | str) -> Plan:
        """What the command addresses; one of `REFUSED` for what is no command, or addresses nothing that can be."""
        if isinstance(command, bytes | str):
            command = parse(command)
        return command.plan(self._planner)

    async def apply(self, plans: Sequence[Plan]) -> None:
        """Have L2, and all caches, let go of all that the plans address. Returns when it has happened, however long L2
        is away; cancelled, it may have happened in part."""
        if plans:
            self._meters.batch_size.observe(len(plans))
            self._meters.in_flight.inc(len(plans))
            try:
                async with asyncio.TaskGroup() as group:
                    for plan in joined(plans):
                        group.create_task(self._until_it_happened(plan))
            except* CacheBusError as troubles:  # such as ProtocolMismatch: no trial would help
                raise troubles.exceptions[0] from None
            finally:
                self._meters.in_flight.dec(len(plans))

    async def apply_what_can_be(self, plans: Sequence[Plan]) -> set[int]:
        """As `apply`, for those whose primary is there: gives the shards of which it is not, where nothing has
        happened, or not for sure. One primary of several that is away holds up nobody else's rows."""
        if not plans:
            return set()
        self._meters.batch_size.observe(len(plans))
        self._meters.in_flight.inc(len(plans))
        try:
            done = await asyncio.gather(*map(self._once, joined(plans)), return_exceptions=True)
        finally:
            self._meters.in_flight.dec(len(plans))
        away: dict[int, InvalidationFailed] = {}
        for plan, trouble in zip(joined(plans), done, strict=True):
            if isinstance(trouble, InvalidationFailed):
                away[plan.shard] = trouble
            elif isinstance(trouble, BaseException):
                raise trouble
        if away:
            shards = ", ".join(map(str, sorted(away)))
            self._tell_of_a_part(f"shards {shards}: {next(iter(away.values()))}")
        return set(away)

    async def apply_around(self, plans: Sequence[Plan], away: Collection[int] = ()) -> set[int]:
        """As `apply_what_can_be`, but while all primaries are away, it waits. `away`: shards that are known to be, and
        are not tried; gives those, and all that turned out to be."""
        mine = [plan for plan in plans if plan.shard not in away]
        more = await self.apply_what_can_be(mine)
        if more and not self.reaches_any:
            await self.apply(mine)
            more = set()
        return more.union(away)

    @property
    def reaches_any(self) -> bool:
        """Whether any primary is connected to."""
        return self._producer.reaches_any

    def _tell_of_a_part(self, why: str) -> None:
        """Now and then, where a part of L2 is away: all of it is in the worker's health."""
        now_s = monotonic()
        if self.reaches_any and now_s >= self._tell_from_s:
            self._tell_from_s = now_s + TELL_EVERY_S
            logger.warning("a part of l2 is out of reach, and what is for it waits: {}", why)

    async def _once(self, plan: Plan) -> None:
        if not await self._producer.reaches(plan.shard):
            raise InvalidationFailed(f"the primary of shard {plan.shard} is out of reach")
        await self._producer.send(plan)
        self._meters.scripts.inc()

    async def _until_it_happened(self, plan: Plan) -> None:
        while True:
            try:
                await self._producer.send(plan)
            except InvalidationFailed as error:
                await self._patience.wait(error)
            else:
                self._meters.scripts.inc()
                self._patience.over()
                return

    async def _look(self) -> None:
        """L2's state for those who watch, and its epochs: what was said before a failover is repeated after it."""
        while True:
            await asyncio.sleep(LOOK_EVERY_S)
            try:
                await self._producer.probe()
            except CacheBusError as error:
                if isinstance(error, L2Unavailable) and self.reaches_any:
                    self._tell_of_a_part(str(error))
                    self._patience.over()
                else:
                    self._patience.failed(error)
            else:
                self._patience.over()
