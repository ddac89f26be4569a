"""L2 in the model: the real `MemoryShard`, thawed for one request at a time."""

from __future__ import annotations

from collections.abc import Hashable
from typing import Generic, TypeVar

from cachebus import values
from cachebus.base.clock import WALL_S
from cachebus.core.ports import About, Caller, Invalidated, LogEntry, NodeRow, ProbeReply
from cachebus.core.requests import FillRequest, WriteRequest
from cachebus.keys.key import Key
from cachebus.l2.memory import MemoryShard
from cachebus.l2.memory_fill_lease import MemoryFillLease
from cachebus.l2.memory_invalidated import MemoryInvalidated
from cachebus.wire import record as records
from cachebus.wire.record import Record
from tests.model.frozen import BOUND, INF, NOW, Vault, frozen_marks, thawed_marks

Request = tuple[object, ...]
T = TypeVar("T", bound=Hashable)
OWN = "B"
"""The id of the modelled node, and the token of its leases."""
ELSEWHERE = Caller("", 0, b"")
"""Somebody who is no node: a producer."""
_PARTS = {
    "clock",
    "max_invalidated_scopes",
    "log_max",
    "log_max_bytes",
    "server",
    "publish",
    "new_epoch",
    "meta_server",
    "epoch",
    "seq",
    "invalidated",
    "messages",
    "logged_bytes",
    "rows",
    "identity",
    "nodes_name",
    "in_contexts",
    "records",
    "fill_leases",
    "counters",
    "requests",
    "guards",
    "guarded",
    "guarded_until_s",
    "swept_s",
    "born_s",
    "is_new",
    "bound_ms",
    "guard_ms",
    "keeps_without_l2",
}


class Interned(Generic[T]):
    """Numbers for things, so that states are compared by small integers."""

    def __init__(self) -> None:
        self._numbers: dict[T, int] = {}
        self.things: list[T] = []

    def number(self, thing: T) -> int:
        """The number of a thing; equal things have the same."""
        number = self._numbers.setdefault(thing, len(self.things))
        if number == len(self.things):
            self.things.append(thing)
        return number


def epoch_name(number: int) -> bytes:
    """The epochs of a model are numbered."""
    return b"%016x" % number


def frozen(thing: object) -> object:
    """An argument or reply that can be compared and kept; keys stay the objects that they are."""
    if isinstance(thing, Record):
        return Record(
            thing.flags,
            thing.codec,
            thing.payload,
            created_ms=0,
            soft_ms=thing.soft_ms,
            expires_ms=thing.expires_ms,
            tags=thing.tags,
            epoch=thing.epoch,
            seq=thing.seq,
            version=b"\0" * 4,
        ).encode("")
    if isinstance(thing, dict):
        return tuple(sorted((key, frozen(value)) for key, value in thing.items()))
    if isinstance(thing, str) and thing.startswith(OWN + "-"):
        return OWN  # ids and tokens are made anew for every node and flight: of each, one at a time is alive
    if isinstance(thing, tuple) and hasattr(thing, "_fields"):
        return type(thing)(*map(frozen, thing))
    return tuple(map(frozen, thing)) if isinstance(thing, tuple | list) else thing


def thawed(reply: object) -> object:
    """A reply as the store would give it."""
    if isinstance(reply, ProbeReply):
        invalidated = reply.invalidated and Invalidated(*(dict(part) for part in reply.invalidated))
        return reply._replace(
            invalidated=invalidated and invalidated._replace(by_bucket=thawed_marks(reply.invalidated.by_bucket))
        )
    if isinstance(reply, tuple) and (not reply or isinstance(reply[0], LogEntry)):
        return list(reply)
    return reply


def value_in(data: bytes) -> int:
    """The value in a record: how often its key had changed when it was read from the source."""
    record = records.parse(data)
    return int(str(values.decode(record.codec, record.payload, None)))


def record_place(data: bytes) -> tuple[bytes, int]:
    """Epoch and seq of a record."""
    record = records.parse(data)
    return record.epoch, record.seq


def new_record(name: str, value: int, tags: tuple[str, ...] = (), epoch: bytes = b"0" * 16, seq: int = 0) -> bytes:
    """A record for a value of the key of this name."""
    codec, payload = values.encode(value, "msgpack", None)
    return Record(0, codec, payload, created_ms=0, tags=tags, epoch=epoch, seq=seq, version=b"\0" * 4).encode(name)


class L2:
    """Plays one request to a frozen L2, and knows its outcome from then on."""

    def __init__(self, max_invalidated_scopes: int, *, rows: bool = False) -> None:
        """`rows`: whether the nodes' rows matter."""
        self._rows = rows
        self.states: Interned[Vault] = Interned()
        self._sent: list[bytes] = []
        self._epochs = 0
        self._shard = MemoryShard(lambda: NOW, max_invalidated_scopes=max_invalidated_scopes)
        self._shard.publish = self._sent.append
        self._shard.new_epoch = self._new_epoch
        self._known: dict[tuple[int, Request], tuple[int, object, tuple[bytes, ...]]] = {}
        if vars(self._shard).keys() != _PARTS:
            raise AssertionError(f"MemoryShard has other parts now: {vars(self._shard).keys() ^ _PARTS}")

    def _new_epoch(self) -> bytes:
        self._epochs += 1
        return epoch_name(self._epochs)

    def do(self, state: int, request: Request) -> tuple[int, object, tuple[bytes, ...]]:
        """L2 after a request, its reply, and what it published."""
        known = self._known.get((state, request))
        if known is None:
            self._thaw(self.states.things[state])
            operation, *arguments = request
            reply = getattr(self._shard, str(operation))(*map(self._argument, arguments))
            known = self.states.number(self._freeze()), frozen(reply), tuple(self._sent)
            self._known[state, request] = known
        return known

    @staticmethod
    def _argument(argument: object) -> object:
        if isinstance(argument, FillRequest | WriteRequest):
            return argument._replace(record=records.parse(argument.record))  # type: ignore[arg-type]  # frozen
        return argument

    def believed(self, state: int, keys: tuple[Key, ...]) -> tuple[bytes, int, tuple[int | None, ...]]:
        """Where the shard stands once somebody has asked, and what the reading script gives for each key."""
        reply = self.do(state, ("read", ELSEWHERE, keys))[1]
        found = tuple(None if data is None else value_in(data) for data in reply.records)
        return reply.epoch, reply.seq, found

    def changed(self, state: int, **parts: object) -> int:
        """L2 after something that no request does: a failover, an eviction."""
        return self.states.number(self.states.things[state]._replace(**parts))

    def _thaw(self, vault: Vault) -> None:
        shard, now = self._shard, self._shard.clock()
        shard.server, shard.meta_server, shard.epoch = vault.server, vault.meta_server, vault.epoch
        shard.seq, shard.bound_ms, shard.guard_ms, shard.keeps_without_l2 = vault.seq, vault.bound_ms, 0, False
        shard.invalidated = invalidated = MemoryInvalidated(shard.max_invalidated_scopes)
        invalidated.by_bucket, invalidated.low, invalidated.counted = (
            thawed_marks(vault.invalidated),
            dict(vault.low),
            dict(vault.counted),
        )
        invalidated.sizes = dict(vault.counted)  # every name is short
        shard.messages, shard.in_contexts = dict(vault.messages), set(vault.in_contexts)
        shard.records = {name: (data, INF) for name, data in vault.records}
        shard.fill_leases = {name: MemoryFillLease(epoch, token, now + 10) for name, epoch, token in vault.fill_leases}
        shard.rows = {node: _row(applied, epoch, age) for node, applied, epoch, age in vault.rows}
        # Where the rows do not matter their set has a name, so that it never begins anew.
        shard.nodes_name = vault.nodes_name if self._rows else b"-"
        shard.counters, shard.requests, shard.guards, shard.is_new = {}, {}, {}, False
        shard.guarded, shard.guarded_until_s, shard.swept_s = 0, 0.0, 0.0
        self._epochs = vault.epochs
        self._sent.clear()

    def _freeze(self) -> Vault:
        shard, invalidated = self._shard, self._shard.invalidated
        rows = sorted(shard.rows.items()) if self._rows else ()
        return Vault(
            shard.server,
            shard.meta_server,
            shard.epoch,
            shard.seq,
            self._epochs,
            invalidated=frozen_marks({bucket: its for bucket, its in invalidated.by_bucket.items() if its}),
            low=tuple(sorted(invalidated.low.items())),
            counted=tuple(sorted((bucket, count) for bucket, count in invalidated.counted.items() if count)),
            messages=tuple(shard.messages.items()),
            records=tuple(sorted((name, data) for name, (data, _) in shard.records.items())),
            fill_leases=tuple(sorted((name, lease.epoch, lease.token) for name, lease in shard.fill_leases.items())),
            in_contexts=tuple(sorted(shard.in_contexts)),
            rows=tuple((node, row.applied, row.epoch, _age(row)) for node, row in rows),
            nodes_name=shard.nodes_name if self._rows else b"",
            bound_ms=shard.bound_ms if self._rows else 0,
        )


def _row(applied: int, epoch: bytes, age: int) -> NodeRow:
    return NodeRow(applied, epoch, int(WALL_S + NOW - age) * 1_000_000, About(int(BOUND * 1000)))


def _age(row: NodeRow) -> int:
    return int(WALL_S + NOW) - row.at_us // 1_000_000
