"""The relay's connection to PostgreSQL, and the outbox's tables there."""

from __future__ import annotations

import re
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from typing import Final

import asyncpg

from cachebus.consumers.worker import clean, database_session
from cachebus.errors import ConfigError
from cachebus.producers.outbox.table import DEFAULT, OutboxTable

CONNECT_TIMEOUT_S: Final = 5.0
COMMAND_TIMEOUT_S: Final = 10.0
CLOSE_TIMEOUT_S: Final = 1.0
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
async def connected(url: str) -> AsyncIterator[asyncpg.Connection]:
    """A connection; raises one of `TROUBLE`, or `ConfigError`."""
    checked_url(url)
    plain = re.sub(r"^(postgres(?:ql)?)\+\w+://", r"\1://", url)  # as SQLAlchemy writes it
    try:
        # Of several hosts in the URL the one that may be written to: after a failover that is another.
        connection = await asyncpg.connect(
            plain, timeout=CONNECT_TIMEOUT_S, command_timeout=COMMAND_TIMEOUT_S, target_session_attrs="primary"
        )
    except asyncpg.exceptions.ClientConfigurationError as error:
        raise ConfigError(f"the outbox's database: {describe(error, url)}") from None
    except ValueError:  # a port that is no number, a host in broken brackets
        raise ConfigError("the outbox's database: the URL can't be read") from None
    try:
        await connection.execute(database_session.SET)
        yield connection
    finally:
        with suppress(*TROUBLE):
            await connection.close(timeout=CLOSE_TIMEOUT_S)  # one that does not answer is given up


def describe(error: BaseException, url: str = "") -> str:
    """The error in one line, without any part of the URL. Further lines of PostgreSQL may show values."""
    remedy = "; `cachebus worker outbox --create-table` makes it" if _is_missing(error) else ""
    return f"{clean.without(clean.describe(error), url)}{remedy}"


def _is_missing(error: BaseException) -> bool:
    return isinstance(error, asyncpg.UndefinedTableError)


async def create_tables(url: str, table: str = DEFAULT, *, notify: bool = True) -> None:
    """Create missing tables of the outbox. `notify`: with the trigger that wakes relays; otherwise an existing one is
    removed."""
    statements = OutboxTable.of(table).statements(notify=notify)
    async with connected(url) as connection, connection.transaction():
        # Two who make them at once would see each other's half.
        await connection.execute("SELECT pg_advisory_xact_lock(hashtext('cachebus_outbox'))")
        for statement in statements:
            await connection.execute(statement)


async def replay(url: str, namespace: str, table: str = DEFAULT, *, limit: int | None = None) -> int:
    """Move dead letters back into the outbox, the oldest first, at most `limit`; returns how many.

    Each keeps its time and its attempts, so a row that fails again has a higher count. Rows that are set aside
    meanwhile are left alone.
    """
    where = OutboxTable.of(table)
    async with connected(url) as connection:
        last = await connection.fetchval(f"SELECT max(id) FROM {where.dead} WHERE namespace = $1", namespace) or 0
        done = 0
        while limit is None or done < limit:
            at_once = REPLAYED_AT_ONCE if limit is None else min(REPLAYED_AT_ONCE, limit - done)
            async with connection.transaction():
                moved, back = await connection.fetchrow(_REPLAY.format(t=where, limit=at_once), namespace, last)
                if moved != back:
                    raise ConfigError("a trigger keeps rows out of the outbox: they stay in the table of the dead")
            done += moved
            if not moved:
                break
        return done


async def dead_elsewhere(url: str, namespace: str, table: str = DEFAULT) -> list[str]:
    """The other namespaces that have dead letters."""
    where = OutboxTable.of(table)
    async with connected(url) as connection:
        found = await connection.fetch(f"SELECT DISTINCT namespace FROM {where.dead} WHERE namespace <> $1", namespace)
        return sorted(row["namespace"] for row in found)


_REPLAY: Final = """\
WITH again AS (
    DELETE FROM {t.dead} WHERE id IN (
        SELECT id FROM {t.dead} WHERE namespace = $1 AND id <= $2 ORDER BY id LIMIT {limit} FOR UPDATE SKIP LOCKED)
    RETURNING id, command, created_at, attempts),
back AS (
    INSERT INTO {t.rows} (namespace, command, created_at, attempts)
    SELECT $1, command, created_at, attempts FROM again ORDER BY id RETURNING 1)
SELECT (SELECT count(*) FROM again), (SELECT count(*) FROM back)"""
