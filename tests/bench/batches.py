"""Many ids at once: batches of hits and misses beside single calls, and vectors beside JSON and pickle."""

from __future__ import annotations

import asyncio
import json
import pickle
from collections.abc import Awaitable, Callable, Sequence
from itertools import count
from random import Random
from typing import Any, Final

import numpy as np
import redis.asyncio

from cachebus import Cache, Policy, Settings
from cachebus.policy import PolicyTable
from cachebus.wire.packing import Given, pack
from tests.bench.rounds import Contender, race
from tests.bench.rows import Row
from tests.bench.run import Bench

BATCH: Final = 100
VECTORS, FLOATS = 1_000, 1_536
TENANT: Final = "acme"
POLICIES: Final = {"exact": Policy(l1=False), "f32": Policy(codec="f32", l1=False), "array": Policy(l1=False)}
IDS: Final = [str(number) for number in range(VECTORS)]

_numbers = count()


async def load_many(ids: list[int]) -> dict[int, int]:
    """A source that takes no time."""
    return dict.fromkeys(ids, 1)


async def load_one(resource_id: int) -> int:
    """The same, for one."""
    return resource_id


# -- batches ----------------------------------------------------------------------------------------------------


async def rows(bench: Bench) -> list[Row]:
    """Batches of hundred, beside hundred single calls."""
    async with Cache.open(bench.server.url) as cache:
        hot = list(range(BATCH))
        await cache.set_many("row", dict.fromkeys(hot, 1), TENANT)

        async def hits(_: Sequence[str]) -> None:
            await cache.get_or_load_many("row", hot, load_many, TENANT)

        async def single_hits(_: Sequence[str]) -> None:
            for one in hot:
                await cache.get_or_load("row", one, load_one, TENANT)

        async def misses(_: Sequence[str]) -> None:
            await cache.get_or_load_many("row", fresh(), load_many, TENANT)

        async def single_misses(_: Sequence[str]) -> None:
            await asyncio.gather(*(cache.get_or_load("row", one, load_one, TENANT) for one in fresh()))

        async def tick(_: Sequence[str]) -> None:
            await asyncio.gather(*(cache.get_or_load("row", one, tenant_id=TENANT, batch=load_many) for one in fresh()))

        ways = {
            "hits": hits,
            "single hits": single_hits,
            "misses": misses,
            "single misses": single_misses,
            "tick": tick,
        }
        times = await race(
            [Contender(name, run, calls=1) for name, run in ways.items()],
            4 * bench.scale.io_rounds,
            between=cache.probe,
            progress=bench.progress,
        )
    return [
        _beside(
            "batch.hits", "a batch of 100 hits: share of the time of 100 get_or_load", times, "hits", "single hits"
        ),
        _beside("batch.misses", "... of 100 misses beside 100 get_or_load at once", times, "misses", "single misses"),
        _beside("batch.tick", "... of 100 get_or_load(batch=) of one tick", times, "tick", "single misses"),
    ]


def fresh() -> list[int]:
    """Ids that nobody has asked for."""
    return [1_000_000 + next(_numbers) for _ in range(BATCH)]


def _beside(name: str, what: str, times: dict[str, float], ours: str, other: str) -> Row:
    detail = f"{times[ours] * 1e6:.0f} us beside {times[other] * 1e6:.0f}"
    return Row(name, what, times[ours] / times[other], "x", None, {}, detail)


# -- vectors ----------------------------------------------------------------------------------------------------


async def vectors(bench: Bench) -> list[Row]:
    """1 000 vectors of 1 536 floats to Redis and back: `set_many` and `get_many`, beside MSET and MGET of what json and
    pickle make of lists."""
    rng = Random(1)
    lists = {one: [rng.gauss(0, 1) for _ in range(FLOATS)] for one in IDS}
    arrays = {one: np.array(values, dtype=np.float32) for one, values in lists.items()}
    settings = Settings(url=bench.server.url, policies=POLICIES)
    theirs = redis.asyncio.Redis(port=bench.server.port)
    async with Cache(settings) as cache:

        def ours(data_type: str, values: dict[str, Any]) -> Callable[[Sequence[str]], Awaitable[None]]:
            async def there_and_back(_: Sequence[str]) -> None:
                await cache.set_many(data_type, values, TENANT)
                assert len(await cache.get_many(data_type, IDS, TENANT)) == VECTORS

            return there_and_back

        def by(dumps: Callable[[Any], Any], loads: Callable[[Any], Any]) -> Callable[[Sequence[str]], Awaitable[None]]:
            async def there_and_back(_: Sequence[str]) -> None:
                await theirs.mset({one: dumps(values) for one, values in lists.items()})
                assert len([loads(data) for data in await theirs.mget(IDS)]) == VECTORS

            return there_and_back

        ways = {
            "list": ours("exact", lists),
            "codec f32": ours("f32", lists),
            "numpy": ours("array", arrays),
            "json": by(json.dumps, json.loads),
            "pickle": by(pickle.dumps, pickle.loads),
        }
        times = await race(
            [Contender(name, run, calls=1) for name, run in ways.items()],
            max(3, bench.scale.io_rounds // 4),
            between=cache.probe,
            progress=bench.progress,
        )
    await theirs.aclose()
    first = lists[IDS[0]]
    sizes = {
        "list": _size("exact", settings, first),
        "codec f32": _size("f32", settings, first),
        "numpy": _size("array", settings, arrays[IDS[0]]),
        "json": len(json.dumps(first)),
        "pickle": len(pickle.dumps(first)),
    }
    return [row for kind in ("list", "codec f32", "numpy") for row in _rows_of(kind, times, sizes)]


def _rows_of(kind: str, times: dict[str, float], sizes: dict[str, int]) -> list[Row]:
    """One kind's time and bytes in units of json's, and pickle's beside."""
    name, what = f"vectors.{kind.replace(' ', '_')}", f"1 000 vectors of 1 536 floats, {kind}: share of json's"
    pickle_s, pickle_bytes = times["pickle"] / times["json"], sizes["pickle"] / sizes["json"]
    took = f"{times[kind] * 1e3:.0f} ms, json {times['json'] * 1e3:.0f}, pickle {times['pickle'] * 1e3:.0f}"
    size = f"{sizes[kind]:,} bytes, json {sizes['json']:,}, pickle {sizes['pickle']:,}"
    return [
        Row(name, f"{what} time", times[kind] / times["json"], "x", None, {"pickle": pickle_s}, took),
        Row(f"{name}_bytes", f"{what} bytes", sizes[kind] / sizes["json"], "x", None, {"pickle": pickle_bytes}, size),
    ]


def _size(data_type: str, settings: Settings, value: Any) -> int:
    """The bytes of a value's payload."""
    rules = PolicyTable(settings.policies).rules(data_type)
    return len(pack(value, rules, 0.0, Given(None, ()))[0].payload)
