"""The health of a worker: whether it is live, whether it is ready, and if not, why."""

from __future__ import annotations

from typing import Any, Final, NamedTuple

from cachebus.base.clock import Clock, monotonic

STUCK_S: Final = 10.0
"""An event loop that has not run for so long is stuck."""


class Part(NamedTuple):
    """A part that the worker needs, such as "l2" or "database"."""

    up: bool
    reason: str
    since_s: float


class WorkerHealth:
    """The health of one worker. `parts`: what it needs. Each is down at first; the worker is ready when all are up.

    The worker's event loop writes it, and the endpoint's threads read it.
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
        """Note something about a part that works; "" removes the note."""
        before = self._parts[part]
        if before.up:
            self._parts[part] = before._replace(reason=note)

    def down(self, part: str, reason: str) -> None:
        """The part does not work. `reason`: for people, without secrets."""
        before = self._parts[part]
        self._parts[part] = Part(False, reason, self._clock() if before.up else before.since_s)

    def beat(self) -> None:
        """The worker's event loop runs."""
        self._beat_s = self._clock()

    @property
    def live(self) -> bool:
        """Whether its event loop runs. If not, only a restart helps."""
        return self._clock() - self._beat_s < STUCK_S

    @property
    def ready(self) -> bool:
        """Whether it can do its work now."""
        return self.live and not self.draining and all(part.up for part in self._parts.values())

    def is_up(self, part: str) -> bool:
        """Whether the part works."""
        return self._parts[part].up

    @property
    def parts(self) -> tuple[str, ...]:
        """The names of all parts."""
        return tuple(self._parts)

    def as_dict(self) -> dict[str, Any]:
        """All of it, for JSON. `for_s`: how long the part has been in its state, in seconds."""
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
