"""Supervises the node processes: starts them, listens to them, and ends them together."""

from __future__ import annotations

import asyncio
import os
import sys
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any, Final, Protocol, Self

import msgspec

import cachebus
from cachebus.errors import ConfigError
from cachebus.tools.harness.messages import GO, STOP, Done, Job, Message, OrderDone, Ready, Tick, decode_message, encode

START_S: Final = 30.0
STOP_S: Final = 10.0
LINE_MAX: Final = 1 << 20
PREFIX: Final = "CACHEBUS_"
MODULE: Final = "cachebus.tools.demo.node"

OnTick = Callable[[Tick], None]


class NodeCrashed(Exception):
    """A node process ended by itself. The message is one line that says which and why."""


class AnyJob(Protocol):
    """What the job of every node process has: its number, and its folder."""

    @property
    def node(self) -> int:
        """From 1 on."""

    @property
    def directory(self) -> str:
        """The folder of its history logs, and of its own log."""


class NodeProcess:
    """One node process, as its parent sees it. `module`: the program that it runs, which takes this kind of job."""

    def __init__(self, job: AnyJob, on_tick: OnTick, *, module: str = MODULE) -> None:
        self.job = job
        self._module = module
        self._on_tick = on_tick
        self._said: dict[str, asyncio.Future[str]] = {}
        self._log = Path(job.directory) / f"node-{job.node}.log"
        self._process: asyncio.subprocess.Process | None = None
        loop = asyncio.get_running_loop()
        self.ready: asyncio.Future[None] = loop.create_future()
        self.done: asyncio.Future[Tick] = loop.create_future()
        self._listening: asyncio.Task[None] | None = None

    @property
    def pid(self) -> int:
        """Its process id."""
        return self._alive().pid

    async def start(self) -> None:
        """Start the process and hand it its job."""
        with self._log.open("ab") as log:
            self._process = await asyncio.create_subprocess_exec(
                # -P: a user's file with the name of one of our modules must not be imported in its place
                sys.executable,
                "-P",
                "-m",
                self._module,
                stdin=asyncio.subprocess.PIPE,
                stdout=asyncio.subprocess.PIPE,
                stderr=log,
                limit=LINE_MAX,
                env=_environment(),
                start_new_session=True,
            )
        self.order(encode(self.job) + b"\n")
        self._listening = asyncio.create_task(self._listen(), name=f"node-{self.job.node}")

    def order(self, line: bytes) -> None:
        """Send it a line; nothing happens if it has ended."""
        stdin = self._alive().stdin
        if stdin is not None and not stdin.is_closing():
            stdin.write(line)

    async def ask(self, order: str, argument: str = "", *, within_s: float) -> str:
        """Send an order; returns the node's answer once it has carried it out. `NodeCrashed` if it does not."""
        said: asyncio.Future[str] = asyncio.get_running_loop().create_future()
        self._said[order] = said
        self.order(f"{order} {argument}".encode() + b"\n")
        ended: list[asyncio.Future[Any]] = [said, self.done]
        await asyncio.wait(ended, timeout=within_s, return_when=asyncio.FIRST_COMPLETED)
        if self.done.done() and not said.done():
            self.done.result()
        if not said.done():
            raise NodeCrashed(f"node {self.job.node} did not do {order!r} within {within_s:g} s")
        return said.result()

    async def end(self) -> None:
        """End it at once, if it lives, and wait for that."""
        process = self._process
        if process is None:
            return
        if process.returncode is None:
            process.kill()
        await process.wait()
        if self._listening is not None:
            await self._listening
        if process.stdin is not None:
            process.stdin.close()
        for future in (self.ready, self.done):
            if not future.cancel():
                future.exception()  # raised before, or of no interest any more

    async def _listen(self) -> None:
        process = self._alive()
        assert process.stdout is not None
        try:
            async for line in process.stdout:
                self._hear(decode_message(line))
        except msgspec.MsgspecError as error:
            self._give_up(NodeCrashed(f"node {self.job.node} said something that is no message: {error}"))
        status = await process.wait()
        self._give_up(NodeCrashed(f"node {self.job.node} ended with status {status}: {self._last_words()}"))

    def _hear(self, message: Message) -> None:
        if isinstance(message, Tick):
            self._on_tick(message)
        elif isinstance(message, OrderDone):
            said = self._said.get(message.order)
            if said is not None and not said.done():
                said.set_result(message.text)
        elif isinstance(message, Ready):
            self.ready.set_result(None)
        elif isinstance(message, Done):
            self._on_tick(message.last)
            self.done.set_result(message.last)
        elif self.ready.done():
            self._give_up(NodeCrashed(f"node {self.job.node} gave up: {message.error}"))
        else:  # it never became ready: the server or the settings are wrong, and the message says how
            self._give_up(ConfigError(message.error))

    def _give_up(self, error: Exception) -> None:
        for future in (self.ready, self.done):
            if not future.done():
                future.set_exception(error)

    def _last_words(self) -> str:
        lines = self._log.read_text(errors="replace").split("\n")
        return next((line.strip() for line in reversed(lines) if line.strip()), "it said nothing")

    def _alive(self) -> asyncio.subprocess.Process:
        if self._process is None:
            raise RuntimeError("the node was not started")
        return self._process


class ProcessFleet:
    """All node processes of a run. An async context manager: entering waits until all are connected, leaving ends
    all."""

    def __init__(self, jobs: Sequence[Job], on_tick: OnTick) -> None:
        self.nodes = [NodeProcess(job, on_tick) for job in jobs]

    async def __aenter__(self) -> Self:
        try:
            for node in self.nodes:
                await node.start()
            await until_ready(self.nodes)
        except BaseException:
            await end_all(self.nodes)
            raise
        return self

    async def __aexit__(self, *_: object) -> None:
        await end_all(self.nodes)

    def go(self) -> None:
        """Have all nodes begin their load."""
        for node in self.nodes:
            node.order(GO)

    async def watch(self, at_most_s: float) -> None:
        """Wait; `NodeCrashed` as soon as a node has ended."""
        ended, _ = await asyncio.wait(
            [node.done for node in self.nodes], timeout=at_most_s, return_when=asyncio.FIRST_COMPLETED
        )
        for future in ended:
            future.result()

    async def stop(self) -> list[Tick]:
        """Have all nodes stop; returns their last figures. `NodeCrashed` for a node that does not stop."""
        for node in self.nodes:
            node.order(STOP)
        return await until_stopped(self.nodes)


async def until_ready(nodes: Sequence[NodeProcess]) -> None:
    """Return when these are connected; `NodeCrashed` where one is not in time, and what one that gives up says."""
    try:
        async with asyncio.timeout(START_S):
            await _all([node.ready for node in nodes])
    except TimeoutError:
        raise NodeCrashed(f"the nodes were not ready in {START_S:g} s") from None


async def until_stopped(nodes: Sequence[NodeProcess]) -> list[Tick]:
    """The last figures of these, once all have stopped as they were told; `NodeCrashed`."""
    try:
        async with asyncio.timeout(STOP_S):
            await _all([node.done for node in nodes])
    except TimeoutError:
        late = ", ".join(str(node.job.node) for node in nodes if not node.done.done())
        raise NodeCrashed(f"node {late} did not stop in {STOP_S:g} s") from None
    return [node.done.result() for node in nodes]


async def end_all(nodes: Iterable[NodeProcess]) -> None:
    """End these at once."""
    await asyncio.gather(*(node.end() for node in nodes))


async def _all(futures: Sequence[asyncio.Future[Any]]) -> None:
    if not futures:
        return
    # Not gather: that would cancel futures which are awaited elsewhere, too.
    ended, pending = await asyncio.wait(futures, return_when=asyncio.FIRST_EXCEPTION)
    for future in ended:
        future.result()
    assert not pending


def _environment() -> dict[str, str]:
    """This process's environment, with this package on the path, and without settings for the user's own caches."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith(PREFIX)}
    home = str(Path(cachebus.__file__).parents[1])
    kept["PYTHONPATH"] = os.pathsep.join(filter(None, [home, kept.get("PYTHONPATH", "")]))
    return kept
