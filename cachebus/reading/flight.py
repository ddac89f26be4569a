"""Single flight: one load a key and node, however many ask for it.

1. Who finds no flight that suits it begins one (`Flights.begin`), which runs in a task of its own.
2. Who comes while it goes on joins it, if `joinable` says so, and says what it asks for, too (`join`).
3. Each of them waits (`wait`): for the result, or for an expired value that may be given meanwhile.
4. When the last of them leaves, the load is cancelled.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine, Iterator, Sequence
from contextlib import AbstractAsyncContextManager, AbstractContextManager, contextmanager, nullcontext
from copy import copy
from enum import Enum
from typing import NamedTuple

from cachebus.base.clock import Clock
from cachebus.base.ignored import ignore_error
from cachebus.errors import L2Unavailable, LoadTimeout
from cachebus.reading.freshness import Fallback, Freshness
from cachebus.reading.reentrance import Loading, loads_for, waiting_for
from cachebus.reading.request import Found, Request
from cachebus.reading.wishes import Wishes

Fly = Callable[["Flight"], Coroutine[object, object, Found]]


class Departure(NamedTuple):
    """How a flight begins; nothing of it changes later."""

    request: Request
    """Of whoever begins it."""
    fresh: Freshness
    fallback: Fallback | None = None
    """The expired value that is known by then."""
    must_load: bool = False
    """Whether what L2 has may lack what this load's callers must see."""
    spent_s: float = 0.0
    """What its first caller has waited for L2 before, in seconds."""
    refreshes: bytes = b""
    """The version that it is to replace, where it is a refresh."""


class _Stage(Enum):
    """How far a flight has come, but for what its task says."""

    UNDER_WAY = "it goes on"
    LEFT = "nobody waits for it any more: it is being cancelled"
    CLOSED = "its cache is closed: it is being cancelled"


class Flight:
    """One load under way, and what those who share it have asked for. It ends when done, or when nobody waits for it
    any more. It alone says who may join it."""

    __slots__ = (
        "_asks_source",
        "_callers",
        "_clock",
        "_fallback",
        "_loading",
        "_news",
        "_released",
        "_runs_on",
        "_stage",
        "_task",
        "_waiting",
        "_wishes",
        "departure",
    )

    def __init__(self, owner: object, departure: Departure, fly: Fly, clock: Clock) -> None:
        """`owner`: whose key it is. `fly`: what it does, in a task of its own; it begins when the caller next waits."""
        self.departure = departure
        self._loading = Loading(owner, departure.request.key, is_refresh=bool(departure.refreshes))
        self._fallback = departure.fallback
        self._released = False
        """Whether those who wait are given the fallback at once."""
        self._news: asyncio.Future[None] | None = None
        """Done when either of these has changed."""
        self._wishes = Wishes(departure.request.tags, departure.request.ttl_s)
        self._stage = _Stage.UNDER_WAY
        self._clock = clock
        self._callers = self._waiting = 0
        """How many have asked for it, and how many of them still wait."""
        self._runs_on = False
        """Whether it goes on when nobody waits."""
        self._asks_source = False
        self._task = self._started(fly)

    def _started(self, fly: Fly) -> asyncio.Task[Found]:
        async def load() -> Found:
            with self._loading:  # all that runs in here is this load: also where it joins another
                return await fly(self)

        return asyncio.create_task(load(), name="cachebus-flight")

    @property
    def request(self) -> Request:
        """Of whoever began it."""
        return self.departure.request

    @property
    def fresh(self) -> Freshness:
        """How fresh its value will be."""
        return self.departure.fresh

    @property
    def ttl_s(self) -> float | None:
        """The shortest time to live that one of its callers has asked for, in seconds; None is the type's."""
        return self._wishes.ttl_s

    @property
    def tags(self) -> list[str]:
        """Of all who share it so far."""
        return list(self._wishes.tags)

    @property
    def task(self) -> asyncio.Task[Found]:
        """What runs it."""
        return self._task

    @property
    def over(self) -> bool:
        """Whether it has ended, or is ending: whoever comes now is too late."""
        return self._stage is not _Stage.UNDER_WAY or self._task.done() or self._task.cancelling() > 0

    def joinable(self, request: Request) -> bool:
        """Whether a caller that comes now may share it.

        1. It goes on, nothing has replaced what it loads since it began, and it is no older than D or the lease allow.
        2. A token of the caller's has been applied by this node: a flight that is older does not hold then.
        3. It knows of every invalidation of the caller's tags, and a record can carry them, too.
        4. Once the value is made, it is made as this caller wants it.
        """
        return (
            not self.over
            and self._wishes.can_include(request)
            and self.has_room_for(request.tags)
            and self.fresh.reaches(request.after)
            and self.fresh.knows(request.tags)
            and self.fresh.holds(self._clock())
        )

    def has_room_for(self, tags: Sequence[str]) -> bool:
        """Whether a record can carry these, too, with the tags of all who share the load."""
        return not tags or self._wishes.has_room_for(tags)

    def fix_wishes(self) -> None:
        """The value is being made now, with the tags and the time to live that its callers have asked for so far."""
        self._wishes.are_fixed = True

    def join(self, request: Request) -> None:
        """A caller shares it: what it has asked for counts too."""
        self.heed(request.tags, request.ttl_s)

    def heed(self, tags: Sequence[str] = (), ttl_s: float | None = None) -> None:
        """The value is to carry these tags too, and to live for no longer than that, in seconds."""
        new = self._wishes.add(tags, ttl_s)
        if new:
            self.fresh.heed(new)

    def asks_source(self) -> None:
        """From now on its source is being asked."""
        self._asks_source = True

    @property
    def has_asked(self) -> bool:
        """Whether its source has been asked, and may have read by now."""
        return self._asks_source

    def run_on(self) -> None:
        """Go on in the background even when nobody waits."""
        self._runs_on = True

    @property
    def fallback(self) -> Fallback | None:
        """An expired value for when the load fails or is slow."""
        return self._fallback

    def fall_back_on(self, fallback: Fallback | None) -> None:
        """Have this in place of the fallback known before, or none."""
        if fallback is not self._fallback:
            self._fallback = fallback
            self._notify()

    def release_waiters(self) -> None:
        """From now on nobody waits who can be given the fallback: it is all up to a source that has failed before."""
        self._released = True
        self._notify()

    def _notify(self) -> None:
        """Have those who wait look again."""
        if self._news is not None and not self._news.done():
            self._news.set_result(None)

    def usable_fallback(self) -> Found | None:
        """The expired value, if it may be served now."""
        fallback = self._fallback
        return fallback.found if fallback is not None and fallback.usable(self._clock()) else None

    def begins_in_a_load(self) -> bool:
        """Whether it is another load of this cache that asks for it, just now."""
        return loads_for(self._loading.owner)

    def aside(self) -> AbstractContextManager[None]:
        """Inside it this flight waits for another load: those with whom it shares its source do not wait for it."""
        joint = self.request.joint
        return _ALONE if joint is None else joint.aside(self._task)

    def room(self, size_bytes: int) -> AbstractAsyncContextManager[None]:
        """Inside it the flight sends L2 so much."""
        joint = self.request.joint
        return _ALONE if joint is None else joint.room(size_bytes)

    @property
    def is_told(self) -> bool:
        """Whether another flight tells of the failure of the source that both share."""
        joint = self.request.joint
        return joint is not None and joint.has_told(self._task)

    def close(self) -> None:
        """The cache is closed: no more than this is waited for."""
        self._stage = _Stage.CLOSED
        self._task.cancel()

    async def wait(self, request: Request | None = None) -> Found:
        """The result, or the fallback. A caller's waiting ends in one of these ways:

        1. The load ends: with its result or its error, of which each of several callers has one of its own.
        2. The fallback may be served, and waiters are released, or this caller's `load_soft_timeout_s` is over.
        3. The caller is cancelled. It leaves, and the last one to leave ends the load.
        4. The cache is closed: `L2Unavailable`.
        5. Others have cancelled the load: `LoadTimeout`.
        """
        me = asyncio.current_task()
        before = 0 if me is None else me.cancelling()  # it may have taken back a cancellation of long ago
        try:
            with waiting_for(self._loading):
                return await self._result_or_fallback(request)
        except asyncio.CancelledError:
            if not self._task.cancelled() or me is None or me.cancelling() > before:
                raise
            if self._stage is _Stage.CLOSED:
                raise L2Unavailable("the cache was closed while this load was under way") from None
            raise LoadTimeout("the load was cancelled, though others waited for it") from None
        except Exception as error:
            if self._callers == 1:
                raise
            failed = error
        raise own_error(failed)  # out here, so that it gets no context that the load did not give it

    async def _result_or_fallback(self, request: Request | None) -> Found:
        """For one caller, who counts as long as it waits."""
        self._callers += 1
        self._waiting += 1
        try:
            if request is not None and request.rules.fail_safe_s is not None:
                fallback = await self._meanwhile(request)
                if fallback is not None:
                    self.run_on()
                    return fallback
            return await asyncio.shield(self._task)
        finally:
            self._waiting -= 1
            if not self._waiting and not self._runs_on and not self._task.done():
                if self._stage is _Stage.UNDER_WAY:
                    self._stage = _Stage.LEFT
                self._task.cancel()

    async def _meanwhile(self, request: Request) -> Found | None:
        """The fallback, as soon as there is one and the caller need not wait any more; None once the load has ended."""
        now, soft_s = asyncio.get_running_loop().time, request.rules.load_soft_timeout_s
        over_s = None if soft_s is None else now() + soft_s
        while not self._task.done():
            left_s = None if over_s is None or self._released else max(0.0, over_s - now())
            fallback = self.usable_fallback() if self._released or left_s == 0 else None
            if fallback is not None and (request.use_memory or fallback.level != "l1"):
                return fallback
            if self._news is None or self._news.done():
                self._news = asyncio.get_running_loop().create_future()
            await asyncio.wait((self._task, self._news), timeout=left_s or None, return_when=asyncio.FIRST_COMPLETED)
        return None


_ALONE: nullcontext[None] = nullcontext()


def own_error(error: Exception) -> Exception:
    """The error for one of several callers: what its handlers add to it is not shown to the others."""
    try:
        own = copy(error)
    except Exception:  # noqa: BLE001 (not every class can make another one)
        return error
    if type(own) is not type(error) or own.args != error.args:
        return error
    own.__cause__, own.__context__ = error.__cause__, error.__context__
    own.__suppress_context__, own.__traceback__ = error.__suppress_context__, error.__traceback__
    if hasattr(error, "__notes__"):
        own.__notes__ = list(error.__notes__)
    return own


class Flights:
    """The loads under way on this node, by L1 key. It owns their keys: that tells a load
    that waits for itself."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._flights: dict[str, Flight] = {}
        self._without_l2: dict[str, Flight] = {}
        """Those that go to the source without L2."""
        self._tasks: dict[asyncio.Task[Found], Flight] = {}
        self._closing = self._closed = False
        """`_closing`: callers may begin no flight any more; a load under way may, for itself. `_closed`: nobody may."""

    def __len__(self) -> int:
        return len(self._tasks)

    def find(self, name: str) -> Flight | None:
        """The flight under way, which the caller may join if it suits it."""
        return self._flights.get(name)

    def begin(self, name: str, departure: Departure, fly: Fly) -> Flight:
        """Start a flight; a newer one of the same name takes its place for those who come later."""
        flight = Flight(self, departure, fly, self._clock)
        self._flights[name] = flight
        self._tasks[flight.task] = flight
        joint = departure.request.joint
        if joint is not None:
            joint.expect(flight.task, is_refresh=bool(departure.refreshes))

        def landed(task: asyncio.Task[Found]) -> None:
            self._tasks.pop(task, None)
            if joint is not None:
                joint.leave(task)
            if self._flights.get(name) is flight:
                del self._flights[name]
            ignore_error(task)  # those who waited have it, and a background load has logged it

        flight.task.add_done_callback(landed)
        if self._closed or (self._closing and not flight.begins_in_a_load()):
            flight.close()
        return flight

    def find_without_l2(self, name: str) -> Flight | None:
        """The flight that asks the source without L2."""
        return self._without_l2.get(name)

    @contextmanager
    def without_l2(self, name: str, flight: Flight) -> Iterator[None]:
        """Inside it the flight is the one to be joined by others that have no answer from L2."""
        self._without_l2[name] = flight
        try:
            yield
        finally:
            if self._without_l2.get(name) is flight:
                del self._without_l2[name]

    async def close(self, timeout_s: float) -> None:
        """Let flights end within `timeout_s`, then cancel what is left; at once if this is itself cancelled."""
        self._closing = True
        try:
            if self._tasks:
                await asyncio.wait(self._tasks, timeout=timeout_s)
        finally:
            self._closed = True
            for flight in list(self._tasks.values()):
                flight.close()
        if self._tasks:
            await asyncio.wait(self._tasks)
