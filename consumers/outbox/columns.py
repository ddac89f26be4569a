"""Checks the columns of an outbox's tables in PostgreSQL: whether they are there, of the types that are read, and given
by their defaults what makes rows be found; and the SQL that repairs them, with the rows that are there."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import Any, Final, NamedTuple

import asyncpg

from cachebus.consumers.worker.clean import clean
from cachebus.consumers.worker.source import Finding

_text = frozenset({"text", "character varying"})
_time = frozenset({"timestamp with time zone"})
_number = frozenset({"bigint", "integer"})
_TIMES: Final = ("timestamp without time zone", "date")


class NeededColumn(NamedTuple):
    """What a column must be."""

    types: frozenset[str]
    type: str
    otherwise: str
    """SQL for what a value becomes that can't be converted, and what an added column has."""
    by_default: bool = False
    """Whether writers leave it to the default, which must then be `otherwise`, or something as good."""
    found_by: bool = False
    """Whether rows are found by it. A row that has null there is never found."""


ID: Final = "bigint GENERATED ALWAYS AS IDENTITY"
ROWS: Final = {
    "namespace": NeededColumn(_text, "text", "'cachebus'", found_by=True),
    "id": NeededColumn(_number, ID, "", by_default=True),
    "command": NeededColumn(_text, "text", "''"),
    "created_at": NeededColumn(_time, "timestamptz", "clock_timestamp()", by_default=True),
    "due_at": NeededColumn(_time, "timestamptz", "'-infinity'", by_default=True, found_by=True),
    "attempts": NeededColumn(_number, "integer", "0", by_default=True),
    "waits_for": NeededColumn(_number, "integer", "-1", by_default=True, found_by=True),
}
DEAD: Final = {
    "namespace": NeededColumn(_text, "text", "'cachebus'"),
    "row_id": NeededColumn(_number, "bigint", "0"),
    "command": NeededColumn(_text, "text", "''"),
    "reason": NeededColumn(_text, "text", "''"),
    "attempts": NeededColumn(_number, "integer", "1"),
    "created_at": NeededColumn(_time, "timestamptz", "clock_timestamp()"),
}


async def of_rows(connection: asyncpg.Connection, name: str, oid: int, *, readable: bool) -> list[Finding]:
    """The findings about the columns of the table of rows: `name` as SQL names it, and its number. `readable`: whether
    this role may look at its rows."""
    columns = await connection.fetch(_COLUMNS, oid)
    found = list(_of_types(name, ROWS, columns, stops=True))
    wrong = {finding.subject for finding in found}
    for row in columns:
        column, subject = ROWS.get(row["name"]), f"{name}.{row['name']}"
        if column is not None and subject not in wrong:
            found += await _of_default(connection, name, row, column)
            if readable and column.found_by and not row["not_null"]:
                found += await _of_nulls(connection, name, row["name"], column)
    return found


async def of_the_dead(connection: asyncpg.Connection, name: str, oid: int) -> list[Finding]:
    """The findings about the columns of the table of the dead."""
    columns = await connection.fetch(_COLUMNS, oid)
    return [*_of_types(name, DEAD, columns, stops=False), *_of_others(name, columns)]


def _of_types(name: str, expected: Mapping[str, NeededColumn], columns: list[Any], *, stops: bool) -> Iterator[Finding]:
    there = {column["name"]: column for column in columns}
    for key, column in expected.items():
        if key not in there:
            remedy = f"ALTER TABLE {name} ADD COLUMN {key} {_definition(column)};"
            yield Finding("columns", f"{name}.{key}", "it is not there", remedy, stops=stops)
        elif how := there[key]["generated"]:
            stops_too = stops and there[key]["type"] not in column.types
            yield Finding("columns", f"{name}.{key}", GENERATED, _frees(name, key, column, how), stops=stops_too)
        elif (has := there[key]["type"]) not in column.types:
            problem = f"it is of the type {clean(has)}"
            yield Finding("columns", f"{name}.{key}", problem, _converts(name, key, column, has), stops=stops)


def _frees(name: str, key: str, column: NeededColumn, how: str) -> str:
    """SQL that makes a generated column one that can be written, with the values that it has. A value by which a row is
    not taken no writer has wanted: none could give it."""
    alters = f"ALTER TABLE {name} ALTER COLUMN {key}"
    if column.type == ID:
        return _numbered_anew(name)
    sql = f"{alters} DROP EXPRESSION;"
    if how == VIRTUAL:
        new = f"{key}_that_is_stored"
        sql = (
            f"ALTER TABLE {name} ADD COLUMN {new} {column.type}; UPDATE {name} SET {new} = {key}; "
            f"ALTER TABLE {name} DROP COLUMN {key}; ALTER TABLE {name} RENAME COLUMN {new} TO {key};"
        )
    if column.by_default or column.found_by:
        sql = f"{sql} {alters} SET DEFAULT {column.otherwise};"
    if key in _NOT_TAKEN:
        sql = f"{sql} UPDATE {name} SET {key} = {column.otherwise} WHERE {_NOT_TAKEN[key]};"
    return sql


def _definition(column: NeededColumn) -> str:
    return f"{column.type} NOT NULL DEFAULT {column.otherwise}" if column.otherwise else column.type


def _converts(name: str, key: str, column: NeededColumn, has: str) -> str:
    """SQL that gives the column its type. Values that mean nothing in it become what they would be by default."""
    alters = f"ALTER TABLE {name} ALTER COLUMN {key}"
    if column.type == ID:
        return _numbered_anew(name)
    if column.types == _text:
        value = f"convert_from({key}, 'UTF8')" if has == "bytea" else f"{key}::text"
        return f"{alters} TYPE text USING {value};"
    if column.types == _number:
        digits = 18 if column.type == "bigint" else 9
        value = f"CASE WHEN {key}::text ~ '^-?[0-9]{{1,{digits}}}$' THEN {key}::text::{column.type}"
    elif has in _TIMES:
        value = f"CASE WHEN true THEN {key}::timestamptz"
    else:
        value = (
            f"CASE WHEN {key}::text ~ '^([0-9]{{4}}-[0-9][0-9]-[0-9][0-9]|-?infinity)' THEN {key}::text::timestamptz "
            f"WHEN {key}::text ~ '^[0-9]{{1,10}}([.][0-9]+)?$' THEN to_timestamp({key}::text::float8)"
        )
    ends = f", ALTER COLUMN {key} SET DEFAULT {column.otherwise}" if column.by_default else ""
    drops = f"{alters} DROP DEFAULT, ALTER COLUMN {key}"
    return f"{drops} TYPE {column.type} USING {value} ELSE {column.otherwise} END{ends};"


def _numbered_anew(name: str) -> str:
    return f"ALTER TABLE {name} DROP COLUMN id; ALTER TABLE {name} ADD COLUMN id {ID};"


async def _of_default(connection: asyncpg.Connection, name: str, row: Any, column: NeededColumn) -> list[Finding]:
    key, default = row["name"], row["default"]
    if not (column.by_default or column.found_by) or (key == "id" and row["has_default"]):
        return []
    if not row["has_default"]:
        if not column.by_default and row["not_null"]:
            return []  # who leaves it out hears of it
        never = "rows can't be written" if row["not_null"] else "rows that are written without it are never found"
        problem = f"it has no default: {never}" if column.found_by or row["not_null"] else "it has no default"
    elif key == "waits_for" and default not in _NOTHING:
        problem = "it has another default than -1: rows that are written without it are not found, or wait for a shard"
    elif key == "due_at" and default not in (None, _AT_ONCE) and await _is_so(connection, _IS_LATE, default):
        problem = "by its default rows are not due"
    elif key == "created_at" and default is not None and await _is_so(connection, _IS_OFF, default):
        problem = OTHER_TIME
    else:
        return []
    sql = f"ALTER TABLE {name} ALTER COLUMN {key} SET DEFAULT {column.otherwise};"
    if key == "id":
        sql = _numbered_anew(name)
    elif default is not None:
        is_time = key in ("due_at", "created_at") and not _is_literal(default)
        applies = _APPLIES.format(name=name) if key == "due_at" else ""
        sql = f"{sql} {applies if is_time else _mends_rows(name, key, column, default)}".rstrip()
    return [Finding("columns", f"{name}.{key}", problem, sql)]


async def _is_so(connection: asyncpg.Connection, sql: str, default: str) -> bool:
    """Whether the default is what the SQL asks for; False if nobody can tell. It is evaluated as writers do it whose
    sessions are like this one: a time without its zone is one of theirs."""
    try:
        async with connection.transaction(readonly=True):
            await connection.execute("SET LOCAL statement_timeout = '100ms'")
            return bool(await connection.fetchval(sql.format(default=default)))
    except asyncpg.PostgresError:  # it is no matter of a query alone, or not of this role
        return False


def _mends_rows(name: str, key: str, column: NeededColumn, default: str) -> str:
    return f"UPDATE {name} SET {key} = {column.otherwise} WHERE {key} = {default};"


async def _of_nulls(connection: asyncpg.Connection, name: str, key: str, column: NeededColumn) -> list[Finding]:
    if not await connection.fetchval(f"SELECT EXISTS (SELECT FROM {name} WHERE {key} IS NULL)"):
        return []
    remedy = (
        f"UPDATE {name} SET {key} = {column.otherwise} WHERE {key} IS NULL; "
        f"ALTER TABLE {name} ALTER COLUMN {key} SET NOT NULL;"
    )
    return [Finding("columns", f"{name}.{key} IS NULL", "rows have null there, and are never found", remedy)]


def _of_others(name: str, columns: list[Any]) -> Iterator[Finding]:
    for column in columns:
        if column["name"] not in (*DEAD, "id", "died_at") and column["not_null"] and not column["has_default"]:
            problem = "it must be given, and the relay does not know it: what can't be applied lies"
            remedy = f"ALTER TABLE {name} ALTER COLUMN {column['quoted']} DROP NOT NULL;"
            yield Finding("columns", f"{name}.{clean(column['quoted'])}", problem, clean(remedy))


_COLUMNS: Final = """\
SELECT attname::text AS name, quote_ident(attname) AS quoted, format_type(atttypid, NULL) AS type,
    atthasdef OR attidentity <> '' AS has_default, attnotnull AS not_null, attgenerated::text AS generated,
    pg_get_expr(adbin, adrelid) AS default
FROM pg_attribute LEFT JOIN pg_attrdef ON adrelid = attrelid AND adnum = attnum
WHERE attrelid = $1 AND attnum > 0 AND NOT attisdropped"""
GENERATED: Final = "it is generated, and nobody can write it"
VIRTUAL: Final = "v"
_NOT_TAKEN: Final = {"due_at": "due_at > clock_timestamp()", "waits_for": "waits_for <> -1"}
"""The rows that are not taken by the values of a column."""
_NOTHING: Final = frozenset({"-1", "(-1)", "'-1'::integer", "'-1'::bigint", "'-1'::smallint"})
"""How PostgreSQL writes the default of a column in which rows wait for no shard."""
_is_literal: Final = re.compile(r"'[^']+'::timestamp with(?:out)? time zone").fullmatch
_AT_ONCE: Final = "'-infinity'::timestamp with time zone"
"""How PostgreSQL writes the default of due_at that `--create-table` gives it."""
LATE_S: Final = 3600
"""Rows may be due so much later by their default: loaders may read a replica that lags."""
_IS_OFF: Final = f"""\
SELECT ({{default}})::timestamptz NOT BETWEEN
    clock_timestamp() - interval '{LATE_S} s' AND clock_timestamp() + interval '{LATE_S} s'"""
OTHER_TIME: Final = "by its default rows are written at another time than now: how long they wait can't be told"
_IS_LATE: Final = f"SELECT ({{default}})::timestamptz > clock_timestamp() + interval '{LATE_S} s'"
# Rows that a writer wants at a time are among them, and stay: what they say twice does no harm.
_APPLIES: Final = """\
INSERT INTO {name} (namespace, command, created_at) SELECT namespace, command, created_at FROM {name}
WHERE waits_for = -1 AND due_at > clock_timestamp();""".replace("\n", " ")
