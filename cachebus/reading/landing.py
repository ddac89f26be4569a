"""Flights that have what they asked a source for, and store it: their callers go on together, in one tick."""

from __future__ import annotations

import asyncio
from functools import partial
from math import isfinite

from cachebus.reading.request import FlightTask

TICKS = 4
"""So many ticks of the event loop after the last flight has ended its own caller waits here, too."""


class Landing:
    """The flights of one joint load that are under way from the source to their callers."""

    __slots__ = ("_done", "_flights")

    def __init__(self) -> None:
        self._flights: set[FlightTask] = set()
        self._done: asyncio.Future[None] | None = None
        """There while callers are to wait."""

    def begin(self, flight: FlightTask) -> None:
        """The source has answered this one."""
        self._flights.add(flight)
        if self._done is None:
            self._done = asyncio.get_running_loop().create_future()

    def over(self, flight: FlightTask) -> None:
        """This one has ended, if it was among them."""
        if flight in self._flights:
            self._flights.discard(flight)
            if not self._flights:
                self._let_go(TICKS)

    def _let_go(self, ticks: int) -> None:
        if self._flights or self._done is None:
            return  # others have come, and are waited for
        if ticks:
            asyncio.get_running_loop().call_soon(partial(self._let_go, ticks - 1))
            return
        self._done.set_result(None)
        self._done = None

    async def wait(self, within_s: float) -> None:
        """Until all have ended, but no longer than so many seconds."""
        if self._done is not None:
            await asyncio.wait([self._done], timeout=within_s if isfinite(within_s) else None)
