"""A worker of change data capture that is killed over and over under load, and what it must have done in the end."""

from __future__ import annotations

import asyncio
import os
import random
import subprocess
import sys
import tempfile
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path

from cachebus import Cache
from cachebus.base.clock import monotonic
from tests.support.caches import quick, until
from tests.support.changes import ROOT, RULES

Write = Callable[[int], Awaitable[object]]
PAUSE_S = 0.003
GONE_WITHIN_S = 90.0


@asynccontextmanager
async def worker(folder: Path, redis_url: str, *arguments: str) -> AsyncIterator[subprocess.Popen[bytes]]:
    """`cachebus worker cdc` as a process of its own, killed at the end."""
    rules = folder / "rules.toml"
    rules.write_text(RULES)
    with (
        (folder / "log").open("ab") as log,
        subprocess.Popen(  # noqa: ASYNC220 -- it returns at once
            [
                *(sys.executable, "-m", "cachebus.cli.main", "worker", "cdc", "--rules", str(rules)),
                *("--url", redis_url, "--health-port", "0", *arguments),
            ],
            cwd=ROOT,
            env={**os.environ, "PYTHONPATH": str(ROOT), "CACHEBUS_GUARD_MAX_S": "0"},
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
        ) as process,
    ):
        try:
            yield process
        finally:
            process.kill()


async def killed(
    redis_url: str, write: Write, seen: Callable[[], Awaitable[int]], kills: int, seed: int, *arguments: str
) -> int:
    """Rows are written one after the other, and the worker killed so many times, each at a random moment after it has
    begun to work. How many rows were written: none of their old values is in the caches then.

    `seen` gives a number that grows while the worker works.
    """
    dice = random.Random(seed)
    written = 0
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        # Else records on a server that has just begun live for a minute only, and would vanish by themselves.
        async with Cache(quick(redis_url, guard_max_s=0)) as cache:

            async def load() -> None:
                nonlocal written
                while True:
                    await cache.set("order", written, "old", tenant_id="acme")
                    await write(written)
                    written += 1
                    await asyncio.sleep(PAUSE_S)

            loading = asyncio.create_task(load())
            try:
                for _ in range(kills):
                    at = await seen()
                    async with worker(folder, redis_url, *arguments) as process:
                        await until(lambda at=at, process=process: _works(seen, at, process, folder), within_s=60)
                        await asyncio.sleep(dice.uniform(0, 0.1))
                        process.kill()
            finally:
                loading.cancel()
                await asyncio.gather(loading, return_exceptions=True)
            async with worker(folder, redis_url, *arguments):
                await _all_gone(cache, written, folder)
    return written


async def _works(seen: Callable[[], Awaitable[int]], at: int, process: subprocess.Popen[bytes], folder: Path) -> bool:
    assert process.poll() is None, (folder / "log").read_text()
    return await seen() > at


async def _all_gone(cache: Cache, written: int, folder: Path) -> None:
    """None of them has a deadline of its own: what is missed is there for an hour."""
    left = list(range(written))
    deadline_s = monotonic() + GONE_WITHIN_S
    while left:
        found = await cache.get_many("order", left, tenant_id="acme")
        left = [number for number in left if number in found]
        assert monotonic() < deadline_s, f"missed: {left[:10]} of {written}\n{(folder / 'log').read_text()[-3000:]}"
        await asyncio.sleep(0.02)
