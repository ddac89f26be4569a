"""Reads that go to Redis: by a hundred callers at once, and by one alone, beside redis-py's own GET."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from contextlib import AsyncExitStack
from functools import partial
from importlib.util import find_spec
from typing import Any, Final

import redis.asyncio

from cachebus import Cache
from tests.bench.rounds import Contender, race
from tests.bench.rows import Goal, Row, at_least, at_most
from tests.bench.run import Bench

VALUE: Final = {"name": "a configuration", "model": "large", "temperature": 0.2, "tools": ["search", "mail"]}
PAYLOAD: Final = b"x" * 160
"""As many bytes as a record of `VALUE` takes: redis-py hands them on as they are, ours makes the value of them."""
CALLERS: Final = 100
TURNS: Final = 10
KEYS: Final = [f"agent-{number}" for number in range(CALLERS * TURNS)]
ALONE: Final = 100

Read = Callable[[str], Awaitable[Any]]


async def rows(bench: Bench) -> list[Row]:
    """Crowd and single caller; each with L1 out of the way, and with L1 being filled."""
    async with AsyncExitStack() as stack:
        cache = await stack.enter_async_context(Cache.open(bench.server.url))
        theirs = redis.asyncio.Redis(port=bench.server.port, max_connections=CALLERS + 8)
        stack.push_async_callback(theirs.aclose)
        for one in KEYS:
            await cache.set("agent_config", one, VALUE, "acme")
            await theirs.set(one, PAYLOAD)
        reads = await readers(bench.server.url, cache, theirs, stack)
        progress, rounds = bench.progress, bench.scale.io_rounds
        crowds = [Contender(n, crowd(r), c, CALLERS * TURNS) for n, (r, c) in reads.items()]
        crowd_s = await race(crowds, rounds, between=cache.probe, progress=progress)
        singles = [Contender(n, alone(r), c, ALONE) for n, (r, c) in reads.items()]
        single_s = await race(singles, rounds, between=cache.probe, progress=progress)
    return [row(crowd_s, single_s, *told) for told in ROWS]


ROWS: Final[list[tuple[str, str, str, bool, Goal | None]]] = [
    ("l2.crowd", "L2 reads, 100 callers at once: times as fast as redis-py's GET", "get", True, at_least(20)),
    ("l2.crowd_fill", "... the same, L1 being filled", "get, filling L1", True, None),
    ("l2.crowd_bytes", "... the client below alone: bytes, nothing judged or decoded", "bytes", True, at_least(20)),
    ("l2.one", "L2 read, 1 caller: share of the time of redis-py's GET", "get", False, at_most(0.6)),
    ("l2.one_fill", "... the same, L1 being filled", "get, filling L1", False, None),
]


def row(
    crowd_s: dict[str, float],
    single_s: dict[str, float],
    name: str,
    what: str,
    ours: str,
    many: bool,
    goal: Goal | None,
) -> Row:
    """A row in units of redis-py."""
    times = crowd_s if many else single_s

    def ratio(who: str) -> float:
        return times["redis-py"] / times[who] if many else times[who] / times["redis-py"]

    others = ("redis-py", "cashews") if ours == "get" else ()
    peers: dict[str, float] = {peer: ratio(peer) for peer in others if peer in times}
    detail = f"{times[ours] * 1e6:.1f} us beside {times['redis-py'] * 1e6:.1f}"
    return Row(name, what, ratio(ours), "x", goal, peers, detail)


Check = Callable[[int], None]


async def readers(
    url: str, cache: Cache, theirs: redis.asyncio.Redis, stack: AsyncExitStack
) -> dict[str, tuple[Read, Check | None]]:
    """Every way to read, with a look at what became of each round."""
    parts = cache._live()
    prefix = "{cachebus:0}:r:acme:agent_config:"
    assert await theirs.exists(prefix + KEYS[0]), "the records lie elsewhere now"
    connection = parts.store._links.of(0)  # type: ignore[attr-defined]
    get = partial(cache.get, "agent_config", tenant_id="acme")
    parts.node.l1.clear()
    seen = cache.stats()

    def all_from_l2(calls: int) -> None:
        nonlocal seen
        now = cache.stats()
        assert now.l2_hits - seen.l2_hits == calls and now.misses == seen.misses
        seen = now
        parts.node.l1.clear()  # the next round is to find nothing there either

    found: dict[str, tuple[Read, Check | None]] = {
        "redis-py": (theirs.get, None),
        "get": (partial(get, use_memory=False), all_from_l2),
        "get, filling L1": (get, all_from_l2),
        "bytes": (lambda key: connection.get(prefix + key), None),
    }
    if find_spec("cashews"):
        from cashews import Cache as Cashews

        cashews = Cashews()
        cashews.setup(url, max_connections=CALLERS + 8)
        await cashews.init()
        stack.push_async_callback(cashews.close)
        for one in KEYS:
            await cashews.set("cashews:" + one, VALUE, expire=3600)
        found["cashews"] = (lambda key: cashews.get("cashews:" + key), None)
    return found


def crowd(get: Read) -> Callable[[Sequence[str]], Awaitable[None]]:
    """A hundred callers at once, each reading its own keys, one after the other."""

    async def caller(mine: Sequence[str]) -> None:
        for key in mine:
            assert await get(key) is not None

    async def run(ids: Sequence[str]) -> None:
        turns = len(ids) // CALLERS
        await asyncio.gather(*[caller(KEYS[n * TURNS : n * TURNS + turns]) for n in range(CALLERS)])

    return run


def alone(get: Read) -> Callable[[Sequence[str]], Awaitable[None]]:
    """One caller, one key after the other."""

    async def run(ids: Sequence[str]) -> None:
        for key in KEYS[: len(ids)]:
            assert await get(key) is not None

    return run
