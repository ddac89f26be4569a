"""The relay of an outbox in SQLite killed under load, at awaits of its own and at any time."""

from __future__ import annotations

import asyncio
import random
import sqlite3
from contextlib import closing, suppress
from pathlib import Path

from cachebus.consumers.outbox import create_tables
from cachebus.producers import Outbox, SyncOutboxProducer
from tests.support.caches import nodes, until
from tests.support.command import alive
from tests.support.history import seeds
from tests.support.outbox import settings
from tests.support.worker_lives import WHENS, Relays, kill

LIVES = 12
WRITES = 400


async def test_it_loses_no_committed_write_and_tells_none_that_was_undone(tmp_path: Path, redis_url: str) -> None:
    (seed,) = seeds(1)
    dice, url = random.Random(repr(seed)), f"sqlite:///{tmp_path / 'shop.db'}"
    await create_tables(url)
    outbox, committed, undone = Outbox(settings(redis_url)), list[str](), list[str]()
    async with nodes(redis_url, 1) as (cache,), Relays() as relays:
        for number in range(WRITES):
            await cache.set("config", str(number), "old", "acme")
        with closing(sqlite3.connect(tmp_path / "shop.db", timeout=10)) as connection:

            async def write() -> None:
                for number in map(str, range(WRITES)):
                    SyncOutboxProducer(connection, outbox).invalidate("config", number, "acme")
                    if dice.random() < 0.2:
                        connection.rollback()
                        undone.append(number)
                    else:
                        connection.commit()
                        committed.append(number)
                    await asyncio.sleep(0.003)

            await relays.ready()
            writing = asyncio.create_task(write())
            for life in range(LIVES):
                last_await = life % 6 if life % 3 else None
                pid = await relays.begin(url, redis_url, last_await=last_await, when=dice.choice(WHENS))
                with suppress(AssertionError):  # it has found too little to do
                    await until(lambda p=pid: not alive(p), within_s=0.3)
                kill(pid)
            await writing
            await relays.begin(url, redis_url)

            def left() -> int:
                return int(connection.execute("SELECT count(*) FROM cachebus_outbox").fetchone()[0])

            await until(lambda: not left())
        told = [number for number in map(str, range(WRITES)) if await cache.get("config", number, "acme") is None]
    assert told == sorted(committed, key=int), f"seed {seed}"
    assert undone
