"""Every operation, cancelled at each of its awaits in turn, until it runs through; and so the tasks that it starts.

Three ways: while it waits; when the answer is there and it has not been told; by a cancel scope, under which its
clean-up cannot await either. Afterwards nothing is left over, nothing is believed that L2 does not have, and all works.
"""

from __future__ import annotations

import asyncio
from contextlib import suppress
from typing import Any

import pytest

from cachebus import Cache, CacheBusError
from cachebus.assembly.world import World
from cachebus.base.clock import monotonic
from cachebus.settings import Settings
from cachebus.tools.servers.redis import EmbeddedServer
from tests.support.caches import Source, nodes, parts, until
from tests.support.every_step import SETTINGS, numbered
from tests.support.operations import LEASE_MS, LOADS, OLD, OPERATIONS, POLICIES, READS, WHERE, Stage
from tests.support.simulation import VirtualLoop, live
from tests.support.steps import Cancelling, How, Steps

PROMPT_S, PROMPT_REAL_S = 0.5, 2.0
"""Much less than a lease lasts, in virtual time and on a busy machine: whoever comes next must not wait for one that
nobody holds any more."""
AWAITS_MAX = 200


async def undisturbed(stage: Stage, clock: Any, *, closed: bool = False) -> None:
    """Nothing of the cancelled operation is in anybody's way."""
    a, b = stage.a, stage.b
    stage.hear()
    if closed:
        with suppress(CacheBusError):
            await a.aclose()
        await a.__aenter__()
    for task in stage.others:
        with suppress(CacheBusError, asyncio.CancelledError):
            await task
    await until(lambda: not any(parts(cache).loads.flights for cache in (a, b)))
    for cache in (a, b):
        await cache.probe()
        stats = cache.stats()
        assert all(value >= 0 for counts in stats.types.values() for value in _numbers(counts)), stats.types
        assert stats.l1_entries == len(cache._entries)
        assert stats.l1_bytes == sum(entry.size for entry in cache._entries.values())
        for _ in range(3):  # L1 and L2 agree, whether the operation happened or not
            found = await stage.read(cache)
            in_l2 = await stage.read(cache, use_memory=False)
            # It may have expired between the two: then it has in L1 too.
            assert found in (None, in_l2) or await stage.read(cache) in (None, in_l2), "L1 has what L2 has not"
    started_s = clock()
    with suppress(CacheBusError):
        for cache in (b, a):
            got = await stage.get_or_load(cache)
            assert got in (OLD, stage.version)
    prompt_s = PROMPT_REAL_S if clock is monotonic else PROMPT_S
    assert clock() - started_s < prompt_s, "it waited for a lease or a flight that was left"
    for writer, other in ((a, b), (b, a)):
        receipt = await writer.invalidate(stage.data_type, "x", **WHERE)
        assert await stage.read(writer) is None
        assert await stage.read(other, after=receipt) is None
        assert await stage.get_or_load(other) == stage.version
        receipt = await stage.set(writer)
        assert await stage.read(writer) == stage.version
        assert await stage.read(other, after=receipt) == stage.version


def _numbers(counts: Any) -> list[int]:
    return [getattr(counts, name) for name in type(counts).__dataclass_fields__]


async def cancelled(stage: Stage, name: str, cancelling: Cancelling, clock: Any) -> bool:
    """Run the operation, cancelled; whether it came so far."""
    task = await cancelling.run(stage.steps.watch(OPERATIONS[name].run(stage)))
    if cancelling.happened and not cancelling.inner:
        # One that had its last answer may still return: it is cancelled or it is not, but nothing else.
        assert (
            task.cancelled() or task.exception() is None or isinstance(task.exception(), CacheBusError | RuntimeError)
        )
    elif not task.cancelled():
        task.exception()
    shared = "a load for two", "two batches that overlap", "a refresh ahead"
    if cancelling.how == "caller" and cancelling.happened and name not in shared:
        for _ in range(20):  # turns of the loop, no time: a batch ends its loads one level further down
            if not parts(stage.a).loads.flights:
                break
            await asyncio.sleep(0)
        await stage.settle()
        assert not parts(stage.a).loads.flights, "a load goes on that nobody waits for"
    await undisturbed(stage, clock, closed=name == "close and open")
    for started in cancelling.tasks:
        assert started.done(), f"{started} goes on"
    return cancelling.happened


def played(name: str, at: int, how: How, *, inner: bool) -> bool:
    """In memory, where every call gives the loop back before and after."""
    came_so_far = False

    async def main(loop: VirtualLoop) -> None:
        nonlocal came_so_far
        world = World(Settings(max_invalidated_scopes=1000, log_max_len=1000), loop.time)
        a, b = (Cache(SETTINGS, world=world, clock=loop.time) for _ in range(2))
        async with a, b:
            stage = Stage(a, b, loop.time)
            await OPERATIONS[name].prepare(stage)
            steps = Steps()
            steps.yields = True
            with numbered(stage, steps):
                try:
                    came_so_far = await cancelled(stage, name, Cancelling(at, how, inner=inner), loop.time)
                    shard = world.shards[0]  # a lease that rests, as the source has failed its holder, ends by itself
                    left = [k for k, v in shard.fill_leases.items() if not v.cools_down and v.until_s > shard.clock()]
                    assert not left, "a lease is left"
                except BaseException as error:
                    error.add_note(f"{name}, cancelled at await {at} ({how}, {inner=}) of {steps.taken}")
                    raise

    live(main)
    return came_so_far


def at_every_await(name: str, how: How, *, inner: bool) -> int:
    """How many awaits there were."""
    at = 0
    while played(name, at, how, inner=inner):
        at += 1
        assert at < AWAITS_MAX
    return at


@pytest.mark.parametrize("name", OPERATIONS)
def test_cancelled_at_every_await_an_operation_leaves_nothing_behind(name: str) -> None:
    for how in ("waiting", "answered", "scope"):
        assert at_every_await(name, how, inner=False)


@pytest.mark.parametrize("name", LOADS)
def test_a_load_whose_only_caller_leaves_at_any_await_of_it_hands_its_lease_back(name: str) -> None:
    assert at_every_await(name, "caller", inner=True) > 3


@pytest.mark.parametrize("name", [*READS, *LOADS])
def test_a_task_that_an_operation_started_may_be_cancelled_at_every_await(name: str) -> None:
    """As by a loop that ends: a flight, or a refresh in the background."""
    for how in ("waiting", "answered"):
        assert at_every_await(name, how, inner=True) or name in READS


@pytest.mark.parametrize("at", range(12))
def test_one_of_several_waiters_that_leaves_at_any_await_of_the_load_costs_the_others_nothing(at: int) -> None:
    async def main(loop: VirtualLoop) -> None:
        world = World(Settings(max_invalidated_scopes=1000, log_max_len=1000), loop.time)
        a, b = (Cache(SETTINGS, world=world, clock=loop.time) for _ in range(2))
        async with a, b:
            stage = Stage(a, b, loop.time)
            steps = Steps()
            steps.yields = True
            with numbered(stage, steps):
                waiters = [asyncio.create_task(stage.get_or_load(cache)) for cache in (a, b, a, a)]
                for _ in range(at):
                    await asyncio.sleep(0)
                waiters[0].cancel()
                waiters[2].cancel()
                done = await asyncio.gather(*waiters, return_exceptions=True)
                assert [done[1], done[3]] == [OLD, OLD]
                assert stage.loads == 1
                await undisturbed(stage, loop.time)
                assert world.shards[0].fill_leases == {}

    live(main)


# -- over a real server ----------------------------------------------------------------------------------


REAL = [name for name in OPERATIONS if name not in ("a flush", "invalidate by tenant", "invalidate by contexts")]


@pytest.mark.parametrize(
    ("how", "knows"),
    [("waiting", True), ("answered", False), ("caller", False)],
    ids=["waiting", "answered-scripts forgotten", "caller-scripts forgotten"],
)
async def test_cancelled_at_every_await_over_a_real_server_an_operation_leaves_nothing_behind(
    redis_server: EmbeddedServer, how: How, knows: bool
) -> None:
    """The command is on its way all the same, and may be carried out; or the script has yet to be sent."""

    async def once(name: str, at: int, namespace: str) -> bool:
        more = {
            "policies": POLICIES,
            "lease_ms": LEASE_MS,
            "namespace": namespace,
            "probe_interval_s": 0.3,
            "guard_max_s": 0,
        }
        async with nodes(redis_server.url, 2, **more) as (a, b):
            stage = Stage(a, b, monotonic)
            await OPERATIONS[name].prepare(stage)
            if not knows:
                await asyncio.to_thread(redis_server.command, "SCRIPT", "FLUSH")
            try:
                came_so_far = await cancelled(stage, name, Cancelling(at, how, inner=how == "caller"), monotonic)
            except BaseException as error:
                error.add_note(f"{name}, cancelled at await {at} ({how})")
                raise
        lease = f"{{{namespace}:0}}:l:acme:{stage.data_type}:x"
        assert await asyncio.to_thread(redis_server.command, "EXISTS", lease) == ":0", "a lease is left"
        return came_so_far

    async def all_awaits(number: int, name: str) -> None:
        at = 0
        while await once(name, at, f"{number}-{at}"):
            at += 1
        assert at, "it has no awaits"

    names = LOADS if how == "caller" else REAL
    await asyncio.gather(*(all_awaits(number, name) for number, name in enumerate(names)))


async def test_a_loader_that_gives_up_after_another_took_its_lease_over_leaves_that_one_alone(
    redis_server: EmbeddedServer,
) -> None:
    async def gave_up(url: str) -> None:
        async with nodes(url, 2, lease_ms=60_000) as (a, b):
            late, heir = Source(x="late"), Source(x="heir")
            late.hold()
            heir.hold()
            loading = asyncio.create_task(a.get_or_load("config", "x", late.load, **WHERE))
            await late.asked.wait()
            if url.startswith("memory"):
                parts(a).world.shards[0].fill_leases.clear()  # type: ignore[union-attr]
            else:
                await asyncio.to_thread(redis_server.command, "DEL", "{cachebus:0}:l:acme:config:x")
            inheriting = asyncio.create_task(b.get_or_load("config", "x", heir.load, **WHERE))
            await heir.asked.wait()
            loading.cancel()
            await asyncio.wait([loading])
            await a.probe()  # behind the release, on the same connection
            heir.release()
            assert await inheriting == "heir"
            assert (b.stats().fills, b.stats().fills_rejected) == (1, 0)
            assert await a.get("config", "x", use_memory=False, **WHERE) == "heir"

    await gave_up("memory://gave-up")
    await gave_up(redis_server.url)
