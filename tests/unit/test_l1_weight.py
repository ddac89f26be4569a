"""What values are said to take, beside what the interpreter says that it has handed out for them."""

from __future__ import annotations

import gc
import tracemalloc
import uuid
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta, timezone
from decimal import Decimal
from typing import Any

import msgspec
import numpy as np
import pytest
from pydantic import BaseModel, PrivateAttr

from cachebus.l1 import weight
from cachebus.l1.weight import Weights, weigh
from cachebus.values import decode, encode


class Model(BaseModel):
    """Of pydantic."""

    a: int
    b: str
    c: float


class Models(BaseModel):
    """That holds others."""

    models: list[Model]


@dataclass
class Row:
    """With attributes in its `__dict__`."""

    a: int
    b: str
    c: float


@dataclass(slots=True)
class Slotted:
    """With attributes in slots."""

    a: int
    b: str


class Packed(msgspec.Struct):
    """Of msgspec."""

    a: int
    b: str


class Line(msgspec.Struct):
    """In another, in a third."""

    packed: list[Packed]


class Order(msgspec.Struct):
    """With two below it."""

    lines: list[Line]


class Unseen(msgspec.Struct, gc=False):
    """Out of the garbage collector's sight."""

    a: str
    b: list[str]


ORDER = Order([Line([Packed(1000 + n, f"text {n}") for n in range(20)]) for _ in range(5)])
POINTS = [np.array([(i, i / 7)], dtype=[("a", "i1"), ("b", "f8")]) for i in range(50)]
MODEL = Model(a=1000, b="text", c=1.5)
VALUES: dict[str, tuple[Any, Any]] = {
    "small dict": ({"id": 10**6, "ok": True, "tags": []}, None),
    "small dicts": ([{"id": i, "ok": True, "tags": []} for i in range(300)], None),
    "ids as keys": ({f"{i:020}": i for i in range(300)}, None),
    "floats": ([i / 7 for i in range(1000)], None),
    "short strings": ([f"{i:010}" for i in range(1000)], None),
    "small ints": ([i % 200 for i in range(1000)], None),
    "text": ("x" * 3000, None),
    "text beyond Latin": ("x" * 3000 + "\U0001f40d", None),
    "bytes": (b"x" * 3000, None),
    "array": (np.zeros(500), None),
    "UUIDs": ([uuid.UUID(int=i + (1 << 100)) for i in range(50)], None),
    "Decimals": ([Decimal(i) / 7 for i in range(50)], None),
    "UTC": ([datetime(2026, 1, 1, tzinfo=UTC) + timedelta(i) for i in range(50)], None),
    "zones": ([datetime(2026, 1, 1, tzinfo=timezone(timedelta(hours=i + 1))) for i in range(20)], None),
    "set": ({f"{i:050}" for i in range(50)}, None),
    "deep": ([[[[[{}]]]] for _ in range(100)], None),
    "mixed": ({"a": [{"b": [1.5] * 3, "c": {"d": "text"}}] * 50, "t": "x" * 100}, None),
    "model": (MODEL, Model),
    "models": (Models(models=[MODEL] * 20), Models),
    "dataclass": (Row(1000, "text", 1.5), Row),
    "dataclasses": ([Row(1000, "text", 1.5)] * 50, list[Row]),
    "slots": (Slotted(1000, "text"), Slotted),
    "struct": (Packed(1000, "text"), Packed),
    "structs in structs": (ORDER, Order),
    "structs that the collector does not see": (Unseen("x" * 500, ["y" * 100] * 5), Unseen),
    "structured arrays": (POINTS, None),
}


@pytest.mark.parametrize("name", VALUES)
def test_a_value_weighs_about_what_it_takes(name: str) -> None:
    value, model = VALUES[name]
    codec, payload = encode(value, dumped=model is not None)
    held: list[Any] = [decode(codec, payload, model) for _ in range(100)]
    held = [None] * 100
    gc.collect()
    tracemalloc.start()
    try:
        before = tracemalloc.get_traced_memory()[0]
        for i in range(100):
            held[i] = decode(codec, payload, model)
        taken_bytes = (tracemalloc.get_traced_memory()[0] - before) / 100
    finally:
        tracemalloc.stop()
    weighed = sum(weigh(one) for one in held) / 100
    assert 0.8 * taken_bytes < weighed < 1.4 * taken_bytes + 32


def test_few_are_looked_into(monkeypatch: pytest.MonkeyPatch) -> None:
    looks = 0

    def counted(value: Any, encoded_bytes: int, enough_bytes: float) -> float:
        nonlocal looks
        looks += 1
        return 1_000.0

    monkeypatch.setattr(weight, "weigh", counted)
    weights = Weights(1 << 30)
    for _ in range(10_000):
        assert weights.of("doc", [], 50) == 1_000
    assert 1 <= looks < 30  # once in 4 000
    looks = 0
    for _ in range(100):
        weights.of("doc", [], 50, compressed=True)
    assert looks == 100


FEW_HEAVY: list[Any] = [1] * 1000
FEW_HEAVY[77] = FEW_HEAVY[501] = [[]] * 2500
GRAND_CHILDREN: list[Any] = [{"id": n, "children": []} for n in range(500)]
GRAND_CHILDREN[3] = {"id": 3, "children": [{"id": 1, "ok": True}] * 4000}
LONG_TEXT: list[Any] = [1] * 30_000
LONG_TEXT[17] = "x" * 10_000_000
KEYS: list[Any] = [{}] * 1000
KEYS[9] = {f"{n:020}": n for n in range(5000)}


@pytest.mark.parametrize("value", [FEW_HEAVY, GRAND_CHILDREN, LONG_TEXT, KEYS, {"rows": FEW_HEAVY}])
@pytest.mark.parametrize("compressed", [False, True])
def test_one_part_that_is_heavy_is_seen_among_many_that_are_not(value: Any, compressed: bool) -> None:
    codec, payload = encode(value, compress_over_bytes=None)
    decode(codec, payload)
    tracemalloc.start()
    try:
        found = decode(codec, payload)
        taken_bytes = tracemalloc.get_traced_memory()[0]
    finally:
        tracemalloc.stop()
    weights = Weights(1 << 30)
    for _ in range(20):
        assert weights.of("doc", found, len(payload), compressed=compressed) > 0.7 * taken_bytes


def test_what_may_turn_out_too_large_is_always_looked_into() -> None:
    weights = Weights(1 << 20)  # at most 128 KiB each
    light, heavy = ["x" * 2_400], [[]] * 2_400
    for _ in range(50):
        assert weights.of("doc", light, 2_403) < 4_000
        weights.of("doc", light, 2_403)
        assert weights.of("doc", heavy, 2_403) > 1 << 17


def test_what_is_too_large_is_not_counted_to_its_end() -> None:
    value: list[Any] = []
    for _ in range(90):
        value = [value, value]  # counted to its end, that is for ever
    assert Weights(1 << 20).of("doc", value, 200) > 1 << 17


def test_a_compressed_value_is_no_lighter_than_its_payload() -> None:
    class Silent(dict[str, Any]):
        def __sizeof__(self) -> int:
            return 0

    assert Weights(1 << 20).of("doc", Silent(), 5_000, compressed=True) >= 5_000


def test_types_are_told_apart() -> None:
    weights = Weights(1 << 40)
    heavy: list[Any] = [[]] * 300
    light = ["x" * 300]
    for _ in range(10):
        assert weights.of("heavy", heavy, 303) > 10_000 > 1_000 > weights.of("light", light, 303)


def test_what_is_learnt_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(weight, "_LEARNT_MAX", 10)
    weights = Weights(1 << 20)
    for i in range(100):
        weights.of(f"type {i}", [], 1)
        assert len(weights._learnt) <= 10


def test_what_knows_the_whole_program_or_itself_is_not_followed() -> None:
    class Strange:
        def __init__(self) -> None:
            self.modules = [weight, np, self]
            self.me = self

    class Holder(BaseModel):
        _strange: Strange = PrivateAttr(default_factory=Strange)

    assert weigh(Holder()) < 10_000


def test_a_class_that_does_not_say_its_size() -> None:
    class Odd(dict[str, Any]):
        def __sizeof__(self) -> int:
            raise RuntimeError

    assert Weights(1 << 20).of("doc", Odd(), 100) >= 100
