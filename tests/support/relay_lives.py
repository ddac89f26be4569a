"""Relays as processes that are killed: each lives until a signal, or until an await of its own that was chosen for it.

Run as a module it is their mother: for each line of its input, a JSON list of arguments, it forks a relay and prints
its process id. Forked, a relay is at work within milliseconds.
"""

from __future__ import annotations

import asyncio
import json
import os
import signal
import sys
from collections.abc import Callable, Coroutine, Generator
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import Any, Literal, Self

from loguru import logger

from consumers.outbox import OutboxRelay, RelayOptions
from tests.support.command import alive
from tests.support.outbox import settings

ROOT = Path(__file__).parents[2]
When = Literal["before", "sent", "answered"]
"""Before the tasks that an await waits for begin; when what it waits for has been sent; or is there, and untold."""
WHENS: tuple[When, ...] = ("before", "sent", "answered")


class Relays:
    """The mother's side: `begin` a relay, and kill it. They all end with this object."""

    def __init__(self) -> None:
        self._mother: asyncio.subprocess.Process
        self._pids: list[int] = []
        self._asking = asyncio.Lock()

    async def __aenter__(self) -> Self:
        self._mother = await asyncio.create_subprocess_exec(
            sys.executable, "-m", "tests.support.relay_lives", cwd=ROOT, env={**os.environ, "PYTHONPATH": str(ROOT)},
            stdin=asyncio.subprocess.PIPE, stdout=asyncio.subprocess.PIPE,
        )  # fmt: skip
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for pid in self._pids:
            kill(pid)
        assert self._mother.stdin is not None
        self._mother.stdin.close()
        await self._mother.wait()

    async def ready(self) -> None:
        """When the mother is there, which takes a second."""
        assert self._mother.stdout is not None
        await self._mother.stdout.readline()

    async def begin(
        self, database: str, redis_url: str, *, batch: int = 20, last_await: int | None = None, when: When = "sent"
    ) -> int:
        """The process id of a new relay. `last_await`: the await, from 0, at which it kills itself by SIGKILL, of those
        from where it has rows in hand to where it has let them go."""
        assert self._mother.stdin is not None and self._mother.stdout is not None
        async with self._asking:
            self._mother.stdin.write(json.dumps([database, redis_url, batch, last_await, when]).encode() + b"\n")
            pid = int(await self._mother.stdout.readline())
            self._pids.append(pid)
        return pid


def kill(pid: int) -> None:
    """By SIGKILL, if it lives."""
    if alive(pid):
        with suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)


class _Counted:
    """Passes on what a coroutine waits for, and says so each time."""

    def __init__(self, coro: Coroutine[Any, Any, Any], waits: Callable[[Any], None]) -> None:
        self._coro, self._waits = coro, waits

    def __await__(self) -> Generator[Any, Any, Any]:
        inner = self._coro.__await__()
        given: Any = None
        while True:
            try:
                waits_for = inner.send(given)
            except StopIteration as stop:
                return stop.value
            self._waits(waits_for)
            try:
                given = yield waits_for
            except BaseException as error:  # noqa: BLE001 (thrown in: it is the coroutine's)
                inner.throw(error)
                given = None


async def _live(database: str, redis_url: str, batch: int, last_await: int | None, when: When) -> None:
    options = RelayOptions(batch=batch, poll_interval_s=0.02)
    relay = OutboxRelay(database, settings(redis_url), options=options)
    batch_of_it: Any = relay._batch
    applied: Any = relay._applied
    awaits, has_rows = 0, False

    def end(_: object) -> None:
        os.kill(os.getpid(), signal.SIGKILL)

    def waits(what: Any) -> None:
        nonlocal awaits
        if not has_rows:
            return
        if awaits == last_await:
            if when == "before":
                end(None)
            elif when == "answered" and asyncio.isfuture(what):
                what.add_done_callback(end)  # before the relay's own
            else:
                loop = asyncio.get_running_loop()
                loop.call_soon(loop.call_soon, end, None)  # the tasks that it has made begin before that
        awaits += 1

    async def counted(connection: Any) -> bool:
        nonlocal has_rows
        has_rows = False
        found: bool = await _Counted(batch_of_it(connection), waits)
        return found

    async def begins(plans: Any) -> None:
        nonlocal has_rows
        has_rows = bool(plans)
        await applied(plans)

    relay._batch = counted  # type: ignore[method-assign]
    relay._applied = begins  # type: ignore[method-assign]
    await relay.run()


def _mother() -> None:
    logger.remove()
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # nobody has to wait for them
    print("ready", flush=True)
    for line in sys.stdin:
        arguments = json.loads(line)
        pid = os.fork()
        if not pid:
            os.close(1)  # who waits for the mother's end waits for that of her output
            asyncio.run(_live(*arguments))
            os._exit(0)
        print(pid, flush=True)


if __name__ == "__main__":
    _mother()
