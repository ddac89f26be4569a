"""`cachebus tail`: events as they happen."""

from __future__ import annotations

import asyncio
import sys
from contextlib import suppress
from typing import Annotated, Final

import typer

from cachebus.base.clock import monotonic
from cachebus.cli.operate.events import Filter, line_of
from cachebus.cli.operate.layout import layout_of
from cachebus.cli.operate.listening import bus_of
from cachebus.cli.operate.look import AsJson, shards_looked_at
from cachebus.cli.performance import until_signalled
from cachebus.cli.settings import Namespace, Url, settings_for
from cachebus.core.ports import Bus
from cachebus.errors import BusUnavailable, ConfigError, L2Unavailable
from cachebus.observe import Counters
from cachebus.settings import Settings
from cachebus.tools.doctor.hearing import apart
from cachebus.tools.doctor.primaries import route_to

Count = Annotated[int, typer.Option("--count", min=0, help="End after so many events; 0: not by itself.")]
LOOK_S = 0.2
TELL_EVERY_S: Final = 10.0
"""So often it is told how many events were passed over."""


def tail(url: Url = None, namespace: Namespace = None, count: Count = 0, as_json: AsJson = False) -> None:
    """Show invalidations and writes as they happen: when, seq, who, which keys, which scopes and tags.

    Only listens: nothing is written, and no topic is made. What happened before is shown by `cachebus log`. Events that
    another key has signed than those of CACHEBUS_KAFKA_EVENTS_KEY are not shown; how many, is said. Where one server of
    several can't be reached, or is lost, that is said, and the others are listened to. Ends with Ctrl-C. Exit status: 0
    after --count, 2 if any server could not be reached or was lost, or Kafka has no such topic.
    """
    until_signalled(_tail(settings_for(url, namespace), count, as_json))


async def _tail(settings: Settings, count: int, as_json: bool) -> None:
    layout = await layout_of(settings)
    if layout.bus != settings.bus:
        raise ConfigError(f"the events of {settings.namespace} go over {layout.bus}: set CACHEBUS_BUS={layout.bus}")
    settings, shards = layout.over(settings), layout.shards
    heard, counters = asyncio.Queue[tuple[int, bytes]](), Counters()
    route = await route_to(settings)
    bus = bus_of(settings, route, lambda shard, message: heard.put_nowait((shard, message)), counters)
    passed_over, missed = _PassedOver(counters), _Missed(bus, shards)
    try:
        await _say_what_is_apart(settings)
        try:
            await bus.connect()
        except BusUnavailable as error:
            if len(missed.now()) == shards:
                raise
            missed.look(str(error))
        sys.stderr.write(f"listening to {_count(shards - missed.count, 'shard')} of {settings.namespace}\n")
        shown = 0
        while not count or shown < count:
            found = await _next(heard, passed_over, missed)
            line = line_of(*found, Filter(), as_json=as_json)
            if line:
                sys.stdout.write(line + "\n")
                sys.stdout.flush()
                shown += 1
        if missed.count:
            raise L2Unavailable(f"that is not all: {missed}")
    finally:
        passed_over.tell()
        await bus.close()


async def _say_what_is_apart(settings: Settings) -> None:
    """Say whether the nodes hear, and sign, otherwise than these settings."""
    if settings.bus == "kafka":
        with suppress(L2Unavailable):  # it is for the bus to say what can be heard
            shards, _ = await shards_looked_at(settings)
            for finding in apart(shards, settings):
                sys.stderr.write(f"cachebus: {finding.check}: {finding.says}: {finding.otherwise}\n")


class _PassedOver:
    """Says how many events were not shown as they can't be believed, or read: the first at once."""

    def __init__(self, counters: Counters) -> None:
        self._counters = counters
        self._said = 0, 0
        self._from_s = monotonic()

    def look(self) -> None:
        """Tell, if it is time."""
        if monotonic() >= self._from_s:
            self.tell()

    def tell(self) -> None:
        """Tell what has not been told."""
        unsigned, corrupt = counts = self._counters.events_unsigned, self._counters.events_corrupt
        if counts == self._said:
            return
        self._said, self._from_s = counts, monotonic() + TELL_EVERY_S
        if unsigned:
            sys.stderr.write(
                f"cachebus: {_count(unsigned, 'event')} passed over so far, as no key of CACHEBUS_KAFKA_EVENTS_KEY has "
                "signed them: set it as the nodes have it; `cachebus nodes --json` tells their keys' fingerprints\n"
            )
        if corrupt:
            sys.stderr.write(f"cachebus: {_count(corrupt, 'message')} passed over so far, as they can't be read\n")


class _Missed:
    """The shards whose events did not come, or not all the time."""

    def __init__(self, bus: Bus, shards: int) -> None:
        self._bus = bus
        self._shards = shards
        self._lost = set[int]()

    @property
    def count(self) -> int:
        """How many."""
        return len(self._lost)

    def now(self) -> dict[int, str]:
        """Those that can't be listened to now, and why."""
        return {shard: trouble for shard in range(self._shards) if (trouble := self._bus.trouble(shard))}

    def look(self, why: str = "") -> None:
        """Tell of those that are lost by now; `L2Unavailable` once none is left."""
        troubles = self.now()
        if len(troubles) == self._shards:
            raise L2Unavailable(f"lost the server that was listened to: {why or troubles[0]}")
        if new := troubles.keys() - self._lost:
            self._lost |= new
            sys.stderr.write(f"cachebus: {self}, and the others go on: {why or troubles[min(new)]}\n")

    def __str__(self) -> str:
        return f"events of {_count(len(self._lost), 'shard')} of {self._shards} are missing"


def _count(number: int, what: str) -> str:
    return f"{number:,} {what}{'s' * (number > 1)}"


async def _next(
    heard: asyncio.Queue[tuple[int, bytes]], passed_over: _PassedOver, missed: _Missed
) -> tuple[int, bytes]:
    """What is heard next; `L2Unavailable` once nothing can be."""
    while True:
        passed_over.look()
        try:
            return await asyncio.wait_for(heard.get(), LOOK_S)
        except TimeoutError:
            missed.look()
