"""What PostgreSQL's output plugin `pgoutput` says, protocol version 1, values as text.

Each message is a letter and its fields in network order. Described in PostgreSQL's manual under "Logical Replication
Message Formats".
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Container, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any, Final, NamedTuple

from cachebus.consumers.cdc.rules.change import OddText, Op, OtherText, RowChange
from cachebus.consumers.cdc.slot.encodings import decoded
from cachebus.consumers.cdc.slot.identity import known_as

EPOCH_S: Final = 946_684_800
"""Midnight of 2000-01-01 in Unix seconds: PostgreSQL counts microseconds from there."""
BOOL: Final = 16
WHOLE_NUMBERS: Final = frozenset({20, 21, 23, 26})
"""int8, int2, int4, oid."""
BPCHAR: Final = 1042
"""char(n): PostgreSQL fills it up with spaces, which it ignores wherever it compares, so they are no part of it."""
TEXTS: Final = frozenset({18, 19, 25, 650, 829, 869, BPCHAR, 1043, 2950})
"""char, name, text, cidr, macaddr, inet, bpchar, varchar, uuid."""
FIRST_OWN_TYPE: Final = 16_384
"""Types from here on are a database's own, such as enums: taken for text."""
_OF_BPCHAR: Final = (b"\0bpchar\0", b"pg_catalog\0bpchar\0")
"""Schema and name of what a domain is made of in the end."""
KEY: Final = 1
ROWS: Final[dict[bytes, Op]] = {b"I": "insert", b"U": "update", b"D": "delete"}
_OLD: Final = (b"K", b"O")
_TEXT, _NULL, _UNCHANGED = b"tnu"
_NUMBER: Final = slice(1, 5)
"""Of its table, in the message of a row."""

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
    """The position of its commit, which no other transaction of the same log has."""


class Commit(NamedTuple):
    """A transaction ends. `end_lsn`: where the next one begins."""

    end_lsn: int
    committed_at_s: float


class Column(NamedTuple):
    """A column of a table; `key`: whether it is part of the table's replica identity. Of a domain over `BPCHAR` its
    type is that."""

    name: str
    type_oid: int
    key: bool


Read = Callable[[bytes], Any]
"""From the text of a value to the value."""


class RowLayout(NamedTuple):
    """By column: its name, and how it is read (None: not at all)."""

    columns: list[tuple[str, Read | None]]
    wanted: list[tuple[str, Read | None]]
    """Up to the last that is read: behind it, at the end of a message, nothing is even looked at."""


@dataclass(frozen=True)
class Relation:
    """A table, as it was when its rows were written. `identity`: "d"efault, "n"othing, "f"ull, "i"ndex."""

    schema: str
    table: str
    identity: str
    columns: tuple[Column, ...]
    encoding: str = ""
    """Python's name of the one that its rows' texts are in, some of which may be no text in it; "" for UTF-8."""
    oid: int = 0
    _layouts: dict[frozenset[str] | None, RowLayout] = field(default_factory=dict, repr=False, compare=False)

    @property
    def full_name(self) -> str:
        """See `known_as`."""
        return known_as(self.schema, self.table)

    def layout(self, wanted: frozenset[str] | None) -> RowLayout:
        """How its rows are read where these columns are wanted (None: all)."""
        found = self._layouts.get(wanted)
        if found is None:
            columns = [
                (name, _reader(oid, self.encoding) if wanted is None or name in wanted else None)
                for name, oid, _ in self.columns
            ]
            last = max((at for at, (_, read) in enumerate(columns, 1) if read), default=0)
            found = self._layouts[wanted] = RowLayout(columns, columns if wanted is None else columns[:last])
        return found


class Told(NamedTuple):
    """A message about rows, with what is needed to parse it, so that it can be parsed later."""

    data: bytes
    relations: tuple[Relation, ...]
    """The table of the row, or all tables of a truncate."""
    position: str
    committed_at_s: float | None

    def changes(self, wanted: frozenset[str] | None = None) -> list[RowChange]:
        """The rows, with these columns alone where they are given; of a truncate one change for each table.
        `PgOutputError`, whatever the bytes are."""
        if self.data[:1] == b"T":
            return [
                RowChange("truncate", one.schema, one.table, None, None, self.position, self.committed_at_s)
                for one in self.relations
            ]
        return [self._change(wanted)]

    def _change(self, wanted: frozenset[str] | None) -> RowChange:
        data, relation = self.data, self.relations[0]
        layout = relation.layout(wanted)
        kind, part, at = data[:1], data[5:6], 6
        new = old = None
        if part in _OLD and kind != b"I":
            columns = layout.columns if kind == b"U" else layout.wanted
            old, at = _row(data, at, len(relation.columns), columns, key_only=part == b"K")
            part, at = (data[at : at + 1], at + 1) if kind == b"U" else (b"", at)
        if part == b"N" and kind != b"D":
            new, at = _row(data, at, len(relation.columns), layout.wanted)
        elif part or kind != b"D":
            raise PgOutputError(f"{part.decode('latin1')!r} is no part of {kind.decode('latin1')!r}")
        if wanted is None and at != len(data):
            raise PgOutputError(f"{len(data) - at} bytes too many in a message")
        if old is None and new is None:
            raise PgOutputError("a message is cut short")
        op = ROWS[kind]
        return RowChange(op, relation.schema, relation.table, new, old, self.position, self.committed_at_s)


class Decoder:
    """Parses the messages of one peek, in order: rows refer to tables that earlier messages have described. `encoding`:
    Python's name of the encoding of unconverted text; "" if the server has converted it to UTF-8."""

    def __init__(self, encoding: str = "") -> None:
        self._encoding = encoding
        self.relations: dict[int, Relation] = {}
        self._alone: dict[bytes, tuple[Relation]] = {}
        """The same, as the messages of rows name them, and are told with them."""
        self._padded = set[int]()
        """Domains over `BPCHAR`, and over such domains."""
        self.committed_at_s: float | None = None
        """When the transaction in hand was committed."""

    def read(self, data: bytes, position: str = "") -> Begin | Commit | Told | None:
        """What a message is; None for those that tell of no row. `PgOutputError`, whatever the bytes are."""
        if data[:1] in ROWS and len(data) >= _NUMBER.stop:
            alone = self._alone.get(data[_NUMBER]) or (self._of(_u32.unpack_from(data, 1)[0]),)
            return Told(data, alone, position, self.committed_at_s)
        read = _Reader(data, self._encoding)
        letter = read.letter()
        if letter == "B":
            end_lsn, at_us, xid = read.fields(_begin)
            self.committed_at_s = _unix_s(at_us)
            return Begin(self.committed_at_s, xid, end_lsn)
        if letter == "C":
            _, _, end_lsn, at_us = read.fields(_commit)
            return Commit(end_lsn, _unix_s(at_us))
        if letter == "T":
            count, _ = read.fields(_i32)[0], read.letter()
            named = tuple(self._of(read.fields(_u32)[0]) for _ in range(_sane(count, read)))
            return Told(data, named, position, self.committed_at_s)
        if letter == "R":
            oid, relation = _relation(read, self._padded)
            self.relations[oid] = relation
            self._alone[_u32.pack(oid)] = (relation,)
        elif letter == "Y":
            (oid,) = read.fields(_u32)
            if data[_NUMBER.stop :] in _OF_BPCHAR:
                self._padded.add(oid)
        elif letter not in "OM":  # origins, and messages that applications write: no rows
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


def _row(
    data: bytes, at: int, width: int, columns: Sequence[tuple[str, Read | None]], *, key_only: bool = False
) -> tuple[dict[str, Any], int]:
    """The first columns of a row of `width` that are told; of an old row that has only its key, the key. And where that
    ends."""
    found: dict[str, Any] = {}
    try:
        (count,) = _i16.unpack_from(data, at)
        if count != width:
            raise PgOutputError(f"a row of {count} columns in a table of {width}")
        at += 2
        for name, read in columns:
            kind = data[at]
            at += 1
            if kind == _TEXT:
                begin, at = at + 4, at + 4 + _i32.unpack_from(data, at)[0]
                if not begin <= at <= len(data):
                    raise PgOutputError("a value is cut short")
                if read is not None:
                    found[name] = read(data[begin:at])
            elif kind == _NULL:
                if read is not None and not key_only:  # no part of a key is null: that is what is left out
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


def _relation(read: _Reader, padded: Container[int]) -> tuple[int, Relation]:
    (oid,) = read.fields(_u32)
    schema, table, identity = read.text() or "pg_catalog", read.text(), read.letter()
    columns = []
    for _ in range(_sane(read.fields(_i16)[0], read)):
        flags, name = ord(read.letter()), read.text()
        type_oid, _ = read.fields(_column)
        columns.append(Column(name, BPCHAR if type_oid in padded else type_oid, bool(flags & KEY)))
    read.end()
    return oid, Relation(schema, table, identity, tuple(columns), read.encoding, oid)


def _sane(count: int, read: _Reader) -> int:
    if not 0 <= count <= read.left():
        raise PgOutputError(f"{count} parts in a message of {read.left()} bytes")
    return count


def _unix_s(at_us: int) -> float:
    return EPOCH_S + at_us / 1e6


def _decoded(data: bytes, encoding: str) -> str:
    if encoding:
        return decoded(data, encoding)
    try:
        return data.decode()
    except UnicodeDecodeError:
        raise PgOutputError("a text is not UTF-8: the connection's client_encoding must be") from None


def _reader(type_oid: int, encoding: str) -> Read:
    """How values of a type are read."""
    if type_oid in WHOLE_NUMBERS:
        return _whole_number
    if type_oid == BPCHAR:
        return partial(_without_padding, encoding)
    kind: Callable[[str], Any] = str if nameable(type_oid) else "t".__eq__ if type_oid == BOOL else OtherText
    return partial(_text, kind, encoding)


def _text(kind: Callable[[str], Any], encoding: str, data: bytes) -> Any:
    text = _decoded(data, encoding)
    return OddText(text) if encoding and not _is_text(data, encoding) else kind(text)


def _without_padding(encoding: str, data: bytes) -> Any:
    text = _text(str, encoding, data)
    return type(text)(unpadded(text))


def unpadded(text: str) -> str:
    """The text of a `BPCHAR` without what fills it up."""
    return text.rstrip(" ")


def _whole_number(data: bytes) -> int:
    try:
        return int(data)
    except ValueError:
        raise PgOutputError("a whole number is none") from None


def _is_text(data: bytes, encoding: str) -> bool:
    try:
        data.decode(encoding)
    except UnicodeDecodeError:
        return False
    return True


def nameable(type_oid: int) -> bool:
    """Whether a column of this type can be part of a name."""
    return type_oid in WHOLE_NUMBERS or type_oid in TEXTS or type_oid >= FIRST_OWN_TYPE
