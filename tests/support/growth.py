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

import msgspec
import numpy as np
import psutil
from pydantic import BaseModel

from cachebus import Cache, Policy, Settings
from cachebus.base.clock import monotonic
from cachebus.keys.key import Key, Keyspace
from cachebus.reading.judge import AsOf, Judge
from cachebus.wire import record as records
from cachebus.wire.packing import Given, pack
from tests.support.caches import parts

MIB = 1 << 20
HOT_EACH = 7
HOT = 1500
"""So many of the hot ones are read."""
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


class Packed(msgspec.Struct):
    """One that holds others of its kind."""

    name: str
    parts: list[Packed] = []


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


def _hubs(i: int) -> Any:
    """Neighbours by number: four of a thousand nodes have 2 500, the others one."""
    found: list[Any] = [1] * 1000
    for hub in _rng.sample(range(1000), 4):
        found[hub] = [[]] * 2500
    return found


def _graph(i: int) -> Any:
    """Neighbours by name, and some hubs."""
    found = [[f"n{_rng.randrange(10**6)}" for _ in range(2)] for _ in range(2000)]
    for hub in _rng.sample(range(2000), 6):
        found[hub] = [f"n{_rng.randrange(10**6)}" for _ in range(2000)]
    return found


def _rows(i: int) -> Any:
    """Of a thousand rows, four have thousands of children."""
    children = [{"id": n, "ok": True} for n in range(4000)]
    return {"rows": [{"id": n, "children": children if _rng.random() < 0.004 else []} for n in range(500)]}


def _now_and_then(i: int) -> Any:
    """One value of a hundred is a hub, of the length that the others have."""
    return [[]] * 2000 if i % 100 == 0 else [_text(1000), _text(997)]


def _heavy_if_hot(i: int) -> Any:
    """Of one type, class and about one length."""
    return [{"a": 1, "b": True} for _ in range(110)] if i % HOT_EACH == 0 else [_text(300), _text(300), _text(200)]


@dataclasses.dataclass(frozen=True)
class Kind:
    """Values to fill L1 with: about `each_bytes` in memory."""

    make: Callable[[int], Any]
    each_bytes: int
    policy: Policy = Policy()  # noqa: RUF009 (it is frozen)
    tags: int = 0
    id_length: int = 8
    hot_each: int = 0
    """One of so many is read again and again, the others never."""


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
    "models": Kind(
        lambda i: Order(id=i, lines=[Line(sku=f"s{n}", count=n) for n in range(30)]), 20_000, Policy(model=Order)
    ),
    "dataclasses": Kind(lambda i: [Row(i, f"n{n}", 1.5 * n) for n in range(50)], 12_000, Policy(model=list[Row])),
    "structs": Kind(
        lambda i: Packed(_text(20), [Packed(_text(20), [Packed(_text(20)) for _ in range(8)]) for _ in range(8)]),
        12_000,
        Policy(model=Packed),
    ),
    "structured arrays": Kind(
        lambda i: [np.array([(n, n / 7)], dtype=[("a", "i1"), ("b", "f8")]) for n in range(50)], 12_000
    ),
    "tiny": Kind(lambda i: i, 300),
    "not found, tagged": Kind(lambda i: "x", 900, tags=4),
    "long ids": Kind(lambda i: i, 1_200, id_length=500),
    "copies": Kind(lambda i: [_text(500)], 1_700, Policy(copy=True)),
    "ids as keys": Kind(lambda i: {_text(20): n for n in range(100)}, 15_000),
    "of any size": Kind(_of_any_size, 30_000),
    "alternating": Kind(_alternating, 10_000),
    "the hot are heavy": Kind(_heavy_if_hot, 2_000, hot_each=HOT_EACH),
    "hubs": Kind(_hubs, 20_000),
    "hubs, compressed": Kind(_hubs, 20_000, _COMPRESSED),
    "graph": Kind(_graph, 900_000),
    "few rows with many children": Kind(_rows, 400_000),
    "such rows, compressed": Kind(_rows, 400_000, _COMPRESSED),
    "one value of a hundred is heavy": Kind(_now_and_then, 3_000),
    "first light, then heavy": Kind(lambda i: [_text(100)] * 3 if i < 2_000 else [[]] * 300, 12_000),
}


def rss_bytes() -> int:
    """What the process has in memory."""
    gc.collect()
    return psutil.Process().memory_info().rss


async def grown_bytes(kind: Kind, bound_bytes: int) -> tuple[int, int, int]:
    """By how much the process grows while its L1 is filled four times over, by values as reads of L2 bring them; L1's
    own figure, and its entries."""
    async with Cache.open(Settings(url="memory://", l1_max_bytes=bound_bytes, policies={"doc": kind.policy})) as cache:
        node, policies = parts(cache).node, parts(cache).policies
        judge, keys, view = Judge(node, policies), Keyspace(1), node.shards[0]

        def name(i: int) -> Key:
            return keys.key("doc", f"{i:0{kind.id_length}d}", "acme")

        def read(i: int) -> None:
            held = node.l1.entries.get(name(i).l1)
            if held is not None:
                held.freq = min(3, held.freq + 1)
                return
            tags = [f"{n} of some length, {i}" for n in range(kind.tags)]
            record, _ = pack(
                kind.make(i), policies.rules("doc"), node.server_clocks[0].offset_s + monotonic(), Given(tags=tags)
            )
            record.epoch, record.seq = view.epoch, view.applied
            judge.decode_and_admit(
                name(i), records.decode(record.encode(name(i).l2), name(i).l2), AsOf(view.reserve(), monotonic())
            )

        for i in range(100):  # what the interpreter takes once
            read(i)
        node.l1.clear()
        before = rss_bytes()
        for i in range(4 * bound_bytes // kind.each_bytes):
            read(i)
            for _ in range(3 if kind.hot_each else 0):
                newest = i // kind.hot_each
                read(kind.hot_each * _rng.randrange(max(0, newest - HOT), newest + 1))
        grown = rss_bytes() - before
        node.l1.check()
        return grown, node.l1.bytes, len(node.l1)


if __name__ == "__main__":
    print(*asyncio.run(grown_bytes(KINDS[sys.argv[1]], int(sys.argv[2]) * MIB)))
