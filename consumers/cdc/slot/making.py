"""Makes the slot. The server waits with that until all transactions have ended that had written as it began."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from contextlib import AbstractAsyncContextManager, suppress
from typing import TYPE_CHECKING, Final

from cachebus.consumers.cdc.slot.commits import OpenTransaction, ended_by, named
from cachebus.consumers.cdc.slot.slot import FOLLOWED, Hindrance, made_by
from cachebus.consumers.worker.clean import clean
from cachebus.consumers.worker.transactions import literal

if TYPE_CHECKING:
    import asyncpg

AT_ONCE_S: Final = 0.5
"""It is waited for no longer at a time. Usually it takes milliseconds."""
MAX_S: Final = 30 * 86400.0
WAITS: Final = ". One is being made, for which all transactions that have written must end, in any database: "
OLDEST: Final = """
SELECT l.transactionid::text AS xid, l.pid, p.gid, p.database FROM pg_locks l
LEFT JOIN pg_prepared_xacts p ON p.transaction = l.transactionid
WHERE l.locktype = 'transactionid' AND l.mode = 'ExclusiveLock' AND l.granted
ORDER BY age(l.transactionid) DESC LIMIT 3
"""
"""The oldest of those that it may wait for, of all databases."""
BEGUN: Final = """
SELECT EXISTS (SELECT FROM pg_replication_slots
               WHERE slot_name = $1 AND plugin IS NOT NULL AND confirmed_flush_lsn IS NULL)
"""
"""Whether this worker or another one makes it."""
IN_USE: Final = f"""
WITH used AS (
  SELECT r.slot_name::text AS name, coalesce(r.database::text, '') AS database, r.active OR {FOLLOWED} AS is_used
  FROM pg_replication_slots r
)
SELECT current_setting('max_replication_slots')::int AS most, count(*) AS there,
       (array_agg(name ORDER BY name) FILTER (WHERE NOT is_used))[:3] AS idle,
       (array_agg(name || CASE database WHEN '' THEN '' ELSE ' of the database ' || database END ORDER BY name)
        FILTER (WHERE is_used))[:5] AS used
FROM used
"""


class SlotMaker:
    """Makes a slot over a connection of its own, over several looks if need be. `connected`: how to connect."""

    def __init__(self, slot: str, connected: Callable[[], AbstractAsyncContextManager[asyncpg.Connection]]) -> None:
        self._sql = made_by(slot)
        self._connected = connected
        self._task: asyncio.Task[None] | None = None

    @property
    def is_under_way(self) -> bool:
        """Whether it has begun, and nobody has heard that it is made."""
        return self._task is not None

    async def made(self) -> bool:
        """Begin, or go on for a moment; returns whether it is made. Raises the driver's errors."""
        if self._task is None:
            self._task = asyncio.create_task(self._make(), name="cachebus-cdc-slot")
        await asyncio.wait((self._task,), timeout=AT_ONCE_S)
        if not self._task.done():
            return False
        task, self._task = self._task, None
        task.result()
        return True

    async def stop(self) -> None:
        """Make none. The server forgets one that is not done."""
        task, self._task = self._task, None
        if task is not None:
            task.cancel()
            with suppress(asyncio.CancelledError, Exception):
                await task

    async def _make(self) -> None:
        async with self._connected() as connection:
            await connection.execute("SET lock_timeout = 0")  # it waits for transactions as for locks
            await connection.execute(self._sql, timeout=MAX_S)


async def hindrance_of(
    connection: asyncpg.Connection, slot: str, refused: str, *, is_there: bool, is_under_way: bool
) -> Hindrance:
    """What is in the way of a slot that is to be made. `refused`: what the server has said to this worker;
    `is_under_way`: whether it makes one."""
    if not is_there and (is_under_way or await connection.fetchval(BEGUN, slot)):
        oldest = [OpenTransaction(*row) for row in await connection.fetch(OLDEST)]
        if oldest:
            return Hindrance(f"{WAITS}{named(oldest)}", ended_by(oldest))
    if is_there and not refused:
        return Hindrance()
    row = await connection.fetchrow(IN_USE)
    if row is not None and row["there"] >= row["most"]:
        drop = "".join(f" SELECT pg_drop_replication_slot({literal(name)});" for name in row["idle"] or ())
        unused = f", or drop one that nobody needs (nobody uses these now:{drop})" if drop else ""
        used = f"; {', '.join(row['used'])} {'is' if len(row['used']) == 1 else 'are'} used now" if row["used"] else ""
        why = f". None can be made: all are taken (max_replication_slots = {row['most']}){clean(used)}"
        return Hindrance(why, f"a larger max_replication_slots, and restart the server{unused}")
    return Hindrance(f", and this user may not make it ({refused})" if refused else "")
