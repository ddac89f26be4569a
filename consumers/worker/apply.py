"""Applies plans to L2: those of one shard in one script, tried until it succeeds."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Collection, Iterable, Sequence
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field
from math import inf
from operator import attrgetter
from typing import Final, NamedTuple

from cachebus.base.backoff import RECONNECT_MAX_S
from cachebus.base.clock import monotonic
from cachebus.base.kept import keep
from cachebus.base.log import logger
from cachebus.cascade import Cascade
from cachebus.consumers.monitoring.health import WorkerHealth
from cachebus.consumers.monitoring.meters import Meters
from cachebus.consumers.worker.clean import clean
from cachebus.consumers.worker.retry import TELL_EVERY_S, Retry
from cachebus.errors import ConfigError, InvalidationFailed, InvalidKey, L2Unavailable, ProtocolMismatch
from cachebus.keys.plan import AT_ONCE, Plan, Planner, joined
from cachebus.producers.base import Orders
from cachebus.producers.command import Command, InvalidateAllTenants, InvalidCommand, Resource, apart, parse
from cachebus.producers.direct import DirectProducer
from cachebus.settings import Settings

LOOK_EVERY_S: Final = 1.0
PATIENCE_S: Final = 10.0
"""L2, or a part of it, that is away for longer ends a command that somebody waits for."""
AWAY: Final = "L2, or a part of it, is out of reach"
AWAY_S: Final = 1.0
"""How often a primary that is away is probed. Nothing else is sent there until it answers."""

REFUSED: Final = (InvalidCommand, InvalidKey, ValueError)
"""What `Applier.plan_of` raises for a command that can never be applied. It becomes a dead letter's reason."""
_ids = attrgetter("resource_id", "tenant_id")
ENCODED: Final = (bytes, str)
PERMANENT: Final = (ConfigError, ProtocolMismatch)
"""Errors that no waiting helps against."""


@dataclass
class Carried:
    """The plans that are not applied, by their place in what was given. All others are."""

    away: set[int] = field(default_factory=set)
    """Their primary is away, while another one answers. They are not applied, or not for sure."""
    late: set[int] = field(default_factory=set)
    """There was no time for them."""
    failed: dict[int, Exception] = field(default_factory=dict)
    """They can't be applied, each tried by itself."""


class Planned(NamedTuple):
    """Commands that can be applied, what each addresses, and why others can't."""

    commands: Sequence[Command | bytes | str]
    plans: Sequence[Plan]
    problems: Sequence[str]


class Applier:
    """Applies commands as the caches' own verbs do, cascades included. Opened by `async with`.

    Invalidations commute and may be repeated. So any number of them are joined into one, in any order.
    """

    def __init__(
        self, settings: Settings, health: WorkerHealth, meters: Meters, cascades: Iterable[Cascade] = ()
    ) -> None:
        self._settings = settings
        self._cascades = tuple(cascades)
        self._planner: Planner = Orders(settings.shards, self._cascades).planner
        self._health = health
        self._meters = meters
        # As often as nodes: what waits is applied when they are back, not seconds later.
        self._retry = Retry("l2", health, longest_s=RECONNECT_MAX_S)
        self._producer = DirectProducer(settings, name=f"worker {health.worker}")
        self._tell_from_s = float("-inf")
        self._is_open = asyncio.Event()
        self.away = set[int]()
        """Shards whose primaries are away, while another one answers. Nothing is sent to them until they answer."""
        self._refusing = set[int]()
        """Shards that are waited for, since no other primary is there. They recover by taking a plan: one that refuses
        writes answers probes all the same."""
        self.answers = False
        """Whether L2 has answered since it last failed. It may still refuse writes: that is for a try to find out."""

    def identity(self) -> str:
        """What tells this L2 from all others; "" before it was reached. A failover changes it."""
        return self._producer.identity

    @property
    def patience_s(self) -> float:
        """How long one of L2's answers may take, and a little more."""
        return 1.25 * self._settings.l2_timeout_s

    @asynccontextmanager
    async def opened(self, within_s: float = inf) -> AsyncIterator[Applier]:
        """Connect to L2, however long that takes, and probe it until this is left. `L2Unavailable` once it has taken
        `within_s`."""
        until_s = monotonic() + within_s
        while True:
            try:
                await self._producer.__aenter__()
            except L2Unavailable as error:
                if monotonic() >= until_s:
                    raise
                await self._retry.wait(error)
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

    def everything(self) -> list[Command]:
        """Commands for all that the namespace has."""
        return [InvalidateAllTenants(op="all_tenants", shard=shard) for shard in range(self._settings.shards)]

    def plan_of(self, command: Command | bytes | str) -> Plan:
        """What the command addresses; one of `REFUSED` for what is no command, or addresses nothing that can be."""
        if isinstance(command, ENCODED):
            command = parse(command)
        return command.plan(self._planner)

    def _spared(self, command: Command | bytes | str, why: str) -> Planned:
        """What can be applied of a command without what its cascades can't name. `why`: why it can't be as a whole."""
        planner = self._planner.sparing()
        try:
            command = parse(command) if isinstance(command, ENCODED) else command
            return Planned([command], [command.plan(planner)], planner.refused or ())
        except REFUSED:
            return Planned((), (), [why])

    def planned(self, commands: Sequence[Command | bytes | str]) -> Planned:
        """What can be applied of them, and why the rest can't. One that was made of a change is taken apart where it
        can't: a related name that no cache takes costs the others nothing, nor does one that a cascade makes."""
        try:
            return Planned(commands, [self.plan_of(command) for command in commands], ())
        except REFUSED as error:
            if len(commands) == 1:
                [command] = commands
                parts = [] if isinstance(command, bytes | str) else apart(command)
                if not parts:
                    return self._spared(command, str(error))
                several = [(f"{part.data_type}: ", self.planned([part])) for part in parts]
            else:
                several = [("", self.planned([command])) for command in commands]
        return Planned(
            [command for _, one in several for command in one.commands],
            [plan for _, one in several for plan in one.plans],
            [f"{of}{problem}" for of, one in several for problem in one.problems],
        )

    def size_of(self, resource: Resource) -> int:
        """How many keys and scopes it addresses at most."""
        return self._planner.size(resource.data_type, all_contexts=resource.contexts == "all")

    def plans_of(self, resources: Sequence[Resource]) -> list[Plan]:
        """What `plan_of` says of each, in less time for many; nothing where it refuses one of them. They are as
        `Session.named` says."""
        if not resources:
            return []
        data_type, _, _, contexts = resources[0]
        try:
            return self._planner.resources(data_type, map(_ids, resources), all_contexts=contexts == "all")
        except REFUSED:
            return []

    async def apply(self, plans: Sequence[Plan], within_s: float = inf) -> None:
        """Apply the plans. Raises the error of a plan that can't be applied, and `L2Unavailable` where L2, or one of
        its primaries, is away for longer than `within_s`. Some are applied then, and if it is cancelled."""
        until_s = monotonic() + within_s
        while plans:
            carried = await self.carry(plans, None if within_s == inf else max(0.0, until_s - monotonic()))
            for error in carried.failed.values():
                raise error
            plans = [plans[at] for at in sorted(carried.away | carried.late)]
            if plans:
                if monotonic() >= until_s:
                    raise L2Unavailable(AWAY)
                await asyncio.sleep(AWAY_S)

    async def carry(self, plans: Sequence[Plan], within_s: float | None = None) -> Carried:
        """Apply the plans, and return those that are not applied. `within_s`: how long it may take, in seconds.

        It waits while all of L2 is away. It does not wait for one primary of several: those plans are returned.
        """
        parts = _parts(plans, self.away)
        tried = set[int]().union(*parts)
        carried = Carried(away=set(range(len(plans))) - tried, late=tried)
        self._meters.batch_size.observe(len(plans))
        self._meters.in_flight.inc(len(plans))
        try:
            async with asyncio.timeout(within_s):
                await self._is_open.wait()  # until L2 is reached for the first time
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
        """Apply plans of one shard together. If they fail as a whole, apply each half by itself."""
        try:
            if not await self._apply_to_shard([plans[at] for at in part]):
                carried.away.update(part)
        except PERMANENT:
            raise
        except Exception as error:  # noqa: BLE001 -- whatever one plan does to us, the others go on
            if len(part) > 1:
                for half in part[: len(part) // 2], part[len(part) // 2 :]:
                    await self._carry(half, plans, carried)
                return
            carried.failed[part[0]] = error
        carried.late.difference_update(part)

    async def _apply_to_shard(self, plans: Sequence[Plan]) -> bool:
        """Try until the shard has taken the plans; False if its primary is away while another one answers."""
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
                    await self._retry.wait(error)
                else:
                    self._meters.scripts.inc()
                    self._refusing.discard(shard)
                    if not self._refusing:
                        self._retry.succeeded()
                    break
        return True

    def _is_away(self, shard: int, error: Exception) -> None:
        """Note that the shard's primary is away, and with it all shards that it serves."""
        self.away.update(self._producer.beside(shard))
        self._refusing.clear()
        self._retry.succeeded()
        self._tell_of_a_part(f"shard {shard}: {error}")

    def _tell_of_a_part(self, why: str) -> None:
        """Report that a part of L2 is away: in the worker's health, which stays good, and now and then in the log."""
        now_s = monotonic()
        self._health.note("l2", f"a part is out of reach, and what is for it waits: {clean(why)}")
        if now_s >= self._tell_from_s:
            self._tell_from_s = now_s + TELL_EVERY_S
            logger.warning("a part of l2 is out of reach, and what is for it waits: {}", why)

    async def _watch(self) -> None:
        async with asyncio.TaskGroup() as group:
            group.create_task(keep(self._keep_looking, "cachebus-applier-looks"))
            group.create_task(keep(self._look_at_those_away, "cachebus-applier-away"))

    async def _keep_looking(self) -> None:
        while True:
            await asyncio.sleep(LOOK_EVERY_S)
            await self._look()

    async def _look(self) -> None:
        """Probe every primary, for the worker's health. After a failover the probe repeats what may be lost."""
        try:
            await self._producer.probe()
        except Exception as error:  # noqa: BLE001 -- whatever it is, the next probe is sent
            if isinstance(error, L2Unavailable) and self._producer.takes_any and not self._refusing:
                self._retry.succeeded()
                self._tell_of_a_part(str(error))
                self.answers = True
            else:
                self.answers = False
                self._retry.failed(error)
        else:
            self.answers = True
            if not self._refusing:
                self._retry.succeeded()
            if not self.away:
                self._health.note("l2", "")

    async def _look_at_those_away(self) -> None:
        """Probe the primaries that are away, all at once: one that hangs delays nobody."""
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
        if self._producer.goes_on_without(shard):  # otherwise all of L2 is away, and plans wait for it
            try:
                await self._producer.probe_one(shard)
            except Exception:  # noqa: BLE001 -- as above
                return
        self.away.difference_update(beside)


def _parts(plans: Sequence[Plan], away: Collection[int]) -> list[list[int]]:
    """The places of plans that go together in one script, without those of shards that are away."""
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
