"""Other sessions that use the slot, that hold its lock and do not use it, or that would not do as this worker does."""

from __future__ import annotations

from math import inf
from typing import TYPE_CHECKING, Final

from cachebus.base.clock import monotonic
from cachebus.consumers.cdc.slot.commits import UNSEEN, UNSEEN_REMEDY
from cachebus.consumers.cdc.slot.reader import IDLE_ADVANCE_BYTES, SlotReader
from cachebus.consumers.cdc.slot.slot import Slot
from cachebus.consumers.cdc.slot.twins import L2, RULES, Twins
from cachebus.consumers.worker.source import AGREE_LOOKS, Finding
from cachebus.consumers.worker.transactions import ends_session, joined, workers_named

if TYPE_CHECKING:
    from collections.abc import Sequence

    from asyncpg import Connection, Record

    from cachebus.consumers.cdc.slot.postgres import PostgresSource

STILL_S: Final = 15.0
"""If a worker has the slot's lock and does not use the slot for so long, the workers that stand by report it."""
TAKEN_S: Final = 5.0
"""How long others may use the slot before that is reported. After a worker is killed, its server process still does."""
UNSEEN_S: Final = 5.0
"""How long commits may stay invisible to other sessions before that is reported."""


class OtherSessions:
    """What other sessions do with a slot, over the looks of one session of a worker."""

    def __init__(self, source: PostgresSource, connection: Connection) -> None:
        self._source = source
        self._name = source.names.slot
        self._twins = Twins(connection, self._name)
        self._unlike: list[Finding] = []
        self._leader: Sequence[Record] = ()
        """The session that has the slot's lock."""
        self._confirmed, self._confirmed_since_s = 0, monotonic()

    async def look(self, *, is_ours: bool) -> None:
        """Look for other workers of the slot that would do otherwise, and show them what this one does. A check shows
        nothing, and looks once: not for other rules, since it may be of rules that are to come. `is_ours`: whether the
        slot is of no other namespace. One that is, this worker leaves alone: what it has is its namespace's own."""
        source, checked = self._source, self._source.checks_for
        self._leader = () if source.leading else await self._twins.leader()
        self._unlike = []
        if not is_ours:
            await self._twins.hide()
            return
        ours = {L2: source.identity(), RULES: source.router.said} if checked is None else {L2: checked}
        for kind, what in ours.items():
            if checked is None:
                await self._twins.show(kind, what)
            found = await self._twins.finding(kind, what, AGREE_LOOKS if checked is None else 1)
            self._unlike += [found] if found is not None else []

    def findings(self, slot: Slot, reader: SlotReader, *, leads: bool) -> list[Finding]:
        """The findings about them. `leads`: whether this worker has the lock."""
        return [*self._unlike, *self._of_the_lock(slot, reader, leads=leads)]

    def _of_the_lock(self, slot: Slot, reader: SlotReader, *, leads: bool) -> list[Finding]:
        if leads:
            since_s = reader.passed.since_s
            if since_s is not None and monotonic() - since_s > UNSEEN_S:
                return [Finding("slot", self._name, UNSEEN, UNSEEN_REMEDY)]
            if reader.in_use_s is not None and monotonic() - reader.in_use_s > TAKEN_S and slot.active_pid:
                who = f"another program reads it: {slot.active_as!r}, process {slot.active_pid}"
                return [Finding("slot", self._name, who, ends_session(slot.active_pid))]
            return []
        confirmed, since_s = self._confirmed, self._confirmed_since_s
        if slot.confirmed != confirmed or slot.behind_bytes < IDLE_ADVANCE_BYTES:
            self._confirmed, self._confirmed_since_s = slot.confirmed, monotonic()
        unmoved = monotonic() - since_s > 4 * STILL_S and self._confirmed == confirmed
        if reader.waited_since_s < inf and (slot.untouched_s > STILL_S or unmoved):
            who, ends = workers_named(self._leader)
            problem = (
                f"another worker{f' ({who})' if who else ''} has the lock of the slot, and does nothing with it: it is "
                "frozen, or all that it needs is out of reach"
            )
            return [Finding("leader", self._name, problem, joined(["end the other worker", ends if who else ""]))]
        return []
