"""Workers of an outbox or of commands, as processes that are killed: each lives until a signal, or until an await of
its own that was chosen for it.

Run as a module it is their mother: for each line of its input, a JSON list of arguments, it forks one and prints
its process id. Forked, it is at work within milliseconds.
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

from cachebus.consumers.kafka import WorkerOptions
from cachebus.consumers.outbox import OutboxRelay, RelayOptions
from cachebus.consumers.topics.commits import Committer
from tests.support.command import alive
from tests.support.commands import setup, worker_of
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
            sys.executable,
            "-m",
            "tests.support.relay_lives",
            cwd=ROOT,
            env={**os.environ, "PYTHONPATH": str(ROOT)},
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
        )
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
        return await self._begin("outbox", database, redis_url, batch, last_await, when)

    async def begin_commands(
        self,
        kafka: str,
        redis_url: str,
        name: str,
        *,
        batch: int = 20,
        last_await: int | None = None,
        when: When = "sent",
    ) -> int:
        """Likewise of a worker of commands, whose topic and namespace have that name."""
        return await self._begin("kafka", kafka, redis_url, name, batch, last_await, when)

    async def _begin(self, *arguments: Any) -> int:
        assert self._mother.stdin is not None and self._mother.stdout is not None
        async with self._asking:
            self._mother.stdin.write(json.dumps(arguments).encode() + b"\n")
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
        send: Callable[[Any], Any] = self._coro.send
        given: Any = None
        while True:
            try:
                waits_for = send(given)
            except StopIteration as stop:
                return stop.value
            self._waits(waits_for)
            try:
                send, given = self._coro.send, (yield waits_for)
            except BaseException as error:  # noqa: BLE001 (thrown in: it is the coroutine's)
                send, given = self._coro.throw, error


class _Fate:
    """Ends this process at an await of a number, of those while it is `armed`."""

    def __init__(self, last_await: int | None, when: When) -> None:
        self._last_await, self._when = last_await, when
        self._awaits = 0
        self.armed = False

    def counted(self, coro: Coroutine[Any, Any, Any]) -> _Counted:
        """The coroutine, whose awaits are counted."""
        return _Counted(coro, self._waits)

    def _waits(self, what: Any) -> None:
        if not self.armed:
            return
        if self._awaits == self._last_await:
            if self._when == "before":
                _end(None)
            elif self._when == "answered" and asyncio.isfuture(what):
                what.add_done_callback(_end)  # before the worker's own
            else:
                loop = asyncio.get_running_loop()
                loop.call_soon(loop.call_soon, _end, None)  # the tasks that it has made begin before that
        self._awaits += 1


def _end(_: object) -> None:
    os.kill(os.getpid(), signal.SIGKILL)


async def _relay(database: str, redis_url: str, batch: int, last_await: int | None, when: When) -> None:
    options = RelayOptions(batch=batch, poll_interval_s=0.02)
    relay = OutboxRelay(database, settings(redis_url), options=options)
    step: Any = relay._step
    carried: Any = relay._apply_batch
    fate = _Fate(last_await, when)

    async def counted(session: Any) -> None:
        fate.armed = False
        await fate.counted(step(session))

    async def begins(session: Any, batch: Any) -> Any:
        fate.armed = True
        return await carried(session, batch)

    relay._step = counted  # type: ignore[method-assign]
    relay._apply_batch = begins  # type: ignore[method-assign]
    await relay.run()


async def _commands(kafka: str, redis_url: str, name: str, batch: int, last_await: int | None, when: When) -> None:
    options = WorkerOptions(batch=batch, session_timeout_s=1.0)
    worker = worker_of(setup(redis_url, kafka, namespace=name, kafka_commands_topic=name), options)
    carried: Any = worker._apply_batch
    committed: Any = Committer._committed
    fate = _Fate(last_await, when)

    async def carries(session: Any, batch: Any) -> Any:
        fate.armed = True
        return await fate.counted(carried(session, batch))

    async def commits(*given: Any) -> None:
        await fate.counted(committed(*given))
        fate.armed = False

    worker._apply_batch = carries  # type: ignore[method-assign]
    Committer._committed = commits  # type: ignore[method-assign]
    await worker.run()


def _mother() -> None:
    logger.remove()
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # nobody has to wait for them
    print("ready", flush=True)
    for line in sys.stdin:
        kind, *arguments = json.loads(line)
        pid = os.fork()
        if not pid:
            os.close(1)  # who waits for the mother's end waits for that of her output
            asyncio.run((_relay if kind == "outbox" else _commands)(*arguments))
            os._exit(0)
        print(pid, flush=True)


if __name__ == "__main__":
    _mother()
