"""A process with a real database, killed at every step between its write guard, its commit and the guard's end."""

from __future__ import annotations

import asyncio
import sqlite3
from contextlib import closing
from pathlib import Path

import pytest

from cachebus.base.clock import monotonic
from tests.support.caches import D_S, nodes, parts, past, until
from tests.support.processes import running

WRITER = """
import asyncio, sqlite3, sys, time
from cachebus import Cache, Settings

def say(step):
    print(step, flush=True)
    if step == sys.argv[3]:
        time.sleep(3600)  # until it is killed

async def main(url, database):
    settings = Settings(url=url, staleness_bound_s=0.6, probe_interval_s=0.1, gap_grace_s=0.02, db_timeout_s=0.8,
                        guard_max_s=1.5)  # the largest of the fleet counts
    async with Cache.open(settings) as cache:
        say("open")
        connection = sqlite3.connect(database, isolation_level=None)
        async with cache.write_guard([("config", "x")], tenant_id="acme", timeout_s=1.2):
            say("guarded")
            connection.execute("BEGIN IMMEDIATE")
            connection.execute("UPDATE config SET value = 'new'")
            say("written")
            await asyncio.sleep(0.3)
            connection.execute("COMMIT")
            say("committed")
        say("unguarded")
        time.sleep(3600)

asyncio.run(main(sys.argv[1], sys.argv[2]))
"""
GUARD_S = 1.2
MAX_S = 1.5
STEPS = ["open", "guarded", "written", "committed", "unguarded"]


@pytest.mark.parametrize(
    ("step", "flushed"), [*((step, False) for step in STEPS), ("committed", True), ("unguarded", True)]
)
async def test_killed_at_any_step_it_leaves_nothing_stale_behind_the_guards_time(
    redis_url: str, tmp_path: Path, step: str, flushed: bool
) -> None:
    """Loads begin all the time, some of them slow, before the commit too. A flush takes the guard away meanwhile."""
    database = tmp_path / "config.db"
    with closing(sqlite3.connect(database)) as connection, connection:
        connection.execute("CREATE TABLE config (value TEXT)")
        connection.execute("INSERT INTO config VALUES ('old')")

    def read() -> str:
        with closing(sqlite3.connect(database)) as connection:
            return str(connection.execute("SELECT value FROM config").fetchone()[0])

    async def slow() -> str:
        value = read()
        await asyncio.sleep(0.15)
        return value

    async with nodes(redis_url, 2, guard_max_s=MAX_S) as pair:
        stop = asyncio.Event()

        async def reading(number: int) -> None:
            while not stop.is_set():
                load = slow if number % 2 else read
                await pair[number % 2].get_or_load("config", "x", load, tenant_id="acme")
                await asyncio.sleep(0.003)

        readers = [asyncio.create_task(reading(number)) for number in range(4)]
        await past(monotonic() + MAX_S)  # or what is stored is short-lived for the server's being new
        with running(WRITER, redis_url, str(database), step) as told:
            if flushed:
                await until(lambda: told.lines > STEPS.index("guarded"))
                await parts(pair[0]).store._links.of(0).call("FLUSHALL")  # type: ignore[attr-defined]
            await until(lambda: told.lines > STEPS.index(step))
            at_s = monotonic()
            await past(at_s + 0.1)
            told.process.kill()
        await past(at_s + (2 * MAX_S if flushed else GUARD_S) + D_S)
        stop.set()
        await asyncio.gather(*readers)
        is_now = read()
        assert is_now == ("new" if STEPS.index(step) >= STEPS.index("committed") else "old")
        for cache in pair:
            for use_memory in (True, False):
                assert await cache.get("config", "x", tenant_id="acme", use_memory=use_memory) in (None, is_now)
        assert await pair[0].get_or_load("config", "x", read, tenant_id="acme") == is_now
