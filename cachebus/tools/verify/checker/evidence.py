"""The evidence of a run: the history logs of all nodes, and the faults that were injected.

A promise may be broken while a fault is at work, or shortly after one. Each method that returns `Excuses` says when
one kind of misbehaviour is explained by a fault, and so is no finding.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

from cachebus.base.backoff import RECONNECT_MAX_S
from cachebus.keys.key import shard_of
from cachebus.tools.harness.messages import Tick
from cachebus.tools.verify.checker.explanation import Explainer, Known
from cachebus.tools.verify.checker.history import History, writes_of
from cachebus.tools.verify.checker.loads import Excuses, ItemLoad, Span, loads_of
from cachebus.tools.verify.fleet import data_types
from cachebus.tools.verify.fleet.disturbances import ENTERED, EVERY_S, FLUSHED, GAP, L2_FAILED, LATE, STALLED
from cachebus.tools.verify.fleet.history_log import all_records
from cachebus.tools.verify.fleet.items import SourceItem
from cachebus.tools.verify.fleet.setup import bound_of, guard_max_s, has_room, l2_timeout_s
from cachebus.tools.verify.target.testbed import InjectedFault

START_S = 3.0
"""A fleet starts within this time, and with it the first epoch."""
BORN_S = 1.0
"""An epoch begins within this time after a run's start, or after a fault's end."""
HARMLESS = frozenset({"slow", "sour", "stuck"})
"""Faults of a node's source. The node keeps its leases under them."""
UNFELT = frozenset({"del-records", "del-leases", "del-log", "xtrim", "script-flush"})
"""Faults of the server that do not touch any node's L1."""
STILL = frozenset({"stop", "stall", "kill", "delay", "delay-replies"})
"""Faults under which a node does not run, or its bytes come late."""
EVENTS_ONLY = frozenset({"deaf", "hang-events", "delay-events", "drop", "double", "reorder", "garble", "garble-head"})
"""Faults of a node's network that touch events only: its commands pass, so it keeps its leases."""


@dataclass(frozen=True)
class Evidence:
    """All that is known of a run."""

    directory: Path
    items: list[SourceItem]
    lives: dict[str, Span]
    """From when until when each process ran, by node and life, as in "2.1"."""
    ticks: list[Tick]
    """The last of each process."""
    faults: list[InjectedFault]
    ends_leases: frozenset[str]
    """The names of faults that may end fill leases on every node."""
    away: list[Span]
    """When nobody could reach the server."""
    bound_s: float
    versions: list[int]
    """The newest version in the source, by item."""
    not_ready: tuple[int, ...] = ()
    """Nodes that were not at work again once the faults were over."""
    held: int = 0
    """Fill leases that were still held when no load was under way."""
    left: Mapping[int, str] = field(default_factory=dict)
    """Tasks and sockets that a node did not give back, by node."""
    shards: int = 1
    """How many shards the namespace has."""
    repaired: Span = (0.0, 0.0)
    """When the run repaired what the faults had left, which may be an outage too."""

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
            self.data_loss(),
            lambda write: newborn.get(number_of(write.node), none).overlap(write.called_s, write.called_s),
        )

    def newborn(self) -> dict[str, Excuses]:
        """When a node could not know the bounds of the others, by node: it began on an empty server, and no other node
        had written its row there yet."""
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
        """The records of one history log."""
        return all_records(self.directory, node, kind)

    def explainer(self, history: History) -> Explainer:
        """What explains findings in this history."""

        @cache
        def applied(node: str) -> Known:
            return self.records(node, "applied")

        return Explainer(
            self.items,
            history.writes,
            applied,
            self.lives,
            self.faults,
            lambda node: self.records(node, "disturbances"),
        )

    def loads(self) -> list[ItemLoad]:
        """Of all nodes."""
        return [
            load
            for node, (_, ended_s) in self.lives.items()
            for load in loads_of(node, self.records(node, "loads"), ended_s)
        ]

    def _amiss(self, node: str, *kinds_of: int) -> list[Span]:
        """The disturbances that a node noticed itself: of these kinds, by default those that may end leases."""
        wanted = kinds_of or (STALLED, L2_FAILED, FLUSHED)
        return [(from_s, until_s) for kind, from_s, until_s in self.records(node, "disturbances") if kind in wanted]

    def lease_excuses(self) -> dict[str, Excuses]:
        """When a node, or its network, may have lost leases, by node and life."""
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

    def fleet_lease_excuses(self) -> Excuses:
        """When every node may have lost leases: by a fault, or because an epoch reached the age of the longest
        guard."""
        return Excuses(self._young_epochs())

    def _young_epochs(self) -> list[Span]:
        """When an epoch may have been younger than the longest guard, so that L2 keeps what is loaded until then only:
        since the run's start, since a fault that may begin one, and since a node entered one."""
        age_s = l2_timeout_s(self.largest_bound_s) + guard_max_s(self.largest_bound_s)
        began_s = min((began_s for began_s, _ in self.lives.values()), default=0.0)
        return [
            (began_s, began_s + START_S + age_s),
            *((d.from_s, d.until_s + BORN_S + age_s) for d in self.faults if d.fault in self.ends_leases),
            *((from_s, until_s + age_s) for node in self.lives for from_s, until_s in self._amiss(node, ENTERED)),
        ]

    def kept(self, load: ItemLoad) -> bool:
        """Whether the node keeps the loaded value in L1 for D at least."""
        return data_types.POLICIES[self.items[load.item].data_type].l1 and has_room(int(number_of(load.node)))

    def asked_s(self, load: ItemLoad) -> float:
        """The earliest time at which the load may have been asked for. Its value counts as that old. The loader starts
        a turn of the event loop later, which is long where the process stood still."""
        return min(
            (
                from_s
                for from_s, until_s in self._amiss(load.node, STALLED)
                if from_s <= load.began_s <= until_s + EVERY_S
            ),
            default=load.began_s,
        )

    def impaired(self, shard: int | None = None) -> dict[str, Excuses]:
        """When a node, its network, or the shard's server was impaired, by node and life; None: the server of any
        shard."""
        after_s = RECONNECT_MAX_S + 2 * l2_timeout_s(self.largest_bound_s)
        found = {}
        for node, (began_s, _) in self.lives.items():
            spans = [(began_s, began_s + START_S), self.repaired, *self._amiss(node, STALLED, LATE)]
            spans += [
                (done.from_s, done.until_s)
                for done in self.faults
                if done.fault not in HARMLESS
                and (str(done.node) in ("0", number_of(node)) or done.fault == "newborn")
                and (shard is None or done.shards is None or shard in done.shards)
            ]
            found[node] = Excuses((from_s, until_s + after_s) for from_s, until_s in spans)
        return found

    def shard_of(self, item: SourceItem) -> int | None:
        """The item's shard; None in the other namespace, for which faults do not name their shards."""
        return None if item.cache_index else shard_of(item.tenant or "", self.shards)

    def reload_excuses(self) -> dict[str, Excuses]:
        """When a node may ask a source again too soon: it, its network or the server was impaired, or an epoch new."""
        after_s = self.largest_bound_s + l2_timeout_s(self.largest_bound_s)
        young = self._young_epochs()
        felt = [(d.node, (d.from_s, d.until_s + after_s)) for d in self.faults if d.fault not in HARMLESS | UNFELT]
        return {
            name: Excuses([*young, *self._amiss(name), *(span for n, span in felt if n in (0, int(number_of(name))))])
            for name in self.lives
        }

    def paused(self) -> dict[str, Excuses]:
        """When a node did not run, or its network was slow on purpose, by node and life."""
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

    def leases_deleted(self) -> Excuses:
        """When a fault deleted the fill leases."""
        return Excuses([(done.from_s, done.until_s) for done in self.faults if done.fault == "del-leases"])

    def stalls(self) -> Excuses:
        """When any node may have stood still, or have waited for the server."""
        spans = [(d.from_s, d.until_s) for d in self.faults if d.fault not in HARMLESS]
        for node in self.lives:
            spans += self._amiss(node)
        return Excuses(spans)

    def data_loss(self) -> Excuses:
        """When L2 may have lost data."""
        after_s = self.largest_bound_s + l2_timeout_s(self.largest_bound_s)
        return Excuses(
            (d.from_s - after_s, d.until_s + after_s) for d in self.faults if d.node == 0 or d.fault == "newborn"
        )

    def l1_drops(self) -> dict[str, Excuses]:
        """When a node may have dropped values from L1, all of them or some, by node and life."""
        found = {}
        for node in self.lives:
            spans = self._amiss(node, FLUSHED, GAP)
            spans += [(at_s, at_s) for _, _, at_s in self.records(node, "applied")]
            # A fault may delay and reorder messages. One that arrives behind a gap drops values, but moves no seq.
            spans += [
                (d.from_s, d.until_s + self.largest_bound_s) for d in self.faults if str(d.node) == number_of(node)
            ]
            found[node] = Excuses(spans)
        return found


def number_of(node: str) -> str:
    """The node's number, without its life."""
    return node.partition(".")[0]
