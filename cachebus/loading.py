"""Single flight: one load a key and node, however many ask; and waking those who wait for another node's load."""

from __future__ import annotations

import asyncio
from collections import OrderedDict
from collections.abc import Callable, Coroutine
from typing import Final, Generic, TypeVar

from cachebus.coherence import Reservation, Standing
from cachebus.errors import L2Unavailable

T = TypeVar("T")

POLLS_PER_S: Final = 400
"""How often all who wait for other nodes' loads ask L2, together: forty of them are as quick as one alone."""
POLLS_AT_ONCE: Final = 16
"""How many may catch up at once after a pause, or a late timer."""


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
    """Those on this node who wait for a fill by another; woken by a hint on the bus, else by their own patience.

    Whoever is woken by a hint asks at once. The others ask when their pause is over, in that order, and all together
    at most `POLLS_PER_S` times a second: each of them would be polite alone, and thousands are a flood.
    """

    def __init__(self) -> None:
        self._waiting: dict[str, set[asyncio.Future[bool]]] = {}
        self._line: OrderedDict[asyncio.Future[bool], None] = OrderedDict()
        """Those whose pause is over."""
        self._next_s = 0.0
        """When the next of them may ask, by the loop's clock."""
        self._timer: asyncio.TimerHandle | None = None

    def __len__(self) -> int:
        return sum(map(len, self._waiting.values()))

    def wake(self, key: str) -> None:
        """The fill is there, or was given up."""
        for waiter in self._waiting.get(key, ()):
            _settle(waiter, True)

    async def wait(self, key: str, pause_s: float, patience_s: float) -> bool:
        """Until woken, or until it is this one's turn to ask again, `pause_s` seconds from now or later; False when it
        has had none in `patience_s`."""
        loop = asyncio.get_running_loop()
        waiter: asyncio.Future[bool] = loop.create_future()
        self._waiting.setdefault(key, set()).add(waiter)
        pause = loop.call_later(pause_s, self._stand_in_line, waiter)
        patience = loop.call_later(patience_s, _settle, waiter, False)
        try:
            return await waiter
        finally:
            pause.cancel()
            patience.cancel()
            self._line.pop(waiter, None)
            self._waiting[key].discard(waiter)
            if not self._waiting[key]:
                del self._waiting[key]

    def _stand_in_line(self, waiter: asyncio.Future[bool]) -> None:
        self._line[waiter] = None
        if self._timer is None:
            self._serve()

    def _serve(self) -> None:
        """Let those ask who may by now, and come back for the next of the line."""
        loop = asyncio.get_running_loop()
        self._timer, now_s = None, loop.time()
        self._next_s = max(self._next_s, now_s - POLLS_AT_ONCE / POLLS_PER_S)
        while self._line and self._next_s <= now_s:
            _settle(self._line.popitem(last=False)[0], True)
            self._next_s += 1 / POLLS_PER_S
        if self._line:
            self._timer = loop.call_at(self._next_s, self._serve)


def _settle(waiter: asyncio.Future[bool], turn: bool) -> None:
    if not waiter.done():
        waiter.set_result(turn)
