"""The databases that an outbox may be in, by their URLs."""

from __future__ import annotations

from cachebus.consumers.outbox import database as postgres
from cachebus.consumers.outbox import sqlite, sqlite_file
from cachebus.consumers.outbox.options import RelayOptions
from cachebus.consumers.outbox.postgres import PostgresOutbox
from cachebus.consumers.worker.source import Source
from cachebus.errors import ConfigError
from cachebus.producers.outbox.table import DEFAULT

TROUBLE = (*postgres.TROUBLE, *sqlite_file.TROUBLE)
FOLLOWED = ("mysql", "mariadb")


def is_sqlite(url: str) -> bool:
    """Whether it is a URL of SQLite. `ConfigError` for a URL of neither database, which does not show it."""
    kind = url.partition(":")[0].partition("+")[0]
    if kind == "sqlite":
        sqlite_file.path_of(url)
        return True
    if kind in FOLLOWED:
        raise ConfigError(
            f"there is no outbox in {'MySQL' if kind == 'mysql' else 'MariaDB'}: follow its log by Debezium, with "
            "`cachebus worker cdc --source kafka`"
        )
    postgres.checked_url(url)
    return False


def source_of(url: str, namespace: str, options: RelayOptions) -> Source:
    """The source for the rows of a namespace; `ConfigError`."""
    if is_sqlite(url):
        return sqlite.SqliteOutbox(url, namespace, options)
    return PostgresOutbox(url, namespace, options)


async def create_tables(url: str, table: str = DEFAULT, *, notify: bool = True) -> None:
    """Create missing tables of the outbox. `notify`: with the trigger that wakes relays; otherwise an existing one is
    removed (SQLite has none). Raises one of `TROUBLE`, or `ConfigError`."""
    if is_sqlite(url):
        await sqlite.create_tables(url, table)
    else:
        await postgres.create_tables(url, table, notify=notify)


async def replay(url: str, namespace: str, table: str = DEFAULT, *, limit: int | None = None) -> int:
    """Move dead letters back into the outbox, the oldest first, at most `limit`; returns how many.

    Each keeps its time and its attempts, so a row that fails again has a higher count. Rows that are set aside
    meanwhile are left alone. Raises one of `TROUBLE`, or `ConfigError`, which says who has a table locked, or some of
    these rows; those that are back by then stay there.
    """
    if is_sqlite(url):
        return await sqlite.replay(url, namespace, table, limit)
    return await postgres.replay(url, namespace, table, limit=limit)


async def dead_elsewhere(url: str, namespace: str, table: str = DEFAULT) -> list[str]:
    """The other namespaces that have dead letters. Raises one of `TROUBLE`, or `ConfigError`."""
    if is_sqlite(url):
        return await sqlite.dead_elsewhere(url, namespace, table)
    return await postgres.dead_elsewhere(url, namespace, table)


def is_missing(error: BaseException) -> bool:
    """Whether it says that a table is not there."""
    return postgres.is_missing(error) or sqlite_file.is_missing(error)


def describe(error: BaseException, url: str, table: str = DEFAULT) -> str:
    """An error of the database in one line, without values and secrets."""
    return sqlite_file.describe(error) if is_sqlite(url) else postgres.describe(error, url, table)
