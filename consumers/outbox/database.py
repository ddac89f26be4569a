"""The relay's side of PostgreSQL: rows are taken in a transaction, and gone when that commits."""

from __future__ import annotations

import re
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager, suppress
from datetime import datetime
from typing import Final, NamedTuple

import asyncpg

from cachebus.errors import ConfigError
from producers.outbox.table import DEFAULT, OutboxTable

CONNECT_TIMEOUT_S: Final = 5.0
COMMAND_TIMEOUT_S: Final = 10.0
CLOSE_TIMEOUT_S: Final = 1.0
REPLAYED_AT_ONCE: Final = 1000
COUNTED: Final = 10_000
"""Rows that are counted one by one; of more there is an estimate."""

TROUBLE: Final = (OSError, asyncpg.PostgresError, asyncpg.InterfaceError, asyncpg.exceptions.InternalClientError)
"""What comes of a database that is away, or not set up yet: it is waited for. The last is what asyncpg makes of a
session that was ended by the server while a transaction was idle."""

_scheme = re.compile(r"postgres(ql)?(\+\w+)?://").match


class OutboxRow(NamedTuple):
    """A row that is taken."""

    id: int
    command: str
    attempts: int
    created_at: datetime
    age_s: float
    """Since it was written, or was due, by the database's clock."""


class DeadRow(NamedTuple):
    """One that can't be applied, with the reason."""

    row: OutboxRow
    reason: str


class Backlog(NamedTuple):
    """How many rows wait, and how long the oldest has."""

    rows: int
    oldest_s: float


class RelayConnection:
    """One connection to the database, looking at one namespace of one table."""

    def __init__(self, connection: asyncpg.Connection, table: OutboxTable, namespace: str) -> None:
        self._connection = connection
        self._table = table
        self._namespace = namespace

    @asynccontextmanager
    async def taken(self, limit: int) -> AsyncIterator[list[OutboxRow]]:
        """At most `limit` of the oldest rows that nobody else has in hand. They are gone when the block is left, and
        as they were when it fails, or the process or its connection does."""
        async with self._connection.transaction(isolation="read_committed", readonly=False):
            found = await self._connection.fetch(_TAKE.format(t=self._table, limit=int(limit)), self._namespace)
            yield [OutboxRow(*row) for row in found]

    async def put_back(self, rows: Sequence[OutboxRow], seconds: float) -> None:
        """Let these, which are taken, come again after so long: others' rows go first meanwhile."""
        if rows:
            await self._connection.execute(
                _PUT_BACK.format(t=self._table),
                self._namespace,
                [row.id for row in rows],
                [row.command for row in rows],
                [row.attempts for row in rows],
                [row.created_at for row in rows],
                seconds,
            )

    async def bury(self, dead: Sequence[DeadRow]) -> None:
        """Keep these, which are taken, in the table of the dead."""
        if dead:
            rows = [row for row, _ in dead]
            await self._connection.execute(
                _BURY.format(t=self._table),
                self._namespace,
                [row.id for row in rows],
                [row.command for row in rows],
                [reason for _, reason in dead],
                [row.attempts + 1 for row in rows],
                [row.created_at for row in rows],
            )

    async def backlog(self) -> Backlog:
        """What waits now: counted up to `COUNTED`, estimated by the ids beyond."""
        count, oldest_s, span = await self._connection.fetchrow(_LOOK.format(t=self._table), self._namespace)
        return Backlog(count if count <= COUNTED else max(count, span), oldest_s or 0.0)


@asynccontextmanager
async def connected(
    url: str, table: OutboxTable, namespace: str, *, idle_limit_s: float, on_rows: Callable[[], None]
) -> AsyncIterator[RelayConnection]:
    """A connection, told of new rows (and of its own end) by `on_rows`; one of `TROUBLE`, `ConfigError`.

    `idle_limit_s`: after so long without a word from this process the database frees the rows that it has in hand.
    """
    connection = await _connect(url)
    try:
        await connection.execute(_SESSION.format(idle_limit_ms=int(idle_limit_s * 1000)))
        connection.add_termination_listener(lambda _: on_rows())
        await connection.add_listener(table.channel, lambda *_: on_rows())
        yield RelayConnection(connection, table, namespace)
    finally:
        with suppress(*TROUBLE):
            await connection.close(timeout=CLOSE_TIMEOUT_S)  # one that does not answer is given up


def checked_url(url: str) -> str:
    """The URL, if it looks like one of PostgreSQL's; `ConfigError`, which does not show it."""
    if not _scheme(url):
        raise ConfigError("the outbox's database must be a URL like postgresql://user:password@host:5432/name")
    return url


async def _connect(url: str) -> asyncpg.Connection:
    checked_url(url)
    plain = re.sub(r"^(postgres(?:ql)?)\+\w+://", r"\1://", url)  # as SQLAlchemy writes it
    try:
        # Of several hosts in the URL the one that may be written to: after a failover that is another.
        return await asyncpg.connect(
            plain, timeout=CONNECT_TIMEOUT_S, command_timeout=COMMAND_TIMEOUT_S, target_session_attrs="primary"
        )
    except asyncpg.exceptions.ClientConfigurationError as error:
        raise ConfigError(f"the outbox's database: {told(error)}") from None
    except ValueError:  # a port that is no number, a host in broken brackets
        raise ConfigError("the outbox's database: the URL can't be read") from None


def told(error: BaseException) -> str:
    """What went wrong in a line: further lines of PostgreSQL's may show values."""
    name, lines = type(error).__name__, str(error).splitlines()
    remedy = "; `cachebus worker outbox --create-table` makes it" if _is_missing(error) else ""
    return f"{name}: {lines[0]}{remedy}" if lines else name


def _is_missing(error: BaseException) -> bool:
    return isinstance(error, asyncpg.UndefinedTableError)


async def create_tables(url: str, table: str = DEFAULT, *, notify: bool = True) -> None:
    """Make the outbox's tables where they are not there yet; `notify`: with the trigger that wakes relays up, else
    without it."""
    statements = OutboxTable.of(table).statements(notify=notify)
    connection = await _connect(url)
    try:
        async with connection.transaction():
            # Two who make them at once would see each other's half.
            await connection.execute("SELECT pg_advisory_xact_lock(hashtext('cachebus_outbox'))")
            for statement in statements:
                await connection.execute(statement)
    finally:
        await connection.close()


async def replay(url: str, namespace: str, table: str = DEFAULT, *, limit: int | None = None) -> int:
    """Bring rows that were set aside back into the outbox, the oldest first, at most `limit`; how many came back.

    Each keeps its time and the count of its attempts, so one that is still refused is set aside with a higher count.
    Rows that come to be dead meanwhile are left alone.
    """
    where = OutboxTable.of(table)
    connection = await _connect(url)
    try:
        last = await connection.fetchval(f"SELECT max(id) FROM {where.dead} WHERE namespace = $1", namespace) or 0
        done = 0
        while limit is None or done < limit:
            at_once = REPLAYED_AT_ONCE if limit is None else min(REPLAYED_AT_ONCE, limit - done)
            moved = await connection.fetchval(_REPLAY.format(t=where, limit=at_once), namespace, last)
            done += moved
            if not moved:
                break
        return done
    finally:
        await connection.close()


# A relay reads the head of an index, however the table's statistics look to the planner: they are made when the table
# happens to be full, or empty.
_SESSION: Final = """\
SET application_name = 'cachebus outbox'; SET idle_in_transaction_session_timeout = {idle_limit_ms};
SET enable_seqscan = off; SET enable_bitmapscan = off"""

_DUE: Final = "namespace = $1 AND (not_before IS NULL OR not_before <= clock_timestamp())"

# One statement locks and removes: what others have in hand is skipped, and the rows are read once. There is no
# watermark: a row is found whenever its transaction commits, whatever its id.
_TAKE: Final = f"""\
DELETE FROM {{t.rows}} WHERE namespace = $1 AND ctid = ANY (ARRAY(
    SELECT ctid FROM {{t.rows}} WHERE {_DUE} ORDER BY namespace, id LIMIT {{limit}} FOR UPDATE SKIP LOCKED))
RETURNING id, command, attempts, created_at,
    extract(epoch FROM clock_timestamp() - greatest(created_at, not_before))::float8 AS age_s"""

_PUT_BACK: Final = """\
INSERT INTO {t.rows} (namespace, id, command, attempts, created_at, not_before) OVERRIDING SYSTEM VALUE
SELECT $1, *, clock_timestamp() + make_interval(secs => $6)
FROM unnest($2::bigint[], $3::text[], $4::int[], $5::timestamptz[])"""

_BURY: Final = """\
INSERT INTO {t.dead} (namespace, row_id, command, reason, attempts, created_at)
SELECT $1, * FROM unnest($2::bigint[], $3::text[], $4::text[], $5::int[], $6::timestamptz[])"""

_LOOK: Final = f"""\
SELECT count(*), extract(epoch FROM clock_timestamp() - min(greatest(created_at, not_before)))::float8,
    (SELECT max(id) - min(id) + 1 FROM {{t.rows}} WHERE namespace = $1)
FROM (SELECT created_at, not_before FROM {{t.rows}} WHERE {_DUE} ORDER BY namespace, id LIMIT {COUNTED + 1}) AS head"""

_REPLAY: Final = """\
WITH again AS (
    DELETE FROM {t.dead} WHERE id IN (
        SELECT id FROM {t.dead} WHERE namespace = $1 AND id <= $2 ORDER BY id LIMIT {limit} FOR UPDATE SKIP LOCKED)
    RETURNING id, command, created_at, attempts),
back AS (
    INSERT INTO {t.rows} (namespace, command, created_at, attempts)
    SELECT $1, command, created_at, attempts FROM again ORDER BY id RETURNING 1)
SELECT count(*) FROM back"""
