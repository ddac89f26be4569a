"""Records of L2 that are whole, and that this node takes for a miss: stored by another version of their type's policy,
or not to be decrypted here."""

from __future__ import annotations

from cachebus.base.clock import Clock
from cachebus.base.log import logger
from cachebus.observe import Counters
from cachebus.values.cipher import NotDecrypted

TELL_EVERY_S = 60.0
_MOST = 4096


class UnreadableLog:
    """Those of one node: counted; what was not decrypted is told once a minute for each type and reason, and remembered
    for `health()`. Another version is told to nobody: while a new release is rolled out it is in order."""

    def __init__(self, clock: Clock, counters: Counters) -> None:
        self._clock = clock
        self._counters = counters
        self._last: tuple[float, str] | None = None
        self._told_s: dict[tuple[str, str], float] = {}

    def note_other_version(self) -> None:
        """A record of another version was met."""
        self._counters.records_of_other_versions += 1

    def note_not_decrypted(self, error: NotDecrypted, data_type: str) -> None:
        """A record of this type was not decrypted, or not believed as it is not encrypted."""
        self._counters.records_not_decrypted += 1
        now_s, why = self._clock(), str(error)
        self._last = now_s, why
        if now_s - self._told_s.get((data_type, why), float("-inf")) < TELL_EVERY_S:
            return
        if len(self._told_s) >= _MOST:
            self._told_s.clear()
        self._told_s[data_type, why] = now_s
        logger.warning("a {} in L2 counts as absent: {}", data_type, why)

    def lately(self) -> list[str]:
        """What was not decrypted in the last minute, in words."""
        if self._last is None or self._last[0] <= self._clock() - TELL_EVERY_S:
            return []
        return [f"what lies in L2 was not decrypted in the last minute: {self._last[1]}; values are loaded instead"]
