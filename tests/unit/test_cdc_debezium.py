"""Debezium's envelopes: as a connector wrote them, and whatever else may come."""

from __future__ import annotations

import json
from contextlib import suppress
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cachebus.consumers.cdc.rules.change import OtherText, UnusableChange
from cachebus.consumers.cdc.topics.debezium import UNAVAILABLE, is_envelope, parse_envelope

SOURCE = {
    "version": "3.2.0.Final",
    "connector": "postgresql",
    "name": "x",
    "ts_ms": 1795460235794,
    "snapshot": "false",
    "db": "postgres",
    "sequence": '["24476480","24476536"]',
    "ts_us": 1795460235794195,
    "ts_ns": 1795460235794195000,
    "schema": "shop",
    "table": "plain",
    "txId": 757,
    "lsn": 24476536,
    "xmin": None,
}
ROW = {"id": 1, "tenant": "a", "at": 20780, "mood": "sad", "large": UNAVAILABLE, "n": None}
COLUMNS = [
    {"type": "int32", "optional": False, "field": "id"},
    {"type": "string", "optional": False, "field": "tenant"},
    {"type": "int32", "optional": True, "name": "io.debezium.time.Date", "version": 1, "field": "at"},
    {"type": "string", "optional": True, "name": "io.debezium.data.Enum", "version": 1, "field": "mood"},
    {"type": "string", "optional": True, "field": "large"},
    {"type": "int32", "optional": True, "field": "n"},
]
SCHEMA = {
    "type": "struct",
    "name": "x.shop.plain.Envelope",
    "fields": [{"type": "struct", "fields": COLUMNS, "field": part} for part in ("before", "after")],
}


def envelope(op: str, before: Any = None, after: Any = None, **more: Any) -> dict[str, Any]:
    return {"before": before, "after": after, "source": SOURCE, "transaction": None, "op": op, "ts_ms": 1, **more}


def with_schema(payload: Any) -> bytes:
    return json.dumps({"schema": SCHEMA, "payload": payload}).encode()


@pytest.mark.parametrize(("op", "meant"), [("c", "insert"), ("r", "insert"), ("u", "update"), ("d", "delete")])
@pytest.mark.parametrize("whole", [False, True], ids=["bare", "with schema"])
def test_a_row(op: str, meant: str, whole: bool) -> None:
    payload = envelope(op, *((ROW, None) if op == "d" else (None, ROW)))
    change = parse_envelope(with_schema(payload) if whole else json.dumps(payload))
    assert change is not None
    assert (change.op, change.schema, change.table, change.position) == (meant, "shop", "plain", "24476536")
    assert change.committed_at_s == 1795460235.794
    row = change.old if op == "d" else change.new
    assert row is not None
    assert row == {"id": 1, "tenant": "a", "at": "20780" if whole else 20780, "mood": "sad", "n": None}
    assert type(row["at"]) is (OtherText if whole else int), "days, which only the schema tells"


def test_a_truncate_has_no_row() -> None:
    change = parse_envelope(with_schema(envelope("t")))
    assert change is not None
    assert (change.op, change.new, change.old) == ("truncate", None, None)


@pytest.mark.parametrize("key", [b'{"id": 1}', b'{"schema": {"type": "struct"}, "payload": {"id": 1}}'])
def test_of_an_old_row_the_key_is_sure(key: bytes) -> None:
    """What Debezium 3.2 wrote for a table without REPLICA IDENTITY FULL: 'a' is the column's default."""
    change = parse_envelope(json.dumps(envelope("d", ROW)), key)
    assert change is not None
    assert change.only_sure().old == {"id": 1}
    without = parse_envelope(json.dumps(envelope("d", ROW)))
    assert without is not None
    assert without.only_sure() is without
    for broken in (b"", b"[]", b"\xff", b"7"):
        change = parse_envelope(json.dumps(envelope("d", ROW)), broken)
        assert change is not None
        assert change.only_sure().old == {}


@pytest.mark.parametrize(
    "value",
    [
        None,
        b"null",
        with_schema(None),
        {"status": "BEGIN", "id": "755:24475760", "event_count": None, "data_collections": None, "ts_ms": 1},
        {"status": "END", "id": "755:24476168", "event_count": 1, "data_collections": [], "ts_ms": 1},
        {"ts_ms": 1795460235807},
        {"source": SOURCE, "databaseName": "d", "schemaName": "s", "ddl": None, "tableChanges": []},
        envelope("m", message={"prefix": "p", "content": "bQ=="}),
    ],
    ids=["tombstone", "null", "null with schema", "begin", "end", "heartbeat", "schema change", "message"],
)
def test_what_tells_of_no_row(value: Any) -> None:
    if isinstance(value, dict):
        assert parse_envelope(with_schema(value)) is None
        value = json.dumps(value)
    assert parse_envelope(value) is None


@pytest.mark.parametrize(
    ("value", "says"),
    [
        (b"", "no JSON"),
        (b"\xff", "no JSON"),
        (b"{", "no JSON"),
        (b"[" * 9**5, "no JSON"),
        (b"[]", "not an object"),
        (b'{"schema": 1, "payload": 5}', "its payload is not an object"),
        (b"{}", "op: is none of"),
        (b'{"op": []}', "op: is none of"),
        (b'{"op": "x"}', "op: is none of"),
        (b'{"op": "c"}', "source: is missing"),
        (b'{"op": "c", "source": {"table": "t"}}', "source: names no schema and table"),
        (json.dumps(envelope("c")), "after: is missing"),
        (json.dumps(envelope("d")), "before: is missing"),
        (json.dumps(envelope("u", None, 7)), "after: is no row"),
    ],
)
def test_what_is_none_is_told(value: bytes | str, says: str) -> None:
    with pytest.raises(UnusableChange, match=says):
        parse_envelope(value)


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=8,
)


@given(st.sampled_from(["op", "before", "after", "source", "schema", "payload"]), json_values, st.binary(max_size=50))
def test_whatever_comes_it_is_a_change_or_none_or_one_kind_of_error(field: str, value: Any, raw: bytes) -> None:
    whole = {"schema": SCHEMA, "payload": envelope("u", ROW, ROW)}
    tampered = {**whole, field: value} if field in whole else {**whole, "payload": {**whole["payload"], field: value}}
    for text in (json.dumps(tampered), raw):
        with suppress(UnusableChange):
            parse_envelope(text, raw)
        assert is_envelope(text) in (True, False)
