"""Connects to the database of a slot: one place for its worker and for who replays its dead letters."""

from __future__ import annotations

import asyncio
import os
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from typing import Final

import asyncpg

from cachebus.consumers.cdc.slot import locks
from cachebus.consumers.cdc.slot.own_tables import settle
from cachebus.consumers.cdc.slot.slot import LONGEST_NAME
from cachebus.consumers.worker import clean, database_session, table_locks
from cachebus.errors import ConfigError

CONNECT_S: Final = 10.0
CLOSE_S: Final = 2.0
COMMAND_TIMEOUT_S: Final = 30.0
"""Of quick commands. Peeks and advances read the log, which may take longer: see `PostgresSource.longer`."""
# What is written waits for no standby, which may be away: the slot itself goes on without one. It goes behind a change
# only once its new position is stored, after all else that is kept of the change: what has that has all.
SESSION: Final = database_session.SETTINGS.format(
    f"""
  ('statement_timeout', '0'), ('transaction_timeout', '0'), {database_session.VANISHED},
  ('client_connection_check_interval', '5000'), ('synchronous_commit', 'local'), ('lock_timeout', $2),
  ('idle_in_transaction_session_timeout', $1), ('idle_session_timeout', $1)"""
)
OUT_OF_REACH: Final = (
    *(OSError, TimeoutError, asyncpg.PostgresError, asyncpg.InterfaceError),
    asyncpg.InternalClientError,  # some of its calls raise this on a connection that has gone
    locks.TableLocked,
)
REFUSES: Final = (asyncpg.InvalidAuthorizationSpecificationError, asyncpg.InvalidCatalogNameError)


@asynccontextmanager
async def connected(
    url: str, slot: str, idle_ms: int = 0, *, command_timeout_s: float | None = None
) -> AsyncIterator[asyncpg.Connection]:
    """A connection that sees the worker's own tables. `idle_ms`: how long it may be idle; 0 is for ever. Raises one of
    `OUT_OF_REACH`, or `ConfigError`, which does not show the URL."""
    try:
        async with asyncio.timeout(CONNECT_S):
            connection = await asyncpg.connect(
                url,
                command_timeout=command_timeout_s or COMMAND_TIMEOUT_S,
                target_session_attrs="primary",  # of several hosts: after a failover that is another
                server_settings={"application_name": f"cachebus-cdc {slot}"[:LONGEST_NAME]},
            )
    except (asyncpg.ClientConfigurationError, ValueError):
        raise ConfigError("the database's URL can't be read") from None
    try:
        await connection.execute(database_session.SET)
        await connection.fetch(SESSION, str(idle_ms), table_locks.LONGEST)
        await settle(connection, slot)
        yield connection
    finally:
        # Not in order where the server hangs: what matters is that the lock on the slot goes with the connection.
        # The driver's own time-out leaves out that it waits until a command that timed out is cancelled.
        with suppress(*OUT_OF_REACH):
            async with asyncio.timeout(CLOSE_S):
                await connection.close()


def describe(error: BaseException) -> str:
    """One of `OUT_OF_REACH`, in a line without values and secrets."""
    if isinstance(error, REFUSES):
        return f"{type(error).__name__}: the server refuses this user, or has no such database"
    if isinstance(error, locks.TableLocked):
        return str(error)
    if isinstance(error, socket.gaierror):
        return "gaierror: nobody knows a host of this name"
    if isinstance(error, OSError):
        return f"{type(error).__name__}: {os.strerror(error.errno) if error.errno else 'no connection'}"
    return clean.describe(error)
