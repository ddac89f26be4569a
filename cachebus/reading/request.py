"""What a caller of a load asks for, and what a load gives: no state, only frozen data."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine, Sequence
from contextlib import AbstractAsyncContextManager, AbstractContextManager
from typing import Any, NamedTuple, Protocol

from cachebus.base.choices import Level, Origin
from cachebus.core.ports import Position
from cachebus.decided import Decided, DontCache, NotModified, Previous
from cachebus.keys.key import Key
from cachebus.policy import Rules
from cachebus.wire.terms import NO_TERMS, Terms


class Loaded(NamedTuple):
    """What a source gave."""

    value: object
    """None means not found."""
    source: Origin = "database"
    """Which one gave it."""
    db_ms: float = 0.0
    generation_ms: float = 0.0
    error: BaseException | None = None
    """What a source raised in whose place another one gave the value."""
    refused: Exception | None = None
    """Why the value is not to be cached."""
    makeshift: bool = False
    """Whether it was made without the source, which had failed: it is no fallback."""
    decided: Decided[object] | None = None
    """What the source has decided of it; None where it gave the value alone."""
    terms: Terms = NO_TERMS
    """What of that goes into the record."""
    late_tags: Sequence[str] = ()
    """The scopes of the tags that the source has given it."""

    @property
    def is_not_modified(self) -> bool:
        """Whether it is the old value, of which the source says that it is still right."""
        return isinstance(self.decided, NotModified)

    @property
    def is_kept(self) -> bool:
        """Whether the source lets it be kept."""
        return not isinstance(self.decided, DontCache)


Load = Callable[[Previous[Any] | None], Coroutine[object, object, Loaded]]
"""Asks the source. It is told what the cache still has, if the source wants to know."""
Instead = Callable[[], Coroutine[object, object, Loaded]]


class Failing(Exception):
    """Raised by a load whose source has failed, by `error`; `instead` gives what can be made without it. That is a last
    resort: it takes the place of no value that is good, or may be a fallback."""

    def __init__(self, error: Exception, instead: Instead) -> None:
        super().__init__(error)
        self.error, self.instead = error, instead


FlightTask = asyncio.Task[Any]
"""The task of a flight, by which it is known to a source that it shares with others."""


class Joint(Protocol):
    """A source that flights of several keys share: it is called once for all who come to it together."""

    def expect(self, flight: FlightTask, *, is_refresh: bool) -> None:
        """This flight has begun, and may come."""
        ...

    def leave(self, flight: FlightTask) -> None:
        """This flight has ended."""
        ...

    def aside(self, flight: FlightTask) -> AbstractContextManager[None]:
        """Inside it the flight waits for another load: the others do not wait for it."""
        ...

    def room(self, size_bytes: int) -> AbstractAsyncContextManager[None]:
        """Inside it a flight sends L2 so much: what they send at once must not be too much for it."""
        ...

    async def landed(self, within_s: float) -> None:
        """Wait, no longer than so many seconds, until the flights that the source has answered have stored that."""
        ...

    def has_told(self, flight: FlightTask) -> bool:
        """Whether the failure of this flight's source is told by another flight."""
        ...


class Request(NamedTuple):
    """A read that may load. Tags, ttl and rules count for the load that makes the value; on a hit they are ignored."""

    key: Key
    load: Load
    rules: Rules
    after: Position | None = None
    """The read must see what a session token stands for."""
    search: bool = False
    """Whether the wider contexts are asked for what the key's own have not."""
    ttl_s: float | None = None
    """Seconds; None is the type's."""
    tags: Sequence[str] = ()
    """The tags' scopes."""
    use_memory: bool = True
    sources: int = 1
    """How many functions `load` may run one after the other at most, each with the type's limit."""
    takes_previous: bool = False
    """Whether the source wants to know what the cache still has."""
    refresh: bool = False
    """Whether it is to be loaded anew, whatever is cached."""
    joint: Joint | None = None
    """What `load` shares with those of other keys."""

    @property
    def patience_s(self) -> float:
        """How long the load may take, in seconds, and others wait for it."""
        return self.sources * self.rules.load_timeout_s

    @property
    def searches(self) -> bool:
        """Whether there are wider contexts to be asked."""
        return self.search and self.key.contexts != (None, None, None)

    @property
    def admits(self) -> bool:
        """Whether what it reads may enter L1."""
        return self.use_memory and self.rules.l1


class Found(NamedTuple):
    """What a read gave, and from where."""

    value: object
    level: Level | None
    """It is "l1", "l2", or None where neither had it."""
    loaded: Loaded | None = None
    """There when it came from the source."""
    is_fallback: bool = False
    """Whether it is a fallback."""
    serialization_error: bool = False
    soft_version: bytes = b""
    """The version of a record that is past its soft expiry, and is to be refreshed; else b""."""
    is_of_first: bool = False
    """Whether it is only for those who came before the source was asked: an invalidation that nobody knew of may lie
    between them and who came later."""
    copy: Callable[[], object] | None = None
    """Makes a value of its own for each caller, where the policy wants that."""

    @property
    def handed_out(self) -> Found:
        """The same for one caller of several."""
        return self if self.copy is None else self._replace(value=self.copy())
