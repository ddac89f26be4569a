"""One node, a process of its own: `python -m cachebus.tools.demo.node`, with its job as the first line of stdin.

It ends when it is told to. It ends at once when its stdin ends, which happens when the parent is gone.
"""

from __future__ import annotations

import asyncio
import sys
from collections.abc import AsyncIterator, Iterator
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path

from cachebus.base.clock import monotonic
from cachebus.errors import CacheBusError
from cachebus.tools.demo import generator, trace
from cachebus.tools.demo.catalogue import FILE, Shop, SlowSource, SqliteShop
from cachebus.tools.demo.history import APPLIED, READ, WRITE, DemoLog, log_path
from cachebus.tools.demo.subjects import open_subject
from cachebus.tools.demo.traffic import Traffic
from cachebus.tools.harness.messages import TICK_S, Done, Failed, Job, Ready, decode_job
from cachebus.tools.harness.talk import hear, next_order, say


def main() -> int:
    """Run the node; its exit status."""
    return asyncio.run(_main())


async def _main() -> int:
    orders = await hear()
    job = decode_job(await next_order(orders))
    try:
        await _serve(job, orders)
    except CacheBusError as error:
        say(Failed(job.node, " ".join(str(error).split())))
        return 2
    return 0


async def _serve(job: Job, orders: asyncio.StreamReader) -> None:
    directory = Path(job.directory)
    async with AsyncExitStack() as stack:
        reads, writes, applied = (
            stack.enter_context(DemoLog(log_path(directory, job.node, kind), struct))
            for kind, struct in (("reads", READ), ("writes", WRITE), ("applied", APPLIED))
        )
        shop = await stack.enter_async_context(_shop(job))
        source = SlowSource(shop, job.source_latency_s)
        async with open_subject(job, source, applied, monotonic) as subject:
            say(Ready(job.node))
            await next_order(orders)
            traffic = Traffic(job, _accesses(job), subject, shop, reads, writes, monotonic)
            await _run(traffic, orders)
            last = traffic.tick()
    say(Done(last))


@asynccontextmanager
async def _shop(job: Job) -> AsyncIterator[Shop]:
    if job.database is None:
        with SqliteShop(Path(job.directory, FILE), monotonic) as shop:
            yield shop
        return
    from cachebus.tools.demo.database import open_shop

    async with open_shop(job, monotonic) as there:
        yield there


async def _run(traffic: Traffic, orders: asyncio.StreamReader) -> None:
    """Run until the order "stop", also if the accesses end before."""
    ticking = asyncio.create_task(_tell(traffic))
    running = asyncio.create_task(traffic.run())
    order = asyncio.create_task(next_order(orders))
    try:
        await asyncio.wait([running, order], return_when=asyncio.FIRST_COMPLETED)
        if not running.done() or running.exception() is None:
            await order
        traffic.stop()
        await running
    finally:
        for task in (ticking, running, order):
            task.cancel()


async def _tell(traffic: Traffic) -> None:
    while True:
        now_s = monotonic()
        await asyncio.sleep(TICK_S - now_s % TICK_S)
        say(traffic.tick())


def _accesses(job: Job) -> Iterator[int]:
    if job.trace is None:
        return generator.accesses(job.seed, job.node)
    return trace.share(trace.chunks(Path(job.trace)), job.node - 1, job.nodes)


if __name__ == "__main__":
    sys.exit(main())
