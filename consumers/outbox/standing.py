"""Checks what a relay assumes of its tables in PostgreSQL: what is wrong, and the SQL that repairs it."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Final

import asyncpg

from cachebus.consumers.outbox import vacuum
from cachebus.consumers.outbox.letting import Resting
from cachebus.consumers.worker.clean import clean
from cachebus.consumers.worker.partitions import tree_of
from cachebus.consumers.worker.source import Finding
from cachebus.producers.outbox.table import OutboxTable

ASSUMPTIONS: Final = ("table", "columns", "rights", "trigger", "removal", "namespaces", "stores", vacuum.ASSUMPTION)
LOCK: Final = 0x0B0C
"""The advisory lock that every relay holds, with the hash of its namespace and of the table's place."""
UNSERVED_S: Final = 60
"""Rows of another namespace that nobody takes are reported if they are older than this."""
OTHERS: Final = 20
AGREE_LOOKS: Final = 3
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
"""Columns whose defaults are needed, so that rows can be written and found."""


async def findings(
    connection: asyncpg.Connection, table: OutboxTable, namespace: str, oid_before: int | None
) -> tuple[list[Finding], int | None]:
    """The findings, and the table to take rows from: the previous one, as long as it may have rows."""
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
        swapped = await _of_the_one_before(connection, table, namespace, oid_before, rows["oid"])
        found += swapped
    if not any(finding.stops for finding in found):
        found += await _of_namespaces(connection, table, namespace, rows["place"])
        if table.schema is None:
            found += await _of_namesakes(connection, table, namespace, rows["oid"])
    return found, oid_before if swapped else rows["oid"]


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
        problem = "row-level security may hide rows from the relay, or keep it from removing them"
        yield Finding("rights", table.rows, problem, clean(remedy))
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


async def of_removal(connection: asyncpg.Connection, table: OutboxTable, resting: Resting) -> list[Finding]:
    """The finding about rows that were applied and are kept by something, with what that may be. A rule has a finding
    of its own."""
    found = await connection.fetch(_KEEPERS, table.rows)
    names = [clean(row["drop"]) for row in found if resting.told or row["surely"]]
    if not names and not resting.told:
        return []
    said = f" ({resting.why})" if resting.why and resting.told else ""
    problem = f"rows that were applied can't be removed, or marked{said}: they come again and again"
    remedy = " ".join(names) or f"see what keeps DELETE and UPDATE from working on {table.rows}"
    return [Finding("removal", table.rows, problem, remedy)]


async def _of_the_one_before(
    connection: asyncpg.Connection, table: OutboxTable, namespace: str, oid: int, now: int
) -> list[Finding]:
    """The finding that another table has the name now: nobody takes the rows of the previous one."""
    name = await connection.fetchval("SELECT $1::oid::regclass::text FROM pg_class WHERE oid = $1", oid)
    if name is None:
        problem = "it was dropped, and made anew: rows that it still had are gone"
        return [Finding("table", table.rows, problem, missed=True, over=True, state=str(now))]
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


async def serve(connection: asyncpg.Connection, table: OutboxTable, namespace: str, before: str) -> str:
    """Show others, by a lock, that a relay serves the namespace and the table; returns the place by which they find
    it."""
    try:
        place: str = await connection.fetchval(_PLACE, table.rows) or ""
    except asyncpg.InsufficientPrivilegeError:  # its schema may not be used: `findings` says so
        return before
    if place != before:
        if before:
            await connection.execute(_LEAVE, LOCK, f"{namespace} {before}")
        if place:
            await connection.execute(_SERVE, LOCK, f"{namespace} {place}")
    return place


class Stores:
    """Shows by a lock which L2 the relay of a connection is for, and checks whether other relays have another one."""

    def __init__(self, connection: asyncpg.Connection) -> None:
        self._connection = connection
        self._held = ("", "")
        self._looks = 0

    async def findings(self, table: OutboxTable, served: str, identity: str) -> list[Finding]:
        """The finding that another relay of what is `served` (the namespace and the table's place) is for another L2,
        in several checks in a row: a failover changes the identities of relays one after the other."""
        if identity and (served, identity) != self._held:
            if self._held[1]:
                await self._connection.execute(_LEAVE_STORE, *self._held)
            self._held = served, identity
            await self._connection.execute(_SERVE_STORE, *self._held)
        several = await self._connection.fetchval(_STORES, served) > 1
        self._looks = self._looks + 1 if several else 0
        if self._looks < AGREE_LOOKS and (identity or not several):
            return []
        problem = (
            "relays of this table and namespace work for different servers: each applies what it takes at its own alone"
        )
        return [Finding("stores", table.rows, problem, "give all of them the same CACHEBUS_URL, that of the caches")]


async def _of_namesakes(connection: asyncpg.Connection, table: OutboxTable, namespace: str, oid: int) -> list[Finding]:
    """The findings about tables of the same name in other schemas: a writer may find one of these first, and write
    there."""
    found = []
    for row in await connection.fetch(_NAMESAKES, table.name, oid, namespace, LOCK):
        try:
            some = await connection.fetchval(_WAITING.format(place=row["place"]), namespace, float(UNSERVED_S))
        except asyncpg.PostgresError:
            continue  # another kind of table, or others' business
        if some:
            place = clean(row["place"])
            problem = (
                f"it is found as {clean(row['here'])}, and rows for this namespace wait in {place} for more than "
                f"{UNSERVED_S} s, where no relay is"
            )
            remedy = (
                f"give the table its schema, as in --table {place}, or mend the search_path of this role, or of writers"
            )
            found.append(Finding("table", table.rows, problem, remedy))
    return found


async def _of_namespaces(
    connection: asyncpg.Connection, table: OutboxTable, namespace: str, place: str
) -> list[Finding]:
    """The findings about rows that no relay serves: their writers use a namespace that no relay has."""
    found = await connection.fetch(_UNSERVED.format(t=table), namespace, LOCK, place)
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
SELECT c.oid::bigint, c.relnamespace::regnamespace || '.' || quote_ident(c.relname) AS place,
    c.relkind::text AS kind, c.relpersistence::text AS persistence, quote_ident(current_user) AS role,
    has_table_privilege(c.oid, 'SELECT') AS select, has_table_privilege(c.oid, 'UPDATE') AS update,
    has_table_privilege(c.oid, 'DELETE') AS delete, has_table_privilege(c.oid, 'INSERT') AS insert,
    row_security_active(c.oid) AND EXISTS (
        SELECT FROM unnest(ARRAY['r', 'w', 'd']) AS needed WHERE NOT EXISTS (
            SELECT FROM pg_policy p WHERE p.polrelid = c.oid AND p.polpermissive AND p.polcmd::text IN ('*', needed)
            AND pg_get_expr(p.polqual, c.oid) = 'true')) AS filtered,
    EXISTS (SELECT FROM pg_index i WHERE i.indrelid = c.oid AND i.indisvalid AND i.indpred IS NULL AND (
        SELECT array_agg(a.attname::text ORDER BY k.n) FROM unnest(i.indkey::int2[]) WITH ORDINALITY k (attnum, n)
        JOIN pg_attribute a ON a.attrelid = c.oid AND a.attnum = k.attnum WHERE k.n <= 3
        ) = ARRAY['namespace', 'waits_for', 'due_at']) AS indexed,
    (SELECT quote_ident(g.tgname) FROM pg_trigger g WHERE g.tgrelid = c.oid AND NOT g.tgisinternal
        AND g.tgname = $2 AND g.tgenabled IN ('D', 'R') LIMIT 1) AS silent
FROM pg_class c WHERE c.oid = to_regclass($1)"""

_PLACE: Final = """\
SELECT relnamespace::regnamespace || '.' || quote_ident(relname) FROM pg_class WHERE oid = to_regclass($1)"""
_SERVE: Final = "SELECT pg_try_advisory_lock_shared($1::int, hashtext($2))"
_LEAVE: Final = "SELECT pg_advisory_unlock_shared($1::int, hashtext($2))"
_SERVE_STORE: Final = "SELECT pg_try_advisory_lock_shared(hashtext('cachebus l2 ' || $1), hashtext($2))"
_LEAVE_STORE: Final = "SELECT pg_advisory_unlock_shared(hashtext('cachebus l2 ' || $1), hashtext($2))"
_STORES: Final = """\
SELECT count(DISTINCT objid) FROM pg_locks WHERE locktype = 'advisory' AND objsubid = 2 AND granted
    AND database = (SELECT oid FROM pg_database WHERE datname = current_database())
    AND classid::bigint = (hashtext('cachebus l2 ' || $1)::bigint & 4294967295)"""
_IS_SERVED: Final = """\
SELECT FROM pg_locks WHERE locktype = 'advisory' AND objsubid = 2 AND granted
    AND database = (SELECT oid FROM pg_database WHERE datname = current_database())
    AND classid::bigint = {lock}::int AND objid::bigint = (hashtext({served})::bigint & 4294967295)"""
_NAMESAKES: Final = f"""\
SELECT place, here FROM (
    SELECT relnamespace::regnamespace || '.' || quote_ident(relname) AS place FROM pg_class
    WHERE relname = $1 AND relkind IN ('r', 'p') AND NOT relispartition AND oid <> $2 AND relpersistence <> 't'
    AND has_schema_privilege(relnamespace, 'USAGE') AND has_table_privilege(oid, 'SELECT') ORDER BY 1 LIMIT {OTHERS}
    ) AS others,
    (SELECT relnamespace::regnamespace || '.' || quote_ident(relname) AS here FROM pg_class WHERE oid = $2) AS own
WHERE NOT EXISTS ({_IS_SERVED.format(lock="$4", served="$3 || ' ' || place")})"""
_WAITING: Final = """\
SELECT EXISTS (SELECT FROM {place} WHERE namespace = $1 AND waits_for = -1 AND due_at <= statement_timestamp()
    AND greatest(created_at, due_at) < statement_timestamp() - make_interval(secs => $2))"""

_COLUMNS: Final = """\
SELECT attname::text AS name, quote_ident(attname) AS quoted, format_type(atttypid, NULL) AS type,
    atthasdef OR attidentity <> '' AS has_default,
    attnotnull AND NOT atthasdef AND attidentity = '' AS required
FROM pg_attribute WHERE attrelid = $1 AND attnum > 0 AND NOT attisdropped"""

# Of partitions too. A rule that does something else instead surely keeps rows; a trigger may.
_KEEPERS: Final = f"""\
WITH parts AS (SELECT relid FROM {tree_of("to_regclass($1)")} AS tree)
SELECT format('DROP RULE %I ON %s;', rulename, ev_class::regclass) AS drop, true AS surely
FROM pg_rewrite r JOIN parts ON relid = ev_class WHERE is_instead AND ev_type IN ('2', '4')
UNION ALL
SELECT format('DROP TRIGGER %I ON %s;', tgname, tgrelid::regclass), false
FROM pg_trigger JOIN parts ON relid = tgrelid
WHERE NOT tgisinternal AND tgenabled IN ('O', 'A') AND tgtype & 24 <> 0
ORDER BY 1"""

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
AND NOT EXISTS ({_IS_SERVED.format(lock="$2", served="namespace || ' ' || $3")})"""
