"""Dead letters of the slot, in a table beside what they came from."""

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


class TableOfDead:
    """Keeps dead letters; one that comes again (its change was told again after a crash) is counted, not doubled."""

    def __init__(self, connection: asyncpg.Connection, slot: str) -> None:
        self._connection = connection
        self._slot = slot

    async def put(self, letters: Sequence[DeadLetter]) -> None:
        """Keep them: committed when this returns; `Swallowed` where not all are. Raises what the driver does."""
        rows = []
        for one in letters:
            text = one.payload.decode("utf-8", "backslashreplace").replace("\0", "\\0")
            digest = hashlib.md5(text.encode(), usedforsecurity=False).hexdigest()
            rows.append((self._slot, one.source, text, digest, one.reason, one.attempts))
        async with self._connection.transaction():
            kept = await self._connection.fetchmany(PUT, rows)
            if len(kept) < len(rows):
                raise Swallowed(DEAD)


def trial(slot: str) -> list[tuple[str, Any]]:
    """What is written there, for nothing."""
    return 2 * [(PUT, (slot, "trial", "", "trial", "", 1))]
