"""Whether the database has come back with older data, by how far this worker knows its slot to have gone: over all its
connections, also while it stands by. Of what was lost caches may have loaded rows, and nobody tells of these."""

from __future__ import annotations

from contextlib import suppress
from typing import TYPE_CHECKING, Final, NamedTuple

import asyncpg

from cachebus.base.log import logger
from cachebus.consumers.cdc.slot import locks
from cachebus.consumers.cdc.slot.storage import SLOTS, lose

if TYPE_CHECKING:
    from asyncpg import Connection

GONE_BACK: Final = (
    "cdc: the log of {} does not have what was read of it before: the database has come back with older data, or a "
    "failover has lost some; all is let go of that rules name"
)
UNSURE: Final = (
    "cdc: the log of {} is of another timeline, as after a failover: how far others had gone on the one before can't "
    "be known here; all is let go of that rules name"
)
_LOOK: Final = f"""
SELECT (SELECT confirmed_flush_lsn - '0/0'::pg_lsn FROM pg_replication_slots WHERE slot_name = $1)::int8 AS confirmed,
       (s.lsn - '0/0'::pg_lsn)::int8 AS lsn, s.whole,
       CASE WHEN NOT pg_is_in_recovery() THEN left(pg_walfile_name(pg_current_wal_insert_lsn()), 8) END AS timeline
FROM (SELECT) AS one LEFT JOIN {SLOTS} s ON s.slot = $1
"""


CANT_TELL: Final = (locks.LOCKED, asyncpg.UndefinedTableError, asyncpg.InsufficientPrivilegeError)
"""What is raised where what workers remember can't be looked at."""


class HowFar(NamedTuple):
    """How far a slot is."""

    confirmed: int | None
    """Where it is itself; None if there is none."""
    lsn: int | None
    """Where its workers have gone; None if nothing is remembered of it. It only grows."""
    whole: bool | None
    """As `SlotMemory.whole`."""
    timeline: str | None
    """That of the log, which is another one after a failover, or once older data was recovered up to some time."""


class OlderData:
    """What one worker knows of this."""

    def __init__(self, slot: str) -> None:
        self._slot = slot
        self.furthest = 0
        """The furthest that workers are known to have gone."""
        self._timeline: str | None = None
        self._is_own = False
        """Whether it was this worker itself, so that nobody has gone further unseen."""

    async def look(self, connection: Connection) -> HowFar:
        """How far the slot is now."""
        return HowFar(*await connection.fetchrow(_LOOK, self._slot))

    def went(self, lsn: int) -> None:
        """This worker has gone so far."""
        self.furthest = max(self.furthest, lsn)

    async def met_beside(self, connection: Connection) -> bool:
        """As `met`, while another worker has the slot, if it can be told."""
        with suppress(*CANT_TELL):
            return await self.met(connection, await self.look(connection), leads=False)
        return False

    async def met(self, connection: Connection, far: HowFar, *, leads: bool) -> bool:
        """Whether this is older than what is known, which is remembered then before it is forgotten here:

        1. Workers have gone less far than before.
        2. The log is of another timeline, and others have followed the slot: how far they had gone when it began, they
           alone know. So who stands by takes it for older, also while one of them has compared, and goes on.

        What is not made up for yet need not be known for older: all is let go of anyway.
        """
        is_other = None not in (self._timeline, far.timeline) and far.timeline != self._timeline
        unsure = is_other and not (self._is_own and far.lsn == self.furthest)
        has_less = far.lsn is not None and far.lsn < self.furthest
        is_older = far.lsn is not None and bool(far.whole) and (has_less or unsure)
        if is_older:
            if has_less:
                logger.error(GONE_BACK, self._slot)
            else:
                logger.warning(UNSURE, self._slot)
            await lose(connection, self._slot)
        if far.lsn is not None:
            self.furthest, self._is_own = far.lsn, leads
            self._timeline = far.timeline or self._timeline
        return is_older
