"""Threads of a test: what each gives is collected, and none is left."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any

from cachebus.base.clock import monotonic

PATIENCE_S = 30.0
_pause = threading.Event()


class Threads:
    """Runs calls in threads of their own."""

    def __init__(self, pool: ThreadPoolExecutor) -> None:
        self._pool = pool

    def start(self, call: Callable[..., Any], *args: Any, **kwargs: Any) -> Future[Any]:
        """Begin it; its `result(PATIENCE_S)` is what it gives, or raises."""
        return self._pool.submit(call, *args, **kwargs)


@contextmanager
def threads(count: int = 16) -> Iterator[Threads]:
    """So many at a time; all have ended behind it."""
    with ThreadPoolExecutor(count, "test") as pool:
        yield Threads(pool)


def given(future: Future[Any]) -> Any:
    """What it gives, within the patience of a test."""
    return future.result(PATIENCE_S)


class Gate:
    """A loader that says when it has begun, and waits until it is let go on."""

    def __init__(self, value: Any = None) -> None:
        self.value = value
        self.calls: list[int] = []
        """The threads that have called."""
        self.begun = threading.Event()
        self.open = threading.Event()

    def __call__(self, resource_id: Any = None) -> Any:
        """The value, or what it raises, once the gate is open."""
        self.calls.append(threading.get_ident())
        self.begun.set()
        assert self.open.wait(PATIENCE_S)
        if isinstance(self.value, BaseException):
            raise self.value
        return self.value

    def has_begun(self) -> None:
        """Wait until it has."""
        assert self.begun.wait(PATIENCE_S)


def waited(met: Callable[[], Any], within_s: float = 60.0) -> Any:
    """What `met` gives, once that is true."""
    deadline_s = monotonic() + within_s
    while not (found := met()):
        assert monotonic() < deadline_s, "waited in vain"
        _pause.wait(0.01)
    return found
