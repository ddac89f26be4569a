"""Asks the server for a nearer point from which it may begin to decode. Otherwise each peek reads again what was
written since the last such point, up to 15 seconds ago."""

from __future__ import annotations

from typing import Final

import asyncpg

from cachebus.base.clock import monotonic

SHORTEN_BYTES: Final = 1 << 18
"""If each peek must read so much WAL again, the server is asked for a nearer starting point."""
SHORTEN_EVERY_S: Final = 1.0
SHORTEN_MAX_S: Final = 15.0
"""The longest pause between two such requests. The server makes a starting point by itself as often."""
SHORTEN: Final = """
SELECT restart_lsn::text FROM pg_log_standby_snapshot(), pg_replication_slots WHERE slot_name = $1
"""


class NearerStart:
    """The requests of one session for one slot."""

    def __init__(self, connection: asyncpg.Connection, slot: str) -> None:
        self._connection = connection
        self._slot = slot
        self._at = 0
        """Up to where the slot was when it was last asked for."""
        self._from_s, self._every_s = float("-inf"), SHORTEN_EVERY_S
        self._begins = ""
        """From where the server read then."""

    def is_due(self, target: int) -> bool:
        """Whether to ask, now that the slot is at this position."""
        return target - self._at >= SHORTEN_BYTES and monotonic() >= self._from_s

    async def ask(self, target: int) -> bool:
        """Ask for it; returns whether this user may."""
        self._at = target
        try:
            begins = await self._connection.fetchval(SHORTEN, self._slot)
        except (asyncpg.InsufficientPrivilegeError, asyncpg.UndefinedFunctionError):
            return False
        helped, self._begins = begins != self._begins, begins  # it does not while an old transaction is open
        self._every_s = SHORTEN_EVERY_S if helped else min(SHORTEN_MAX_S, 2 * self._every_s)
        self._from_s = monotonic() + self._every_s
        return True
