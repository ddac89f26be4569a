"""Dead letters of an outbox: how a row becomes one in PostgreSQL; whether some lie there, also in SQLite."""

from __future__ import annotations

import sqlite3
from typing import TYPE_CHECKING, Final

import asyncpg

from cachebus.consumers.outbox.rows import PostgresRow
from cachebus.consumers.worker.dead import DeadLetter
from cachebus.producers.outbox.table import SQLITE_NOW, OutboxTable

if TYPE_CHECKING:
    from cachebus.consumers.outbox.sqlite_file import Database

KEPT: Final = "INSERT 0 1"
LONGEST_S: Final = 2.0
"""Nothing else is asked meanwhile. It takes long only where a great many letters of others lie there."""
NOT_TOLD: Final = (asyncpg.SyntaxOrAccessError, asyncpg.ObjectNotInPrerequisiteStateError, TimeoutError)
"""There is no such table, or it is locked; or it takes too long."""


async def bury(connection: asyncpg.Connection, table: OutboxTable, letter: DeadLetter, row: PostgresRow) -> None:
    """Write the letter of a row."""
    more = row.part, row.place, letter.reason, bool(letter.payload)
    if await connection.execute(_BURY.format(t=table), *more) != KEPT:
        await connection.reload_schema_state()  # prepared under a rule it stays nothing
        raise RuntimeError("the table of the dead takes no rows, and says nothing: by a trigger, or a rule")


async def has_letters(
    connection: asyncpg.Connection, table: OutboxTable, namespace: str, within_s: float
) -> bool | None:
    """See `Session.has_letters`. A relay needs no right to read them; without it nobody can tell."""
    try:
        if not await connection.fetchval(_MAY_READ, table.dead):
            return None
        newest = connection.fetchval(_NEWEST.format(t=table), namespace, within_s, timeout=LONGEST_S)
        return bool(await newest)
    except NOT_TOLD:
        return None


async def has_letters_in_file(database: Database, table: OutboxTable, namespace: str, within_s: float) -> bool | None:
    """The same in SQLite."""
    try:
        return bool(await database.fetch(_NEWEST_IN_FILE.format(t=table), namespace, within_s))
    except sqlite3.OperationalError:
        return None


# All of it stays where it is: nothing in it can be too old or too odd for a way to here and back. Of what would take
# the database longer to copy than anybody waits, the beginning is enough.
_BURY: Final = """\
INSERT INTO {t.dead} (namespace, row_id, command, reason, attempts, created_at)
SELECT namespace, id,
    CASE WHEN NOT $4 THEN '' WHEN octet_length(command) > 16777216 THEN left(command, 1000) ELSE command END,
    $3, least(attempts::bigint + 1, 2147483647), created_at
FROM {t.rows} WHERE tableoid = $1 AND ctid = $2"""
# What row-level security hides may lie there. In the order of ids it finds the newest at once.
_MAY_READ: Final = "SELECT has_table_privilege(c, 'SELECT') AND NOT row_security_active(c) FROM to_regclass($1) AS c"
_NEWEST: Final = """\
SELECT died_at > clock_timestamp() - make_interval(secs => $2) FROM {t.dead} WHERE namespace = $1
ORDER BY id DESC LIMIT 1"""
_NEWEST_IN_FILE: Final = f"""\
SELECT 1 FROM (SELECT died_at FROM {{t.dead}} WHERE namespace = ? ORDER BY id DESC LIMIT 1)
WHERE died_at > {SQLITE_NOW} - ?"""
