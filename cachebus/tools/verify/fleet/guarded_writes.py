"""Writes of one node behind a write guard. Some complete; some are abandoned after their commit, as by a killed
process, which is the worst moment."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from random import Random
from typing import Final

from cachebus import Cache, CacheBusError
from cachebus.base.clock import Clock
from cachebus.tools.verify.fleet.history_log import VERB_SHIFT, WAITED, HistoryLog
from cachebus.tools.verify.fleet.items import SourceItem
from cachebus.tools.verify.fleet.setup import DB_TIMEOUT_S, guard_max_s
from cachebus.tools.verify.fleet.source_of_truth import RECENT, SourceOfTruth

GUARDED: Final = 10
"""The verb of such a write in the history log."""
ABANDONED_SHARE: Final = 0.6
"""The share of writes that are abandoned after their commit."""


class _Abandoned(Exception):
    """Ends the guarded block without its end being reached, as a failure would."""


class GuardedWriter:
    """Writes items behind guards."""

    def __init__(
        self, caches: Sequence[Cache], source: SourceOfTruth, log: HistoryLog, rng: Random, clock: Clock, bound_s: float
    ) -> None:
        self._caches, self._source, self._log, self._rng, self._clock = caches, source, log, rng, clock
        self._time_s = guard_max_s(bound_s)

    async def write(
        self, item: SourceItem, read: Callable[[SourceItem], Awaitable[None]], *, abandon_after_s: float | None = None
    ) -> bool:
        """Write an item behind a guard; returns whether the write completed.

        `read`: reads an item on this node. `abandon_after_s`: read, commit and abandon so long after the guard began;
        without it, all that is random.
        """
        waits, called_s, place = self._rng.random() < 0.3, self._clock(), -1
        code = item.number | (GUARDED | (WAITED if waits else 0)) << VERB_SHIFT
        version, ends_s = 0, 0.0
        guard = self._caches[item.cache_index].write_guard(
            [(item.data_type, item.resource_id, *item.contexts)],
            item.tenant,
            db_timeout_s=DB_TIMEOUT_S,
            timeout_s=self._time_s,
            wait="nodes" if waits else None,
        )
        try:
            async with guard:
                entered_s = self._clock()
                ends_s = entered_s + self._time_s
                place = self._log.add(code, 0, called_s, 0.0, ends_s, 0, 0)
                chance = abandon_after_s is None
                await asyncio.sleep(
                    self._rng.uniform(0.0, DB_TIMEOUT_S / 3) if abandon_after_s is None else abandon_after_s
                )
                if not chance or self._rng.random() < 0.7:
                    await read(item)  # just before the commit: no level may keep what it loads
                if chance:
                    await asyncio.sleep(self._rng.uniform(0.0, DB_TIMEOUT_S / 8))
                if self._clock() > entered_s + DB_TIMEOUT_S / 2:
                    raise _Abandoned  # the database has ended the transaction
                version = self._source.raise_version(item.number)
                if self._clock() > entered_s + DB_TIMEOUT_S:
                    ends_s = 0.0  # no database would commit so late: only the invalidation itself promises anything
                self._log.change(place, code, version, called_s, 0.0, ends_s, 0, 0)
                await asyncio.sleep(self._rng.uniform(0.0, DB_TIMEOUT_S / 3))
                self._source.recent[self._rng.randrange(RECENT)] = item.number
                if not chance or self._rng.random() < ABANDONED_SHARE:
                    raise _Abandoned
        except (_Abandoned, CacheBusError):
            return False
        receipt = guard.receipt
        self._log.change(place, code, version, called_s, self._clock(), ends_s, int(receipt.epoch, 16), receipt.seq)
        return True
