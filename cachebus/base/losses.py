"""Connections that were lost lately: one that ends again and again looks well at each look in between."""

from __future__ import annotations

from collections import Counter, deque
from operator import itemgetter
from typing import Final, NamedTuple

from cachebus.base.clock import Clock

WINDOW_S: Final = 60.0
MANY: Final = 5
"""So many of one server in a minute are no restart, and no failover."""
KEPT: Final = 1_000


class Sent(NamedTuple):
    """A large value that was on its way when its connection was lost."""

    data_type: str
    size_bytes: int

    def __str__(self) -> str:
        return f"a {self.data_type} of {self.size_bytes:,} bytes"


class _Loss(NamedTuple):
    """When and of which server, and why."""

    at_s: float
    where: str
    why: str


class Losses:
    """Those of the last minute, and why the last was one. Those of each server are counted apart: where a whole Cluster
    is out of reach for a moment, each has one."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._lost: deque[_Loss] = deque(maxlen=KEPT)
        self._sent: tuple[float, Sent] | None = None

    def note(self, where: str, why: str) -> None:
        """A connection to this server is lost."""
        self._lost.append(_Loss(self._clock(), where, why))

    def blame(self, sent: Sent) -> None:
        """This was on its way when one was lost."""
        self._sent = self._clock(), sent

    @property
    def trouble(self) -> str:
        """What to say of the server that has the most; "" where those are not many."""
        since_s = self._clock() - WINDOW_S
        recent = [loss for loss in tuple(self._lost) if loss.at_s > since_s]
        where, most = max(Counter(loss.where for loss in recent).items(), key=itemgetter(1), default=("", 0))
        if most < MANY:
            return ""
        why = next(loss.why for loss in reversed(recent) if loss.where == where)
        said = f"{most:,} connections were lost in the last minute, the last one as {why}"
        if self._sent is not None and self._sent[0] > since_s:
            said += f"; {self._sent[1]} was on its way: see proto-max-bulk-len and client-query-buffer-limit"
        return said
