"""How much a process grows whose L1 is filled many times over: `python -m tests.support.growth KIND MEBIBYTES`."""

from __future__ import annotations

import asyncio
import dataclasses
import gc
import random
import string
import sys
from collections.abc import Callable
from typing import Any

import numpy as np
import psutil
from pydantic import BaseModel

from cachebus import Cache, Policy, Settings
from cachebus import record as records
from cachebus.clock import monotonic
from cachebus.fetch import Fetcher
from cachebus.keys import Keyspace
from cachebus.packing import pack
from tests.support.caches import parts

MIB = 1 << 20
_rng = random.Random(3)


class Line(BaseModel):
    """A small model."""

    sku: str
    count: int
    price: float = 0.0


class Order(BaseModel):
    """One that holds others."""

    id: int
    lines: list[Line]


@dataclasses.dataclass
class Row:
    """A dataclass."""

    id: int
    name: str
    price: float


def _text(length: int) -> str:
    return "".join(_rng.choices(string.ascii_lowercase, k=length))


def _of_any_size(i: int) -> Any:
    count = 1 << _rng.randrange(12)
    return _rng.choice(
        [lambda: [{"a": i, "b": []}] * count, lambda: [_text(30)] * count, lambda: {"text": _text(count)}]
    )()


def _alternating(i: int) -> Any:
    """Of one type, class and length: every other takes forty times more than it is long."""
    return [[]] * 300 if i % 2 else [_text(100), _text(100), _text(97)]


@dataclasses.dataclass(frozen=True)
class Kind:
    """Values to fill L1 with: about `each_bytes` in memory."""

    make: Callable[[int], Any]
    each_bytes: int
    policy: Policy = Policy()  # noqa: RUF009 (it is frozen)
    tags: int = 0
    id_length: int = 8


_COMPRESSED = Policy(compress_over_bytes=1000)
KINDS: dict[str, Kind] = {
    "small dicts": Kind(lambda i: [{"id": i, "ok": True, "tags": []} for i in range(300)], 75_000),
    "one small dict": Kind(lambda i: {"id": i, "ok": True, "tags": []}, 700),
    "compressed text": Kind(lambda i: f"{i:06d}" * 30_000, 180_000, _COMPRESSED),
    "compressed dicts": Kind(lambda i: [{"id": 1, "b": []}] * 1000, 250_000, _COMPRESSED),
    "long strings": Kind(lambda i: _text(100) * 500, 50_000),
    "strings beyond Latin": Kind(lambda i: _text(100) * 500 + "\U0001f40d", 200_000),
    "floats": Kind(lambda i: [_rng.random() for _ in range(1000)], 40_000),
    "arrays": Kind(lambda i: np.random.default_rng(i).random(1000), 8_000),
    "models": Kind(lambda i: Order(id=i, lines=[Line(sku=f"s{n}", count=n) for n in range(30)]), 20_000,
                   Policy(model=Order)),
    "dataclasses": Kind(lambda i: [Row(i, f"n{n}", 1.5 * n) for n in range(50)], 12_000, Policy(model=list[Row])),
    "tiny": Kind(lambda i: i, 300),
    "not found, tagged": Kind(lambda i: "x", 900, tags=4),
    "long ids": Kind(lambda i: i, 1_200, id_length=500),
    "copies": Kind(lambda i: [_text(500)], 1_700, Policy(copy=True)),
    "ids as keys": Kind(lambda i: {_text(20): n for n in range(100)}, 15_000),
    "of any size": Kind(_of_any_size, 30_000),
    "alternating": Kind(_alternating, 10_000),
    "first light, then heavy": Kind(lambda i: [_text(100)] * 3 if i < 2_000 else [[]] * 300, 12_000),
}  # fmt: skip


def rss_bytes() -> int:
    """What the process has in memory."""
    gc.collect()
    return psutil.Process().memory_info().rss


async def grown_bytes(kind: Kind, bound_bytes: int) -> tuple[int, int, int]:
    """By how much the process grows while its L1 is filled four times over, by values as reads of L2 bring them; L1's
    own figure, and its entries."""
    async with Cache.open(Settings(url="memory://", l1_max_bytes=bound_bytes, policies={"doc": kind.policy})) as cache:
        node, store, policies = parts(cache).node, parts(cache).store, parts(cache).policies
        fetcher, keys, view = Fetcher(node, store, policies, monotonic, lambda _: None), Keyspace(1), node.shards[0]

        def read(i: int) -> None:
            tags = [f"{n} of some length, {i}" for n in range(kind.tags)]
            record, _ = pack(
                kind.make(i), policies.rules("doc"), node.server_clocks[0].offset_s + monotonic(), tags=tags
            )
            record.epoch, record.seq = view.epoch, view.applied
            key = keys.key("doc", f"{i:0{kind.id_length}d}", "acme")
            fetcher.taken(key, records.decode(record.encode(key.l2), key.l2), view.reserve(), monotonic())

        for i in range(100):  # what the interpreter takes once
            read(i)
        node.l1.clear()
        before = rss_bytes()
        for i in range(4 * bound_bytes // kind.each_bytes):
            read(i)
        grown = rss_bytes() - before
        node.l1.check()
        return grown, node.l1.bytes, len(node.l1)


if __name__ == "__main__":
    print(*asyncio.run(grown_bytes(KINDS[sys.argv[1]], int(sys.argv[2]) * MIB)))
