"""Dead letters of the slot, in a table in the same database."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Final

from cachebus.consumers.cdc.slot import locks
from cachebus.consumers.cdc.slot.storage import DEAD, Swallowed
from cachebus.consumers.worker import table_locks
from cachebus.consumers.worker.dead import DeadLetter

if TYPE_CHECKING:
    import asyncpg

PUT: Final = f"""
INSERT INTO {DEAD} (slot, source, payload, digest, reason, attempts) VALUES ($1, $2, $3, $4, $5, $6)
ON CONFLICT (slot, source, digest) DO UPDATE SET
  attempts = {DEAD}.attempts + 1, reason = excluded.reason, at = now()
RETURNING digest
"""
COUNT: Final = f"SELECT count(*) FROM (SELECT FROM {DEAD} WHERE slot = $1 LIMIT $2) AS letters"
SOME: Final = f"SELECT EXISTS (SELECT FROM {DEAD} WHERE slot = $1 AND at > now() - make_interval(secs => $2))"
COUNTED: Final = 100_000
"""No more are counted."""


class TableOfDead:
    """Keeps dead letters. A letter that comes again, as its change does after a crash, counts one attempt more."""

    def __init__(self, connection: asyncpg.Connection, slot: str) -> None:
        self._connection = connection
        self._slot = slot
        self.refusals = table_locks.LockRefusals()
        """What was not kept, since the table was locked."""

    async def put(self, letters: Sequence[DeadLetter]) -> None:
        """Keep these letters: they are committed when this returns. `Swallowed` if not all are kept. Raises the
        driver's errors."""
        rows = []
        for one in letters:
            text = one.payload.decode("utf-8", "backslashreplace").replace("\0", "\\0")
            digest = hashlib.md5(text.encode(), usedforsecurity=False).hexdigest()
            rows.append((self._slot, one.source, text, digest, one.reason, one.attempts))
        try:
            async with self._connection.transaction():
                kept = await self._connection.fetchmany(PUT, rows)
                if len(kept) < len(rows):
                    raise Swallowed(DEAD)
            self.refusals.passed()
        except locks.LOCKED:
            self.refusals.refused()
            raise

    async def count(self) -> int:
        """How many letters there are, as far as they are counted."""
        return int(await self._connection.fetchval(COUNT, self._slot, COUNTED))

    async def has_some(self, within_s: float) -> bool:
        """Whether some were kept, or tried again, in the last `within_s` seconds."""
        return bool(await self._connection.fetchval(SOME, self._slot, within_s))


def trial(slot: str) -> list[tuple[str, Any]]:
    """A write to try, which is rolled back."""
    return 2 * [(PUT, (slot, "trial", "", "trial", "", 1))]
