"""The relay's connection to PostgreSQL, and the outbox's tables there."""

from __future__ import annotations

import re
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from typing import Final

import asyncpg

from cachebus.consumers.outbox.remedies import checked
from cachebus.consumers.worker import clean, database_session, table_locks
from cachebus.consumers.worker.table_locks import LockHolder
from cachebus.errors import ConfigError
from cachebus.producers.outbox.table import DEFAULT, OutboxTable

CONNECT_TIMEOUT_S: Final = 5.0
COMMAND_TIMEOUT_S: Final = 10.0
PATIENCE_MOST: Final = 64
"""A session whose commands took too long gives the next one twice as long, up to so many times as long as at first:
what is slow, as millions of rows are that are gone, is read in the end. One that hangs costs no more than that."""
CLOSE_TIMEOUT_S: Final = 1.0
ONE_MAKES: Final = "SELECT pg_advisory_xact_lock(hashtext('cachebus_outbox'))"
"""Two who make tables at once would see each other's half."""
REPLAYED_AT_ONCE: Final = 1000

TROUBLE: Final = (OSError, asyncpg.PostgresError, asyncpg.InterfaceError, asyncpg.exceptions.InternalClientError)
"""The errors of a database that is away, or not set up yet. The relay waits then. asyncpg raises the last one for a
session that the server has ended in an idle transaction."""

_scheme = re.compile(r"postgres(ql)?(\+\w+)?://").match


def checked_url(url: str) -> str:
    """The URL, if it is one of PostgreSQL; otherwise `ConfigError`, which does not show it."""
    if not _scheme(url):
        raise ConfigError(
            "the outbox's database must be a URL like postgresql://user:password@host:5432/name, or sqlite:////PATH"
        )
    return url


@asynccontextmanager
async def connected(url: str, timeout_s: float | None = None) -> AsyncIterator[asyncpg.Connection]:
    """A connection; raises one of `TROUBLE`, or `ConfigError`. `timeout_s`: for one command, `COMMAND_TIMEOUT_S` by
    default."""
    checked_url(url)
    plain = re.sub(r"^(postgres(?:ql)?)\+\w+://", r"\1://", url)  # as SQLAlchemy writes it
    try:
        # Of several hosts in the URL the one that may be written to: after a failover that is another.
        connection = await asyncpg.connect(
            plain,
            timeout=CONNECT_TIMEOUT_S,
            command_timeout=timeout_s or COMMAND_TIMEOUT_S,
            target_session_attrs="primary",
        )
    except asyncpg.exceptions.ClientConfigurationError as error:
        raise ConfigError(f"the outbox's database: {describe(error, url)}") from None
    except ValueError:  # a port that is no number, a host in broken brackets
        raise ConfigError("the outbox's database: the URL can't be read") from None
    try:
        await connection.execute(
            f"{database_session.SET}; {database_session.SETTINGS.format(database_session.VANISHED)}"
        )
        yield connection
    finally:
        with suppress(*TROUBLE):
            await connection.close(timeout=CLOSE_TIMEOUT_S)  # one that does not answer is given up


def describe(error: BaseException, url: str = "", table: str = DEFAULT) -> str:
    """The error in one line, without any part of the URL. Further lines of PostgreSQL may show values."""
    remedy = f"; `{checked(OutboxTable.of(table))}` says what helps" if is_missing(error) else ""
    return f"{clean.without(clean.describe(error), url)}{remedy}"


def is_missing(error: BaseException) -> bool:
    """Whether a table is not there."""
    return isinstance(error, asyncpg.UndefinedTableError)


async def create_tables(url: str, table: str = DEFAULT, *, notify: bool = True) -> None:
    """Create missing tables of the outbox. `notify`: with the trigger that wakes relays; otherwise an existing one is
    removed."""
    statements = OutboxTable.of(table).statements(notify=notify)
    async with connected(url) as connection, connection.transaction():
        await connection.execute(ONE_MAKES)
        for statement in statements:
            await connection.execute(statement)


async def replay(url: str, namespace: str, table: str = DEFAULT, *, limit: int | None = None) -> int:
    """Move dead letters back into the outbox, the oldest first, at most `limit`; returns how many.

    Each keeps its time and its attempts, so a row that fails again has a higher count. Rows that are set aside
    meanwhile are left alone. `ConfigError` where somebody has a table locked, or some of these rows: it says who.
    """
    where, done = OutboxTable.of(table), 0
    async with connected(url) as connection:
        await connection.execute(f"SET lock_timeout = '{table_locks.LONGEST}'")
        try:
            last = await connection.fetchval(f"SELECT max(id) FROM {where.dead} WHERE namespace = $1", namespace) or 0
            for sql in (f"{_REPLAY} SKIP LOCKED{_BACK}", f"{_REPLAY}{_BACK}"):  # those that somebody has, at last
                while limit is None or done < limit:
                    at_once = REPLAYED_AT_ONCE if limit is None else min(REPLAYED_AT_ONCE, limit - done)
                    moved = await _moved(connection, sql.format(t=where, limit=at_once), namespace, last)
                    done += moved
                    if not moved:
                        break
            if (limit is None or done < limit) and await connection.fetchval(_LEFT.format(t=where), namespace, last):
                raise ConfigError(f"{done} rows are back, and something keeps others in the table of the dead")
        except table_locks.LOCKED:
            if by := await _in_the_way(connection, where, namespace):
                there = f"{done} rows are back, and the others are not" if done else "no row can be brought back"
                raise ConfigError(str(table_locks.finding("locks", where.dead, by, there))) from None
            raise
        return done


async def _moved(connection: asyncpg.Connection, sql: str, namespace: str, last: int) -> int:
    async with connection.transaction():
        moved, back = await connection.fetchrow(sql, namespace, last)
        if moved != back:
            raise ConfigError("a trigger keeps rows out of the outbox: they stay in the table of the dead")
    return int(moved)


async def _in_the_way(connection: asyncpg.Connection, table: OutboxTable, namespace: str) -> list[LockHolder]:
    """Who has one of the tables locked, or rows that were set aside."""
    for name in (table.dead, table.rows):
        if by := await table_locks.holders(connection, name):
            return [one._replace(does=f"{one.does} ({name})") for one in by]
    return await table_locks.holders_of_rows(connection, table.dead, "namespace = $1", namespace)


async def dead_elsewhere(url: str, namespace: str, table: str = DEFAULT) -> list[str]:
    """The other namespaces that have dead letters."""
    where = OutboxTable.of(table)
    async with connected(url) as connection:
        found = await connection.fetch(f"SELECT DISTINCT namespace FROM {where.dead} WHERE namespace <> $1", namespace)
        return sorted(row["namespace"] for row in found)


_LEFT: Final = "SELECT EXISTS (SELECT FROM {t.dead} WHERE namespace = $1 AND id <= $2)"
_REPLAY: Final = """\
WITH again AS (
    DELETE FROM {t.dead} WHERE id IN (
        SELECT id FROM {t.dead} WHERE namespace = $1 AND id <= $2 ORDER BY id LIMIT {limit} FOR UPDATE"""
_BACK: Final = """)
    RETURNING id, command, created_at, attempts),
back AS (
    INSERT INTO {t.rows} (namespace, command, created_at, attempts)
    SELECT $1, command, created_at, attempts FROM again ORDER BY id RETURNING 1)
SELECT (SELECT count(*) FROM again), (SELECT count(*) FROM back)"""
