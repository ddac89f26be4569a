"""What a worker says of itself to those who watch it: alive, ready, and if not, why."""

from __future__ import annotations

from typing import Any, Final, NamedTuple

from cachebus.base.clock import Clock, monotonic

STUCK_S: Final = 10.0
"""A loop that has not turned for so long is stuck."""


class Part(NamedTuple):
    """One thing that the worker needs."""

    up: bool
    reason: str
    since_s: float


class Health:
    """Of one worker: `parts` are named at first as down, each with its reason; it is ready when all are up.

    Written by the worker's loop, read by the thread that answers requests.
    """

    def __init__(self, worker: str, parts: tuple[str, ...], clock: Clock = monotonic) -> None:
        self.worker = worker
        self._clock = clock
        self._parts = {part: Part(False, "not connected yet", clock()) for part in parts}
        self._beat_s = clock()
        self.draining = False

    def up(self, part: str) -> None:
        """The part works."""
        if not self._parts[part].up:
            self._parts[part] = Part(True, "", self._clock())

    def note(self, part: str, note: str) -> None:
        """What there is to say of a part that works; "": nothing any more."""
        before = self._parts[part]
        if before.up:
            self._parts[part] = before._replace(reason=note)

    def down(self, part: str, reason: str) -> None:
        """The part does not work; the reason is for people, without secrets."""
        before = self._parts[part]
        self._parts[part] = Part(False, reason, self._clock() if before.up else before.since_s)

    def beat(self) -> None:
        """The worker's loop turns."""
        self._beat_s = self._clock()

    @property
    def live(self) -> bool:
        """Whether its loop turns: if not, only a restart helps."""
        return self._clock() - self._beat_s < STUCK_S

    @property
    def ready(self) -> bool:
        """Whether it does its work now."""
        return self.live and not self.draining and all(part.up for part in self._parts.values())

    def is_up(self, part: str) -> bool:
        """Whether the part works."""
        return self._parts[part].up

    @property
    def parts(self) -> tuple[str, ...]:
        """The names of all parts."""
        return tuple(self._parts)

    def as_dict(self) -> dict[str, Any]:
        """All of it, as JSON can carry it; `for_s`: how long the part has been as it is."""
        now_s = self._clock()
        return {
            "worker": self.worker,
            "live": self.live,
            "ready": self.ready,
            "draining": self.draining,
            "parts": {
                name: {"up": part.up, "why": part.reason, "for_s": round(now_s - part.since_s, 1)}
                for name, part in self._parts.items()
            },
        }
