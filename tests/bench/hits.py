"""A hit in L1, in units of an async function that looks into a dict: every way in, beside other libraries."""

from __future__ import annotations

import asyncio
import json
import sys
from collections.abc import Callable, Sequence
from contextlib import AsyncExitStack
from functools import partial
from importlib.util import find_spec
from statistics import median
from time import process_time
from typing import Any

from cachebus import Cache, get_with_cache_aside, lifespan
from tests.bench.children import in_child
from tests.bench.rounds import ASKED, IDS, NUMBERS, UUIDS, Contender, race
from tests.bench.rows import Row, at_most
from tests.bench.run import Bench

VALUE = {"name": "a configuration", "model": "large", "temperature": 0.2, "tools": ["search", "mail"]}
UNIT = "async dict.get"


async def rows(bench: Bench) -> list[Row]:
    """One row a way in: medians over several processes, as each hashes strings its own way and has its own collisions.

    The figure is of CPU time, since nothing here waits.
    """
    found: list[dict[str, float]] = []
    for turn in range(bench.scale.processes):
        bench.progress.step(f"process {turn + 1} of {bench.scale.processes}")
        arguments = (bench.server.url, str(bench.scale.rounds), str(bench.scale.round_s))
        found.append(json.loads(await in_child("tests.bench.hits", *arguments)))
    in_units = {name: median(times[name] / times[UNIT] for times in found) for name in found[0]}
    return [row(in_units, median(times[UNIT] for times in found), *told) for told in ROWS]


async def measure(url: str, rounds: int, round_s: float) -> dict[str, float]:
    """Seconds a call, in this process."""
    async with AsyncExitStack() as stack:
        cache = await stack.enter_async_context(lifespan(url))
        for one in IDS:
            await cache.set("agent_config", one, VALUE, "acme")
            await cache.set("agent_config", one, VALUE, "acme", "a7", "c1", "k3")
            await cache.set("agent_config", NUMBERS[one], VALUE, "acme")
            await cache.set("agent_config", UUIDS[one], VALUE, "acme")
        contenders = [unit(), *ours(cache), *await peers(url, stack)]
        return await race(contenders, rounds, round_s=round_s, between=cache.probe, clock=process_time)


ROWS: list[tuple[str, str, float | None, tuple[str, ...]]] = [
    ("hit.get", "L1 hit: get(type, id, tenant)", 5, ("cashews", "cashews client-side", "aiocache")),
    ("hit.get_tenant", "L1 hit: get(type, id, tenant_id=)", 5, ()),
    ("hit.get_keywords", "L1 hit: get, all by keyword", 5, ()),
    ("hit.get_int", "L1 hit: get(type, int id, tenant)", 6.5, ()),
    ("hit.get_uuid", "L1 hit: get(type, UUID, tenant)", None, ()),
    ("hit.get_contexts", "L1 hit: get in agent, conversation, collection", None, ()),
    ("hit.get_or_load", "L1 hit: get_or_load", 5.5, ("async_lru",)),
    ("hit.cache_aside", "L1 hit: get_with_cache_aside, metrics", 8.5, ("cashews decorator", "aiocache decorator")),
]


def row(
    in_units: dict[str, float], unit_s: float, name: str, what: str, goal: float | None, peers: tuple[str, ...]
) -> Row:
    """A row in units of the plain look-up."""
    return Row(
        name,
        what,
        in_units[name],
        "x",
        None if goal is None else at_most(goal),
        {peer: in_units[peer] for peer in peers if peer in in_units},
        f"{in_units[name] * unit_s * 1e6:.2f} us; x = an async dict.get, {unit_s * 1e6:.2f} us",
    )


def unit() -> Contender:
    """What all else is compared with."""
    table = dict.fromkeys(IDS, VALUE)

    async def look(key: str) -> Any:
        return table.get(key)

    async def run(ids: Sequence[str]) -> None:
        for one in ids:
            await look(one)

    return Contender(UNIT, run)


def ours(cache: Cache) -> list[Contender]:  # noqa: C901 (one round a subject, side by side)
    """Every way in, written out: a function around them would cost as much as the unit."""
    check = only_hits(cache)
    get, get_or_load = cache.get, cache.get_or_load

    async def load(resource_id: str) -> Any:
        raise AssertionError("a hit loads nothing")

    async def positional(ids: Sequence[str]) -> None:
        for one in ids:
            await get("agent_config", one, "acme")

    async def tenant(ids: Sequence[str]) -> None:
        for one in ids:
            await get("agent_config", one, tenant_id="acme")

    async def keywords(ids: Sequence[str]) -> None:
        for one in ids:
            await get(
                data_type="agent_config",
                resource_id=one,
                tenant_id="acme",
                agent_id=None,
                conversation_id=None,
                collection_id=None,
                search_hierarchy=False,
                use_memory=True,
            )

    asked_ints = [NUMBERS[one] for one in ASKED]
    asked_uuids = [UUIDS[one] for one in ASKED]

    async def ints(ids: Sequence[str]) -> None:
        for one in asked_ints[: len(ids)]:
            await get("agent_config", one, "acme")

    async def uuids(ids: Sequence[str]) -> None:
        for one in asked_uuids[: len(ids)]:
            await get("agent_config", one, "acme")

    async def contexts(ids: Sequence[str]) -> None:
        for one in ids:
            await get("agent_config", one, tenant_id="acme", agent_id="a7", conversation_id="c1", collection_id="k3")

    async def loading(ids: Sequence[str]) -> None:
        for one in ids:
            await get_or_load("agent_config", one, load, tenant_id="acme")

    async def aside(ids: Sequence[str]) -> None:
        for one in ids:
            await get_with_cache_aside("agent_config", one, tenant_id="acme", fetch_from_db_func=load)

    runs = (positional, tenant, keywords, ints, uuids, contexts, loading, aside)
    return [
        Contender(told[0], run, partial(check, fast=run is not uuids)) for told, run in zip(ROWS, runs, strict=True)
    ]


def only_hits(cache: Cache) -> Callable[..., None]:
    """Asserts after each round that L1 answered every call, by its fast path or (a UUID) behind it: by the counters
    that only the fast path moves."""
    node = cache._live().node
    seen = sum(node.groups.hits().values())
    before = cache.stats()

    def check(calls: int, fast: bool) -> None:
        nonlocal seen, before
        now, stats = sum(node.groups.hits().values()), cache.stats()
        hits = stats.l1_hits - before.l1_hits
        assert hits == calls and now - seen == (calls if fast else 0), f"{now - seen} fast of {hits}, {calls} calls"
        assert stats.l2_hits == before.l2_hits and stats.misses == before.misses
        seen, before = now, stats

    return check


async def peers(url: str, stack: AsyncExitStack) -> list[Contender]:
    """The libraries that are installed."""
    found: list[Contender] = []
    if find_spec("cashews"):
        found += [await cashews("cashews", "mem://", stack), await cashews("cashews client-side", url, stack)]
        found.append(cashews_decorator(stack))
    if find_spec("aiocache"):
        found += [await aiocache(), aiocache_decorator()]
    if find_spec("async_lru"):
        found.append(async_lru())
    return found


async def cashews(name: str, url: str, stack: AsyncExitStack) -> Contender:
    """Its `get`, in memory or in front of Redis."""
    from cashews import Cache as Cashews

    cache = Cashews()
    cache.setup(url, **({"client_side": True} if url.startswith("redis") else {"size": 10 * len(IDS)}))
    await cache.init()
    stack.push_async_callback(cache.close)
    for one in IDS:
        await cache.set(one, VALUE, expire=3600)
    get = cache.get

    async def run(ids: Sequence[str]) -> None:
        for one in ids:
            await get(one)

    return Contender(name, run)


def cashews_decorator(stack: AsyncExitStack) -> Contender:
    """Its decorator, in memory."""
    from cashews import Cache as Cashews

    cache = Cashews()
    cache.setup("mem://", size=10 * len(IDS))
    stack.push_async_callback(cache.close)

    @cache(ttl="1h", key="config:{resource_id}")
    async def load(resource_id: str) -> Any:
        return VALUE

    return Contender("cashews decorator", looped(load))


async def aiocache() -> Contender:
    """Its `get`, in memory."""
    from aiocache import SimpleMemoryCache

    cache = SimpleMemoryCache()
    for one in IDS:
        await cache.set(one, VALUE)
    return Contender("aiocache", looped(cache.get))


def aiocache_decorator() -> Contender:
    """Its decorator, in memory."""
    from aiocache import cached

    @cached(key_builder=lambda function, resource_id: resource_id)  # type: ignore[untyped-decorator]
    async def load(resource_id: str) -> Any:
        return VALUE

    return Contender("aiocache decorator", looped(load))


def async_lru() -> Contender:
    """Its decorator: a dict without expiry, of one process, never told of a change."""
    from async_lru import alru_cache

    @alru_cache(maxsize=10 * len(IDS))
    async def load(resource_id: str) -> Any:
        return VALUE

    return Contender("async_lru", looped(load))


def looped(call: Callable[[str], Any]) -> Callable[[Sequence[str]], Any]:
    """The same call for every id: `call` is a local there as it is in all the other loops."""

    async def run(ids: Sequence[str]) -> None:
        for one in ids:
            await call(one)

    return run


if __name__ == "__main__":
    print(json.dumps(asyncio.run(measure(sys.argv[1], int(sys.argv[2]), float(sys.argv[3])))))
