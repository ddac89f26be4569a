"""An operation taken apart: at any call that it makes to store, bus or source, or any await, something befalls it."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Coroutine, Generator
from contextvars import ContextVar
from typing import Any, Literal, TypeVar

import anyio

from cachebus import L2Unavailable
from cachebus.assembly.factory import Parts

T = TypeVar("T")
When = Literal["before", "after"]
How = Literal["waiting", "answered", "scope", "caller"]
WHENS: tuple[When, ...] = ("before", "after")
_CALLS = (
    "reach",
    "probe",
    "nodes",
    "forget",
    "read",
    "fill_lease",
    "fill",
    "invalidate",
    "guard",
    "write",
    "counter",
    "log",
)
_watched: ContextVar[object] = ContextVar("watched", default=None)
"""Set around the operation, and so in the tasks that it starts, but not in a heartbeat that runs beside it."""


async def nothing() -> None:
    """What befalls an operation that is left alone."""


class Steps:
    """Numbers the calls that one operation makes; before or after call `at` (from 0) `befall` is awaited.

    "after": the call was carried out, and its answer is still on its way. Where `befall` raises, the call has failed.
    """

    def __init__(self, at: int = -1, when: When = "before", befall: Callable[[], Awaitable[None]] = nothing) -> None:
        self.at, self.when, self.befall = at, when, befall
        self.taken: list[str] = []
        """The calls, by their names."""
        self.away = False
        """Whether every call, the heartbeat's too, fails before it is carried out."""
        self.yields = False
        """Whether each call gives the loop back before and after, as a call over a socket does."""

    @property
    def happened(self) -> bool:
        """Whether there was a call of that number."""
        return len(self.taken) > self.at

    def on(self, parts: Parts) -> None:
        """Number the calls to this store and bus."""
        store: Any = parts.store
        bus: Any = parts.bus
        for name in _CALLS:
            setattr(store, name, self._stepped(name, getattr(store, name)))
        store.get = self._gathered(store.get)
        bus.listen = self._stepped("listen", bus.listen)
        for name in ("extend", "release", "cool_down"):
            setattr(store, name, self._posted(getattr(store, name)))

    async def watch(self, operation: Awaitable[T]) -> T:
        """Run the operation whose calls are numbered."""
        token = _watched.set(self)
        try:
            return await operation
        finally:
            _watched.reset(token)

    async def step(self, name: str, call: Callable[[], Awaitable[T]]) -> T:
        """One call."""
        if self.away:
            raise L2Unavailable("out of reach")
        if self.yields:
            await asyncio.sleep(0)
        if _watched.get() is not self:
            result = await call()
            if self.yields:
                await asyncio.sleep(0)
            return result
        number = len(self.taken)
        self.taken.append(name)
        if number == self.at and self.when == "before":
            await self.befall()
            if self.away:
                raise L2Unavailable("out of reach")
        result = await call()
        if self.yields:
            await asyncio.sleep(0)
        if number == self.at and self.when == "after":
            await self.befall()
            if self.away:
                raise L2Unavailable("its answer was lost")
        return result

    def _stepped(self, name: str, method: Callable[..., Awaitable[T]]) -> Callable[..., Coroutine[Any, Any, T]]:
        async def stepped(*args: Any, **kwargs: Any) -> T:
            return await self.step(name, lambda: method(*args, **kwargs))

        return stepped

    def _gathered(self, get: Callable[..., Awaitable[T]]) -> Callable[..., asyncio.Future[T]]:
        def gathered(*args: Any) -> asyncio.Future[T]:
            # A task, as the real thing is a future: of several, one that fails must leave none that nobody awaits.
            answer = asyncio.ensure_future(self.step("get", lambda: get(*args)))
            answer.add_done_callback(lambda done: done.cancelled() or done.exception())
            return answer

        return gathered

    def _posted(self, method: Callable[..., None]) -> Callable[..., None]:
        return lambda *args: None if self.away else method(*args)


class Cancelling:
    """Counts the awaits of an operation at which it gives the loop back; at number `at` (from 0) it is cancelled.

    "waiting": while it waits. "answered": when what it waited for is there, and it has not yet been told. "scope": by
    an anyio cancel scope around it, under which every further await is cancelled too. `inner`: the awaits of the tasks
    that it starts are counted in place of its own, and those are cancelled; or, with "caller", the operation itself,
    which then is what waits for them.
    """

    def __init__(self, at: int, how: How, *, inner: bool = False) -> None:
        self.at, self.how, self.inner = at, how, inner
        self.awaits = 0
        self.tasks: list[asyncio.Task[Any]] = []
        self._scope: anyio.CancelScope | None = None

    @property
    def happened(self) -> bool:
        """Whether it came to that await."""
        return self.awaits > self.at

    async def run(self, operation: Coroutine[Any, Any, T]) -> asyncio.Task[T | None]:
        """Run the operation in a task of its own, to whatever end; what it started may still be under way."""
        asyncio.get_running_loop().set_task_factory(_made)
        token = _cancelling.set(self)
        try:
            task = asyncio.create_task(self._scoped(operation) if self.how == "scope" else operation)
            await asyncio.wait([task])
        finally:
            _cancelling.reset(token)
        return task

    async def _scoped(self, operation: Coroutine[Any, Any, T]) -> T | None:
        with anyio.CancelScope() as self._scope:
            return await operation
        return None

    def begun(self, coro: Any, **kwargs: Any) -> asyncio.Task[Any]:
        """A task of the operation, or the operation itself."""
        counted = bool(self.tasks) == self.inner
        task: asyncio.Task[Any] = asyncio.Task(self._driven(coro) if counted else coro, **kwargs)
        task.add_done_callback(lambda _: coro.close())  # one that is cancelled before it begins has not seen it
        self.tasks.append(task)
        return task

    async def _driven(self, coro: Coroutine[Any, Any, T]) -> T:
        return await Driven(coro, self._came_to)

    def _came_to(self, what: Any) -> None:
        number, task = self.awaits, self.tasks[0] if self.how == "caller" else asyncio.current_task()
        self.awaits += 1
        if number != self.at or task is None:
            return
        if self._scope is not None:
            asyncio.get_running_loop().call_soon(self._scope.cancel)
        elif self.how == "answered" and asyncio.isfuture(what):
            what.add_done_callback(lambda _: task.cancel())  # before the task's own, so that it is told afterwards
        else:
            asyncio.get_running_loop().call_soon(task.cancel)


_cancelling: ContextVar[Cancelling | None] = ContextVar("cancelling", default=None)


def _made(loop: asyncio.AbstractEventLoop, coro: Any, **kwargs: Any) -> asyncio.Task[Any]:
    """A task, looked at by whoever cancels the operation that it belongs to; several may be under way."""
    cancelling = _cancelling.get()
    if cancelling is None:
        return asyncio.Task(coro, loop=loop, **kwargs)
    return cancelling.begun(coro, loop=loop, **kwargs)


class Driven:
    """Passes on what a coroutine waits for, and says so."""

    def __init__(self, coro: Coroutine[Any, Any, Any], came_to: Callable[[Any], None]) -> None:
        self._coro, self._came_to = coro, came_to

    def __await__(self) -> Generator[Any, Any, Any]:
        send: Callable[[Any], Any] = self._coro.send
        given: Any = None
        while True:
            try:
                waits_for = send(given)
            except StopIteration as stop:
                return stop.value
            self._came_to(waits_for)
            try:
                send, given = self._coro.send, (yield waits_for)
            except BaseException as error:  # noqa: BLE001 (thrown in: it is the coroutine's)
                send, given = self._coro.throw, error
