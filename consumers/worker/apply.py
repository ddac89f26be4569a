"""Plans into L2: those of one shard in one script, tried until it has happened."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Collection, Iterable, Sequence
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field
from typing import Final, NamedTuple

from loguru import logger

from cachebus.base.clock import monotonic
from cachebus.cascade import Cascade
from cachebus.consumers.monitoring.health import Health
from cachebus.consumers.monitoring.meters import Meters
from cachebus.consumers.worker.clean import clean
from cachebus.consumers.worker.patience import TELL_EVERY_S, Patience
from cachebus.errors import ConfigError, InvalidationFailed, InvalidKey, L2Unavailable, ProtocolMismatch
from cachebus.keys.plan import AT_ONCE, Plan, Planner, joined
from cachebus.producers.base import Orders
from cachebus.producers.command import Command, InvalidCommand, apart, parse
from cachebus.producers.direct import DirectProducer
from cachebus.settings import Settings

LOOK_EVERY_S: Final = 1.0
AWAY_S: Final = 1.0
"""How often a primary that is away is looked at, beside all that goes on: nothing is tried there until it answers."""

REFUSED: Final = (InvalidCommand, InvalidKey, ValueError)
"""What `Applier.plan_of` raises for a command that will never be applicable: a dead letter's reason."""
ENCODED: Final = (bytes, str)
HOPELESS: Final = (ConfigError, ProtocolMismatch)
"""What no waiting helps against."""


@dataclass
class Carried:
    """What became of plans, which are named by their place in what was given; of all others L2 and all caches have let
    go."""

    away: set[int] = field(default_factory=set)
    """Those whose primary is away, while another one is there: nothing has happened, or not for sure."""
    late: set[int] = field(default_factory=set)
    """Those for which there was no time."""
    failed: dict[int, Exception] = field(default_factory=dict)
    """Those that can't be applied, each by itself, whatever is tried."""


class Planned(NamedTuple):
    """Commands that can be applied, what each addresses, and why others can't."""

    commands: Sequence[Command | bytes | str]
    plans: Sequence[Plan]
    problems: Sequence[str]


class Applier:
    """Applies commands as the caches' own verbs would, cascades included. Opened by `async with`.

    Invalidations commute and may be repeated, so any number of them are joined into one, and none need an order.
    """

    def __init__(self, settings: Settings, health: Health, meters: Meters, cascades: Iterable[Cascade] = ()) -> None:
        self._settings = settings
        self._cascades = tuple(cascades)
        self._planner: Planner = Orders(settings.shards, self._cascades).planner
        self._health = health
        self._meters = meters
        self._patience = Patience("l2", health)
        self._producer = DirectProducer(settings)
        self._tell_from_s = float("-inf")
        self._is_open = asyncio.Event()
        self.away = set[int]()
        """The shards whose primaries are away, while another one is there: they are not tried until they answer."""
        self._refusing = set[int]()
        """Shards of which all is waited for, since no other primary is there: to answer a probe is not enough."""
        self.answers = False
        """Whether L2 has answered since it last failed: it may refuse all the same, so that is worth a trial, and says
        nothing of its health."""

    def identity(self) -> str:
        """What tells this L2 from all others; "" before it was reached. A failover changes it."""
        return self._producer.identity

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
        try:
            self._is_open.set()
            await self._look()
            looking = asyncio.create_task(self._watch(), name="cachebus-applier")
            try:
                yield self
            finally:
                looking.cancel()
                with suppress(asyncio.CancelledError):
                    await looking
        finally:
            self._is_open.clear()
            self.away.clear()
            self.answers = False
            await self._producer.aclose()

    def plan_of(self, command: Command | bytes | str) -> Plan:
        """What the command addresses; one of `REFUSED` for what is no command, or addresses nothing that can be."""
        if isinstance(command, ENCODED):
            command = parse(command)
        return command.plan(self._planner)

    def planned(self, commands: Sequence[Command | bytes | str]) -> Planned:
        """What can be applied of them, and why the rest can't. One that was made of a change is taken apart where it
        can't: a related name that no cache takes costs the others nothing."""
        try:
            return Planned(commands, [self.plan_of(command) for command in commands], ())
        except REFUSED as error:
            if len(commands) == 1:
                [command] = commands
                parts = [] if isinstance(command, bytes | str) else apart(command)
                if not parts:
                    return Planned((), (), [str(error)])
                several = [(f"{part.data_type}: ", self.planned([part])) for part in parts]
            else:
                several = [("", self.planned([command])) for command in commands]
        return Planned(
            [command for _, one in several for command in one.commands],
            [plan for _, one in several for plan in one.plans],
            [f"{of}{problem}" for of, one in several for problem in one.problems],
        )

    async def apply(self, plans: Sequence[Plan]) -> None:
        """Have L2, and all caches, let go of all that the plans address. Returns when it has happened, however long L2,
        or any primary of it, is away; raises what a plan can't be applied for. Cancelled, it may have happened in
        part."""
        while plans:
            carried = await self.carry(plans)
            for error in carried.failed.values():
                raise error
            plans = [plans[at] for at in sorted(carried.away)]
            if plans:
                await asyncio.sleep(AWAY_S)

    async def carry(self, plans: Sequence[Plan], within_s: float | None = None) -> Carried:
        """As `apply`, but what waits for one primary of several is given back, and so is what `within_s` was too short
        for, and what can't be applied at all."""
        parts = _parts(plans, self.away)
        tried = set[int]().union(*parts)
        carried = Carried(away=set(range(len(plans))) - tried, late=tried)
        self._meters.batch_size.observe(len(plans))
        self._meters.in_flight.inc(len(plans))
        try:
            async with asyncio.timeout(within_s):
                await self._is_open.wait()  # before that L2 was not reached for the first time
                async with asyncio.TaskGroup() as group:
                    for part in parts:
                        group.create_task(self._carry(part, plans, carried))
        except TimeoutError:
            pass
        except BaseExceptionGroup as troubles:
            raise troubles.exceptions[0] from None
        finally:
            self._meters.in_flight.dec(len(plans))
        return carried

    async def _carry(self, part: Sequence[int], plans: Sequence[Plan], carried: Carried) -> None:
        """Plans of one shard together; where they fail as a whole, each half by itself."""
        try:
            if not await self._happened([plans[at] for at in part]):
                carried.away.update(part)
        except HOPELESS:
            raise
        except Exception as error:  # noqa: BLE001 -- whatever one plan does to us, the others go on
            if len(part) > 1:
                for half in part[: len(part) // 2], part[len(part) // 2 :]:
                    await self._carry(half, plans, carried)
                return
            carried.failed[part[0]] = error
        carried.late.difference_update(part)

    async def _happened(self, plans: Sequence[Plan]) -> bool:
        """Tried until it has happened; False where another primary goes on meanwhile."""
        shard = plans[0].shard
        for plan in joined(plans):
            while True:
                try:
                    if not await self._producer.reaches(shard) and self._producer.goes_on_without(shard):
                        raise InvalidationFailed(f"the primary of shard {shard} is out of reach")
                    await self._producer.send(plan)
                except InvalidationFailed as error:
                    if self._producer.goes_on_without(shard):
                        self._is_away(shard, error)
                        return False
                    self._refusing.add(shard)
                    self.answers = False
                    await self._patience.wait(error)
                else:
                    self._meters.scripts.inc()
                    self._refusing.discard(shard)
                    if not self._refusing:
                        self._patience.over()
                    break
        return True

    def _is_away(self, shard: int, error: Exception) -> None:
        """With it all that lie at its primary."""
        self.away.update(self._producer.beside(shard))
        self._refusing.clear()
        self._patience.over()
        self._tell_of_a_part(f"shard {shard}: {error}")

    def _tell_of_a_part(self, why: str) -> None:
        """Where a part of L2 is away: in the worker's health, which is good all the same, and now and then in the log.
        All of it is told as what is waited for."""
        now_s = monotonic()
        self._health.note("l2", f"a part is out of reach, and what is for it waits: {clean(why)}")
        if now_s >= self._tell_from_s:
            self._tell_from_s = now_s + TELL_EVERY_S
            logger.warning("a part of l2 is out of reach, and what is for it waits: {}", why)

    async def _watch(self) -> None:
        async with asyncio.TaskGroup() as group:
            group.create_task(self._keep_looking())
            group.create_task(self._look_at_those_away())

    async def _keep_looking(self) -> None:
        while True:
            await asyncio.sleep(LOOK_EVERY_S)
            await self._look()

    async def _look(self) -> None:
        """L2's state for those who watch, and its epochs: what was said before a failover is repeated after it."""
        try:
            await self._producer.probe()
        except Exception as error:  # noqa: BLE001 -- whatever comes of it, it goes on looking
            if isinstance(error, L2Unavailable) and self._producer.takes_any and not self._refusing:
                self._patience.over()
                self._tell_of_a_part(str(error))
                self.answers = True
            else:
                self.answers = False
                self._patience.failed(error)
        else:
            self.answers = True
            if not self._refusing:
                self._patience.over()
            if not self.away:
                self._health.note("l2", "")

    async def _look_at_those_away(self) -> None:
        """One that hangs takes its time here, where nobody waits for it."""
        while True:
            await asyncio.sleep(AWAY_S)
            left = set(self.away)
            looks = list[Awaitable[None]]()
            while left:
                shard = min(left)
                there = left.intersection(self._producer.beside(shard))
                left -= there
                looks.append(self._look_at(shard, there))
            await asyncio.gather(*looks)

    async def _look_at(self, shard: int, beside: Collection[int]) -> None:
        if self._producer.goes_on_without(shard):  # else all of L2 is away, and waited for
            try:
                await self._producer.probe_one(shard)
            except Exception:  # noqa: BLE001 -- as above
                return
        self.away.difference_update(beside)


def _parts(plans: Sequence[Plan], away: Collection[int]) -> list[list[int]]:
    """The places of plans that can go together, less those of shards that are away."""
    made: list[list[int]] = []
    open_parts: dict[int, list[int]] = {}
    sizes: dict[int, int] = {}
    for at, plan in enumerate(plans):
        if plan.shard in away:
            continue
        size = max(len(plan.keys), len(plan.scopes))
        if plan.shard not in open_parts or sizes[plan.shard] + size > AT_ONCE:
            open_parts[plan.shard], sizes[plan.shard] = [], 0
            made.append(open_parts[plan.shard])
        open_parts[plan.shard].append(at)
        sizes[plan.shard] += size
    return made
