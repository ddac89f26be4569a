"""Checks what a relay assumes of its tables in PostgreSQL: what is wrong, and the SQL that repairs it."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, Final

import asyncpg

from cachebus.consumers.outbox import columns, inserts, locked, vacuum
from cachebus.consumers.outbox.elsewhere import RowsElsewhere
from cachebus.consumers.outbox.letting import Resting
from cachebus.consumers.outbox.remedies import OPENS, made, put_by
from cachebus.consumers.worker import row_security
from cachebus.consumers.worker.clean import clean
from cachebus.consumers.worker.partitions import tree_of
from cachebus.consumers.worker.source import Cause, Finding
from cachebus.producers.outbox.table import OutboxTable

ASSUMPTIONS: Final = (
    "table",
    "columns",
    "rights",
    "trigger",
    "removal",
    inserts.ASSUMPTION,
    "namespaces",
    "stores",
    locked.ASSUMPTION,
    vacuum.ASSUMPTION,
)
TABLES: Final = ("r", "p")


async def findings(
    connection: asyncpg.Connection, table: OutboxTable, elsewhere: RowsElsewhere, oid_before: int | None
) -> tuple[list[Finding], int | None]:
    """The findings, and the table to take rows from: the previous one, as long as it may have rows."""
    try:
        rows = await connection.fetchrow(_TABLE, table.rows, f"{table.name}_notify")
        dead = await connection.fetchrow(_TABLE, table.dead, "")
    except asyncpg.InsufficientPrivilegeError:
        role = clean(await connection.fetchval("SELECT quote_ident(current_user)"))
        remedy = f'GRANT USAGE ON SCHEMA "{table.schema}" TO {role};'
        return [Finding("rights", table.rows, "its schema may not be used", remedy, stops=True)], oid_before
    if rows is None:
        return [await _of_none(connection, table)], oid_before
    if rows["kind"] not in TABLES:
        problem = "it is no table that rows can be locked in"
        return [Finding("table", table.rows, problem, put_by(table.rows, rows), stops=True)], oid_before
    found = await columns.of_rows(connection, table.rows, rows["oid"], readable=rows["select"])
    found += await _of_one_that_comes_first(connection, table, rows["place"])
    found += _of_the_table(table, rows)
    found += await _of_row_security(connection, table)
    found += _of_rights(table.rows, rows, ("SELECT", "UPDATE", "DELETE"), stops=True)
    if dead is None:
        found.append(Finding("table", table.dead, "it is not there: what can't be applied lies", made(table)))
    elif not (dead["kind"] in TABLES or dead["takes_rows"]):
        problem = "it is no table that takes rows: what can't be applied lies"
        found.append(Finding("table", table.dead, problem, put_by(table.dead, dead)))
    else:
        found += await columns.of_the_dead(connection, table.dead, dead["oid"])
        found += _of_rights(table.dead, dead, ("INSERT",), stops=False)
    swapped = await elsewhere.of_the_one_before(oid_before, rows["oid"], rows["place"])
    return [*found, *swapped], oid_before if swapped else rows["oid"]


async def _of_none(connection: asyncpg.Connection, table: OutboxTable) -> Finding:
    remedy = made(table)
    if table.schema is None:
        row = await connection.fetchrow(_OF_THE_NAME, table.name)
        if row is not None:
            return _of_one_that_is_not_found(table, row)
    elif await connection.fetchval("SELECT to_regnamespace($1) IS NULL", table.schema):
        remedy = f'CREATE SCHEMA "{table.schema}";'
    return Finding("table", table.rows, "it is not there", remedy, stops=True, cause=Cause.ABSENT)


def _of_one_that_is_not_found(table: OutboxTable, row: Any) -> Finding:
    """The search_path passes over schemas that the role may not use: to make the table would make another one."""
    place, opens = clean(row["place"]), clean(row["opens"])
    if opens and row["is_on_the_path"]:
        problem = f"it is {place}, which this role may not use: the search_path passes over its schema"
        return Finding("rights", table.rows, problem, opens, stops=True)
    problem = f"the search_path does not find it, but there is {place}"
    remedy = f"if that one is meant, {f'{opens} and ' if opens else ''}give it as --table {place}; else {made(table)}"
    return Finding("table", table.rows, problem, remedy, stops=True)


async def _of_one_that_comes_first(connection: asyncpg.Connection, table: OutboxTable, place: str) -> list[Finding]:
    """The finding about a table of the name in an earlier schema of the search_path, which this role may not use: who
    may use it writes there."""
    row = await connection.fetchrow(_OF_THE_NAME, table.name) if table.schema is None else None
    if row is None or row["place"] == place or not (row["opens"] and row["is_on_the_path"]):
        return []
    first = clean(row["place"])
    problem = (
        f"it is found as {clean(place)}, since this role may not use the schema of {first}, which comes first in its "
        "search_path: writers may write there"
    )
    return [Finding("rights", f"{table.rows} beside {first}", problem, clean(row["opens"]))]


def _of_the_table(table: OutboxTable, row: Any) -> Iterator[Finding]:
    if row["persistence"] == "u":
        remedy = f"ALTER TABLE {table.rows} SET LOGGED;"
        yield Finding("table", table.rows, "it is unlogged: a crash of the database empties it", remedy)
    elif not row["indexed"]:
        remedy = f"CREATE INDEX ON {table.rows} (namespace, waits_for, due_at, id);"
        yield Finding("table", table.rows, "no index tells which rows are due: each look reads all of it", remedy)
    if row["silent"]:
        remedy = f"ALTER TABLE {table.rows} ENABLE TRIGGER {row['silent']};"
        yield Finding("trigger", table.rows, "it is there and does not fire: rows wait for the next look", remedy)


async def _of_row_security(connection: asyncpg.Connection, table: OutboxTable) -> list[Finding]:
    problems = {
        table.rows: "row-level security may hide rows from the relay, or keep it from removing them",
        table.dead: "row-level security may keep the relay from setting rows aside",
    }
    needed = {
        table.rows: row_security.SELECT + row_security.UPDATE + row_security.DELETE,
        table.dead: row_security.INSERT,
    }
    shut = await row_security.remedies(connection, needed)
    return [Finding("rights", name, problems[name], clean(remedy, 5000)) for name, remedy in shut.items()]


def _of_rights(name: str, row: Any, needed: tuple[str, ...], *, stops: bool) -> Iterator[Finding]:
    lacking = [right for right in needed if not row[right.lower()]]
    if lacking:
        remedy = f"GRANT {', '.join(lacking)} ON {name} TO {clean(row['role'])};"
        yield Finding("rights", name, f"the relay may not {' or '.join(lacking)}", remedy, stops=stops)


async def of_removal(
    connection: asyncpg.Connection, table: OutboxTable, resting: Resting, others: Sequence[Finding] = ()
) -> list[Finding]:
    """The finding about rows that were applied and are kept by something, with what that may be. A rule has a finding
    of its own, and so have policies, among `others`."""
    found = await connection.fetch(_KEEPERS, table.rows)
    rights = [one.remedy for one in others if one.assumption == "rights" and one.subject == table.rows]
    resting.suspect([*(row["drop"] for row in found), *rights])
    names = [clean(row["drop"]) for row in found if resting.has_some or row["surely"]]
    if not names and not resting.has_some:
        return []
    said = f" ({resting.why})" if resting.why and resting.has_some else ""
    problem = f"rows that were applied can't be removed, or marked{said}: they come again and again"
    remedy = " ".join(names)
    if rights:
        remedy = f"{remedy}{'; and ' if remedy else ''}what `rights` says: {' '.join(rights)}"
    remedy = remedy or f"see what keeps DELETE and UPDATE from working on {table.rows}"
    return [Finding("removal", table.rows, problem, remedy)]


_TABLE: Final = """\
SELECT c.oid::bigint, c.relnamespace::regnamespace || '.' || quote_ident(c.relname) AS place,
    c.relkind::text AS kind, c.relname::text AS name, pg_relation_is_updatable(c.oid, true) & 8 > 0 AS takes_rows,
    c.relpersistence::text AS persistence, quote_ident(current_user) AS role,
    has_table_privilege(c.oid, 'SELECT') AS select, has_table_privilege(c.oid, 'UPDATE') AS update,
    has_table_privilege(c.oid, 'DELETE') AS delete, has_table_privilege(c.oid, 'INSERT') AS insert,
    EXISTS (SELECT FROM pg_index i WHERE i.indrelid = c.oid AND i.indisvalid AND i.indpred IS NULL AND (
        SELECT array_agg(a.attname::text ORDER BY k.n) FROM unnest(i.indkey::int2[]) WITH ORDINALITY k (attnum, n)
        JOIN pg_attribute a ON a.attrelid = c.oid AND a.attnum = k.attnum WHERE k.n <= 3
        ) = ARRAY['namespace', 'waits_for', 'due_at']) AS indexed,
    (SELECT quote_ident(g.tgname) FROM pg_trigger g WHERE g.tgrelid = c.oid AND NOT g.tgisinternal
        AND g.tgname = $2 AND g.tgenabled IN ('D', 'R') LIMIT 1) AS silent
FROM pg_class c WHERE c.oid = to_regclass($1)"""

# Tables of that name which the search_path does not find: those first that it would find if the role might use their
# schemas. `current_schemas` does not tell of these.
_OF_THE_NAME: Final = f"""\
WITH path AS (
    SELECT coalesce(nullif(replace(found[1], '""', '"'), '$user'), lower(found[2]), current_user) AS schema, n
    FROM regexp_matches(current_setting('search_path'), '"((?:[^"]|"")*)"|([^",[:space:]]+)', 'g')
    WITH ORDINALITY AS m (found, n))
SELECT c.relnamespace::regnamespace || '.' || quote_ident(c.relname) AS place, {OPENS} AS opens,
    path.n IS NOT NULL AS is_on_the_path
FROM pg_class c JOIN pg_namespace s ON s.oid = c.relnamespace LEFT JOIN path ON path.schema = s.nspname
WHERE c.relname = $1 AND c.relkind IN ('r', 'p') AND c.relpersistence <> 't' ORDER BY path.n NULLS LAST, 1 LIMIT 1"""

# Of partitions too. A rule that does something else instead surely keeps rows; a trigger may.
_KEEPERS: Final = f"""\
WITH parts AS (SELECT relid FROM {tree_of("to_regclass($1)")} AS tree)
SELECT format('DROP RULE %I ON %s;', rulename, ev_class::regclass) AS drop, true AS surely
FROM pg_rewrite r JOIN parts ON relid = ev_class
WHERE is_instead AND ev_type IN ('2', '4') AND ev_enabled IN ('O', 'A')
UNION ALL
SELECT format('DROP TRIGGER %I ON %s;', tgname, tgrelid::regclass), false
FROM pg_trigger JOIN parts ON relid = tgrelid
WHERE NOT tgisinternal AND tgenabled IN ('O', 'A') AND tgtype & 24 <> 0 AND tgparentid = 0
ORDER BY 1"""
