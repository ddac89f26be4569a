"""For how long messages wait that are not read yet, of which nobody knows when they were sent."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import NamedTuple

from aiokafka import TopicPartition

from cachebus.base.clock import Clock, monotonic


class _Known(NamedTuple):
    done_s: float
    """What was there at this time is read."""
    end: int
    """Once it is read up to here, all is read that was there at `seen_s`."""
    seen_s: float


class UnreadMessages:
    """The partitions of one worker, over all sessions: what is unread in each came since all before it was read."""

    def __init__(self, clock: Clock = monotonic) -> None:
        self._clock = clock
        self._known: dict[TopicPartition, _Known] = {}

    def waits_s(
        self,
        asked: Collection[TopicPartition],
        positions: Mapping[TopicPartition, int],
        ends: Mapping[TopicPartition, int],
        asked_s: float,
    ) -> dict[TopicPartition, float]:
        """How long the oldest unread message of each of these partitions has waited at most, in seconds; only those
        that have some, or whose leader does not tell.

        `positions`: up to where they are read, as far as that is known. `ends`: where they end, as their leaders told
        when they were asked at `asked_s`. A partition that is new counts from then on.
        """
        found = dict[TopicPartition, float]()
        if not asked:  # between two assignments
            return found
        now_s, before, self._known = self._clock(), self._known, {}
        for one in asked:
            at, end = positions.get(one, -1), ends.get(one)
            known = before.get(one, _Known(asked_s, 0 if end is None else end, asked_s))
            if end is not None and at >= known.end:
                known = _Known(known.seen_s, end, asked_s)
            if end is not None and at >= end:
                known = known._replace(done_s=asked_s)
            else:
                found[one] = max(0.0, now_s - known.done_s)
            self._known[one] = known
        return found
