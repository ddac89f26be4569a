"""A worker that has the slot is frozen, at any moment: another takes over, and no row is passed over."""

from __future__ import annotations

import asyncio
import os
import random
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import asyncpg
import pytest

from cachebus import Cache
from tests.support.caches import quick, until
from tests.support.changes import ROOT, RULES, SCHEMA, fetched, tell

PROGRAM = """
import sys
from cachebus.consumers.cdc.slot import postgres, reader, session
postgres.LOCK_S, reader.KEEP_S, session.STAND_BY_S = 1, 0.2, 0.05
from cachebus.cli.main import run
run()
"""
BEGUN = "SELECT count(*) FROM pg_replication_slots WHERE database = current_database()"
FREEZES = 4


@contextmanager
def worker(rules: Path, database: str, redis_url: str) -> Iterator[subprocess.Popen[bytes]]:
    """A process of its own, of whose silence the server makes up its mind soon."""
    arguments = ["worker", "cdc", "--rules", str(rules), "--database-url", database, "--url", redis_url]
    with subprocess.Popen(
        [sys.executable, "-c", PROGRAM, *arguments, "--health-port", "0"],
        cwd=ROOT,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        env={**os.environ, "PYTHONPATH": str(ROOT), "CACHEBUS_GUARD_MAX_S": "0"},
    ) as process:
        try:
            yield process
        finally:
            process.kill()


@pytest.mark.parametrize("seed", [1, 2])
async def test_another_takes_over_and_nothing_is_passed_over(
    database: str, redis_url: str, tmp_path: Path, seed: int
) -> None:
    dice = random.Random(seed)
    rules = tmp_path / "rules.toml"
    rules.write_text(RULES)
    await tell(database, [SCHEMA])
    writer = await asyncpg.connect(database)
    written = 0

    async def gone() -> None:
        """All rows that were written are invalidated."""
        left = list(range(written))

        async def none_left() -> bool:
            nonlocal left
            found = await cache.get_many("order", left, tenant_id="acme")
            left = [number for number in left if number in found]
            return not left

        await until(none_left, within_s=60)

    with ExitStack() as stack:
        two = [stack.enter_context(worker(rules, database, redis_url)) for _ in range(2)]
        async with Cache(quick(redis_url, guard_max_s=0)) as cache:

            async def begun() -> bool:
                return bool(
                    await writer.fetchval(
                        "SELECT count(*) FROM pg_replication_slots WHERE database = current_database()"
                    )
                )

            await until(begun, within_s=60)

            async def load() -> None:
                nonlocal written
                while True:
                    await cache.set("order", written, "old", tenant_id="acme")
                    await writer.execute("INSERT INTO shop.orders VALUES ($1, 'acme', 1, '')", written)
                    written += 1
                    await asyncio.sleep(0.002)

            loading = asyncio.create_task(load())
            try:
                for turn in range(FREEZES):
                    frozen = two[turn % 2]
                    await asyncio.sleep(dice.uniform(0.05, 0.3))
                    os.kill(frozen.pid, signal.SIGSTOP)
                    at = written
                    await until(lambda at=at: written > at + 50)
                    await gone()
                    os.kill(frozen.pid, signal.SIGCONT)
            finally:
                loading.cancel()
                await asyncio.gather(loading, return_exceptions=True)
            await gone()
    await writer.close()


async def test_a_frozen_worker_has_no_session_left_to_write_over(database: str, redis_url: str, tmp_path: Path) -> None:
    """Neither that of the lock, nor the other one: what it writes when it wakes would be of before."""
    rules = tmp_path / "rules.toml"
    rules.write_text(RULES)
    await tell(database, [SCHEMA])
    sessions = (
        "SELECT count(*) FROM pg_stat_activity WHERE application_name LIKE 'cachebus-cdc%' "
        "AND datname = current_database()"
    )
    with worker(rules, database, redis_url) as frozen:
        await until(lambda: fetched(database, f"SELECT ({sessions}) = 2 AND ({BEGUN}) = 1"), within_s=60)
        os.kill(frozen.pid, signal.SIGSTOP)
        await until(lambda: fetched(database, f"SELECT ({sessions}) = 0"), within_s=20)
        os.kill(frozen.pid, signal.SIGCONT)
        await until(lambda: fetched(database, f"SELECT ({sessions}) = 2"), within_s=20)
