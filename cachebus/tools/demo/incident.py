"""The incident: one node's connections hang on purpose for a while. Pure: it says what to do, and its caller does
it."""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import Enum
from typing import Final

from cachebus.tools.harness.messages import Tick

BEGINS: Final = 0.4
"""When it begins, as a share of the run."""
LASTS_BOUNDS: Final = 2.0
"""How long it lasts, in staleness bounds: the lease lapses within the first."""
RECOVERY_BOUNDS: Final = 2.0
"""Within which time the node must have recovered, in staleness bounds."""
SLACK_S: Final = 0.05
"""Bytes may still be on their way when the connections begin to hang."""
ROOM_BOUNDS: Final = 5.0
"""How long a run must be for an incident, in staleness bounds."""


class Action(Enum):
    """What the caller shall do to the node's connections."""

    HOLD = "hold"
    RESTORE = "restore"


@dataclass(slots=True)
class Incident:
    """One node's connections hang half-open for two bounds. Times are monotonic seconds; None: not yet."""

    node: int
    bound_s: float
    began_s: float | None = None
    lapsed_s: float | None = None
    restored_s: float | None = None
    recovered_s: float | None = None
    ended_s: float | None = None
    """When the run ended."""
    kept_lease: bool = False
    """Whether the node was seen with a lease when it must have lapsed."""
    _missing: int = field(default=0, init=False)

    @staticmethod
    def fits(duration_s: float, bound_s: float) -> bool:
        """Whether a run is long enough for it."""
        return duration_s >= ROOM_BOUNDS * bound_s

    def due(self, progress: float, now_s: float) -> Action | None:
        """What to do now. `progress`: the share of the run that is over, 0-1."""
        if self.began_s is None:
            if progress >= BEGINS:
                self.began_s = now_s
                return Action.HOLD
        elif self.restored_s is None and now_s >= self.began_s + LASTS_BOUNDS * self.bound_s:
            self.restored_s = now_s
            return Action.RESTORE
        return None

    def see(self, tick: Tick, head: int) -> str | None:
        """Take in a tick of a node. `head`: the highest seq that any node has applied. Returns a line for people if the
        node's state has changed."""
        if self.began_s is None or tick.node != self.node:
            return None
        leased = tick.lease_left_s > 0
        if self.restored_s is None and leased and tick.at_s > self.began_s + self.bound_s + SLACK_S:
            self.kept_lease = True
        if self.lapsed_s is None and not leased:
            self.lapsed_s = tick.at_s
            return (
                f"node {self.node}: its lease has lapsed, {tick.at_s - self.began_s:.1f} s after; "
                "it reads from the database and stays useful"
            )
        if self.restored_s is None:
            self._missing = max(0, head - tick.applied)
        elif self.recovered_s is None and tick.at_s > self.restored_s and leased:
            self.recovered_s = tick.at_s
            return (
                f"node {self.node}: caught up on {self._missing} missed events, lease renewed, "
                f"{tick.at_s - self.restored_s:.1f} s after"
            )
        return None

    @property
    def overdue(self) -> bool:
        """Whether the node had time enough to recover, and did not."""
        if self.restored_s is None or self.ended_s is None or self.recovered_s is not None:
            return False
        return self.ended_s > self.restored_s + RECOVERY_BOUNDS * self.bound_s

    def state(self) -> str:
        """A word for the node's row."""
        if self.began_s is None or self.recovered_s is not None:
            return ""
        if self.restored_s is not None:
            return "catching up"
        return "cut off" if self.lapsed_s is None else "cut off, from source"


def too_short(duration_s: float, bound_s: float) -> str:
    """The message for a run that is too short for the incident."""
    return (
        f"no connection is cut: {duration_s:g} s are too short for that, "
        f"{ROOM_BOUNDS * bound_s:g} s would do (--duration)"
    )
