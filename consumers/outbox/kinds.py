"""The databases that an outbox may be in, told apart by their URLs."""

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
    """Whether it is one of SQLite's; `ConfigError` for what is no outbox's, which does not show it."""
    kind = url.partition(":")[0].partition("+")[0]
    if kind == "sqlite":
        sqlite_file.path_of(url)
        return True
    if kind in FOLLOWED:
        raise ConfigError(
            f"there is no outbox in {'MySQL' if kind == 'mysql' else 'MariaDB'}: follow its log by Debezium, with "
            "`cachebus worker cdc kafka`"
        )
    postgres.checked_url(url)
    return False


def source_of(url: str, namespace: str, options: RelayOptions) -> Source:
    """The rows of a namespace; `ConfigError`."""
    if is_sqlite(url):
        return sqlite.SqliteOutbox(url, namespace, options)
    return PostgresOutbox(url, namespace, options)


async def create_tables(url: str, table: str = DEFAULT, *, notify: bool = True) -> None:
    """Make the outbox's tables where they are not there yet; `notify`: with the trigger that wakes relays up, else
    without it (SQLite has none). One of `TROUBLE`, `ConfigError`."""
    if is_sqlite(url):
        await sqlite.create_tables(url, table)
    else:
        await postgres.create_tables(url, table, notify=notify)


async def replay(url: str, namespace: str, table: str = DEFAULT, *, limit: int | None = None) -> int:
    """Bring rows that were set aside back into the outbox, the oldest first, at most `limit`; how many came back.

    Each keeps its time and the count of its attempts, so one that is still refused is set aside with a higher count.
    Rows that come to be dead meanwhile are left alone. One of `TROUBLE`, `ConfigError`.
    """
    if is_sqlite(url):
        return await sqlite.replay(url, namespace, table, limit)
    return await postgres.replay(url, namespace, table, limit=limit)


def describe(error: BaseException, url: str) -> str:
    """An error of theirs in a line, without values and secrets."""
    return sqlite_file.describe(error) if is_sqlite(url) else postgres.describe(error, url)
