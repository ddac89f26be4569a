"""What every source of a worker must do, whatever it is: nothing is lost, nothing holds up or ends anything."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from cachebus import Cache
from cachebus.consumers.cdc.slot import held as cdc_held
from cachebus.consumers.cdc.slot.postgres import SlotWorker
from cachebus.consumers.outbox.postgres import PostgresOutbox
from cachebus.consumers.outbox.sqlite import SqliteOutbox
from cachebus.consumers.worker import dead_letter_writer, watcher
from cachebus.consumers.worker.in_a_row import ALL_DEAD
from cachebus.consumers.worker.preflight import preflight
from cachebus.consumers.worker.source import Session
from cachebus.consumers.worker.source_worker import SourceWorker
from cachebus.tools.servers.redis import EmbeddedServer
from tests.contract.source_rigs import TOO_LONG, InMemory, InPostgres, InSqlite, OnKafka, OnSlot, OnTopics, SourceRig
from tests.support.caches import quick, until
from tests.support.memory_source import MemorySource
from tests.support.primaries import SHARDS, Town
from tests.support.servers import any_binary
from tests.support.worker_health import why

KINDS = {"memory": "", "outbox": "database", "sqlite": "", "kafka": "kafka", "topics": "kafka", "slot": "database"}


@pytest.fixture(autouse=True)
def _looks_often(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(watcher, "LOOK_EVERY_S", 0.2)


@pytest.fixture(params=KINDS)
def rig(request: pytest.FixtureRequest) -> SourceRig:
    """A source of each kind; not begun."""
    kind = request.param
    if kind == "memory":
        return InMemory()
    if kind == "sqlite":
        return InSqlite()
    needs: Any = request.getfixturevalue(KINDS[kind])
    if kind == "outbox":
        return InPostgres(needs)
    if kind == "slot":
        return OnSlot(needs)
    return (OnKafka if kind == "kafka" else OnTopics)(needs.address)


@asynccontextmanager
async def at_work(rig: SourceRig, given: SourceWorker | None = None) -> AsyncIterator[SourceWorker]:
    """A worker that works, drained at the end."""
    worker = given or rig.worker()
    task = asyncio.create_task(worker.run())
    try:
        await until(lambda: task.done() or works(worker), within_s=30)
        yield worker
        assert not task.done(), task.exception()
        worker.drain()
        await asyncio.wait_for(task, 20)
    finally:
        task.cancel()
        await asyncio.wait([task])


async def warned(rig: SourceRig) -> list[str]:
    """What a check warns of."""
    return [warning for one in await preflight(rig.worker()) for warning in one.warnings]


async def looked(worker: SourceWorker, times: int) -> None:
    """Until it has looked so often whether letters lie there."""
    looks, look = list[int](), worker._in_a_row.look

    async def counted(session: Session) -> None:
        await look(session)
        looks.append(1)

    worker._in_a_row.look = counted  # type: ignore[method-assign]
    await until(lambda: len(looks) >= times, within_s=30)


def works(worker: SourceWorker) -> bool:
    """Whether all that it needs is there."""
    up = all(map(worker.health.is_up, worker.health.parts))
    return up and (not isinstance(worker, SlotWorker) or worker.follows)


@asynccontextmanager
async def caching(rig: SourceRig, tenant: str = "acme", count: int = 0) -> AsyncIterator[Cache]:
    """A cache of the rig's, that has values."""
    async with Cache(rig.settings.model_copy(update={"use_memory_cache": False})) as cache:
        for number in range(count):
            await cache.set("config", str(number), "old", tenant)
        yield cache


async def gone(cache: Cache, *numbers: str, tenant: str = "acme") -> None:
    """Until none of these has a value."""

    async def none_left() -> bool:
        return not await cache.get_many("config", numbers, tenant)

    await until(none_left, within_s=30)


async def nothing_left(rig: SourceRig) -> None:
    """Until all is let go of."""

    async def none() -> bool:
        return not await rig.left()

    await until(none, within_s=30)


async def test_what_is_put_is_applied_let_go_of_and_counted(rig: SourceRig, redis_url: str, tmp_path: Path) -> None:
    await rig.begin(quick(redis_url), tmp_path)
    async with caching(rig, count=20) as cache, at_work(rig) as worker:
        await rig.put([str(number) for number in range(20)])
        await gone(cache, *map(str, range(20)))
        await nothing_left(rig)
        await until(lambda: worker.meters.count("applied") == 20)
        lag = worker.meters.registry.get_sample_value("cachebus_worker_lag_seconds_sum", {"worker": worker.name})
        assert lag is not None
        assert 0 <= lag < 20 * 60
        assert not await rig.dead()


async def test_what_cant_be_used_is_set_aside_and_holds_up_nothing(
    rig: SourceRig, redis_url: str, tmp_path: Path
) -> None:
    await rig.begin(quick(redis_url), tmp_path)
    async with caching(rig, count=4) as cache, at_work(rig) as worker:
        await rig.put(["0", TOO_LONG, "1", TOO_LONG + "y", "2"])
        await rig.put(["3"])
        await gone(cache, "0", "1", "2", "3")
        await nothing_left(rig)
        await until(lambda: (worker.meters.count("dead"), worker.meters.count("applied")) == (2, 4))
        reasons = await rig.dead()
        assert len(reasons) == 2
        assert all("resource_id" in reason and "xxx" not in reason and reason.isprintable() for reason in reasons)


async def test_what_cant_be_set_aside_is_not_lost_and_holds_up_nothing(
    rig: SourceRig, redis_url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The place of the dead refuses: what can be applied is, behind it too, and what can't lies until it may be."""
    monkeypatch.setattr(dead_letter_writer, "REST_MAX_S", 0.1)
    monkeypatch.setattr(cdc_held, "AGAIN_S", 0.1)
    for source in MemorySource, PostgresOutbox, SqliteOutbox:
        monkeypatch.setattr(source, "again_s", 0.1)
    await rig.begin(quick(redis_url), tmp_path)
    async with caching(rig, count=6) as cache:
        async with at_work(rig) as worker:
            await rig.put(["5"])
            await gone(cache, "5")
            await rig.refuse()
            await rig.put(["0", TOO_LONG, "1"])
            await rig.put([TOO_LONG + "y", "2"])
            await gone(cache, "0", "1", "2")
            await rig.put(["3"])
            await gone(cache, "3")
            await until(lambda: not worker.health.is_up("dead"), within_s=30)
            why = worker.health.as_dict()["parts"]["dead"]["why"]
            assert "can be neither applied (" in why
            assert "xxx" not in why and "no, " not in why
            assert worker.meters.count("dead") == 0
        assert await rig.left()
        assert not await rig.dead()
        await rig.accept()
        async with at_work(rig) as worker:
            await rig.put(["4"])
            await gone(cache, "4")
            await nothing_left(rig)
            await until(lambda: worker.meters.count("dead") == 2)
            assert worker.health.is_up("dead")
        reasons = await rig.dead()
    assert len(reasons) == 2
    assert all("resource_id" in reason and "xxx" not in reason for reason in reasons)


async def test_where_all_is_set_aside_it_is_told_until_somebody_has_seen_to_it(
    rig: SourceRig, redis_url: str, tmp_path: Path
) -> None:
    """An outbox or a topic whose letters were seen to was red for minutes, and green then though they were not."""
    await rig.begin(quick(redis_url), tmp_path)
    async with at_work(rig) as worker:
        await rig.put([f"{TOO_LONG}{number}" for number in range(ALL_DEAD)])
        await until(lambda: not worker.health.is_up("items"), within_s=30)
        assert f"the last {ALL_DEAD} could not be applied" in why(worker, "items")
        await looked(worker, 2)
        assert not worker.health.is_up("items")
        assert "can't see whether they still lie" not in why(worker, "items")
        told = await warned(rig)
        assert [one for one in told if "dead letters lie in" in one and f"replay-dead {worker.name}" in one]
        await rig.see_to_the_dead()
        await until(lambda: worker.health.is_up("items"), within_s=30)
        assert not [one for one in await warned(rig) if "dead letters lie in" in one]


async def test_what_a_killed_one_had_in_hand_comes_to_the_next(rig: SourceRig, redis_url: str, tmp_path: Path) -> None:
    await rig.begin(quick(redis_url), tmp_path)
    async with caching(rig, count=30) as cache:
        async with at_work(rig):
            pass
        worker = rig.worker()
        began = asyncio.Event()

        async def never(*_: Any) -> Any:
            began.set()
            await asyncio.Event().wait()

        worker._applier.carry = never  # type: ignore[method-assign]
        task = asyncio.create_task(worker.run())
        await rig.put([str(number) for number in range(30)])
        await asyncio.wait_for(began.wait(), 30)
        task.cancel()
        await asyncio.wait([task])
        assert await cache.get("config", "0", "acme") == "old"
        assert await rig.left()
        async with at_work(rig):
            await gone(cache, *map(str, range(30)))
            await nothing_left(rig)


async def test_what_comes_while_none_is_there_is_not_lost(rig: SourceRig, redis_url: str, tmp_path: Path) -> None:
    await rig.begin(quick(redis_url), tmp_path)
    async with caching(rig, count=3) as cache:
        async with at_work(rig):
            pass
        await rig.put(["0", "1"])
        async with at_work(rig):
            await gone(cache, "0", "1")
        await rig.put(["2"])
        async with at_work(rig):
            await gone(cache, "2")
            await nothing_left(rig)


async def test_without_l2_nothing_is_lost_and_it_says_so(
    rig: SourceRig, own_server: EmbeddedServer, tmp_path: Path
) -> None:
    await rig.begin(quick(own_server.url), tmp_path)
    async with caching(rig, count=3) as cache, at_work(rig) as worker:
        await rig.put(["0"])
        await gone(cache, "0")
        own_server.pause()
        await rig.put(["1", "2"])
        await until(lambda: not worker.health.ready)
        assert not worker.health.is_up("l2")
        own_server.resume()
        await gone(cache, "1", "2")
        await nothing_left(rig)
        await until(lambda: works(worker))


@pytest.mark.parametrize("step", ["take", "acknowledge", "look"])
async def test_a_driver_that_fails_in_any_way_is_come_back_to(
    rig: SourceRig, redis_url: str, tmp_path: Path, step: str
) -> None:
    await rig.begin(quick(redis_url), tmp_path)
    worker, fails_now = rig.worker(), asyncio.Event()
    opened = worker.source.opened

    @asynccontextmanager
    async def breaks() -> AsyncIterator[Any]:
        async with opened() as session:
            following = getattr(session, step)

            async def fails(*given: Any) -> Any:
                if fails_now.is_set():
                    fails_now.clear()
                    raise RuntimeError("a bug in a driver")
                return await following(*given)

            setattr(session, step, fails)
            yield session

    worker.source.opened = breaks  # type: ignore[method-assign]
    async with caching(rig, count=3) as cache, at_work(rig, worker):
        await rig.put(["0"])
        await gone(cache, "0")
        fails_now.set()
        await rig.put(["1"])
        await until(lambda: not fails_now.is_set())
        await gone(cache, "1")
        await rig.put(["2"])
        await gone(cache, "2")
        await nothing_left(rig)
        await until(lambda: works(worker))


async def test_one_primary_that_is_away_holds_up_nobody_elses(rig: SourceRig, tmp_path: Path) -> None:
    async with Town(any_binary(), replicas=0) as town:
        await rig.begin(quick(town.url, shards=SHARDS), tmp_path)
        first, second, third = town.tenants
        async with at_work(rig) as worker:
            await rig.put(["0"], first)
            await rig.put(["0"], second)
            await rig.put(["0"], third)
            await until(lambda: worker.meters.count("applied") == 3)
            town.servers[0].kill()
            await rig.put([str(number) for number in range(1, 31)], first)
            await rig.put(["1"], second)
            await rig.put(["1"], third)
            await until(lambda: worker.meters.count("applied") == 5)
            await until(lambda: held(worker) == 30)
            assert worker.health.ready
            town.servers[0].start()
            await until(lambda: worker.meters.count("applied") == 35, within_s=30)
            await nothing_left(rig)
            await until(lambda: held(worker) == 0)


def held(worker: SourceWorker) -> Any:
    """How many wait, as it says."""
    return worker.meters.registry.get_sample_value("cachebus_worker_held", {"worker": worker.name})
