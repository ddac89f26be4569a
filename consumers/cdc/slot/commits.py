"""Commits that the log has, and that other sessions may not see yet: they wait for a synchronous standby."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    import asyncpg

RUNNING: Final = """
SELECT coalesce(array_agg(l.transactionid::text), '{}') FROM pg_locks l LEFT JOIN pg_stat_activity a ON a.pid = l.pid
WHERE l.locktype = 'transactionid' AND l.mode = 'ExclusiveLock' AND l.granted
  AND (a.datname IS NULL OR a.datname = current_database())
  AND coalesce(a.state NOT LIKE 'idle in transaction%', true)
"""
"""The transactions that may be about to commit. Each has a lock on its own number until all sessions see it."""


class Commits:
    """Whether all is visible by now that was in the log when it was passed by. Before, it can't be made up for: a cache
    would load, and keep, the old rows again. Nobody tells which transactions those are, so all count that ran then."""

    def __init__(self) -> None:
        self._running: set[str] | None = None
        self._losses = 0

    async def are_unseen(self, connection: asyncpg.Connection, losses: int, *, owed: bool) -> bool:
        """Whether some may be invisible. `owed`: whether anything of the slot is to be made up for; `losses`: how often
        the log was passed by."""
        if not owed:
            self._running = None
            return False
        now = set(await connection.fetchval(RUNNING))
        self._running = now if self._running is None or losses != self._losses else self._running & now
        self._losses = losses
        return bool(self._running)
