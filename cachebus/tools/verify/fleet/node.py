"""One node of a run, a process of its own: `python -m cachebus.tools.verify.fleet.node`, its job as stdin's first line.

It ends when it is told to. It ends at once when its stdin ends, which happens when the parent is gone.
"""

from __future__ import annotations

import asyncio
import ctypes
import signal
import sys
import threading
from collections.abc import Sequence
from contextlib import AsyncExitStack, suppress
from pathlib import Path
from random import Random
from typing import Final

from cachebus import Cache, CacheBusError, L2Unavailable, lifespan
from cachebus.base.clock import monotonic
from cachebus.tools.harness.messages import TICK_S, Done, Failed, OrderDone, Ready, Tick
from cachebus.tools.harness.talk import hear, next_order, say
from cachebus.tools.verify.fleet import data_types, messages
from cachebus.tools.verify.fleet.anomalies import Anomalies
from cachebus.tools.verify.fleet.answers import Answers
from cachebus.tools.verify.fleet.command_queue import CommandQueue
from cachebus.tools.verify.fleet.counters import CounterLoop
from cachebus.tools.verify.fleet.disturbances import LoopLag, record_disturbances
from cachebus.tools.verify.fleet.guarded_writes import GuardedWriter
from cachebus.tools.verify.fleet.history_log import KINDS, HistoryLog
from cachebus.tools.verify.fleet.items import SourceItem, make_items
from cachebus.tools.verify.fleet.loaders import Loaders
from cachebus.tools.verify.fleet.messages import VerifyJob, decode_job
from cachebus.tools.verify.fleet.publishing import FaultyPublisher
from cachebus.tools.verify.fleet.reading import Readers
from cachebus.tools.verify.fleet.setup import l2_timeout_s, probe_interval_s, settings_of
from cachebus.tools.verify.fleet.source_of_truth import SourceOfTruth
from cachebus.tools.verify.fleet.writing import Writers
from cachebus.tools.verify.target.node_proxies import redirect

RECOVERY_BOUNDS: Final = 5.0
RECOVERY_S: Final = 10.0
"""A node must have recovered within so many bounds and so many seconds after the last fault."""
WAIT: Final = 1.25
"""How long a read may wait for L2, all its steps together, in time-outs of L2."""
SLACK_S: Final = 0.4
"""What a busy process may need in addition."""
FILES: Final = Path("/proc/self/fd")
COUNTED: Final = ("tasks", "sockets")
OWN_TASKS: Final = 3
"""Tasks of the node itself that still run when it counts what the load has left."""
_PR_SET_PDEATHSIG: Final = 1


def main() -> int:
    """Run the node; its exit status."""
    if sys.platform == "linux":
        # A stopped process does not see its stdin end, so the kernel kills it when its parent is gone.
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    return asyncio.run(_main())


async def _main() -> int:
    orders = await hear()
    job = decode_job(await next_order(orders))
    items = make_items(2 if job.other_url else 1)
    redirect(asyncio.get_running_loop(), job.proxy_ports)
    try:
        with SourceOfTruth(Path(job.directory), len(items)) as source:
            async with AsyncExitStack() as stack:
                # The first is the process-wide cache too: helpers that take no cache use it.
                caches = [await stack.enter_async_context(lifespan(settings_of(job)))]
                if job.other_url:
                    caches.append(await stack.enter_async_context(Cache.open(settings_of(job, 1))))
                await _Node(job, caches, items, source).serve(orders)
    except CacheBusError as error:
        say(Failed(job.node, " ".join(str(error).split())))
        return 2
    return 0


class _Node:
    """The caches of one process, their load, and the parent's orders."""

    def __init__(
        self, job: VerifyJob, caches: Sequence[Cache], items: Sequence[SourceItem], source: SourceOfTruth
    ) -> None:
        self._job, self._caches, self._items, self._source = job, caches, items, source
        self._logs = {kind: HistoryLog(Path(job.directory), job.name, kind) for kind in KINDS}
        for cache in caches:
            cache.on_applied = self._on_applied
        self._publishing = FaultyPublisher(caches[0]._live().bus, monotonic)
        # The same seed gives the same operations, at other times.
        name, anomalies = f"{job.seed}:{job.name}", Anomalies(self._logs["anomalies"])
        self._loaders = Loaders(
            caches, items, source, self._logs["loads"], anomalies, Random(f"{name}:loads"), monotonic
        )
        self._loop_lag = LoopLag(monotonic)
        self._answers = Answers(
            source,
            self._logs["reads"],
            self._logs["shown"],
            self._logs["absent"],
            anomalies,
            monotonic,
            longest_s=WAIT * l2_timeout_s(job.bound_s) + SLACK_S,
            loop_lag=self._loop_lag,
        )
        self._readers = Readers(
            caches,
            items,
            source,
            self._loaders,
            self._answers,
            self._logs["tokens"],
            Random(f"{name}:reads"),
            job.rate,
            monotonic,
            order_seed=str(job.seed),
        )
        self._commands = CommandQueue(settings_of(job))
        guards = GuardedWriter(
            caches, source, self._logs["writes"], Random(f"{name}:guards"), monotonic, job.largest_bound_s
        )
        self._writers = Writers(
            caches,
            items,
            source,
            self._logs["writes"],
            anomalies,
            guards,
            Random(f"{name}:writes"),
            monotonic,
            node=job.node,
            nodes=job.nodes,
            rate=job.write_rate,
            read_own=self._readers.own,
            order_seed=str(job.seed),
            commands=self._commands,
        )
        self._before = 0, 0
        self._counting = CounterLoop(caches[0], items[1], job.name, anomalies, monotonic) if job.other_url else None

    def _on_applied(self, _shard: int, epoch: str, seq: int, at_s: float) -> None:
        self._logs["applied"].add(int(epoch, 16), seq, at_s)

    async def serve(self, orders: asyncio.StreamReader) -> None:
        """Run until told to stop."""
        found = 0, 0
        while (now := _count()) != found:  # the caches start their tasks one by one: count when all are there
            found = now
            await asyncio.sleep(probe_interval_s(self._job.bound_s))
        self._before = found[0] + OWN_TASKS, found[1]
        say(Ready(self._job.node))
        while not (order := await next_order(orders)).startswith(b"go"):
            if order.startswith(messages.STOP.encode()):
                return  # any other order was meant for the node's process before this one
        telling = asyncio.create_task(self._tell())
        watching = asyncio.create_task(
            record_disturbances(self._caches, self._logs["disturbances"], monotonic, self._loop_lag)
        )
        load = asyncio.create_task(self._load())
        listening = asyncio.create_task(self._obey(orders, load))
        try:
            # A load that fails ends the process. The last line of its log then tells the error.
            await asyncio.wait([listening, load], return_when=asyncio.FIRST_EXCEPTION)
            if load.done():
                _log_failure(load)
            await listening
        finally:
            for task in (telling, watching, listening, load):
                task.cancel()
        say(Done(self._tick()))

    async def _load(self) -> None:
        counting = () if self._counting is None else (self._counting.run(),)
        await asyncio.gather(self._readers.run(), self._write(), *counting)

    async def _write(self) -> None:
        """Run the writers, and the worker that makes some of their invalidations, until it is drained."""
        worker = self._commands.worker
        working = asyncio.create_task(worker.run(), name="verify-worker")
        writing = asyncio.create_task(self._writers.run(), name="verify-writers")
        try:
            await asyncio.wait([working, writing], return_when=asyncio.FIRST_COMPLETED)
            worker.drain()
            await asyncio.wait([working], timeout=self._job.largest_bound_s)
            self._commands.fail_pending()
        finally:
            for task in (working, writing):
                task.cancel()
            await asyncio.wait([working, writing])
        for task in (working, writing):
            if not task.cancelled():
                task.result()

    async def _obey(self, orders: asyncio.StreamReader, load: asyncio.Task[None]) -> None:
        while True:
            order, _, argument = (await next_order(orders)).decode().strip().partition(" ")
            if order == messages.STOP:
                return
            said = ""
            if order == messages.STALL:
                threading.Event().wait(float(argument))
            elif order == messages.SLOW:
                self._loaders.slow_until_s = monotonic() + float(argument)
            elif order == messages.SOUR:
                self._loaders.sour_until_s = monotonic() + float(argument)
            elif order == messages.STUCK:
                self._loaders.stuck_until_s = monotonic() + float(argument)
            elif order == messages.GUARD:
                await self._writers.abandon_guard(float(argument))
            elif order in (messages.MUTE, messages.TWICE, messages.SWAP):
                self._publishing.set_mode(order, float(argument))
            elif order == messages.QUIET:
                said = await self._be_quiet(load)
            elif order == messages.SETTLE:
                await self._writers.settle([int(number) for number in argument.split(",")])
            elif order == messages.LOOK:
                await self._look()
            say(OrderDone(self._job.node, order, said))

    async def _be_quiet(self, load: asyncio.Task[None]) -> str:
        self._readers.stop()
        self._writers.stop()
        if self._counting is not None:
            self._counting.stop()
        deadline_s = monotonic() + RECOVERY_BOUNDS * self._job.largest_bound_s + RECOVERY_S
        if not (await asyncio.wait([load], timeout=deadline_s - monotonic()))[0]:
            self._commands.fail_pending()  # the worker is stuck, so the node is not ready
            await load
            return messages.NOT_READY
        await load
        while not self._ready() and monotonic() < deadline_s:  # noqa: ASYNC110 (nothing tells of a lease)
            await asyncio.sleep(0.01)
        if not self._ready():
            return messages.NOT_READY
        while (left := self._left()) and monotonic() < deadline_s:  # noqa: ASYNC110 (nor of a socket that is closed)
            await asyncio.sleep(0.01)
        return left or messages.READY

    def _left(self) -> str:
        """The tasks and sockets that the load has left. "" for a node that started amid faults, which can't tell."""
        more = [
            f"{now - before} {name}"
            for now, before, name in zip(_count(), self._before, COUNTED, strict=True)
            if now > before
        ]
        return " and ".join(more) if self._job.life == 1 else ""

    def _ready(self) -> bool:
        return all(cache.ready() for cache in self._caches)

    async def _look(self) -> None:
        for item in self._items[1:]:
            versions = [await self._version(item, use_memory=memory) for memory in (True, False)]
            self._logs["rest"].add(item.number, *versions)

    async def _version(self, item: SourceItem, *, use_memory: bool) -> int:
        while True:
            with suppress(L2Unavailable):
                cache = self._caches[item.cache_index]
                value = await cache.get(item.data_type, item.resource_id, *item.place, use_memory=use_memory)
                return 0 if value is None else data_types.parse(value)[1]
            await asyncio.sleep(0.05)

    async def _tell(self) -> None:
        while True:
            now_s = monotonic()
            await asyncio.sleep(TICK_S - now_s % TICK_S)
            say(self._tick())

    def _tick(self) -> Tick:
        stats, answers = self._caches[0].stats(), self._answers
        return Tick(
            node=self._job.node,
            at_s=monotonic(),
            accesses=self._readers.begun,
            reads=answers.answered,
            writes=self._writers.written,
            failed=answers.failed,
            repeated=self._writers.repeated,
            l1_hits=stats.l1_hits,
            l2_hits=stats.l2_hits,
            loads=self._loaders.loads,
            applied=stats.shards[0].applied,
            lease_left_s=stats.shards[0].lease_left_s,
            ways=self._ways(),
        )

    def _ways(self) -> dict[str, int]:
        stats = [cache.stats() for cache in self._caches]
        types = [each for one in stats for each in one.types.values()]
        return {
            "fallbacks": sum(each.fallbacks for each in types),
            "loads of what is absent": sum(each.not_found for each in types),
            "loads that failed": sum(each.load_errors for each in types),
            "loads behind a guard": sum(one.guarded_loads for one in stats),
            "refreshes": sum(each.refreshes for each in types),
            "values that can't be cached": sum(each.serialization_errors for each in types),
            "values taken over by a warm-up": sum(one.warmed for one in stats),
            "fills refused": sum(one.fills_rejected for one in stats),
            "callers that gave up": self._answers.given_up,
            "invalidations by a worker": self._commands.worker.meters.count("applied"),
            "increments": 0 if self._counting is None else self._counting.counted,
        }


def _count() -> tuple[int, int]:
    """How many tasks there are, and how many sockets, where the system tells."""
    sockets = 0
    for file in FILES.iterdir() if FILES.is_dir() else ():
        with suppress(OSError):  # the file of this very listing is closed by then
            sockets += str(file.readlink()).startswith("socket:")
    return len(asyncio.all_tasks()), sockets


def _log_failure(load: asyncio.Task[None]) -> None:
    """Raise the error that ended the load, the first of a group. The parent shows the last line of this process's
    log."""
    error: BaseException | None = load.exception()
    while isinstance(error, BaseExceptionGroup):
        error = error.exceptions[0]
    if error is not None:
        raise error


if __name__ == "__main__":
    sys.exit(main())
