"""Messages that are read, named and planned together give what each gives by itself."""

from __future__ import annotations

import random
import struct
from collections.abc import Sequence
from typing import Any

import pytest
from pydantic import SecretStr

from cachebus import Settings
from cachebus.consumers.cdc.rules.rules import parse_rules
from cachebus.consumers.cdc.slot import meaning
from cachebus.consumers.cdc.slot.passed import PassedOver, TransactionProgress
from cachebus.consumers.cdc.slot.peek import Peek, SlotChange
from cachebus.consumers.cdc.slot.pgoutput import Decoder, PgOutputError, Told
from cachebus.consumers.cdc.slot.postgres import SlotSource, SlotWorker
from cachebus.consumers.cdc.slot.session import SlotSession
from cachebus.consumers.worker.chunk import Chunk, size_of
from cachebus.consumers.worker.source import Item
from cachebus.consumers.worker.source_worker import ENTAILED_AT_ONCE, NAMES_AT_ONCE

RULES = """
tenants = ["acme"]

[[cascade]]
data_type = "order"
to = [["embedding", "order:{resource_id}"]]

[[rule]]
table = "shop.plain"
data_type = "plain"
resource_id = "{id}"
tenant_id = "acme"

[[rule]]
table = "shop.notes"
data_type = "note"
resource_id = "{note}"
tenant_id = "acme"

[[rule]]
table = "shop.orders"
data_type = "order"
resource_id = "{id}"
tenant_id = "{tenant}"
on_truncate = "all"

[[rule]]
table = "shop.every"
data_type = "every"
resource_id = "{note}"
tenant_id = "{tenant}"
every_context = true
on_truncate = "ignore"

[[rule]]
table = "shop.several"
data_type = "first"
resource_id = "{id}"
tenant_id = "acme"

[[rule]]
table = "shop.several"
data_type = "second"
resource_id = "{note}"
tenant_id = "acme"
when = ["note"]

[[rule]]
table = "shop.lessened"
data_type = "lessened"
resource_id = "{id}"
tenant_id = "{tenant}"
on_truncate = "ignore"
"""
TABLES = ["shop.plain", "shop.notes", "shop.orders", "shop.every", "shop.several", "shop.lessened", "shop.nobodys"]
OWN = "public.cachebus_cdc_slots"
COLUMNS = [("id", 20), ("tenant", 25), ("note", 25)]
IDS = ["1", "2", "77", "123456789012"]
TENANTS = ["acme", "globex"] * 20
NOTES = ["n", "größe", "a:b", "*", "", "x\x07", "y" * 600, "z"]
SEEDS = range(12)
MESSAGES = 600


class Stream:
    """Messages of one peek, made by a seed: mostly long runs of rows of one table, as a server tells them."""

    def __init__(self, seed: int) -> None:
        self._random = random.Random(seed)
        self._tables = [*TABLES, OWN]
        self._told: dict[int, list[tuple[str, int]]] = {}
        """The columns that each table was told to have."""

    def messages(self, count: int) -> list[tuple[str, bytes, int, int]]:
        made = [self._begin(1)]
        while len(made) < count:
            number = self._random.randrange(len(self._tables))
            if number not in self._told or self._random.random() < 0.1:
                made.append(self._relation(number))
            made += [self._row(number) for _ in range(self._random.choice([1, 1, 2, 5, 40]))]
            if self._random.random() < 0.1:
                made += [self._commit(len(made)), self._begin(len(made) + 1)]
            if self._random.random() < 0.1:
                made.append(self._odd(number))
        made.append(self._commit(len(made)))
        return [(f"0/{at:X}", data, 0, 0) for at, data in enumerate(made, 1)]

    def _begin(self, at: int) -> bytes:
        return b"B" + struct.pack(">qqI", at, 700_000_000_000_000 + at, at)

    def _commit(self, at: int) -> bytes:
        return b"C" + struct.pack(">bqqq", 0, at, at + 1, at)

    def _relation(self, number: int) -> bytes:
        schema, _, table = self._tables[number].partition(".")
        columns = self._told[number] = COLUMNS[: self._random.choice([2, 3, 3, 3])]
        self._random.shuffle(columns)
        described = b"".join(
            bytes([name == "id"]) + name.encode() + b"\0" + struct.pack(">Ii", kind, -1) for name, kind in columns
        )
        head = struct.pack(">I", number) + f"{schema}\0{table}\0".encode() + b"d"
        return b"R" + head + struct.pack(">h", len(columns)) + described

    def _row(self, number: int) -> bytes:
        head = struct.pack(">I", number)
        kind = self._random.choices([b"I", b"U", b"UK", b"D", b"odd"], [8, 8, 1, 1, 0.3])[0]
        if kind == b"odd":
            row = self._values(number)
            return b"U" + head + b"N" + row[: self._random.randrange(len(row))]
        if kind == b"UK":
            return b"U" + head + b"K" + self._values(number) + b"N" + self._values(number)
        return kind + head + (b"K" if kind == b"D" else b"N") + self._values(number)

    def _values(self, number: int) -> bytes:
        columns = self._told[number]
        return struct.pack(">h", len(columns)) + b"".join(self._value(name) for name, _ in columns)

    def _value(self, column: str) -> bytes:
        if self._random.random() < 0.03:
            return self._random.choice([b"n", b"u", b"b", b"t" + struct.pack(">i", 1) + b"\xff"])
        text = self._random.choice(IDS if column == "id" else [*TENANTS, *NOTES]).encode()
        return b"t" + struct.pack(">i", len(text)) + text

    def _odd(self, number: int) -> bytes:
        truncate = b"T" + struct.pack(">iBI", 1, 0, number)
        return self._random.choice([truncate, b"Y", b"M", b"?", b"I\0", b"U" + struct.pack(">I", 99) + b"N"])


def made(rules: str = RULES) -> tuple[SlotWorker, SlotSession]:
    worker = SlotWorker(
        Settings(url="redis://127.0.0.1:1/0", shards=4), parse_rules(rules), SlotSource(SecretStr("postgres://x/y"))
    )
    lessened = worker.source.router.table("shop", "lessened", TABLES.index("shop.lessened"))
    known = {("shop", "lessened", TABLES.index("shop.lessened")): lessened._replace(key=frozenset({"id", "tenant"}))}
    worker.source.router._by_table.update(known)  # as a look would have learned it
    return worker, SlotSession(worker.source, None, None)  # type: ignore[arg-type]


def one_by_one(rows: Sequence[Any], follows: Any) -> list[Any]:
    """What each message is told as, by the decoder alone: the place, and what was told, in order."""
    decoder, found = Decoder(), list[Any]()
    for lsn, data, _, _ in rows:
        try:
            told = decoder.read(data, lsn)
        except PgOutputError as error:
            found.append((lsn, str(error)))
            continue
        if isinstance(told, Told) and told.relations[0].table != OWN.partition(".")[2]:
            found.append((lsn, told if any(map(follows, told.relations)) else None))
    return found


@pytest.mark.parametrize("seed", SEEDS)
def test_rows_are_read_as_the_decoder_reads_them(seed: int) -> None:
    worker, _ = made()
    rows = Stream(seed).messages(MESSAGES)
    items: list[Any] = Peek(TransactionProgress(), PassedOver(), worker.source.is_followed).read(rows)
    told = [
        (item.place, item.raw if item.raw is None or isinstance(item.raw, Told) else item.raw.problem) for item in items
    ]
    assert told == one_by_one(rows, worker.source.is_followed)
    assert all(isinstance(item, SlotChange) for item in items)
    assert all(item.sent_s == item.raw.committed_at_s for item in items if isinstance(item.raw, Told))
    numbers = [(item.transaction, item.number) for item in items]
    assert len(set(numbers)) == len(numbers)
    assert numbers == sorted(numbers)


async def chunks(worker: SlotWorker, session: SlotSession, items: Sequence[Item]) -> list[Chunk]:
    found, at = list[Chunk](), 0
    while at < len(items):
        chunk, at = await worker._next_chunk(session, items, at)
        found.append(chunk)
    return found


def described(found: Sequence[Chunk]) -> Any:
    """All that L2 and the dead letters get, and which item each belongs to."""
    plans = [plan for chunk in found for plan in chunk.plans]
    return (
        [(part.item.place, part.command) for chunk in found for part in chunk._parts],
        [(plan.shard, [(key.l1, key.l2, key.crc) for key in plan.keys], plan.scopes, plan.targets) for plan in plans],
        [(item.place, reasons) for chunk in found for item, reasons in chunk._refused.values()],
        [item.place for chunk in found for item in chunk.items],
        sum(len(chunk.ignored) for chunk in found),
        sum(chunk.size for chunk in found),
    )


@pytest.mark.parametrize("seed", SEEDS)
async def test_changes_that_are_named_together_mean_what_each_means(seed: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """The other way knows neither runs nor short cuts."""
    rows = Stream(seed).messages(MESSAGES)
    quick_worker, quick = made()
    together = list[int]()
    named = quick.named
    monkeypatch.setattr(quick, "named", lambda items: _counted(named(items), together))
    items = Peek(TransactionProgress(), PassedOver(), quick_worker.source.is_followed).read(rows)
    by_runs = described(await chunks(quick_worker, quick, items))
    assert max(together) >= 10
    monkeypatch.setattr(meaning, "shortcut", lambda *_: None)
    slow_worker, slow = made()
    monkeypatch.setattr(slow, "named", lambda _: ())
    assert by_runs == described(await chunks(slow_worker, slow, items))
    assert quick_worker.source.mending.doubts == slow_worker.source.mending.doubts
    assert quick_worker.source.mending.has_new_doubts == slow_worker.source.mending.has_new_doubts


async def test_where_naming_them_together_fails_each_is_named_by_itself(monkeypatch: pytest.MonkeyPatch) -> None:
    """What is wrong with one of them is then said of that one."""
    worker, session = made()
    items = Peek(TransactionProgress(), PassedOver(), worker.source.is_followed).read(Stream(1).messages(MESSAGES))
    whole = described(await chunks(worker, session, items))

    def fails(_: Sequence[Item]) -> Sequence[Any]:
        raise LookupError

    monkeypatch.setattr(session, "named", fails)
    assert described(await chunks(worker, session, items)) == whole


def _counted(found: Sequence[Any], into: list[int]) -> Sequence[Any]:
    into.append(len(found))
    return found


def plain_rows(count: int) -> list[tuple[str, bytes, int, int]]:
    """Rows of the table `shop.plain`, in one transaction."""
    plain = Stream(0)
    rows = [("0/1", plain._begin(1), 0, 0), ("0/1", plain._relation(0), 0, 0)]
    return rows + [("0/2", b"I" + struct.pack(">I", 0) + b"N" + plain._values(0), 0, 0) for _ in range(count)]


async def test_a_chunk_of_such_changes_is_as_large_as_any() -> None:
    worker, session = made()
    items = Peek(TransactionProgress(), PassedOver(), worker.source.is_followed).read(plain_rows(3000))
    assert [len(chunk.items) for chunk in await chunks(worker, session, items)][:2] == [1000, 1000]


@pytest.mark.parametrize("count", [2, 50, 256])
async def test_what_entails_much_is_planned_a_few_at_a_time(count: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Else the event loop stands still for hundreds of milliseconds, and L2 is asked for many times as much at once."""
    to = ", ".join(f'["entailed{number}", "{{resource_id}}"]' for number in range(count))
    worker, session = made(f'{RULES}\n[[cascade]]\ndata_type = "plain"\nto = [{to}]\n')
    sizes = list[int]()
    plans_of = worker._applier.plans_of

    def noted(resources: Sequence[Any]) -> list[Any]:
        found = plans_of(resources)
        sizes.append(sum(map(size_of, found)))
        return found

    monkeypatch.setattr(worker._applier, "plans_of", noted)
    items = Peek(TransactionProgress(), PassedOver(), worker.source.is_followed).read(plain_rows(600))
    found = await chunks(worker, session, items)
    assert sum(len(chunk.items) for chunk in found) > 500, "all but those whose bytes are no text"
    assert max(sizes) <= max(ENTAILED_AT_ONCE, count + 1)
    assert max(chunk.size for chunk in found) <= NAMES_AT_ONCE + count + 1
