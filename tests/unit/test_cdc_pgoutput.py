"""The words of pgoutput: as a server said them, and whatever else the bytes may be."""

from __future__ import annotations

import struct
from contextlib import suppress

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cachebus.consumers.cdc.rules.change import OddText, OtherText, Row, RowChange
from cachebus.consumers.cdc.slot.pgoutput import Begin, Commit, Decoder, PgOutputError, Relation, Told

# Said by PostgreSQL 18.
BEGIN = b"B\x00\x00\x00\x00\x01s\xb2\x98\x00\x03\x03\xf4\xb5\xe7\xee;\x00\x00\x02\xf2"
COMMIT = b"C\x00\x00\x00\x00\x00\x01s\xb2\x98\x00\x00\x00\x00\x01s\xb2\xc8\x00\x03\x03\xf4\xb5\xe7\xee;"
RELATION = (
    b"R\x00\x00@\x0bpublic\x00t2\x00d\x00\x02\x01id\x00\x00\x00\x00\x17\xff\xff\xff\xff"
    b"\x00n\x00\x00\x00\x00\x19\xff\xff\xff\xff"
)
INSERT = b"I\x00\x00@\x0bN\x00\x02t\x00\x00\x00\x011t\x00\x00\x00\x01z"
UPDATE = b"U\x00\x00@\x0bN\x00\x02t\x00\x00\x00\x011u"
UPDATE_KEY = b"U\x00\x00@\x0bK\x00\x02t\x00\x00\x00\x011nN\x00\x02t\x00\x00\x00\x012n"
UPDATE_FULL = b"U\x00\x00@\x0bO\x00\x02t\x00\x00\x00\x011nN\x00\x02t\x00\x00\x00\x012t\x00\x00\x00\x00"
DELETE = b"D\x00\x00@\x0bK\x00\x02t\x00\x00\x00\x011n"
TRUNCATE = b"T\x00\x00\x00\x01\x00\x00\x00@\x0b"
MESSAGE = b"M\x01\x00\x00\x00\x00\x01s\xcc\xe0pre\x00\x00\x00\x00\x03msg"
AT_S = 1795459288.911419


@pytest.fixture
def decoder() -> Decoder:
    decoder = Decoder()
    assert decoder.decode(RELATION) == []
    return decoder


def test_a_transactions_borders() -> None:
    assert Decoder().decode(BEGIN) == Begin(AT_S, 754, 0x173B298)
    assert Decoder().decode(COMMIT) == Commit(0x173B2C8, AT_S)


@pytest.mark.parametrize(
    ("message", "op", "new", "old"),
    [
        (INSERT, "insert", {"id": 1, "n": "z"}, None),
        (UPDATE, "update", {"id": 1}, None),
        (UPDATE_KEY, "update", {"id": 2, "n": None}, {"id": 1}),
        (UPDATE_FULL, "update", {"id": 2, "n": ""}, {"id": 1, "n": None}),
        (DELETE, "delete", None, {"id": 1}),
        (TRUNCATE, "truncate", None, None),
    ],
)
def test_rows(decoder: Decoder, message: bytes, op: str, new: object, old: object) -> None:
    decoder.decode(BEGIN)
    assert decoder.decode(message, "0/1") == [RowChange(op, "public", "t2", new, old, "0/1", AT_S)]  # type: ignore[arg-type]


def only(row: Row | None, wanted: set[str]) -> dict[str, object] | None:
    return None if row is None else {name: value for name, value in row.items() if name in wanted}


@pytest.mark.parametrize("message", [INSERT, UPDATE, UPDATE_KEY, UPDATE_FULL, DELETE])
@pytest.mark.parametrize("wanted", [set(), {"id"}, {"n"}, {"n", "id"}])
def test_the_columns_that_are_wanted_are_those_of_the_whole_row(
    decoder: Decoder, message: bytes, wanted: set[str]
) -> None:
    told = decoder.read(message)
    assert isinstance(told, Told)
    [whole], [some] = told.changes(), told.changes(frozenset(wanted))
    assert some == whole._replace(new=only(whole.new, wanted), old=only(whole.old, wanted))


def test_a_column_that_nobody_wants_is_not_read(decoder: Decoder) -> None:
    told = decoder.read(INSERT.replace(b"z", b"\xff"))
    assert isinstance(told, Told)
    with pytest.raises(PgOutputError, match="a text is not UTF-8"):
        told.changes()
    assert told.changes(frozenset({"id"}))[0].new == {"id": 1}


def test_what_tells_of_no_row(decoder: Decoder) -> None:
    origin = b"O\x00\x00\x00\x00\x00\x00\x00\x01origin\x00"
    kind = b"Y\x00\x00@\x0cpublic\x00mood\x00"
    assert [decoder.decode(message) for message in (MESSAGE, origin, kind)] == [[], [], []]


def test_several_tables_truncated_at_once(decoder: Decoder) -> None:
    decoder.decode(RELATION.replace(b"@\x0bpublic\x00t2", b"@\x0cshop\x00orders"))
    found = decoder.decode(b"T\x00\x00\x00\x02\x00\x00\x00@\x0b\x00\x00@\x0c")
    assert isinstance(found, list)
    assert [(one.schema, one.table) for one in found] == [("public", "t2"), ("shop", "orders")]


def of_type(oid: int, text: bytes, *said: bytes, encoding: str = "") -> object:
    """A value of this type, after these messages."""
    decoder = Decoder(encoding)
    for message in said:
        decoder.decode(message)
    decoder.decode(b"R\0\0\0\1s\0t\0d\0\1\1c\0" + struct.pack(">Ii", oid, -1))
    found = decoder.decode(b"I\0\0\0\1N\0\1t" + struct.pack(">i", len(text)) + text)
    assert isinstance(found, list)
    assert found[0].new is not None
    return found[0].new["c"]


def test_values_by_their_types() -> None:
    assert of_type(20, b"-7") == -7
    assert of_type(25, "é".encode()) == "é"
    assert of_type(16, b"t") is True
    assert of_type(16, b"f") is False
    assert of_type(99_999, b"sad") == "sad", "an enum"
    assert of_type(1042, b" a b  ") == " a b", "filled up by PostgreSQL"
    assert of_type(1043, b" a b  ") == " a b  "
    other = of_type(1114, b"2026-01-01 00:00:00")
    assert other == "2026-01-01 00:00:00"
    assert type(other) is OtherText
    for oid, text in ((23, b"x"), (25, b"\xff")):
        with pytest.raises(PgOutputError):
            of_type(oid, text)


@pytest.mark.parametrize("schema", [b"", b"pg_catalog"])
def test_domains_over_a_text_of_a_fixed_width_are_read_as_that(schema: bytes) -> None:
    domain, other = b"Y\0\1\x86\x9f" + schema + b"\0bpchar\0", b"Y\0\1\x86\x9f" + schema + b"\0varchar\0"
    assert of_type(99_999, b"a  ", domain) == "a"
    assert of_type(99_999, b"a  ", other) == "a  "
    assert of_type(99_999, b"a  ", domain.replace(b"\x9f", b"\x9e")) == "a  "
    assert of_type(99_999, b"a  ", b"Y\0\1\x86\x9fpublic\0bpchar\0") == "a  "


def test_a_text_of_a_fixed_width_that_is_none_in_its_encoding() -> None:
    odd = of_type(1042, b"\x81  ", encoding="cp1252")
    assert odd == "\\x81"
    assert type(odd) is OddText


@pytest.mark.parametrize(
    ("message", "says"),
    [
        (b"", "cut short"),
        (b"?", "no message begins with '\\?'"),
        (b"I\0\0\0\7N\0\0", "a row of the table 7, which was not told before"),
        (INSERT[:-1], "a value is cut short"),
        (INSERT + b"x", "1 bytes too many"),
        (INSERT.replace(b"N\0\2", b"N\0\3"), "a row of 3 columns in a table of 2"),
        (INSERT.replace(b"N", b"K", 1), "'K' is no part of 'I'"),
        (UPDATE.replace(b"N", b"X", 1), "'X' is no part of 'U'"),
        (DELETE.replace(b"K", b"N", 1), "'N' is no part of 'D'"),
        (UPDATE.replace(b"1u", b"1q"), "no value is of the kind 'q'"),
        (b"T\x7f\xff\xff\xff\x00", "2147483647 parts in a message"),
        (b"R\0\0\0\1s", "a name has no end"),
        (b"R\0\0\0\1s\0t\0d\x7f\xff", "32767 parts in a message of 0 bytes"),
    ],
)
def test_garbage_is_told(decoder: Decoder, message: bytes, says: str) -> None:
    with pytest.raises(PgOutputError, match=says):
        decoder.decode(message)


def test_no_two_tables_are_known_by_one_name() -> None:
    """What rests, and what is set aside, is told by table."""
    one, other = Relation("a.b", "c", "d", ()), Relation("a", "b.c", "d", ())
    assert one.full_name != other.full_name
    assert Relation("public", "orders", "d", ()).full_name == "public.orders"


KNOWN = [BEGIN, COMMIT, RELATION, INSERT, UPDATE, UPDATE_KEY, UPDATE_FULL, DELETE, TRUNCATE, MESSAGE]


@given(
    st.one_of(
        st.binary(max_size=200),
        st.builds(
            lambda message, at, byte: message[: at % len(message)] + byte + message[at % len(message) + 1 :],
            st.sampled_from(KNOWN),
            st.integers(0, 200),
            st.binary(max_size=3),
        ),
    )
)
def test_whatever_the_bytes_are_it_ends_in_an_answer_or_in_one_kind_of_error(message: bytes) -> None:
    decoder = Decoder()
    decoder.decode(RELATION)
    with suppress(PgOutputError):
        decoder.decode(message)
