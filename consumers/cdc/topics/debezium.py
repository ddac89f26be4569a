"""Parses Debezium's messages: JSON envelopes of row changes, with or without their schema."""

from __future__ import annotations

import json
from base64 import b64decode
from collections.abc import Iterator, Mapping
from math import isfinite
from typing import Any, Final

from cachebus.consumers.cdc.rules.change import Op, OtherText, Row, RowChange, UnusableChange

OPS: Final[dict[str, Op]] = {"c": "insert", "r": "insert", "u": "update", "d": "delete", "t": "truncate"}
UNAVAILABLE: Final = "__debezium_unavailable_value"
"""Stands for a large value that an update did not change: the connector's `unavailable.value.placeholder`."""
TEXT_LIKE: Final = frozenset({"io.debezium.data.Uuid", "io.debezium.data.Enum", "io.debezium.data.Ltree"})
"""Logical types whose text is the same as the database's own."""
BINLOGS: Final = ("mysql", "mariadb")
"""Connectors that read a binary log. Their databases are what PostgreSQL calls schemas, and their rows are always
complete."""
DECIMAL: Final = "org.apache.kafka.connect.data.Decimal"
WHOLE: Final = "a decimal without places"
LONGEST_WHOLE: Final = 40
"""The longest base64 of a decimal: MySQL's have 65 digits at most."""


def parse_envelope(value: bytes | str | None, key: bytes | str | None = None) -> RowChange | None:
    """The change in a message's value. None for a message that is about no row: a tombstone, a heartbeat, a border of a
    transaction, a schema change, a message of an application. Raises `UnusableChange` for anything else.

    `key`: the message's key, which tells what of the old row is sure.

    1. If the table's REPLICA IDENTITY is not FULL, PostgreSQL sends the key alone. Debezium makes up the other values:
       nulls, and for NOT NULL columns defaults, zeros or empty texts. Only the columns of the key are sure.
    2. Without a key the table has none, so its rows are sent complete: all is sure.
    3. From a binary log all is sure.
    """
    if value is None:
        return None
    try:
        found = json.loads(value)
    except (ValueError, RecursionError):
        raise UnusableChange("no JSON") from None
    if found is None:
        return None
    if not isinstance(found, dict):
        raise UnusableChange("no envelope: not an object")
    payload, schema = found, None
    if "payload" in found and "schema" in found and "op" not in found:
        payload, schema = found["payload"], found["schema"]
        if payload is None:
            return None
        if not isinstance(payload, dict):
            raise UnusableChange("no envelope: its payload is not an object")
    if _tells_no_row(payload):
        return None
    change = _change(payload, schema)
    if key is None or change.old is None or _is_of_a_binlog(payload["source"]):
        return change
    return change._replace(sure=_names(key))


def _names(key: bytes | str) -> frozenset[str]:
    """The columns of a message's key, with or without its schema."""
    try:
        found = json.loads(key)
        if "payload" in found and "schema" in found:
            found = found["payload"]
        return frozenset(found if isinstance(found, dict) else ())
    except (ValueError, TypeError, RecursionError):
        return frozenset()


def is_envelope(value: bytes | str) -> bool:
    """Whether the value looks like an envelope, and not like a plain row change."""
    try:
        found = json.loads(value)
    except (ValueError, RecursionError):
        return False
    return isinstance(found, dict) and bool({"payload", "source", "before", "after"} & found.keys())


def _tells_no_row(payload: Mapping[str, Any]) -> bool:
    operation = payload.get("op")
    if operation == "m":  # pg_logical_emit_message
        return True
    if operation is not None:
        return False
    is_border = payload.get("status") in ("BEGIN", "END") and "id" in payload
    return is_border or "ddl" in payload or "tableChanges" in payload or set(payload) == {"ts_ms"}


def _change(payload: Mapping[str, Any], schema: Any) -> RowChange:
    op = OPS.get(payload["op"]) if isinstance(payload.get("op"), str) else None
    if op is None:
        raise UnusableChange("op: is none of c, r, u, d, t")
    source = payload.get("source")
    if not isinstance(source, dict):
        raise UnusableChange("source: is missing")
    schema_field = "db" if _is_of_a_binlog(source) else "schema"
    where = [source.get(name) for name in (schema_field, "table")]
    if not all(isinstance(one, str) and one for one in where):
        raise UnusableChange(f"source: names no {schema_field} and table")
    new, old = _row(payload, schema, "after"), _row(payload, schema, "before")
    if op in ("insert", "update") and new is None:
        raise UnusableChange("after: is missing")
    if op == "delete" and old is None:
        raise UnusableChange("before: is missing")
    lsn = source.get("lsn")
    position = str(lsn) if isinstance(lsn, int) and lsn.bit_length() <= 64 else ""
    return RowChange(op, str(where[0]), str(where[1]), new, old, position, _seconds(source.get("ts_ms")))


def _is_of_a_binlog(source: Mapping[str, Any]) -> bool:
    return source.get("connector") in BINLOGS


def _seconds(at_ms: Any) -> float | None:
    """Seconds from milliseconds; None for what is no time, since the change counts all the same."""
    try:
        at_s = float(at_ms) / 1000 if isinstance(at_ms, int | float) else None
    except OverflowError:
        return None
    return at_s if at_s is not None and isfinite(at_s) else None


def _row(payload: Mapping[str, Any], schema: Any, part: str) -> Row | None:
    row = payload.get(part)
    if row is None:
        return None
    if not isinstance(row, dict):
        raise UnusableChange(f"{part}: is no row")
    meant = dict(_meanings(schema, part))
    return {name: _untold(value, meant.get(name)) for name, value in row.items() if not _is_unavailable(value)}


def _is_unavailable(value: Any) -> bool:
    return isinstance(value, str) and value == UNAVAILABLE


def _untold(value: Any, meaning: str | None) -> Any:
    """The value for a rule. A number or text that stands for something else, such as days for a date, becomes
    `OtherText`."""
    if meaning is None or meaning in TEXT_LIKE or value is None or not isinstance(value, str | int):
        return value
    return _whole(value) if meaning == WHOLE else OtherText(value)


def _whole(value: str | int) -> int | OtherText:
    """The integer of a decimal: Connect writes two's complement in base64, or a number."""
    if isinstance(value, int):
        return value
    if not 0 < len(value) <= LONGEST_WHOLE:
        return OtherText(value)
    try:
        return int.from_bytes(b64decode(value, validate=True), "big", signed=True)
    except ValueError:
        return OtherText(value)


def _meanings(schema: Any, part: str) -> Iterator[tuple[str, str]]:
    """The columns of a row whose values are not plain, with their logical types, by the envelope's schema. Bytes are
    among them: JSON has them as text."""
    try:
        (row,) = (field for field in schema["fields"] if field["field"] == part)
        for column in row["fields"]:
            name = column.get("name") or ("bytes" if column.get("type") == "bytes" else None)
            if not isinstance(name, str) or not isinstance(column.get("field"), str):
                continue
            yield column["field"], WHOLE if name == DECIMAL and _has_no_places(column.get("parameters")) else name
    except (TypeError, KeyError, ValueError, AttributeError):
        return  # without a schema, values are taken as they are


def _has_no_places(parameters: Any) -> bool:
    return isinstance(parameters, dict) and parameters.get("scale") == "0"
