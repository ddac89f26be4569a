"""Dead letters of the slot, in a table in the same database."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Final

from cachebus.consumers.cdc.slot.storage import DEAD, Swallowed
from cachebus.consumers.worker.dead import DeadLetter

if TYPE_CHECKING:
    import asyncpg

PUT: Final = f"""
INSERT INTO {DEAD} (slot, source, payload, digest, reason, attempts) VALUES ($1, $2, $3, $4, $5, $6)
ON CONFLICT (slot, source, digest) DO UPDATE SET
  attempts = {DEAD}.attempts + 1, reason = excluded.reason, at = now()
RETURNING digest
"""
NO_LONGER: Final = "SET LOCAL lock_timeout = '1s'"
"""A lock on the table is waited for no longer than this, so that it holds up nothing else."""


class TableOfDead:
    """Keeps dead letters. A letter that comes again, as its change does after a crash, counts one attempt more."""

    def __init__(self, connection: asyncpg.Connection, slot: str) -> None:
        self._connection = connection
        self._slot = slot

    async def put(self, letters: Sequence[DeadLetter]) -> None:
        """Keep these letters: they are committed when this returns. `Swallowed` if not all are kept. Raises the
        driver's errors."""
        rows = []
        for one in letters:
            text = one.payload.decode("utf-8", "backslashreplace").replace("\0", "\\0")
            digest = hashlib.md5(text.encode(), usedforsecurity=False).hexdigest()
            rows.append((self._slot, one.source, text, digest, one.reason, one.attempts))
        async with self._connection.transaction():
            await self._connection.execute(NO_LONGER)
            kept = await self._connection.fetchmany(PUT, rows)
            if len(kept) < len(rows):
                raise Swallowed(DEAD)


def trial(slot: str) -> list[tuple[str, Any]]:
    """A write to try, which is rolled back."""
    return 2 * [(PUT, (slot, "trial", "", "trial", "", 1))]
