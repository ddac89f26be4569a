"""Dead letters of the slot, in a table beside what they came from."""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import Sequence
from typing import TYPE_CHECKING, Final

from consumers.dead import DeadLetter

if TYPE_CHECKING:
    import asyncpg

TABLE: Final = """
CREATE TABLE IF NOT EXISTS cachebus_cdc_dead (
  id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY, slot text NOT NULL, source text NOT NULL,
  payload text NOT NULL, digest text NOT NULL, reason text NOT NULL, attempts int NOT NULL,
  at timestamptz NOT NULL DEFAULT now(), UNIQUE (slot, source, digest))
"""
PUT: Final = """
INSERT INTO cachebus_cdc_dead (slot, source, payload, digest, reason, attempts) VALUES ($1, $2, $3, $4, $5, $6)
ON CONFLICT (slot, source, digest) DO UPDATE SET
  attempts = cachebus_cdc_dead.attempts + 1, reason = excluded.reason, at = now()
"""


class TableOfDead:
    """Keeps dead letters; one that comes again (its change was told again after a crash) is counted, not doubled."""

    def __init__(self, connection: asyncpg.Connection, slot: str, busy: asyncio.Lock) -> None:
        self._busy = busy
        self._connection = connection
        self._slot = slot

    async def put(self, letters: Sequence[DeadLetter]) -> None:
        """Keep them: committed when this returns. Raises what the driver does."""
        rows = []
        for one in letters:
            text = one.payload.decode("utf-8", "backslashreplace").replace("\0", "\\0")
            digest = hashlib.md5(text.encode(), usedforsecurity=False).hexdigest()
            rows.append((self._slot, one.source, text, digest, one.reason, one.attempts))
        async with self._busy:
            await self._connection.executemany(PUT, rows)
