"""Real processes: stopped, killed under a lease, killed in the middle of writes; the others stay coherent."""

from __future__ import annotations

import asyncio
import signal
from pathlib import Path

import pytest

from cachebus import Policy
from cachebus.base.clock import monotonic
from tests.support.caches import D_S, heard, nodes, past, until
from tests.support.processes import Told, running

NODE = """
import asyncio, json, sys, time
from cachebus import Cache, Settings
from pathlib import Path

async def main(url, source, lease_ms):
    settings = Settings(url=url, staleness_bound_s=0.6, probe_interval_s=0.1, gap_grace_s=0.02, lease_ms=lease_ms)
    async with Cache.open(settings) as cache:
        def load():
            return json.loads(Path(source).read_text())
        async def slow():
            value = load()
            print("loading", flush=True)
            await asyncio.sleep(3600)
            return value
        if sys.argv[4] == "hang":
            await cache.get_or_load("config", "x", slow, tenant_id="acme")
        seen = None
        while True:
            started_s = time.monotonic()
            value = await cache.get_or_load("config", "x", load, tenant_id="acme")
            print(json.dumps([started_s, value]), flush=True)
            await asyncio.sleep(0.005)

asyncio.run(main(sys.argv[1], sys.argv[2], int(sys.argv[3])))
"""


@pytest.fixture
def source_file(tmp_path: Path) -> Path:
    """A source that several processes read."""
    path = tmp_path / "source.json"
    path.write_text('"old"')
    return path


def stale(told: Told, since_s: float) -> list[tuple[float, str]]:
    """Its reads of something old that began after then, with how long after."""
    return [(at_s - since_s, value) for at_s, value in told.reads if at_s > since_s and value != "new"]


def renewed(source: Path) -> None:
    """The source has something new."""
    source.write_text('"new"')


async def test_a_process_stopped_for_longer_than_d_reads_fresh_from_its_first_read_on(
    redis_url: str, source_file: Path
) -> None:
    with running(NODE, redis_url, str(source_file), "300", "read") as told:
        async with nodes(redis_url, 1) as (writer,):
            await until(lambda: len(told.reads) > 20)
            told.process.send_signal(signal.SIGSTOP)
            renewed(source_file)
            await writer.invalidate("config", "x", tenant_id="acme")
            returned_s = monotonic()
            await past(returned_s + D_S)
            told.process.send_signal(signal.SIGCONT)
            continued_s = monotonic()
            await until(lambda: told.reads[-1][0] > continued_s + 0.1)
    assert stale(told, returned_s + D_S) == []


async def test_an_invalidation_reaches_other_processes_while_they_run(redis_url: str, source_file: Path) -> None:
    with (
        running(NODE, redis_url, str(source_file), "300", "read") as one,
        running(NODE, redis_url, str(source_file), "300", "read") as two,
    ):
        async with nodes(redis_url, 1) as (writer,):
            await until(lambda: min(len(one.reads), len(two.reads)) > 5)
            renewed(source_file)
            await writer.invalidate("config", "x", tenant_id="acme")
            returned_s = monotonic()
            await until(lambda: min(one.reads[-1][0], two.reads[-1][0]) > returned_s + D_S + 0.1)
    assert stale(one, returned_s + D_S) == stale(two, returned_s + D_S) == []


async def test_a_loader_process_killed_under_its_lease_is_followed_by_the_next_when_that_ends(
    redis_url: str, source_file: Path
) -> None:
    with running(NODE, redis_url, str(source_file), "300", "hang") as told:
        async with nodes(redis_url, 1, policies={"config": Policy(load_timeout_s=10)}) as (a,):
            await until(lambda: told.lines)
            waiting = asyncio.create_task(a.get_or_load("config", "x", lambda: "mine", tenant_id="acme"))
            await past(monotonic() + 0.4)  # longer than the lease, which a live loader holds on to
            assert not waiting.done()
            told.process.kill()
            assert await asyncio.wait_for(waiting, 3) == "mine"


WRITER = """
import asyncio, sys
from cachebus import Cache
async def main():
    async with Cache.open(sys.argv[1]) as cache:
        i = 0
        while True:
            i += 1
            await asyncio.gather(*(cache.set("config", k, i, tenant_id="acme", tags=["t"]) for k in range(20)))
            await cache.invalidate_tags(["t"], tenant_id="acme")
            print(i, flush=True)
asyncio.run(main())
"""


async def test_a_process_killed_in_the_middle_of_writes_leaves_everybody_able_to_go_on(redis_url: str) -> None:
    async with nodes(redis_url, 2) as pair:
        for _ in range(2):
            with running(WRITER, redis_url) as told:
                await until(lambda told=told: told.lines > 5)
            await heard(pair, await pair[0].set("config", 0, "mine", tenant_id="acme"))
            in_l2 = [await pair[0].get("config", k, tenant_id="acme", use_memory=False) for k in range(20)]
            for cache in pair:
                assert [await cache.get("config", k, tenant_id="acme") for k in range(20)] == in_l2
            assert in_l2[0] == "mine"
