"""An outbox to test with: its tables, rows written by hand, and a relay that runs beside the test."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from typing import Any

import asyncpg

from cachebus import Settings
from cachebus.consumers.outbox import OutboxRelay, RelayOptions
from tests.support.caches import QUICK

QUICKLY = RelayOptions(poll_interval_s=0.05, hold_s=1.0)


def settings(url: str, **more: Any) -> Settings:
    """Those of the relay of `nodes(url)`."""
    return Settings(**{"url": url, **QUICK, **more})


@asynccontextmanager
async def running(relay: OutboxRelay) -> AsyncIterator[OutboxRelay]:
    """The relay runs meanwhile."""
    task = asyncio.create_task(relay.run())
    try:
        yield relay
        if task.done():
            task.result()
    finally:
        task.cancel()
        with suppress(asyncio.CancelledError):
            await task


async def put(connection: asyncpg.Connection, *commands: str, namespace: str = "cachebus") -> None:
    """Write rows, as anybody can who knows SQL."""
    await connection.executemany(
        "INSERT INTO cachebus_outbox (namespace, command) VALUES ($1, $2)", [(namespace, one) for one in commands]
    )


def invalidation(resource_id: str, **more: Any) -> str:
    """The command for a resource of the type "config" of "acme"."""
    return json.dumps(
        {"op": "invalidate", "tenant_id": "acme", "data_type": "config", "resource_id": resource_id} | more
    )


async def waiting(database: str, namespace: str = "cachebus") -> int:
    """Rows that wait."""
    connection = await asyncpg.connect(database)
    try:
        found: int = await connection.fetchval("SELECT count(*) FROM cachebus_outbox WHERE namespace = $1", namespace)
        return found
    finally:
        await connection.close()
