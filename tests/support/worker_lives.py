"""Workers of an outbox, of commands or of a slot, as processes that are killed: each lives until a signal, or until an
await of its own that was chosen for it.

Run as a module it is their mother: for each line of its input, a JSON list of arguments, it forks one and prints
its process id. Forked, it is at work within milliseconds.
"""

from __future__ import annotations

import asyncio
import json
import logging
import os
import signal
import sys
from collections.abc import Coroutine
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import Any, Final, Literal, Self

from loguru import logger
from pydantic import SecretStr

from cachebus.consumers.cdc.rules.rules import parse_rules
from cachebus.consumers.cdc.slot.postgres import SlotSource, SlotWorker
from cachebus.consumers.kafka import WorkerOptions
from cachebus.consumers.outbox import OutboxRelay, RelayOptions
from cachebus.consumers.topics.commits import Committer
from tests.support.caches import quick
from tests.support.command import alive
from tests.support.commands import setup, worker_of
from tests.support.outbox import settings
from tests.support.steps import Driven

ROOT = Path(__file__).parents[2]
SLOT_RULES = """
[[rule]]
table = "shop.short"
data_type = "short"
resource_id = "{id}"
tenant_id = "{tenant_id}"
operations = ["insert", "update", "truncate"]

[[rule]]
table = "shop.long"
data_type = "long"
resource_id = "{id}"
tenant_id = "{tenant_id}"
related = [{ data_type = "owner", resource_id = "{owner}" }]
when = ["note"]
replica_identity = "full"

[[rule]]
table = "shop.parts"
data_type = "part"
resource_id = "{id}"
tenant_id = "{tenant_id}"
operations = ["insert", "update", "truncate"]
"""
"""Changes of `short` are read by the short way, those of `long` whole, and `parts` has partitions."""
SLOT_RULES_OF_BEFORE = SLOT_RULES.replace('"shop.long"', '"shop.elsewhere"').replace('"short"', '"brief"')
"""Another version of them, that one rolls back to."""
When = Literal["applied", "before", "sent", "answered"]
"""Once L2 has what a batch means, and its source does not know; or at an await: before the tasks that it waits for
begin; when what it waits for has been sent; or is there, and untold."""
WHENS: tuple[When, ...] = ("applied", "before", "sent", "answered")


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
            "tests.support.worker_lives",
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

    async def begin_slot(
        self,
        database: str,
        redis_url: str,
        slot: str,
        *,
        last_await: int | None = None,
        when: When = "sent",
        of_before: bool = False,
    ) -> int:
        """Likewise of a worker of a slot, which makes a lost one anew. `of_before`: by the other rules."""
        return await self._begin("slot", database, redis_url, slot, last_await, when, of_before)

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


class _Fate:
    """Ends this process at an await of a number, of those while it is `armed`."""

    def __init__(self, last_await: int | None, when: When) -> None:
        self._last_await, self._when = last_await, when
        self._awaits = 0
        self.armed = False

    def counted(self, coro: Coroutine[Any, Any, Any]) -> Driven:
        """The coroutine, whose awaits are counted."""
        return Driven(coro, self._waits)

    def _waits(self, what: Any) -> None:
        if not self.armed:
            return
        if self._awaits == self._last_await and self._when != "applied":
            if self._when == "before":
                _end(None)
            elif self._when == "answered" and asyncio.isfuture(what):
                what.add_done_callback(_end)  # before the worker's own
            else:
                loop = asyncio.get_running_loop()
                loop.call_soon(loop.call_soon, _end, None)  # the tasks that it has made begin before that
        self._awaits += 1

    def applied(self, batch: Any, left: Any) -> None:
        """A batch was applied, but for what is left of it; the first one behind the await of that number ends it."""
        reached = self._last_await is not None and self._awaits >= self._last_await
        if self._when == "applied" and reached and len(left.undone) < len(batch.items):
            _end(None)


def _end(_: object) -> None:
    os.kill(os.getpid(), signal.SIGKILL)


async def _lived(worker: Any, fate: _Fate) -> None:
    """Run a worker whose awaits count from where it has a batch in hand to where it has let it go."""
    step, carried = worker._step, worker._apply_batch

    async def counted(session: Any) -> None:
        fate.armed = False
        await fate.counted(step(session))

    async def begins(session: Any, batch: Any) -> Any:
        fate.armed = True
        left = await carried(session, batch)
        fate.applied(batch, left)
        return left

    worker._step, worker._apply_batch = counted, begins
    await worker.run()


async def _relay(database: str, redis_url: str, batch: int, last_await: int | None, when: When) -> None:
    options = RelayOptions(batch=batch, poll_interval_s=0.02)
    relay = OutboxRelay(database, settings(redis_url), options=options)
    await _lived(relay, _Fate(last_await, when))


async def _commands(kafka: str, redis_url: str, name: str, batch: int, last_await: int | None, when: When) -> None:
    options = WorkerOptions(batch=batch, session_timeout_s=1.0)
    worker = worker_of(setup(redis_url, kafka, namespace=name, kafka_commands_topic=name), options)
    carried: Any = worker._apply_batch
    committed: Any = Committer._committed
    fate = _Fate(last_await, when)

    async def carries(session: Any, batch: Any) -> Any:
        fate.armed = True
        left = await fate.counted(carried(session, batch))
        fate.applied(batch, left)
        return left

    async def commits(*given: Any) -> None:
        await fate.counted(committed(*given))
        fate.armed = False

    worker._apply_batch = carries  # type: ignore[method-assign]
    Committer._committed = commits  # type: ignore[method-assign]
    await worker.run()


async def _slot(database: str, redis_url: str, slot: str, last_await: int | None, when: When, of_before: bool) -> None:
    rules = parse_rules(SLOT_RULES_OF_BEFORE if of_before else SLOT_RULES)
    source = SlotSource(SecretStr(database), slot=slot, publication=slot)
    worker = SlotWorker(quick(redis_url, guard_max_s=0), rules, source)
    await _lived(worker, _Fate(last_await, when))


LIVES: Final = {"outbox": _relay, "kafka": _commands, "slot": _slot}


def _mother() -> None:
    logger.remove()
    logging.disable()
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # nobody has to wait for them
    print("ready", flush=True)
    for line in sys.stdin:
        kind, *arguments = json.loads(line)
        pid = os.fork()
        if not pid:
            os.close(1)  # who waits for the mother's end waits for that of her output
            asyncio.run(LIVES[kind](*arguments))
            os._exit(0)
        print(pid, flush=True)


if __name__ == "__main__":
    _mother()
