"""One node of a run, a process of its own: `python -m cachebus.cli.verify.node`, its job as the first line of stdin.

It ends when it is told to, or at once when stdin does, that is, when its parent has gone, however that ended.
"""

from __future__ import annotations

import asyncio
import ctypes
import signal
import sys
import threading
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from random import Random
from typing import Final

from cachebus import Cache, CacheBusError, L2Unavailable
from cachebus.cli.lab.messages import TICK_S, Done, Failed, Ready, Said, Tick
from cachebus.cli.lab.talk import hear, next_order, say
from cachebus.cli.verify import messages
from cachebus.cli.verify.items import Item, make_items
from cachebus.cli.verify.loaders import Loaders
from cachebus.cli.verify.messages import Job, decode_job
from cachebus.cli.verify.publishing import Publishing
from cachebus.cli.verify.reading import Readers
from cachebus.cli.verify.setup import settings_of
from cachebus.cli.verify.tape import KINDS, Tape
from cachebus.cli.verify.trouble import watch
from cachebus.cli.verify.truth import Truth
from cachebus.cli.verify.writing import Writers
from cachebus.clock import monotonic

RECOVERY_BOUNDS: Final = 5.0
RECOVERY_S: Final = 10.0
"""Within so many bounds, and so many seconds more, a node whose network is whole must be at work again."""
_PR_SET_PDEATHSIG: Final = 1


def main() -> int:
    """Run the node; its exit status."""
    if sys.platform == "linux":
        # A node that is stopped when its parent goes would never see its stdin end.
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    return asyncio.run(_main())


async def _main() -> int:
    orders = await hear()
    job = decode_job(await next_order(orders))
    items = make_items()
    try:
        with Truth(Path(job.directory), len(items)) as truth:
            async with Cache.open(settings_of(job)) as cache:
                await _Node(job, cache, items, truth).serve(orders)
    except CacheBusError as error:
        say(Failed(job.node, " ".join(str(error).split())))
        return 2
    return 0


class _Node:
    """The cache of one process, its load, and what its parent asks of it."""

    def __init__(self, job: Job, cache: Cache, items: Sequence[Item], truth: Truth) -> None:
        self._job, self._cache, self._items, self._truth = job, cache, items, truth
        self._tapes = {kind: Tape(Path(job.directory), job.name, kind) for kind in KINDS}
        applied = self._tapes["applied"]

        def note(_shard: int, epoch: str, seq: int, at_s: float) -> None:
            applied.add(int(epoch, 16), seq, at_s)

        cache.on_applied = note
        self._publishing = Publishing(cache._live().bus, monotonic)
        # A node's operations are the same for the same seed: only when they come differs.
        name = f"{job.seed}:{job.name}"
        self._loaders = Loaders(items, truth, self._tapes["loads"], Random(f"{name}:loads"), monotonic)
        self._readers = Readers(
            cache, items, truth, self._loaders, self._tapes, Random(f"{name}:reads"), job.rate, monotonic,
            order_seed=str(job.seed),
        )  # fmt: skip
        self._writers = Writers(
            cache, items, truth, self._tapes["writes"], Random(f"{name}:writes"), monotonic,
            node=job.node, nodes=job.nodes, rate=job.write_rate, read_own=self._readers.own,
        )  # fmt: skip

    async def serve(self, orders: asyncio.StreamReader) -> None:
        """Until told to stop."""
        say(Ready(self._job.node))
        if not (await next_order(orders)).startswith(b"go"):
            return
        telling = asyncio.create_task(self._tell())
        watching = asyncio.create_task(watch(self._cache, self._tapes["trouble"], monotonic))
        load = asyncio.create_task(self._load())
        listening = asyncio.create_task(self._obey(orders, load))
        try:
            # A load that ends in an error ends the process, and its last words tell the error.
            await asyncio.wait([listening, load], return_when=asyncio.FIRST_EXCEPTION)
            if load.done():
                _told(load)
            await listening
        finally:
            for task in (telling, watching, listening, load):
                task.cancel()
        say(Done(self._tick()))

    async def _load(self) -> None:
        await asyncio.gather(self._readers.run(), self._writers.run())

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
            elif order in (messages.MUTE, messages.TWICE, messages.SWAP):
                self._publishing.become(order, float(argument))
            elif order == messages.QUIET:
                said = await self._be_quiet(load)
            elif order == messages.SETTLE:
                await self._writers.settle([int(number) for number in argument.split(",")])
            elif order == messages.LOOK:
                await self._look()
            say(Said(self._job.node, order, said))

    async def _be_quiet(self, load: asyncio.Task[None]) -> str:
        self._readers.stop()
        self._writers.stop()
        await load
        deadline_s = monotonic() + RECOVERY_BOUNDS * self._job.bound_s + RECOVERY_S
        while not self._cache.ready() and monotonic() < deadline_s:  # noqa: ASYNC110 (nothing tells of a lease)
            await asyncio.sleep(0.01)
        return "ready" if self._cache.ready() else "not ready"

    async def _look(self) -> None:
        for item in self._items[1:]:
            versions = [await self._version(item, use_memory=memory) for memory in (True, False)]
            self._tapes["rest"].add(item.number, *versions)

    async def _version(self, item: Item, *, use_memory: bool) -> int:
        while True:
            with suppress(L2Unavailable):
                value = await self._cache.get(item.data_type, item.resource_id, *item.place, use_memory=use_memory)
                return 0 if value is None else int(value[1])
            await asyncio.sleep(0.05)

    async def _tell(self) -> None:
        while True:
            now_s = monotonic()
            await asyncio.sleep(TICK_S - now_s % TICK_S)
            say(self._tick())

    def _tick(self) -> Tick:
        stats, readers = self._cache.stats(), self._readers
        return Tick(
            node=self._job.node,
            at_s=monotonic(),
            accesses=readers.begun,
            reads=readers.answered,
            writes=self._writers.written,
            failed=readers.failed,
            repeated=self._writers.repeated,
            l1_hits=stats.l1_hits,
            l2_hits=stats.l2_hits,
            loads=self._loaders.loads,
            applied=stats.shards[0].applied,
            lease_left_s=stats.shards[0].lease_left_s,
        )


def _told(load: asyncio.Task[None]) -> None:
    """Raise what ended the load, the first of a group: the last line of this process's log is its parent's message."""
    error: BaseException | None = load.exception()
    while isinstance(error, BaseExceptionGroup):
        error = error.exceptions[0]
    if error is not None:
        raise error


if __name__ == "__main__":
    sys.exit(main())
