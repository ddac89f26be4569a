"""What a relay of an outbox in PostgreSQL knows over all its connections."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from cachebus.consumers.outbox import inserts, locked, memory, serving
from cachebus.consumers.outbox.letting import Resting
from cachebus.consumers.worker.source import Finding


class RelayKnowledge(Resting):
    """What a relay knows over all connections."""

    def __init__(self, again_s: float) -> None:
        super().__init__(again_s)
        self.oid: int | None = None
        """The number of the table that rows were last taken from."""
        self.checks = False
        """Whether it is no relay, but a check, which others don't see."""
        self.identity: Callable[[], str] = lambda: ""
        """See `Source.identity`."""
        self.strangers = serving.RelaysElsewhere()
        self.doubts = memory.MemoryDoubts()
        self.warnings = inserts.Warnings()
        self.swallowing: list[Finding] = []
        """What keeps rows out of the table, by the last look that got so far: no other has seen it gone."""
        self.found: list[Finding] = []
        """What else lasts by the last look that got to its end. One that a locked table ends has not seen it gone."""
        self.patience = 1
        """How many times as long as at first a command may take: see `database.PATIENCE_MOST`."""

    def note(self, found: Sequence[Finding]) -> None:
        """A look has found this."""
        by_others = (locked.ASSUMPTION, inserts.ASSUMPTION)  # each is told by itself
        self.found = [one for one in found if not one.over and one.assumption not in by_others]
