"""What a run leaves behind to be judged: the tapes of all nodes, and the record of faults."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

from cachebus.base.backoff import RECONNECT_MAX_S
from cachebus.keys.key import shard_of
from cachebus.tools.harness.messages import Tick
from cachebus.tools.verify.checker.explanation import Known, Teller
from cachebus.tools.verify.checker.history import History, writes_of
from cachebus.tools.verify.checker.loads import Excuses, Load, Span, loads_of
from cachebus.tools.verify.fleet import data_types
from cachebus.tools.verify.fleet.disturbances import BEGAN_ANEW, EVERY_S, HEARD_AHEAD, HURRIED, L2_FAILED, STALLED
from cachebus.tools.verify.fleet.history_log import all_records
from cachebus.tools.verify.fleet.items import Item
from cachebus.tools.verify.fleet.setup import bound_of, guard_max_s, has_room, l2_timeout_s
from cachebus.tools.verify.target.stage import Done

START_S = 3.0
"""What a fleet takes to start, and with it the first epoch."""
BORN_S = 1.0
"""What it takes until an epoch begins, from a run's start or a fault's end."""
HARMLESS = frozenset({"slow", "sour", "stuck"})
"""Faults of a node under which its leases must hold all the same."""
UNFELT = frozenset({"del-records", "del-leases", "del-log", "xtrim", "script-flush"})
"""Faults of the server that leave what a node holds in its memory alone."""
STILL = frozenset({"stop", "stall", "kill", "delay", "delay-replies"})
"""Faults of a node under which its own time stands still, or bytes come, but late."""
EVENTS_ONLY = frozenset({"deaf", "hang-events", "delay-events", "drop", "double", "reorder", "garble", "garble-head"})
"""Faults of a node's network that leave its commands, and so its leases, alone."""


@dataclass(frozen=True)
class Evidence:
    """All that is known of a run."""

    directory: Path
    items: list[Item]
    lives: dict[str, Span]
    """By node and life: from when until when."""
    ticks: list[Tick]
    """The last of each life."""
    faults: list[Done]
    ends_leases: frozenset[str]
    """Faults that may end leases of loads, on all nodes."""
    away: list[Span]
    bound_s: float
    versions: list[int]
    """By item: the newest in the source."""
    not_ready: tuple[int, ...] = ()
    """Nodes that were not at work again once the faults were over."""
    held: int = 0
    """Leases that were held when no load was under way any more."""
    left: Mapping[int, str] = field(default_factory=dict)
    """By node: what it still had when all was over."""
    shards: int = 1
    """Over so many the items are spread."""
    mended: Span = (0.0, 0.0)
    """When what the faults had left was set right, which may be another outage."""

    def bound_of(self, node: str) -> float:
        """The bound of a node, by its number and life."""
        return bound_of(int(number_of(node)), self.bound_s)

    @property
    def largest_bound_s(self) -> float:
        """Of all nodes."""
        return max(map(self.bound_of, self.lives), default=self.bound_s)

    def history(self) -> History:
        """All writes."""
        newborn, none = self.newborn(), Excuses(())
        return History(
            len(self.items),
            (w for node in self.lives for w in writes_of(node, self.records(node, "writes"))),
            self.losing(),
            lambda write: newborn.get(number_of(write.node), none).touch(write.called_s, write.called_s),
        )

    def newborn(self) -> dict[str, Excuses]:
        """By node: when it knew of no other's bound, since it began on an empty server, and no other had yet come there
        to tell of its own."""
        spans: dict[str, list[Span]] = {}
        for born in self.faults:
            if born.fault == "newborn":
                until_s = born.until_s + self.largest_bound_s
                for done in sorted((done for done in self.faults if not done.node), key=lambda done: done.from_s):
                    if born.from_s <= done.until_s and done.from_s <= until_s:
                        until_s = max(until_s, done.until_s + self.largest_bound_s)
                spans.setdefault(str(born.node), []).append((born.from_s, until_s))
        return {node: Excuses(found) for node, found in spans.items()}

    def records(self, node: str, kind: str) -> list[tuple[Any, ...]]:
        """One tape."""
        return all_records(self.directory, node, kind)

    def teller(self, history: History) -> Teller:
        """For stories of it."""

        @cache
        def applied(node: str) -> Known:
            return self.records(node, "applied")

        return Teller(
            self.items, history.writes, applied, self.lives, self.faults, lambda node: self.records(node, "trouble")
        )

    def loads(self) -> list[Load]:
        """Of all nodes."""
        return [
            load
            for node, (_, ended_s) in self.lives.items()
            for load in loads_of(node, self.records(node, "loads"), ended_s)
        ]

    def _amiss(self, node: str, *kinds_of: int) -> list[Span]:
        """What a node knows to have gone wrong with itself: of these kinds, or whatever ends leases."""
        wanted = kinds_of or (STALLED, L2_FAILED, BEGAN_ANEW)
        return [(from_s, until_s) for kind, from_s, until_s in self.records(node, "trouble") if kind in wanted]

    def trouble(self) -> dict[str, Excuses]:
        """By node and life: when something was amiss with it, or with its network."""
        after_s = self.largest_bound_s + l2_timeout_s(self.largest_bound_s)
        found = {}
        for node in self.lives:
            spans = self._amiss(node)
            spans += [
                (done.from_s, done.until_s + after_s)
                for done in self.faults
                if str(done.node) == number_of(node) and done.fault not in HARMLESS | EVENTS_ONLY
            ]
            found[node] = Excuses(spans)
        return found

    def at_large(self) -> Excuses:
        """When leases may have ended for all: by a fault, or as they end once an epoch is as old as a guard may be."""
        after_s = l2_timeout_s(self.largest_bound_s) + guard_max_s(self.largest_bound_s)
        faults = [(d.from_s, d.until_s + after_s) for d in self.faults if d.fault in self.ends_leases]
        began_s = min((began_s for began_s, _ in self.lives.values()), default=0.0)
        return Excuses([(began_s, began_s + START_S + after_s), *faults])

    def kept(self, load: Load) -> bool:
        """Whether a node keeps what it has loaded in its memory, for D at least."""
        return data_types.POLICIES[self.items[load.item].data_type].l1 and has_room(int(number_of(load.node)))

    def asked_s(self, load: Load) -> float:
        """When a load was asked for at the earliest. Its value is as old as that, and the source may have been told a
        turn of the event loop later: where the process stood still, that is long."""
        return min(
            (
                from_s
                for from_s, until_s in self._amiss(load.node, STALLED)
                if from_s <= load.began_s <= until_s + EVERY_S
            ),
            default=load.began_s,
        )

    def unwell(self, shard: int | None = None) -> dict[str, Excuses]:
        """By node and life: when something was wrong with it, its network, or what the shard lies on; None: or what
        any lies on."""
        after_s = RECONNECT_MAX_S + 2 * l2_timeout_s(self.largest_bound_s)
        found = {}
        for node, (began_s, _) in self.lives.items():
            spans = [(began_s, began_s + START_S), self.mended, *self._amiss(node, STALLED, HURRIED)]
            spans += [
                (done.from_s, done.until_s)
                for done in self.faults
                if done.fault not in HARMLESS
                and (str(done.node) in ("0", number_of(node)) or done.fault == "newborn")
                and (shard is None or done.shards is None or shard in done.shards)
            ]
            found[node] = Excuses((from_s, until_s + after_s) for from_s, until_s in spans)
        return found

    def shard_of(self, item: Item) -> int | None:
        """Where an item lies; None where faults don't tell of that, as in the other namespace."""
        return None if item.world else shard_of(item.tenant or "", self.shards)

    def befell(self) -> dict[str, Excuses]:
        """By node and life: when anything was amiss with it, its network, or the server; or nothing could stand in yet,
        since an epoch was younger than a guard may be."""
        after_s = self.largest_bound_s + l2_timeout_s(self.largest_bound_s)
        young_s = BORN_S + guard_max_s(self.largest_bound_s)
        began_s = min((began_s for began_s, _ in self.lives.values()), default=0.0)
        found = {}
        for node in self.lives:
            spans = [(began_s, began_s + young_s)]
            spans += self._amiss(node)
            spans += [
                (done.from_s, done.until_s + (young_s if done.fault in self.ends_leases else after_s))
                for done in self.faults
                if done.node in (0, int(number_of(node))) and done.fault not in HARMLESS | UNFELT
            ]
            found[node] = Excuses(spans)
        return found

    def stood_still(self) -> dict[str, Excuses]:
        """By node and life: when it did nothing at all, or its network was slow on purpose."""
        found = {}
        for node in self.lives:
            spans = self._amiss(node, STALLED)
            spans += [
                (done.from_s, done.until_s)
                for done in self.faults
                if str(done.node) == number_of(node) and done.fault in STILL
            ]
            found[node] = Excuses(spans)
        return found

    def taken(self) -> Excuses:
        """When the server lost leases."""
        return Excuses([(done.from_s, done.until_s) for done in self.faults if done.fault == "del-leases"])

    def stalls(self) -> Excuses:
        """When some node may have stood still, or waited for the server."""
        spans = [(d.from_s, d.until_s) for d in self.faults if d.fault not in HARMLESS]
        for node in self.lives:
            spans += self._amiss(node)
        return Excuses(spans)

    def losing(self) -> Excuses:
        """When L2 may have lost something."""
        after_s = self.largest_bound_s + l2_timeout_s(self.largest_bound_s)
        return Excuses(
            (d.from_s - after_s, d.until_s + after_s) for d in self.faults if d.node == 0 or d.fault == "newborn"
        )

    def forgot(self) -> dict[str, Excuses]:
        """By node and life: when it dropped all it held, or may have heard of something that replaced a part."""
        found = {}
        for node in self.lives:
            spans = self._amiss(node, BEGAN_ANEW, HEARD_AHEAD)
            spans += [(at_s, at_s) for _, _, at_s in self.records(node, "applied")]
            # Messages that were held up arrive late, and some of them before others: these move no seq.
            spans += [
                (d.from_s, d.until_s + self.largest_bound_s) for d in self.faults if str(d.node) == number_of(node)
            ]
            found[node] = Excuses(spans)
        return found


def number_of(node: str) -> str:
    """The node's number, without its life."""
    return node.partition(".")[0]
