"""Change a value by what it is: read it, and store what becomes of it, unless others have replaced it meanwhile.

1. The record is read, past L1: what is in memory may be a moment old.
2. L2 takes the new one only in the place of exactly that record. Nothing is locked, and nothing that was replaced
   comes back: not over a `set`, an invalidation or a takeover that came in between.
3. Where it was replaced, all begins anew, after a pause that grows: of those who are in each other's way one is done
   each time.
"""

from __future__ import annotations

import asyncio
import math
import random
from collections.abc import Callable
from typing import NamedTuple

from cachebus.errors import L2Unavailable
from cachebus.reading.fetch import Fetcher, record_of
from cachebus.writing.write import SetRequest, Writer

TRIES_MAX = 64
_PAUSE_S, _PAUSE_MAX_S = 0.001, 0.1


class PresentValue(NamedTuple):
    """A value that L2 has."""

    value: object
    left_s: float | None
    """How long it lives on, in seconds; None: for ever."""


class Exchanger:
    """Changes of values by what they are, of one cache."""

    def __init__(self, fetcher: Fetcher, writer: Writer, *, enabled: bool) -> None:
        self._fetch = fetcher
        self._writer = writer
        self._enabled = enabled

    async def exchange(
        self, request: SetRequest, change: Callable[[PresentValue], PresentValue]
    ) -> PresentValue | None:
        """Store what `change` makes of a value in its place. `request`: the key, its rules and what is replaced with
        it; of value and lifetime nothing.

        Returns what is there now; None where there was nothing, and then nothing is stored. Raises what `change` does,
        and what a `set` does; `L2Unavailable` too where others replace the value again and again.
        """
        key = request.key
        for attempt in range(TRIES_MAX if self._enabled else 0):
            seen = await self._fetch.read_one(key, None, admit=False)
            record = record_of(seen)
            if record is None or record.not_found:
                return None
            left_s = record.expires_ms / 1000 - self._fetch.node.server_now_s(key.shard) if record.expires_ms else None
            wanted = change(PresentValue(seen[0], left_s))
            ttl_s = math.inf if wanted.left_s is None else wanted.left_s
            stored = await self._writer.set(
                request._replace(value=wanted.value, ttl_s=ttl_s, tags=record.tags, over=record.version)
            )
            if stored.stored:
                return wanted
            await asyncio.sleep(random.random() * min(_PAUSE_S * 2**attempt, _PAUSE_MAX_S))
        if not self._enabled:
            return None
        raise L2Unavailable(f"a {key.family.data_type} is replaced by others again and again: nothing was changed")
