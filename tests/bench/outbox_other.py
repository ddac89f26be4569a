"""The other process: a relay, and a bare loop of `SELECT ... FOR UPDATE SKIP LOCKED` and `DELETE` beside it, each on a
table of its own. Asked by lines of JSON on its input."""

from __future__ import annotations

import asyncio
import json
import sys
from collections.abc import Callable
from typing import Final

import asyncpg

from cachebus import Settings
from cachebus.base.clock import monotonic
from cachebus.consumers.outbox import OutboxRelay
from tests.bench.other_node import questions

BATCH: Final = 500
LOOK_S: Final = 0.0005
TAKE: Final = (
    f"SELECT id, command FROM bare_outbox WHERE namespace = $1 ORDER BY id LIMIT {BATCH} FOR UPDATE SKIP LOCKED"
)


class Bare:
    """The loop: woken up as the relay is, it does nothing with what it takes."""

    def __init__(self) -> None:
        self.taken = 0
        self.times: list[float] = []
        """When each row was gone."""

    async def run(self, url: str) -> None:
        """Until it is cancelled."""
        connection = await asyncpg.connect(url)
        woken = asyncio.Event()
        await connection.add_listener("bare_outbox", lambda *_: woken.set())
        while True:
            woken.clear()
            async with connection.transaction():
                rows = await connection.fetch(TAKE, "cachebus")
                gone = [row["id"] for row in rows]
                await connection.execute("DELETE FROM bare_outbox WHERE namespace = 'cachebus' AND id = ANY($1)", gone)
            self.times += [monotonic()] * len(rows)
            self.taken += len(rows)
            if len(rows) < BATCH:
                await woken.wait()


async def _until(met: Callable[[], bool]) -> None:
    while not met():  # noqa: ASYNC110 -- what it waits for tells nobody
        await asyncio.sleep(LOOK_S)


async def main(database: str, redis_url: str) -> None:
    """Work and answer: the time at which a number of rows were done, or the times of those of the bare loop."""
    relay, bare = OutboxRelay(database, Settings(url=redis_url)), Bare()
    work = [asyncio.create_task(relay.run()), asyncio.create_task(bare.run(database))]
    await _until(lambda: relay.health.ready)
    async for question in questions():
        who, rows = question["who"], question["rows"]
        await _until(lambda w=who, r=rows: (relay.meters.count("applied") if w == "ours" else bare.taken) >= r)  # type: ignore[misc]
        print(json.dumps([monotonic(), bare.times]), flush=True)
        bare.times.clear()
    for task in work:
        task.cancel()
    await asyncio.gather(*work, return_exceptions=True)


if __name__ == "__main__":
    asyncio.run(main(*sys.argv[1:]))
