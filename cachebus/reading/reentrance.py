"""Loads that wait for one another in a circle: found before they wait, instead of at the time limit.

Who waits for whom is noted by load, not by task: a load runs in a task of its own, and is shared by callers that know
nothing of each other. So a cycle is found whoever began its loads, and in whichever order:

1. The loader of A asks for A.
2. The loader of A begins a load of B, whose loader asks for A.
3. Somebody else began the load of B. The loader of A joins it, then B's asks for A; or B's asks for A first.

A refresh for which nobody waits is part of no cycle, nor is a task that outlives the load that started it. While
the load goes on, a task that its loader started counts as its part, awaited or not. A cycle over two nodes is not
seen: each waits for the other's fill lease until the time limit, and the next who loads it alone is told.
"""

from __future__ import annotations

from collections import deque
from contextlib import AbstractContextManager, nullcontext
from contextvars import ContextVar
from types import TracebackType

from cachebus.errors import ConfigError
from cachebus.keys.key import Key


class Loading:
    """One load under way. What runs inside `with loading:`, and in tasks started there, runs for this load."""

    __slots__ = ("_outer", "is_refresh", "key", "over", "owner", "waiters")

    def __init__(self, owner: object, key: Key | None, *, is_refresh: bool = False) -> None:
        """`is_refresh`: whether nobody waits for it."""
        self.owner, self.is_refresh = owner, is_refresh
        """Whose key it is: a key of another cache is another key."""
        self.key = key
        """None of what loads for several others, which wait for it."""
        self.over = False
        self.waiters: dict[Loading, int] = {}
        """Loads that wait for this one, and in how many tasks."""
        self._outer: Loading | None = None

    def __enter__(self) -> Loading:
        self._outer = _innermost.get()
        _innermost.set(self)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.over = True
        # A coroutine may be closed in another context than it ran in, where there is nothing to take back.
        if _innermost.get() is self:
            _innermost.set(self._outer)
        self._outer = None


_innermost: ContextVar[Loading | None] = ContextVar("cachebus_loading", default=None)


def check(owner: object, key: Key) -> None:
    """`ConfigError` that names the cycle, if the load that asks for this key is one of it, or is waited for by one.

    To be called before a load of the key is begun or joined.
    """
    asking = _running()
    if asking is None:
        return
    waits_for: dict[Loading, Loading | None] = {asking: None}
    ahead = deque([asking])  # breadth first: the shortest cycle is told
    while ahead:
        loading = ahead.popleft()
        if loading.owner is owner and loading.key is not None and loading.key.l1 == key.l1:
            raise ConfigError(_cycle_in_words(key, loading, waits_for))
        # A copy, as a cache of another thread's event loop may be one of the cycle.
        for waiter in list(loading.waiters):
            if waiter not in waits_for:
                waits_for[waiter] = loading
                ahead.append(waiter)


def waiting_for(loading: Loading) -> AbstractContextManager[None]:
    """Inside it the surrounding load, if there is one, is known to wait for another."""
    asking = _running()
    return _NOBODY if asking is None else _Wait(asking, loading)


def loads_for(owner: object) -> bool:
    """Whether this code runs for a load of a key of this owner's that is not over."""
    loading = _running()
    return loading is not None and loading.owner is owner


def is_refresh() -> bool:
    """Whether this code runs for a refresh, for which nobody waits."""
    loading = _running()
    return loading is not None and loading.is_refresh


def _running() -> Loading | None:
    """The load for which this code runs; None where it is over, as for a task that outlives it."""
    innermost = _innermost.get()
    return None if innermost is None or innermost.over else innermost


class _Wait(AbstractContextManager[None]):
    __slots__ = ("_asking", "_loading")

    def __init__(self, asking: Loading, loading: Loading) -> None:
        self._asking, self._loading = asking, loading

    def __enter__(self) -> None:
        waiters = self._loading.waiters
        waiters[self._asking] = waiters.get(self._asking, 0) + 1

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        waiters = self._loading.waiters
        waiters[self._asking] -= 1
        if not waiters[self._asking]:
            del waiters[self._asking]


_NOBODY = nullcontext()


def _cycle_in_words(key: Key, first: Loading, waits_for: dict[Loading, Loading | None]) -> str:
    names = [key.l2]
    loading = waits_for[first]
    while loading is not None:
        if loading.key is not None:
            names.append(loading.key.l2)
        loading = waits_for[loading]
    cycle = " -> ".join([*names, key.l2])
    return f"a load waits for itself: {cycle}. Let the loader read the source, or put what both need under a third key"
