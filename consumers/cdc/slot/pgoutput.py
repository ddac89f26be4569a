"""What PostgreSQL's output plugin `pgoutput` says, protocol version 1, values as text.

Each message is a letter and its fields in network order. Described in PostgreSQL's manual under "Logical Replication
Message Formats".
"""

from __future__ import annotations

import struct
from typing import Any, Final, NamedTuple

from cachebus.consumers.cdc.rules.change import OddText, Op, OtherText, RowChange

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
_ROWS: Final[dict[bytes, Op]] = {b"I": "insert", b"U": "update", b"D": "delete"}
_OLD: Final = (b"K", b"O")
_TEXT, _NULL, _UNCHANGED = b"tnu"

_begin = struct.Struct(">qqI")
_commit = struct.Struct(">bqqq")
_column = struct.Struct(">Ii")
_u32, _i32, _i16 = struct.Struct(">I"), struct.Struct(">i"), struct.Struct(">h")


class PgOutputError(ValueError):
    """The bytes are no message of `pgoutput`."""


class Begin(NamedTuple):
    """A transaction begins. All messages up to its `Commit` belong to it."""

    committed_at_s: float
    xid: int
    lsn: int = 0
    """The position of its commit, which no other transaction has."""


class Commit(NamedTuple):
    """A transaction ends. `end_lsn`: where the next one begins."""

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
    encoding: str = ""
    """Python's name of the encoding of its text, which may contain bytes that are invalid in it; "" for UTF-8."""


class Told(NamedTuple):
    """A message about rows, with what is needed to parse it, so that it can be parsed later."""

    data: bytes
    relations: tuple[Relation, ...]
    """The table of the row, or all tables of a truncate."""
    position: str
    committed_at_s: float | None

    def changes(self, wanted: frozenset[str] | None = None) -> list[RowChange]:
        """The row changes, with these columns only, if they are given. Raises nothing but `PgOutputError`, whatever the
        bytes are."""
        if self.data[:1] == b"T":
            return [
                RowChange("truncate", one.schema, one.table, None, None, self.position, self.committed_at_s)
                for one in self.relations
            ]
        return [_change(self, wanted)]


class Decoder:
    """Parses the messages of one peek, in order: rows refer to tables that earlier messages have described. `encoding`:
    Python's name of the encoding of unconverted text; "" if the server has converted it to UTF-8."""

    def __init__(self, encoding: str = "") -> None:
        self._encoding = encoding
        self.relations: dict[int, Relation] = {}
        self._committed_at_s: float | None = None

    def read(self, data: bytes, position: str = "") -> Begin | Commit | Told | None:
        """The message, parsed as far as needed; None if it is about no row. Raises nothing but `PgOutputError`."""
        kind = data[:1]
        if kind in _ROWS and len(data) >= _u32.size + 1:
            return Told(data, (self._of(_u32.unpack_from(data, 1)[0]),), position, self._committed_at_s)
        read = _Reader(data, self._encoding)
        letter = read.letter()
        if letter == "B":
            end_lsn, at_us, xid = read.fields(_begin)
            self._committed_at_s = _unix_s(at_us)
            return Begin(self._committed_at_s, xid, end_lsn)
        if letter == "C":
            _, _, end_lsn, at_us = read.fields(_commit)
            return Commit(end_lsn, _unix_s(at_us))
        if letter == "T":
            count, _ = read.fields(_i32)[0], read.letter()
            named = tuple(self._of(read.fields(_u32)[0]) for _ in range(_sane(count, read)))
            return Told(data, named, position, self._committed_at_s)
        if letter == "R":
            oid, relation = _relation(read)
            self.relations[oid] = relation
        elif letter not in "YOM":  # types, origins, and messages that applications write: no rows
            raise PgOutputError(f"no message begins with {letter!r}")
        return None

    def decode(self, data: bytes, position: str = "") -> Begin | Commit | list[RowChange]:
        """The row changes of a message, none if it is about no row. Raises nothing but `PgOutputError`."""
        found = self.read(data, position)
        return [] if found is None else found.changes() if isinstance(found, Told) else found

    def _of(self, oid: int) -> Relation:
        try:
            return self.relations[oid]
        except KeyError:
            raise PgOutputError(f"a row of the table {oid}, which was not told before") from None


def _change(told: Told, wanted: frozenset[str] | None) -> RowChange:
    data, (relation,) = told.data, told.relations
    kind, part, at = data[:1], data[5:6], 6
    new = old = None
    if part in _OLD and kind != b"I":
        old, at = _row(data, at, relation, wanted, key_only=part == b"K")
        part, at = (data[at : at + 1], at + 1) if kind == b"U" else (b"", at)
    if part == b"N" and kind != b"D":
        new, at = _row(data, at, relation, wanted)
    elif part or kind != b"D":
        raise PgOutputError(f"{part.decode('latin1')!r} is no part of {kind.decode('latin1')!r}")
    if at != len(data):
        raise PgOutputError(f"{len(data) - at} bytes too many in a message")
    if old is None and new is None:
        raise PgOutputError("a message is cut short")
    return RowChange(_ROWS[kind], relation.schema, relation.table, new, old, told.position, told.committed_at_s)


def _row(
    data: bytes, at: int, relation: Relation, wanted: frozenset[str] | None, *, key_only: bool = False
) -> tuple[dict[str, Any], int]:
    """The columns that were sent (of an old row maybe the key only), and where the row ends."""
    try:
        (count,) = _i16.unpack_from(data, at)
        if count != len(relation.columns):
            raise PgOutputError(f"a row of {count} columns in a table of {len(relation.columns)}")
        at += 2
        found: dict[str, Any] = {}
        for name, type_oid, in_key in relation.columns:
            kind = data[at]
            if kind == _TEXT:
                (size,) = _i32.unpack_from(data, at + 1)
                at += 5
                if not 0 <= size <= len(data) - at:
                    raise PgOutputError("a value is cut short")
                if wanted is None or name in wanted:
                    found[name] = _value(data[at : at + size], type_oid, relation.encoding)
                at += size
                continue
            at += 1
            if kind == _NULL:
                if (in_key or not key_only) and (wanted is None or name in wanted):
                    found[name] = None
            elif kind != _UNCHANGED:  # a large value that was left as it was, and is not told
                raise PgOutputError(f"no value is of the kind {chr(kind)!r}")
    except (struct.error, IndexError):
        raise PgOutputError("a message is cut short") from None
    return found, at


class _Reader:
    """Reads the fields of a message one by one; `PgOutputError` if there is no further one."""

    __slots__ = ("_at", "_data", "encoding")

    def __init__(self, data: bytes, encoding: str = "") -> None:
        self._data = data
        self.encoding = encoding
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
        found = _decoded(self._data[self._at : end], self.encoding)
        self._at = end + 1
        return found

    def left(self) -> int:
        return len(self._data) - self._at

    def end(self) -> None:
        if self.left():
            raise PgOutputError(f"{self.left()} bytes too many in a message")


def _relation(read: _Reader) -> tuple[int, Relation]:
    (oid,) = read.fields(_u32)
    schema, table, identity = read.text() or "pg_catalog", read.text(), read.letter()
    columns = []
    for _ in range(_sane(read.fields(_i16)[0], read)):
        flags, name = ord(read.letter()), read.text()
        type_oid, _ = read.fields(_column)
        columns.append(Column(name, type_oid, bool(flags & KEY)))
    read.end()
    return oid, Relation(schema, table, identity, tuple(columns), read.encoding)


def _sane(count: int, read: _Reader) -> int:
    if not 0 <= count <= read.left():
        raise PgOutputError(f"{count} parts in a message of {read.left()} bytes")
    return count


def _unix_s(at_us: int) -> float:
    return EPOCH_S + at_us / 1e6


def _decoded(data: bytes, encoding: str) -> str:
    if encoding:
        return data.decode(encoding, "backslashreplace")
    try:
        return data.decode()
    except UnicodeDecodeError:
        raise PgOutputError("a text is not UTF-8: the connection's client_encoding must be") from None


def _value(data: bytes, type_oid: int, encoding: str) -> Any:
    if type_oid in WHOLE_NUMBERS:
        try:
            return int(data)
        except ValueError:
            raise PgOutputError("a whole number is none") from None
    text = _decoded(data, encoding)
    if encoding and not _is_text(data, encoding):
        return OddText(text)
    if type_oid in TEXTS or type_oid >= FIRST_OWN_TYPE:
        return text
    if type_oid == BOOL:
        return text == "t"
    return OtherText(text)


def _is_text(data: bytes, encoding: str) -> bool:
    try:
        data.decode(encoding)
    except UnicodeDecodeError:
        return False
    return True


def nameable(type_oid: int) -> bool:
    """Whether a column of this type can be part of a name."""
    return type_oid in WHOLE_NUMBERS or type_oid in TEXTS or type_oid >= FIRST_OWN_TYPE
