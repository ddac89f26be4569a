"""A source that loads several keys at once: many flights share it.

Each key has a flight of its own, with its own fill lease, fencing and fallback. What they share is the source. A flight
comes to it when it may load, and the source is called once for all who have come:

1. A flight that has begun is *expected*: L2 is being asked whether it may load (`JointLoad.expect`).
2. It comes (`load_of`), ends without a load (`leave`), or waits for another load of its key (`aside`), and is expected
   again after that. L2 bounds how long each of these takes.
3. The first that comes waits for those who are expected just then, once: then the source is called for all who have
   come. Nobody else is waited for, so that flights which hold a fill lease load, whoever holds the others', and however
   often those ask again. Who comes later has another call, likewise.
4. A call ends when the last of its flights has left it.
5. What it has brought is stored by each flight for itself, one sooner than another. Their callers go on together
   (`landed`): what they load next by another source of several is then one call of that, too.

Refreshes, for which nobody waits, have calls of their own.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractAsyncContextManager, contextmanager
from contextvars import copy_context
from functools import partial
from typing import Any

from cachebus.base.ids import Id, text_of
from cachebus.base.parameters import SourceFunction, name_of
from cachebus.base.pieces import Room
from cachebus.errors import ConfigError, InvalidKey
from cachebus.policy import Rules
from cachebus.reading.flight import own_error
from cachebus.reading.landing import Landing
from cachebus.reading.reentrance import Loading, waiting_for
from cachebus.reading.request import FlightTask, Load, Loaded
from cachebus.reading.source import Bound, call_by, loaded_of, shareable

BindIds = Callable[[list[Id]], Bound]
"""Makes the call of a source for these ids."""
Gave = Mapping[str, object]
"""What a source gave, by the text of the ids: a value, or the error of this id alone."""


class JointLoad:
    """One source for flights of one data type, tenant and context. A `Joint`; see there."""

    def __init__(self, source: SourceFunction, bind_ids: BindIds, rules: Rules, owner: object) -> None:
        """`owner`: whose keys they are. The source runs in the context variables of whoever makes this."""
        self._source, self._bind, self._rules = source, bind_ids, rules
        self._context = copy_context()
        self._parties = {is_refresh: _Party(owner, is_refresh=is_refresh) for is_refresh in (False, True)}
        """Those for whom somebody waits, and refreshes."""
        self._party_of: dict[FlightTask, _Party] = {}
        self._told: set[FlightTask] = set()
        self._room = Room()
        self._landing = Landing()

    def load_of(self, resource_id: Id) -> Load:
        """The load of one id, as given: for one flight, in its own task."""
        return partial(self._load, resource_id)

    def expect(self, flight: FlightTask, *, is_refresh: bool) -> None:
        """This flight has begun, and may come."""
        party = self._party_of[flight] = self._parties[is_refresh]
        party.expected.add(flight)

    def leave(self, flight: FlightTask) -> None:
        """This flight has ended."""
        party = self._party_of.pop(flight)
        self._told.discard(flight)
        self._landing.over(flight)
        self._expect_no_more(party, flight)

    @contextmanager
    def aside(self, flight: FlightTask) -> Iterator[None]:
        """Inside it the flight waits for another load: the others do not wait for it."""
        party = self._party_of[flight]
        self._expect_no_more(party, flight)
        try:
            yield
        finally:
            party.expected.add(flight)

    def room(self, size_bytes: int) -> AbstractAsyncContextManager[None]:
        """See `Joint.room`."""
        return self._room.of(size_bytes)

    async def landed(self, within_s: float) -> None:
        """See `Joint.landed`."""
        await self._landing.wait(within_s)

    def has_told(self, flight: FlightTask) -> bool:
        """Whether the failure of this flight's call is told by another one of it."""
        return flight in self._told

    async def _load(self, resource_id: Id, _: object) -> Loaded:
        me = asyncio.current_task()
        assert me is not None, "a load runs in its flight's task"
        party = self._party_of[me]
        call = party.next_call
        if not call.asked:
            call.waits_for = set(party.expected)
        call.asked[me] = resource_id
        self._expect_no_more(party, me)
        failed: Exception | None = None
        try:
            with waiting_for(call.loading):
                gave = await asyncio.shield(call.answer)
        except asyncio.CancelledError:
            gave = await call.left_by(me)
        except Exception as error:  # noqa: BLE001 (a source may raise anything)
            gave, failed = {}, error
        finally:
            call.asked.pop(me, None)
        given = gave.get(text_of("resource_id", resource_id))
        if isinstance(given, Exception):  # of this id alone
            failed = given
        if failed is None:
            if party is self._parties[False]:
                self._landing.begin(me)
            return loaded_of(given)
        if call.is_told:
            self._told.add(me)
        call.is_told = True
        raise own_error(failed)

    def _expect_no_more(self, party: _Party, flight: FlightTask) -> None:
        """Call the source for those who have come, if this was the last that they wait for."""
        party.expected.discard(flight)
        party.next_call.waits_for.discard(flight)
        if party.next_call.waits_for or not party.next_call.asked:
            return
        call = party.take_next()
        loop = asyncio.get_running_loop()
        call.task = loop.create_task(self._called(call), name="cachebus-joint-load", context=self._context.copy())
        call.task.add_done_callback(call.hand_on)

    async def _called(self, call: _Call) -> Gave:
        with call.loading:
            ids = {text_of("resource_id", one): one for one in call.asked.values()}

            def attempt() -> Any:
                return self._bind(list(ids.values()))()  # each has a list of its own, which it may use up

            attempt.__qualname__ = name_of(self._source)
            return self._by_id(await call_by(self._rules, attempt, None), ids)

    def _by_id(self, gave: Any, ids: Mapping[str, Id]) -> Gave:
        """What the source gave, by the text of the ids; `ConfigError` for anything but a mapping of what was asked."""
        if not isinstance(gave, Mapping):
            raise ConfigError(
                f"{name_of(self._source)} gave a {type(gave).__name__}: what loads several ids returns a mapping of "
                "ids to values, and leaves out those that there are not"
            )
        values: dict[str, object] = {}
        for one, value in gave.items():
            try:
                text = text_of("resource_id", one)
            except InvalidKey as error:
                raise ConfigError(f"{name_of(self._source)} gave a mapping whose keys are no ids: {error}") from None
            if text not in ids:
                raise ConfigError(
                    f"{name_of(self._source)} gave an id that it was not asked for: it was given {len(ids)} ids, and "
                    "returns a mapping of these to their values"
                )
            values[text] = shareable(value, self._source)
        return values


class _Party:
    """Flights that come to the source together."""

    __slots__ = ("_is_refresh", "_owner", "expected", "next_call")

    def __init__(self, owner: object, *, is_refresh: bool) -> None:
        self._owner, self._is_refresh = owner, is_refresh
        self.expected: set[FlightTask] = set()
        """Those that may still come."""
        self.next_call = self._new_call()

    def _new_call(self) -> _Call:
        return _Call(Loading(self._owner, None, is_refresh=self._is_refresh))

    def take_next(self) -> _Call:
        """The call that is due. Who comes now has another one."""
        due, self.next_call = self.next_call, self._new_call()
        return due


class _Call:
    """One call of the source."""

    __slots__ = ("answer", "asked", "is_told", "loading", "task", "waits_for")

    def __init__(self, loading: Loading) -> None:
        self.loading = loading
        self.asked: dict[FlightTask, Id] = {}
        """By the flights that wait for it: their ids."""
        self.waits_for: set[FlightTask] = set()
        """Flights that were expected when the first one came, and may come still."""
        self.answer: asyncio.Future[Gave] = asyncio.get_running_loop().create_future()
        self.task: asyncio.Task[Gave] | None = None
        """There once the source is called."""
        self.is_told = False
        """Whether one of its flights tells that it has failed."""

    def hand_on(self, task: asyncio.Task[Gave]) -> None:
        """Give what the call has brought to those who wait."""
        if task.cancelled():
            self.answer.cancel()
        elif error := task.exception():
            self.answer.set_exception(error)
            self.answer.exception()  # nobody has to look at it: all may have left
        else:
            self.answer.set_result(task.result())

    async def left_by(self, flight: FlightTask) -> Gave:
        """A flight is cancelled. The last one ends the call, and waits until the source has put its things in order:
        its fill lease holds until then. Raises the cancellation, unless the source has answered in the same moment: to
        forget that would have it asked again."""
        self.asked.pop(flight, None)
        if self.asked or self.task is None:
            raise asyncio.CancelledError
        self.task.cancel()
        await asyncio.wait([self.task])
        if self.task.cancelled() or self.task.exception() is not None:
            raise asyncio.CancelledError
        return self.task.result()
