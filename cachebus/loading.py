"""Single flight: one load a key and node, however many ask; and waking those who wait for another node's load."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from typing import Generic, TypeVar

from cachebus.coherence import Reservation, Standing
from cachebus.errors import L2Unavailable

T = TypeVar("T")


class Flight(Generic[T]):
    """One load under way. It ends when done, or when nobody waits for it any more."""

    __slots__ = (
        "_kept", "may_stand_in", "reservation", "stale", "standing", "started_s", "task", "until_s", "waiting",
    )  # fmt: skip

    def __init__(self, reservation: Reservation, started_s: float, standing: Standing | None = None) -> None:
        self.reservation = reservation
        self.standing = standing
        """What was remembered of the scopes and tags of what is being loaded, and of `stale`, as they were then: nobody
        joins once one of them was invalidated, or a low watermark has moved."""
        self.started_s = started_s
        self.until_s = float("inf")
        """Until when anybody may join, as far as this alone goes."""
        self.waiting = 0
        self.stale: T | None = None
        """An expired value for when the load fails or is slow; good only as long as `may_stand_in` says so."""
        self.may_stand_in: Callable[[], bool] = bool
        self.task: asyncio.Task[T]
        self._kept = False

    def heed(self, more: Standing) -> None:
        """Nobody joins once one of these was invalidated, either."""
        if self.standing is not None:
            self.standing = self.standing._replace(marks={**self.standing.marks, **more.marks})

    def keep(self) -> None:
        """Go on in the background even when nobody waits."""
        self._kept = True

    def substitute(self) -> T | None:
        """The expired value, if nothing has replaced it since."""
        return self.stale if self.stale is not None and self.may_stand_in() else None

    async def join(self, soft_s: float | None = None) -> T:
        """Wait for the result, or with `soft_s` seconds gone, and a stale value there, take that.

        A caller that is cancelled leaves; the last one to leave ends the load.
        """
        self.waiting += 1
        try:
            if soft_s is not None:
                await asyncio.wait([self.task], timeout=soft_s)
                stale = self.substitute()
                if not self.task.done() and stale is not None:
                    self.keep()
                    return stale
            return await asyncio.shield(self.task)
        except asyncio.CancelledError:
            me = asyncio.current_task()
            if self.task.cancelled() and me is not None and not me.cancelling():
                raise L2Unavailable("the cache was closed while this load was under way") from None
            raise
        finally:
            self.waiting -= 1
            if not self.waiting and not self._kept and not self.task.done():
                self.task.cancel()


class Flights(Generic[T]):
    """The loads under way on this node, by L1 key."""

    def __init__(self) -> None:
        self._flights: dict[str, Flight[T]] = {}
        self._tasks: set[asyncio.Task[T]] = set()
        self.alone: dict[str, Flight[T]] = {}
        """Those that go to the source without L2."""

    def __len__(self) -> int:
        return len(self._tasks)

    def find(self, key: str) -> Flight[T] | None:
        """The flight under way for a key, which the caller may join if it suits it."""
        return self._flights.get(key)

    def begin(self, key: str, flight: Flight[T], load: Callable[[Flight[T]], Coroutine[object, object, T]]) -> None:
        """Start a flight; a newer one of the same key takes its place for those who come later."""
        flight.task = asyncio.create_task(load(flight), name="cachebus-flight")
        self._flights[key] = flight
        self._tasks.add(flight.task)

        def landed(task: asyncio.Task[T]) -> None:
            self._tasks.discard(task)
            if self._flights.get(key) is flight:
                del self._flights[key]
            if not task.cancelled():
                task.exception()  # seen: those who waited have it, and a background load has logged it

        flight.task.add_done_callback(landed)

    async def close(self, timeout_s: float) -> None:
        """Let flights end within `timeout_s`, then cancel what is left; at once if this is itself cancelled."""
        try:
            if self._tasks:
                await asyncio.wait(self._tasks, timeout=timeout_s)
        finally:
            for task in self._tasks:
                task.cancel()
        if self._tasks:
            await asyncio.wait(self._tasks)


class Waiters:
    """Those on this node who wait for a fill by another; woken by a hint on the bus, else by their own patience."""

    def __init__(self) -> None:
        self._events: dict[str, tuple[asyncio.Event, int]] = {}

    def wake(self, key: str) -> None:
        """The fill is there, or was given up."""
        waited = self._events.get(key)
        if waited is not None:
            waited[0].set()

    async def wait(self, key: str, at_most_s: float) -> None:
        """Until woken, or `at_most_s` seconds."""
        event, waiting = self._events.get(key, (None, 0))
        if event is None or event.is_set():
            event, waiting = asyncio.Event(), 0
        self._events[key] = (event, waiting + 1)
        try:
            async with asyncio.timeout(at_most_s):
                await event.wait()
        except TimeoutError:
            return
        finally:
            present = self._events.get(key)
            if present is not None and present[0] is event:
                if present[1] == 1:
                    del self._events[key]
                else:
                    self._events[key] = (event, present[1] - 1)
