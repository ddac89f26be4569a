"""What a relay assumes of its tables in PostgreSQL, looked at: what is not so, and the SQL that mends it."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Final

import asyncpg

from cachebus.consumers.worker.clean import clean
from cachebus.consumers.worker.source import Finding
from cachebus.producers.outbox.table import OutboxTable

ASSUMPTIONS: Final = ("table", "columns", "rights", "trigger", "namespaces")
LOCK: Final = 0x0B0C
"""Held, with the namespace's hash, by every relay that is there."""
UNSERVED_S: Final = 60
"""Rows of another namespace that nobody takes are told when they are older."""
OTHERS: Final = 20
_text = frozenset({"text", "character varying"})
_time = frozenset({"timestamp with time zone"})
_number = frozenset({"bigint", "integer"})
ROWS: Final = {
    "namespace": (_text, "text NOT NULL DEFAULT 'cachebus'"),
    "id": (_number, "bigint GENERATED ALWAYS AS IDENTITY"),
    "command": (_text, "text NOT NULL DEFAULT ''"),
    "created_at": (_time, "timestamptz NOT NULL DEFAULT clock_timestamp()"),
    "due_at": (_time, "timestamptz NOT NULL DEFAULT '-infinity'"),
    "attempts": (_number, "integer NOT NULL DEFAULT 0"),
    "waits_for": (_number, "integer NOT NULL DEFAULT -1"),
}
DEAD: Final = {
    "namespace": (_text, "text NOT NULL DEFAULT 'cachebus'"),
    "row_id": (_number, "bigint NOT NULL DEFAULT 0"),
    "command": (_text, "text NOT NULL DEFAULT ''"),
    "reason": (_text, "text NOT NULL DEFAULT ''"),
    "attempts": (_number, "integer NOT NULL DEFAULT 1"),
    "created_at": (_time, "timestamptz NOT NULL DEFAULT clock_timestamp()"),
}
DEFAULTS: Final = {"waits_for": "-1", "due_at": "'-infinity'"}
"""Those without which rows are not found by who looks for them, or not written."""


async def findings(
    connection: asyncpg.Connection, table: OutboxTable, namespace: str, oid_before: int | None
) -> tuple[list[Finding], int | None]:
    """What is not as it should be, and which table rows are taken from: the one before, while some may lie there."""
    try:
        rows = await connection.fetchrow(_TABLE, table.rows, f"{table.name}_notify")
        dead = await connection.fetchrow(_TABLE, table.dead, "")
    except asyncpg.InsufficientPrivilegeError:
        remedy = f'GRANT USAGE ON SCHEMA "{table.schema}" TO the relay\'s role'
        return [Finding("rights", table.rows, "its schema may not be used", remedy, stops=True)], oid_before
    if rows is None:
        found = [Finding("table", table.rows, "it is not there", _made(table), stops=True)]
        return found, oid_before
    swapped: list[Finding] = []
    found = list(_of_columns(table.rows, ROWS, await connection.fetch(_COLUMNS, rows["oid"]), stops=True))
    found += _of_the_table(table, rows)
    found += _of_rights(table.rows, rows, ("SELECT", "UPDATE", "DELETE"), stops=True)
    if dead is None:
        found.append(Finding("table", table.dead, "it is not there: what can't be applied lies", _made(table)))
    else:
        columns = await connection.fetch(_COLUMNS, dead["oid"])
        found += _of_columns(table.dead, DEAD, columns, stops=False)
        found += _of_others(table.dead, columns)
        found += _of_rights(table.dead, dead, ("INSERT",), stops=False)
    if rows["oid"] != oid_before and oid_before is not None:
        swapped = await _of_the_one_before(connection, table, namespace, oid_before)
        found += swapped
    if not any(finding.stops for finding in found):
        found += await _of_namespaces(connection, table, namespace)
    return found, oid_before if swapped else rows["oid"]


async def swallowing(connection: asyncpg.Connection, table: OutboxTable) -> list[Finding]:
    """The table of the dead has not kept what it was given: what may do so."""
    triggers, rules = await connection.fetchrow(_SWALLOWING, table.dead)
    remedy = " ".join(
        [f"ALTER TABLE {table.dead} DISABLE TRIGGER {name};" for name in triggers or ()]
        + [f"DROP RULE {name} ON {table.dead};" for name in rules or ()]
    )
    problem = "what can't be applied is not kept there, nor is it refused, and lies: a trigger gives NULL, or a rule"
    return [Finding("table", table.dead, problem, clean(remedy))]


def _made(table: OutboxTable) -> str:
    name = table.name if table.schema is None else f"{table.schema}.{table.name}"
    return f"cachebus worker outbox --create-table --table {name}"


def _of_the_table(table: OutboxTable, row: Any) -> Iterator[Finding]:
    if row["kind"] not in ("r", "p"):
        yield Finding("table", table.rows, "it is no table that rows can be locked in", _made(table), stops=True)
    elif row["persistence"] == "u":
        remedy = f"ALTER TABLE {table.rows} SET LOGGED;"
        yield Finding("table", table.rows, "it is unlogged: a crash of the database empties it", remedy)
    elif not row["indexed"]:
        remedy = f"CREATE INDEX ON {table.rows} (namespace, waits_for, due_at, id);"
        yield Finding("table", table.rows, "no index tells which rows are due: each look reads all of it", remedy)
    if row["filtered"]:
        remedy = f"CREATE POLICY cachebus_relay ON {table.rows} TO {row['role']} USING (true) WITH CHECK (true);"
        yield Finding("rights", table.rows, "row-level security may hide rows from the relay", remedy)
    if row["silent"]:
        remedy = f"ALTER TABLE {table.rows} ENABLE TRIGGER {row['silent']};"
        yield Finding("trigger", table.rows, "it is there and does not fire: rows wait for the next look", remedy)


def _of_columns(name: str, expected: Any, columns: list[Any], *, stops: bool) -> Iterator[Finding]:
    there = {column["name"]: column for column in columns}
    for column, (types, definition) in expected.items():
        if column not in there:
            remedy = f"ALTER TABLE {name} ADD COLUMN {column} {definition};"
            yield Finding("columns", f"{name}.{column}", "it is not there", remedy, stops=stops)
        elif there[column]["type"] not in types:
            problem = f"it is of the type {clean(there[column]['type'])}"
            remedy = f"ALTER TABLE {name} ALTER COLUMN {column} TYPE {definition.split()[0]};"
            yield Finding("columns", f"{name}.{column}", problem, remedy, stops=stops)
        elif column in DEFAULTS and not there[column]["has_default"]:
            remedy = f"ALTER TABLE {name} ALTER COLUMN {column} SET DEFAULT {DEFAULTS[column]};"
            yield Finding("columns", f"{name}.{column}", "it has no default: rows can't be written", remedy)


def _of_others(name: str, columns: list[Any]) -> Iterator[Finding]:
    for column in columns:
        if column["name"] not in (*DEAD, "id", "died_at") and column["required"]:
            problem = "it must be given, and the relay does not know it: what can't be applied lies"
            remedy = f"ALTER TABLE {name} ALTER COLUMN {column['quoted']} DROP NOT NULL;"
            yield Finding("columns", f"{name}.{clean(column['quoted'])}", problem, clean(remedy))


def _of_rights(name: str, row: Any, needed: tuple[str, ...], *, stops: bool) -> Iterator[Finding]:
    lacking = [right for right in needed if not row[right.lower()]]
    if lacking:
        remedy = f"GRANT {', '.join(lacking)} ON {name} TO {clean(row['role'])};"
        yield Finding("rights", name, f"the relay may not {' or '.join(lacking)}", remedy, stops=stops)


async def _of_the_one_before(
    connection: asyncpg.Connection, table: OutboxTable, namespace: str, oid: int
) -> list[Finding]:
    """Another table has its name now: rows of the one before are taken by nobody."""
    name = await connection.fetchval("SELECT $1::oid::regclass::text FROM pg_class WHERE oid = $1", oid)
    if name is None:
        problem = "it was dropped, and made anew: rows that it still had are gone"
        return [Finding("table", table.rows, problem, missed=True, over=True)]
    try:
        some = await connection.fetchval(f"SELECT EXISTS (SELECT FROM {name} WHERE namespace = $1)", namespace)
    except asyncpg.PostgresError:
        some = True
    if not some:
        return []
    shown = clean(name)
    remedy = (
        f"WITH moved AS (DELETE FROM {shown} RETURNING namespace, command, created_at, due_at, attempts) "
        f"INSERT INTO {table.rows} (namespace, command, created_at, due_at, attempts) SELECT * FROM moved;"
    )
    return [Finding("table", table.rows, f"another table was swapped in, and rows lie in {shown}", remedy)]


async def _of_namespaces(connection: asyncpg.Connection, table: OutboxTable, namespace: str) -> list[Finding]:
    """Rows that no relay is there for: their writers name another namespace than any relay's."""
    found = await connection.fetch(_UNSERVED.format(t=table), namespace, LOCK)
    return [
        Finding(
            "namespaces",
            f"{table.rows}, namespace {clean(row['namespace'])!r}",
            f"rows wait for more than {UNSERVED_S} s, and no relay is there for them",
            "run one with --namespace, or delete them",
        )
        for row in found
    ]


_TABLE: Final = """\
SELECT c.oid::bigint, c.relkind::text AS kind, c.relpersistence::text AS persistence, quote_ident(current_user) AS role,
    has_table_privilege(c.oid, 'SELECT') AS select, has_table_privilege(c.oid, 'UPDATE') AS update,
    has_table_privilege(c.oid, 'DELETE') AS delete, has_table_privilege(c.oid, 'INSERT') AS insert,
    row_security_active(c.oid) AND NOT EXISTS (
        SELECT FROM pg_policy p WHERE p.polrelid = c.oid AND p.polpermissive AND p.polcmd IN ('*', 'r')
        AND pg_get_expr(p.polqual, c.oid) = 'true') AS filtered,
    EXISTS (SELECT FROM pg_index i WHERE i.indrelid = c.oid AND i.indisvalid AND i.indpred IS NULL AND (
        SELECT array_agg(a.attname::text ORDER BY k.n) FROM unnest(i.indkey::int2[]) WITH ORDINALITY k (attnum, n)
        JOIN pg_attribute a ON a.attrelid = c.oid AND a.attnum = k.attnum WHERE k.n <= 3
        ) = ARRAY['namespace', 'waits_for', 'due_at']) AS indexed,
    (SELECT quote_ident(g.tgname) FROM pg_trigger g WHERE g.tgrelid = c.oid AND NOT g.tgisinternal
        AND g.tgname = $2 AND g.tgenabled IN ('D', 'R') LIMIT 1) AS silent
FROM pg_class c WHERE c.oid = to_regclass($1)"""

_SWALLOWING: Final = """\
SELECT (SELECT array_agg(quote_ident(tgname) ORDER BY tgname) FROM pg_trigger WHERE tgrelid = to_regclass($1)
        AND NOT tgisinternal AND tgenabled <> 'D' AND tgtype & 7 = 7),
    (SELECT array_agg(quote_ident(rulename)) FROM pg_rewrite
     WHERE ev_class = to_regclass($1) AND ev_type = '3' AND is_instead AND ev_enabled <> 'D')"""
_COLUMNS: Final = """\
SELECT attname::text AS name, quote_ident(attname) AS quoted, format_type(atttypid, NULL) AS type,
    atthasdef OR attidentity <> '' AS has_default,
    attnotnull AND NOT atthasdef AND attidentity = '' AS required
FROM pg_attribute WHERE attrelid = $1 AND attnum > 0 AND NOT attisdropped"""

_UNSERVED: Final = f"""\
WITH RECURSIVE names AS (
    (SELECT namespace, 1 AS n FROM {{t.rows}} ORDER BY namespace LIMIT 1)
    UNION ALL
    SELECT (SELECT o.namespace FROM {{t.rows}} o WHERE o.namespace > names.namespace ORDER BY o.namespace LIMIT 1),
        n + 1
    FROM names WHERE names.namespace IS NOT NULL AND n < {OTHERS}),
heads AS (
    SELECT namespace, (SELECT greatest(created_at, due_at) FROM {{t.rows}} o
        WHERE o.namespace = names.namespace AND o.waits_for = -1 AND o.due_at <= statement_timestamp()
        ORDER BY o.due_at, o.id LIMIT 1) AS since
    FROM names WHERE namespace <> $1)
SELECT namespace FROM heads WHERE since < statement_timestamp() - make_interval(secs => {UNSERVED_S})
AND NOT EXISTS (
    SELECT FROM pg_locks WHERE locktype = 'advisory' AND objsubid = 2 AND granted
    AND database = (SELECT oid FROM pg_database WHERE datname = current_database())
    AND classid::bigint = $2::int AND objid::bigint = (hashtext(namespace)::bigint & 4294967295))"""
