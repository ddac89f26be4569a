"""How functions of a user's subscribe to what happens in a cache."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal, Protocol, TypeVar, overload

from cachebus.observe.hook_events import (
    DegradedEvent,
    EvictedEvent,
    FlushedEvent,
    HookName,
    InvalidatedEvent,
    LeaseLapsedEvent,
    LoadedEvent,
    LoadFailedEvent,
    StaleServedEvent,
)
from cachebus.observe.hooks import TIMEOUT_S, Hook, Hooks

R = TypeVar("R")
What = TypeVar("What")


class Subscribing(Protocol[What]):
    """What `@cache.on("loaded")` gives: it is put above a function, which stays what it is."""

    def __call__(self, callback: Callable[[What], R], /) -> Callable[[What], R]:
        """Subscribe the function, and give it back; `ConfigError`."""


class Hooking:
    """What every cache has to tell of itself. Subscriptions last over its closing, and count when it is opened anew."""

    def __init__(self) -> None:
        self._hooks = Hooks()

    @overload
    def on(
        self,
        name: Literal["invalidated"],
        callback: Callable[[InvalidatedEvent], object],
        *,
        timeout_s: float = TIMEOUT_S,
    ) -> Hook: ...
    @overload
    def on(
        self, name: Literal["loaded"], callback: Callable[[LoadedEvent], object], *, timeout_s: float = TIMEOUT_S
    ) -> Hook: ...
    @overload
    def on(
        self,
        name: Literal["load_failed"],
        callback: Callable[[LoadFailedEvent], object],
        *,
        timeout_s: float = TIMEOUT_S,
    ) -> Hook: ...
    @overload
    def on(
        self,
        name: Literal["stale_served"],
        callback: Callable[[StaleServedEvent], object],
        *,
        timeout_s: float = TIMEOUT_S,
    ) -> Hook: ...
    @overload
    def on(
        self,
        name: Literal["lease_lapsed"],
        callback: Callable[[LeaseLapsedEvent], object],
        *,
        timeout_s: float = TIMEOUT_S,
    ) -> Hook: ...
    @overload
    def on(
        self, name: Literal["flushed"], callback: Callable[[FlushedEvent], object], *, timeout_s: float = TIMEOUT_S
    ) -> Hook: ...
    @overload
    def on(
        self, name: Literal["evicted"], callback: Callable[[EvictedEvent], object], *, timeout_s: float = TIMEOUT_S
    ) -> Hook: ...
    @overload
    def on(
        self, name: Literal["degraded"], callback: Callable[[DegradedEvent], object], *, timeout_s: float = TIMEOUT_S
    ) -> Hook: ...
    @overload
    def on(self, name: Literal["invalidated"], *, timeout_s: float = TIMEOUT_S) -> Subscribing[InvalidatedEvent]: ...
    @overload
    def on(self, name: Literal["loaded"], *, timeout_s: float = TIMEOUT_S) -> Subscribing[LoadedEvent]: ...
    @overload
    def on(self, name: Literal["load_failed"], *, timeout_s: float = TIMEOUT_S) -> Subscribing[LoadFailedEvent]: ...
    @overload
    def on(self, name: Literal["stale_served"], *, timeout_s: float = TIMEOUT_S) -> Subscribing[StaleServedEvent]: ...
    @overload
    def on(self, name: Literal["lease_lapsed"], *, timeout_s: float = TIMEOUT_S) -> Subscribing[LeaseLapsedEvent]: ...
    @overload
    def on(self, name: Literal["flushed"], *, timeout_s: float = TIMEOUT_S) -> Subscribing[FlushedEvent]: ...
    @overload
    def on(self, name: Literal["evicted"], *, timeout_s: float = TIMEOUT_S) -> Subscribing[EvictedEvent]: ...
    @overload
    def on(self, name: Literal["degraded"], *, timeout_s: float = TIMEOUT_S) -> Subscribing[DegradedEvent]: ...
    def on(
        self, name: HookName, callback: Callable[[Any], object] | None = None, *, timeout_s: float = TIMEOUT_S
    ) -> Any:
        """Have a function called when something has happened: `cache.on("invalidated", note)`, or `@cache.on("loaded")`
        above it.

        - `name`: "invalidated", "loaded", "load_failed", "stale_served", "lease_lapsed", "flushed", "evicted",
          "degraded"
        - `callback`: gets the event, frozen data without values, as `LoadedEvent`. What it gives is awaited if need be
        - `timeout_s`: how many seconds that may take

        It is called later, in the cache's own task, one event after the other, in the order in which they happened. No
        read, write or listener waits for it, and it may call the cache. One that raises, or takes too long, is counted
        (`hook_failures`) and logged, and the others go on. At most 10 000 events wait; more are dropped, and counted
        (`hook_events_dropped`). Closing tells what waits within `close_timeout_s`, and drops the rest. A cache that is
        off tells nothing.

        Returns a `Hook`, whose `remove()` ends it, as the end of its `with` block does; as a decorator, the function.
        Raises `ConfigError` for another name, and for what can't be called.
        """
        if callback is not None:
            return self._hooks.add(name, callback, timeout_s)
        self._hooks.check(name, timeout_s)

        def subscribe(function: Callable[[Any], R]) -> Callable[[Any], R]:
            self._hooks.add(name, function, timeout_s)
            return function

        return subscribe
