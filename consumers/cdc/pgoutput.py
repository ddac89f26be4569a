"""What PostgreSQL's output plugin `pgoutput` says, protocol version 1, values as text.

Each message is a letter and its fields in network order. Described in PostgreSQL's manual under "Logical Replication
Message Formats".
"""

from __future__ import annotations

import struct
from typing import Any, Final, NamedTuple

from consumers.cdc.change import OtherText, RowChange

EPOCH_S: Final = 946_684_800
"""Midnight of 2000-01-01 in Unix seconds: PostgreSQL counts microseconds from there."""
BOOL: Final = 16
WHOLE_NUMBERS: Final = frozenset({20, 21, 23, 26})
"""int8, int2, int4, oid."""
TEXTS: Final = frozenset({18, 19, 25, 650, 829, 869, 1042, 1043, 2950})
"""char, name, text, cidr, macaddr, inet, bpchar, varchar, uuid."""
FIRST_OWN_TYPE: Final = 16_384
"""Types from here on are a database's own, such as enums: taken for text."""
KEY: Final = 1

_begin = struct.Struct(">qqI")
_commit = struct.Struct(">bqqq")
_column = struct.Struct(">Ii")
_u32, _i32, _i16 = struct.Struct(">I"), struct.Struct(">i"), struct.Struct(">h")


class PgOutputError(ValueError):
    """The bytes are no message of `pgoutput`."""


class Begin(NamedTuple):
    """A transaction begins; all that follows up to its `Commit` is of it."""

    committed_at_s: float
    xid: int


class Commit(NamedTuple):
    """A transaction is whole; `end_lsn` is where the next begins."""

    end_lsn: int
    committed_at_s: float


class Column(NamedTuple):
    """A column of a table; `key`: whether it is part of the table's replica identity."""

    name: str
    type_oid: int
    key: bool


class Relation(NamedTuple):
    """A table, as it was when its rows were written. `identity`: "d"efault, "n"othing, "f"ull, "i"ndex."""

    schema: str
    table: str
    identity: str
    columns: tuple[Column, ...]


class Decoder:
    """Reads the messages of one peek, in order: rows are told with the number of a table that was told before."""

    def __init__(self) -> None:
        self.relations: dict[int, Relation] = {}
        self._committed_at_s: float | None = None

    def decode(self, data: bytes, position: str = "") -> Begin | Commit | list[RowChange]:
        """What a message says; an empty list for those that tell of no row. `PgOutputError`, whatever the bytes are."""
        read = _Reader(data)
        kind = read.letter()
        if kind == "B":
            _, at_us, xid = read.fields(_begin)
            self._committed_at_s = _unix_s(at_us)
            return Begin(self._committed_at_s, xid)
        if kind == "C":
            _, _, end_lsn, at_us = read.fields(_commit)
            return Commit(end_lsn, _unix_s(at_us))
        if kind in "IUD":
            return [self._row(kind, read, position)]
        if kind == "T":
            count, _ = read.fields(_i32)[0], read.letter()
            return [self._truncated(read.fields(_u32)[0], position) for _ in range(_sane(count, read))]
        if kind == "R":
            oid, relation = _relation(read)
            self.relations[oid] = relation
        elif kind not in "YOM":  # types, origins, and messages that applications write: no rows
            raise PgOutputError(f"no message begins with {kind!r}")
        return []

    def _of(self, oid: int) -> Relation:
        try:
            return self.relations[oid]
        except KeyError:
            raise PgOutputError(f"a row of the table {oid}, which was not told before") from None

    def _row(self, kind: str, read: _Reader, position: str) -> RowChange:
        relation = self._of(read.fields(_u32)[0])
        new = old = None
        part = read.letter()
        if part in "KO" and kind != "I":
            old = read.row(relation, key_only=part == "K")
            part = read.letter() if kind == "U" else ""
        if part == "N" and kind != "D":
            new = read.row(relation)
        elif part or kind != "D":
            raise PgOutputError(f"{part!r} is no part of {kind!r}")
        read.end()
        op = {"I": "insert", "U": "update", "D": "delete"}[kind]
        return RowChange(op, relation.schema, relation.table, new, old, position, self._committed_at_s)  # type: ignore[arg-type]

    def _truncated(self, oid: int, position: str) -> RowChange:
        relation = self._of(oid)
        return RowChange(
            "truncate", relation.schema, relation.table, position=position, committed_at_s=self._committed_at_s
        )


class _Reader:
    """Takes one field after another off a message; `PgOutputError` where there is none."""

    __slots__ = ("_at", "_data")

    def __init__(self, data: bytes) -> None:
        self._data = data
        self._at = 0

    def fields(self, layout: struct.Struct) -> tuple[Any, ...]:
        try:
            found = layout.unpack_from(self._data, self._at)
        except struct.error:
            raise PgOutputError("a message is cut short") from None
        self._at += layout.size
        return found

    def letter(self) -> str:
        if self._at >= len(self._data):
            raise PgOutputError("a message is cut short")
        self._at += 1
        return chr(self._data[self._at - 1])

    def text(self) -> str:
        end = self._data.find(b"\0", self._at)
        if end < 0:
            raise PgOutputError("a name has no end")
        found = _decoded(self._data[self._at : end])
        self._at = end + 1
        return found

    def left(self) -> int:
        return len(self._data) - self._at

    def end(self) -> None:
        if self.left():
            raise PgOutputError(f"{self.left()} bytes too many in a message")

    def row(self, relation: Relation, *, key_only: bool = False) -> dict[str, Any]:
        """The columns that are told; of an old row that has only its key, the key."""
        (count,) = self.fields(_i16)
        if count != len(relation.columns):
            raise PgOutputError(f"a row of {count} columns in a table of {len(relation.columns)}")
        found: dict[str, Any] = {}
        for column in relation.columns:
            kind = self.letter()
            if kind == "t":
                (size,) = self.fields(_i32)
                if not 0 <= size <= self.left():
                    raise PgOutputError("a value is cut short")
                data = self._data[self._at : self._at + size]
                self._at += size
                found[column.name] = _value(data, column.type_oid)
            elif kind == "n":
                if column.key or not key_only:
                    found[column.name] = None
            elif kind != "u":  # a large value that was left as it was, and is not told
                raise PgOutputError(f"no value is of the kind {kind!r}")
        return found


def _relation(read: _Reader) -> tuple[int, Relation]:
    (oid,) = read.fields(_u32)
    schema, table, identity = read.text() or "pg_catalog", read.text(), read.letter()
    columns = []
    for _ in range(_sane(read.fields(_i16)[0], read)):
        flags, name = ord(read.letter()), read.text()
        type_oid, _ = read.fields(_column)
        columns.append(Column(name, type_oid, bool(flags & KEY)))
    read.end()
    return oid, Relation(schema, table, identity, tuple(columns))


def _sane(count: int, read: _Reader) -> int:
    if not 0 <= count <= read.left():
        raise PgOutputError(f"{count} parts in a message of {read.left()} bytes")
    return count


def _unix_s(at_us: int) -> float:
    return EPOCH_S + at_us / 1e6


def _decoded(data: bytes) -> str:
    try:
        return data.decode()
    except UnicodeDecodeError:
        raise PgOutputError("a text is not UTF-8: the connection's client_encoding must be") from None


def _value(data: bytes, type_oid: int) -> Any:
    if type_oid in WHOLE_NUMBERS:
        try:
            return int(data)
        except ValueError:
            raise PgOutputError("a whole number is none") from None
    text = _decoded(data)
    if type_oid in TEXTS or type_oid >= FIRST_OWN_TYPE:
        return text
    if type_oid == BOOL:
        return text == "t"
    return OtherText(text)


def nameable(type_oid: int) -> bool:
    """Whether a column of this type can be part of a name."""
    return type_oid in WHOLE_NUMBERS or type_oid in TEXTS or type_oid >= FIRST_OWN_TYPE
