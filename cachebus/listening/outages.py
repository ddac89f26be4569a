"""What is wrong, said in the log: not for each shard, nor at each attempt, and each minute again while it lasts."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final, Literal

from cachebus.base.clock import Clock, monotonic
from cachebus.base.log import logger
from cachebus.core.ports import Store
from cachebus.observe.hooks import Hooks

Backend = Literal["L2", "bus"]
TELL_EVERY_S: Final = 60.0
"""So often what lasts is told again: its first line may have been one too many, or be lost among older ones."""


class Notices:
    """What is wrong with one thing at a time, by the thing's name."""

    def __init__(self, clock: Clock = monotonic) -> None:
        self._clock = clock
        self._said: dict[str, tuple[str, float]] = {}
        """By name: the trouble, and when it was told last."""

    def say(self, name: str, trouble: str, *, lasts: bool = False) -> None:
        """Log the trouble where it is another than before; "" says that there is none any more. `lasts`: again each
        minute that it is said."""
        before, told_s = self._said.get(name, ("", 0.0))
        now_s = self._clock()
        if trouble == before and not (lasts and trouble and now_s - told_s >= TELL_EVERY_S):
            return
        self._said[name] = trouble, now_s
        if trouble:
            logger.warning("{}: {}", name, trouble)
        else:
            logger.warning("{}: all is well again", name)  # of one level with what it ends


class _Outage:
    """One of L2 or the bus, of some shards or all."""

    def __init__(self, began_s: float) -> None:
        self.began_s = began_s
        self.why: dict[int, str] = {}
        """By shard."""
        self._told_s: dict[str, float] = {}
        """By reason: when it was told last."""

    def tell(self, part: Backend, why: str, now_s: float) -> None:
        """Log the reason, unless it was in the last minute."""
        told_s = self._told_s.get(why)
        if told_s is None:
            logger.warning("{} out of reach: {}", part, why)
        elif now_s - told_s >= TELL_EVERY_S:
            logger.warning("{} is still out of reach after {:.0f} s: {}", part, now_s - self.began_s, why)
        else:
            return
        current = {*self.why.values()}
        self._told_s = {
            one: at_s for one, at_s in self._told_s.items() if now_s - at_s < TELL_EVERY_S or one in current
        }
        self._told_s[why] = now_s


class Outages:
    """Which shards are out of reach, in L2 and on the bus, or refuse this node, and why."""

    def __init__(self, store: Store, clock: Clock, count: int, hooks: Hooks | None = None) -> None:
        """`count`: of shards. `hooks`: who wants to be told."""
        self._hooks = hooks or Hooks()
        self._store = store
        self._clock = clock
        self._count = count
        self._outages: dict[Backend, _Outage] = {}
        self._refused: dict[int, str] = {}
        self._told_s = -TELL_EVERY_S
        """When a refusal was told last."""

    def lost(self, part: Backend, index: int, why: str) -> None:
        """The shard can't be reached; called at each attempt. Each reason is logged once, and again each minute."""
        now_s = self._clock()
        if part not in self._outages and self._hooks.degraded:
            self._hooks.tell("degraded", part, True, why)
        outage = self._outages.setdefault(part, _Outage(now_s))
        outage.why[index] = why
        outage.tell(part, why, now_s)
        if part == "L2":
            self._refused.pop(index, None)  # nobody knows what is there by now

    def refused(self, index: int, why: str) -> None:
        """The shard is laid out for nodes of other settings, so that each call in it raises; told again each minute."""
        self._reached("L2", index)
        known, now_s = self._refused, self._clock()
        told = why in known.values() and now_s - self._told_s < TELL_EVERY_S
        known[index] = why
        if not told:
            self._told_s = now_s
            for said in self.refusals():
                logger.error("L2: {}", said)

    def refusals(self) -> list[str]:
        """What to say of the shards that refuse this node."""
        cost = "what memory can't answer raises ProtocolMismatch"
        return [
            f"{shards_of(len(shards), self._count)} refuse this node: {why}: {cost}"
            for why, shards in by_reason(self._refused).items()
        ]

    def back(self, part: Backend, index: int) -> None:
        """The shard is reached; the last one to come back is logged."""
        lacked = self._reached(part, index)
        if part == "L2":
            lacked = self._refused.pop(index, None) is not None or lacked
        if lacked and part not in self._outages and not (part == "L2" and self._refused):
            logger.warning("{}: all is well again", part)

    def reasons(self, part: Backend) -> dict[str, list[int]]:
        """Why it is out of reach, and for which shards each."""
        outage = self._outages.get(part)
        return {} if outage is None else by_reason(outage.why)

    def _reached(self, part: Backend, index: int) -> bool:
        outage = self._outages.get(part)
        if outage is None:
            return False
        lacked = outage.why.pop(index, None) is not None
        if not outage.why:
            del self._outages[part]
            if self._hooks.degraded:
                self._hooks.tell("degraded", part, False, "")
        return lacked

    @property
    def refusing(self) -> frozenset[int]:
        """The shards that refuse this node."""
        return frozenset(self._refused)

    def lacks(self, index: int) -> bool:
        """Whether the shard is known to be out of reach in L2."""
        outage = self._outages.get("L2")
        return (outage is not None and index in outage.why) or not self._store.reaches(index)


def shards_of(count: int, of: int) -> str:
    """How many shards, for people."""
    return "all shards" if count == of else f"{count} of {of} shards"


def by_reason(known: Mapping[int, str]) -> dict[str, list[int]]:
    """The shards of each reason, of reasons by shard."""
    found: dict[str, list[int]] = {}
    for index, why in sorted(known.items()):
        found.setdefault(why, []).append(index)
    return found
