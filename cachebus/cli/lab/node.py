"""One node, a process of its own: `python -m cachebus.cli.lab.node`, with its job as the first line of stdin.

It ends when it is told to, or at once when stdin does, that is, when its parent has gone, however that ended.
"""

from __future__ import annotations

import asyncio
import os
import sys
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Final

from cachebus.cli.lab import generator, trace
from cachebus.cli.lab.catalogue import FILE, Catalogue, Source
from cachebus.cli.lab.history import APPLIED, READ, WRITE, Spool, spool_path
from cachebus.cli.lab.messages import TICK_S, Done, Failed, Job, Message, Ready, decode_job, encode
from cachebus.cli.lab.subjects import opened
from cachebus.cli.lab.traffic import Traffic
from cachebus.clock import monotonic
from cachebus.errors import CacheBusError

LINE_MAX: Final = 1 << 20


def main() -> int:
    """Run the node; its exit status."""
    return asyncio.run(_main())


async def _main() -> int:
    orders = await _stdin()
    job = decode_job(await _next(orders))
    try:
        await _serve(job, orders)
    except CacheBusError as error:
        _say(Failed(job.node, " ".join(str(error).split())))
        return 2
    return 0


async def _serve(job: Job, orders: asyncio.StreamReader) -> None:
    directory = Path(job.directory)
    with ExitStack() as stack:
        reads, writes, applied = (
            stack.enter_context(Spool(spool_path(directory, job.node, kind), struct))
            for kind, struct in (("reads", READ), ("writes", WRITE), ("applied", APPLIED))
        )
        # Each of its own thread: the readers' on the event loop, the writer's beside it.
        read_from, write_to = (stack.enter_context(Catalogue(directory / FILE)) for _ in range(2))
        source = Source(read_from, job.source_latency_s)
        async with opened(job, source, applied, monotonic) as subject:
            _say(Ready(job.node))
            await _next(orders)
            traffic = Traffic(job, _accesses(job), subject, write_to, reads, writes, monotonic)
            await _run(traffic, orders)
            last = traffic.tick()
    _say(Done(last))


async def _run(traffic: Traffic, orders: asyncio.StreamReader) -> None:
    """Until "stop", also when the accesses end before."""
    teller = asyncio.create_task(_tell(traffic))
    running = asyncio.create_task(traffic.run())
    order = asyncio.create_task(_next(orders))
    try:
        await asyncio.wait([running, order], return_when=asyncio.FIRST_COMPLETED)
        if not running.done() or running.exception() is None:
            await order
        traffic.stop()
        await running
    finally:
        for task in (teller, running, order):
            task.cancel()


async def _tell(traffic: Traffic) -> None:
    while True:
        now_s = monotonic()
        await asyncio.sleep(TICK_S - now_s % TICK_S)
        _say(traffic.tick())


async def _next(orders: asyncio.StreamReader) -> bytes:
    line = await orders.readline()
    if not line:
        os._exit(1)  # nobody is left to tell, and whatever hangs must not keep this process alive
    return line


async def _stdin() -> asyncio.StreamReader:
    reader = asyncio.StreamReader(limit=LINE_MAX)
    await asyncio.get_running_loop().connect_read_pipe(lambda: asyncio.StreamReaderProtocol(reader), sys.stdin)
    return reader


def _say(message: Message) -> None:
    sys.stdout.buffer.write(encode(message) + b"\n")
    sys.stdout.buffer.flush()


def _accesses(job: Job) -> Iterator[int]:
    if job.trace is None:
        return generator.accesses(job.seed, job.node)
    return trace.share(trace.chunks(Path(job.trace)), job.node - 1, job.nodes)


if __name__ == "__main__":
    sys.exit(main())
