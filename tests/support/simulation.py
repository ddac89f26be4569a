"""A fleet in virtual time: an event loop whose clock jumps, and wires with delays that can be cut.

Nothing here waits: a minute of a fleet's life takes a second, and the same seed lives the same life.
"""

from __future__ import annotations

import asyncio
import random
import selectors
from collections.abc import Callable, Coroutine
from typing import Any

from cachebus import Cache, L2Unavailable
from cachebus.base.backoff import RECONNECT_FIRST_S
from cachebus.testing import Fleet
from tests.support.caches import parts

TICK_S = 1e-7
_WIRED = ("probe", "nodes", "forget", "read", "fill_lease", "fill", "invalidate", "guard", "write", "counter", "log")


class _Jump(selectors.SelectSelector):
    """Waits for nothing: turns the loop's clock on instead."""

    def __init__(self) -> None:
        super().__init__()
        self.now_s = 1_000.0

    def select(self, timeout: float | None = None) -> list[tuple[selectors.SelectorKey, int]]:
        """As the base class, at once."""
        assert timeout is not None, "everybody waits for ever"
        self.now_s += max(timeout, 0)
        return super().select(0)


class VirtualLoop(asyncio.SelectorEventLoop):
    """An event loop whose time passes only when all wait for it."""

    def __init__(self) -> None:
        self._jump = _Jump()
        super().__init__(self._jump)
        self._clock_resolution = 1e-9

    def time(self) -> float:
        """Virtual seconds."""
        return self._jump.now_s

    def stall(self, seconds: float) -> None:
        """Let time pass in which nobody does anything."""
        self._jump.now_s += seconds


def live(main: Callable[[VirtualLoop], Coroutine[Any, Any, None]]) -> None:
    """Run it in a virtual loop of its own."""
    loop = VirtualLoop()
    try:
        loop.run_until_complete(main(loop))
        left = asyncio.all_tasks(loop)
        assert not left, f"tasks left: {left}"
    finally:
        loop.close()


class Wire:
    """One node's connection: in order both ways, with delays; may be cut, after which what is under way is unknown."""

    def __init__(self, cache: Cache, fleet: Fleet, dice: random.Random, delay_s: float) -> None:
        self._loop = asyncio.get_running_loop()
        self._dice, self._delay_s = dice, delay_s
        self._store: Any = parts(cache).store
        self._there_s = self._back_s = self._heard_s = 0.0
        self._waiting: set[asyncio.Future[Any]] = set()
        for name in _WIRED:
            setattr(self._store, name, self._over(getattr(self._store, name), probe=name == "probe"))
        self._store.get = self._over(self._store.get)
        for name in ("extend", "release", "cool_down"):
            setattr(self._store, name, self._posted(getattr(self._store, name)))
        bus: Any = parts(cache).bus
        listener = bus._listener
        for channel in fleet.world.channels:
            channel.leave(listener)
        bus.connected = False
        bus._listener = lambda shard, message: self._loop.call_at(self._next_heard_s(), self._hear, shard, message)
        self._listener = listener
        self._connect = self._store.connect
        self._store.connect = self._reconnect
        self.deaf = self.away = False

    async def _reconnect(self) -> None:
        if self.away:
            await asyncio.sleep(RECONNECT_FIRST_S)  # as a store that paces itself
            raise L2Unavailable("the wire is down")
        await self._connect()

    def cut(self) -> None:
        """Lose the connection: every answer on its way is lost, though its question may have been carried out."""
        self._store._open = False
        self._store.checked = [False] * len(self._store.checked)
        for answer in self._waiting:
            if not answer.done():
                answer.set_exception(L2Unavailable("the wire was cut"))
                answer.exception()
        self._waiting.clear()

    def _after(self, last_s: float) -> float:
        return max(last_s + TICK_S, self._loop.time() + self._dice.random() ** 2 * self._delay_s)

    def _next_heard_s(self) -> float:
        self._heard_s = self._after(self._heard_s)
        return self._heard_s

    def _hear(self, shard: int, message: bytes) -> None:
        if not self.deaf:
            self._listener(shard, message)

    def _over(self, method: Callable[..., Any], *, probe: bool = False) -> Callable[..., asyncio.Future[Any]]:
        def ask(*args: Any, **kwargs: Any) -> asyncio.Future[Any]:
            if not self._store._open:
                raise L2Unavailable("not connected")
            answer: asyncio.Future[Any] = self._loop.create_future()
            self._waiting.add(answer)
            self._there_s = self._after(self._there_s)
            self._loop.call_at(self._there_s, self._arrive, method, args, kwargs, answer, probe)
            return answer

        return ask

    def _posted(self, method: Callable[..., None]) -> Callable[..., None]:
        def post(*args: Any, **kwargs: Any) -> None:
            self._there_s = self._after(self._there_s)
            self._loop.call_at(self._there_s, method, *args)

        return post

    def _arrive(self, method: Callable[..., Any], args: Any, kwargs: Any, answer: Any, probe: bool) -> None:
        checked = list(self._store.checked)
        try:
            coroutine = method(*args, **kwargs)
            try:
                coroutine.send(None)
                raise AssertionError("the memory store waits for nothing")
            except StopIteration as stop:
                result = stop.value
        except L2Unavailable as error:
            result = error
        self._store.checked = checked  # known only when the answer comes
        self._back_s = self._after(self._back_s)
        self._loop.call_at(self._back_s, self._deliver, answer, result, probe)

    def _deliver(self, answer: asyncio.Future[Any], result: Any, probe: bool) -> None:
        if answer not in self._waiting:
            return  # lost with the connection
        self._waiting.discard(answer)
        failed = isinstance(result, L2Unavailable)
        if probe:
            self._store.checked = [not failed and self._store._open] * len(self._store.checked)
        if answer.done():
            return  # its caller went away
        if failed:
            answer.set_exception(result)
            answer.exception()
        else:
            answer.set_result(result)
