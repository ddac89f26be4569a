"""Where the worker's own tables lie, and whether they are as they must be."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import suppress
from typing import Any, Final

import asyncpg

from cachebus.consumers.cdc.slot import locks
from cachebus.consumers.cdc.slot.identity import quoted
from cachebus.consumers.cdc.slot.slot import FOLLOWED
from cachebus.consumers.cdc.slot.storage import COLUMNS, DEAD, HELD, OWN_TABLES, SLOTS, Swallowed, change, sql_of
from cachebus.consumers.worker import clean, row_security
from cachebus.consumers.worker.source import Finding

NEEDED: Final = row_security.SELECT + row_security.INSERT + row_security.UPDATE + row_security.DELETE
RIGHTS: Final = "SELECT, INSERT, UPDATE, DELETE"
_CANDIDATES: Final = """
SELECT n.nspname AS schema, format('%I.%I', n.nspname, c.relname) AS name,
       has_schema_privilege(n.oid, 'USAGE') AND has_table_privilege(c.oid, 'SELECT') AS is_readable,
       EXISTS (SELECT FROM pg_replication_slots WHERE slot_name = $2) AS begun,
       EXISTS (SELECT FROM pg_index WHERE indrelid = c.oid AND indisprimary) AS has_key
FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace
WHERE c.relname = $1 AND c.relkind IN ('r', 'p') AND c.relpersistence <> 't' ORDER BY n.nspname
"""
_REMEMBERED: Final = "SELECT lsn - '0/0'::pg_lsn FROM {} WHERE slot = $1"
_IN_SIGHT: Final = """
SELECT relnamespace::regnamespace::name FROM unnest($1::text[]) WITH ORDINALITY AS own (name, at)
JOIN pg_class c ON c.oid = to_regclass(own.name) ORDER BY own.at DESC LIMIT 1
"""
_SETTLE: Final = """
SELECT set_config('cachebus.schema', schema, false), set_config('search_path', format('%I, pg_temp', schema), false)
FROM (SELECT coalesce($1, current_schema(), 'public') AS schema) AS chosen
"""
_LOOK: Final = """
WITH chosen AS (SELECT coalesce(nullif(current_setting('cachebus.schema', true), ''), current_schema(), 'public') AS at)
SELECT named.name, c.oid IS NOT NULL AS there, c.oid, format('%I.%I', chosen.at, named.name) AS full_name,
       quote_ident(chosen.at) AS schema, n.oid IS NULL AS nowhere, quote_ident(current_user) AS role,
       NOT coalesce(has_schema_privilege(n.oid, 'USAGE'), false) AS is_shut,
       (SELECT array_agg(attname::text) FROM pg_attribute
        WHERE attrelid = c.oid AND attnum > 0 AND NOT attisdropped) AS has,
       (SELECT array_agg(needed) FROM unnest(ARRAY['SELECT', 'INSERT', 'UPDATE', 'DELETE']) AS needed
        WHERE c.oid IS NOT NULL AND NOT has_table_privilege(c.oid, needed)) AS lacks,
       (SELECT array_agg(quote_ident(rulename)) FROM pg_rewrite
        WHERE ev_class = c.oid AND is_instead AND ev_enabled <> 'D') AS rules
FROM unnest($1::text[]) WITH ORDINALITY AS named (name, number) CROSS JOIN chosen
LEFT JOIN pg_namespace n ON n.nspname = chosen.at
LEFT JOIN pg_class c ON c.relname = named.name AND c.relnamespace = n.oid ORDER BY named.number
"""
_TRIGGERS: Final = """
SELECT format('%I.%I', n.nspname, c.relname) AS full_name, quote_ident(t.tgname) AS trigger,
       t.tgtype & 3 = 3 AS may_swallow, strpos($2, t.tgfoid::regprocedure::text) > 0 AS raised
FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace
LEFT JOIN pg_trigger t ON t.tgrelid = c.oid AND NOT t.tgisinternal AND t.tgenabled <> 'D'
WHERE c.oid = to_regclass($1) ORDER BY t.tgname
"""
"""A table's triggers: whether one runs before each row is written, and is of a function that an error comes from."""
_WITH_TRIGGERS: Final = """
SELECT own.name, string_agg(quote_ident(tgname), ', ' ORDER BY tgname) AS triggers
FROM unnest($1::text[]) AS own (name) JOIN pg_trigger ON tgrelid = to_regclass(own.name)
WHERE NOT tgisinternal AND tgenabled <> 'D' AND tgtype & 3 = 3 GROUP BY own.name ORDER BY own.name
"""
NOT_NOW: Final = (
    *(asyncpg.LockNotAvailableError, asyncpg.OperatorInterventionError),
    *(asyncpg.PostgresConnectionError, asyncpg.TransactionRollbackError),
)
"""What a write that is tried raises of itself, whatever the table."""
_NOT_THERE: Final = asyncpg.UndefinedTableError, asyncpg.UndefinedColumnError
LEFT_BYTES: Final = 1 << 24
"""So much WAL a slot keeps that nobody follows before that is said."""
_LEFT: Final = f"""
SELECT s.slot, s.namespace, quote_literal(s.slot) AS literal,
       (SELECT relnamespace::regnamespace::text || '.' || quote_ident(relname) FROM pg_class WHERE oid = s.tableoid)
         AS lies_in
FROM {SLOTS} s JOIN pg_replication_slots r ON r.slot_name = s.slot AND r.database = current_database()
WHERE s.slot <> $1 AND r.active_pid IS NULL AND pg_wal_lsn_diff(pg_current_wal_flush_lsn(), r.restart_lsn) > $2
  AND NOT {FOLLOWED}
ORDER BY s.slot
"""
ADDED: Final[Mapping[str, str]] = {
    "losses": "int NOT NULL DEFAULT 0",
    "held": "bigint NOT NULL DEFAULT 0",
    "tables_sum": "int NOT NULL DEFAULT 0",
    "made_at": "timestamptz NOT NULL DEFAULT now()",
    "at": "timestamptz NOT NULL DEFAULT now()",
}
"""Columns that a table may get later: its rows stay. `id` is none of them, for which rows would need an order."""


async def settle(connection: asyncpg.Connection, slot: str) -> None:
    """Let all that this session says be of the schema in which the tables lie. It is not told by `search_path`, which
    others may set for a role or a database: what was remembered, held and set aside would be lost from sight.

    1. What is remembered of the slot lies there: where it has gone furthest, if there are several. A table without a
       primary key is a copy of another one, if that has gone as far.
    2. Else a table is in sight.
    3. Else one is there that may not be read, while the slot is there as well.
    4. Else they are made where this user makes tables.

    The session waits for no lock for long. `TableLocked` if one of the tables is locked: whether it is the right
    one, only its rows tell.
    """
    there = await connection.fetch(_CANDIDATES, SLOTS, slot)
    furthest: dict[str, tuple[Any, bool]] = {}
    for one in there:
        with suppress(asyncpg.UndefinedColumnError, asyncpg.UndefinedTableError):
            try:
                lsn = one["is_readable"] and await connection.fetchval(_REMEMBERED.format(one["name"]), slot)
            except locks.LOCKED:
                found = await locks.finding_of(connection, SLOTS, known_as=one["name"])
                if found is None:
                    raise
                raise locks.TableLocked(found) from None
            if lsn not in (None, False):
                furthest[one["schema"]] = lsn, one["has_key"]
    schema = max(furthest, key=lambda name: furthest[name]) if furthest else None
    if schema is None:
        schema = await connection.fetchval(_IN_SIGHT, list(OWN_TABLES))
    if schema is None:
        schema = next((one["schema"] for one in there if one["begun"] and not one["is_readable"]), None)
    await connection.fetch(_SETTLE, schema)


async def storage_findings(connection: asyncpg.Connection, refused: Mapping[str, str]) -> list[Finding]:
    """The findings about the tables. `refused`: why some could not be created. Each remedy can be obeyed by anybody who
    may, whatever role that is and whatever its `search_path`."""
    rows = await connection.fetch(_LOOK, list(OWN_TABLES))
    seen = {row["full_name"]: NEEDED for row in rows if row["there"] and not row["is_shut"]}
    hidden = await row_security.remedies(connection, seen)
    found = (_finding(row, refused, hidden) for row in rows)
    return [one for one in found if one is not None]


def _finding(row: Any, refused: Mapping[str, str], hidden: Mapping[str, str]) -> Finding | None:
    """The first thing that is wrong with a table. `hidden`: the SQL that shows all rows of tables that hide some."""
    name, table, role = row["name"], row["full_name"], row["role"]
    missing = sorted(COLUMNS[name].difference(row["has"] or ()))
    grant = f"GRANT {RIGHTS} ON {table} TO {role};"
    problem = remedy = ""
    if row["nowhere"]:
        problem = f"its schema {row['schema']} is not there"
        remedy = f"CREATE SCHEMA {row['schema']}; GRANT USAGE, CREATE ON SCHEMA {row['schema']} TO {role};"
    elif row["is_shut"]:
        problem = f"this user may not use the schema {row['schema']}"
        remedy = f"GRANT USAGE ON SCHEMA {row['schema']} TO {role};"
    elif not row["there"]:
        problem = "it is not there" + (f", and this user may not make it ({refused[name]})" if name in refused else "")
        remedy = f"{sql_of(name, table)}; {grant}"
    elif missing:
        problem = f"it has no column {', '.join(missing)}: it is another release's"
        remedy = _as_ours(row, missing)
    elif row["lacks"]:
        problem = f"this user lacks {', '.join(row['lacks'])}"
        remedy = f"GRANT {', '.join(row['lacks'])} ON {table} TO {role};"
    elif row["rules"]:
        problem = "a rule does something else instead"
        remedy = " ".join(f"DROP RULE {rule} ON {table};" for rule in row["rules"])
    elif table in hidden:
        problem, remedy = "row-level security may hide rows from this worker", clean.clean(hidden[table], 5000)
    return Finding("storage", name, problem, remedy, stops=True) if problem else None


def _as_ours(row: Any, missing: Sequence[str]) -> str:
    """The SQL that gives the table its missing columns. Where rows would have nothing there, they are put away with
    the table; what is owed for them is let go of: see `HeldCommands.figures`, and `Mending`."""
    name, table = row["name"], row["full_name"]
    if all(column in ADDED for column in missing):
        return f"ALTER TABLE {table} {', '.join(f'ADD COLUMN {column} {ADDED[column]}' for column in missing)};"
    old = f"{name}_{row['oid']}"
    made = f"{sql_of(name, table)}; GRANT {RIGHTS} ON {table} TO {row['role']};"
    return f"BEGIN; ALTER TABLE {table} RENAME TO {old}; {made} COMMIT;"


async def are_left_over(connection: asyncpg.Connection, lacking: Sequence[Finding]) -> bool:
    """Whether what was held and set aside is there, and nothing is remembered of any slot. `lacking`: the findings
    about the tables."""
    missing = {one.subject for one in lacking}
    if missing.issuperset({DEAD, HELD}):
        return False
    return SLOTS in missing or not await connection.fetchval(f"SELECT EXISTS (SELECT FROM {SLOTS})")


async def left_behind(connection: asyncpg.Connection, slot: str) -> list[str]:
    """Warnings of other slots that workers have followed, and nobody does now, as after another name was given."""
    return [
        f"the slot {row['slot']} of the namespace {row['namespace']!r} keeps WAL as well, and no worker follows it: "
        f"where none will, SELECT pg_drop_replication_slot({row['literal']}); DELETE FROM {row['lies_in']} WHERE "
        f"slot = {row['literal']};"
        for row in await connection.fetch(_LEFT, slot, LEFT_BYTES)
    ]


async def with_triggers(connection: asyncpg.Connection) -> list[str]:
    """Warnings of the triggers that run before a row is written: they may swallow it, or refuse it."""
    return [
        f"what {row['name']} is to keep goes through triggers first ({row['triggers']}): one that gives NULL, or "
        "raises, keeps it out"
        for row in await connection.fetch(_WITH_TRIGGERS, list(OWN_TABLES))
    ]


async def keeping_out(connection: asyncpg.Connection, table: str, writes: Sequence[tuple[str, Any]]) -> Finding | None:
    """The finding about a table that has swallowed a row, or has refused it, as long as it does. The worker's writes,
    each of which changes a row, are tried in a transaction that is rolled back."""
    refused: asyncpg.PostgresError | None = None
    trial = connection.transaction()
    await trial.start()
    try:
        for sql, given in writes:
            await change(connection, table, sql, *given)
        await connection.execute("SET CONSTRAINTS ALL IMMEDIATE")  # some are looked at only as it commits
        return None
    except (Swallowed, asyncpg.FeatureNotSupportedError):
        pass  # the latter: a rule
    except NOT_NOW:
        raise
    except asyncpg.PostgresError as error:
        if isinstance(error, _NOT_THERE) and not error.context:
            return None  # another finding
        refused = error
    finally:
        await trial.rollback()
    problem, remedy = await _kept_out(connection, table, refused)
    # What can't be set aside is held, and holds up nothing.
    return Finding("storage", table, problem, remedy, stops=table != DEAD)


async def _kept_out(
    connection: asyncpg.Connection, table: str, refused: asyncpg.PostgresError | None
) -> tuple[str, str]:
    """What keeps a row out of a table, and the SQL that helps. `refused`: the error, if it is told by one."""
    rows = await connection.fetch(_TRIGGERS, table, (refused and refused.context) or "")
    name = rows[0]["full_name"] if rows else table
    triggers = [row for row in rows if row["trigger"]]
    if refused is None:
        named = [row["trigger"] for row in triggers if row["may_swallow"]]
        who = f"of the triggers {', '.join(named)} one gives NULL" if named else "nobody knows why"
        problem = f"what is written there is not kept, nor is it refused: {who}"
    else:
        named = [row["trigger"] for row in triggers if row["raised"]]
        if refused.context and not named:  # one of these calls what the error comes from
            named = [row["trigger"] for row in triggers]
        who = f" (the trigger{'s' if len(named) > 1 else ''} {', '.join(named)})" if named else ""
        problem = f"what is written there is refused: {clean.describe(refused)}{who}"
    remedy = " ".join(f"ALTER TABLE {name} DISABLE TRIGGER {trigger};" for trigger in named)
    if isinstance(refused, asyncpg.NotNullViolationError) and refused.column_name:
        remedy = f"ALTER TABLE {name} ALTER COLUMN {quoted(refused.column_name)} DROP NOT NULL;"
    elif isinstance(refused, asyncpg.IntegrityConstraintViolationError) and refused.constraint_name:
        remedy = f"ALTER TABLE {name} DROP CONSTRAINT {quoted(refused.constraint_name)};"
    return problem, remedy
